"""From residuals to pixels: bilinear base, refinement, rounding. NumPy, on one block at a time.

Blocks are planar, (rows, channels, columns), as the graphs of the per-pixel networks give them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.errors import PictureError
from pcsr.runtime.geometry import Axis
from pcsr.runtime.row_source import RowSource
from pcsr.runtime.tiling import Region

__all__ = ["Patch", "base", "check_picture", "cut", "finish", "read_for", "refine", "store", "to_float"]

Float = NDArray[np.float32]

FULL_SCALE = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


@dataclass(frozen=True, slots=True)
class Patch:
    """A part of the output, what its pixels are made of and where they go.

    Attributes:
        picture: the input: (h, w) or (h, w, channels), or as much of it as the region needs.
        rows: vertical geometry.
        columns: horizontal geometry.
        region: of the output, that residuals and classes are of: `inner`, with a margin of one pixel where it is
            refined and the picture has it.
        inner: output region that is wanted.
        refined: whether to refine.
        out: (rows, columns) or (rows, columns, channels) of `inner`, a view of the output.
    """

    picture: NDArray[Any] | RowSource
    rows: Axis
    columns: Axis
    region: Region
    inner: Region
    refined: bool
    out: NDArray[Any]

    def part(self, inner: Region) -> Patch:
        """The part that a block of its inner region is, in the same picture and output."""
        region = inner.grown(1 if self.refined else 0, self.rows.hr, self.columns.hr)
        return replace(self, region=region, inner=inner, out=cut(self.out, inner, self.inner))


def cut(of: NDArray[Any], region: Region, whole: Region | None = None) -> NDArray[Any]:
    """A region of an array (rows, columns, …) of the whole region, or of the whole picture: a view."""
    top, left = (0, 0) if whole is None else (whole.top, whole.left)
    return of[region.top - top : region.bottom - top, region.left - left : region.right - left]


def finish(residual: Float, classes: NDArray[np.uint8], patch: Patch) -> None:
    """Add the base to residuals, refine, and write into the output picture.

    Args:
        residual: (rows, 3, columns), overwritten.
        classes: (rows, columns).
        patch: where.
    """
    region, inner, out = patch.region, patch.inner, patch.out
    under = base(patch.picture, patch.rows, patch.columns, region)
    residual += under[:, :3]
    if patch.refined:
        size = patch.rows.hr, patch.columns.hr
        residual = refine(residual, classes, region, inner, size)
    if under.shape[1] == 4:
        y = slice(inner.top - region.top, inner.bottom - region.top)
        x = slice(inner.left - region.left, inner.right - region.left)
        store(residual, out[..., :3])
        store(under[y, 3:, x], out[..., 3:])
    else:
        store(residual, out)


def check_picture(picture: NDArray[Any]) -> None:
    """Refuse what is not a picture.

    Raises:
        PictureError: wrong shape or dtype, no pixels, or NaN or infinity among them.
    """
    if not isinstance(picture, np.ndarray):
        raise PictureError(f"a picture is a NumPy array, this is a {type(picture).__name__}")
    if picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] not in (1, 3, 4)):
        raise PictureError(
            f"a picture has the shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), not {picture.shape}"
        )
    if picture.dtype not in (np.uint8, np.uint16, np.float32):
        raise PictureError(f"a picture is uint8, uint16 or float32, not {picture.dtype}; convert it first")
    if 0 in picture.shape:
        raise PictureError(f"a picture of shape {picture.shape} has no pixels")
    if picture.dtype == np.float32 and not np.isfinite(picture).all():
        raise PictureError("the picture has NaN or infinite values; replace them first")


def to_float(window: NDArray[Any]) -> Float:
    """A window of a picture as planar float32, 0 to 1 nominal.

    Args:
        window: (h, w) or (h, w, channels), uint8, uint16 or float32.

    Returns:
        (h, channels, w).
    """
    planar = window[:, None, :] if window.ndim == 2 else window.transpose(0, 2, 1)
    if planar.dtype == np.float32:
        return np.ascontiguousarray(planar)
    return planar.astype(np.float32) / np.float32(FULL_SCALE[planar.dtype])


def read_for(region: Region, rows: Axis, columns: Axis) -> Region:
    """The part of the input that the base of an output region interpolates."""
    return Region(
        int(rows.low[region.top]),
        int(rows.high[region.bottom - 1]) + 1,
        int(columns.low[region.left]),
        int(columns.high[region.right - 1]) + 1,
    )


def base(picture: NDArray[Any] | RowSource, rows: Axis, columns: Axis, region: Region) -> Float:
    """Bilinear interpolation of a picture over an output region (align_corners=False, borders repeated).

    Args:
        picture: (h, w) or (h, w, channels), the whole input, or as much of it as the region needs.
        rows: vertical geometry.
        columns: horizontal geometry.
        region: of the output.

    Returns:
        (rows, channels, columns) float32.
    """
    y, x = slice(region.top, region.bottom), slice(region.left, region.right)
    read = read_for(region, rows, columns)
    lr = to_float(picture[read.top : read.bottom, read.left : read.right])
    across = _between(lr, columns.low[x] - read.left, columns.high[x] - read.left, columns.weight[x], axis=2)
    low, high = rows.low[y] - read.top, rows.high[y] - read.top
    return _between(across, low, high, rows.weight[y, None, None], axis=0)


def _between(
    values: Float, low: NDArray[np.int32], high: NDArray[np.int32], weight: Float, *, axis: int
) -> Float:
    out = values.take(high, axis=axis)
    first = values.take(low, axis=axis)
    # first * (1 - weight) + out * weight: exact where both are equal, as at the borders.
    out *= weight
    first *= np.float32(1) - weight
    out += first
    return out


def refine(
    colour: Float, classes: NDArray[np.uint8], region: Region, inner: Region, size: tuple[int, int]
) -> Float:
    """Average light pixels that touch a heavier one over their 3x3 neighbourhood (paper, section 3.4).

    All averages are of unrefined values; pixels on the picture's border stay as they are.

    Args:
        colour: (rows, 3, columns) of `region`, overwritten.
        classes: (rows, columns) of `region`.
        region: `inner` with a margin of one pixel, where the picture has it.
        inner: output region that is wanted.
        size: (H, W) of the picture.

    Returns:
        (rows, 3, columns) of `inner`, a view.
    """
    light = classes == 0
    if light.any() and not light.all() and min(light.shape) > 2:
        # Separable 3x3 sums over the pixels that have all eight neighbours. Averages of all of them cost less
        # than gathering the neighbours of those that need one.
        across = light[:, :-2] & light[:, 1:-1] & light[:, 2:]
        untouched = across[:-2] & across[1:-1] & across[2:]
        touched = light[1:-1, 1:-1] & ~untouched
        mean = colour[:, :, :-2] + colour[:, :, 1:-1]
        mean += colour[:, :, 2:]
        mean = mean[:-2] + mean[1:-1] + mean[2:]
        mean *= np.float32(1 / 9)
        np.copyto(colour[1:-1, :, 1:-1], mean, where=touched[:, None])
    top, left = inner.top - region.top, inner.left - region.left
    rows, columns = inner.shape
    return colour[top : top + rows, :, left : left + columns]


def store(colour: Float, out: NDArray[Any]) -> None:
    """Write a block into the output picture, in its type.

    Integers are clamped and rounded half to even; float32 is stored as it is. One output channel takes the
    mean of three.

    Args:
        colour: (rows, channels, columns) float32, overwritten.
        out: (rows, columns) or (rows, columns, channels), a view of the output.
    """
    planar = out[:, None, :] if out.ndim == 2 else out.transpose(0, 2, 1)
    if planar.shape[1] == 1 and colour.shape[1] == 3:
        colour = colour.mean(axis=1, keepdims=True, dtype=np.float32)
    if out.dtype != np.float32:
        full = np.float32(FULL_SCALE[out.dtype])
        colour *= full
        np.rint(colour, out=colour)
        np.clip(colour, np.float32(0), full, out=colour)
        colour = colour.astype(out.dtype)
    planar[...] = colour
