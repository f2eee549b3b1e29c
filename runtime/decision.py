"""Which pixel goes to which class.

With two classes every rule is a threshold on the probability of being heavy: `k` knows it in advance,
`adaptive` and `budget` solve it from the probabilities of the whole picture. With more, `k` is an argmax.

The two rules that look at the whole picture need sums and ranks of millions of float32 values. A histogram
gives both exactly but for the one bin that a threshold falls into; the values in the few bins that matter
are fetched in one further pass, so the result is that of arithmetic on the sorted values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALL_LIGHT", "adaptive_threshold", "budget_threshold", "classes_by_k", "threshold_by_k"]

# No probability reaches it.
ALL_LIGHT = np.float32(np.inf)

BINS = 1 << 16
# Spans of the stored probabilities that are worked on at once: small enough to stay in cache.
SPAN = 1 << 18

# fast_pytorch_kmeans as the published program calls it.
MAX_ITERATIONS = 20
TOLERANCE = 1e-4

Values = NDArray[np.float32]
T = TypeVar("T")


class Map(Protocol):
    """Like `map`, to spread passes over threads; the upscaler passes its worker pool's."""

    def __call__(self, work: Callable[[Values], T], spans: Iterable[Values], /) -> Iterable[T]:
        """Results in order."""


def threshold_by_k(k: float, costs: Sequence[np.float32]) -> np.float32:
    """Smallest probability of being heavy that the paper's rule sends to the heavy class, for two classes.

    The rule is p1 / c1^k > p0 / c0^k with p0 = 1 - p1; equality stays light.
    """
    ratio = k * (math.log(costs[0]) - math.log(costs[1]))
    at = 1 / (1 + math.exp(min(ratio, 700.0)))
    smallest = np.float32(at)
    return smallest if float(smallest) > at else np.nextafter(smallest, ALL_LIGHT)


def classes_by_k(
    probability: NDArray[np.float32], k: float, costs: Sequence[np.float32]
) -> NDArray[np.uint8]:
    """Class of each pixel by argmax of probability / cost^k (paper, section 3.3); the lighter one on a tie.

    Args:
        probability: (rows, M, columns).
        k: the exponent.
        costs: M normalised costs.
    """
    # Relative to the largest weight and by logarithms: no power of k overflows.
    log_weight = -k * np.log(np.asarray(costs, dtype=np.float64))
    weight = np.exp(log_weight - log_weight.max()).astype(np.float32)
    classes: NDArray[np.uint8] = np.argmax(probability * weight[None, :, None], axis=1).astype(np.uint8)
    return classes


class _Distribution:
    """Counts and sums below any value, from a histogram and the values of its bins that were asked for."""

    def __init__(self, values: Values, map_spans: Map) -> None:
        self._spans = [values[a : a + SPAN] for a in range(0, values.size, SPAN)]
        self._map = map_spans
        extremes = list(map_spans(lambda span: (float(span.min()), float(span.max())), self._spans))
        self.low = min(low for low, _ in extremes)
        self.high = max(high for _, high in extremes)
        self.size = values.size
        self._factor = BINS / (self.high - self.low) if self.high > self.low else 0.0
        counts = np.zeros(BINS, dtype=np.int64)
        sums = np.zeros(BINS)
        for count, total in map_spans(self._histogram, self._spans):
            counts += count
            sums += total
        self._counts_below = np.concatenate([[0], np.cumsum(counts)])
        self._sums_below = np.concatenate([[0.0], np.cumsum(sums)])
        self._inside: dict[int, tuple[Values, NDArray[np.float64]]] = {}

    def _bin(self, span: Values) -> NDArray[np.intp]:
        # One expression for values and thresholds alike, monotone in its argument, so a value below a
        # threshold never lies in a later bin.
        offset = span.astype(np.float64)
        offset -= self.low
        offset *= self._factor
        return np.minimum(offset.astype(np.intp), BINS - 1)

    def _histogram(self, span: Values) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        index = self._bin(span)
        sums = np.bincount(index, weights=span, minlength=BINS).astype(np.float64, copy=False)
        return np.bincount(index, minlength=BINS), sums

    def fetch(self, bins: Iterable[int]) -> None:
        """Make the values of these bins known, in one pass over all."""
        wanted = np.zeros(BINS, dtype=bool)
        wanted[[b for b in bins if b not in self._inside]] = True
        if not wanted.any():
            return

        def pick(span: Values) -> tuple[Values, NDArray[np.intp]]:
            index = self._bin(span)
            hit = np.flatnonzero(wanted[index])
            return span[hit], index[hit]

        picked = list(self._map(pick, self._spans))
        found = np.concatenate([values for values, _ in picked])
        index = np.concatenate([index for _, index in picked])
        order = np.argsort(found, kind="stable")
        found, index = found[order], index[order]
        for b in np.flatnonzero(wanted):
            inside = found[index == b]
            self._inside[int(b)] = inside, np.concatenate([[0.0], np.cumsum(inside, dtype=np.float64)])

    def bin_of(self, threshold: float) -> int:
        return int(min(max((threshold - self.low) * self._factor, 0), BINS - 1))

    def bin_of_rank(self, rank: int) -> int:
        """Bin that holds the value with `rank` values before it in order."""
        return int(np.searchsorted(self._counts_below, rank, side="right")) - 1

    def below(self, threshold: float) -> tuple[int, float, bool]:
        """Count and sum of the values below a threshold, and whether they are exact."""
        b = self.bin_of(threshold)
        count, total = int(self._counts_below[b]), float(self._sums_below[b])
        if b not in self._inside:
            return count, total, False
        inside, sums = self._inside[b]
        n = int(np.searchsorted(inside, threshold))
        return count + n, total + float(sums[n]), True

    def ranked(self, rank: int) -> np.float32:
        b = self.bin_of_rank(rank)
        self.fetch([b])
        return np.float32(self._inside[b][0][rank - int(self._counts_below[b])])

    def total(self) -> float:
        return float(self._sums_below[-1])


def adaptive_threshold(values: Values, map_spans: Map = map) -> np.float32:
    """The paper's adaptive decision making: 2-means on the picture's probabilities of being heavy.

    The published program starts its k-means with the single centroid 0.5, so that the first update leaves the
    mean and, for the empty cluster, 0: on normalised values, the mean and the minimum. Labels are those of the
    last pass, computed before its update. A picture with one probability everywhere, where that program stops
    with an error, is all light.

    Args:
        values: (n,) float32 probabilities.
        map_spans: a `map` to spread the passes over threads.

    Returns:
        The smallest float32 probability that is heavy.
    """
    spread = _Distribution(values, map_spans)
    width = spread.high - spread.low
    if not width > 0:
        return ALL_LIGHT
    visited: list[float] = []
    while True:
        upper, lower = spread.total() / spread.size, spread.low
        visited.clear()
        exact = True
        for _ in range(MAX_ITERATIONS - 1):
            threshold = (upper + lower) / 2
            visited.append(threshold)
            count, total, known = spread.below(threshold)
            exact &= known
            # Neither side is ever empty: the minimum lies below the threshold and the maximum above.
            new_lower = total / count if count else lower
            new_upper = (spread.total() - total) / (spread.size - count) if count < spread.size else upper
            moved = ((new_upper - upper) ** 2 + (new_lower - lower) ** 2) / width**2
            upper, lower = new_upper, new_lower
            if moved <= TOLERANCE:
                break
        if exact:
            break
        # The inexact passes go close to where the exact ones will: their bins and the ones beside.
        near = (b + d for b in map(spread.bin_of, visited) for d in (-1, 0, 1))
        spread.fetch(b for b in near if 0 <= b < BINS)
    smallest = np.float32(visited[-1])
    return smallest if float(smallest) >= visited[-1] else np.nextafter(smallest, ALL_LIGHT)


def budget_threshold(values: Values, budget: float, map_spans: Map = map) -> np.float32:
    """Threshold that sends a share of the pixels to the heavy class, as nearly as ties allow.

    Args:
        values: (n,) float32 probabilities of being heavy.
        budget: share of heavy pixels, 0 to 1.
        map_spans: a `map` to spread the passes over threads.

    Returns:
        The smallest float32 probability that is heavy; `ALL_LIGHT` for a budget that rounds to no pixel.
    """
    heavy = round(budget * values.size)
    if heavy == 0:
        return ALL_LIGHT
    spread = _Distribution(values, map_spans)
    rank = values.size - heavy
    at = spread.ranked(rank)
    above = np.nextafter(at, ALL_LIGHT)
    spread.fetch([spread.bin_of(float(above))])
    # All pixels tied with `at` go one way: the one that misses the budget by less, heavy if both are as near.
    too_many = rank - spread.below(float(at))[0]
    too_few = spread.below(float(above))[0] - rank
    return at if too_many <= too_few else above
