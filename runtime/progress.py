"""How much of a picture's work is done, told to the caller."""

from __future__ import annotations

import numpy as np

from pcsr.runtime.errors import CancelledError
from pcsr.runtime.options import Progress

__all__ = ["ShareDone"]


class ShareDone:
    """Share of the work done, told to the caller; the backbone counts as much as one sweep over the output."""

    def __init__(self, callback: Progress | None, inputs: int, outputs: int) -> None:
        self._callback = callback
        self._inputs, self._outputs = inputs, outputs
        self._seen_inputs = self._seen_outputs = 0

    def add_input(self, pixels: int) -> None:
        self._seen_inputs += pixels
        self._tell()

    def add_output(self, pixels: int) -> None:
        self._seen_outputs += pixels
        self._tell()

    def _tell(self) -> None:
        if self._callback is None:
            return
        # Windows overlap, and a tile can be done again, so pixels can be seen more often than there are.
        inputs = min(self._seen_inputs / self._inputs, 1.0)
        outputs = min(self._seen_outputs / self._outputs, 1.0)
        answer = self._callback(0.5 * inputs + 0.5 * outputs)
        if isinstance(answer, bool | np.bool_) and not answer:
            raise CancelledError("the progress callback cancelled the picture")
