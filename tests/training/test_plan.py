"""The schedule: its shape, and what extending it does."""

from __future__ import annotations

from typing import Any

import pytest

from pcsr.runtime.errors import OptionError
from pcsr.training.config import PhasesConfig, parse_config
from pcsr.training.measure import steps_for_hours
from pcsr.training.plan import Stretch, extend, first_plan, rate_at, steps_ahead, steps_done


@pytest.fixture
def phases(tree: dict[str, Any]) -> PhasesConfig:
    return parse_config(tree, where="test").phases


def test_the_rate_rises_then_falls_along_a_cosine_to_nothing() -> None:
    stretch = Stretch(phase=0, steps=1010, rate=2.0, warmup=10)
    rates = [rate_at(stretch, step) for step in range(stretch.steps)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[0] == pytest.approx(2 / 11)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert (rates[10], rates[510]) == pytest.approx((2.0, 1.0))
    assert 0 < rates[-1] < 1e-4


def test_a_short_run_is_not_eaten_by_its_warm_up(phases: PhasesConfig) -> None:
    assert [stretch.warmup for stretch in first_plan(phases, (12, 8))] == [1, 0]


def test_a_phase_without_steps_is_left_out_and_may_be_trained_later(phases: PhasesConfig) -> None:
    plan = first_plan(phases, (0, 10))
    assert [(stretch.phase, stretch.steps) for stretch in plan] == [(1, 10)]
    longer = extend(plan, 0, 4, phases=phases, steps=(0, 20))
    assert [(stretch.phase, stretch.steps) for stretch in longer] == [(1, 4), (1, 20)]
    deeper = extend(plan, 1, 0, phases=phases, steps=(30, 10))
    assert [(stretch.phase, stretch.steps) for stretch in deeper] == [(1, 10), (0, 30), (1, 10)]
    assert deeper[1].rate == phases.backbone.rate  # phase 0 was not trained before


def test_extending_keeps_what_is_behind_and_starts_lower(phases: PhasesConfig) -> None:
    plan = extend(first_plan(phases, (100, 10)), 0, 40, phases=phases, steps=(200, 20))
    assert [(stretch.phase, stretch.steps) for stretch in plan] == [(0, 40), (0, 200), (1, 20)]
    assert plan[1].rate == phases.backbone.rate * phases.backbone.restart
    assert plan[2].rate == phases.decision.rate  # phase 1 was not trained before


def test_a_finished_run_goes_back_to_phase_0_and_trains_phase_1_again(phases: PhasesConfig) -> None:
    plan = extend(first_plan(phases, (100, 10)), 2, 0, phases=phases, steps=(50, 10))
    assert [(stretch.phase, stretch.steps) for stretch in plan] == [(0, 100), (1, 10), (0, 50), (1, 10)]
    assert plan[3].rate == phases.decision.rate * phases.decision.restart
    assert steps_done(plan, 2, 5) == (105, 10)
    assert steps_ahead(plan, 2, 5) == (45, 10)


@pytest.mark.parametrize(
    ("at", "done", "steps", "message"),
    [
        (0, 5, (10, 0), "plan steps for phases.decision too"),
        (2, 0, (0, 0), "nothing is left"),
        (0, 0, (0, 10), "needs a trained backbone"),
    ],
)
def test_a_plan_without_sense_is_refused(
    phases: PhasesConfig, at: int, done: int, steps: tuple[int, int], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        extend(first_plan(phases, (100, 10)), at, done, phases=phases, steps=steps)


def test_hours_become_steps_at_the_measured_speed() -> None:
    assert steps_for_hours(2.0, 0.25, (0.5, 0.1)) == (10_800, 18_000)
