"""Which pictures are calibrated on, and which are held out to judge by."""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.errors import OptionError, PictureError
from pcsr.runtime.pictures.formats import pictures_below
from pcsr.validation.sets import make_pair, read_truth

__all__ = ["HELD_OUT", "Chosen", "Picture", "choose_pictures"]

logger = logging.getLogger(__name__)

# Every so manieth picture, by hash, is held out.
HELD_OUT = 8
# HR pixels of a side that are looked at, and how far apart the pieces lie among which the hardest is.
SIDE, STEP = 384, 32
# How much the contrast of hardened pieces is raised.
CONTRAST = 6


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture file that was decoded once and found usable.

    Attributes:
        path: of the file.
        name: relative to the folder.
        sha256: of the file.
    """

    path: Path
    name: str
    sha256: str

    def truth(self) -> NDArray[Any]:
        """The piece of it with the strongest edges, at most 384 pixels a side: (H, W, 3) RGB.

        Ranges are made by hard edges, and losses too: flat pieces would let int8 look better than it is.
        """
        return _piece(self.path, self.sha256)

    def hardened(self, scale: float) -> NDArray[np.float32]:
        """LR like that of `pair`, of the piece with its contrast raised until most of it is black or white.

        Photographs seldom have edges as hard as those of text and drawings, whose activations reach furthest.
        """
        truth = self.truth()
        levels = truth.astype(np.float32) / (np.float32(255) if truth.dtype == np.uint8 else np.float32(1))
        hard = np.clip((levels - levels.mean()) * np.float32(CONTRAST) + np.float32(0.5), 0, 1)
        return make_pair(hard, scale=scale)[0]

    def pair(self, scale: float) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """LR (h, w, 3) float32, shrunk from that piece by MATLAB's bicubic, and the piece."""
        return make_pair(self.truth(), scale=scale)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The pictures of a calibration.

    Attributes:
        calibration: whose activations are observed.
        held_out: on which PSNR is measured.
        skipped: names of files that were left out, with the reason.
    """

    calibration: tuple[Picture, ...]
    held_out: tuple[Picture, ...]
    skipped: tuple[tuple[str, str], ...]


def choose_pictures(
    folder: Path, *, count: int, seed: int, least: int, tell: Callable[[str], object] = logger.warning
) -> Chosen:
    """Draw pictures from a folder.

    Which ones says the seed together with the content of the files, not their names, so that a renamed folder gives
    the same choice; of equal files one counts. Of those drawn, every eighth by hash is held out, at least one. A single
    picture serves for both, which is said.

    Args:
        folder: with PNG, JPEG, TIFF or WebP files, in subfolders too.
        count: of pictures, held-out ones included.
        seed: another one draws others.
        least: pixels that both sides must have.
        tell: is given a line for each file that is left out.

    Raises:
        OptionError: no picture in the folder can be used.
    """
    files = pictures_below(folder, what_for="calibrate on")
    by_hash: dict[str, Path] = {}
    skipped: list[tuple[str, str]] = []

    def skip(path: Path, reason: object) -> None:
        skipped.append((path.relative_to(folder).as_posix(), str(reason)))
        tell(f"skipped {path}: {reason}")

    for path in files:
        try:
            by_hash.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), path)
        except OSError as error:
            skip(path, error.strerror or error)
    order = sorted(by_hash)
    random.Random(seed).shuffle(order)
    drawn: list[Picture] = []
    for sha256 in order:
        if len(drawn) == count:
            break
        path = by_hash[sha256]
        try:
            H, W = read_truth(path).shape[:2]
            if min(H, W) < least:
                raise PictureError(
                    f"{W}x{H} pixels leave less than the network sees around a pixel; {least} a side do"
                )
        except PictureError as error:
            skip(path, error)
            continue
        drawn.append(Picture(path, path.relative_to(folder).as_posix(), sha256))
    if not drawn:
        raise OptionError(
            f"none of the {len(files)} pictures in {folder} can be used ({skipped[0][0]}: {skipped[0][1]}); "
            "name another folder"
        )
    drawn.sort(key=lambda picture: picture.sha256)
    if len(drawn) == 1:
        tell(
            f"{drawn[0].path} is the only picture: it is calibrated on and judged by, so drops look too small"
        )
        return Chosen(tuple(drawn), tuple(drawn), tuple(skipped))
    held = drawn[::HELD_OUT]
    return Chosen(tuple(p for p in drawn if p not in held), tuple(held), tuple(skipped))


@lru_cache(maxsize=64)
def _piece(path: Path, sha256: str) -> NDArray[Any]:
    """See `Picture.truth`; kept, as each is asked for at every scale. The hash tells a file that was replaced."""
    pixels = read_truth(path)
    top, left = _hardest(pixels)
    piece = np.array(pixels[top : top + SIDE, left : left + SIDE])
    piece.flags.writeable = False
    return piece


def _hardest(pixels: NDArray[Any]) -> tuple[int, int]:
    """Corner of the piece whose squared differences of neighbours add up to most; corners lie 32 pixels apart."""
    grey = pixels[..., :3].astype(np.float32).mean(axis=2)
    energy = np.zeros(grey.shape, dtype=np.float64)
    energy[:, 1:] += np.diff(grey, axis=1) ** 2
    energy[1:] += np.diff(grey, axis=0) ** 2
    summed = np.pad(energy.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    tops, lefts = (np.arange(0, max(side - SIDE, 0) + 1, STEP) for side in grey.shape)
    bottoms, rights = (
        np.minimum(first + SIDE, side) for first, side in zip((tops, lefts), grey.shape, strict=True)
    )
    inside = (
        summed[np.ix_(bottoms, rights)]
        - summed[np.ix_(tops, rights)]
        - summed[np.ix_(bottoms, lefts)]
        + summed[np.ix_(tops, lefts)]
    )
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(tops[row]), int(lefts[column])
