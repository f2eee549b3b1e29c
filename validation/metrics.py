"""How near two pictures are: PSNR, SSIM, largest difference, agreement of class maps.

Pictures are (H, W), (H, W, 1) or (H, W, 3) RGB, uint8 or floating point with 0 to 1 nominal. PSNR and SSIM
see what a viewer would: values times 255, clamped to 0 to 255 and rounded half to even. Everything is summed
over strips of rows in float64, so that memory does not grow with the picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.errors import OptionError, PictureError

__all__ = ["agreement", "largest_difference", "psnr", "shave_for", "ssim"]

Channel = Literal["rgb", "y"]

STRIP = 128
"""Rows worked on at a time."""
WINDOW, SIGMA = 11, 1.5
"""Gaussian window of SSIM (Wang et al., 2004)."""
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
LUMA = np.array([65.481, 128.553, 24.966]) / 255
"""Weights of MATLAB's `rgb2ycbcr` on levels of 0 to 255; with an offset of 16 they give 16 to 235."""


def shave_for(scale: float) -> int:
    """Pixels left out on each side: the scale, rounded up when it is a fraction."""
    return math.ceil(scale)


def psnr(
    a: NDArray[Any], b: NDArray[Any], *, shave: int = 0, channel: Channel = "rgb", rounded: bool = True
) -> float:
    """Peak signal-to-noise ratio, as PCSR's authors compute it.

    Args:
        a: a picture.
        b: another of the same shape.
        shave: pixels to leave out on each side.
        channel: "rgb", the mean squared error over all samples, or "y", over MATLAB's luma (not rounded).
        rounded: False compares the values as they are, neither clamped nor rounded.

    Returns:
        dB, infinite for equal pictures.

    Raises:
        PictureError: the shapes differ, or shaving leaves nothing.
    """
    squares, samples = 0.0, 0
    for x, y in _strips(*_shaved(a, b, shave), height=STRIP, overlap=0):
        difference = _values(x, channel, rounded) - _values(y, channel, rounded)
        squares += float(np.vdot(difference, difference))
        samples += difference.size
    return math.inf if squares == 0 else 10 * math.log10(255**2 * samples / squares)


def ssim(a: NDArray[Any], b: NDArray[Any], *, shave: int = 0, channel: Channel = "y") -> float:
    """Structural similarity (Wang et al., 2004): 11x11 Gaussian window of sigma 1.5, whole windows only.

    Args:
        a: a picture.
        b: another of the same shape.
        shave: pixels to leave out on each side.
        channel: "y", MATLAB's luma, or "rgb", the mean over the three channels.

    Returns:
        Mean over all windows, 1 for equal pictures; NaN where no window fits.

    Raises:
        PictureError: the shapes differ, or shaving leaves nothing.
    """
    a, b = _shaved(a, b, shave)
    if min(a.shape[:2]) < WINDOW:
        return math.nan
    total, windows = 0.0, 0
    for x, y in _strips(a, b, height=STRIP, overlap=WINDOW - 1):
        similarity = _similarity(_values(x, channel, True), _values(y, channel, True))
        total += float(similarity.sum())
        windows += similarity.size
    return total / windows


def largest_difference(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Largest absolute difference of two samples, neither clamped nor rounded; 1 is from black to white.

    Raises:
        PictureError: the shapes differ.
    """
    return max(
        float(np.abs(_values(x, "rgb", False) - _values(y, "rgb", False)).max()) / 255
        for x, y in _strips(*_shaved(a, b, 0), height=STRIP, overlap=0)
    )


def agreement(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Percentage of the pixels that two class maps (H, W) send to the same class.

    Raises:
        PictureError: the shapes differ.
    """
    if a.shape != b.shape:
        raise PictureError(f"class maps of shapes {a.shape} and {b.shape} cannot be compared; crop one")
    return 100 * int(np.count_nonzero(a == b)) / a.size


def _shaved(a: NDArray[Any], b: NDArray[Any], shave: int) -> tuple[NDArray[Any], NDArray[Any]]:
    if a.shape != b.shape:
        raise PictureError(f"pictures of shapes {a.shape} and {b.shape} cannot be compared; crop one")
    if shave < 0:
        raise OptionError(f"shave is {shave}; it must be 0 or more pixels")
    H, W = a.shape[:2]
    if min(H, W) <= 2 * shave:
        raise PictureError(f"nothing is left of {W}x{H} pixels without {shave} on each side; shave less")
    inside = (slice(shave, H - shave), slice(shave, W - shave))
    return a[inside], b[inside]


def _strips(
    a: NDArray[Any], b: NDArray[Any], *, height: int, overlap: int
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Both pictures in strips of rows, each seeing `overlap` rows of the next."""
    for top in range(0, len(a) - overlap, height):
        rows = slice(top, min(top + height + overlap, len(a)))
        yield a[rows], b[rows]


def _values(picture: NDArray[Any], channel: Channel, rounded: bool) -> NDArray[np.float64]:
    """Levels of 0 to 255 as (rows, W, channels) float64."""
    levels = picture.reshape(*picture.shape[:2], -1)
    if picture.dtype != np.uint8:
        levels = levels * levels.dtype.type(255)
        if rounded:
            levels = np.rint(np.clip(levels, 0, 255))
    exact = levels.astype(np.float64)
    if channel == "rgb":
        return exact
    return exact @ LUMA[:, None] + 16 if exact.shape[2] == 3 else exact * LUMA.sum() + 16


def _similarity(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """SSIM of every whole window."""
    mean_x, mean_y = _blur(x), _blur(y)
    xx, yy, xy = mean_x * mean_x, mean_y * mean_y, mean_x * mean_y
    # E[x²] − E[x]² with the population's divisor, as the paper has it.
    variances = _blur(x * x) - xx + _blur(y * y) - yy
    covariance = _blur(x * y) - xy
    return ((2 * xy + C1) * (2 * covariance + C2)) / ((xx + yy + C1) * (variances + C2))


def _blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
    offset = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offset**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    rows, columns = x.shape[0] - WINDOW + 1, x.shape[1] - WINDOW + 1
    tall: NDArray[np.float64] = sum(w * x[i : i + rows] for i, w in enumerate(weights))
    wide: NDArray[np.float64] = sum(w * tall[:, i : i + columns] for i, w in enumerate(weights))
    return wide
