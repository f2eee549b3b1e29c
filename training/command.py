"""What `pcsr-train` does once its options are read."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from pcsr.runtime.console import parse_bytes
from pcsr.runtime.errors import OptionError
from pcsr.runtime.machine import usable_cores
from pcsr.training.config import Config, load_config
from pcsr.training.estimate import describe
from pcsr.training.measure import seconds_per_step, steps_for_hours
from pcsr.training.networks import fresh_networks
from pcsr.training.pictures import Pool, load_pool
from pcsr.training.plan import PHASES, first_plan, steps_done
from pcsr.training.precision import choose_device, choose_precision
from pcsr.training.resume import Circumstances, as_plain, resumed
from pcsr.training.state import STATE, State, read_state, write_state
from pcsr.training.trainer import Progress, Run, train
from pcsr.training.watch import Log, Validation

__all__ = ["Request", "dry_run", "run_command"]

logger = logging.getLogger(__name__)

VALIDATION_SCALES = (2.0, 3.0, 4.0)
PLAIN_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The options of the command, as given."""

    config: Path
    data: str | None = None
    out: Path
    resume: bool = False
    device: str = "auto"
    settings: Sequence[str] = ()
    hours: float | None = None
    threads: int | None = None
    validate: str | None = None
    tensorboard: bool = False


def run_command(request: Request) -> Path:
    """Start or resume a run and train to the end of its plan.

    Returns:
        The written network.
    """
    config, pool, device, precision = _prepared(request)
    validation = Validation(Path(request.validate), scales=VALIDATION_SCALES) if request.validate else None
    here = Circumstances.here(pool, device, precision)
    if request.resume:
        state, tensors = read_state(request.out)
        state = resumed(
            state,
            config,
            here,
            steps_asked={
                name
                for name in PHASES
                if any(setting.startswith(f"phases.{name}.steps=") for setting in request.settings)
            },
            hours_asked=None if request.hours is None else partial(_steps, config, pool, device, precision),
        )
    else:
        if (request.out / STATE).exists():
            raise OptionError(
                f"{request.out} holds a run already; go on with --resume, or name another folder with --out"
            )
        tensors = fresh_networks(config)
        state = State(
            config=as_plain(config),
            data=pool.sha256,
            plan=first_plan(config.phases, _steps(config, pool, device, precision)),
            at=0,
            done=0,
            seconds=0.0,
            history=(here.event("started", 0),),
        )
        write_state(request.out, state, tensors)
    with Log(request.out, tensorboard=request.tensorboard) as log, _shown() as watch:
        log.write(
            "resumed" if request.resume else "started",
            sum(steps_done(state.plan, state.at, state.done)),
            {"plan": [asdict(stretch) for stretch in state.plan], "data": pool.sha256},
        )
        run = Run(config, pool, request.out, device, precision, validation, watch)
        return train(run, state, tensors, log)


def dry_run(request: Request) -> list[str]:
    """What the run would be, as lines for people; nothing is written."""
    config, pool, device, precision = _prepared(request)
    return describe(config, pool, device=device, precision=precision)


def _prepared(request: Request) -> tuple[Config, Pool, torch.device, torch.dtype]:
    config = load_config(request.config, request.settings, hours=request.hours)
    device = choose_device(request.device)
    torch.set_num_threads(request.threads or usable_cores())
    return config, _pool(config, request.data), device, choose_precision(config.precision, device)


def _pool(config: Config, folder: str | None) -> Pool:
    folder = folder if folder is not None else config.data.folder
    if not folder:
        raise OptionError(
            "name a folder of training pictures with --data, or data.folder in the configuration"
        )
    pool = load_pool(
        Path(folder),
        side=config.data.hr_side(config.data.scales[1]),
        memory=parse_bytes(config.data.memory),
    )
    logger.info("%d pictures, %.1f megapixels", len(pool.names), pool.pixels / 1e6)
    return pool


def _steps(config: Config, pool: Pool, device: torch.device, precision: torch.dtype) -> tuple[int, int]:
    if config.hours is None:
        return config.phases.backbone.steps or 0, config.phases.decision.steps or 0
    seconds = seconds_per_step(config, pool, device=device, precision=precision)
    steps = steps_for_hours(config.hours, config.decision_share, seconds)
    logger.info(
        "%.3g hours at %.0f and %.0f ms a step: %d steps of phase 0, %d of phase 1",
        config.hours,
        1000 * seconds[0],
        1000 * seconds[1],
        *steps,
    )
    return steps


@contextmanager
def _shown() -> Iterator[Callable[[Progress], None]]:
    """A bar with the time left on a terminal, a line a minute elsewhere."""
    if not sys.stderr.isatty():
        yield _plain_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TaskProgressColumn(),
        TimeRemainingColumn(table_column=Column(min_width=7)),  # or a narrow terminal hides it
        TextColumn("{task.fields[words]}"),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=600) as bars:
        tasks = [bars.add_task(name, total=None, start=False, words="") for name in PHASES]

        def show(progress: Progress) -> None:
            task = tasks[progress.phase]
            bars.start_task(task)
            bars.update(task, total=progress.steps, completed=progress.step, words=_in_words(progress))

        yield show


def _plain_lines() -> Callable[[Progress], None]:
    last = time.monotonic() - PLAIN_SECONDS

    def show(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            left = (progress.steps - progress.step) / progress.steps_per_second / 3600
            logger.info(
                "%s: step %d of %d, %s the network, %.2f hours left",
                PHASES[progress.phase],
                progress.step,
                progress.steps,
                _in_words(progress),
                left,
            )

    return show


def _in_words(progress: Progress) -> str:
    return (
        f"loss {progress.loss:.4g}, {progress.steps_per_second:.2f} steps/s, "
        f"{100 * progress.outside:.1f} % outside"
    )
