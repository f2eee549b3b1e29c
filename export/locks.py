"""Holding a place against other exports."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from pcsr.runtime.errors import PcsrError

__all__ = ["held"]

logger = logging.getLogger(__name__)

# How long to wait before saying so.
PATIENCE_SECONDS = 1.0


@contextmanager
def held(
    lock_file: Path, *, place: Path, who: str, seconds: float, error: type[PcsrError], elsewhere: str
) -> Iterator[None]:
    """Hold a lock; its folder is made if it is missing, and its file stays.

    Args:
        lock_file: that is locked.
        place: what it stands for, for messages.
        who: may hold it too, like "another export".
        seconds: to wait at most.
        error: raised for what goes wrong.
        elsewhere: what to do where the place cannot be written to.

    Raises:
        error: somebody holds it for too long, or its folder cannot be written to.
    """
    lock = filelock.FileLock(lock_file)
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=min(PATIENCE_SECONDS, seconds))
        except filelock.Timeout:
            logger.info("waiting for %s, which holds %s", who, place)
            lock.acquire(timeout=seconds)
    except filelock.Timeout as timeout:
        raise error(
            f"{who} has held {place} for {seconds:g} s (lock {lock_file}); wait for it or end it"
        ) from timeout
    except OSError as problem:
        raise error(
            f"cannot write to {lock_file.parent}: {problem.strerror or problem}; {elsewhere}"
        ) from problem
    try:
        yield
    finally:
        lock.release()
