"""The training pictures: decoded once, held in memory or in a mapped file, named and left out where odd."""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.errors import OptionError, PictureError, TrainingError
from pcsr.runtime.pictures.formats import pictures_below

__all__ = ["Pool", "cache_folder", "load_pool"]

logger = logging.getLogger(__name__)

# Nobody trains on a larger one whole, and a folder may hold anything.
MAX_PIXELS = 100_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Decoded pictures.

    Attributes:
        pictures: (H, W, 3) uint8 RGB each, in the order of their names.
        names: their files, relative to the folder.
        sha256: over names and file contents of all that were taken: which data this is.
        skipped: files that were left out, with the reason.
    """

    pictures: tuple[NDArray[np.uint8], ...]
    names: tuple[str, ...]
    sha256: str
    skipped: tuple[tuple[str, str], ...]

    @property
    def pixels(self) -> int:
        """Pixels of all pictures."""
        return sum(picture.shape[0] * picture.shape[1] for picture in self.pictures)


def cache_folder() -> Path:
    """Where mapped pictures lie: `pcsr/training` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pcsr" / "training"


def load_pool(folder: Path, *, side: int, memory: int, cache: Path | None = None) -> Pool:
    """Decode every picture below a folder.

    Args:
        folder: with PNG, JPEG, TIFF or WebP files, in subfolders too.
        side: pixels that a picture must have at least on both sides.
        memory: bytes up to which the decoded pictures are held in memory.
        cache: folder for the mapped file of more than that; the user's cache folder by default.

    Raises:
        OptionError: the folder has no picture that can be used.
        TrainingError: the mapped file cannot be written.
    """
    files = pictures_below(folder, what_for="train on")
    pictures: list[NDArray[np.uint8]] = []
    names: list[str] = []
    skipped: list[tuple[str, str]] = []
    digest = hashlib.sha256()
    spill: _Spill | None = None
    held = 0
    try:
        for file in files:
            name = file.relative_to(folder).as_posix()
            try:
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                picture = _decode(file, side)
            except (PictureError, OSError) as error:
                skipped.append((name, str(error)))
                logger.warning("skipped %s: %s", name, error)
                continue
            held += picture.nbytes
            if spill is None and held > memory:
                spill = _Spill(cache or cache_folder())
                for earlier in pictures:
                    spill.add(earlier)
                pictures.clear()
            names.append(name)
            digest.update(json.dumps([name, content]).encode())
            if spill is None:
                pictures.append(picture)
            else:
                spill.add(picture)
        if not names:
            raise OptionError(
                f"none of the {len(files)} pictures in {folder} can be used ({skipped[0][0]}: {skipped[0][1]})"
            )
        if spill is not None:
            pictures = spill.mapped()
    finally:
        if spill is not None:
            spill.close()
    return Pool(tuple(pictures), tuple(names), digest.hexdigest(), tuple(skipped))


def _decode(file: Path, side: int) -> NDArray[np.uint8]:
    from pcsr.runtime.pictures import read_picture

    pixels = read_picture(file, max_pixels=MAX_PIXELS).pixels
    if pixels.dtype == np.uint16:
        pixels = ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise PictureError("its samples are floating point; training takes 8 or 16 bits")
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.shape[2] != 3:
        raise PictureError("it has transparency; what lies beneath is not a picture to learn from")
    if min(pixels.shape[:2]) < side:
        raise PictureError(
            f"{pixels.shape[1]}x{pixels.shape[0]} pixels are fewer than a patch of the highest scale, {side}"
        )
    return np.ascontiguousarray(pixels)


class _Spill:
    """One file after another picture's bytes, mapped when complete.

    The file has no name once it is open: it goes when the process does, killed or not.
    """

    def __init__(self, cache: Path) -> None:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=cache)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise TrainingError(
                f"cannot write to {cache} ({error.strerror or error}), where pictures beyond data.memory lie; "
                "raise data.memory or set XDG_CACHE_HOME"
            ) from error
        self._shapes: list[tuple[int, ...]] = []
        self._cache = cache

    def add(self, picture: NDArray[np.uint8]) -> None:
        try:
            self._file.write(picture.data)
        except OSError as error:
            raise TrainingError(
                f"cannot write pictures to {self._cache} ({error.strerror or error}); make room there"
            ) from error
        self._shapes.append(picture.shape)

    def mapped(self) -> list[NDArray[np.uint8]]:
        self._file.flush()
        whole = np.frombuffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        pictures, start = [], 0
        for shape in self._shapes:
            size = int(np.prod(shape))
            pictures.append(whole[start : start + size].reshape(shape))
            start += size
        return pictures

    def close(self) -> None:
        self._file.close()
