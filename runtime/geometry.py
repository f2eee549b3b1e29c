"""Where each output pixel lies on the input, per axis, by PyTorch's float32 rules.

The network was trained on coordinates in float32, from -1 to 1 between the outer edges of the picture, and on
`grid_sample`'s choice of the nearest input pixel. Integer arithmetic picks another neighbour at 0.5 % of the
positions of fractional scales, which changes the picture; so the float32 roundings are reproduced one by one.
Everything here is one-dimensional: an axis of `lr` input and `hr` output pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.errors import OptionError

__all__ = ["Axis", "axis", "output_size", "scale_key"]

# Nothing larger is addressed: indices stay in int32 and a coordinate still resolves a pixel in float32.
MAX_SIDE = 1 << 20


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a picture: `lr` input pixels become `hr` output pixels.

    Attributes:
        lr: input pixels.
        hr: output pixels.
        nearest: (hr,) int32, nearest input pixel of each output pixel; never decreases.
        relative: (hr,) float32, distance from that input pixel's centre, in half input pixels (-1 to 1).
        cell: float32, extent of an output pixel, in half input pixels.
        low: (hr,) int32, first of the two input pixels between which the bilinear base interpolates.
        high: (hr,) int32, second of them (the same at the borders).
        weight: (hr,) float32, weight of `high`.
    """

    lr: int
    hr: int
    nearest: NDArray[np.int32]
    relative: NDArray[np.float32]
    cell: np.float32
    low: NDArray[np.int32]
    high: NDArray[np.int32]
    weight: NDArray[np.float32]


def centres(n: int) -> NDArray[np.float32]:
    """Coordinates of n pixel centres between -1 and 1; scalars in double, then float32 throughout."""
    first, step = np.float32(-1 + 1 / n), np.float32(2 / n)
    return first + step * np.arange(n, dtype=np.float32)


def axis(lr: int, hr: int) -> Axis:
    """Geometry of one axis (LIIF's local coordinates, PyTorch's `grid_sample` with align_corners=False)."""
    coordinate = centres(hr)
    # grid_sample's ((c + 1) * lr - 1) / 2 with the product and subtraction fused, as compilers emit it: the
    # product is exact in float64, so one rounding to float32 is left.
    edge = (coordinate + np.float32(1)).astype(np.float64)
    position = (edge * lr - 1).astype(np.float32) * np.float32(0.5)
    nearest = np.clip(np.rint(position), 0, lr - 1).astype(np.int32)
    inside = np.clip(position, np.float32(0), np.float32(lr - 1))
    low = np.floor(inside).astype(np.int32)
    return Axis(
        lr=lr,
        hr=hr,
        nearest=nearest,
        relative=(coordinate - centres(lr)[nearest]) * np.float32(lr),
        cell=np.float32(2 / hr) * np.float32(lr),
        low=low,
        high=np.minimum(low + 1, lr - 1).astype(np.int32),
        weight=inside - low.astype(np.float32),
    )


def output_size(h: int, w: int, scale: float | None, size: Sequence[int] | None) -> tuple[int, int]:
    """Output (H, W) for an (h, w) picture.

    A scale rounds `side * scale` half to even, as the published program does (15 * 2.5 = 37.5 becomes 38,
    21 * 2.5 = 52.5 becomes 52).

    Raises:
        OptionError: the size is smaller than the picture on an axis, or larger than can be addressed.
    """
    if size is None:
        if scale is None:
            raise OptionError("give exactly one of scale and size")
        size = round(h * scale), round(w * scale)
    height, width = map(int, size)
    if height < h or width < w:
        raise OptionError(
            f"output {width}x{height} is smaller than the picture, {w}x{h}; "
            "super-resolution enlarges: ask for at least the picture's own size"
        )
    if max(height, width) > MAX_SIDE:
        raise OptionError(
            f"output {width}x{height} has a side above {MAX_SIDE} pixels; ask for a smaller one"
        )
    return height, width


def scale_key(h: int, w: int, scale: float | None, size: tuple[int, int]) -> float:
    """The scale at which costs are compared: the one asked for, or the mean of both axes to one decimal."""
    return scale if scale is not None else round((size[0] / h + size[1] / w) / 2, 1)
