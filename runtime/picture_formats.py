"""What each picture format can hold, so that it is told before any work."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pcsr.runtime.errors import OptionError, PictureError

__all__ = ["FORMATS", "SUFFIXES", "Format", "check_writable", "output_format", "pictures_below"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """What a format can hold, and how libvips is to write it.

    Attributes:
        name: as libvips' functions have it.
        label: as people write it.
        dtypes: of the samples.
        alpha: whether there is a fourth channel.
        longest: pixels on the longer side.
        lossy: whether a quality is chosen.
        options: of libvips' saver.
    """

    name: str
    label: str
    dtypes: tuple[type[np.generic], ...]
    alpha: bool = True
    longest: int = 2**31 - 1
    lossy: bool = False
    options: Mapping[str, object] = field(default_factory=dict)


FORMATS = {
    form.name: form
    for form in (
        # Upscaled pictures are smooth: the "up" filter at level 4 comes within 5 % of the size of libpng's
        # search at its default level, in a third of the time.
        Format(
            name="png",
            label="PNG",
            dtypes=(np.uint8, np.uint16),
            options={"compression": 4, "filter": "up"},
        ),
        Format(
            name="jpeg",
            label="JPEG",
            dtypes=(np.uint8,),
            alpha=False,
            longest=65535,
            lossy=True,
        ),
        Format(
            name="tiff",
            label="TIFF",
            dtypes=(np.uint8, np.uint16, np.float32),
            options={"compression": "deflate"},
        ),
        Format(name="webp", label="WebP", dtypes=(np.uint8,), longest=16383, lossy=True),
    )
}
SUFFIXES = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".webp": "webp",
}


def output_format(path: str | os.PathLike[str]) -> str:
    """Format that a name asks for: "png", "jpeg", "tiff" or "webp".

    Raises:
        OptionError: the name ends in none of them.
    """
    form = SUFFIXES.get(Path(path).suffix.lower())
    if form is None:
        raise OptionError(f"{path} names no format to write; end it in {', '.join(SUFFIXES)}")
    return form


def check_writable(path: str | os.PathLike[str], shape: tuple[int, ...], dtype: Any) -> None:
    """Refuse, before any work, a picture that the file's format cannot hold.

    Args:
        path: of the file to be written; its ending names the format.
        shape: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        dtype: of the pixels.

    Raises:
        OptionError: the name ends in no known format.
        PictureError: too many pixels on a side, or a bit depth or alpha that the format does not have.
    """
    form = FORMATS[output_format(path)]
    if np.dtype(dtype) not in form.dtypes:
        others = [other for other in FORMATS.values() if np.dtype(dtype) in other.dtypes]
        raise PictureError(
            f"{path}: {form.label} cannot hold {np.dtype(dtype)} samples; write {_either(others)} instead"
        )
    if not form.alpha and len(shape) == 3 and shape[2] == 4:
        others = [other for other in FORMATS.values() if other.alpha and np.dtype(dtype) in other.dtypes]
        raise PictureError(f"{path}: {form.label} cannot hold transparency; write {_either(others)} instead")
    if max(shape[:2]) > form.longest:
        raise PictureError(
            f"{path}: {form.label} holds {form.longest} pixels on a side and the output has "
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
            if path.suffix.lower() in SUFFIXES
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
            f"{folder} has no pictures ({', '.join(sorted(SUFFIXES))}) to {what_for}; name another folder"
        )
    return files
