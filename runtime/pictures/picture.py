"""What a decoded picture is, and what its file said before anything was decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.pictures.streamed import StreamedRows

__all__ = ["ICC", "MAX_PIXELS", "Beside", "Header", "Picture", "StreamedPicture"]

MAX_PIXELS = 268_435_456
"""Pixels of the largest picture that is read unless asked otherwise: 16384 x 16384."""

ICC = "icc-profile-data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a picture file says of itself.

    Attributes:
        format: "png", "jpeg", "tiff", "webp", "avif", "heif", "gif" or "bmp".
        size: (h, w) as the pixels lie in the file, before the orientation is applied; of the first page.
        pages: pictures in the file.
        animation: what makes pages an animation: "delay", milliseconds of each page, and "loop", how often.
    """

    format: str
    size: tuple[int, int]
    pages: int = 1
    animation: Mapping[str, int | list[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Beside:
    """What lies beside the pixels of a picture.

    Attributes:
        format: as in `Header`.
        metadata: colour profile and the like, under libvips' names.
        resolution: horizontal and vertical, in pixels per millimetre.
        bits: that matter in a sample: 8, 10, 12, 16 or 32. 10 and 12 fill the range of uint16, too.
        grey_alpha: whether the file had grey and alpha; the pixels are RGBA then.
        notes: what was done to the picture that its owner should know, like a conversion.
    """

    format: str
    metadata: Mapping[str, bytes | str] = field(default_factory=dict)
    resolution: tuple[float, float] = (1.0, 1.0)
    bits: int = 0
    grey_alpha: bool = False
    notes: tuple[str, ...] = ()

    @property
    def profile(self) -> bytes | None:
        """The ICC profile."""
        profile = self.metadata.get(ICC)
        return profile if isinstance(profile, bytes) else None


@dataclass(frozen=True, slots=True, eq=False)
class Picture(Beside):
    """A decoded picture and what lay beside its pixels; see `Beside`.

    Attributes:
        pixels: (h, w), (h, w, 3) or (h, w, 4), upright, alpha not multiplied in; uint8, uint16 or float32 as in
            the file.
    """

    pixels: NDArray[Any]

    def __post_init__(self) -> None:
        if not self.bits:
            object.__setattr__(self, "bits", 8 * np.dtype(self.pixels.dtype).itemsize)


@dataclass(frozen=True, slots=True, eq=False)
class StreamedPicture(Beside):
    """A picture that is decoded as its rows are needed; see `Beside`."""

    pixels: StreamedRows
