"""Sets of pictures on disk, and the LR pictures that are made from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.bicubic import resize
from pcsr.runtime.errors import OptionError, PictureError

__all__ = ["LrKind", "PictureSet", "find_sets", "make_pair", "read_truth"]

LrKind = Literal["float", "8bit"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True, slots=True)
class PictureSet:
    """A named set of picture files, in the order of their names."""

    name: str
    paths: tuple[Path, ...]


def find_sets(folder: Path, *, limit: int | None = None) -> tuple[PictureSet, ...]:
    """The pictures right inside a folder as one set, or each subfolder that holds pictures as a set.

    Args:
        folder: with PNG, JPEG, TIFF or WebP files (told by their names here), or with folders of them.
        limit: no more pictures than this from each set, the first by name.

    Raises:
        OptionError: there are no pictures, or both pictures and folders of pictures.
    """
    try:
        own = _pictures(folder, limit)
        below = [sub for sub in sorted(folder.iterdir()) if sub.is_dir() and not sub.name.startswith(".")]
        sets = [PictureSet(sub.name, paths) for sub in below if (paths := _pictures(sub, limit))]
    except OSError as error:
        raise OptionError(
            f"cannot look into {folder}: {error.strerror or error}; name a folder of pictures"
        ) from error
    if own and sets:
        raise OptionError(
            f"{folder} holds pictures and folders of pictures ({sets[0].name}); "
            "name one set, or a folder with nothing but sets"
        )
    if own:
        sets = [PictureSet(folder.resolve().name, own)]
    if not sets:
        raise OptionError(
            f"{folder} has no pictures ({', '.join(sorted(SUFFIXES))}), nor folders of them; name another"
        )
    return tuple(sets)


def _pictures(folder: Path, limit: int | None) -> tuple[Path, ...]:
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    return tuple(found[:limit])


def read_truth(path: Path) -> NDArray[Any]:
    """Ground truth from a file: (H, W, 3) RGB, uint8, or float32 from 0 to 1 for deeper files.

    Grey becomes equal red, green and blue; transparency is left out.

    Raises:
        PictureError: the file cannot be read.
    """
    from pcsr.runtime.pictures import read_picture

    pixels = read_picture(path).pixels
    if pixels.dtype == np.uint16:
        pixels = pixels.astype(np.float32) / np.float32(65535)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3])


def make_pair(
    truth: NDArray[Any], *, scale: float, lr: LrKind = "float"
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """An LR picture and the truth that upscaling it by `scale` should give back.

    A side of H pixels gives h = floor(H / scale) LR pixels, and the truth is cropped at its bottom and right
    to round(scale * h), half to even as the upscaler rounds. For whole scales that is the largest multiple of
    the scale. The cropped truth is shrunk with MATLAB's bicubic.

    Args:
        truth: (H, W, 3).
        scale: real magnification, 1 or more.
        lr: "float" keeps the LR unrounded and unclamped, as the networks were trained; "8bit" clamps and
            rounds it to 256 levels, as a file would hold it (still returned as float32, so that outputs are
            not rounded).

    Returns:
        LR (h, w, 3) float32, and the cropped truth, a view.

    Raises:
        OptionError: the scale is below 1 or not finite.
        PictureError: the picture is smaller than the scale.
    """
    if not (math.isfinite(scale) and scale >= 1):
        raise OptionError(f"scale is {scale}; it must be a finite number, 1 or more")
    H, W = truth.shape[:2]
    h, w = math.floor(H / scale), math.floor(W / scale)
    if min(h, w) < 1:
        raise PictureError(f"{W}x{H} pixels shrunk by {scale:g} leave nothing; take a larger picture")
    truth = truth[: round(h * scale), : round(w * scale)]
    small = resize(truth, size=(h, w))
    if lr == "8bit":
        small = np.rint(np.clip(small * np.float32(255), 0, 255)) / np.float32(255)
    return small, truth
