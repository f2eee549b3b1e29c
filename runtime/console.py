"""What the commands share: sizes and byte counts as text, logging, and exit statuses that scripts can trust.

Results go to stdout, everything else to stderr. An error that was foreseen is one line without a traceback.
"""

from __future__ import annotations

import enum
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import click

from pcsr.runtime.errors import (
    BackendError,
    BundleError,
    CalibrationError,
    CancelledError,
    CheckError,
    CheckpointError,
    ClosedError,
    OptionError,
    PcsrError,
)

__all__ = [
    "Status",
    "Terminated",
    "exit_on_error",
    "format_size",
    "parse_bytes",
    "parse_size",
    "progress_line",
    "start_logging",
    "status_of",
]

logger = logging.getLogger(__name__)


class Status(enum.IntEnum):
    """How a command ended."""

    DONE = 0
    FAILED = 1
    """At least one picture failed; all of them too."""
    NOT_TRIED = 2
    """Usage, bundle, backend: nothing was tried."""
    CHECK_FAILED = 3
    INTERRUPTED = 130
    TERMINATED = 143


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised as Ctrl-C is, so that the same clean-up runs."""


def status_of(error: BaseException) -> Status:
    """The exit status that stands for an error.

    Args:
        error: one of `pcsr.runtime.errors`, KeyboardInterrupt or MemoryError.
    """
    match error:
        case Terminated():
            return Status.TERMINATED
        case KeyboardInterrupt() | CancelledError():
            return Status.INTERRUPTED
        case CheckError():
            return Status.CHECK_FAILED
        case (
            OptionError()
            | BundleError()
            | CalibrationError()
            | CheckpointError()
            | BackendError()
            | ClosedError()
        ):
            return Status.NOT_TRIED
        case _:
            return Status.FAILED


@contextmanager
def exit_on_error(*, second_at_once: bool = False) -> Iterator[None]:
    """Turn foreseen errors, Ctrl-C and SIGTERM into one line on stderr and an exit status.

    Used as a decorator under `@click.command()`, so that tests reach it through click too, or as a context.

    Args:
        second_at_once: a second Ctrl-C or SIGTERM ends the process without cleaning up.

    Raises:
        SystemExit: with a `Status`, for an error of `pcsr.runtime.errors`, an interruption or lack of memory.
    """
    with _signals_as_interrupts(second_at_once=second_at_once):
        try:
            yield
        except PcsrError as error:
            _end(f"error: {error}", error)
        except KeyboardInterrupt as error:
            _end("interrupted", error)
        except OSError as error:
            # Of standard output, as a rule: a closed pipe, a full disk behind a redirection.
            _end(f"error: {error}", error)
        except MemoryError as error:
            _end("error: out of memory; give a lower memory limit or ask for a smaller output", error)


def _end(line: str, error: BaseException) -> NoReturn:
    # One line whatever the message holds: a script that reads stderr counts on it.
    click.echo(" ".join(line.split()), err=True)
    sys.exit(int(status_of(error)))


@contextmanager
def _signals_as_interrupts(*, second_at_once: bool) -> Iterator[None]:
    seen = False

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal seen
        terminated = number == signal.SIGTERM
        if seen and second_at_once:
            # Whatever takes so long must not be waited for. What it leaves has names that a later run sweeps.
            os._exit(Status.TERMINATED if terminated else Status.INTERRUPTED)
        seen = True
        raise Terminated if terminated else KeyboardInterrupt

    numbers = [signal.SIGTERM]
    # A shell's background job is started with Ctrl-C ignored, and stays so.
    if second_at_once and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        numbers.append(signal.SIGINT)
    try:
        before = {number: signal.signal(number, interrupt) for number in numbers}
    except ValueError:  # Only the main thread may set handlers; elsewhere the program around decides.
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def parse_size(text: str) -> tuple[int, int]:
    """(H, W) of a size written WIDTHxHEIGHT, like 3840x2160.

    Raises:
        OptionError: the text has another form, or a side of zero.
    """
    match = re.fullmatch(r"([0-9]{1,9})[xX×]([0-9]{1,9})", text.strip())
    if match is None or 0 in (int(match[1]), int(match[2])):
        raise OptionError(f"{text!r} is not a size; write WIDTHxHEIGHT in pixels, like 3840x2160")
    return int(match[2]), int(match[1])


def format_size(size: tuple[int, int]) -> str:
    """WIDTHxHEIGHT of (H, W)."""
    return f"{size[1]}x{size[0]}"


UNITS = {"": 1, "b": 1} | {
    unit: factor**power
    for power, letter in enumerate("kmgt", start=1)
    for unit, factor in ((letter, 1024), (f"{letter}ib", 1024), (f"{letter}b", 1000))
}


def parse_bytes(text: str) -> int:
    """Bytes of a text like 512MiB, 1.5GiB, 2GB (decimal), 2G (binary, as most tools have it) or 1073741824.

    Raises:
        OptionError: the text has another form, or says less than one byte.
    """
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)", text.strip())
    unit = UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or (count := round(float(match[1]) * unit)) < 1:
        raise OptionError(
            f"{text!r} is not an amount of memory; write it like 512MiB, 1GiB, 2GB or plain bytes"
        )
    return int(count)


class _StderrHandler(logging.Handler):
    """Plain lines on whatever stderr is at that moment: a progress bar and test runners replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        # Nobody reads any more: no reason for a night's work to fail.
        with suppress(OSError, ValueError):
            print(prefix + self.format(record), file=sys.stderr, flush=True)


def start_logging(*, verbose: bool = False) -> None:
    """Send the toolkit's log to stderr: information as it is, warnings marked; details when verbose."""
    # A result must not be lost because the terminal cannot show a letter of a file's name.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    toolkit = logging.getLogger("pcsr")
    toolkit.setLevel(logging.DEBUG if verbose else logging.INFO)
    if not any(isinstance(handler, _StderrHandler) for handler in toolkit.handlers):
        toolkit.addHandler(_StderrHandler())
    # libvips warns of things that are either errors here anyway or no concern of the user. Its debugging log never:
    # pyvips logs while it is formatting a record, and threads that do so with two handlers wait for one another.
    logging.getLogger("pyvips").setLevel(logging.WARNING if verbose else logging.CRITICAL)


# A line now and then where nobody watches: logs of batch jobs are kept.
PLAIN_INTERVAL_S = 10.0


@contextmanager
def progress_line(what: str) -> Iterator[Callable[[float], None]]:
    """Show how far one piece of work is: a bar on a terminal, a plain line every ten seconds elsewhere.

    Args:
        what: the work, like "upscaling".

    Yields:
        A function that takes the share of the work done, 0 to 1.
    """
    if not sys.stderr.isatty():
        yield _plain_progress(what)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def _plain_progress(what: str) -> Callable[[float], None]:
    last = time.monotonic()

    def show(share: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PLAIN_INTERVAL_S:
            last = now
            logger.info("%s: %.0f %%", what, 100 * share)

    return show
