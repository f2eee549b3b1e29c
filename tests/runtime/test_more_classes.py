"""Three classes by the rules that look at the whole picture: the oracle's classes, and a budget that is kept."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data

from pcsr.model.checkpoint import load_checkpoint
from pcsr.model.reference import upscale
from pcsr.runtime import Upscaler
from pcsr.runtime.errors import OptionError

RULES: list[dict[str, Any]] = [{"adaptive": True}, *({"budget": b} for b in (0.0, 0.03, 0.2, 0.5, 0.9, 1.0))]
# Runtime and oracle sum in other orders.
NEAR = 1e-4


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.chelsea()[60:110, 120:187])


@pytest.fixture(scope="module")
def up(three_class_bundle: Path) -> Iterator[Upscaler]:
    with Upscaler.open(three_class_bundle, precision="fp32", threads=1) as opened:
        yield opened


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("refine", [False, True])
def test_runtime_and_oracle_agree(
    up: Upscaler, three_class_bundle: Path, photo: np.ndarray, rule: dict[str, Any], refine: bool
) -> None:
    network = load_checkpoint(three_class_bundle.parent / "random.safetensors")
    picture = photo / np.float32(255)
    expected = upscale(network, picture, scale=2.5, refine=refine, **rule)
    result = up(picture, scale=2.5, refine=refine, **rule)
    assert expected.probability is not None
    assert expected.thresholds is not None
    if "adaptive" in rule:  # a budget's may lie anywhere between the difficulties of two pixels
        assert result.decision.thresholds == pytest.approx(expected.thresholds, abs=NEAR)
    difficulty = expected.probability @ np.arange(3, dtype=np.float32)
    clear = np.abs(difficulty[..., None] - expected.thresholds).min(axis=2) > NEAR
    np.testing.assert_array_equal(result.class_map[clear], expected.class_map[clear])
    assert (result.class_map != expected.class_map).mean() < 1e-3
    used = sum(share > 0 for share in result.shares)
    assert used == 3 if "adaptive" in rule else used >= 1 + (0 < rule["budget"] < 1)
    same = result.class_map == expected.class_map
    if not refine:
        np.testing.assert_allclose(result.image[same], expected.image[same], rtol=0, atol=1e-4)
        assert same.all() == (result.cost.flops == expected.flops)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_threads_change_no_byte(
    up: Upscaler, three_class_bundle: Path, photo: np.ndarray, rule: dict[str, Any]
) -> None:
    with Upscaler.open(three_class_bundle, precision="fp32", threads=4) as many:
        a, b = (each(photo, scale=3, refine=True, **rule) for each in (up, many))
    assert a.decision == b.decision
    np.testing.assert_array_equal(a.class_map, b.class_map)
    np.testing.assert_array_equal(a.image, b.image)


def test_a_budget_is_the_share_of_the_adjustable_cost(up: Upscaler, photo: np.ndarray) -> None:
    budgets = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.99, 1.0)
    results = [up(photo, scale=2, budget=budget) for budget in budgets]
    cost = [result.cost.flops for result in results]
    assert results[0].shares == (1.0, 0.0, 0.0)
    assert results[-1].shares == (0.0, 0.0, 1.0)
    assert cost == sorted(cost)
    for before, after in itertools.pairwise(results):
        assert (before.class_map <= after.class_map).all()
    # No two pixels of a photograph are tied: what is missed is less than a pixel's worth.
    adjustable = cost[-1] - cost[0]
    pixel = adjustable / results[0].class_map.size
    for budget, spent in zip(budgets, cost, strict=True):
        assert spent - cost[0] == pytest.approx(budget * adjustable, abs=2 * pixel), budget


def test_one_difficulty_everywhere_is_all_light_under_adaptive(up: Upscaler) -> None:
    result = up(np.full((1, 1, 3), 100, np.uint8), scale=1, adaptive=True)
    assert result.shares == (1.0, 0.0, 0.0)
    assert result.decision.thresholds == (np.inf, np.inf)


def test_a_budget_among_costs_that_do_not_ascend_is_refused_before_anything_is_computed(
    tmp_path: Path, photo: np.ndarray, random_network: Any
) -> None:
    from pcsr.export.pipeline import export_bundle
    from pcsr.model.checkpoint import save_checkpoint

    save_checkpoint(random_network(upsamplers=((6,), (16, 16), (10, 10))), tmp_path / "odd.safetensors")
    export_bundle(tmp_path / "odd.safetensors", tmp_path / "bundle", precisions=("fp32",))
    seen: list[float] = []
    with Upscaler.open(tmp_path / "bundle", threads=1) as up:
        with pytest.raises(OptionError, match="cost more and more"):
            up(photo, scale=2, budget=0.5, progress=seen.append)
        assert seen == []
        assert min(up(photo, scale=2, adaptive=True).shares) > 0
