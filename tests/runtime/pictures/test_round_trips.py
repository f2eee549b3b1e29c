"""Colours, transparency, pages and options, through reading and writing. Pillow and tifffile are the witnesses."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import tifffile
from numpy.typing import NDArray
from PIL import Image

from pcsr.runtime.errors import OptionError, PictureError
from pcsr.runtime.pictures import (
    Encoding,
    Picture,
    PictureWriter,
    open_picture,
    read_picture,
    write_picture,
)

PHOTO = np.ascontiguousarray(skimage.data.chelsea()[40:101, 90:173])
H, W = PHOTO.shape[:2]
RGBA = np.dstack([PHOTO, np.linspace(0, 255, H * W).reshape(H, W).astype(np.uint8)])
Decode = Callable[[Path], list[NDArray[Any]]]


def deep(pixels: NDArray[Any], dtype: str) -> NDArray[Any]:
    """The same picture in the range of another type."""
    scales = {"uint8": 1, "uint16": 257, "float32": 1 / 255}
    return (pixels.astype(float) * scales[dtype]).astype(dtype)


# --- TIFF of the rarer kinds


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_alpha_that_is_multiplied_in_is_divided_out(tmp_path: Path, dtype: str) -> None:
    alpha = RGBA[..., 3:] / 255
    multiplied = np.dstack([np.rint(RGBA[..., :3] * alpha), RGBA[..., 3]])
    tifffile.imwrite(
        tmp_path / "a.tif", deep(multiplied, dtype), photometric="rgb", extrasamples=["assocalpha"]
    )
    picture = read_picture(tmp_path / "a.tif")
    seen = picture.pixels / deep(np.ones(1), dtype)

    assert picture.pixels.dtype == dtype
    np.testing.assert_allclose(seen[..., 3], RGBA[..., 3], atol=0.01)
    visible = RGBA[..., 3] > 100
    # Multiplied colours were rounded, and so are those divided again.
    assert np.abs(seen[visible] - RGBA[visible]).max() <= 3


PLANAR = {
    "grey and alpha": (RGBA[..., [0, 3]], "minisblack", ["unassalpha"]),
    "rgb": (PHOTO, "rgb", []),
    "rgba": (RGBA, "rgb", ["unassalpha"]),
}


@pytest.mark.parametrize("layout", [{"tile": (32, 16)}, {"rowsperstrip": 8}], ids=["tiles", "strips"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("kind", PLANAR)
@pytest.mark.parametrize(("order", "bigtiff"), [("<", False), (">", True)], ids=["little", "big"])
def test_colours_that_lie_apart_are_put_together_at_their_depth(
    tmp_path: Path, kind: str, dtype: str, layout: dict[str, Any], order: Any, bigtiff: bool
) -> None:
    pixels, photometric, extra = PLANAR[kind]
    pixels = deep(pixels, dtype)
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels.transpose(2, 0, 1),
        photometric=photometric,
        extrasamples=extra,
        planarconfig="separate",
        compression="zlib",
        byteorder=order,
        bigtiff=bigtiff,
        **layout,
    )
    picture = read_picture(tmp_path / "a.tif")
    wanted = pixels[..., [0, 0, 0, 1]] if kind == "grey and alpha" else pixels

    np.testing.assert_array_equal(picture.pixels, wanted)
    assert picture.pixels.dtype == dtype
    assert picture.grey_alpha == (kind == "grey and alpha")


def test_planes_that_are_promised_and_not_there_are_an_error(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        PHOTO.transpose(2, 0, 1),
        photometric="rgb",
        planarconfig="separate",
        tile=(16, 16),
    )
    content = bytearray((tmp_path / "a.tif").read_bytes())
    # The number of samples: three planes become five.
    at = content.index(struct.pack("<HHI", 277, 3, 1)) + 8
    content[at] = 5
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(PictureError, match="does not tell of 5 samples"):
        read_picture(tmp_path / "a.tif")


def test_four_channels_of_grey_are_not_taken_for_transparency(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGBA, photometric="minisblack", extrasamples=["unspecified"] * 3)
    with pytest.raises(PictureError, match="4 channels of kind b-w"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_pages_of_a_tiff_are_written_one_after_another(tmp_path: Path, dtype: str) -> None:
    pages = [deep(each, dtype) for each in (PHOTO, PHOTO[::-1], PHOTO[:, ::-1])]
    with PictureWriter(tmp_path / "a.tif", (H, W, 3), dtype, pages=3) as writer:
        for page in pages:
            for top in range(0, H, 7):
                writer.put(page[top : top + 7])

    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        for page, seen in zip(pages, tif.pages, strict=True):
            np.testing.assert_array_equal(seen.asarray(), page)
    with open_picture(tmp_path / "a.tif") as opened:
        assert opened.header.pages == 3
        for page, picture in zip(pages, opened.pages(), strict=True):
            np.testing.assert_array_equal(picture.pixels, page)


# --- grey, palettes and CMYK


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_grey_with_alpha_is_written_as_it_was_read(
    tmp_path: Path, decode_png: Decode, name: str, dtype: str
) -> None:
    pixels = deep(RGBA[..., [0, 3]], dtype)
    grey_alpha = pixels[..., [0, 0, 0, 1]]
    write_picture(tmp_path / name, grey_alpha, like=Picture(grey_alpha, format="png", grey_alpha=True))
    (seen,) = decode_png(tmp_path / name) if name == "a.png" else [tifffile.imread(tmp_path / name)]
    back = read_picture(tmp_path / name)

    np.testing.assert_array_equal(seen, pixels)
    np.testing.assert_array_equal(back.pixels, grey_alpha)
    assert back.grey_alpha


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_a_palette_with_transparent_entries_becomes_rgba(tmp_path: Path, name: str) -> None:
    palette = Image.fromarray(PHOTO).quantize(16)
    clear = bytes([0, 255, *[128] * 14]) if name == "a.png" else 0
    palette.save(tmp_path / name, transparency=clear)
    with Image.open(tmp_path / name) as opened:
        wanted = np.asarray(opened.convert("RGBA"))
    pixels = read_picture(tmp_path / name).pixels

    np.testing.assert_array_equal(pixels[..., 3], wanted[..., 3])
    seen = wanted[..., 3] > 0
    np.testing.assert_array_equal(pixels[seen], wanted[seen])


@pytest.mark.parametrize("name", ["cmyk.tif", "cmyk_adobe.jpg"])
def test_cmyk_looks_as_its_profile_says_and_not_as_naive_arithmetic_makes_it(shared: Path, name: str) -> None:
    with Image.open(shared / "data" / "hostile" / name) as opened:
        naive = np.asarray(opened.convert("RGB")).astype(float)
    with Image.open(shared / "data" / "hostile" / "png_named.jpg") as opened:
        original = np.asarray(opened).astype(float)
    pixels = read_picture(shared / "data" / "hostile" / name).pixels.astype(float)

    assert np.abs(pixels - original).mean() < 10
    assert np.abs(naive - original).mean() > 2 * np.abs(pixels - original).mean()


# --- animations

DELAYS = [40, 120, 80]


def animation(path: Path, *, loop: int) -> list[NDArray[Any]]:
    frames = [Image.fromarray(np.roll(PHOTO, 20 * each, axis=1)) for each in range(3)]
    if path.suffix == ".gif":
        frames = [frame.quantize(64) for frame in frames]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=DELAYS, loop=loop, **options)
    with Image.open(path) as opened:
        pages = []
        for number in range(3):
            opened.seek(number)
            pages.append(np.asarray(opened.convert("RGB")))
        return pages


@pytest.mark.parametrize("name", ["in.gif", "in.webp", "in.png"])
def test_an_animation_keeps_frames_delays_and_loops(tmp_path: Path, name: str) -> None:
    wanted = animation(tmp_path / name, loop=3)
    with open_picture(tmp_path / name) as opened:
        header, pages = opened.header, list(opened.pages())
    shape = pages[0].pixels.shape
    lossless = Encoding(lossless=True)
    with PictureWriter(
        tmp_path / "out.webp", shape, np.uint8, pages=3, animation=header.animation, encoding=lossless
    ) as writer:
        for page in pages:
            writer.put(page.pixels)

    assert [*header.animation["delay"]] == DELAYS  # type: ignore[misc]
    with Image.open(tmp_path / "out.webp") as opened:
        assert opened.n_frames == 3
        assert opened.info["loop"] == 3 + (name == "in.gif")
        for number, (page, frame) in enumerate(zip(pages, wanted, strict=True)):
            opened.seek(number)
            opened.load()
            assert opened.info["duration"] == DELAYS[number]
            np.testing.assert_array_equal(page.pixels[..., :3], frame)
            np.testing.assert_array_equal(np.asarray(opened.convert("RGB")), frame)


def test_frames_that_an_animation_promises_and_does_not_have_are_an_error(tmp_path: Path) -> None:
    animation(tmp_path / "a.png", loop=0)
    content = (tmp_path / "a.png").read_bytes()
    at = content.index(b"acTL") + 4
    (tmp_path / "a.png").write_bytes(content[:at] + struct.pack(">I", 9) + content[at + 4 :])
    with pytest.raises(PictureError, match="a.png cannot be decoded"):
        read_picture(tmp_path / "a.png", page=1)


# --- options


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.avif"])
def test_a_higher_quality_is_larger_and_closer(tmp_path: Path, name: str) -> None:
    sizes, errors = [], []
    for quality in (10, 50, 80, 95, 100):
        write_picture(tmp_path / name, PHOTO, encoding=Encoding(quality=quality))
        sizes.append((tmp_path / name).stat().st_size)
        errors.append(np.abs(read_picture(tmp_path / name).pixels.astype(float) - PHOTO).mean())
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    write_picture(tmp_path / name, PHOTO)
    assert (tmp_path / name).stat().st_size == sizes[3]


@pytest.mark.parametrize("name", ["a.webp", "a.avif"])
@pytest.mark.parametrize("pixels", [PHOTO, RGBA], ids=["rgb", "rgba"])
def test_lossless_loses_nothing_not_even_what_is_transparent(
    tmp_path: Path, name: str, pixels: NDArray[Any]
) -> None:
    write_picture(tmp_path / name, pixels, encoding=Encoding(lossless=True))
    np.testing.assert_array_equal(read_picture(tmp_path / name).pixels, pixels)


@pytest.mark.parametrize(
    ("form", "compression"),
    [("png", str(level)) for level in range(10)] + [("tiff", name) for name in ("deflate", "none", "lzw")],
)
def test_every_compression_is_exact_and_read_by_others(tmp_path: Path, form: str, compression: str) -> None:
    write_picture(tmp_path / "a", PHOTO, encoding=Encoding(form=form, compression=compression))
    with Image.open(tmp_path / "a") as opened:
        assert opened.format == form.upper()
        np.testing.assert_array_equal(np.asarray(opened), PHOTO)
    np.testing.assert_array_equal(read_picture(tmp_path / "a").pixels, PHOTO)


def test_compressions_differ_in_size(tmp_path: Path) -> None:
    def size(form: str, compression: str) -> int:
        write_picture(tmp_path / "a", PHOTO, encoding=Encoding(form=form, compression=compression))
        return (tmp_path / "a").stat().st_size

    assert size("tiff", "deflate") < size("tiff", "lzw") < size("tiff", "none")
    assert size("png", "9") < size("png", "0")


@pytest.mark.parametrize(
    ("encoding", "forms"),
    [
        ({"quality": 90}, {"png"}),
        ({"quality": 90}, {"png", "tiff"}),
        ({"lossless": True}, {"jpeg"}),
        ({"lossless": True}, {"png"}),
        ({"compression": "lzw"}, {"png"}),
        ({"compression": "9"}, {"tiff"}),
        ({"compression": "none"}, {"webp", "jpeg", "avif"}),
    ],
)
def test_an_option_that_no_written_format_has_is_refused(encoding: dict[str, Any], forms: set[str]) -> None:
    with pytest.raises(OptionError, match="has no"):
        Encoding(**encoding).check(forms)


@pytest.mark.parametrize(
    "encoding",
    [
        {"form": "gif"},
        {"quality": 0},
        {"quality": 101},
        {"quality": True},
        {"compression": "zip"},
        {"quality": 50, "lossless": True},
    ],
)
def test_an_option_that_means_nothing_anywhere_is_refused(encoding: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Encoding(**encoding)


def test_an_option_that_one_of_the_written_formats_has_is_taken() -> None:
    Encoding(quality=90).check({"png", "jpeg"})
    Encoding(lossless=True).check({"avif", "jpeg"})
    Encoding(compression="lzw").check({"tiff", "webp"})


# --- limits


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp", "a.avif", "a.gif", "a.bmp", "b.png"])
def test_the_limit_of_pixels_holds_for_every_format(tmp_path: Path, name: str) -> None:
    # b.png is animated.
    more = (
        {"save_all": True, "append_images": [Image.fromarray(PHOTO[::-1].copy())]} if name == "b.png" else {}
    )
    Image.fromarray(PHOTO).save(tmp_path / name, **more)
    assert read_picture(tmp_path / name, page=1, max_pixels=H * W).pixels.shape[:2] == (H, W)
    with pytest.raises(PictureError, match=f"{W}x{H} pixels and the limit is {H * W - 1}"):
        read_picture(tmp_path / name, page=1, max_pixels=H * W - 1)


def test_the_limit_holds_for_each_page(tmp_path: Path) -> None:
    large = Image.fromarray(PHOTO.repeat(2, axis=0))
    Image.fromarray(PHOTO).save(tmp_path / "a.tif", save_all=True, append_images=[large])
    assert read_picture(tmp_path / "a.tif", page=1, max_pixels=H * W).pixels.shape == PHOTO.shape
    with pytest.raises(PictureError, match=f"{W}x{2 * H} pixels and the limit"):
        read_picture(tmp_path / "a.tif", page=2, max_pixels=H * W)


@pytest.mark.parametrize("page", [0, -1, 4])
@pytest.mark.parametrize("name", ["in.gif", "in.webp", "in.png"])
def test_a_page_that_is_not_there_is_refused(tmp_path: Path, name: str, page: int) -> None:
    animation(tmp_path / name, loop=0)
    with pytest.raises(OptionError, match=f"has 3 pages and {page} was asked for"):
        read_picture(tmp_path / name, page=page)
