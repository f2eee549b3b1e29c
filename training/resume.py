"""Going on with a run: exactly as it was, or under a new plan that is written into its history."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Set
from typing import Any

import msgspec
import torch

from pcsr.runtime.errors import OptionError
from pcsr.training.config import Config, as_json
from pcsr.training.pictures import Pool
from pcsr.training.plan import PHASES, extend, steps_ahead, steps_done
from pcsr.training.state import State

__all__ = ["Circumstances", "as_plain", "resumed"]

NEVER_CHANGED = ("network", "seed", "init")
PLANNING = ("steps", "rate", "warmup", "restart")
"""Keys of a phase that its schedule is made of; everything else in it decides what a step does."""


class Circumstances(msgspec.Struct, frozen=True, kw_only=True):
    """What beside the configuration can move a result: the last bits of it, or more."""

    device: str
    precision: str
    pytorch: str
    threads: int
    data: str
    pictures: int

    @classmethod
    def here(cls, pool: Pool, device: torch.device, precision: torch.dtype) -> Circumstances:
        """Those of this process."""
        return cls(
            device=device.type,
            precision=str(precision).removeprefix("torch."),
            pytorch=str(torch.__version__),
            threads=torch.get_num_threads(),
            data=pool.sha256,
            pictures=len(pool.names),
        )

    def event(self, kind: str, step: int) -> dict[str, Any]:
        """A line of the history."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return {"event": kind, "step": step, "time": now, **msgspec.to_builtins(self)}


def as_plain(config: Config) -> dict[str, Any]:
    """The configuration as JSON holds it, to be kept in a state and compared with another."""
    plain: dict[str, Any] = json.loads(as_json(config))
    # The folder may have moved; which pictures they are is told by their hash.
    plain["data"]["folder"] = None
    return plain


def resumed(
    state: State,
    config: Config,
    here: Circumstances,
    *,
    steps_asked: Set[str],
    hours_asked: Callable[[], tuple[int, int]] | None,
) -> State:
    """The state to go on from.

    Without a change in steps, rates or hours, the plan of the state is followed to the letter. With one, a new
    stretch starts where the run stands, and says so in the history.

    Args:
        state: as it was read.
        config: as it is given now.
        here: circumstances of this process.
        steps_asked: phases whose number of steps is asked for by this call, not only by a file.
        hours_asked: steps of both phases that fit into the hours that this call asks for; None if it does not.

    Raises:
        OptionError: the configuration is of another run, or changes what a step does under the same plan.
    """
    before, now = state.config, as_plain(config)
    for key in NEVER_CHANGED:
        if before[key] != now[key]:
            raise OptionError(
                f"the run was started with another {key}; give the same configuration, or start a run of its own "
                "with --out"
            )
    replan = hours_asked is not None or any(
        _planned_anew(before["phases"][name], now["phases"][name], name in steps_asked) for name in PHASES
    )
    step = sum(steps_done(state.plan, state.at, state.done))
    if not replan:
        if state.data != here.data or _step_of(before) != _step_of(now):
            raise OptionError(
                "pictures, or keys that decide what a step does, are not those that the run was started with, so "
                "it cannot go on exactly; give the same, or plan anew with --hours or more steps"
            )
        last = state.history[-1]
        moved = any(last.get(key) != value for key, value in msgspec.to_builtins(here).items())
        history = (*state.history, here.event("moved", step)) if moved else state.history
        return msgspec.structs.replace(state, history=history)
    if hours_asked is None:
        steps = _steps(state, config, steps_asked)
        done = steps_done(state.plan, state.at, state.done)
        for phase, name in enumerate(PHASES):
            if name not in steps_asked:
                now["phases"][name]["steps"] = done[phase] + steps[phase]
    else:
        steps = hours_asked()
    return msgspec.structs.replace(
        state,
        config=now,
        data=here.data,
        plan=extend(state.plan, state.at, state.done, phases=config.phases, steps=steps),
        at=state.at + (state.done > 0),
        done=0,
        history=(*state.history, here.event("extended", step)),
    )


def _planned_anew(old: dict[str, Any], new: dict[str, Any], steps_asked: bool) -> bool:
    # Steps count only where this call asks for them: a file's do not undo a run that was started with others
    # by --set, or in hours.
    if steps_asked and old["steps"] != new["steps"]:
        return True
    return any(old[key] != new[key] for key in PLANNING if key != "steps")


def _steps(state: State, config: Config, asked: Set[str]) -> tuple[int, int]:
    """Steps from here on: what is missing to the totals asked for, or what was planned anyway."""
    done = steps_done(state.plan, state.at, state.done)
    ahead = steps_ahead(state.plan, state.at, state.done)
    backbone, decision = (
        max(0, (config.phases[phase].steps or 0) - done[phase]) if name in asked else ahead[phase]
        for phase, name in enumerate(PHASES)
    )
    if backbone:
        # More of the backbone moves what phase 1 stands on: it is trained once more, whole.
        whole = config.phases.decision.steps if "decision" in asked else ahead[1] or _last(state, phase=1)
        decision = whole or 0
    return backbone, decision


def _last(state: State, *, phase: int) -> int:
    """Steps of the last stretch of a phase."""
    return next((stretch.steps for stretch in reversed(state.plan) if stretch.phase == phase), 0)


def _step_of(plain: dict[str, Any]) -> Any:
    """Everything in a configuration that decides what a step does."""
    phases = [
        {key: value for key, value in phase.items() if key not in PLANNING}
        for phase in plain["phases"].values()
    ]
    return phases, plain["data"]["scales"], plain["data"]["patch"]
