"""Work that Ctrl-C and SIGTERM reach between two steps of it, and never between two statements.

Python raises KeyboardInterrupt in the main thread, wherever that is: after a thread was started and before anybody is
there to end it, say. So the work is done elsewhere, and the main thread does nothing but wait and pass the word on.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

__all__ = ["sheltered"]

T = TypeVar("T")

# Seconds after which a wait looks up: the system may hand a signal to a thread that cannot take it.
GLANCE = 0.2


def sheltered(work: Callable[[], T], *, interrupt: Callable[[], object]) -> T:
    """Do work in another thread, and wait for it.

    Args:
        work: what is to be done.
        interrupt: called on KeyboardInterrupt; makes the work end soon.

    Raises:
        KeyboardInterrupt: after the work has ended.
        Whatever the work raises.
    """
    outcome: list[Future[T]] = []
    # The one wait of Python's that an exception out of a signal handler leaves as it was.
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()

    def do() -> None:
        future: Future[T] = Future()
        try:
            future.set_result(work())
        except BaseException as error:  # raised again by the thread that waits
            future.set_exception(error)
        outcome.append(future)
        ended.put(None)

    thread = threading.Thread(target=do, name="pcsr-work")

    def wait() -> None:
        while not outcome:
            with suppress(queue.Empty):
                ended.get(timeout=GLANCE)
            if thread.ident is None:
                # The interrupt came before the thread was there.
                return

    try:
        thread.start()
        wait()
    except KeyboardInterrupt:
        interrupt()
        wait()
        raise
    return outcome[0].result()
