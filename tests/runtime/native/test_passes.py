"""Passes over difficulties in native kernels, against NumPy: to the last bit, or bins would not agree."""

from collections.abc import Iterator

import numpy as np
import pytest

from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.distribution import BINS, Bins, NumpyPasses
from pcsr.runtime.native import open_native
from pcsr.runtime.native.library import NativePasses
from pcsr.runtime.shipped import shipped_bundle

# Around a vector's lanes, around what is worked on at once, and more than one span.
SIZES = [1, 2, 7, 8, 15, 16, 17, 33, 255, 256, 257, 600_003]


@pytest.fixture
def passes(instruction_set: str) -> Iterator[NativePasses]:
    backend = open_native(read_bundle(shipped_bundle("fsrcnn")), precision="fp32", threads=3)
    yield backend.passes(map)
    backend.close()


def difficulties(kind: str, n: int) -> np.ndarray:
    rng = np.random.default_rng(n)
    values = {
        "spread": lambda: rng.random(n),
        "three classes, most alike": lambda: np.where(rng.random(n) < 0.5, 0.125, 2 * rng.beta(0.3, 0.9, n)),
        "constant": lambda: np.full(n, 0.3),
        # Some float32 numbers apart, where a bin's edge lies between neighbours.
        "narrow": lambda: 0.5 + rng.integers(0, 9, n) * 2.0**-24,
    }
    return values[kind]().astype(np.float32)


@pytest.mark.parametrize("kind", ["spread", "three classes, most alike", "constant", "narrow"])
@pytest.mark.parametrize("n", SIZES)
def test_passes_are_those_of_numpy(passes: NativePasses, kind: str, n: int) -> None:
    # Not aligned to anything but a float.
    values = difficulties(kind, n + 1)[1:]
    plain = NumpyPasses()
    low, high = plain.extremes(values)
    assert passes.extremes(values) == (low, high)
    bins = Bins(low, BINS / (high - low) if high > low else 0.0)
    counts, sums = passes.histogram(values, bins)
    expected = plain.histogram(values, bins)
    assert (counts.dtype, sums.dtype) == tuple(each.dtype for each in expected)
    np.testing.assert_array_equal(counts, expected[0])
    # Spans are the same, and the order within: so is every rounding.
    np.testing.assert_array_equal(sums, expected[1])
    assert counts.sum() == n
    for share in (0.0, 0.05, 1.0):
        wanted = np.random.default_rng(0).random(BINS) < share
        size = int(counts[wanted].sum())
        found = passes.inside(values, bins, wanted, size)
        np.testing.assert_array_equal(np.sort(found), np.sort(plain.inside(values, bins, wanted, size)))
    assert found.size == n


def test_threads_change_no_sum(instruction_set: str) -> None:
    values = difficulties("three classes, most alike", 2_000_001)
    bins = Bins(0.0, BINS / 2)
    made = []
    for threads in (1, 2, 5):
        backend = open_native(read_bundle(shipped_bundle("fsrcnn")), precision="fp32", threads=threads)
        made.append([each.tobytes() for each in backend.passes(map).histogram(values, bins)])
        backend.close()
    assert made[0] == made[1] == made[2]


def test_a_value_lies_in_the_bin_that_a_threshold_of_its_value_has() -> None:
    values = np.sort(difficulties("spread", 5000))
    bins = Bins(float(values[0]), BINS / float(values[-1] - values[0]))
    counts, _ = NumpyPasses().histogram(values, bins)
    np.testing.assert_array_equal(counts, np.bincount([bins.of(value) for value in values], minlength=BINS))
