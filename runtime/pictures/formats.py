"""Picture formats: how each is recognised, and what the written ones can hold, so that it is told before any work."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pcsr.runtime.errors import OptionError, PictureError

__all__ = [
    "FORMATS",
    "INPUT_LABELS",
    "INPUT_SUFFIXES",
    "SUFFIXES",
    "Format",
    "check_writable",
    "format_of",
    "output_format",
    "pictures_below",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """What a written format can hold, and how libvips is to write it.

    Attributes:
        name: as people choose it.
        label: as people write it.
        suffix: of files named by us.
        saver: libvips' name of it.
        dtypes: of the samples.
        deepest: bits of a 16-bit sample that survive.
        alpha: whether there is a fourth channel.
        pages: whether one file holds several pictures.
        longest: pixels on the longer side.
        lossy: whether a quality is chosen.
        lossless: whether a lossy format can be asked to lose nothing.
        compressions: what may be chosen as compression, the default first.
        options: of libvips' saver.
    """

    name: str
    label: str
    suffix: str
    saver: str
    dtypes: tuple[type[np.generic], ...]
    deepest: int = 16
    alpha: bool = True
    pages: bool = False
    longest: int = 2**31 - 1
    lossy: bool = False
    lossless: bool = False
    compressions: tuple[str, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)


FORMATS = {
    form.name: form
    for form in (
        # Upscaled pictures are smooth: the "average" filter at level 3 makes files as small as libpng's search of
        # filters at that level, in 0.6 of its time, and within 5 % of level 6's (docs/performance.md).
        Format(
            name="png",
            label="PNG",
            suffix=".png",
            saver="png",
            dtypes=(np.uint8, np.uint16),
            compressions=("3", "0", "1", "2", "4", "5", "6", "7", "8", "9"),
            options={"filter": "avg"},
        ),
        Format(
            name="jpeg",
            label="JPEG",
            suffix=".jpg",
            saver="jpeg",
            dtypes=(np.uint8,),
            alpha=False,
            longest=65535,
            lossy=True,
        ),
        Format(
            name="tiff",
            label="TIFF",
            suffix=".tif",
            saver="tiff",
            dtypes=(np.uint8, np.uint16, np.float32),
            pages=True,
            compressions=("deflate", "none", "lzw"),
        ),
        Format(
            name="webp",
            label="WebP",
            suffix=".webp",
            saver="webp",
            dtypes=(np.uint8,),
            pages=True,
            longest=16383,
            lossy=True,
            lossless=True,
        ),
        # Above effort 2 the encoder takes five times as long for 2 % of the size.
        Format(
            name="avif",
            label="AVIF",
            suffix=".avif",
            saver="heif",
            dtypes=(np.uint8, np.uint16),
            deepest=12,
            longest=65535,
            lossy=True,
            lossless=True,
            options={"compression": "av1", "effort": 2},
        ),
    )
}
SUFFIXES = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".jpe": "jpeg",
    ".jfif": "jpeg",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".webp": "webp",
    ".avif": "avif",
}
"""Endings of files that are written, with the name of the format."""

INPUT_SUFFIXES = frozenset(SUFFIXES) | {".apng", ".bmp", ".dib", ".gif", ".heic", ".heif"}
"""Endings by which pictures are found in a folder. What a file really is, its content tells."""

INPUT_LABELS = {
    "png": "PNG",
    "jpeg": "JPEG",
    "tiff": "TIFF",
    "webp": "WebP",
    "avif": "AVIF",
    "heif": "HEIF",
    "gif": "GIF",
    "bmp": "BMP",
}
"""Formats that are read, as people write them."""


def format_of(start: bytes) -> str | None:
    """Which of `INPUT_LABELS` a file is, by its first 32 bytes; None: none of them."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "webp"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    # The size of the header that follows the file's own: a BMP has no better mark than two letters.
    if start.startswith(b"BM") and start[14:18] in BMP_HEADERS:
        return "bmp"
    if start[4:8] == b"ftyp":
        # Major brand, minor version, compatible brands (ISO/IEC 23008-12).
        brands = {start[8:12], *(start[at : at + 4] for at in range(16, len(start), 4))}
        if brands & {b"avif", b"avis"}:
            return "avif"
        if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
            return "heif"
    return None


BMP_HEADERS = {size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124)}


def output_format(path: str | os.PathLike[str]) -> str:
    """Format that a name asks for: "png", "jpeg", "tiff", "webp" or "avif".

    Raises:
        OptionError: the name ends in none of them.
    """
    form = SUFFIXES.get(Path(path).suffix.lower())
    if form is None:
        raise OptionError(f"{path} names no format to write; end it in {', '.join(SUFFIXES)}")
    return form


def check_writable(
    path: str | os.PathLike[str],
    shape: tuple[int, ...],
    dtype: Any,
    *,
    form: str | None = None,
    bits: int = 16,
    pages: int = 1,
) -> None:
    """Refuse, before any work, a picture that the file's format cannot hold.

    Args:
        path: of the file to be written; its ending names the format.
        shape: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        dtype: of the pixels.
        form: format, where the name is not to tell.
        bits: that matter in a 16-bit sample.
        pages: pictures of this shape in the file.

    Raises:
        OptionError: the name ends in no known format.
        PictureError: too many pixels on a side, or a bit depth, alpha or pages that the format does not have.
    """
    name = form or output_format(path)
    target = FORMATS[name]

    def fits(other: Format) -> bool:
        deep = np.dtype(dtype) != np.uint16 or bits <= other.deepest
        return np.dtype(dtype) in other.dtypes and deep

    if not fits(target):
        samples = f"{bits}-bit" if np.dtype(dtype) == np.uint16 and name == "avif" else str(np.dtype(dtype))
        others = [other for other in FORMATS.values() if fits(other)]
        raise PictureError(
            f"{path}: {target.label} cannot hold {samples} samples; write {_either(others)} instead"
        )
    if not target.alpha and len(shape) == 3 and shape[2] == 4:
        others = [other for other in FORMATS.values() if other.alpha and fits(other)]
        raise PictureError(
            f"{path}: {target.label} cannot hold transparency; write {_either(others)} instead"
        )
    if pages > 1 and not target.pages:
        others = [other for other in FORMATS.values() if other.pages and fits(other)]
        raise PictureError(
            f"{path}: {target.label} holds one picture and the input has {pages}; "
            f"write {_either(others)}, or pick one with --page"
        )
    if max(shape[:2]) > target.longest:
        raise PictureError(
            f"{path}: {target.label} holds {target.longest} pixels on a side and the output has "
            f"{shape[1]}x{shape[0]}; write PNG or TIFF instead"
        )


def _either(forms: list[Format]) -> str:
    return " or ".join(form.label for form in forms) or "8- or 16-bit or float32 samples"


def pictures_below(folder: Path, *, what_for: str) -> list[Path]:
    """Files below a folder that are pictures by their names, in alphabetical order; hidden ones are left out.

    Args:
        folder: to look in, its subfolders too.
        what_for: to do with them, for the error, like "train on".

    Raises:
        OptionError: there are none, or the folder cannot be looked into.
    """
    try:
        files = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in INPUT_SUFFIXES
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
            and path.is_file()
        )
        if not files and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "no such folder")
    except OSError as error:
        raise OptionError(
            f"cannot look into {folder}: {error.strerror or error}; name a folder of pictures"
        ) from error
    if not files:
        raise OptionError(
            f"{folder} has no pictures ({', '.join(sorted(INPUT_SUFFIXES))}) to {what_for}; name another folder"
        )
    return files
