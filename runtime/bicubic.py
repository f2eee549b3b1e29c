"""Bicubic resizing as MATLAB's `imresize` does it: the field's way to make LR pictures, and its baseline.

Libraries disagree about "bicubic" by a tenth of a decibel. This is the kernel with a = -0.5, stretched by the
shrinking factor so that it also filters (antialiasing), borders mirrored with the edge pixel repeated, rows
first and columns second. Arithmetic is in float64 and rounded once, to float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.errors import OptionError, PictureError

__all__ = ["resize"]

A = -0.5
"""Keys' parameter; OpenCV and PyTorch take -0.75 instead."""
REACH = 2
"""Input pixels that the kernel reaches on each side, before it is stretched."""
BLOCK = 1 << 18
"""Float64 samples worked on at a time: with a copy or two they stay within a usual L2 or L3 cache."""
MAX_SIDE = 1 << 20


@dataclass(frozen=True, slots=True)
class _Taps:
    """What one axis reads: `index` (taps, n_out) input positions, `weight` (taps, n_out) float64."""

    index: NDArray[np.intp]
    weight: NDArray[np.float64]


def resize(
    picture: NDArray[Any], *, scale: float | None = None, size: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Resize a picture with MATLAB's bicubic.

    Args:
        picture: (h, w) or (h, w, C); float32 (any range), or uint8 or uint16, which become 0 to 1.
        scale: factor of both axes; a side becomes `ceil(scale * side)` pixels, as in MATLAB. Products within
            1e-9 of a whole number count as that number.
        size: output (H, W) instead; each axis is then resized by the quotient of its sides.

    Returns:
        (H, W) or (H, W, C) float32, neither clamped nor rounded: overshoot beyond 0 to 1 is kept.

    Raises:
        OptionError: not exactly one of scale and size, or one without meaning.
        PictureError: not a picture of these kinds.
    """
    if picture.ndim not in (2, 3) or 0 in picture.shape:
        raise PictureError(
            f"cannot resize an array of shape {picture.shape}; give (h, w) or (h, w, C) pixels"
        )
    if picture.dtype not in (np.float32, np.uint8, np.uint16):
        raise PictureError(f"cannot resize {picture.dtype} pixels; give float32, uint8 or uint16")
    h, w = picture.shape[:2]
    (H, W), (scale_y, scale_x) = _goal(h, w, scale, size)
    rows, columns = _taps(h, H, scale_y), _taps(w, W, scale_x)
    white = 1 if picture.dtype == np.float32 else np.iinfo(picture.dtype).max
    source = picture.reshape(h, w, -1)
    out = np.empty((H, W, source.shape[2]), dtype=np.float32)
    for block in _row_blocks(H, w * source.shape[2]):
        tall = _apply(source, rows, block)
        wide = _apply(np.ascontiguousarray(tall.transpose(1, 0, 2)), columns, slice(0, W))
        if white != 1:
            wide /= white
        out[block] = wide.transpose(1, 0, 2)
    return out.reshape(H, W, *picture.shape[2:])


def _goal(
    h: int, w: int, scale: float | None, size: tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[float, float]]:
    if size is not None and scale is None:
        if len(size) != 2 or not all(1 <= side <= MAX_SIDE for side in size):
            raise OptionError(f"size is {size}; it must be (H, W) with sides from 1 to {MAX_SIDE}")
        return size, (size[0] / h, size[1] / w)
    if scale is None or size is not None:
        raise OptionError("give exactly one of scale (like 0.25) and size ((H, W) in pixels)")
    if not (math.isfinite(scale) and scale > 0) or scale * max(h, w) > MAX_SIDE:
        raise OptionError(f"scale is {scale}; it must be above 0 and give sides up to {MAX_SIDE} pixels")
    return (math.ceil(h * scale - 1e-9) or 1, math.ceil(w * scale - 1e-9) or 1), (scale, scale)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' piecewise cubic (1981, equation 15)."""
    x = np.abs(x)
    near = ((A + 2) * x - (A + 3)) * x * x + 1
    far = ((A * x - 5 * A) * x + 8 * A) * x - 4 * A
    return np.where(x <= 1, near, np.where(x <= REACH, far, 0.0))


def _taps(n_in: int, n_out: int, scale: float) -> _Taps:
    """Positions and weights of one axis."""
    stretch = min(scale, 1.0)
    centre = (np.arange(n_out) + 0.5) / scale - 0.5
    first = np.floor(centre - REACH / stretch).astype(np.intp)
    index = first + np.arange(math.ceil(2 * REACH / stretch) + 2, dtype=np.intp)[:, None]
    weight = _cubic((centre - index) * stretch)
    weight /= weight.sum(axis=0)
    used = weight.any(axis=1)
    # Mirrored with the edge repeated: 2 1 0 | 0 1 2 ... n-1 | n-1 n-2, again and again.
    index = index[used] % (2 * n_in)
    return _Taps(np.minimum(index, 2 * n_in - 1 - index), weight[used])


def _row_blocks(rows: int, samples_per_row: int) -> Iterator[slice]:
    step = max(1, BLOCK // samples_per_row)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _apply(source: NDArray[Any], taps: _Taps, block: slice) -> NDArray[np.float64]:
    """Weighted sums along the first axis: (n_in, m, C) to (block, m, C)."""
    weights = taps.weight[:, block, None, None]
    total = source[taps.index[0, block]] * weights[0]
    for index, weight in zip(taps.index[1:, block], weights[1:], strict=True):
        total += source[index] * weight
    return total  # type: ignore[no-any-return]  # whatever the pixels are, the weights are float64
