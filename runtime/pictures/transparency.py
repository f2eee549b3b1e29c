"""Colours for pixels that are wholly transparent, so that what lies under them does not seep in at the edges.

A file may have any colour, black as a rule, where nothing is seen. Interpolation and convolution mix it with the
visible ones beside it, and a fringe appears. Such pixels take the colours of the visible pixels around them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["fill_transparent"]

Float = NDArray[np.float32]


# Pixels further from all visible ones than any network looks stay as they are: it does not matter what they are, and
# a piece at a time takes little memory.
PIECE, MARGIN = 1024, 64


def fill_transparent(picture: NDArray[Any]) -> NDArray[Any]:
    """The same picture with the colours of its visible pixels carried on into the wholly transparent ones near them.

    Averages over ever larger squares, of visible pixels only, until every square has one ("push-pull": Gortler et
    al., The Lumigraph, 1996, section 3.4).

    Args:
        picture: (h, w, 4), alpha last and not multiplied in; uint8, uint16 or float32.

    Returns:
        A new array of the same kind, or the picture itself where there is nothing to do: no transparent pixel, or
        no other.
    """
    visible = picture[..., 3] > 0
    if visible.all() or not visible.any():
        return picture
    filled = picture.copy()
    h, w = visible.shape
    for top in range(0, h, PIECE):
        for left in range(0, w, PIECE):
            above, before = max(top - MARGIN, 0), max(left - MARGIN, 0)
            window = (slice(above, top + PIECE + MARGIN), slice(before, left + PIECE + MARGIN))
            if visible[window].all() or not visible[window].any():
                continue
            colour = _filled(picture[window][..., :3].astype(np.float32), visible[window].astype(np.float32))
            if picture.dtype != np.float32:
                np.rint(colour, out=colour)
            piece = (slice(top, top + PIECE), slice(left, left + PIECE))
            inner = colour[top - above :, left - before :][:PIECE, :PIECE]
            hidden = ~visible[piece]
            filled[piece][..., :3][hidden] = inner[hidden].astype(picture.dtype)
    return filled


def _filled(colour: Float, weight: Float) -> Float:
    """Colours (h, w, 3) with those of weight (h, w) zero replaced; others stay."""
    if weight.all():
        return colour
    counts = _halved(weight)
    sums, squares = _halved(colour * weight[..., None]), np.maximum(counts, np.float32(1))[..., None]
    means = np.divide(sums, squares, dtype=np.float32)
    coarse = _filled(means, (counts > 0).astype(np.float32))
    h, w = weight.shape
    above = coarse.repeat(2, axis=0)[:h].repeat(2, axis=1)[:, :w]
    return np.where(weight[..., None] > 0, colour, above)


def _halved(values: Float) -> Float:
    """Sums over squares of two by two; the last row and column of odd sizes stand alone."""
    h, w = values.shape[:2]
    padded = np.zeros((h + h % 2, w + w % 2, *values.shape[2:]), np.float32)
    padded[:h, :w] = values
    return padded[::2, ::2] + padded[1::2, ::2] + padded[::2, 1::2] + padded[1::2, 1::2]
