"""From the values of a tensor to the range that int8 represents.

A `Histogram` takes values as they stream by and has a fixed size. An observer judges a histogram once all values were
seen; it gives one number, the largest magnitude that is represented, as zero points are 0. So one pass over the
pictures serves every observer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pcsr.export.int8.placement import LIMIT, OFFSET
from pcsr.runtime.errors import CheckError, OptionError

__all__ = [
    "OBSERVERS",
    "Entropy",
    "Histogram",
    "MeanSquare",
    "MinMax",
    "Observer",
    "Percentile",
    "observer_named",
]

BINS = 4096
# Below what the smallest scale resolves, magnitudes need no telling apart.
SMALLEST_TOP = 2.0**-20
# Entropy compares histograms of this many bins (2048 is the customary number) in 128 levels.
COARSE = 2048
LEVELS = LIMIT + 1
# Candidates of the mean square, as shares of the largest magnitude.
SHARES = np.geomspace(0.02, 1.0, 160)

Counts = NDArray[np.int64]


class Histogram:
    """Magnitudes of a tensor's values, in bins from 0 to a power of two.

    Where a value lies beyond, the bins are made twice as wide by joining neighbours, which is what wider bins would
    have counted: the order of the values does not matter.

    Attributes:
        low: smallest value seen; infinite before the first.
        high: largest value seen.
        counts: (4096,) values by magnitude.
        top: upper edge of the last bin, a power of two.
        channel_sums: (C,) sums of the values by channel; empty before the first.
        values: seen so far, of one channel.
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.counts: Counts = np.zeros(BINS, dtype=np.int64)
        self.top = 0.0
        self.channel_sums: NDArray[np.float64] = np.zeros(0)
        self.values = 0

    def add(self, values: NDArray[np.float32], name: str) -> None:
        """Count values.

        Args:
            values: (n, C).
            name: of the tensor, for the error.

        Raises:
            CheckError: one is infinite or not a number.
        """
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CheckError(f"tensor {name} has values that are infinite or not a number")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._reach(max(-low, high))
        if self.top:
            index = np.abs(values).ravel(order="K")
            index *= np.float32(BINS / self.top)
            self.counts += np.bincount(np.minimum(index.astype(np.int32), BINS - 1), minlength=BINS)
        else:
            self.counts[0] += values.size
        sums = values.sum(axis=0, dtype=np.float64)
        self.channel_sums = sums if not self.values else self.channel_sums + sums
        self.values += len(values)

    def _reach(self, magnitude: float) -> None:
        # Below the top, never at it: a value lies in the same bin whenever it comes.
        if magnitude < self.top or not magnitude:
            return
        if not self.top:
            # Nothing but zeros so far, which lie in the first bin whatever its width.
            self.top = max(2.0 ** (math.floor(math.log2(magnitude)) + 1), SMALLEST_TOP)
        while self.top <= magnitude:
            self.counts[: BINS // 2] = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[BINS // 2 :] = 0
            self.top *= 2

    @property
    def span(self) -> tuple[float, float]:
        """Smallest and largest value seen; 0 and 0 if none was, as of a class that no pixel is routed to."""
        return (self.low, self.high) if self.values else (0.0, 0.0)

    @property
    def largest(self) -> float:
        """Largest magnitude seen; 0 if nothing was."""
        return max(-self.low, self.high, 0.0)

    @property
    def means(self) -> NDArray[np.float64]:
        """(C,) mean of each channel."""
        return self.channel_sums / max(self.values, 1)

    def state(self) -> dict[str, Any]:
        """All of it as plain values; see `restored`."""
        used = int(self.counts.nonzero()[0].max(initial=-1)) + 1
        return {
            "low": self.low,
            "high": self.high,
            "top": self.top,
            "counts": self.counts[:used].tolist(),
            "sums": self.channel_sums.tolist(),
            "values": self.values,
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Histogram:
        """The histogram whose `state` it was."""
        histogram = cls()
        histogram.low, histogram.high, histogram.top = state["low"], state["high"], state["top"]
        histogram.counts[: len(state["counts"])] = state["counts"]
        histogram.channel_sums = np.array(state["sums"], dtype=np.float64)
        histogram.values = state["values"]
        return histogram


class Observer(Protocol):
    """Chooses the largest magnitude that int8 represents; what lies beyond saturates."""

    @property
    def name(self) -> str:
        """As an option and the cache have it."""

    def largest(self, histogram: Histogram) -> float:
        """Of a tensor of which values were seen; 0 where all were 0."""


@dataclass(frozen=True, slots=True)
class MinMax:
    """Everything that was seen."""

    name: str = "minmax"

    def largest(self, histogram: Histogram) -> float:
        """The largest magnitude."""
        return histogram.largest


@dataclass(frozen=True, slots=True)
class Percentile:
    """All but a share of the values.

    Attributes:
        percent: of the values that are represented, 50 to 100.
    """

    percent: float = 99.99
    name: str = "percentile"

    def __post_init__(self) -> None:
        if not 50 <= self.percent <= 100:
            raise OptionError(f"percentile is {self.percent:g}; it must lie between 50 and 100")

    def largest(self, histogram: Histogram) -> float:
        """Upper edge of the bin in which the percentile lies, at most the largest magnitude."""
        below = np.cumsum(histogram.counts)
        if not below[-1]:
            return 0.0
        at = int(np.searchsorted(below, self.percent / 100 * below[-1]))
        return min((at + 1) * histogram.top / BINS, histogram.largest)


@dataclass(frozen=True, slots=True)
class MeanSquare:
    """The smallest mean squared error of rounding and saturation together."""

    name: str = "mse"

    def largest(self, histogram: Histogram) -> float:
        """The best of 160 magnitudes up to the largest, judged at the centres of the bins."""
        centres = (np.arange(BINS) + 0.5) * histogram.top / BINS
        candidates = histogram.largest * SHARES
        if not histogram.largest:
            return 0.0
        # Zeros are exact under any scale.
        weights = histogram.counts.astype(np.float64)
        errors = []
        levels = LIMIT + OFFSET if histogram.low >= 0 else LIMIT
        for candidate in candidates:
            step = candidate / levels
            rounded = np.minimum(np.rint(centres / step), levels) * step
            errors.append(float(weights @ (rounded - centres) ** 2))
        return float(candidates[int(np.argmin(errors))])


@dataclass(frozen=True, slots=True)
class Entropy:
    """The smallest information lost: Kullback-Leibler divergence of the quantised histogram from the clipped one.

    The method of TensorRT's own calibrator (Migacz, 8-bit inference with TensorRT, 2017): for each candidate the values
    beyond it are counted into the last bin kept, the bins kept are merged into 128 levels, and each level is spread
    again over its bins that are not empty. The bin of zeros is left out, as ReLU fills it.
    """

    name: str = "entropy"

    def largest(self, histogram: Histogram) -> float:
        """Upper edge of the best number of bins kept."""
        if not histogram.largest:
            return 0.0
        # Bins end at the largest magnitude, not at the power of two above it.
        end = min(math.ceil(histogram.largest / histogram.top * BINS), BINS)
        edges = np.linspace(0, end, COARSE + 1)
        below = np.concatenate([[0], np.cumsum(histogram.counts)])
        counts = np.diff(np.interp(edges, np.arange(BINS + 1), below))
        counts[0] = 0
        width = end * histogram.top / BINS / COARSE
        if not counts.any():
            return histogram.largest
        best, kept = math.inf, COARSE
        for candidate in range(LEVELS, COARSE + 1, 8):
            divergence = _divergence(counts, candidate)
            if divergence < best:
                best, kept = divergence, candidate
        return min(kept * width, histogram.largest)


def _divergence(counts: NDArray[np.float64], kept: int) -> float:
    """KL(P || Q) of the first `kept` bins; see `Entropy`."""
    inside = counts[:kept]
    clipped = inside.copy()
    clipped[-1] += counts[kept:].sum()
    level = np.arange(kept) * LEVELS // kept
    filled = inside > 0
    total = np.bincount(level, weights=inside, minlength=LEVELS)
    members = np.bincount(level, weights=filled, minlength=LEVELS)
    spread = np.where(filled, (total / np.maximum(members, 1))[level], 0.0)
    if not spread.any():
        return math.inf
    p, q = clipped / clipped.sum(), spread / spread.sum()
    # A bin that holds nothing but what was clipped has no counterpart: a floor keeps its cost finite.
    where = p > 0
    return float(np.sum(p[where] * np.log(p[where] / np.maximum(q[where], 1e-9))))


OBSERVERS: Mapping[str, Callable[[float], Observer]] = {
    "minmax": lambda percent: MinMax(),
    "percentile": Percentile,
    "entropy": lambda percent: Entropy(),
    "mse": lambda percent: MeanSquare(),
}


def observer_named(name: str, percent: float) -> Observer:
    """The observer of a name; `percent` is the percentile's.

    Raises:
        OptionError: no such name, or no such percentile.
    """
    if name not in OBSERVERS:
        raise OptionError(f"no observer is named {name!r}; choose from {', '.join(OBSERVERS)}")
    return OBSERVERS[name](percent)
