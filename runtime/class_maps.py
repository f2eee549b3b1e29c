"""The class map as a picture: exact, as grey levels, or laid over the upscaled picture for the eye."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["levels", "overlay"]


def levels(classes: int) -> NDArray[np.uint8]:
    """Grey level of each class, (M,): class j of M has round(255 j / (M - 1)).

    Black is the lightest class and white the heaviest, so that a map can be seen and still be read exactly.
    """
    shades: NDArray[np.uint8] = np.rint(np.linspace(0, 255, classes)).astype(np.uint8)
    return shades


# From the lightest class to the heaviest, blue to orange: told apart under the common colour blindnesses.
COOL, WARM = (60, 110, 190), (255, 120, 30)
# Share of the tint; the rest is the picture in grey, darkened by the same share.
TINT = 0.45
LUMA = (0.299, 0.587, 0.114)


def overlay(image: NDArray[Any], class_map: NDArray[np.uint8], classes: int) -> NDArray[np.uint8]:
    """The picture in dimmed grey, each pixel tinted by its class: blue the lightest, orange the heaviest.

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); uint8, uint16 or float32.
        class_map: (H, W) uint8.
        classes: M.

    Returns:
        (H, W, 3) uint8.
    """
    grey = np.linspace(0, 255, 256)
    share = np.linspace(0, 1, classes)[:, None]
    tint = (1 - share) * COOL + share * WARM
    palette = np.rint((1 - TINT) * grey[None, :, None] + TINT * tint[:, None, :]).astype(np.uint8)
    out = np.empty((*class_map.shape, 3), np.uint8)
    # A few rows at a time: nothing of the picture's size in float.
    for top in range(0, len(out), 64):
        rows = slice(top, top + 64)
        out[rows] = palette[class_map[rows], _grey8(image[rows])]
    return out


def _grey8(rows: NDArray[Any]) -> NDArray[np.uint8]:
    full = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}.get(rows.dtype, 1)
    colour = rows.reshape(*rows.shape[:2], -1)
    luma = colour[..., :3] @ np.asarray(LUMA) if colour.shape[2] >= 3 else colour[..., 0]
    return np.clip(np.rint(luma * (255 / full)), 0, 255).astype(np.uint8)
