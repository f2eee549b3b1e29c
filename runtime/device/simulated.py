"""A device of NumPy arrays, for tests and dry runs without a GPU.

It is as lazy as a GPU may be: a stream's work is not done before somebody waits for it, and then only as far as
asked. Work that should have waited for another stream and did not reads what is not there yet.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pcsr.runtime.device.arrays import AllocationError, DeviceArray
from pcsr.runtime.device.kernels import KERNELS
from pcsr.runtime.device.twins import TWINS
from pcsr.runtime.errors import PictureError

__all__ = ["Event", "SimulatedArray", "SimulatedDevice", "SimulatedStream"]

Launch = Callable[..., None]

# A GPU's memory is not zero either.
UNINITIALISED = 0xA5


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a stream was asked to do.

    Attributes:
        kind: "allocate", "upload", "download", "copy", "zero", "launch", "call", "mark" or "wait".
        stream: number of the stream.
        name: of the kernel or call.
        bytes: allocated or copied.
    """

    kind: str
    stream: int
    name: str = ""
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Mark:
    stream: SimulatedStream
    position: int


@dataclass(eq=False, slots=True, weakref_slot=True)
class _Memory:
    """Counted while it lives; the bytes may live on in work that waits."""

    bytes: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SimulatedArray:
    """What a caller holds: stands for an array of a GPU library, with the interface that the device reads."""

    array: DeviceArray
    device: SimulatedDevice

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the array."""
        return self.array.dtype

    def get(self) -> NDArray[Any]:
        """A copy on the host."""
        return self.device.view(self.array).copy()


@dataclass
class SimulatedDevice:
    """See `Device`.

    Attributes:
        classes: of the networks that run.
        memory_limit: bytes that all arrays together may take.
        launch: runs a kernel, launch(name, elements, *flat arrays and scalars); None: the twins.
        refuse: called with the bytes of an allocation; True makes it fail.
        events: everything that was asked for, in order.
    """

    classes: int
    memory_limit: int = 1 << 40
    launch: Launch | None = None
    refuse: Callable[[int], bool] = lambda _: False
    name: str = "simulated"
    kind: Literal["cpu", "cuda"] = "cpu"
    index: int = 0
    memory: int = 1 << 40
    events: list[Event] = field(default_factory=list)
    allocated: int = 0
    peak: int = 0
    streams: int = 0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def stream(self) -> SimulatedStream:
        """A new stream."""
        with self.lock:
            self.streams += 1
            return SimulatedStream(self, self.streams - 1)

    def allocate(self, nbytes: int) -> _Memory:
        """Memory, counted until it is garbage."""
        with self.lock:
            if self.allocated + nbytes > self.memory_limit or self.refuse(nbytes):
                raise AllocationError
            self.allocated += nbytes
            self.peak = max(self.peak, self.allocated)
            memory = _Memory(np.full(nbytes, UNINITIALISED, np.uint8))
            weakref.finalize(memory, self._free, nbytes)
            return memory

    def _free(self, nbytes: int) -> None:
        with self.lock:
            self.allocated -= nbytes

    def view(self, array: DeviceArray) -> NDArray[Any]:
        """The array's values, as of the work done so far."""
        return _view(array.memory.bytes, array)

    def milliseconds(self, begin: Any, end: Any) -> float:
        """Pieces of work between two marks: there is no other time here."""
        return float(end.position - begin.position)

    def adopt(self, values: Any, stream: Any, caller: Any) -> DeviceArray:
        """An array of this device."""
        if not isinstance(values, SimulatedArray) or values.device is not self:
            raise PictureError(f"a {type(values).__name__} is no array of this device")
        return values.array

    def publish(self, array: DeviceArray, stream: Any, caller: Any) -> SimulatedArray:
        """The array for the caller."""
        stream.synchronise()
        return SimulatedArray(array, self)

    def release(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is kept."""


class SimulatedStream:
    """See `Stream`."""

    def __init__(self, device: SimulatedDevice, number: int) -> None:
        self._device, self._number = device, number
        self._waiting: deque[Callable[[], None]] = deque()
        self._given = self._done = 0

    @property
    def pointer(self) -> int:
        """CUDA knows nothing of it."""
        return 0

    def _note(self, kind: str, name: str = "", nbytes: int = 0) -> None:
        self._device.events.append(Event(kind, self._number, name, nbytes))

    def _later(self, work: Callable[[], None]) -> None:
        self._waiting.append(work)
        self._given += 1

    def _run(self, position: int) -> None:
        while self._done < position:
            work = self._waiting.popleft()
            self._done += 1
            work()

    def array(self, shape: Sequence[int], dtype: DTypeLike) -> DeviceArray:
        """Memory full of rubbish."""
        kind = np.dtype(dtype)
        nbytes = math.prod(shape) * kind.itemsize
        memory = self._device.allocate(nbytes)
        self._note("allocate", nbytes=nbytes)
        return DeviceArray(memory, 0, tuple(shape), kind)

    def upload(self, values: NDArray[Any], to: DeviceArray) -> None:
        """A copy is taken at once, as pinned memory does."""
        assert values.shape == to.shape
        assert values.dtype == to.dtype
        kept = values.copy()
        self.call("upload", lambda place: np.copyto(place, kept), to, kind="upload")

    def download(self, array: DeviceArray) -> _Download:
        """Copied when waited for."""
        out = np.empty(array.shape, array.dtype)
        self.call("download", lambda values: np.copyto(out, values), array, kind="download")
        return _Download(self, self._given, out)

    def copy(self, array: DeviceArray, to: DeviceArray) -> None:
        """Within the device."""
        self.call("copy", lambda values, place: np.copyto(place, values), array, to, kind="copy")

    def zero(self, array: DeviceArray) -> None:
        """Set every byte to 0."""
        self.call("zero", lambda values: values.fill(0), array, kind="zero")

    def launch(self, kernel: str, elements: int, *arguments: DeviceArray | float) -> None:
        """Run a kernel, or its twin; only its written arrays may change."""
        parameters = KERNELS[kernel].parameters
        assert len(parameters) == len(arguments)
        for parameter, argument in zip(parameters, arguments, strict=True):
            assert isinstance(argument, DeviceArray) == parameter.pointer, (kernel, parameter)
            if isinstance(argument, DeviceArray):
                assert argument.dtype == parameter.dtype, (kernel, parameter, argument.dtype)
        run = self._device.launch

        def work(*views: Any) -> None:
            flat = [view.reshape(-1) if isinstance(view, np.ndarray) else view for view in views]
            if run is None:
                TWINS[kernel](self._device.classes, *flat)
            else:
                run(kernel, elements, *flat)

        self.call(kernel, work, *arguments, kind="launch")

    def call(self, name: str, work: Callable[..., None], *arguments: Any, kind: str = "call") -> None:
        """Do something with the values of arrays, in the stream's order."""
        arrays = [argument for argument in arguments if isinstance(argument, DeviceArray)]
        # The bytes, not the memory that is counted: a GPU's pool does not wait for work either.
        views = [
            _view(argument.memory.bytes, argument) if isinstance(argument, DeviceArray) else argument
            for argument in arguments
        ]
        with self._device.lock:
            self._note(kind, name, sum(array.nbytes for array in arrays))
            self._later(lambda: work(*views))

    def hand_over(self, name: str, work: Callable[..., None], *arrays: DeviceArray) -> None:
        """Later, as everything."""
        self.call(name, lambda *views: work(*(view.ctypes.data for view in views)), *arrays)

    def mark(self) -> _Mark:
        """The present end."""
        self._note("mark")
        return _Mark(self, self._given)

    def wait(self, mark: Any) -> None:
        """Another stream's work is done as far as the mark, when this one gets here."""
        with self._device.lock:
            self._note("wait", nbytes=mark.stream._number)
            self._later(lambda: mark.stream._run(mark.position))

    def synchronise(self) -> None:
        """Do all that waits."""
        with self._device.lock:
            self._run(self._given)


@dataclass(frozen=True, slots=True)
class _Download:
    stream: SimulatedStream
    position: int
    out: NDArray[Any]

    def wait(self) -> NDArray[Any]:
        with self.stream._device.lock:
            self.stream._run(self.position)
        return self.out


def _view(memory: NDArray[np.uint8], array: DeviceArray) -> NDArray[Any]:
    return memory[array.offset : array.offset + array.nbytes].view(array.dtype).reshape(array.shape)
