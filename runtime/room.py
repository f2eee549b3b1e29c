"""Memory of large arrays, kept from one picture to the next.

Fresh memory comes from the system page by page, each cleared first: of some arrays that takes longer than filling them.
"""

from __future__ import annotations

import threading
import weakref

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALIGNMENT", "Room"]

# A cache line, and the widest vector.
ALIGNMENT = 64
# What is kept for the next picture at most, the tables of some 1920x1080, and of a memory limit the part: that limit
# is a picture's, which may need other arrays than those that are kept.
SPARE_BYTES, SPARE_PART = 1 << 30, 8

Float = NDArray[np.float32]


class Room:
    """Arrays whose memory comes back when nobody has them any more. Safe to use from several threads."""

    def __init__(self, memory_limit: int | None = None) -> None:
        """Keep an eighth of the limit at most, and never more than 1 GiB."""
        self._most = SPARE_BYTES if memory_limit is None else min(SPARE_BYTES, memory_limit // SPARE_PART)
        self._lock = threading.RLock()
        # Ascending by size.
        self._spare: list[NDArray[np.uint8]] = []

    def array(self, shape: tuple[int, ...]) -> Float:
        """An array of float32 of that shape, aligned, with any content."""
        size = int(np.prod(shape)) * 4
        room = self._take(size + ALIGNMENT)
        if room is None:
            room = np.empty(size + ALIGNMENT, dtype=np.uint8)
        start = -room.ctypes.data % ALIGNMENT
        # Through the buffer: so it is this array that all views have as their base, and not the room.
        flat = np.frombuffer(room[start : start + size].data, dtype=np.float32)
        weakref.finalize(flat, self._take_back, room).atexit = False
        return flat.reshape(shape)

    def close(self) -> None:
        """Let go of what is kept, and keep nothing any more."""
        with self._lock:
            self._most = 0
            self._spare.clear()

    def _take(self, size: int) -> NDArray[np.uint8] | None:
        """The smallest that is large enough. None if none is: then all go, so that no more is held than is needed."""
        with self._lock:
            for number, room in enumerate(self._spare):
                if room.size >= size:
                    return self._spare.pop(number)
            self._spare.clear()
            return None

    def _take_back(self, room: NDArray[np.uint8]) -> None:
        # Called wherever the last reference goes, within `array` too: hence the lock that one thread may take twice.
        with self._lock:
            if sum(each.size for each in self._spare) + room.size <= self._most:
                self._spare.append(room)
                self._spare.sort(key=len)
