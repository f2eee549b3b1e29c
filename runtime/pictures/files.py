"""Picture files in and out, through libvips.

A picture comes in as the array that the upscaler takes, upright, at its own bit depth; what lies beside the
pixels (colour profile, EXIF, XMP, IPTC, resolution) is carried to the file that is written. Files come from
strangers: the format is told from the content, sizes are checked before memory is taken, and a file that is
damaged anywhere is refused. A picture is written whole or not at all.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.atomic import whole_file
from pcsr.runtime.errors import PictureError
from pcsr.runtime.pictures.formats import FORMATS, Format, check_writable, output_format

__all__ = [
    "MAX_PIXELS",
    "Picture",
    "check_writable",
    "output_format",
    "read_picture",
    "write_picture",
]

logger = logging.getLogger(__name__)

MAX_PIXELS = 268_435_456
"""Pixels of the largest picture that is read unless asked otherwise: 16384 x 16384."""

# No picture within the limit needs more: four float32 channels a pixel, and room for what lies beside them.
BYTES_PER_PIXEL, BYTES_BESIDE = 16, 64 << 20

DTYPES = {"uchar": np.uint8, "ushort": np.uint16, "float": np.float32, "double": np.float32}
# libvips' names for grey and RGB, with or without alpha.
GREY_OR_RGB = {"b-w", "grey16", "srgb", "rgb", "rgb16", "scrgb"}
LAB = {"lab", "labs", "labq"}

ICC = "icc-profile-data"
CARRIED = (ICC, "exif-data", "xmp-data", "iptc-data", "resolution-unit")
# The second directory of EXIF describes the thumbnail, which shows the old picture.
EXIF_STALE = ("exif-ifd0-Orientation", "exif-ifd1-")


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded picture and what lay beside its pixels.

    Attributes:
        pixels: (h, w), (h, w, 3) or (h, w, 4), upright; uint8, uint16 or float32 as in the file.
        format: "png", "jpeg", "tiff" or "webp".
        metadata: colour profile and the like, under libvips' names.
        resolution: horizontal and vertical, in pixels per millimetre.
    """

    pixels: NDArray[Any]
    format: str
    metadata: Mapping[str, bytes | str] = field(default_factory=dict)
    resolution: tuple[float, float] = (1.0, 1.0)

    @property
    def profile(self) -> bytes | None:
        """The ICC profile."""
        profile = self.metadata.get(ICC)
        return profile if isinstance(profile, bytes) else None


def read_picture(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a PNG, JPEG, TIFF or WebP file.

    Orientation is applied; bit depth stays. A palette becomes RGB, one bit 8-bit grey, grey with alpha RGBA,
    and CMYK and Lab become RGB through their profile, which the log says.

    Args:
        path: of the file; its format is told from its content, not from its name.
        max_pixels: larger pictures are refused by their header.

    Raises:
        PictureError: the file cannot be read, is damaged anywhere, too large, has several pages, or a format
            or kind of picture that is not taken here.
    """
    import pyvips

    path = Path(path)
    content = _content(path, limit=max_pixels * BYTES_PER_PIXEL + BYTES_BESIDE)
    form = _format_of(content, path)
    try:
        # Called by its name, so that libvips picks no other loader for a file that looks like two formats.
        load = getattr(pyvips.Image, f"{form}load_buffer")
        image = load(content, access="sequential", fail_on="error")
        _check_header(
            image, path, max_pixels=max_pixels, animated=form == "png" and _is_animated_png(content)
        )
        image = _to_grey_or_rgb(image, path)
        pixels = np.asarray(image.numpy(), dtype=DTYPES[image.format])
        turn = image.get("orientation") if image.get_typeof("orientation") else 1
        return Picture(
            _upright(pixels, turn), form, metadata=_metadata(image), resolution=(image.xres, image.yres)
        )
    except pyvips.Error as error:
        raise PictureError(
            f"{path} cannot be decoded as {FORMATS[form].label}{_reason(error)}; it is damaged, cut short or "
            "of a rare kind, so get an intact copy or convert it"
        ) from error


def _content(path: Path, *, limit: int) -> bytes:
    try:
        # Opened without blocking, or a named pipe would be waited for before it is found to be one.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PictureError(f"{path} is not a regular file; name a picture file")
            if status.st_size > limit:
                raise PictureError(
                    f"{path} has {status.st_size >> 20} MiB, more than any picture that is taken; split it"
                )
            return file.read(limit)
    except OSError as error:
        raise PictureError(
            f"cannot read {path}: {error.strerror or error}; check name and permission"
        ) from error


def _format_of(content: bytes, path: Path) -> str:
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if content.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if content.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "webp"
    if not content:
        raise PictureError(f"{path} is empty; get an intact copy")
    raise PictureError(f"{path} is not a PNG, JPEG, TIFF or WebP picture; convert it to one of these first")


def _is_animated_png(content: bytes) -> bool:
    # The animation's control chunk stands before the pixels; libvips reads one picture and says nothing.
    return content.find(b"acTL", 0, max(content.find(b"IDAT"), 0)) >= 0


def _check_header(image: Any, path: Path, *, max_pixels: int, animated: bool) -> None:
    pages = image.get("n-pages") if image.get_typeof("n-pages") else 1
    if animated or pages > 1:
        several = f"has {pages} pages" if pages > 1 else "is animated"
        raise PictureError(
            f"{path} {several}; only single pictures are taken, extract the page you want first"
        )
    if image.width * image.height > max_pixels:
        raise PictureError(
            f"{path} has {image.width}x{image.height} pixels and the limit is {max_pixels} in all; "
            "make it smaller first"
        )


def _to_grey_or_rgb(image: Any, path: Path) -> Any:
    """The picture as grey, RGB or RGBA in uchar, ushort, float or double."""
    deep = image.format != "uchar"
    if image.interpretation == "cmyk":
        whose = "its own profile" if image.get_typeof(ICC) else "a generic CMYK profile (it has none)"
        logger.warning("%s is CMYK: converted to sRGB through %s", path, whose)
        image = image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=16 if deep else 8)
    elif image.interpretation in LAB:
        # 8-bit Lab arrives as float too; only the header still knows.
        deep = not image.get_typeof("bits-per-sample") or image.get("bits-per-sample") > 8
        logger.warning("%s is Lab: converted to %d-bit sRGB", path, 16 if deep else 8)
        image = image.colourspace("rgb16" if deep else "srgb")
    if image.format not in DTYPES:
        raise PictureError(
            f"{path} has samples of type {image.format}; convert it to 8- or 16-bit or float samples first"
        )
    known = image.interpretation in GREY_OR_RGB or (image.interpretation == "multiband" and image.bands == 1)
    if not known or image.bands > 4:
        raise PictureError(
            f"{path} has {image.bands} channels of kind {image.interpretation}; "
            "convert it to grey, RGB or RGBA first"
        )
    if image.bands == 2:
        grey, alpha = image.bandsplit()
        image = grey.bandjoin([grey, grey, alpha])
    return image


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply an EXIF orientation (EXIF 2.3, tag 0x0112: 1 upright, 2 to 8 mirrored and turned)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _metadata(image: Any) -> dict[str, bytes | str]:
    return {
        name: image.get(name)
        for name in image.get_fields()
        if (name in CARRIED or name.startswith("exif-")) and not name.startswith(EXIF_STALE)
    }


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in getattr(error, "detail", "").splitlines() if line.strip()]
    return f" ({lines[-1]})" if lines else ""


# From here up a TIFF needs 64-bit offsets; compression may not help, so the raw size decides.
BIGTIFF_FROM = 4_000_000_000


def write_picture(
    path: str | os.PathLike[str], pixels: NDArray[Any], *, like: Picture | None = None, quality: int = 95
) -> None:
    """Write a picture in the format that its name asks for: whole, or not at all.

    Args:
        path: of the file; an existing one is replaced once the new one is complete.
        pixels: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); uint8, uint16 or float32.
        like: picture whose colour profile, EXIF, XMP, IPTC and resolution the file gets.
        quality: of JPEG and WebP, 1 to 100; PNG and TIFF lose nothing.

    Raises:
        OptionError: the name ends in no known format.
        PictureError: the format cannot hold the picture, or the file cannot be written.
    """
    import pyvips

    path = Path(path)
    check_writable(path, pixels.shape, pixels.dtype)
    form = FORMATS[output_format(path)]
    image = _to_vips(pixels)
    if like is not None:
        image = _with_metadata(image, like, form, path)
    options = dict(form.options)
    if form.lossy:
        options["Q"] = quality
    if form.name == "tiff":
        options["predictor"] = "float" if pixels.dtype == np.float32 else "horizontal"
        options["bigtiff"] = pixels.nbytes > BIGTIFF_FROM
    save = getattr(image, f"{form.name}save_target")
    try:
        with whole_file(path) as temporary, temporary.open("x+b") as file:
            # Through the descriptor: no path for libvips to interpret, and no encoded copy in memory.
            save(pyvips.Target.new_to_descriptor(file.fileno()), **options)
    except pyvips.Error as error:
        raise PictureError(f"cannot write {path}{_reason(error)}; check that the disk has space") from error
    except OSError as error:
        raise PictureError(
            f"cannot write {path}: {error.strerror or error}; check folder, permission and space"
        ) from error


def _to_vips(pixels: NDArray[Any]) -> Any:
    import pyvips

    h, w = pixels.shape[:2]
    bands = 1 if pixels.ndim == 2 else pixels.shape[2]
    name = {np.dtype(np.uint8): "uchar", np.dtype(np.uint16): "ushort"}.get(pixels.dtype, "float")
    grey, colour = {"uchar": ("b-w", "srgb"), "ushort": ("grey16", "rgb16"), "float": ("b-w", "scrgb")}[name]
    image = pyvips.Image.new_from_memory(np.ascontiguousarray(pixels).data, w, h, bands, name)
    return image.copy(interpretation=grey if bands == 1 else colour)


def _with_metadata(image: Any, like: Picture, form: Format, path: Path) -> Any:
    import pyvips

    image = image.copy(xres=like.resolution[0], yres=like.resolution[1])
    # WebP has no grey: it is written as RGB.
    space = b"GRAY" if image.bands == 1 and form.name != "webp" else b"RGB "
    for name, value in like.metadata.items():
        if name == ICC and isinstance(value, bytes) and value[16:20] != space:
            # A profile of another kind of colour makes readers refuse the file or show it wrongly.
            logger.warning(
                "%s: the colour profile of the input is for %r and was left out", path, value[16:20]
            )
            continue
        kind = pyvips.GValue.blob_type if isinstance(value, bytes) else pyvips.GValue.gstr_type
        image.set_type(kind, name, value)
    if "exif-data" in like.metadata:
        # The pixels are upright; without this the orientation within the EXIF block would turn them again.
        image.set_type(pyvips.GValue.gint_type, "orientation", 1)
        # An empty thumbnail in place of the old one: it stands within the EXIF block, too.
        image.set_type(pyvips.GValue.blob_type, "jpeg-thumbnail-data", b"")
    return image
