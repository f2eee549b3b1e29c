"""Indices and coordinates are PyTorch's, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from pcsr.runtime.errors import OptionError
from pcsr.runtime.geometry import axis, output_size, scale_key


def test_nearest_indices_are_those_of_the_published_program(shared: Path) -> None:
    tables = np.load(shared / "reference" / "golden" / "nearest_index.npz")
    assert len(tables.files) >= 26
    for key in tables.files:
        lr, hr = map(int, key.split("_"))
        np.testing.assert_array_equal(axis(lr, hr).nearest, tables[key], err_msg=key)


sides = st.integers(1, 300)


@given(lr=sides, scale=st.floats(1, 8))
def test_nearest_neighbours_are_those_of_grid_sample(lr: int, scale: float) -> None:
    hr = round(lr * scale)
    rows = axis(lr, hr)
    # torch's vectorised loops fuse the product; its scalar remainder may not: 8 rows make a full vector.
    values = torch.arange(lr, dtype=torch.float32).expand(8, lr)[None, None]
    x = torch.from_numpy(_centres(hr))
    grid = torch.stack([x.expand(8, hr), torch.zeros(8, hr)], dim=-1)[None]
    sampled = functional.grid_sample(values, grid, mode="nearest", padding_mode="border", align_corners=False)
    # A tie where torch's path for this width rounds without fusing is the only freedom.
    differs = np.flatnonzero(sampled[0, 0, 0].numpy() != rows.nearest)
    position = ((_centres(hr).astype(np.float64) + 1) * lr - 1) / 2
    assert np.abs(position[differs] % 1 - 0.5).max(initial=0) < 1e-4
    assert differs.size <= max(1, hr // 100)


def _centres(n: int) -> np.ndarray:
    """The coordinates written as LIIF does, in torch."""
    r = 1 / n
    return (-1 + r + (2 * r) * torch.arange(n).float()).numpy()


@given(lr=sides, scale=st.floats(1, 8))
def test_the_bilinear_pair_surrounds_each_output_pixel(lr: int, scale: float) -> None:
    a = axis(lr, round(lr * scale))
    exact = np.clip((np.arange(a.hr) + 0.5) * lr / a.hr - 0.5, 0, lr - 1)
    np.testing.assert_allclose(a.low + a.weight * (a.high - a.low), exact, atol=2e-4)
    assert ((a.weight >= 0) & (a.weight <= 1)).all()


@given(lr=sides, scale=st.floats(1, 8))
def test_nearest_never_decreases_and_reaches_every_input_pixel(lr: int, scale: float) -> None:
    a = axis(lr, round(lr * scale))
    assert set(np.diff(a.nearest)) <= {0, 1}
    assert (a.nearest[0], a.nearest[-1]) == (0, lr - 1)
    assert np.abs(a.relative).max() <= 1.001


@pytest.mark.parametrize(
    ("side", "scale", "expected"), [(31, 1.5, 46), (15, 2.3, 34), (21, 2.5, 52), (15, 2.5, 38)]
)
def test_output_sizes_round_half_to_even(side: int, scale: float, expected: int) -> None:
    assert output_size(side, side, scale, None) == (expected, expected)


def test_a_smaller_output_is_refused_in_width_by_height() -> None:
    with pytest.raises(OptionError, match="30x12 is smaller than the picture, 20x16"):
        output_size(16, 20, None, (12, 30))


def test_an_output_too_large_to_address_is_refused() -> None:
    with pytest.raises(OptionError, match="1048576"):
        output_size(1000, 10, 2000.0, None)


def test_costs_are_compared_at_the_scale_asked_for_or_the_mean_of_both_axes() -> None:
    assert scale_key(17, 31, None, (50, 77)) == 2.7
    assert scale_key(17, 31, 2.3, (39, 71)) == 2.3
