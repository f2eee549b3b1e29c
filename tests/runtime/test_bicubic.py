"""MATLAB's bicubic, against the published pictures and a plain computation of its definition."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pcsr.runtime.bicubic import resize
from pcsr.runtime.errors import OptionError, PictureError
from pcsr.runtime.pictures import read_picture
from pcsr.validation.metrics import psnr


@pytest.fixture(scope="module")
def truth(shared: Path) -> NDArray[np.uint8]:
    return read_picture(shared / "reference" / "official" / "HR.png").pixels[..., :3]


@pytest.fixture(scope="module")
def lr_8bit(shared: Path) -> NDArray[np.uint8]:
    return read_picture(shared / "reference" / "official" / "LRx4.png").pixels[..., :3]


def test_shrinking_gives_the_published_lr_picture(
    truth: NDArray[np.uint8], lr_8bit: NDArray[np.uint8]
) -> None:
    levels = np.rint(np.clip(resize(truth, scale=0.25) * np.float32(255), 0, 255)).astype(int)
    difference = np.abs(levels - lr_8bit)
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= 2


def test_enlarging_gives_the_known_psnr(truth: NDArray[np.uint8], lr_8bit: NDArray[np.uint8]) -> None:
    unrounded = resize(truth, scale=0.25)
    assert psnr(resize(unrounded, scale=4), truth, shave=4) == pytest.approx(27.0842, abs=5e-5)
    assert psnr(resize(lr_8bit, scale=4), truth, shave=4) == pytest.approx(27.0823, abs=5e-5)


def test_unrounded_lr_overshoots_as_the_authors_does(truth: NDArray[np.uint8]) -> None:
    unrounded = resize(truth, scale=0.25)
    assert unrounded.min() == pytest.approx(-0.039, abs=5e-4)
    assert unrounded.max() == pytest.approx(1.025, abs=5e-4)


def keys(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0


def plainly(line: list[float], n: int) -> list[float]:
    """One line resized to n samples, sample by sample."""
    scale = n / len(line)
    stretch = min(scale, 1.0)
    out = []
    for i in range(n):
        centre = (i + 0.5) / scale - 0.5
        reach = math.ceil(2 / stretch) + 1
        total = weights = 0.0
        for j in range(math.floor(centre) - reach, math.ceil(centre) + reach + 1):
            mirrored = j
            while not 0 <= mirrored < len(line):
                mirrored = -1 - mirrored if mirrored < 0 else 2 * len(line) - 1 - mirrored
            weight = keys((centre - j) * stretch)
            total += weight * line[mirrored]
            weights += weight
        out.append(total / weights)
    return out


@settings(max_examples=40, deadline=None)
@given(
    h=st.integers(1, 23),
    w=st.integers(1, 23),
    H=st.integers(1, 40),
    W=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_any_size_to_any_size_follows_the_definition(h: int, w: int, H: int, W: int, seed: int) -> None:
    picture = np.random.default_rng(seed).uniform(-0.5, 1.5, (h, w)).astype(np.float32)
    tall = np.array([plainly(column.tolist(), H) for column in picture.T]).T
    wide = np.array([plainly(row.tolist(), W) for row in tall])
    np.testing.assert_allclose(resize(picture, size=(H, W)), wide, atol=2e-6)


def test_many_blocks_of_rows_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.random.default_rng(1).random((50, 41, 3), dtype=np.float32)
    whole = [resize(picture, scale=scale) for scale in (0.3, 2.5)]
    monkeypatch.setattr("pcsr.runtime.bicubic.BLOCK", 700)
    for scale, expected in zip((0.3, 2.5), whole, strict=True):
        np.testing.assert_array_equal(resize(picture, scale=scale), expected)


def test_a_quadratic_is_reproduced_away_from_the_borders() -> None:
    # What a = -0.5 is for; no other value does it.
    y, x = np.mgrid[0:20, 0:30].astype(np.float64)
    Y, X = ((np.arange(60) + 0.5) / 3 - 0.5)[:, None], ((np.arange(90) + 0.5) / 3 - 0.5)[None]
    large = resize((0.01 * y * y + 0.02 * x * x).astype(np.float32), scale=3)
    expected = 0.01 * Y * Y + 0.02 * X * X
    np.testing.assert_allclose(large[9:-9, 9:-9], expected[9:-9, 9:-9], atol=2e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integer_pixels_become_zero_to_one(dtype: type[np.unsignedinteger]) -> None:
    white = np.full((9, 7, 3), np.iinfo(dtype).max, dtype)
    np.testing.assert_array_equal(resize(white, scale=0.5), np.ones((5, 4, 3), np.float32))


def test_scale_one_changes_nothing() -> None:
    picture = np.random.default_rng(2).random((13, 8, 4), dtype=np.float32)
    np.testing.assert_array_equal(resize(picture, scale=1), picture)


@pytest.mark.parametrize(
    ("side", "scale", "expected"), [(10, 0.25, 3), (12, 0.25, 3), (9, 1 / 3, 3), (30, 0.1, 3), (7, 1.5, 11)]
)
def test_a_scaled_side_is_rounded_up_as_in_matlab(side: int, scale: float, expected: int) -> None:
    assert resize(np.zeros((side, side), np.float32), scale=scale).shape == (expected, expected)


def test_channels_stay_apart_and_grey_stays_flat() -> None:
    picture = np.random.default_rng(3).random((11, 17, 3), dtype=np.float32)
    together = resize(picture, size=(7, 40))
    for c in range(3):
        np.testing.assert_array_equal(resize(picture[..., c], size=(7, 40)), together[..., c])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 2, "size": (4, 4)},
        {"scale": 0},
        {"scale": -1},
        {"scale": math.nan},
        {"scale": math.inf},
        {"scale": 1e9},
        {"size": (0, 4)},
        {"size": (4, 1 << 21)},
        {"size": (4, 4, 3)},
    ],
)
def test_a_meaningless_size_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        resize(np.zeros((4, 4), np.float32), **options)


@pytest.mark.parametrize(
    "picture",
    [np.zeros(4, np.float32), np.zeros((0, 4), np.float32), np.zeros((4, 4)), np.zeros((4, 4), np.int32)],
)
def test_what_is_no_picture_is_refused(picture: NDArray[np.generic]) -> None:
    with pytest.raises(PictureError):
        resize(picture, scale=2)
