"""A training run from its first step, or the one it stopped at, to the network."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from pcsr.model.checkpoint import save_checkpoint
from pcsr.model.network import Network
from pcsr.runtime.errors import CheckpointError, TrainingError
from pcsr.training.config import Config
from pcsr.training.flat import update_scalars
from pcsr.training.interrupt import asked_to_stop
from pcsr.training.meters import ADVICE, Clock, Losses
from pcsr.training.networks import network_of, provenance
from pcsr.training.patches import Batch, Draw, draw, prepare
from pcsr.training.pictures import Pool
from pcsr.training.plan import PHASES, Stretch, rate_at, steps_before
from pcsr.training.state import State, write_state
from pcsr.training.steps import PhaseStep
from pcsr.training.watch import Log, Validation

__all__ = ["RESULT", "Progress", "Run", "train"]

logger = logging.getLogger(__name__)

RESULT = "network.safetensors"
LOG_SECONDS = 10.0
GPU_LOOK = 50
"""Steps between two looks at the loss on a GPU; each look waits for it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is, for whoever watches.

    Attributes:
        phase: 0 or 1.
        step: steps of the stretch that are done.
        steps: of the stretch.
        loss: mean of the last ones.
        steps_per_second: lately.
        outside: share of the time outside the network, lately.
    """

    phase: int
    step: int
    steps: int
    loss: float
    steps_per_second: float
    outside: float


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Everything a run needs.

    Attributes:
        config: checked.
        pool: training pictures.
        folder: where state, log and network go.
        device: to train on.
        precision: of the network's passes.
        validation: pictures to measure on, or None.
        watch: called every few seconds.
    """

    config: Config
    pool: Pool
    folder: Path
    device: torch.device
    precision: torch.dtype
    validation: Validation | None = None
    watch: Callable[[Progress], None] = lambda progress: None


def train(run: Run, state: State, tensors: dict[str, Tensor], log: Log) -> Path:
    """Train to the end of the plan.

    Args:
        run: what and where.
        state: a new one, or one that was read.
        tensors: of that state.
        log: open.

    Returns:
        The written network.

    Raises:
        TrainingError: a loss that is no number or diverges, or a disk that is full; the last good state stays.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the state is written first.
    """
    raw, average = (
        network_of(run.config.network.spec(), tensors, kind).to(run.device) for kind in ("raw", "average")
    )
    moments = {name: value for name, value in tensors.items() if name.startswith(("first/", "second/"))}
    with asked_to_stop() as stop:
        while not state.finished:
            stretch = state.plan[state.at]
            config = run.config.phases[stretch.phase]
            step = PhaseStep(
                stretch.phase,
                raw,
                average,
                moments=moments,
                precision=run.precision,
                clip=config.clip,
                error=run.config.phases.decision.error,
            )
            phase = _Phase(run, state, stretch, step, raw, average, moments, log)
            state = phase.train(stop)
            moments |= {name: value.detach().cpu() for name, value in step.flat.moments().items()}
            if stop:
                raise stop[0]
    result = run.folder / RESULT
    try:
        save_checkpoint(average.cpu(), result, metadata=provenance(state))
    except CheckpointError as error:
        raise TrainingError(f"{error}; the state is kept: make room and use --resume") from error
    log.write(
        "finished",
        steps_before(state.plan, state.at),
        {"network": result.name, "hours": round(state.seconds / 3600, 3)},
    )
    return result


class _Phase:
    """One stretch, from where the state stands."""

    def __init__(
        self,
        run: Run,
        state: State,
        stretch: Stretch,
        step: PhaseStep,
        raw: Network,
        average: Network,
        moments: dict[str, Tensor],
        log: Log,
    ) -> None:
        self._run, self._state, self._stretch, self._step = run, state, stretch, step
        self._raw, self._average, self._moments, self._log = raw, average, moments, log
        self._config = run.config.phases[stretch.phase]
        on_gpu = run.device.type == "cuda"
        self._batch = self._config.gpu_batch if on_gpu else self._config.batch
        # Adam's noise falls with the square root of the batch.
        self._rate_factor = math.sqrt(self._batch / self._config.batch)
        self._before = steps_before(state.plan, state.at)
        self._updates_before = steps_before(state.plan, state.at, phase=stretch.phase)
        spec = run.config.network
        self._mean, self._std = (
            torch.tensor(triple, device=run.device).view(3, 1, 1) for triple in (spec.mean, spec.std)
        )
        self._losses = Losses(look_every=GPU_LOOK if on_gpu else 1)

    def train(self, stop: list[BaseException]) -> State:
        run, stretch = self._run, self._stretch
        saved = validated = time.monotonic()
        clock = Clock()
        seconds, done = self._state.seconds, self._state.done
        for done, drawn in self._draws(self._state.done):
            clock.lap("outside")
            scalars = update_scalars(
                rate=rate_at(stretch, done) * self._rate_factor,
                updates=self._updates_before + done,
                ema=self._config.ema,
            )
            batch = self._prepare(drawn)
            clock.lap("outside")
            loss, norm = self._step(batch, scalars)
            self._losses.add(loss, norm, self._before + done)
            clock.lap("network")
            now = time.monotonic()
            if clock.total >= LOG_SECONDS:
                self._tell(done + 1, scalars[0], clock)
                seconds += clock.total
                clock.start_over()
            last = done + 1 == stretch.steps
            if last or stop or now - saved >= 60 * run.config.save_minutes:
                seconds += clock.total
                self._state = self._save(done + 1, seconds, last=last)
                clock.start_over()
                saved = time.monotonic()
                if stop:
                    break
            if run.validation is not None and (last or now - validated >= 60 * run.config.validate_minutes):
                self._validate(done + 1)
                validated = time.monotonic()
                clock.start_over()
        return self._state

    def _draws(self, done: int) -> Iterator[tuple[int, Draw]]:
        """The draws of the remaining steps; beside a GPU they are made ahead of it."""
        steps = range(done, self._stretch.steps)
        if self._run.device.type == "cpu":
            yield from ((step, self._draw(step)) for step in steps)
            return
        ahead: list[Future[Draw]] = []
        with ThreadPoolExecutor(max_workers=4) as workers:
            for step in steps:
                while len(ahead) < 16 and step + len(ahead) < self._stretch.steps:
                    ahead.append(workers.submit(self._draw, step + len(ahead)))
                yield step, ahead.pop(0).result()

    def _draw(self, step: int) -> Draw:
        run = self._run
        return draw(
            run.pool,
            run.config.data,
            seed=run.config.seed,
            step=self._before + step,
            batch=self._batch,
            pixels=self._config.pixels,
        )

    def _prepare(self, drawn: Draw) -> Batch:
        return prepare(drawn, patch=self._run.config.data.patch, mean=self._mean, std=self._std)

    def _tell(self, done: int, rate: float, clock: Clock) -> None:
        speed = clock.laps / clock.total
        outside = clock.seconds["outside"] / clock.total
        loss = self._losses.mean()
        self._log.write(
            "train",
            self._before + done,
            {
                "phase": PHASES[self._stretch.phase],
                "loss": loss,
                "rate": rate,
                "steps_per_second": round(speed, 3),
                "outside": round(outside, 4),
            },
        )
        self._run.watch(Progress(self._stretch.phase, done, self._stretch.steps, loss, speed, outside))

    def _save(self, done: int, seconds: float, *, last: bool) -> State:
        self._losses.look()
        if not self._step.flat.is_finite():
            raise TrainingError(f"weights are no longer finite at step {self._before + done}; {ADVICE}")
        state = self._state
        where = {"at": state.at + 1, "done": 0} if last else {"done": done}
        state = msgspec.structs.replace(state, seconds=seconds, **where)
        write_state(self._run.folder, state, self._tensors())
        return state

    def _tensors(self) -> dict[str, Tensor]:
        kept = {f"raw/{name}": value for name, value in self._raw.state_dict().items()}
        kept |= {f"average/{name}": value for name, value in self._average.state_dict().items()}
        return kept | self._moments | self._step.flat.moments()

    def _validate(self, done: int) -> None:
        assert self._run.validation is not None
        found = self._run.validation.measure(self._average, decided=self._stretch.phase == 1)
        self._log.write("validation", self._before + done, {"phase": PHASES[self._stretch.phase], **found})
        logger.info("step %d: %s", self._before + done, _in_words(found))


def _in_words(found: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {100 * value:.1f} %" if name.startswith("share") else f"{name} {value:.2f} dB"
        for name, value in found.items()
    )
