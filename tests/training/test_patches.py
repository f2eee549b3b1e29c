"""Patches against the runtime's bicubic and the oracle, which make the same things in another way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcsr.model.network import Network
from pcsr.model.reference import upscale
from pcsr.runtime import bicubic
from pcsr.training.config import DataConfig
from pcsr.training.losses import feature_rows, run_head
from pcsr.training.patches import Draw, draw, lenses, prepare
from pcsr.training.pictures import Pool, load_pool

CPU = torch.device("cpu")
MEAN, STD = torch.tensor([0.4, 0.5, 0.45]).view(3, 1, 1), torch.ones(3, 1, 1)


@pytest.fixture(scope="module")
def pool(photos: Path) -> Pool:
    return load_pool(photos, side=48, memory=1 << 20)


@settings(deadline=None, max_examples=25)
@given(h=st.integers(8, 40), scale=st.floats(1, 4.5), seed=st.integers(0, 99))
def test_lr_patches_are_the_runtimes_bicubic(h: int, scale: float, seed: int) -> None:
    H = round(h * scale)
    crops = np.random.default_rng(seed).integers(0, 256, (2, H, H, 3), dtype=np.uint8)
    batch = prepare(Draw(crops, np.zeros((2, 1), np.int64)), patch=h, mean=MEAN, std=STD)
    ours = (batch.lr + MEAN).permute(0, 2, 3, 1).numpy()
    for lr, crop in zip(ours, crops, strict=True):
        assert np.abs(lr - bicubic.resize(crop, size=(h, h))).max() <= 1e-5


@pytest.mark.parametrize("side", [24, 36, 37, 41, 48, 60, 96])
def test_a_hoisted_head_and_its_base_give_the_oracles_picture(
    side: int, pool: Pool, random_network: Callable[..., Network]
) -> None:
    network = random_network()
    crop = (
        pool.pictures[1][:side, :side] if side <= 90 else np.tile(pool.pictures[1], (2, 2, 1))[:side, :side]
    )
    everywhere = np.arange(side * side, dtype=np.int64)[None]
    batch = prepare(Draw(crop[None], everywhere), patch=24, mean=MEAN, std=STD)
    lr = (batch.lr + MEAN)[0].permute(1, 2, 0).contiguous().numpy()
    truth = crop / np.float32(255)
    with torch.no_grad():
        rows = feature_rows(network.backbone(batch.lr))
        for j, head in enumerate(network.heads):
            # What is missing to the truth, less what the head adds, is truth minus the finished picture.
            error = (batch.target - run_head(head, rows, batch)).view(side, side, 3).numpy()
            oracle = upscale(network, lr, size=(side, side), force_class=j).image
            assert np.abs(truth - error - oracle).max() <= 2e-5
        assert network.classifier is not None
        logits = run_head(network.classifier, rows, batch).softmax(dim=1).numpy()
    probability = upscale(network, lr, size=(side, side)).probability
    assert probability is not None
    assert np.abs(logits.reshape(side, side, -1) - probability).max() <= 1e-4


def test_a_step_draws_the_same_whenever_it_is_asked(pool: Pool) -> None:
    data = DataConfig(patch=12)
    first, other = (draw(pool, data, seed=1, step=7, batch=4, pixels=50) for _ in range(2))
    assert np.array_equal(first.crops, other.crops)
    assert np.array_equal(first.positions, other.positions)
    for seed, step in ((1, 8), (2, 7)):
        different = draw(pool, data, seed=seed, step=step, batch=4, pixels=50)
        assert different.crops.shape != first.crops.shape or not np.array_equal(different.crops, first.crops)


def test_pixels_of_a_patch_are_drawn_without_repetition(pool: Pool) -> None:
    drawn = draw(pool, DataConfig(patch=12, scales=(1.5, 1.5)), seed=0, step=0, batch=3, pixels=324)
    assert all(np.array_equal(np.sort(patch), np.arange(324)) for patch in drawn.positions)


def test_scales_flips_and_all_pictures_occur(photos: Path) -> None:
    ramp = np.arange(48 * 48, dtype=np.uint16).reshape(48, 48)
    picture = np.stack([ramp % 256, ramp // 256, ramp * 0], axis=2).astype(np.uint8)
    pool = Pool((picture, picture[::-1].copy()), ("a", "b"), "", ())
    data = DataConfig(patch=12, scales=(1.5, 4.0))
    sides, orientations = set(), set()
    for step in range(400):
        drawn = draw(pool, data, seed=0, step=step, batch=2, pixels=1)
        sides.add(drawn.crops.shape[1])
        values = drawn.crops[..., 0].astype(int) + 256 * drawn.crops[..., 1].astype(int)
        for patch in values:
            orientations.add((int(patch[0, 1] - patch[0, 0]), int(patch[1, 0] - patch[0, 0])))
    assert sides == set(range(18, 49))
    assert orientations == {(a, b) for a in (-1, 1) for b in (-48, 48)} | {
        (a, b) for a in (-48, 48) for b in (-1, 1)
    }


def test_matrices_of_a_size_are_made_once() -> None:
    assert lenses(16, 40, CPU) is lenses(16, 40, CPU)
