"""Thresholds from the difficulties of a whole picture, without a value crossing the bus.

The passes are kernels over all pixels, the updates between them kernels of one thread; how many there are is known
beforehand, and those after the end do nothing. Sums are of fixed-point numbers, so they are exact and the same
in any order: with n pixels and M classes a difficulty is rounded to 2^-b, b = 62 less the bits of n * M and at the
most 40. For 8K and two classes b is 35, and a mean is wrong by 2^-36 at the most. Everything else is float64, as
in `pcsr.runtime.decision`, whose rules these are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pcsr.runtime.decision import ALL_LIGHT, MAX_ITERATIONS, TOLERANCE, budget_counts
from pcsr.runtime.device.arrays import DeviceArray, Stream

__all__ = ["adaptive_on_device", "budget_on_device", "fixed_point_unit", "upload_small"]

PIVOTS = 3
# Keys of difficulties, which are not negative, lie within 2^31 of one another; a round leaves a quarter.
BUDGET_ROUNDS = 16


def fixed_point_unit(n: int, classes: int) -> float:
    """What difficulties are multiplied by, so that n of them, each below M, stay below 2^62."""
    return 2.0 ** min(40, 62 - (n * classes).bit_length())


def upload_small(
    stream: Stream, values: Sequence[float] | np.ndarray, dtype: type[np.generic]
) -> DeviceArray:
    """A few numbers on the device."""
    host = np.asarray(values, dtype=dtype)
    array = stream.array(host.shape, host.dtype)
    stream.upload(host, array)
    return array


def adaptive_on_device(stream: Stream, difficulties: DeviceArray, classes: int) -> DeviceArray:
    """M-means.

    Args:
        stream: to work on.
        difficulties: any shape, float32.
        classes: M.

    Returns:
        (M - 1,) float32 thresholds on the device.
    """
    n, steps = difficulties.size, classes - 1
    unit = fixed_point_unit(n, classes)
    extremes, total = _extremes(stream, difficulties, unit)
    centres, reached = stream.array((classes,), np.float64), stream.array((2 * steps,), np.uint64)
    thresholds, state = stream.array((steps,), np.float32), stream.array((2,), np.int32)
    stream.launch("means_begin", 1, extremes, total, n, unit, centres, reached, thresholds, state)
    rounds = MAX_ITERATIONS - 1
    for _ in range(rounds):
        stream.launch("means_pass", n, difficulties, n, unit, thresholds, state, reached)
        stream.launch(
            "means_update",
            1,
            extremes,
            total,
            n,
            unit,
            rounds,
            TOLERANCE,
            centres,
            reached,
            thresholds,
            state,
        )
    return thresholds


def budget_on_device(
    stream: Stream, difficulties: DeviceArray, budget: float, steps: Sequence[int]
) -> DeviceArray:
    """Thresholds that spend a share of the adjustable cost.

    Args:
        stream: to work on.
        difficulties: any shape, float32.
        budget: the share, 0 to 1.
        steps: of `pcsr.runtime.decision.cost_steps`.

    Returns:
        (M - 1,) float32 thresholds on the device.
    """
    n, M = difficulties.size, len(steps) + 1
    counts = budget_counts(n, budget, steps)
    if not any(counts):
        return upload_small(stream, [float(ALL_LIGHT)] * len(steps), np.float32)
    extremes, _ = _extremes(stream, difficulties, fixed_point_unit(n, M))
    wanted = upload_small(stream, np.array(counts, dtype=np.uint64), np.uint64)
    bounds = stream.array((2 * len(steps),), np.uint32)
    tried, reached = (stream.array((len(steps) * PIVOTS,), kind) for kind in (np.float32, np.uint64))
    thresholds = stream.array((len(steps),), np.float32)
    stream.launch("budget_begin", 1, extremes, bounds, tried, reached)
    for _ in range(BUDGET_ROUNDS):
        stream.launch("budget_pass", n, difficulties, n, tried, reached)
        stream.launch("budget_update", 1, wanted, bounds, tried, reached)
    stream.launch("budget_ties", 1, bounds, tried, reached)
    stream.launch("budget_pass", n, difficulties, n, tried, reached)
    stream.launch("budget_end", 1, wanted, tried, reached, thresholds)
    return thresholds


def _extremes(stream: Stream, difficulties: DeviceArray, unit: float) -> tuple[DeviceArray, DeviceArray]:
    extremes = upload_small(stream, np.array([0xFFFFFFFF, 0], dtype=np.uint32), np.uint32)
    total = stream.array((1,), np.uint64)
    stream.zero(total)
    stream.launch("find_extremes", difficulties.size, difficulties, difficulties.size, unit, extremes, total)
    return extremes, total
