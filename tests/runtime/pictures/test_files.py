"""Round trips and refusals. Pillow and tifffile are the witnesses that share no code with libvips."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import skimage.data
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pcsr.runtime.class_maps import levels, overlay
from pcsr.runtime.errors import OptionError, PictureError
from pcsr.runtime.pictures import Picture, check_writable, output_format, read_picture, write_picture

PHOTO = skimage.data.chelsea()[40:101, 90:173]


def photo(dtype: str, kind: str) -> NDArray[Any]:
    """A 83x61 photograph; 16-bit and float with values that 8 bits do not have."""
    picture: NDArray[Any] = {
        "grey": PHOTO[..., 1],
        "rgb": PHOTO,
        "rgba": np.dstack([PHOTO, PHOTO[::-1, :, 0]]),
    }[kind]
    if dtype == "uint8":
        return np.ascontiguousarray(picture)
    if dtype == "uint16":
        return (picture.astype(np.uint16) << 8) + picture[:, ::-1]
    return (picture.astype(np.float32) / 200 - 0.1).astype(np.float32)


def leftovers(folder: Path, *expected: str) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in expected)


# --- what is kept


@pytest.mark.parametrize("kind", ["grey", "rgb", "rgba"])
@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".png", "uint8"), (".png", "uint16"), (".tif", "uint8"), (".tif", "uint16"), (".tiff", "float32")],
)
def test_lossless_formats_give_the_pixels_back_at_their_depth(
    tmp_path: Path, suffix: str, dtype: str, kind: str
) -> None:
    pixels = photo(dtype, kind)
    path = tmp_path / f"picture{suffix}"
    write_picture(path, pixels)
    back = read_picture(path)

    assert back.pixels.dtype == pixels.dtype
    np.testing.assert_array_equal(back.pixels, pixels)
    assert leftovers(tmp_path, path.name) == []


@pytest.mark.parametrize(
    ("name", "kind"), [("a.jpg", "grey"), ("a.JPEG", "rgb"), ("a.webp", "rgb"), ("a.webp", "rgba")]
)
def test_lossy_formats_keep_the_shape_and_stay_close(tmp_path: Path, name: str, kind: str) -> None:
    pixels = photo("uint8", kind)
    write_picture(tmp_path / name, pixels)
    back = read_picture(tmp_path / name).pixels

    assert back.shape == pixels.shape
    difference = back.astype(float) - pixels
    assert np.sqrt(np.mean(difference**2)) < 2.5


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.jpg"])
def test_another_decoder_sees_the_same_picture(tmp_path: Path, name: str) -> None:
    write_picture(tmp_path / name, PHOTO, quality=100)
    with Image.open(tmp_path / name) as opened:
        seen = np.asarray(opened.convert("RGB")).astype(int)

    # Decoders of lossy formats differ by a rounding or two; for the others there is nothing to differ about.
    assert np.abs(seen - read_picture(tmp_path / name).pixels).max() <= (
        0 if name in ("a.png", "a.tif") else 3
    )


def test_another_decoder_sees_all_sixteen_bits(tmp_path: Path) -> None:
    pixels = photo("uint16", "rgb")
    write_picture(tmp_path / "a.tif", pixels)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), pixels)


def test_a_channel_axis_of_one_is_written_as_grey(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", photo("uint8", "grey")[..., None])
    assert read_picture(tmp_path / "a.png").pixels.shape == PHOTO.shape[:2]


@pytest.mark.parametrize("size", [(1, 1), (1, 600), (600, 1)])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_odd_sizes_survive(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), 128, np.uint8)
    write_picture(tmp_path / f"a{suffix}", pixels)
    assert read_picture(tmp_path / f"a{suffix}").pixels.shape == pixels.shape


@pytest.mark.parametrize("name", ["ünïcödé – 写真.png", "a b'\"$.png", "📷.webp", "…" * 80 + ".png"])
def test_any_name_can_be_written_and_read(tmp_path: Path, name: str) -> None:
    write_picture(tmp_path / name, PHOTO)
    assert read_picture(tmp_path / name).pixels.shape == PHOTO.shape
    assert leftovers(tmp_path, name) == []


def test_a_name_that_is_no_utf8_can_be_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\xfe.png")
    write_picture(path, PHOTO)
    np.testing.assert_array_equal(read_picture(path).pixels, PHOTO)


def test_the_content_decides_the_format_not_the_name(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", PHOTO)
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert read_picture(tmp_path / "a.jpg").format == "png"


# --- what is turned into grey or RGB


def test_a_palette_becomes_rgb(tmp_path: Path) -> None:
    paletted = Image.fromarray(PHOTO).quantize(64)
    paletted.save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        read_picture(tmp_path / "a.png").pixels, np.asarray(paletted.convert("RGB"))
    )


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_one_bit_becomes_black_and_white_in_eight(tmp_path: Path, suffix: str) -> None:
    bits = PHOTO[..., 0] > 120
    Image.fromarray(bits).save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read_picture(tmp_path / f"a{suffix}").pixels, np.where(bits, 255, 0))


def test_grey_with_alpha_becomes_rgba(tmp_path: Path) -> None:
    grey, alpha = Image.fromarray(PHOTO[..., 0].copy()), Image.fromarray(PHOTO[..., 2].copy())
    Image.merge("LA", [grey, alpha]).save(tmp_path / "a.png")
    pixels = read_picture(tmp_path / "a.png").pixels
    np.testing.assert_array_equal(pixels, PHOTO[..., [0, 0, 0, 2]])


def test_cmyk_becomes_srgb_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(PHOTO).convert("CMYK").save(tmp_path / "a.tif")
    picture = read_picture(tmp_path / "a.tif")

    assert picture.pixels.shape == PHOTO.shape
    assert np.corrcoef(picture.pixels.ravel(), PHOTO.ravel())[0, 1] > 0.95
    assert picture.profile is not None
    assert picture.profile[16:20] == b"RGB "
    assert "CMYK" in caplog.text


def test_lab_becomes_srgb(tmp_path: Path) -> None:
    image = pyvips.Image.new_from_memory(PHOTO.tobytes(), *PHOTO.shape[1::-1], 3, "uchar")
    image.copy(interpretation="srgb").colourspace("lab").tiffsave(str(tmp_path / "a.tif"))
    pixels = read_picture(tmp_path / "a.tif").pixels
    assert pixels.dtype == np.uint16
    assert np.abs((pixels >> 8).astype(int) - PHOTO).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(PHOTO)
    stored.save(tmp_path / "in.png", exif=exif)
    with Image.open(tmp_path / "in.png") as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened))
    picture = read_picture(tmp_path / "in.png")
    write_picture(tmp_path / "out.png", picture.pixels, like=picture)

    np.testing.assert_array_equal(picture.pixels, upright)
    np.testing.assert_array_equal(read_picture(tmp_path / "out.png").pixels, upright)
    with Image.open(tmp_path / "out.png") as opened:
        np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(opened)), upright)


# --- what lies beside the pixels


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_a_wide_gamut_profile_is_carried(tmp_path: Path, suffix: str) -> None:
    profile = pyvips.Image.profile_load("p3")
    Image.fromarray(PHOTO).save(tmp_path / "in.jpg", icc_profile=profile)
    picture = read_picture(tmp_path / "in.jpg")
    out = tmp_path / f"out{suffix}"
    write_picture(out, np.repeat(picture.pixels, 2, axis=0), like=picture)

    assert picture.profile == profile
    with Image.open(out) as opened:
        assert opened.info["icc_profile"] == profile


def test_a_grey_profile_is_not_put_on_a_colour_picture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = Picture(PHOTO, format="png", metadata={"icc-profile-data": b"\0" * 16 + b"GRAY" + b"\0" * 108})
    write_picture(tmp_path / "a.png", PHOTO, like=picture)
    assert read_picture(tmp_path / "a.png").profile is None
    assert "profile" in caplog.text


def test_exif_and_resolution_are_carried_and_what_is_stale_in_them_is_not(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "A camera"
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0xA002] = PHOTO.shape[1]
    Image.fromarray(PHOTO).save(tmp_path / "in.jpg", exif=exif, dpi=(300, 300))
    picture = read_picture(tmp_path / "in.jpg")
    twice = np.ascontiguousarray(picture.pixels.repeat(2, axis=0).repeat(2, axis=1))
    write_picture(tmp_path / "out.jpg", twice, like=picture)

    with Image.open(tmp_path / "out.jpg") as opened:
        seen = opened.getexif()
        assert seen[0x010F].rstrip("\0") == "A camera"
        assert seen.get(0x0112, 1) == 1
        assert seen.get_ifd(0x8769)[0xA002] == 2 * PHOTO.shape[0]
        assert opened.info["dpi"] == pytest.approx((300, 300), abs=1)


@pytest.mark.parametrize("name", ["out.jpg", "out.webp"])
def test_a_thumbnail_of_the_old_picture_is_dropped(tmp_path: Path, name: str) -> None:
    image = pyvips.Image.new_from_memory(PHOTO.tobytes(), *PHOTO.shape[1::-1], 3, "uchar")
    image = image.copy(interpretation="srgb")
    thumbnail = image.thumbnail_image(16).jpegsave_buffer()
    image.set_type(pyvips.GValue.blob_type, "jpeg-thumbnail-data", thumbnail)
    image.set_type(pyvips.GValue.gstr_type, "exif-ifd0-Make", "A camera")
    (tmp_path / "in.jpg").write_bytes(image.jpegsave_buffer())
    assert thumbnail in (tmp_path / "in.jpg").read_bytes()
    picture = read_picture(tmp_path / "in.jpg")
    write_picture(tmp_path / name, picture.pixels, like=picture)

    written = (tmp_path / name).read_bytes()
    assert thumbnail not in written
    assert b"A camera" in written


# --- what is refused, and how


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"cut{suffix}"
    write_picture(path, PHOTO)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(PictureError, match=f"cut{suffix}"):
        read_picture(path)


def test_a_flipped_bit_in_a_png_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_picture(path, PHOTO)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    with pytest.raises(PictureError, match="damaged"):
        read_picture(path)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    start = b"IDAT" + zlib.compress(bytes(100))
    data = struct.pack(">I", len(start) - 4) + start + struct.pack(">I", zlib.crc32(start))
    return b"\x89PNG\r\n\x1a\n" + chunk + data


def test_a_header_that_claims_too_much_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "big.png").write_bytes(png_header(20000, 20000))
    with pytest.raises(PictureError, match=r"20000x20000.*limit"):
        read_picture(tmp_path / "big.png")


def test_the_limit_of_pixels_can_be_set(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", PHOTO)
    h, w = PHOTO.shape[:2]
    assert read_picture(tmp_path / "a.png", max_pixels=h * w).pixels.shape == PHOTO.shape
    with pytest.raises(PictureError, match="limit"):
        read_picture(tmp_path / "a.png", max_pixels=h * w - 1)


@pytest.mark.parametrize("name", ["a.tif", "a.webp", "a.png"])
def test_several_pictures_in_one_file_are_not_taken_for_the_first(tmp_path: Path, name: str) -> None:
    first, second = Image.fromarray(PHOTO), Image.fromarray(PHOTO[::-1].copy())
    first.save(tmp_path / name, save_all=True, append_images=[second])
    with pytest.raises(PictureError, match="has 2 pages; pick one"):
        read_picture(tmp_path / name)
    for page, expected in ((1, PHOTO), (2, PHOTO[::-1])):
        # WebP is written lossy here.
        difference = read_picture(tmp_path / name, page=page).pixels[..., :3].astype(float) - expected
        assert np.sqrt(np.mean(difference**2)) < (9 if name == "a.webp" else 1e-9)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"hello", "is no PNG"), (b"GIF89a" + bytes(50), "GIF"), (b"II*\0", "TIFF")],
)
def test_what_is_no_picture_is_said_to_be_none(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(PictureError, match=reason):
        read_picture(tmp_path / "a.png")


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", tmp_path, tmp_path / "none.png", Path("/dev/zero")):
        with pytest.raises(PictureError, match=str(path)):
            read_picture(path)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [(PHOTO.astype(np.int32), "samples"), (np.dstack([PHOTO] * 2), "channels")],
    ids=["32-bit", "six channels"],
)
def test_samples_and_channels_that_mean_nothing_here_are_refused(
    tmp_path: Path, samples: NDArray[Any], reason: str
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", samples, photometric="rgb", planarconfig="contig")
    with pytest.raises(PictureError, match=reason):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "reason"),
    [
        ("a.jpg", (8, 8, 4), "uint8", "transparency; write PNG or TIFF or WebP"),
        ("a.jpg", (8, 8, 3), "uint16", "uint16 samples; write PNG or TIFF"),
        ("a.webp", (8, 8), "uint16", "uint16"),
        ("a.png", (8, 8, 3), "float32", "float32 samples; write TIFF"),
        ("a.webp", (16384, 8, 3), "uint8", "16383 pixels"),
        ("a.jpg", (8, 65536), "uint8", "65535 pixels .* 65536x8"),
    ],
)
def test_a_format_that_cannot_hold_the_picture_is_refused_before_work(
    name: str, shape: tuple[int, ...], dtype: str, reason: str
) -> None:
    with pytest.raises(PictureError, match=reason):
        check_writable(name, shape, dtype)


def test_what_a_format_can_hold_is_not_refused() -> None:
    check_writable("a.webp", (16383, 1, 4), np.uint8)
    check_writable("a.jpg", (65535, 1), np.uint8)
    check_writable("a.png", (70000, 1, 4), np.uint16)
    check_writable("a.tif", (70000, 1, 4), np.float32)


@pytest.mark.parametrize("name", ["a", "a.bmp", "png", ".png", "a.png.gz"])
def test_a_name_without_a_known_ending_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match=r"\.png"):
        output_format(name)


# --- whole or not at all

WRITE_NOISE = """
import sys, signal, resource
import numpy as np
from pcsr.runtime.errors import PictureError
from pcsr.runtime.pictures import write_picture
noise = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), dtype=np.uint8)
"""


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_a_disk_that_fills_leaves_the_old_file_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_picture(path, PHOTO)
    before = path.read_bytes()
    # A limit on the size of files stops writing in the middle as a full disk does.
    program = f"""{WRITE_NOISE}
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    write_picture({str(path)!r}, noise)
except PictureError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )

    assert f"cannot write {path}" in done.stdout, done.stderr
    assert path.read_bytes() == before
    assert leftovers(tmp_path, path.name) == []


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_picture(path, PHOTO)
    before = path.read_bytes()
    program = f"""{WRITE_NOISE}
print("ready", flush=True)
write_picture({str(path)!r}, np.tile(noise, (4, 2, 1)))
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        while len(list(tmp_path.iterdir())) == 1 and writer.poll() is None:
            pass
        writer.kill()

    assert path.read_bytes() == before


def test_a_folder_that_is_missing_or_closed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="cannot write"):
        write_picture(tmp_path / "none" / "a.png", PHOTO)
    (tmp_path / "a.png").mkdir()
    with pytest.raises(PictureError, match="cannot write"):
        write_picture(tmp_path / "a.png", PHOTO)
    assert leftovers(tmp_path, "a.png") == []


def test_files_get_the_permissions_that_others_get(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    write_picture(tmp_path / "a.png", PHOTO)
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "other").stat().st_mode


# --- class maps


@pytest.mark.parametrize(
    ("classes", "expected"), [(2, [0, 255]), (3, [0, 128, 255]), (16, range(0, 256, 17))]
)
def test_a_class_map_can_be_seen_and_read_back(classes: int, expected: Any) -> None:
    assert levels(classes).tolist() == list(expected)


@pytest.mark.parametrize("kind", ["grey", "rgb", "rgba"])
def test_an_overlay_is_warm_where_heavy_and_looks_alike_at_any_depth(kind: str) -> None:
    heavy = np.zeros(PHOTO.shape[:2], np.uint8)
    heavy[:, 40:] = 1
    eight = overlay(photo("uint8", kind), heavy, 2)
    sixteen = overlay((photo("uint8", kind).astype(np.uint16)) * 257, heavy, 2)
    floating = overlay(photo("uint8", kind).astype(np.float32) / 255, heavy, 2)

    assert eight.shape == PHOTO.shape
    assert eight.dtype == np.uint8
    red_over_blue = eight[..., 0].astype(int) - eight[..., 2]
    assert (red_over_blue[:, 40:] > 0).all()
    assert (red_over_blue[:, :40] < 0).all()
    assert np.abs(eight.astype(int) - sixteen).max() <= 1
    assert np.abs(eight.astype(int) - floating).max() <= 1


def test_salvage_is_offered_only_where_it_can_do_something(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", PHOTO)
    Image.fromarray(PHOTO).save(tmp_path / "a.bmp")
    for name, offered in (("a.png", True), ("a.bmp", False)):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(PictureError) as caught:
            read_picture(path)
        assert ("--salvage" in str(caught.value)) == offered
