"""Thresholds are those of arithmetic on the sorted values, whatever the histogram does."""

import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pcsr.runtime import distribution
from pcsr.runtime.decision import (
    ALL_LIGHT,
    adaptive_thresholds,
    argmax_weights,
    budget_counts,
    budget_thresholds,
    classes_by_thresholds,
    classes_by_weights,
    cost_steps,
    difficulty,
    threshold_by_k,
)
from pcsr.runtime.distribution import NumpyPasses
from pcsr.runtime.errors import OptionError

# A few units in the last place apart: what falls into one bin.
HALF = [0.5, float(np.nextafter(np.float32(0.5), np.float32(1)))]

probabilities = hnp.arrays(
    np.float32,
    st.integers(1, 400),
    elements=st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.25, *HALF, 0.75])),
)


def arrays_of(elements: st.SearchStrategy[float], largest: int) -> st.SearchStrategy[np.ndarray]:
    """Values with many ties and values without."""
    few = st.lists(elements, min_size=1, max_size=4).flatmap(
        lambda some: hnp.arrays(np.float32, st.integers(1, largest), elements=st.sampled_from(some))
    )
    return st.one_of(few, hnp.arrays(np.float32, st.integers(1, largest), elements=elements))


@st.composite
def difficulties(draw: st.DrawFn, *, exact_sums: bool) -> tuple[int, np.ndarray]:
    """Number of classes M, and difficulties from 0 to M - 1."""
    classes = draw(st.integers(2, 5))
    top = classes - 1
    if exact_sums:
        # Sums of such values are exact in any order, so that results must be equal to the last bit.
        return classes, draw(arrays_of(st.integers(0, top << 20).map(lambda n: n / (1 << 20)), 300))
    elements = st.one_of(
        st.floats(0, top, width=32), st.sampled_from([0.0, *HALF, 1.0, 1.0 + 2**-23, float(top)])
    )
    return classes, draw(arrays_of(elements, 60))


def ascending_costs(classes: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, 1 << 32), min_size=classes, max_size=classes, unique=True).map(sorted)


def means_in_full_passes(values: np.ndarray, classes: int) -> list[float]:
    """The rule, plainly: labels of the last pass before its update."""
    d = values.astype(np.float64)
    width = d.max() - d.min()
    centres = [d.min() + width * (j / (classes - 1)) for j in range(classes)]
    if classes == 2:
        centres = [d.min(), d.sum() / d.size]
    for _ in range(19):
        thresholds = [(a + b) / 2 for a, b in itertools.pairwise(centres)]
        labels = sum((d >= threshold).astype(int) for threshold in thresholds)
        members = [d[labels == j] for j in range(classes)]
        means = [own.sum() / own.size if own.size else c for own, c in zip(members, centres, strict=True)]
        moved = sum((new - old) ** 2 for new, old in zip(means, centres, strict=True))
        centres = means
        if moved / width**2 <= 1e-4:
            break
    return thresholds


@given(probabilities)
def test_adaptive_is_two_means_on_all_values(values: np.ndarray) -> None:
    (threshold,) = adaptive_thresholds(values, 2)
    if values.min() == values.max():
        assert threshold == ALL_LIGHT
        return
    (at,) = means_in_full_passes(values, 2)
    # Where the histogram's sums, taken in another order, round differently, only values at the threshold move.
    differs = (values >= threshold) != (values >= at)
    assert np.abs(values[differs].astype(np.float64) - at).max(initial=0) < 1e-9
    assert abs(float(threshold) - at) < 1e-6


@given(difficulties(exact_sums=True))
def test_adaptive_is_means_on_all_values_for_any_number_of_classes(drawn: tuple[int, np.ndarray]) -> None:
    classes, values = drawn
    thresholds = adaptive_thresholds(values, classes)
    if values.min() == values.max():
        assert thresholds == (ALL_LIGHT,) * (classes - 1)
        return
    expected = means_in_full_passes(values, classes)
    for threshold, at in zip(thresholds, expected, strict=True):
        assert np.nextafter(threshold, np.float32(-np.inf)) < at <= threshold
    assert list(thresholds) == sorted(thresholds)
    labels = sum((values.astype(np.float64) >= at).astype(int) for at in expected)
    np.testing.assert_array_equal(classes_by_thresholds(values, thresholds), labels)


def test_an_empty_cluster_stays_where_it_began() -> None:
    values = np.array([0.0] * 7 + [2.0] * 3, dtype=np.float32)
    assert adaptive_thresholds(values, 3) == (0.5, 1.5)
    assert adaptive_thresholds(values, 5) == (0.25, 0.75, 1.25, 1.75)


def test_a_value_on_a_midpoint_belongs_to_the_upper_cluster() -> None:
    # Nothing moves by more than the tolerance in the first pass, whose thresholds are 0.5 and 1.5.
    values = np.array([0.0] * 100 + [0.5] + [1.0] * 100 + [1.5] + [2.0] * 100, dtype=np.float32)
    thresholds = adaptive_thresholds(values, 3)
    assert thresholds == (0.5, 1.5)
    assert np.bincount(classes_by_thresholds(values, thresholds)).tolist() == [100, 101, 101]


@given(st.integers(1, 1 << 26), st.floats(0, 1), st.integers(2, 5).flatmap(ascending_costs))
def test_each_step_gets_the_same_part_of_the_budget(n: int, budget: float, costs: list[int]) -> None:
    steps = cost_steps(costs)
    counts = budget_counts(n, budget, steps)
    assert list(counts) == sorted(counts, reverse=True)
    # All of the budget is spent, but for half a pixel in each step.
    spent = sum(step * count for step, count in zip(steps, counts, strict=True))
    assert abs(spent - Fraction(budget) * sum(steps) * n) <= Fraction(51, 100) * sum(steps)
    # A step that not all pixels take cost as much as any other, or as many pixels take it as a dearer one before.
    parts = [step * Fraction(count, n) for step, count in zip(steps, counts, strict=True)]
    for j, (step, count) in enumerate(zip(steps, counts, strict=True)):
        slack = Fraction(51, 100) * max(steps) * 2 / n
        if count < n - 1 and step == max(steps[: j + 1]):
            assert parts[j] >= max(parts) - slack
        elif count < n - 1:
            assert abs(count - counts[j - 1]) <= 1


@pytest.mark.parametrize(
    ("budget", "steps", "expected"),
    [
        (0.37, (1,), (3700,)),
        (0.4, (1, 3), (8000, 2667)),  # 0.8 of a pixel's 4 for each step
        (0.5, (1, 3), (10_000, 3333)),  # all take the first step, the other 1 goes to the second
        (0.5, (3, 1), (5000, 5000)),  # none takes the second step alone
        (0.25, (2, 2, 4), (3333, 3333, 1667)),
        (1.0, (1, 3), (10_000, 10_000)),
        (0.0, (1, 3), (0, 0)),
    ],
)
def test_a_budget_among_classes_by_hand(
    budget: float, steps: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert budget_counts(10_000, budget, steps) == expected


@given(difficulties(exact_sums=False), st.floats(0, 1), st.data())
def test_each_class_is_reached_by_as_many_pixels_as_ties_allow(
    drawn: tuple[int, np.ndarray], budget: float, data: st.DataObject
) -> None:
    classes, values = drawn
    steps = cost_steps(data.draw(ascending_costs(classes)))
    thresholds = budget_thresholds(values, budget, steps=steps)
    assert list(thresholds) == sorted(thresholds)
    got = classes_by_thresholds(values, thresholds)
    possible = {0} | {int((values >= value).sum()) for value in values}
    for j, count in enumerate(budget_counts(values.size, budget, steps), start=1):
        assert (got >= j).sum() == min(possible, key=lambda reached: (abs(reached - count), -reached))


@given(probabilities, st.floats(0, 1))
def test_a_budget_for_two_classes_is_a_rank(values: np.ndarray, budget: float) -> None:
    heavy = round(budget * values.size)
    (threshold,) = budget_thresholds(values, budget, steps=cost_steps((9, 7)))
    if heavy == 0:
        assert threshold == ALL_LIGHT
        return
    at = np.sort(values)[values.size - heavy]
    too_many, too_few = (values >= at).sum() - heavy, heavy - (values > at).sum()
    assert threshold == (at if too_many <= too_few else np.nextafter(at, np.float32(np.inf)))


@given(difficulties(exact_sums=False), st.lists(st.floats(0, 1), min_size=2, max_size=2), st.data())
def test_a_greater_budget_lowers_no_pixels_class(
    drawn: tuple[int, np.ndarray], budgets: list[float], data: st.DataObject
) -> None:
    classes, values = drawn
    steps = cost_steps(data.draw(ascending_costs(classes)))
    less, more = (
        classes_by_thresholds(values, budget_thresholds(values, budget, steps=steps))
        for budget in sorted(budgets)
    )
    assert (less <= more).all()


@given(difficulties(exact_sums=False))
def test_the_ends_of_the_budget_are_all_light_and_all_heaviest(drawn: tuple[int, np.ndarray]) -> None:
    classes, values = drawn
    steps = tuple(range(1, classes))
    assert budget_thresholds(values, 0, steps=steps) == (ALL_LIGHT,) * (classes - 1)
    assert (classes_by_thresholds(values, budget_thresholds(values, 1, steps=steps)) == classes - 1).all()


def test_tiny_difficulties_are_spent_on_too() -> None:
    values = np.array([0.0, 1e-45, 1e-30, 1e-20, 1e-10], dtype=np.float32)
    spent = [
        classes_by_thresholds(values, budget_thresholds(values, share / 5, steps=(1,))).sum()
        for share in range(6)
    ]
    assert spent == [0, 1, 2, 3, 4, 5]


def test_a_budget_needs_costs_that_ascend() -> None:
    assert cost_steps((10, 15, 40)) == (5, 25)
    for costs in ((10, 10, 40), (10, 40, 30)):
        with pytest.raises(OptionError, match="cost more and more"):
            cost_steps(costs)
    # Of two classes only the number of heavy pixels counts.
    assert cost_steps((40, 10)) == (1,)


def many(classes: int) -> np.ndarray:
    """More values than one span; most of them in few bins, as a trained classifier makes them."""
    random = np.random.default_rng(0)
    values = (classes - 1) * random.beta(0.5, 1.5, 300_001)
    values[random.random(values.size) < 0.4] = 1e-3
    return values.astype(np.float32)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_spans_and_threads_change_nothing(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values, steps = many(classes), tuple(range(1, classes))
    adaptive, budget = (
        adaptive_thresholds(values, classes),
        budget_thresholds(values, 0.3, steps=steps),
    )
    np.testing.assert_array_equal(
        classes_by_thresholds(values, adaptive),
        sum((values >= at).astype(int) for at in means_in_full_passes(values, classes)),
    )
    monkeypatch.setattr(distribution, "SPAN", 1000)
    one = adaptive_thresholds(values, classes)
    with ThreadPoolExecutor(3) as pool:
        spread = NumpyPasses(pool.map)
        assert adaptive_thresholds(values, classes, passes=spread) == one
        assert budget_thresholds(values, 0.3, steps=steps, passes=spread) == budget
    # Sums of other spans round otherwise.
    assert one == pytest.approx(adaptive, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_passes_over_the_values_are_few(classes: int) -> None:
    passes = 0

    def counted(work: Callable[[np.ndarray], Any], spans: Iterable[np.ndarray]) -> Iterable[Any]:
        nonlocal passes
        passes += 1
        return map(work, spans)

    values = many(classes)
    for solve in (
        lambda: adaptive_thresholds(values, classes, passes=NumpyPasses(counted)),
        *(
            lambda b=b: budget_thresholds(
                values, b, steps=tuple(range(1, classes)), passes=NumpyPasses(counted)
            )
            for b in (0.01, 0.3, 0.7, 0.99)
        ),
    ):
        passes = 0
        solve()
        # Extremes, histogram, values of some bins; with many classes of some more.
        assert passes <= 5


def test_difficulty_is_the_expected_class_rounded_at_every_step() -> None:
    probability = np.random.default_rng(1).dirichlet(np.ones(4), (3, 5)).astype(np.float32)
    probability = probability.transpose(0, 2, 1)
    found = difficulty(probability)
    assert (found.shape, found.dtype) == ((3, 5), np.float32)
    f = np.float32
    for y, x in np.ndindex(3, 5):
        _, one, two, three = probability[y, :, x]
        assert found[y, x] == f(f(one + f(f(2) * two)) + f(f(3) * three))
    np.testing.assert_array_equal(difficulty(probability[:, 1:2]), probability[:, 1])
    np.testing.assert_array_equal(difficulty(probability[:, :2]), probability[:, 1])


costs = st.tuples(st.floats(0.05, 0.45), st.floats(0.55, 0.95))


@given(st.floats(-40, 40), costs, hnp.arrays(np.float32, 50, elements=st.floats(0, 1, width=32)))
def test_the_threshold_of_k_is_the_papers_comparison(
    k: float, cost: tuple[float, float], p1: np.ndarray
) -> None:
    threshold = threshold_by_k(k, tuple(map(np.float32, cost)))
    c0, c1 = (float(np.float32(c)) for c in cost)
    exact = p1.astype(np.float64)
    heavy = exact / c1**k > (1 - exact) / c0**k
    differs = heavy != (p1 >= threshold)
    assert np.abs(exact[differs] - float(threshold)).max(initial=0) < 1e-6


def test_equal_scores_stay_light() -> None:
    assert threshold_by_k(0.0, (np.float32(0.3), np.float32(0.7))) > 0.5


@given(st.floats(-1000, 1000))
def test_no_k_overflows(k: float) -> None:
    three = (np.float32(0.1), np.float32(0.3), np.float32(0.6))
    probability = np.full((1, 3, 1), 1 / 3, dtype=np.float32)
    expected = 0 if k >= 0 else 2
    # Closer to 0, float32 weights tie and the lightest class wins.
    assert abs(k) < 1e-3 or classes_by_weights(probability, argmax_weights(k, three))[0, 0] == expected
    threshold_by_k(k, three[:2])
