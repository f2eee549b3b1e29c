"""The comparison of rules for a budget: sums over ordered pixels are what routing them gives."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from budget_rules import RULES, Pixels, equal_parts, one_apart, same_share, split

from pcsr.model.checkpoint import save_checkpoint
from pcsr.model.network import Network
from pcsr.runtime.decision import budget_thresholds, classes_by_thresholds

ROOT = Path(__file__).resolve().parent.parent.parent
COSTS = (1_000, 3_000, 12_000)


@pytest.fixture
def drawn() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    probability = random.dirichlet((0.5, 0.4, 0.4), 500)
    return probability, random.random((500, 3)) * [1.0, 0.6, 0.4]


def test_the_rule_in_use_is_that_of_the_runtime(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    probability, error = drawn
    values = (probability @ np.arange(3.0)).astype(np.float32)
    classes = classes_by_thresholds(values, budget_thresholds(values, 0.3, steps=(2_000, 9_000)))
    expected = np.take_along_axis(error, classes[:, None].astype(np.intp), axis=1).mean()
    assert equal_parts(Pixels(probability, error, COSTS), 0.3) == pytest.approx(expected)


@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_all_rules_agree_at_both_ends(drawn: tuple[np.ndarray, np.ndarray], budget: float) -> None:
    pixels = Pixels(*drawn, COSTS)
    expected = drawn[1][:, 2 if budget else 0].mean()
    assert [rule(pixels, budget) for rule in RULES.values()] == pytest.approx([expected] * len(RULES))


def test_a_split_spends_the_budget_on_the_middle_class_or_on_all_pixels(
    drawn: tuple[np.ndarray, np.ndarray],
) -> None:
    probability, error = drawn
    order = np.argsort(-(probability @ np.arange(3.0)), kind="stable")
    pixels = Pixels(probability, error, COSTS)
    # 0.1 of 11,000: half of it buys 0.275 of the pixels the middle class, the other half 0.05 the heavy one.
    classes = np.zeros(500, dtype=int)
    classes[order[: round(0.325 * 500)]] = 1
    classes[order[:25]] = 2
    expected = np.take_along_axis(error, classes[:, None], axis=1).mean()
    assert split(pixels, 0.1, 0.5) == pytest.approx(expected)
    # All of 0.5 would buy more than all pixels the middle class: the rest goes to the heavy one.
    assert split(pixels, 0.5, 1.0) == pytest.approx(pixels.mean(500, round((0.5 - 2 / 11) / (9 / 11) * 500)))


def test_the_same_share_goes_on_from_each_class(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    pixels = Pixels(*drawn, COSTS)
    # 2 q + 9 q^2 is 3.25 at q = 0.5, and 11 is all of the budget.
    assert same_share(pixels, 3.25 / 11) == pytest.approx(pixels.mean(250, 125))


def test_thresholds_one_apart_are_found(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    probability, error = drawn
    pixels = Pixels(probability, error, COSTS)
    found = one_apart(pixels, 0.4)
    possible = []
    for first in np.linspace(-1, 2, 3001):
        counts = [int((pixels.difficulty >= first + j).sum()) for j in (0, 1)]
        if 2 * counts[0] + 9 * counts[1] <= 0.4 * 11 * 500:
            possible.append(pixels.mean(*counts))
    assert found == pytest.approx(possible[0], rel=0.01)


def test_the_command_prints_a_table_for_each_scale(
    shared: Path, tmp_path: Path, random_network: Callable[..., Network]
) -> None:
    save_checkpoint(random_network(upsamplers=((4,), (6, 6), (9, 9))), tmp_path / "three.safetensors")
    command = [sys.executable, "scripts/budget_rules.py", tmp_path / "three.safetensors", "-s", "4"]
    command += ["--data", shared / "data" / "test" / "Set5", "--limit", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 + len(RULES)
    assert lines[0].startswith("| ×4 | 0.05 |")
    best = lines[-1].split("|")[2:-1]
    assert all(
        float(value) <= float(limit) + 0.02
        for value, limit in zip(lines[2].split("|")[2:-1], best, strict=True)
    )
