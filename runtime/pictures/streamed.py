"""Rows of a picture file as they are needed, for pictures that would take too much memory whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.errors import PictureError

__all__ = ["ReadRows", "StreamedRows"]

ReadRows = Callable[[int, NDArray[Any]], None]
"""Fills an array with the rows from one on; rows are asked for from top to bottom."""


class StreamedRows:
    """A `RowSource` of a picture file that is decoded anew for every sweep.

    Attributes:
        shape: (h, w) or (h, w, 3).
        dtype: uint8, uint16 or float32.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: Any, start: Callable[[], ReadRows], *, name: str
    ) -> None:
        """Nothing is read yet.

        Args:
            shape: of the picture.
            dtype: of its samples.
            start: opens the file at its top.
            name: of the picture, for errors.
        """
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._start, self._name = start, name

    def begin(self) -> None:
        """See `RowSource`."""
        self._read = self._start()
        self._top = self._bottom = 0
        self._rows = np.empty((0, *self.shape[1:]), self.dtype)

    def hold(self, top: int, bottom: int) -> None:
        """See `RowSource`."""
        if (top, bottom) == (self._top, self._bottom):
            return
        assert self._top <= top <= self._bottom <= bottom, "rows are read from top to bottom"
        rows = np.empty((bottom - top, *self.shape[1:]), self.dtype)
        kept = self._bottom - top
        rows[:kept] = self._rows[top - self._top :]
        self._read(self._bottom, rows[kept:])
        if self.dtype == np.float32 and not np.isfinite(rows[kept:]).all():
            raise PictureError(f"{self._name} has NaN or infinite values; replace them first")
        self._top, self._bottom, self._rows = top, bottom, rows

    def __getitem__(self, window: tuple[slice, slice]) -> NDArray[Any]:
        """See `RowSource`."""
        rows, columns = window
        assert self._top <= rows.start <= rows.stop <= self._bottom, "rows that are not held"
        return self._rows[rows.start - self._top : rows.stop - self._top, columns]
