"""Timing in turn: each round calls everyone once, so that a change of the machine's mood hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["Timed", "in_turn"]


@dataclass(slots=True)
class Timed:
    """One competitor's rounds.

    Attributes:
        seconds: wall time of each call.
        processor: processor time of the whole process during each call, seconds.
        after: processor time of the whole process in the pause after each call, seconds.
    """

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)

    def busy(self, threads: int) -> float:
        """Median share of so many threads that worked."""
        used = zip(self.processor, self.seconds, strict=True)
        return statistics.median(processor / (threads * seconds) for processor, seconds in used)


def in_turn(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    pause: float = 0.0,
) -> dict[str, Timed]:
    """Call everyone once a round.

    Args:
        runs: calls by name; each should have been called before, to be warm.
        rounds: how many.
        pause: seconds to sleep after each call, for threads that spin to fall asleep.
    """
    timed = {name: Timed() for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started, used = time.perf_counter(), time.process_time()
            run()
            timed[name].seconds.append(time.perf_counter() - started)
            ended = time.process_time()
            timed[name].processor.append(ended - used)
            time.sleep(pause)
            timed[name].after.append(time.process_time() - ended)
    return timed
