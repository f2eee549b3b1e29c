"""How many of millions of float32 values lie below a threshold, their sum, and which value has a given rank.

A histogram gives both exactly but for the bin that the threshold falls into; the values in the few bins that
matter are fetched in a further pass, so the result is that of arithmetic on the sorted values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "Bins", "Distribution", "NumpyPasses", "Passes", "Spread", "Values", "rounded_up"]

# Counts and sums of as many stay in the second-level cache of any processor.
BINS = 1 << 14
# Values that NumPy works on at once: small enough to stay in cache.
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
    """The work on all values. The same values give the same results, whatever the number of threads."""

    def extremes(self, values: Values) -> tuple[float, float]:
        """The least and the greatest value."""

    def histogram(self, values: Values, bins: Bins) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Of each bin how many values it has, and their sum."""

    def inside(self, values: Values, bins: Bins, wanted: NDArray[np.bool_], size: int) -> Values:
        """The values whose bins are wanted, in any order; there are `size` of them."""


class Spread(Protocol):
    """Like `map`; that of a pool of threads works side by side."""

    def __call__(self, work: Callable[[Values], T], spans: Iterable[Values], /) -> Iterable[T]:
        """Results in order."""


class NumpyPasses:
    """The reference, for any backend."""

    def __init__(self, spread: Spread = map) -> None:
        """Spread spans of the values by a `map`."""
        self._spread = spread

    def extremes(self, values: Values) -> tuple[float, float]:
        """As `Passes` says."""
        found = list(self._spread(lambda span: (float(span.min()), float(span.max())), _spans(values)))
        return min(low for low, _ in found), max(high for _, high in found)

    def histogram(self, values: Values, bins: Bins) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """As `Passes` says."""

        def of_span(span: Values) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
            index = _bins_of(span, bins)
            sums = np.bincount(index, weights=span, minlength=BINS)
            return np.bincount(index, minlength=BINS), sums.astype(np.float64, copy=False)

        counts, sums = np.zeros(BINS, dtype=np.int64), np.zeros(BINS)
        for count, total in self._spread(of_span, _spans(values)):
            counts += count
            sums += total
        return counts, sums

    def inside(self, values: Values, bins: Bins, wanted: NDArray[np.bool_], size: int) -> Values:
        """As `Passes` says."""
        found = self._spread(lambda span: span[wanted[_bins_of(span, bins)]], _spans(values))
        return np.concatenate(list(found))


def _spans(values: Values) -> list[Values]:
    return [values[first : first + SPAN] for first in range(0, values.size, SPAN)]


def _bins_of(values: Values, bins: Bins) -> NDArray[np.intp]:
    offset = values.astype(np.float64)
    offset -= bins.low
    offset *= bins.factor
    return np.minimum(offset.astype(np.intp), BINS - 1)


class Distribution:
    """Counts and sums below any value, from a histogram and the values of its bins that were asked for."""

    def __init__(self, values: Values, passes: Passes) -> None:
        self._values, self._passes = values, passes
        self.low, self.high = passes.extremes(values)
        self.size = values.size
        self._bins = Bins(self.low, BINS / (self.high - self.low) if self.high > self.low else 0.0)
        self._counts, sums = passes.histogram(values, self._bins)
        self._counts_below = _sums_before(self._counts)
        self._sums_below = _sums_before(sums)
        self.total = float(self._sums_below[-1])
        # The values of the bins that were asked for, in ascending order, and so in the order of the bins.
        self._known = np.zeros(BINS, dtype=bool)
        self._take(np.empty(0, dtype=np.float32))

    def fetch_near(self, thresholds: Iterable[float]) -> None:
        """Make known, in one pass over all values, those in the bins of these thresholds and in the bins beside."""
        inner = {self._bins.of(threshold) for threshold in thresholds if self.low < threshold <= self.high}
        self._fetch([b + beside for b in inner for beside in (-1, 0, 1)])

    def _fetch(self, asked: Sequence[int]) -> None:
        wanted = np.zeros(BINS, dtype=bool)
        wanted[np.clip(asked, 0, BINS - 1)] = True
        wanted &= ~self._known
        size = int(self._counts[wanted].sum())
        self._known |= wanted
        if size:
            found = self._passes.inside(self._values, self._bins, wanted, size)
            self._take(np.sort(np.concatenate([self._inside, found])))

    def _take(self, inside: Values) -> None:
        self._inside = inside
        self._inside_sums = _sums_before(inside.astype(np.float64))
        self._inside_before = _sums_before(np.where(self._known, self._counts, 0))

    def below(self, threshold: float) -> tuple[int, float, bool]:
        """Count and sum of the values below a threshold, and whether they are exact."""
        b = self._bins.of(threshold)
        count, total = int(self._counts_below[b]), float(self._sums_below[b])
        if not self._known[b]:
            return count, total, not self._counts[b]
        first = int(self._inside_before[b])
        end = int(np.searchsorted(self._inside, rounded_up(threshold)))
        return count + end - first, total + float(self._inside_sums[end] - self._inside_sums[first]), True

    def at_ranks(self, ranks: Sequence[int]) -> list[tuple[np.float32, int, int]]:
        """The values with so many others before them in ascending order.

        Args:
            ranks: each from 0 to n - 1.

        Returns:
            For each the value, and the ranks of the first of its equals and after the last.
        """
        if not self.high > self.low:
            return [(np.float32(self.low), 0, self.size)] * len(ranks)
        bins = (np.searchsorted(self._counts_below, ranks, side="right") - 1).tolist()
        self._fetch(bins)
        found = []
        for rank, b in zip(ranks, bins, strict=True):
            # From ranks among the values that are known to ranks among all.
            shift = int(self._counts_below[b] - self._inside_before[b])
            value = self._inside[rank - shift]
            first, end = (
                shift + int(np.searchsorted(self._inside, value, side)) for side in ("left", "right")
            )
            found.append((value, first, end))
        return found


def _sums_before(values: NDArray[Any]) -> NDArray[Any]:
    """Of each value the sum of those before it, and the sum of all."""
    sums = np.zeros(values.size + 1, dtype=values.dtype)
    np.cumsum(values, out=sums[1:])
    return sums


def rounded_up(threshold: float) -> np.float32:
    """The smallest float32 that is no less."""
    nearest = np.float32(threshold)
    return nearest if float(nearest) >= threshold else np.nextafter(nearest, np.float32(np.inf))
