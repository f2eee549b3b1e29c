"""How many of millions of float32 values lie below a threshold, their sum, and which value has a given rank.

A histogram gives both exactly but for the bin that the threshold falls into; the values in the few bins that
matter are fetched in a further pass, so the result is that of arithmetic on the sorted values.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "Bins", "Distribution", "Map", "NumpyPasses", "Passes", "Values", "rounded_up"]

# Counts and sums of as many stay in the second-level cache of any processor.
BINS = 1 << 14
# Spans of the values that are worked on at once: small enough to stay in cache.
SPAN = 1 << 18

Values = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bins:
    """`BINS` equal parts of a range; a value lies in bin floor((value - low) * factor), the last at the most.

    One expression for values and thresholds alike, in float64 and monotone in its argument, so that a value below
    a threshold never lies in a later bin.

    Attributes:
        low: where the range begins; no value is less.
        factor: bins in a unit.
    """

    low: float
    factor: float

    def of(self, value: float) -> int:
        """The bin of a value, or of a threshold anywhere."""
        return int(min(max((float(value) - self.low) * self.factor, 0), BINS - 1))


class Passes(Protocol):
    """The work on a span of values. Safe to call from several threads."""

    def extremes(self, values: Values) -> tuple[float, float]:
        """The least and the greatest value."""

    def histogram(self, values: Values, bins: Bins) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Of each bin how many values it has, and their sum."""

    def inside(self, values: Values, bins: Bins, wanted: NDArray[np.bool_]) -> Values:
        """The values whose bins are wanted, in their order."""


class NumpyPasses:
    """The reference, for any backend."""

    def extremes(self, values: Values) -> tuple[float, float]:
        """As `Passes` says."""
        return float(values.min()), float(values.max())

    def histogram(self, values: Values, bins: Bins) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """As `Passes` says."""
        index = _bins_of(values, bins)
        sums = np.bincount(index, weights=values, minlength=BINS).astype(np.float64, copy=False)
        return np.bincount(index, minlength=BINS).astype(np.int64, copy=False), sums

    def inside(self, values: Values, bins: Bins, wanted: NDArray[np.bool_]) -> Values:
        """As `Passes` says."""
        found: Values = values[wanted[_bins_of(values, bins)]]
        return found


def _bins_of(values: Values, bins: Bins) -> NDArray[np.intp]:
    offset = values.astype(np.float64)
    offset -= bins.low
    offset *= bins.factor
    return np.minimum(offset.astype(np.intp), BINS - 1)


class Map(Protocol):
    """Like `map`, to spread passes over threads; the upscaler passes its worker pool's."""

    def __call__(self, work: Callable[[Values], T], spans: Iterable[Values], /) -> Iterable[T]:
        """Results in order."""


class Distribution:
    """Counts and sums below any value, from a histogram and the values of its bins that were asked for."""

    def __init__(self, values: Values, map_spans: Map, passes: Passes) -> None:
        self._spans = [values[a : a + SPAN] for a in range(0, values.size, SPAN)]
        self._map, self._passes = map_spans, passes
        extremes = list(map_spans(passes.extremes, self._spans))
        self.low = min(low for low, _ in extremes)
        self.high = max(high for _, high in extremes)
        self.size = values.size
        self._bins = Bins(self.low, BINS / (self.high - self.low) if self.high > self.low else 0.0)
        counts = np.zeros(BINS, dtype=np.int64)
        sums = np.zeros(BINS)
        for count, total in map_spans(lambda span: passes.histogram(span, self._bins), self._spans):
            counts += count
            sums += total
        self._counts = counts
        self._counts_below = np.concatenate([[0], np.cumsum(counts)])
        self._sums_below = np.concatenate([[0.0], np.cumsum(sums)])
        self.total = float(self._sums_below[-1])
        self._inside: dict[int, tuple[Values, NDArray[np.float64]]] = {}

    def fetch_near(self, thresholds: Iterable[float]) -> None:
        """Make known, in one pass over all values, those in the bins of these thresholds and in the bins beside."""
        inner = {self._bins.of(threshold) for threshold in thresholds if self.low < threshold <= self.high}
        self._fetch({b + beside for b in inner for beside in (-1, 0, 1)})

    def _fetch(self, wanted_bins: Iterable[int]) -> None:
        bins = sorted(b for b in wanted_bins if 0 <= b < BINS and self._counts[b] and b not in self._inside)
        if not bins:
            return
        wanted = np.zeros(BINS, dtype=bool)
        wanted[bins] = True
        parts = self._map(lambda span: self._passes.inside(span, self._bins, wanted), self._spans)
        found = np.concatenate(list(parts))
        found.sort()
        # In order of value the bins are in order too.
        for b in bins:
            first, end = (bisect.bisect_left(found, at, key=self._bins.of) for at in (b, b + 1))
            inside = found[first:end]
            self._inside[b] = inside, np.concatenate([[0.0], np.cumsum(inside, dtype=np.float64)])

    def below(self, threshold: float) -> tuple[int, float, bool]:
        """Count and sum of the values below a threshold, and whether they are exact."""
        b = self._bins.of(threshold)
        count, total = int(self._counts_below[b]), float(self._sums_below[b])
        if b not in self._inside:
            return count, total, not self._counts[b]
        inside, sums = self._inside[b]
        n = int(np.searchsorted(inside, rounded_up(threshold)))
        return count + n, total + float(sums[n]), True

    def at_ranks(self, ranks: Sequence[int]) -> list[tuple[np.float32, int, int]]:
        """The values with so many others before them in ascending order.

        Args:
            ranks: each from 0 to n - 1.

        Returns:
            For each the value, and the ranks of the first of its equals and after the last.
        """
        if not self.high > self.low:
            return [(np.float32(self.low), 0, self.size)] * len(ranks)
        bins = [bisect.bisect_right(self._counts_below, rank) - 1 for rank in ranks]
        self._fetch(set(bins))
        found = []
        for rank, b in zip(ranks, bins, strict=True):
            (inside, _), before = self._inside[b], int(self._counts_below[b])
            value = inside[rank - before]
            first, end = (before + int(np.searchsorted(inside, value, side)) for side in ("left", "right"))
            found.append((value, first, end))
        return found


def rounded_up(threshold: float) -> np.float32:
    """The smallest float32 that is no less."""
    nearest = np.float32(threshold)
    return nearest if float(nearest) >= threshold else np.nextafter(nearest, np.float32(np.inf))
