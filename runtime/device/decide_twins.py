"""The kernels that find thresholds for a whole picture, in NumPy; see `twins`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.distribution import rounded_up

__all__ = ["DECIDE"]

Array = NDArray[Any]
Twin = Callable[..., None]

PIVOTS = 3
INFINITE = np.float32(np.inf)


def _key(value: float) -> int:
    bits = int(np.float32(value).view(np.uint32))
    return bits ^ 0xFFFFFFFF if bits & 0x80000000 else bits | 0x80000000


def _value(key: int) -> float:
    bits = key & 0x7FFFFFFF if key & 0x80000000 else key ^ 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32))


def _fixed_point(values: Array, unit: float) -> NDArray[np.int64]:
    fixed: NDArray[np.int64] = np.rint(values.astype(np.float64) * unit).astype(np.int64)
    return fixed


def find_extremes(classes: int, values: Array, n: int, unit: float, extremes: Array, total: Array) -> None:
    """Extremes as keys, and the fixed-point sum."""
    extremes[0] = min(int(extremes[0]), _key(values[:n].min()))
    extremes[1] = max(int(extremes[1]), _key(values[:n].max()))
    total[0] = (int(total[0]) + int(_fixed_point(values[:n], unit).sum())) % (1 << 64)


def _place_thresholds(centres: Array, thresholds: Array, steps: int) -> None:
    for j in range(steps):
        thresholds[j] = rounded_up((float(centres[j]) + float(centres[j + 1])) / 2)


def means_begin(
    classes: int,
    extremes: Array,
    total: Array,
    n: int,
    unit: float,
    centres: Array,
    reached: Array,
    thresholds: Array,
    state: Array,
) -> None:
    """First centroids and thresholds."""
    low, high = _value(int(extremes[0])), _value(int(extremes[1]))
    steps = classes - 1
    state[0], state[1] = 0, not high > low
    reached[: 2 * steps] = 0
    if state[1]:
        thresholds[:steps] = INFINITE
        return
    if classes == 2:
        centres[0], centres[1] = low, float(total.view(np.int64)[0]) / unit / n
    else:
        for j in range(classes):
            centres[j] = low + (high - low) * (j / steps)
    _place_thresholds(centres, thresholds, steps)


def means_pass(
    classes: int, values: Array, n: int, unit: float, thresholds: Array, state: Array, reached: Array
) -> None:
    """Counts and sums of the values at or above each threshold."""
    if state[1]:
        return
    steps, fixed = classes - 1, _fixed_point(values[:n], unit)
    for j in range(steps):
        is_reached = values[:n] >= thresholds[j]
        reached[j] += np.uint64(np.count_nonzero(is_reached))
        reached[steps + j] += np.uint64(int(fixed[is_reached].sum()) % (1 << 64))


def means_update(
    classes: int,
    extremes: Array,
    total: Array,
    n: int,
    unit: float,
    rounds: int,
    tolerance: float,
    centres: Array,
    reached: Array,
    thresholds: Array,
    state: Array,
) -> None:
    """New centroids; either the end, or new thresholds."""
    if state[1]:
        return
    steps = classes - 1
    counts = [n, *map(int, reached[:steps]), 0]
    sums = [int(total.view(np.int64)[0]), *map(int, reached[steps : 2 * steps].view(np.int64)), 0]
    old = [float(c) for c in centres[:classes]]
    edges = [-math.inf, *((a + b) / 2 for a, b in itertools.pairwise(old)), math.inf]
    moved = 0.0
    for j in range(classes):
        count, together = counts[j] - counts[j + 1], sums[j] - sums[j + 1]
        mean = together / unit / count if count else old[j]
        mean = min(max(mean, edges[j]), edges[j + 1])
        centres[j] = mean
        moved += (mean - old[j]) * (mean - old[j])
    reached[: 2 * steps] = 0
    width = _value(int(extremes[1])) - _value(int(extremes[0]))
    state[0] += 1
    if moved / (width * width) <= tolerance or state[0] == rounds:
        state[1] = 1
    else:
        _place_thresholds(centres, thresholds, steps)


def _pivot(low: int, high: int, p: int) -> int:
    return low + max((high - low) * (p + 1) // (PIVOTS + 1), 1)


def _place_tried(classes: int, bounds: Array, tried: Array, reached: Array) -> None:
    for j in range(classes - 1):
        low, high = map(int, bounds[2 * j : 2 * j + 2])
        tried[j * PIVOTS : (j + 1) * PIVOTS] = [_value(_pivot(low, high, p)) for p in range(PIVOTS)]
    reached[: (classes - 1) * PIVOTS] = 0


def budget_begin(classes: int, extremes: Array, bounds: Array, tried: Array, reached: Array) -> None:
    """Bounds around all keys, and the first pivots."""
    for j in range(classes - 1):
        bounds[2 * j], bounds[2 * j + 1] = int(extremes[0]) - 1, int(extremes[1]) + 1
    _place_tried(classes, bounds, tried, reached)


def budget_pass(classes: int, values: Array, n: int, tried: Array, reached: Array) -> None:
    """How many values reach each pivot."""
    for p in range((classes - 1) * PIVOTS):
        reached[p] += np.uint64(np.count_nonzero(values[:n] >= tried[p]))


def budget_update(classes: int, wanted: Array, bounds: Array, tried: Array, reached: Array) -> None:
    """Narrower bounds, and new pivots."""
    for j in range(classes - 1):
        low, high = map(int, bounds[2 * j : 2 * j + 2])
        if high - low <= 1:
            continue
        for p in reversed(range(PIVOTS)):
            pivot = _pivot(low, high, p)
            if reached[j * PIVOTS + p] >= wanted[j]:
                bounds[2 * j] = pivot
                break
            bounds[2 * j + 1] = pivot
    _place_tried(classes, bounds, tried, reached)


def budget_ties(classes: int, bounds: Array, tried: Array, reached: Array) -> None:
    """Two thresholds for each class: with the values that are tied, and without."""
    reached[: (classes - 1) * PIVOTS] = 0
    for j in range(classes - 1):
        key = int(bounds[2 * j])
        tried[j * PIVOTS : (j + 1) * PIVOTS] = [_value(key), _value(key + 1), INFINITE]


def budget_end(classes: int, wanted: Array, tried: Array, reached: Array, thresholds: Array) -> None:
    """The one that misses by less."""
    for j in range(classes - 1):
        with_ties, without = (int(reached[j * PIVOTS + p]) for p in (0, 1))
        count = int(wanted[j])
        dearer = with_ties - count <= count - without
        thresholds[j] = tried[j * PIVOTS + (0 if dearer else 1)] if count else INFINITE


DECIDE: Mapping[str, Twin] = {
    "find_extremes": find_extremes,
    "means_begin": means_begin,
    "means_pass": means_pass,
    "means_update": means_update,
    "budget_begin": budget_begin,
    "budget_pass": budget_pass,
    "budget_update": budget_update,
    "budget_ties": budget_ties,
    "budget_end": budget_end,
}
