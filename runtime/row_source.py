"""A picture whose rows are not all in memory."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["RowSource", "all_rows"]


@runtime_checkable
class RowSource(Protocol):
    """A picture that is read from top to bottom, once or several times; a part of its rows is held.

    Attributes:
        shape: (h, w) or (h, w, 3).
        dtype: uint8, uint16 or float32.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def begin(self) -> None:
        """Go to the top; comes before the first `hold`, too.

        Raises:
            PictureError: it cannot be read.
        """

    def hold(self, top: int, bottom: int) -> None:
        """Have rows [top, bottom) in memory. Neither end is ever above that of the call before.

        Raises:
            PictureError: the rows cannot be read, or hold what is not finite.
        """

    def __getitem__(self, window: tuple[slice, slice]) -> NDArray[Any]:
        """Rows and columns of what is held, both ends given, as from an array of the whole picture."""


def all_rows(source: RowSource) -> NDArray[Any]:
    """The whole picture."""
    h, w = source.shape[:2]
    source.begin()
    source.hold(0, h)
    return source[0:h, 0:w]
