"""Histograms that stream, and what each observer makes of them."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcsr.calibration.observers import (
    OBSERVERS,
    Entropy,
    Histogram,
    MeanSquare,
    MinMax,
    Percentile,
    observer_named,
)
from pcsr.runtime.errors import CheckError, OptionError


def histogram(*parts: np.ndarray) -> Histogram:
    found = Histogram()
    for part in parts:
        found.add(np.asarray(part, dtype=np.float32).reshape(-1, 1), "x")
    return found


@settings(deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=60), st.randoms())
def test_the_order_of_values_and_their_parts_do_not_matter(values: list[float], chance: object) -> None:
    whole = histogram(np.array(values))
    shuffled = list(values)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    parts = histogram(*(np.array([value]) for value in shuffled))
    assert (parts.counts == whole.counts).all()
    assert (parts.low, parts.high, parts.top) == (whole.low, whole.high, whole.top)
    assert whole.counts.sum() == len(values)


def test_a_histogram_has_the_same_size_after_any_number_of_values() -> None:
    found = Histogram()
    sizes = set()
    for power in range(-6, 12):
        found.add(np.full((1000, 3), 2.0**power, dtype=np.float32), "x")
        sizes.add(found.counts.nbytes)
    assert len(sizes) == 1
    assert found.values == 18_000
    assert found.means == pytest.approx([sum(2.0**p for p in range(-6, 12)) / 18] * 3)


def test_a_saved_histogram_goes_on_as_if_nothing_had_been() -> None:
    rng = np.random.default_rng(1)
    first, second = (rng.normal(size=(500, 4)).astype(np.float32) * scale for scale in (1, 30))
    straight = Histogram()
    straight.add(first, "x")
    saved = msgspec.msgpack.decode(msgspec.msgpack.encode(straight.state()))
    restored = Histogram.restored(saved)
    for each in (straight, restored):
        each.add(second, "x")
    assert restored.state() == straight.state()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_an_error_that_names_the_tensor(value: float) -> None:
    with pytest.raises(CheckError, match="tensor body/relu1 has values that are infinite"):
        Histogram().add(np.array([[1.0], [value]], dtype=np.float32), "body/relu1")


@pytest.mark.parametrize("name", OBSERVERS)
def test_nothing_but_zeros_has_the_range_zero(name: str) -> None:
    assert observer_named(name, 99.9).largest(histogram(np.zeros(100))) == 0


@pytest.mark.parametrize("name", OBSERVERS)
def test_a_range_is_positive_and_no_larger_than_what_was_seen(name: str) -> None:
    rng = np.random.default_rng(2)
    found = histogram(rng.normal(size=20_000), [17.0])
    largest = observer_named(name, 99.9).largest(found)
    assert 1 < largest <= 17


def test_minmax_is_the_largest_magnitude_of_either_sign() -> None:
    assert MinMax().largest(histogram([1, -7.25, 3])) == 7.25


def test_the_percentile_is_that_of_numpy_within_a_bin() -> None:
    values = np.abs(np.random.default_rng(3).normal(size=100_000)).astype(np.float32)
    found = histogram(values)
    for percent in (50, 90, 99):
        assert Percentile(percent).largest(found) == pytest.approx(
            np.percentile(values, percent), abs=3 * found.top / len(found.counts)
        )


@pytest.mark.parametrize("percent", [0, 49.9, 100.1, math.nan])
def test_a_percentile_that_is_none_is_refused(percent: float) -> None:
    with pytest.raises(OptionError, match="between 50 and 100"):
        Percentile(percent)


@pytest.mark.parametrize(("sign", "levels"), [(1, 255), (-1, 127)])
def test_the_mean_square_is_least_where_it_says(sign: int, levels: int) -> None:
    rng = np.random.default_rng(4)
    values = np.abs(rng.standard_t(3, size=200_000)).astype(np.float32)
    values[0] *= sign
    values = np.clip(values, -40, 40)

    def error(largest: float) -> float:
        step = largest / levels
        rounded = np.clip(np.rint(values / step), -levels, levels) * step
        return float(np.mean((values - rounded) ** 2))

    found = MeanSquare().largest(histogram(values))
    # Neighbours on the grid of candidates are 2.5 % apart, and bins make the errors inexact.
    assert error(found) < 1.05 * min(error(share * values.max()) for share in np.geomspace(0.05, 1, 60))


def test_entropy_keeps_an_even_distribution_whole_and_cuts_a_lone_outlier() -> None:
    rng = np.random.default_rng(5)
    assert Entropy().largest(histogram(rng.uniform(0, 1, 100_000))) > 0.95
    lonely = histogram(rng.uniform(0, 1, 100_000), [50.0])
    assert Entropy().largest(lonely) < 10


def test_an_unknown_observer_is_refused_with_those_there_are() -> None:
    with pytest.raises(OptionError, match="'mean'; choose from minmax, percentile, entropy, mse"):
        observer_named("mean", 99)
