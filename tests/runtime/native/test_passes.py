"""Passes over difficulties in native kernels, against NumPy: to the last bit, or bins would not agree."""

import numpy as np
import pytest

from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.distribution import BINS, Bins, NumpyPasses
from pcsr.runtime.native import open_native
from pcsr.runtime.native.backend import NativeBackend
from pcsr.runtime.shipped import shipped_bundle

# Around a vector's lanes, around what is worked on at once, and many.
SIZES = [1, 2, 7, 8, 15, 16, 17, 33, 255, 256, 257, 100_003]


@pytest.fixture
def backend(instruction_set: str) -> NativeBackend:
    return open_native(read_bundle(shipped_bundle("fsrcnn")), precision="fp32", threads=1)


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
def test_passes_are_those_of_numpy(backend: NativeBackend, kind: str, n: int) -> None:
    # Not aligned to anything but a float.
    values = difficulties(kind, n + 1)[1:]
    plain = NumpyPasses()
    low, high = plain.extremes(values)
    assert backend.passes.extremes(values) == (low, high)
    bins = Bins(low, BINS / (high - low) if high > low else 0.0)
    expected, found = plain.histogram(values, bins), backend.passes.histogram(values, bins)
    for one, other in zip(expected, found, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert found[0].sum() == n
    for share in (0.0, 0.05, 1.0):
        wanted = np.random.default_rng(0).random(BINS) < share
        inside = backend.passes.inside(values, bins, wanted)
        np.testing.assert_array_equal(inside, plain.inside(values, bins, wanted))
    assert inside.size == n


def test_a_value_lies_in_the_bin_that_a_threshold_of_its_value_has() -> None:
    values = np.sort(difficulties("spread", 5000))
    bins = Bins(float(values[0]), BINS / float(values[-1] - values[0]))
    counts, _ = NumpyPasses().histogram(values, bins)
    np.testing.assert_array_equal(counts, np.bincount([bins.of(value) for value in values], minlength=BINS))
