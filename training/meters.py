"""Whether the losses make sense, and where the time goes."""

from __future__ import annotations

import math
import time
from collections import deque

from torch import Tensor

from pcsr.runtime.errors import TrainingError

__all__ = ["ADVICE", "Clock", "Losses"]

DIVERGED = 10.0
"""A loss, averaged over a window, this many times the lowest before it in the stretch has lost its way."""
WINDOW = 100
PAUSE_S = 120.0
"""A lap longer than this was a pause (SIGSTOP, a suspended machine) and is no training time."""
ADVICE = "the last good state is kept: go on from it with --resume and a lower rate (--set phases.NAME.rate=)"


class Losses:
    """The last losses, and whether they make sense."""

    def __init__(self, *, look_every: int) -> None:
        self._every = look_every
        self._unseen: list[tuple[Tensor, Tensor, int]] = []
        self._window: deque[float] = deque(maxlen=WINDOW)
        self._seen = 0
        self._lowest = math.inf

    def add(self, loss: Tensor, norm: Tensor, step: int) -> None:
        # A recorded graph writes every loss to the same place: keep its value, not the place.
        self._unseen.append((loss.clone(), norm.clone(), step))
        if len(self._unseen) >= self._every:
            self.look()

    def look(self) -> None:
        """Raise `TrainingError` where a loss or gradient is no number, or losses have grown tenfold."""
        for loss, norm, step in self._unseen:
            value, length = float(loss), float(norm)
            if not (math.isfinite(value) and math.isfinite(length)):
                what = f"the loss is {value}" if not math.isfinite(value) else f"the gradient is {length}"
                raise TrainingError(f"{what} at step {step}; {ADVICE}")
            self._window.append(value)
            self._seen += 1
            if self._seen % WINDOW == 0:
                mean = self.mean()
                if mean > DIVERGED * self._lowest:
                    raise TrainingError(
                        f"training diverged at step {step}: the loss rose to {mean:.4g} from "
                        f"{self._lowest:.4g}; {ADVICE}"
                    )
                self._lowest = min(self._lowest, mean)
        self._unseen.clear()

    def mean(self) -> float:
        return sum(self._window) / len(self._window) if self._window else math.nan


class Clock:
    """Time inside and outside the network."""

    def __init__(self) -> None:
        self.start_over()

    def start_over(self) -> None:
        self.seconds = {"outside": 0.0, "network": 0.0}
        self.laps = 0
        self._last = time.perf_counter()

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def lap(self, kind: str) -> None:
        now = time.perf_counter()
        if now - self._last < PAUSE_S:
            self.seconds[kind] += now - self._last
        self.laps += kind == "network"
        self._last = now
