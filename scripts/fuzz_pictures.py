"""The pictures that the fuzz harness starts from: small ones of every format that is read, made when asked for."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyvips
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin

W, H = 61, 43
EXIF_ORIENTATION, EXIF_MAKER, EXIF_DESCRIPTION = 0x0112, 0x010F, 0x010E
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/></x:xmpmeta>'


def picture_corpus() -> dict[str, bytes]:
    """Contents of picture files, by names that say what they are."""
    return dict(_all())


def _all() -> Iterator[tuple[str, bytes]]:
    rgb = _photograph()
    yield from _png(rgb)
    yield from _jpeg(rgb)
    yield from _webp(rgb)
    yield from _tiff(rgb)
    yield from _others(rgb)


def _photograph() -> NDArray[np.uint8]:
    """(H, W, 3) with slopes, an edge and noise, so that no encoder finds it trivial."""
    y, x = np.mgrid[:H, :W]
    slopes = np.stack([x * 4, y * 5, (x + y) * 2], axis=-1) + 40 * (x > y)[..., None]
    noise = np.random.default_rng(7).integers(0, 24, size=(H, W, 3))
    return (slopes + noise).clip(0, 255).astype(np.uint8)


def _alpha(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.dstack([rgb, np.linspace(0, 255, H * W).reshape(H, W).astype(np.uint8)])


def _saved(pixels: NDArray[Any] | Image.Image, form: str, **options: Any) -> bytes:
    """A file as Pillow writes it."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def _by_vips(pixels: NDArray[Any], suffix: str, **options: Any) -> bytes:
    """A file as libvips writes it."""
    image = pyvips.Image.new_from_array(np.ascontiguousarray(pixels))
    kinds = (
        {1: "b-w", 3: "srgb", 4: "srgb"}
        if pixels.dtype == np.uint8
        else {1: "grey16", 3: "rgb16", 4: "rgb16"}
    )
    content: bytes = image.copy(interpretation=kinds[image.bands]).write_to_buffer(suffix, **options)
    return content


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    exif[EXIF_MAKER] = "a maker"
    exif[EXIF_DESCRIPTION] = "a description " * 4
    return exif


def _png(rgb: NDArray[np.uint8]) -> Iterator[tuple[str, bytes]]:
    image = Image.fromarray(rgb)
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
    text.add_text("Comment", "a comment", zip=True)
    yield "rgb.png", _saved(rgb, "PNG")
    # A keyword is Latin-1, and may hold what is no UTF-8.
    keyword = PngImagePlugin.PngInfo()
    keyword.add(b"tEXt", b"R\xe9sum\xe9\0text")
    yield "keyword.png", _saved(image, "PNG", pnginfo=keyword)
    yield "grey.png", _saved(rgb[..., 0], "PNG")
    yield "grey-alpha.png", _saved(Image.fromarray(_alpha(rgb)).convert("LA"), "PNG")
    yield "alpha.png", _saved(_alpha(rgb), "PNG")
    yield "one-bit.png", _saved(image.convert("1"), "PNG")
    yield "palette.png", _saved(image.quantize(17), "PNG")
    yield "palette-alpha.png", _saved(image.quantize(17), "PNG", transparency=bytes(range(17)))
    yield "colour-key.png", _saved(image, "PNG", transparency=tuple(rgb[0, 0].tolist()))
    yield "grey16.png", _saved(rgb[..., 0].astype(np.uint16) * 257, "PNG")
    yield "rgb16.png", _by_vips(rgb.astype(np.uint16) * 257, ".png")
    yield "alpha16.png", _by_vips(_alpha(rgb).astype(np.uint16) * 257, ".png")
    yield "interlaced.png", _by_vips(rgb, ".png", interlace=True)
    yield (
        "metadata.png",
        _saved(image, "PNG", icc_profile=_profile(), exif=_exif(), pnginfo=text, dpi=(300, 300)),
    )
    yield (
        "animated.png",
        _saved(image, "PNG", save_all=True, append_images=[image.rotate(90), image.rotate(180)]),
    )


def _jpeg(rgb: NDArray[np.uint8]) -> Iterator[tuple[str, bytes]]:
    image = Image.fromarray(rgb)
    yield "baseline.jpg", _saved(rgb, "JPEG", quality=80)
    yield "progressive.jpg", _saved(rgb, "JPEG", progressive=True)
    yield "full-colour.jpg", _saved(rgb, "JPEG", subsampling=0, quality=95)
    yield "grey.jpg", _saved(rgb[..., 0], "JPEG")
    yield "cmyk.jpg", _saved(image.convert("CMYK"), "JPEG")
    yield "restarts.jpg", _saved(rgb, "JPEG", restart_marker_rows=1)
    yield "metadata.jpg", _saved(image, "JPEG", icc_profile=_profile(), exif=_exif(), xmp=XMP, dpi=(72, 72))


def _webp(rgb: NDArray[np.uint8]) -> Iterator[tuple[str, bytes]]:
    image = Image.fromarray(rgb)
    yield "lossy.webp", _saved(rgb, "WEBP", quality=75)
    yield "lossless.webp", _saved(rgb, "WEBP", lossless=True)
    yield "lossy-alpha.webp", _saved(_alpha(rgb), "WEBP")
    yield "lossless-alpha.webp", _saved(_alpha(rgb), "WEBP", lossless=True)
    yield "metadata.webp", _saved(image, "WEBP", icc_profile=_profile(), exif=_exif(), xmp=XMP)
    yield (
        "animated.webp",
        _saved(
            image, "WEBP", save_all=True, append_images=[image.rotate(90), image.rotate(180)], duration=100
        ),
    )


def _tiff(rgb: NDArray[np.uint8]) -> Iterator[tuple[str, bytes]]:
    image = Image.fromarray(rgb)
    yield "plain.tif", _tifffile(rgb, photometric="rgb")
    yield "strips.tif", _tifffile(rgb, photometric="rgb", rowsperstrip=7, byteorder=">")
    yield "tiles.tif", _tifffile(rgb, photometric="rgb", tile=(16, 16))
    yield "planar.tif", _tifffile(rgb.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    yield "big.tif", _tifffile(rgb, photometric="rgb", bigtiff=True)
    yield "deflate.tif", _tifffile(rgb, photometric="rgb", compression="zlib", predictor=True)
    yield "grey16.tif", _tifffile(rgb[..., 0].astype(np.uint16) * 257)
    yield "rgb16.tif", _tifffile(rgb.astype(np.uint16) * 257, photometric="rgb", compression="zlib")
    yield "float.tif", _tifffile((rgb / 255).astype(np.float32), photometric="rgb")
    yield "float-grey.tif", _tifffile((rgb[..., 0] / 255).astype(np.float32))
    yield "double.tif", _tifffile((rgb / 255).astype(np.float64), photometric="rgb")
    yield "alpha.tif", _tifffile(_alpha(rgb), photometric="rgb", extrasamples=["unassalpha"])
    yield "pages.tif", _tifffile(np.stack([rgb, 255 - rgb, rgb[::-1]]), photometric="rgb")
    yield "cmyk.tif", _saved(image.convert("CMYK"), "TIFF")
    yield "lzw.tif", _saved(rgb, "TIFF", compression="tiff_lzw")
    yield "packbits.tif", _saved(rgb, "TIFF", compression="packbits")
    yield "jpeg.tif", _saved(rgb, "TIFF", compression="jpeg")
    yield "one-bit.tif", _saved(image.convert("1"), "TIFF", compression="group4")
    yield "palette.tif", _saved(image.quantize(17), "TIFF")
    yield "lab.tif", _saved(_lab(image), "TIFF")
    yield "metadata.tif", _saved(image, "TIFF", icc_profile=_profile(), exif=_exif(), dpi=(300, 300))
    yield "pyramid.tif", _by_vips(rgb, ".tif", tile=True, tile_width=16, tile_height=16, pyramid=True)


def _lab(image: Image.Image) -> Image.Image:
    lab = ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), lab, outputMode="LAB")


def _tifffile(pixels: NDArray[Any], **options: Any) -> bytes:
    content = io.BytesIO()
    # Without its own description, which holds the library's version.
    tifffile.imwrite(content, pixels, metadata=None, software=False, **options)
    return content.getvalue()


def _others(rgb: NDArray[np.uint8]) -> Iterator[tuple[str, bytes]]:
    image = Image.fromarray(rgb)
    small = image.quantize(32)
    yield "plain.gif", _saved(small, "GIF")
    yield "transparent.gif", _saved(small, "GIF", transparency=3)
    yield (
        "animated.gif",
        _saved(
            small,
            "GIF",
            save_all=True,
            append_images=[small.rotate(90), small.rotate(180)],
            duration=80,
            loop=0,
        ),
    )
    yield "rgb.bmp", _saved(rgb, "BMP")
    yield "palette.bmp", _saved(small, "BMP")
    yield "one-bit.bmp", _saved(image.convert("1"), "BMP")
    yield "alpha.bmp", _saved(_alpha(rgb), "BMP")
    yield "lossy.avif", _by_vips(rgb, ".avif", Q=60, effort=1)
    yield "alpha.avif", _by_vips(_alpha(rgb), ".avif", Q=60, effort=1)
    yield "deep.avif", _by_vips(rgb.astype(np.uint16) * 257, ".avif", Q=60, bitdepth=10, effort=1)
