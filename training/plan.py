"""The schedule: stretches of steps, each with its own warm-up and its own cosine down to nothing.

A run is planned whole before it starts. What is added later is a further stretch that starts where the last
one stands; so the list of stretches is at once the plan and the history of the schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pcsr.runtime.errors import OptionError
from pcsr.training.config import PhasesConfig

__all__ = [
    "PHASES",
    "Stretch",
    "extend",
    "first_plan",
    "rate_at",
    "steps_ahead",
    "steps_before",
    "steps_done",
]

PHASES = ("backbone", "decision")
"""Names of the phases 0 and 1."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps of one phase under one cosine.

    Attributes:
        phase: 0 (backbone and heavy upsampler) or 1 (lighter upsamplers and classifier).
        steps: how many.
        rate: learning rate at the top, for the batch of the configuration.
        warmup: steps of the rise.
    """

    phase: int
    steps: int
    rate: float
    warmup: int


def rate_at(stretch: Stretch, step: int) -> float:
    """Learning rate of a step of a stretch, counted from 0: a linear rise, then a cosine to 0."""
    if step < stretch.warmup:
        return stretch.rate * (step + 1) / (stretch.warmup + 1)
    share = (step - stretch.warmup) / max(1, stretch.steps - stretch.warmup)
    return stretch.rate * 0.5 * (1 + math.cos(math.pi * share))


def first_plan(phases: PhasesConfig, steps: tuple[int, int]) -> tuple[Stretch, ...]:
    """Both phases from their beginning.

    Args:
        phases: rates and warm-ups.
        steps: of each phase; 0 of phase 0 leaves it out, for a network that has been through it.
    """
    return tuple(_stretch(phases, phase, steps[phase], 1.0) for phase in (0, 1) if steps[phase] > 0)


def extend(
    plan: tuple[Stretch, ...], at: int, done: int, *, phases: PhasesConfig, steps: tuple[int, int]
) -> tuple[Stretch, ...]:
    """A new plan from where a run stands: what is behind stays, what was ahead is replaced.

    Args:
        plan: the old one.
        at: the stretch that the run is in; `len(plan)` after the last.
        done: steps of that stretch that are done.
        phases: rates and warm-ups; a phase that was trained before starts at `restart` of its rate.
        steps: of each phase from now on; 0 leaves a phase out.

    Raises:
        OptionError: nothing is left to do, or phase 1 would be left out after more of phase 0.
    """
    behind = [*plan[:at], replace(plan[at], steps=done)] if at < len(plan) and done else [*plan[:at]]
    if steps[0] > 0 and steps[1] <= 0:
        raise OptionError(
            "more of phase 0 changes what phase 1 was trained on; plan steps for phases.decision too"
        )
    if steps[0] <= 0 and steps[1] <= 0:
        raise OptionError("nothing is left to train; ask for more steps, or hours, than are done")
    ahead = [
        _stretch(phases, phase, steps[phase], phases[phase].restart if _seen(behind, phase) else 1.0)
        for phase in (0, 1)
        if steps[phase] > 0
    ]
    if _seen([*plan], 0) and not _seen(behind, 0) and ahead[0].phase != 0:
        raise OptionError("phase 1 needs a trained backbone; plan steps for phases.backbone first")
    return (*behind, *ahead)


def steps_before(plan: tuple[Stretch, ...], at: int, *, phase: int | None = None) -> int:
    """Steps of the stretches before one, of all phases or of one."""
    return sum(stretch.steps for stretch in plan[:at] if phase is None or stretch.phase == phase)


def steps_done(plan: tuple[Stretch, ...], at: int, done: int) -> tuple[int, int]:
    """Steps of each phase that are behind a run that has done some of the stretch it is in."""
    here = plan[at].phase if at < len(plan) else None
    backbone, decision = (
        steps_before(plan, at, phase=phase) + (done if phase == here else 0) for phase in (0, 1)
    )
    return backbone, decision


def steps_ahead(plan: tuple[Stretch, ...], at: int, done: int) -> tuple[int, int]:
    """Steps of each phase that are still to come."""
    backbone, decision = (
        steps_before(plan, len(plan), phase=phase) - behind
        for phase, behind in enumerate(steps_done(plan, at, done))
    )
    return backbone, decision


def _seen(stretches: list[Stretch], phase: int) -> bool:
    return any(stretch.phase == phase for stretch in stretches)


def _stretch(phases: PhasesConfig, phase: int, steps: int, share: float) -> Stretch:
    # A warm-up longer than a tenth would eat a short run.
    return Stretch(
        phase=phase,
        steps=steps,
        rate=phases[phase].rate * share,
        warmup=min(phases[phase].warmup, steps // 10),
    )
