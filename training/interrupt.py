"""Ctrl-C and SIGTERM between steps and not within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pcsr.runtime.console import Terminated

__all__ = ["asked_to_stop"]


@contextmanager
def asked_to_stop() -> Iterator[list[BaseException]]:
    """A list that Ctrl-C and SIGTERM add to, so that a step is never cut in two; a second one cuts."""
    asked: list[BaseException] = []

    def ask(number: int, frame: FrameType | None) -> None:
        asked.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
        if len(asked) > 1:
            raise asked[-1]

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
