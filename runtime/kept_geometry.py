"""What a backend makes of a picture's sizes, kept for the next picture of the same: most often all are of one."""

from __future__ import annotations

import threading
from typing import Any

from pcsr.runtime.backends import Backend
from pcsr.runtime.geometry import Axis

__all__ = ["KeptGeometry", "geometry_bytes"]

# Of a memory limit: that is a picture's, and the next may be of another size.
KEPT_PART = 64

Sizes = tuple[int, int, int, int]


def geometry_bytes(backend: Backend, size: tuple[int, int]) -> int:
    """About what `place` takes for an output (H, W): of each row and column as much as a table of a pixel."""
    return sum(size) * backend.table_bytes


class KeptGeometry:
    """The place of the last picture, unless it is large. Safe to use from several threads."""

    def __init__(self, backend: Backend, memory_limit: int) -> None:
        """Keep up to a part of the limit."""
        self._backend, self._most = backend, memory_limit // KEPT_PART
        self._lock = threading.Lock()
        self._kept: tuple[Sizes, Any] | None = None

    def place(self, rows: Axis, columns: Axis) -> Any:
        """What `Backend.place` gives; the same one for pictures of the same sizes at the same time."""
        sizes = rows.lr, rows.hr, columns.lr, columns.hr
        with self._lock:
            if self._kept is not None and self._kept[0] == sizes:
                return self._kept[1]
            # First: there are never two that nobody needs.
            self._kept = None
        made = self._backend.place(rows, columns)
        if geometry_bytes(self._backend, (rows.hr, columns.hr)) <= self._most:
            with self._lock:
                self._kept = sizes, made
        return made

    def close(self) -> None:
        """Let go of it, and keep nothing any more."""
        with self._lock:
            self._kept, self._most = None, -1
