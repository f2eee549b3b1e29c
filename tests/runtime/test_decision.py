"""Thresholds are those of arithmetic on the sorted values, whatever the histogram does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pcsr.runtime import decision
from pcsr.runtime.decision import (
    ALL_LIGHT,
    adaptive_threshold,
    budget_threshold,
    classes_by_k,
    threshold_by_k,
)

probabilities = hnp.arrays(
    np.float32,
    st.integers(1, 400),
    elements=st.one_of(
        st.floats(0, 1, width=32),
        # Ties and values a few units in the last place apart: what falls into one bin.
        st.sampled_from([0.25, 0.5, float(np.nextafter(np.float32(0.5), np.float32(1))), 0.75]),
    ),
)


def two_means_in_full_passes(values: np.ndarray) -> tuple[np.ndarray, float]:
    """The published rule, plainly: start from (mean, min), labels of the last pass before its update."""
    d = values.astype(np.float64)
    upper, lower, width = d.mean(), d.min(), d.max() - d.min()
    for _ in range(19):
        threshold = (upper + lower) / 2
        heavy = d >= threshold
        moved = (d[heavy].mean() - upper) ** 2 + (d[~heavy].mean() - lower) ** 2
        upper, lower = d[heavy].mean(), d[~heavy].mean()
        if moved / width**2 <= 1e-4:
            break
    return heavy, threshold


@given(probabilities)
def test_adaptive_is_two_means_on_all_values(values: np.ndarray) -> None:
    threshold = adaptive_threshold(values)
    if values.min() == values.max():
        assert threshold == ALL_LIGHT
        return
    heavy, at = two_means_in_full_passes(values)
    # Where the histogram's sums, taken in another order, round differently, only values at the threshold move.
    differs = (values >= threshold) != heavy
    assert np.abs(values[differs].astype(np.float64) - at).max(initial=0) < 1e-9
    assert abs(float(threshold) - at) < 1e-6


def test_adaptive_on_more_values_than_one_span_and_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    values = np.random.default_rng(0).beta(0.5, 1.5, 300_001).astype(np.float32)
    whole = adaptive_threshold(values)
    monkeypatch.setattr(decision, "SPAN", 1000)
    with ThreadPoolExecutor(3) as pool:
        assert adaptive_threshold(values, pool.map) == pytest.approx(float(whole), abs=1e-7)
        assert budget_threshold(values, 0.3, pool.map) == budget_threshold(values, 0.3)
    heavy, _ = two_means_in_full_passes(values)
    assert ((values >= whole) == heavy).all()


@given(probabilities, st.floats(0, 1))
def test_budget_is_met_as_nearly_as_ties_allow(values: np.ndarray, budget: float) -> None:
    threshold = budget_threshold(values, budget)
    wanted = round(budget * values.size)
    got = int((values >= threshold).sum())
    possible = {int((values >= t).sum()) for t in np.unique(values)} | {0}
    assert abs(got - wanted) == min(abs(count - wanted) for count in possible)


def test_the_ends_of_the_budget_are_all_light_and_all_heavy() -> None:
    values = np.array([0.0, 0.5, 1.0], dtype=np.float32)
    assert budget_threshold(values, 0) == ALL_LIGHT
    assert budget_threshold(values, 1) <= 0


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
    assert abs(k) < 1e-3 or classes_by_k(probability, k, three)[0, 0] == expected
    threshold_by_k(k, three[:2])
