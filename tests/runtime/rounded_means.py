"""What rounding can make of the adaptive rule's thresholds.

Two-means jumps where a pixel changes its cluster, so a tolerance for its thresholds depends on the picture: these are
its iterations in interval arithmetic, from difficulties each known to within a bound only.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

# As the published program stops.
MAX_ITERATIONS = 20
TOLERANCE = 1e-4

Interval = tuple[float, float]


def adaptive_intervals(
    values: NDArray[np.float32], classes: int, *, near: float, drift: float
) -> list[list[Interval]]:
    """Where the thresholds may lie, one list of M - 1 intervals for each iteration that may be the last.

    Args:
        values: difficulties, in any shape.
        classes: M, 2 or more.
        near: a pixel as near to a threshold may be in either cluster.
        drift: how far a mean of the same pixels may be from that of these values.
    """
    ordered = np.sort(values.astype(np.float64).ravel())
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    low, width = ordered[0], ordered[-1] - ordered[0]
    if classes == 2:
        start = [low, sums[-1] / ordered.size]
    else:
        start = [low + width * j / (classes - 1) for j in range(classes)]
    centres = [(centre - drift, centre + drift) for centre in start]
    # With one difficulty everywhere no pixel is heavy.
    found = [[(np.inf, np.inf)] * (classes - 1)] if width <= 2 * drift else []
    for _ in range(MAX_ITERATIONS - 1):
        between = list(itertools.pairwise(centres))
        thresholds = [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in between]
        edges: list[Interval] = [(-np.inf, -np.inf), *thresholds, (np.inf, np.inf)]
        updated = []
        for centre, (below, above) in zip(centres, itertools.pairwise(edges), strict=True):
            # Each pixel near an edge that is counted pulls the mean towards that edge.
            surely = np.searchsorted(ordered, (below[1] + near, above[0] - near))
            perhaps = np.searchsorted(ordered, (below[0] - near, above[1] + near))
            lowest = _mean(sums, perhaps[0], surely[1], centre[0])
            highest = _mean(sums, surely[0], perhaps[1], centre[1])
            updated.append((lowest - drift, highest + drift))
        moves = [_square(old, new) for old, new in zip(centres, updated, strict=True)]
        bound = TOLERANCE * width**2
        if sum(least for least, _ in moves) <= bound:
            found.append(thresholds)
        if sum(most for _, most in moves) <= bound:
            return found
        centres = updated
    return [*found, thresholds]


def _mean(sums: NDArray[np.float64], first: int, end: int, otherwise: float) -> float:
    return float(sums[end] - sums[first]) / (end - first) if end > first else otherwise


def _square(old: Interval, new: Interval) -> Interval:
    """The least and the greatest square of a move from one interval into another."""
    apart = max(new[0] - old[1], old[0] - new[1], 0.0)
    return apart**2, max(new[1] - old[0], old[1] - new[0]) ** 2


def assert_thresholds_within(found: tuple[float, ...], intervals: list[list[Interval]], drift: float) -> None:
    """Each lies in its interval of one of the iterations, to within a drift."""
    ends = [
        all(low - drift <= at <= high + drift for at, (low, high) in zip(found, each, strict=True))
        for each in intervals
    ]
    assert any(ends), (found, intervals)
