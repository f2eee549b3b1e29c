"""What lies beside the pixels, through reading and writing: kept, put right where it is stale, or said to be lost."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import skimage.data
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps, IptcImagePlugin

from pcsr.runtime.pictures import Encoding, Picture, PictureWriter, read_picture, write_picture

PHOTO = np.ascontiguousarray(skimage.data.chelsea()[40:101, 90:173])
H, W = PHOTO.shape[:2]
FORMATS = ["out.png", "out.jpg", "out.tif", "out.webp", "out.avif"]
Decode = Callable[[Path], list[NDArray[Any]]]


def written(path: Path, like: Picture, pixels: NDArray[Any] = PHOTO) -> list[str]:
    """Write and give the notes."""
    with PictureWriter(path, pixels.shape, pixels.dtype, like=like) as writer:
        writer.put(pixels)
    return writer.notes


# --- colour profile and depth


@pytest.mark.parametrize("name", FORMATS)
def test_a_photograph_keeps_its_wide_gamut_profile_byte_for_byte(
    shared: Path, tmp_path: Path, decode_png: Decode, name: str
) -> None:
    source = shared / "data" / "hostile" / "rgb16_p3.png"
    with Image.open(source) as opened:
        profile = opened.info["icc_profile"]
    picture = read_picture(source)
    eight = (picture.pixels >> 8).astype(np.uint8)
    pixels = picture.pixels if name in ("out.png", "out.tif") else eight
    like = Picture(pixels, format="png", metadata=picture.metadata)
    written(tmp_path / name, like, pixels)

    assert len(profile) == 480
    with Image.open(tmp_path / name) as opened:
        assert opened.info["icc_profile"] == profile
    assert read_picture(tmp_path / name).profile == profile


def gradient(bits: int) -> NDArray[np.uint16]:
    """Every value of so many bits, spread over 16; darkest to brightest and back in green."""
    full = (1 << bits) - 1
    values = np.rint(np.arange(full + 1) * (65535 / full)).astype(np.uint16)
    rows = values.reshape(-1, min(256, full + 1))
    return np.dstack([rows, rows[::-1], rows])


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_gradient_of_all_sixteen_bit_values_has_no_bands(
    tmp_path: Path, decode_png: Decode, name: str
) -> None:
    pixels = gradient(16)
    write_picture(tmp_path / name, pixels)
    (seen,) = decode_png(tmp_path / name) if name == "a.png" else [tifffile.imread(tmp_path / name)]

    np.testing.assert_array_equal(seen, pixels)
    np.testing.assert_array_equal(read_picture(tmp_path / name).pixels, pixels)


@pytest.mark.parametrize("bits", [10, 12])
def test_a_gradient_in_avif_keeps_every_value_of_its_depth_and_white_stays_white(
    tmp_path: Path, bits: int
) -> None:
    pixels = gradient(bits)
    like = Picture(pixels, format="avif", bits=bits)
    write_picture(tmp_path / "a.avif", pixels, like=like, encoding=Encoding(lossless=True))
    back = read_picture(tmp_path / "a.avif")

    assert back.bits == bits
    # By a rounding: the lower bits repeat the upper ones.
    assert np.abs(back.pixels.astype(int) - pixels).max() <= 1
    assert back.pixels.max() == 65535
    assert back.pixels.min() == 0


# --- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["in.jpg", "in.tif", "in.png", "in.webp", "in.avif"])
def test_every_orientation_is_turned_upright_once_and_not_again_by_the_next_reader(
    tmp_path: Path, name: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PHOTO).save(tmp_path / name, exif=exif.tobytes())
    with Image.open(tmp_path / name) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    picture = read_picture(tmp_path / name)

    assert picture.pixels.shape == upright.shape
    # Decoders of AVIF differ by how they bring colour to full resolution.
    assert np.abs(picture.pixels.astype(float) - upright).mean() <= (1 if name == "in.avif" else 0)
    for out in ("out.png", "out.tif"):
        written(tmp_path / out, picture, picture.pixels)
        with Image.open(tmp_path / out) as opened:
            np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(opened)), picture.pixels)


# --- XMP

HEAD = b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
TAIL = b"</x:xmpmeta>" + b" " * 300 + b'<?xpacket end="w"?>'
ATTRIBUTES = (
    b'<rdf:Description tiff:Orientation="%d" tiff:ImageWidth=\'%d\' exif:PixelYDimension = "%d" dc:a="6"/>'
)
ELEMENTS = (
    b"<tiff:Orientation>%d</tiff:Orientation><tiff:ImageLength>\n %d</tiff:ImageLength>"
    b"<exif:PixelXDimension>%d</exif:PixelXDimension><dc:title>tiff:Orientation K\xc3\xa4tzchen 6</dc:title>"
)
THUMBNAIL = b"<xmp:Thumbnails><rdf:Alt><rdf:li>JPEG</rdf:li></rdf:Alt></xmp:Thumbnails>"


@pytest.mark.parametrize("name", FORMATS)
def test_xmp_is_kept_byte_for_byte_but_for_orientation_size_and_thumbnails(tmp_path: Path, name: str) -> None:
    before = HEAD + ATTRIBUTES % (6, W, H) + THUMBNAIL + ELEMENTS % (8, H, W) + THUMBNAIL + TAIL
    wanted = HEAD + ATTRIBUTES % (1, 2 * W, 3 * H) + ELEMENTS % (1, 3 * H, 2 * W) + TAIL
    large = PHOTO.repeat(3, axis=0).repeat(2, axis=1)
    written(tmp_path / name, Picture(PHOTO, format="png", metadata={"xmp-data": before}), large)

    if name == "out.png":
        with Image.open(tmp_path / name) as opened:
            opened.load()
            assert opened.info["xmp"] == wanted
    else:
        assert wanted in (tmp_path / name).read_bytes()
    assert read_picture(tmp_path / name).metadata["xmp-data"] == wanted


def test_xmp_that_no_png_can_hold_is_said_to_be_left_out(tmp_path: Path) -> None:
    (note,) = written(
        tmp_path / "a.png",
        Picture(PHOTO, format="tiff", metadata={"xmp-data": "<x:xmpmeta>".encode("utf-16")}),
    )
    assert "not in UTF-8" in note
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png").pixels, PHOTO)


def test_xmp_that_opens_a_million_thumbnails_takes_no_time(tmp_path: Path) -> None:
    packet = b"<xmp:Thumbnails>" * 100_000 + b"tiff:Orientation  " * 20_000
    write_picture(
        tmp_path / "a.webp", PHOTO, like=Picture(PHOTO, format="png", metadata={"xmp-data": packet})
    )
    assert read_picture(tmp_path / "a.webp").metadata["xmp-data"] == packet


@pytest.mark.parametrize("name", ["xmp-data", "iptc-data"])
def test_what_is_longer_than_a_jpeg_segment_is_said_to_be_left_out(tmp_path: Path, name: str) -> None:
    content = b"\x1c" + b"x" * 70_000
    (note,) = written(tmp_path / "a.jpg", Picture(PHOTO, format="png", metadata={name: content}))
    assert "was left out: its 70001 bytes" in note


# --- IPTC

RECORDS = b"\x1c\x02\x78\x00\x05Hello\x1c\x02\x19\x00\x04cats"
READ = {(2, 0x78): b"Hello", (2, 0x19): b"cats"}


def resource(kind: int, content: bytes, name: bytes = b"") -> bytes:
    """A Photoshop resource."""
    named = bytes([len(name)]) + name
    parts = b"8BIM" + kind.to_bytes(2, "big") + named + b"\0" * (len(named) % 2)
    return parts + len(content).to_bytes(4, "big") + content + b"\0" * (len(content) % 2)


THUMBNAIL_RESOURCE = resource(1036, b"the old thumbnail")


def jpeg_with_iptc(path: Path) -> None:
    block = (
        b"Photoshop 3.0\0" + THUMBNAIL_RESOURCE + resource(1006, b"odd", b"name") + resource(0x0404, RECORDS)
    )
    Image.fromarray(PHOTO).save(path)
    content = path.read_bytes()
    segment = b"\xff\xed" + (len(block) + 2).to_bytes(2, "big") + block
    path.write_bytes(content[:2] + segment + content[2:])


def iptc_of(path: Path) -> Any:
    with Image.open(path) as opened:
        return IptcImagePlugin.getiptcinfo(opened)


@pytest.mark.parametrize("names", [["a.jpg", "b.jpg"], ["a.jpg", "b.tif"], ["a.jpg", "b.tif", "c.jpg"]])
def test_iptc_goes_from_and_to_jpeg_and_tiff_without_the_old_thumbnail(
    tmp_path: Path, names: list[str]
) -> None:
    jpeg_with_iptc(tmp_path / names[0])
    assert iptc_of(tmp_path / names[0]) == READ
    for source, out in itertools.pairwise(names):
        assert written(tmp_path / out, read_picture(tmp_path / source)) == []
        assert iptc_of(tmp_path / out) == READ
        assert b"the old thumbnail" not in (tmp_path / out).read_bytes()


@pytest.mark.parametrize(("kind", "tag"), [("7", 33723), ("I", 33723), ("7", 34377)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_iptc_in_a_tiff_is_found_however_it_is_stored(
    tmp_path: Path, order: str, kind: str, tag: int
) -> None:
    content = RECORDS + bytes(-len(RECORDS) % 4)
    if tag == 34377:
        content = THUMBNAIL_RESOURCE + resource(0x0404, content)
    words = np.frombuffer(content, order + "u4").tolist() if kind == "I" else content
    tifffile.imwrite(
        tmp_path / "a.tif",
        PHOTO,
        photometric="rgb",
        byteorder=order,  # type: ignore[arg-type]
        extratags=[(tag, 4 if kind == "I" else 7, len(words), words, True)],
    )
    written(tmp_path / "b.jpg", read_picture(tmp_path / "a.tif"))
    assert iptc_of(tmp_path / "b.jpg") == READ


@pytest.mark.parametrize("name", ["out.png", "out.webp", "out.avif"])
def test_iptc_that_a_format_does_not_have_is_said_to_be_lost(tmp_path: Path, name: str) -> None:
    (note,) = written(tmp_path / name, Picture(PHOTO, format="jpeg", metadata={"iptc-data": RECORDS}))
    assert note.startswith("IPTC was left out")


# --- resolution


def with_resolution(path: Path, across: float, down: float) -> None:
    exif = Image.Exif()
    exif.update({0x011A: across, 0x011B: down, 0x0128: 2})
    options = {"exif": exif.tobytes()} if path.suffix in (".webp", ".avif") else {"dpi": (across, down)}
    Image.fromarray(PHOTO).save(path, **options)


@pytest.mark.parametrize("out", FORMATS)
@pytest.mark.parametrize("source", ["in.png", "in.jpg", "in.tif", "in.webp", "in.avif", "in.bmp"])
def test_the_resolution_is_kept_in_both_directions(tmp_path: Path, source: str, out: str) -> None:
    with_resolution(tmp_path / source, 300, 150)
    written(tmp_path / out, read_picture(tmp_path / source))
    with Image.open(tmp_path / out) as opened:
        if out in ("out.png", "out.tif"):
            seen = opened.info["dpi"]
        else:
            exif = opened.getexif()
            seen = (exif[0x011A], exif[0x011B])
    assert seen == pytest.approx((300, 150), abs=0.1)


@pytest.mark.parametrize("name", ["in.webp", "in.avif", "in.gif", "in.bmp"])
def test_an_unknown_resolution_becomes_that_of_a_screen_and_not_of_a_poster(
    tmp_path: Path, name: str
) -> None:
    Image.fromarray(PHOTO).save(tmp_path / name)
    written(tmp_path / "out.png", read_picture(tmp_path / name))
    with Image.open(tmp_path / "out.png") as opened:
        assert opened.info["dpi"] == pytest.approx((72, 72), abs=25)


def test_the_resolution_turns_with_the_picture(tmp_path: Path) -> None:
    image = pyvips.Image.new_from_memory(PHOTO.tobytes(), W, H, 3, "uchar").copy(xres=10, yres=5)
    image.set_type(pyvips.GValue.gint_type, "orientation", 6)
    (tmp_path / "a.tif").write_bytes(image.tiffsave_buffer())
    assert read_picture(tmp_path / "a.tif").resolution == (5, 10)
