"""How a run over many pictures goes, told to people and programs: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import click

from pcsr.runtime.errors import PcsrError
from pcsr.runtime.folder.plan import Job, Plan
from pcsr.runtime.folder.run import Outcome, Run
from pcsr.runtime.options import Options
from pcsr.runtime.report import failure, line, name_of, report

__all__ = ["Teller"]

logger = logging.getLogger(__name__)

# A line now and then where nobody watches: logs of batch jobs are kept.
PLAIN_INTERVAL_S = 10.0


class Teller:
    """Tells of each picture when it is through, how far all of them are, and at the end what failed."""

    def __init__(self, plan: Plan, options: Options, *, threads: int, as_json: bool) -> None:
        self._plan, self._options, self._threads, self._as_json = plan, options, threads, as_json
        self._failures: list[tuple[Job, str]] = []
        self._through, self._computed, self._pixels = 0, 0, 0
        # Of pictures that are being computed, or wait for their encoders.
        self._shares: dict[str, float] = {}
        self._started = self._told = time.monotonic()
        self._bar: Any = None

    def working(self, job: Job, share: float) -> None:
        """See `Listener`."""
        self._shares[job.name] = share
        self._show()

    def done(self, outcome: Outcome) -> None:
        """See `Listener`."""
        self._through += 1
        job = outcome.job
        self._shares.pop(job.name, None)
        if outcome.result is not None:
            self._computed += 1
            h, w = outcome.result.size
            self._pixels += h * w * len(outcome.result.pages)
            if self._as_json:
                self._print(report(outcome.result, self._options, threads=self._threads))
            else:
                click.echo(line(outcome.result))
        elif outcome.error is not None:
            message = _message(outcome.error)
            self._failures.append((job, message))
            logger.error(
                "%s", message if name_of(job.source) in message else f"{name_of(job.source)}: {message}"
            )
            if self._as_json:
                self._print(failure(job.source, job.target, message))
        elif self._as_json:
            self._print(
                {"input": name_of(job.source), "output": name_of(job.target), "skipped": "done before"}
            )
        self._show()

    def summary(self, run: Run) -> None:
        """The last lines: how many, how fast, what was passed over and what failed."""
        seconds = time.monotonic() - self._started
        counts = [
            f"{count} {'done before' if name == 'skipped' else name}"
            for name, count in run.counts.items()
            if count
        ]
        rate = f"; {self._pixels / 1e6:.1f} megapixels in {_clock(seconds)}" if self._pixels else ""
        logger.info("%d pictures: %s%s", len(self._plan.jobs), ", ".join(counts), rate)
        if self._plan.skipped:
            passed = ", ".join(f"{count} {reason}" for reason, count in sorted(self._plan.skipped.items()))
            logger.info("passed over in folders: %s", passed)
        for job, message in self._failures:
            name = name_of(job.source)
            logger.error("failed: %s: %s", name, message.removeprefix(name).lstrip(": "))
        if run.stopped is not None:
            logger.error(
                "stopped, because no other picture could be written either: %s", _message(run.stopped)
            )

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
                # Where results go to the same terminal they appear above the bar; else they go where they belong.
                redirect_stdout=sys.stdout.isatty(),
            )
            self._task = self._bar.add_task("", total=len(self._plan.jobs), rate="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self) -> None:
        now, under_way = time.monotonic(), sum(self._shares.values())
        rate = self._pixels / 1e6 / max(now - self._started, 1e-9)
        text = f"{rate:.1f} megapixels/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=self._through + under_way, rate=text)
        elif now - self._told >= PLAIN_INTERVAL_S:
            self._told = now
            to_compute = len(self._plan.jobs) - self._through + self._computed
            share = (self._computed + under_way) / max(to_compute, 1)
            left = f", {_clock((now - self._started) * (1 / share - 1))} left" if share > 0 else ""
            logger.info("%d of %d pictures, %s%s", self._through, len(self._plan.jobs), text, left)

    @staticmethod
    def _print(found: Mapping[str, object]) -> None:
        click.echo(json.dumps(found))


def _message(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return "out of memory; give a lower memory limit or ask for a smaller output"
    return (
        text
        if isinstance(error, PcsrError)
        else f"unforeseen {type(error).__name__}: {text} (--verbose shows where)"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
