"""Pictures that are unusual, and files that are none: each decoded by somebody else too, or refused with one error."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from pcsr.runtime.errors import PictureError
from pcsr.runtime.pictures import open_picture, read_picture

Decode = Callable[[Path], list[NDArray[Any]]]


@dataclass(frozen=True, kw_only=True)
class Good:
    """A file that is read.

    Attributes:
        format: that is recognised.
        shape: of each page.
        decode: its pages, without libvips; None: `decode_png`.
        dtype: of the samples.
        bits: that matter in them.
        tolerance: of the samples, in levels of 8 bits.
        luma: compare brightness, pixel by pixel, and colour over squares of eight by eight: the file has its colours
            at half the resolution, and decoders differ by how they bring them to the full one.
        pages: in the file.
        note: part of what is said of it.
    """

    format: str
    shape: tuple[int, ...]
    decode: Decode | None
    dtype: str = "uint8"
    bits: int = 8
    tolerance: float = 0
    luma: bool = False
    pages: int = 1
    note: str | None = None


# --- decoders that are not libvips


def by_pillow(mode: str) -> Decode:
    def decode(path: Path) -> list[NDArray[Any]]:
        with Image.open(path) as opened:
            frames = range(getattr(opened, "n_frames", 1))
            return [
                np.asarray(ImageOps.exif_transpose(_frame(opened, each)).convert(mode)) for each in frames
            ]

    return decode


def _frame(opened: Image.Image, number: int) -> Image.Image:
    if number:
        opened.seek(number)
    return opened


def by_tifffile(path: Path) -> list[NDArray[Any]]:
    with tifffile.TiffFile(path) as opened:
        return [page.asarray() for page in opened.pages]


def by_colour_management(path: Path) -> list[NDArray[Any]]:
    """CMYK to sRGB; without a profile through the generic one that libvips brings."""
    with Image.open(path) as opened:
        profile = opened.info.get("icc_profile") or pyvips.Image.profile_load("cmyk")
        converted = ImageCms.profileToProfile(
            opened,
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
        )
    return [np.asarray(converted)]


def lab_by_hand(path: Path) -> list[NDArray[Any]]:
    """Lab to sRGB of 16 bits with D65 as white (CIE 15, section 8.2.1; IEC 61966-2-1)."""
    lightness, a, b = np.moveaxis(tifffile.imread(path).astype(float), 2, 0)
    y = (lightness + 16) / 116
    ratios = np.stack([y + a / 500, y, y - b / 200], axis=2)
    ratios = np.where(ratios > 6 / 29, ratios**3, (ratios - 4 / 29) * 3 * (6 / 29) ** 2)
    to_rgb = np.linalg.inv([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    rgb = np.clip(ratios * [0.95047, 1, 1.08883] @ to_rgb.T, 0, 1)
    return [65535 * np.where(rgb > 0.0031308, 1.055 * rgb ** (1 / 2.4) - 0.055, 12.92 * rgb)]


def float_by_hand(path: Path) -> list[NDArray[Any]]:
    """Deflated rows of which each byte is the difference to the one before, and bytes of one weight stand together
    (Adobe TIFF technical note 3, floating point predictor)."""
    with tifffile.TiffFile(path) as opened:
        page = opened.pages[0].aspage()
        (at,), (length,), (h, w, bands) = page.dataoffsets, page.databytecounts, page.shape
    rows = np.frombuffer(zlib.decompress(path.read_bytes()[at : at + length]), np.uint8).reshape(
        h, w * bands * 4
    )
    sums = np.empty_like(rows)
    for first in range(bands):
        sums[:, first::bands] = np.cumsum(rows[:, first::bands], axis=1, dtype=np.uint8)
    samples = np.ascontiguousarray(sums.reshape(h, 4, w * bands).swapaxes(1, 2)).view(">f4")
    return [samples.reshape(h, w, bands).astype(np.float32)]


def bitmap_by_hand(path: Path) -> list[NDArray[Any]]:
    content = path.read_bytes()
    first, w, h = (int.from_bytes(content[at : at + 4], "little") for at in (10, 18, 22))
    stride = -(-3 * w // 4) * 4
    rows = np.frombuffer(content, np.uint8, count=stride * h, offset=first).reshape(h, stride)
    return [rows[::-1, : 3 * w].reshape(h, w, 3)[..., ::-1]]


def deeper(decode: Decode) -> Decode:
    """8 bits as 16, for what Pillow does not decode deeper."""
    return lambda path: [257.0 * each for each in decode(path)]


# --- what is in the folder

HOPPER, PHOTO = (128, 128, 3), (112, 144, 3)
GOOD = {
    "animated.gif": Good(format="gif", shape=(112, 144, 4), decode=by_pillow("RGBA"), pages=4),
    "animated.webp": Good(format="webp", shape=PHOTO, decode=by_pillow("RGB"), pages=4),
    "apng.png": Good(format="png", shape=(64, 128, 4), decode=None, pages=2),
    # Pillow gives 8 of the 10 bits.
    "avif10.avif": Good(
        format="avif",
        shape=PHOTO,
        decode=deeper(by_pillow("RGB")),
        dtype="uint16",
        bits=10,
        tolerance=5,
        luma=True,
    ),
    "avif8_hopper.avif": Good(format="avif", shape=HOPPER, decode=by_pillow("RGB"), tolerance=6, luma=True),
    "avif_icc.avif": Good(format="avif", shape=(57, 57, 3), decode=by_pillow("RGB"), tolerance=2),
    "bilevel1.png": Good(format="png", shape=(112, 144), decode=by_pillow("L")),
    "cmyk.tif": Good(
        format="tiff", shape=PHOTO, decode=by_colour_management, tolerance=1, note="its own profile"
    ),
    "cmyk_adobe.jpg": Good(
        format="jpeg", shape=PHOTO, decode=by_colour_management, tolerance=2, note="its own profile"
    ),
    "cmyk_adobe_noicc.jpg": Good(
        format="jpeg", shape=PHOTO, decode=by_colour_management, tolerance=2, note="a generic CMYK profile"
    ),
    "float32.tif": Good(format="tiff", shape=(56, 72, 3), decode=float_by_hand, dtype="float32", bits=32),
    "grey16_alpha.png": Good(format="png", shape=(112, 144, 4), decode=None, dtype="uint16", bits=16),
    "grey8.jpg": Good(format="jpeg", shape=(112, 144), decode=by_pillow("L"), tolerance=1),
    "jpeg_arithmetic.jpg": Good(format="jpeg", shape=(149, 227, 3), decode=by_pillow("RGB"), tolerance=2),
    "lab.tif": Good(
        format="tiff",
        shape=(56, 72, 3),
        decode=lab_by_hand,
        dtype="uint16",
        bits=16,
        tolerance=2,
        note="Lab",
    ),
    "multipage_bigtiff.tif": Good(format="tiff", shape=PHOTO, decode=by_tifffile, pages=2),
    "one_pixel.png": Good(format="png", shape=(1, 1, 3), decode=None),
    "palette_alpha.png": Good(format="png", shape=(112, 144, 4), decode=by_pillow("RGBA")),
    "png_named.jpg": Good(format="png", shape=PHOTO, decode=None),
    "progressive_exif_orient3.jpg": Good(format="jpeg", shape=PHOTO, decode=by_pillow("RGB"), tolerance=2),
    "progressive_exif_orient6.jpg": Good(
        format="jpeg", shape=(144, 112, 3), decode=by_pillow("RGB"), tolerance=2
    ),
    "progressive_exif_orient8.jpg": Good(
        format="jpeg", shape=(144, 112, 3), decode=by_pillow("RGB"), tolerance=2
    ),
    "rgb16_p3.png": Good(format="png", shape=PHOTO, decode=None, dtype="uint16", bits=16),
    "rgb24.bmp": Good(format="bmp", shape=PHOTO, decode=bitmap_by_hand),
    "rgb_trns_key.png": Good(format="png", shape=(112, 144, 4), decode=by_pillow("RGBA")),
    "rgba_gamma.png": Good(format="png", shape=(112, 144, 4), decode=None, note="gamma 1 (gAMA)"),
    "strip_1x600.png": Good(format="png", shape=(600, 1, 3), decode=None),
    "strip_600x1.png": Good(format="png", shape=(1, 600, 3), decode=None),
    # Its name says that 12 bits matter; nothing in the file does.
    "tiff12in16.tif": Good(format="tiff", shape=(100, 100), decode=by_tifffile, dtype="uint16", bits=16),
    "tiff16_bigendian.tif": Good(format="tiff", shape=(64, 64), decode=by_tifffile, dtype="uint16", bits=16),
    "trailing_garbage.jpg": Good(format="jpeg", shape=PHOTO, decode=by_pillow("RGB"), tolerance=2),
}
BAD = {
    "bomb_20000x20000_1bit.png": "has 20000x20000 pixels and the limit is",
    "empty.png": "is empty",
    "heif_hopper.heif": "compressed with HEVC",
    "huge_header.png": "has 2147483647x2147483647 pixels and the limit is",
    "jpeg12bit.jpg": "12 bits",
    "rgb_badcrc.png": "damaged",
    "text_named.png": "is no PNG, JPEG, TIFF",
    "truncated.jpg": "premature end of JPEG",
    "truncated.png": "cannot be decoded as PNG",
    "truncated.tif": "cannot be decoded as TIFF",
    "truncated.webp": "cannot be decoded as WebP",
    "zero_width.png": "has no pixels",
}


def test_the_tables_name_every_file_of_the_folder_once(shared: Path) -> None:
    assert sorted([*GOOD, *BAD]) == sorted(path.name for path in (shared / "data" / "hostile").iterdir())


@pytest.mark.parametrize("name", GOOD)
def test_every_page_is_what_another_decoder_sees_at_its_own_depth(
    shared: Path, decode_png: Decode, name: str
) -> None:
    path, good = shared / "data" / "hostile" / name, GOOD[name]
    with open_picture(path) as opened:
        header, pages = opened.header, list(opened.pages())
    expected = (good.decode or decode_png)(path)

    assert (header.format, header.pages) == (good.format, good.pages)
    assert len(expected) == len(pages) == good.pages
    for page, seen in zip(pages, expected, strict=True):
        assert (page.pixels.shape, page.pixels.dtype.name, page.bits) == (good.shape, good.dtype, good.bits)
        wanted = seen[..., [0, 0, 0, 1]] if page.grey_alpha else seen
        assert difference(page.pixels, wanted, luma=good.luma) <= good.tolerance
        assert " ".join(page.notes).find(good.note or "") >= 0
        assert bool(page.notes) == bool(good.note)


def difference(pixels: NDArray[Any], wanted: NDArray[Any], *, luma: bool) -> float:
    """The largest, in levels of 8 bits."""
    differences = pixels.astype(float) - wanted
    if pixels.dtype == np.uint16:
        differences /= 257
    if not luma:
        return float(np.abs(differences).max())
    h, w = differences.shape[:2]
    squares = differences.reshape(h // 8, 8, w // 8, 8, 3).mean(axis=(1, 3))
    return float(max(np.abs(differences @ [0.299, 0.587, 0.114]).max(), np.abs(squares).max()))


@pytest.mark.parametrize("name", [name for name in GOOD if GOOD[name].pages > 1])
def test_each_page_can_be_had_alone(shared: Path, name: str) -> None:
    path = shared / "data" / "hostile" / name
    with open_picture(path) as opened:
        for number, page in enumerate(opened.pages(), 1):
            np.testing.assert_array_equal(read_picture(path, page=number).pixels, page.pixels)


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused_with_one_clear_error(shared: Path, name: str) -> None:
    path = shared / "data" / "hostile" / name
    with pytest.raises(PictureError, match=f"{re.escape(name)}.*{BAD[name]}") as told:
        read_picture(path)
    assert "\n" not in str(told.value)


# --- what decodes of a damaged file


@pytest.mark.parametrize(("name", "intact_rows"), [("truncated.png", 41), ("rgb_badcrc.png", 111)])
def test_salvage_gives_the_rows_of_a_damaged_png_that_decode(
    shared: Path, decode_png: Decode, name: str, intact_rows: int
) -> None:
    folder = shared / "data" / "hostile"
    (intact,) = decode_png(folder / "png_named.jpg")
    picture = read_picture(folder / name, salvage=True)

    np.testing.assert_array_equal(picture.pixels[:intact_rows], intact[:intact_rows])
    assert picture.pixels.shape == intact.shape
    assert any("damaged" in note and "took what decodes" in note for note in picture.notes)


def test_salvage_gives_the_rows_of_a_jpeg_before_it_was_cut(shared: Path) -> None:
    folder = shared / "data" / "hostile"
    (intact,) = by_pillow("RGB")(folder / "trailing_garbage.jpg")
    picture = read_picture(folder / "truncated.jpg", salvage=True)

    assert np.abs(picture.pixels[:47].astype(float) - intact[:47]).max() <= 2
    assert any("premature end of JPEG" in note for note in picture.notes)


@pytest.mark.parametrize("name", ["truncated.tif", "truncated.webp"])
def test_salvage_of_a_file_of_which_nothing_decodes_is_an_error_that_does_not_propose_it(
    shared: Path, name: str
) -> None:
    with pytest.raises(PictureError, match="cannot be decoded") as told:
        read_picture(shared / "data" / "hostile" / name, salvage=True)
    assert "--salvage" not in str(told.value)


def test_an_error_tells_of_this_file_and_not_of_one_salvaged_before(shared: Path) -> None:
    folder = shared / "data" / "hostile"
    read_picture(folder / "truncated.jpg", salvage=True)
    with pytest.raises(PictureError, match="WebP") as told:
        read_picture(folder / "truncated.webp", salvage=True)
    assert "JPEG" not in str(told.value)


@pytest.mark.parametrize("name", [name for name in GOOD if name != "apng.png"])
def test_salvage_changes_nothing_about_an_intact_file(shared: Path, name: str) -> None:
    path = shared / "data" / "hostile" / name
    plain, salvaged = (read_picture(path, page=1, salvage=salvage) for salvage in (False, True))
    np.testing.assert_array_equal(salvaged.pixels, plain.pixels)
    assert salvaged.notes == plain.notes
