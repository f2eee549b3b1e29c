"""Lanes: what one caller at a time works with. There are a few; whoever comes when all are taken waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pcsr.runtime.device.arrays import Device, Graphs, Session, Stream

__all__ = ["MOST_LANES", "Lane", "Lanes", "Streams"]

# Each has execution contexts of its own, which take device memory; more callers than this gain no speed.
MOST_LANES = 4


class Lane:
    """A stream for kernels and graphs, and on it a session of each precision, made when first used."""

    def __init__(self, device: Device, graphs: Mapping[str, Graphs]) -> None:
        self.work: Stream = device.stream()
        self._graphs = graphs
        self._sessions: dict[str, Session] = {}

    def session(self, precision: str) -> Session:
        """Graphs of a precision on this lane's stream."""
        if precision not in self._sessions:
            self._sessions[precision] = self._graphs[precision].session(self.work)
        return self._sessions[precision]

    def release(self) -> None:
        """Wait for its work, and free what only saves time."""
        self.work.synchronise()
        for session in self._sessions.values():
            session.release()


class Lanes:
    """A bounded pool of lanes."""

    def __init__(self, device: Device, graphs: Mapping[str, Graphs], *, most: int) -> None:
        self._device, self._graphs = device, graphs
        self._free: list[Lane] = []
        self._places = threading.BoundedSemaphore(most)
        self._lock = threading.Lock()

    @contextmanager
    def take(self) -> Iterator[Lane]:
        """A lane for one caller; its work is done when it comes back."""
        with self._places:
            with self._lock:
                lane = self._free.pop() if self._free else Lane(self._device, self._graphs)
            try:
                yield lane
            finally:
                # Memory of other streams that this work reads must not be used again before it is done.
                lane.work.synchronise()
                with self._lock:
                    self._free.append(lane)

    def clear(self) -> None:
        """Let go of all free lanes, and of the contexts that they hold."""
        with self._lock:
            self._free.clear()


class Streams:
    """Streams for copies, used again. A picture has one from its upload to its download."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._free: list[Stream] = []
        self._lock = threading.Lock()

    def take(self) -> Stream:
        """A stream that nobody else has."""
        with self._lock:
            return self._free.pop() if self._free else self._device.stream()

    def give(self, stream: Stream) -> None:
        """Back, once its work is done."""
        stream.synchronise()
        with self._lock:
            self._free.append(stream)

    @contextmanager
    def borrowed_on_failure(self) -> Iterator[Stream]:
        """A stream that comes back by itself if the block fails, and is the block's to pass on otherwise."""
        stream = self.take()
        try:
            yield stream
        except BaseException:
            self.give(stream)
            raise

    def clear(self) -> None:
        """Let go of all free streams."""
        with self._lock:
            self._free.clear()
