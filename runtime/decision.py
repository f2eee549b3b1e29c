"""Which pixel goes to which class.

`k` judges every pixel by itself; with two classes that is a threshold known in advance. The rules that look at the
whole picture order its pixels by difficulty and cut that order with M - 1 thresholds: `adaptive` between
clusters, `budget` where the cost is met. With two classes the difficulty is the probability of being heavy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.distribution import Distribution, NumpyPasses, Passes, Values, rounded_up
from pcsr.runtime.errors import OptionError

__all__ = [
    "ALL_LIGHT",
    "ByThresholds",
    "ByWeights",
    "Rule",
    "Thresholds",
    "adaptive_thresholds",
    "argmax_weights",
    "budget_counts",
    "budget_thresholds",
    "classes_by_thresholds",
    "classes_by_weights",
    "cost_steps",
    "difficulty",
    "threshold_by_k",
]

# No difficulty reaches it.
ALL_LIGHT = np.float32(np.inf)

# fast_pytorch_kmeans as the published program calls it.
MAX_ITERATIONS = 20
TOLERANCE = 1e-4

IN_NUMPY = NumpyPasses()

Thresholds = tuple[np.float32, ...]
"""M - 1, ascending: the class of a pixel is the number of them that its difficulty reaches."""


@dataclass(frozen=True, slots=True)
class ByThresholds:
    """The class of a pixel is the number of thresholds that its difficulty reaches."""

    thresholds: Thresholds


@dataclass(frozen=True, slots=True)
class ByWeights:
    """The class of a pixel is the argmax of its M probabilities, each multiplied by its weight."""

    weights: NDArray[np.float32]


Rule = ByThresholds | ByWeights
"""What has been decided of a picture: enough to class each of its pixels by itself."""


def difficulty(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    """Expected class of each pixel: the sum over j of j * p_j, in float32 and ascending order of j.

    Args:
        probability: (rows, P, columns) as a backend gives it: P = 1, of the heavier of two classes, or P = M.

    Returns:
        (rows, columns), 0 to M - 1.
    """
    if probability.shape[1] == 1:
        return probability[:, 0]
    expected: NDArray[np.float32] = probability[:, 1].copy()
    for j in range(2, probability.shape[1]):
        expected += np.float32(j) * probability[:, j]
    return expected


def classes_by_thresholds(values: NDArray[np.float32], thresholds: Thresholds) -> NDArray[np.uint8]:
    """Class of each pixel: how many of the thresholds its difficulty reaches."""
    classes: NDArray[np.uint8] = (values >= thresholds[0]).view(np.uint8)
    for threshold in thresholds[1:]:
        classes += values >= threshold
    return classes


def threshold_by_k(k: float, costs: Sequence[np.float32]) -> np.float32:
    """Smallest probability of being heavy that the paper's rule sends to the heavy class, for two classes.

    The rule is p1 / c1^k > p0 / c0^k with p0 = 1 - p1; equality stays light.
    """
    ratio = k * (math.log(costs[0]) - math.log(costs[1]))
    at = 1 / (1 + math.exp(min(ratio, 700.0)))
    smallest = np.float32(at)
    return smallest if float(smallest) > at else np.nextafter(smallest, ALL_LIGHT)


def classes_by_weights(probability: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Class of each pixel by argmax of its weighted probabilities; the lighter one on a tie.

    Args:
        probability: (rows, M, columns).
        weights: (M,).
    """
    classes: NDArray[np.uint8] = np.argmax(probability * weights[None, :, None], axis=1).astype(np.uint8)
    return classes


def argmax_weights(k: float, costs: Sequence[np.float32]) -> NDArray[np.float32]:
    """What the M probabilities are multiplied by under k (paper, section 3.3): 1 / cost^k, relative to the largest."""
    # By logarithms: no power of k overflows.
    log_weight = -k * np.log(np.asarray(costs, dtype=np.float64))
    weight: NDArray[np.float32] = np.exp(log_weight - log_weight.max()).astype(np.float32)
    return weight


def adaptive_thresholds(values: Values, classes: int, *, passes: Passes = IN_NUMPY) -> Thresholds:
    """The paper's adaptive decision making: M-means on the picture's difficulties, for M classes.

    The published program has two classes and starts its k-means with the single centroid 0.5, so that the first
    update leaves the mean and, for the empty cluster, 0: on normalised values, the mean and the minimum. That start
    would leave every further cluster empty, so more than two begin evenly spread from the minimum to the maximum,
    and a cluster that is empty stays where it is. Labels are those of the last pass, computed before its
    update. A picture with one difficulty everywhere, where that program stops with an error, is all light.

    Args:
        values: (n,) float32 difficulties.
        classes: M, 2 or more.
        passes: what works on all values.
    """
    spread = Distribution(values, passes)
    width = spread.high - spread.low
    if not width > 0:
        return (ALL_LIGHT,) * (classes - 1)
    if classes == 2:
        start = [spread.low, spread.total / spread.size]
    else:
        start = [spread.low + width * (j / (classes - 1)) for j in range(classes)]
    while True:
        visited, exact = _means(spread, start)
        if exact:
            return tuple(map(rounded_up, visited[-1]))
        # The inexact passes go close to where the exact ones will.
        spread.fetch_near(itertools.chain.from_iterable(visited))


def _means(spread: Distribution, start: list[float]) -> tuple[list[list[float]], bool]:
    """Thresholds of every iteration from these centroids on, and whether all sums were exact."""
    centres, visited, exact = start, [], True
    for _ in range(MAX_ITERATIONS - 1):
        thresholds = [(left + right) / 2 for left, right in itertools.pairwise(centres)]
        visited.append(thresholds)
        below = [spread.below(threshold) for threshold in thresholds]
        exact &= all(known for _, _, known in below)
        counts = [0, *(count for count, _, _ in below), spread.size]
        sums = [0.0, *(total for _, total, _ in below), spread.total]
        edges = [-math.inf, *thresholds, math.inf]
        updated = []
        for j, centre in enumerate(centres):
            n = counts[j + 1] - counts[j]
            mean = (sums[j + 1] - sums[j]) / n if n else centre
            # Rounding of the sums must not move a mean out of its cluster: thresholds would cross.
            updated.append(min(max(mean, edges[j]), edges[j + 1]))
        moved = math.fsum((new - old) ** 2 for new, old in zip(updated, centres, strict=True))
        centres = updated
        if moved / (spread.high - spread.low) ** 2 <= TOLERANCE:
            break
    return visited, exact


def cost_steps(upsamplers: Sequence[int]) -> tuple[int, ...]:
    """What each class costs above the next lighter one: M - 1 positive numbers, all that a budget needs to know.

    Only their ratios count, so with two classes the costs are of no matter.

    Args:
        upsamplers: costs per pixel, lightest class first.

    Raises:
        OptionError: more than two classes, and one costs no more than a lighter one.
    """
    if len(upsamplers) == 2:
        return (1,)
    steps = tuple(heavier - lighter for lighter, heavier in itertools.pairwise(upsamplers))
    if min(steps) <= 0:
        raise OptionError(
            "a budget needs classes that cost more and more, and the upsamplers of this network cost "
            f"{', '.join(map(str, upsamplers))} per pixel; use k or adaptive"
        )
    return steps


def budget_counts(n: int, budget: float, steps: Sequence[int]) -> tuple[int, ...]:
    """How many pixels are to reach each class but the lightest, so that a share of the adjustable cost is spent.

    Each step from a class to the next is given the same part of the budget. A step that all pixels can take for less
    leaves the rest to the others, and none is taken by more pixels than the one before it.

    Args:
        n: pixels.
        budget: 0 (all light) to 1 (all in the heaviest class).
        steps: of `cost_steps`.
    """
    # Where a step is cheaper than one before it, as many pixels take both.
    full = tuple(itertools.accumulate(steps, max))
    target, part = budget * sum(steps), 0.0
    for first, enough in enumerate(full):
        # All pixels take the steps before this one; the others share what is left.
        left = target - sum(steps[:first])
        part = left / sum(step / each for step, each in zip(steps[first:], full[first:], strict=True))
        if part <= enough:
            break
    return tuple(round(min(part / each, 1.0) * n) for each in full)


def budget_thresholds(
    values: Values, budget: float, *, steps: Sequence[int], passes: Passes = IN_NUMPY
) -> Thresholds:
    """Thresholds that spend a share of the adjustable cost, as nearly as ties allow.

    Args:
        values: (n,) float32 difficulties.
        budget: the share, 0 (all pixels light) to 1 (all in the heaviest class).
        steps: of `cost_steps`.
        passes: what works on all values.

    Returns:
        A threshold that as many pixels reach as `budget_counts` says, `ALL_LIGHT` for none. All pixels tied at a
        threshold go one way: the one that misses by less, the dearer if both are as near.
    """
    n = values.size
    counts = budget_counts(n, budget, steps)
    if not any(counts):
        return (ALL_LIGHT,) * len(steps)
    found = iter(Distribution(values, passes).at_ranks([n - count for count in counts if count]))
    thresholds = []
    for count in counts:
        if not count:
            thresholds.append(ALL_LIGHT)
            continue
        value, first, end = next(found)
        too_many, too_few = n - first - count, count - (n - end)
        thresholds.append(value if too_many <= too_few else np.nextafter(value, ALL_LIGHT))
    return tuple(thresholds)
