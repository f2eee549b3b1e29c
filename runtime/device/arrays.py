"""What the road needs of a device: memory, streams of work in order, copies, marks in time, kernels.

Two kinds exist: a GPU through CuPy (`cupy_device`), and one that is simulated in NumPy (`simulated`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pcsr.runtime.backends.profiles import Limits

__all__ = ["AllocationError", "Device", "DeviceArray", "Download", "Graphs", "Session", "Stream", "aligned"]

# What memory from CUDA is aligned to.
ALIGNMENT = 256


class AllocationError(Exception):
    """An allocation did not fit. The road answers it with smaller tiles."""


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """Memory of a device, row-major.

    Attributes:
        memory: what keeps it allocated; the device knows its type.
        offset: where the array begins in it, in bytes.
        shape: of the array.
        dtype: of the array.
    """

    memory: Any
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.size * self.dtype.itemsize

    def part(self, first: int, shape: Sequence[int]) -> DeviceArray:
        """An array within: from element `first` of the flat array on."""
        if first < 0 or first + math.prod(shape) > self.size:
            raise ValueError(f"{tuple(shape)} from element {first} on lies outside of {self.shape}")
        return DeviceArray(self.memory, self.offset + first * self.dtype.itemsize, tuple(shape), self.dtype)

    def viewed_as(self, dtype: DTypeLike) -> DeviceArray:
        """The same memory as another type of the same size."""
        kind = np.dtype(dtype)
        if kind.itemsize != self.dtype.itemsize:
            raise ValueError(f"{self.dtype} cannot be viewed as {kind}")
        return DeviceArray(self.memory, self.offset, self.shape, kind)


class Download(Protocol):
    """A copy to the host that is under way."""

    def wait(self) -> NDArray[Any]:
        """The values, once they are there."""


class Stream(Protocol):
    """Work in order. What is freed is used again by this stream alone, so nothing need be waited for."""

    @property
    def pointer(self) -> int:
        """What CUDA knows it by; 0 where it is no stream of CUDA."""

    def array(self, shape: Sequence[int], dtype: DTypeLike) -> DeviceArray:
        """Uninitialised memory.

        Raises:
            AllocationError: the pool's limit or the device has no more.
        """

    def upload(self, values: NDArray[Any], to: DeviceArray) -> None:
        """Copy from the host; `values` may be changed as soon as this returns."""

    def download(self, array: DeviceArray) -> Download:
        """Begin a copy to the host."""

    def copy(self, array: DeviceArray, to: DeviceArray) -> None:
        """Copy within the device."""

    def zero(self, array: DeviceArray) -> None:
        """Set every byte to 0."""

    def launch(self, kernel: str, elements: int, *arguments: DeviceArray | float) -> None:
        """Run a kernel of `kernels.KERNELS` over so many elements."""

    def hand_over(self, name: str, work: Callable[..., None], *arrays: DeviceArray) -> None:
        """Let a library enqueue work of its own: work(*addresses of the arrays), in this stream's order."""

    def mark(self) -> Any:
        """The present end of this stream's work, as a point in time."""

    def wait(self, mark: Any) -> None:
        """What follows waits for another stream to reach a mark."""

    def synchronise(self) -> None:
        """Wait until everything is done."""


def aligned(array: DeviceArray, stream: Stream) -> DeviceArray:
    """The array, or a copy where it begins at an address that libraries do not take.

    A part of an array begins anywhere; what a pool gives out is aligned.
    """
    if array.offset % ALIGNMENT == 0:
        return array
    copy = stream.array(array.shape, array.dtype)
    stream.copy(array, copy)
    return copy


class Device(Protocol):
    """Memory and streams. Safe to use from several threads; a stream by one at a time.

    Attributes:
        name: of the device.
        kind: "cuda", or "cpu" where addresses are the host's.
        index: among those of its kind.
        memory: bytes, in all.
        memory_limit: bytes that all arrays together may take.
    """

    name: str
    kind: Literal["cpu", "cuda"]
    index: int
    memory: int
    memory_limit: int

    def stream(self) -> Stream:
        """A new stream."""

    def milliseconds(self, begin: Any, end: Any) -> float:
        """Time between two marks that have been reached."""

    def adopt(self, values: Any, stream: Stream, caller: Any) -> DeviceArray:
        """An array of the caller's on this device, without a copy; the stream waits for the caller's.

        Args:
            values: with `__cuda_array_interface__` or DLPack, contiguous.
            stream: that is going to read it.
            caller: the stream that wrote it, as an integer or an object with `ptr`; None: the default stream.

        Raises:
            PictureError: it is no array of this device, or its memory is not contiguous.
        """

    def publish(self, array: DeviceArray, stream: Stream, caller: Any) -> Any:
        """The array as the device's own array type, once the caller's stream has waited for ours."""

    def release(self) -> None:
        """Give unused memory of the pool back to the device."""

    def close(self) -> None:
        """Release everything."""


class Session(Protocol):
    """Runs graphs on one stream, for one caller at a time."""

    def run(
        self,
        graph: str,
        inputs: Mapping[str, DeviceArray],
        outputs: Sequence[DeviceArray],
        *,
        profile: int = 0,
    ) -> None:
        """Enqueue a graph.

        Args:
            graph: by its name in the bundle.
            inputs: by name, shapes within the profile.
            outputs: in the graph's order, of the shapes that docs/routing.md gives them.
            profile: optimisation profile.

        Raises:
            BackendError: it cannot be run.
        """

    def release(self) -> None:
        """Free memory that only saves time."""


class Graphs(Protocol):
    """The graphs of a bundle in one precision, on a device."""

    precision: str
    limits: Limits
    """What a call of each graph may be given."""

    def session(self, stream: Stream) -> Session:
        """For a caller that works on this stream."""

    def close(self) -> None:
        """Release what they hold; no session may be running."""
