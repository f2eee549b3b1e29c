"""A GPU through CuPy: memory from a pool with a limit, pinned staging, streams, and our kernels through NVRTC.

The last layer above the vendor's libraries, and thin: what it promises is said in `arrays`. CuPy would compile with
denormal numbers flushed to zero, which moves thresholds, so the sources are compiled here.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pcsr.runtime.device.arrays import AllocationError, DeviceArray
from pcsr.runtime.device.kernels import KERNELS, OPTIONS, THREADS, source
from pcsr.runtime.errors import BackendError, OptionError, PictureError

__all__ = ["CupyDevice", "compile_for"]

# What a pool may take where no limit is given: engines, their contexts and other programs need the rest.
SHARE_OF_MEMORY = 0.75
CUDA_OF_DLPACK = 2


@dataclass(frozen=True, slots=True)
class _Memory:
    """An address, and what keeps it allocated."""

    ptr: int
    owner: Any


def compile_for(nvrtc: Any, classes: int, capability: int) -> bytes:
    """Machine code of all kernels.

    Args:
        nvrtc: the module `cupy.cuda.nvrtc`.
        classes: of the networks.
        capability: of the GPU, like 90; one that this NVRTC does not know yet gets PTX, which the driver finishes.

    Raises:
        BackendError: NVRTC refuses the sources, with its log.
    """
    known = sorted(nvrtc.getSupportedArchs())
    exact = capability in known
    target = capability if exact else max((arch for arch in known if arch < capability), default=known[0])
    kind = "sm" if exact else "compute"
    program = nvrtc.createProgram(source(classes), "pcsr.cu", (), ())
    try:
        nvrtc.compileProgram(program, (f"--gpu-architecture={kind}_{target}", *OPTIONS))
        code: bytes = nvrtc.getCUBIN(program) if exact else nvrtc.getPTX(program)
    except Exception as error:  # NVRTCError, in whatever module this CuPy has it
        log = nvrtc.getProgramLog(program)
        raise BackendError(f"the kernels do not compile for {kind}_{target}: {error}\n{log}") from error
    finally:
        nvrtc.destroyProgram(program)
    return code


# Seconds, once for all upscalers of a process.
_compiled = cache(compile_for)


class CupyDevice:
    """See `Device`."""

    def __init__(self, index: int, *, classes: int, memory_limit: int | None = None) -> None:
        """Open a GPU.

        Args:
            index: among those that are visible.
            classes: of the networks that run.
            memory_limit: bytes that all arrays together may take; None: three quarters of the GPU's memory.

        Raises:
            BackendError: CuPy is missing or finds no such GPU.
        """
        self._cupy = _import()
        self.kind: Literal["cpu", "cuda"] = "cuda"
        self.index = index
        try:
            with self.current():
                self.memory = int(self._cupy.cuda.runtime.memGetInfo()[1])
                capability = int(self._cupy.cuda.Device(index).compute_capability)
                module = self._cupy.cuda.Module()
                module.load(_compiled(self._cupy.cuda.nvrtc, classes, capability))
                self._kernels = {name: module.get_function(name) for name in KERNELS}
        except BackendError:
            raise
        except Exception as error:  # CUDA's exceptions share no base but RuntimeError
            raise BackendError(
                f"CuPy {self._cupy.__version__} cannot use GPU {index}: {error}; pcsr-doctor says what is missing"
            ) from error
        self.name = f"cuda:{index}"
        self.memory_limit = int(self.memory * SHARE_OF_MEMORY) if memory_limit is None else memory_limit
        self._pool = self._cupy.cuda.MemoryPool()
        with self.current():
            self._pool.set_limit(size=self.memory_limit)
        self._pinned = self._cupy.cuda.PinnedMemoryPool()

    @contextmanager
    def current(self) -> Iterator[None]:
        """This GPU as the calling thread's."""
        with self._cupy.cuda.Device(self.index):
            yield

    def stream(self) -> _Stream:
        """A new stream, which does not wait for the default one."""
        with self.current():
            return _Stream(self, self._cupy.cuda.Stream(non_blocking=True))

    def milliseconds(self, begin: Any, end: Any) -> float:
        """Time between two events."""
        return float(self._cupy.cuda.get_elapsed_time(begin, end))

    def adopt(self, values: Any, stream: Any, caller: Any) -> DeviceArray:
        """An array of CuPy, or of whoever has `__cuda_array_interface__` or DLPack."""
        with self.current():
            if hasattr(values, "__cuda_array_interface__"):
                array = self._cupy.asarray(values)
            elif hasattr(values, "__dlpack__") and values.__dlpack_device__()[0] == CUDA_OF_DLPACK:
                array = self._cupy.from_dlpack(values)
            else:
                raise PictureError(
                    f"a picture is a NumPy array or an array on {self.name}, this is a {type(values).__name__}"
                )
            if array.device.id != self.index:
                raise PictureError(
                    f"the picture is on GPU {array.device.id}, the upscaler on GPU {self.index}"
                )
            if not array.flags.c_contiguous:
                raise PictureError("the picture's memory is not contiguous; make a contiguous copy first")
            self._follow(stream.handle.ptr, _pointer(caller))
            return DeviceArray(
                _Memory(int(array.data.ptr), array), 0, tuple(array.shape), np.dtype(array.dtype)
            )

    def publish(self, array: DeviceArray, stream: Any, caller: Any) -> Any:
        """A CuPy array on the same memory."""
        cuda = self._cupy.cuda
        with self.current():
            self._follow(_pointer(caller), stream.handle.ptr)
            address = array.memory.ptr + array.offset
            memory = cuda.UnownedMemory(address, array.nbytes, array.memory.owner, self.index)
            return self._cupy.ndarray(array.shape, array.dtype, memptr=cuda.MemoryPointer(memory, 0))

    def release(self) -> None:
        """Give unused memory back."""
        with self.current():
            self._pool.free_all_blocks()

    def close(self) -> None:
        """Give all memory back that no result holds."""
        self.release()
        self._pinned.free_all_blocks()

    def _follow(self, later: int, earlier: int) -> None:
        """One stream waits for what another has been given so far; both by their pointers, 0 is the default one."""
        cuda = self._cupy.cuda
        event = cuda.Event(disable_timing=True)
        cuda.runtime.eventRecord(event.ptr, earlier)
        cuda.runtime.streamWaitEvent(later, event.ptr)


class _Stream:
    """See `Stream`."""

    def __init__(self, device: CupyDevice, handle: Any) -> None:
        self._device, self.handle = device, handle
        self._cupy = device._cupy
        # Pinned memory is kept until its copy is done: its pool knows nothing of streams.
        self._uploads: deque[tuple[Any, Any]] = deque()

    def array(self, shape: Sequence[int], dtype: DTypeLike) -> DeviceArray:
        """Memory of the pool, in this stream's part of it."""
        kind = np.dtype(dtype)
        nbytes = math.prod(shape) * kind.itemsize
        try:
            with self._device.current(), self.handle:
                pointer = self._device._pool.malloc(max(nbytes, 1))
        except self._cupy.cuda.memory.OutOfMemoryError:
            raise AllocationError from None
        return DeviceArray(_Memory(int(pointer.ptr), pointer), 0, tuple(shape), kind)

    def upload(self, values: NDArray[Any], to: DeviceArray) -> None:
        """Through pinned memory."""
        while self._uploads and self._uploads[0][0].done:
            self._uploads.popleft()
        with self._device.current():
            pinned = self._device._pinned.malloc(values.nbytes)
            staged = np.frombuffer(pinned, values.dtype, values.size).reshape(values.shape)
            np.copyto(staged, values)
            runtime = self._cupy.cuda.runtime
            runtime.memcpyAsync(
                _address(to), int(pinned.ptr), values.nbytes, runtime.memcpyHostToDevice, self.handle.ptr
            )
            self._uploads.append((self.handle.record(), pinned))

    def download(self, array: DeviceArray) -> _Download:
        """Into pinned memory, which the result goes on living in."""
        with self._device.current():
            pinned = self._device._pinned.malloc(max(array.nbytes, 1))
            runtime = self._cupy.cuda.runtime
            runtime.memcpyAsync(
                int(pinned.ptr), _address(array), array.nbytes, runtime.memcpyDeviceToHost, self.handle.ptr
            )
            out = np.frombuffer(pinned, array.dtype, array.size).reshape(array.shape)
            # The source stays allocated until it is copied.
            return _Download(self.handle.record(), out, array)

    def current(self) -> AbstractContextManager[None]:
        """The stream's GPU as the calling thread's."""
        return self._device.current()

    def record(self, work: Callable[[], bool]) -> Any:
        """What `work` enqueues, as a CUDA graph that `replay` launches; nothing runs now.

        Raises:
            Exception: of CUDA, where something in it cannot be recorded; RuntimeError: `work` gives False.
        """
        mode = self._cupy.cuda.runtime.streamCaptureModeThreadLocal
        with self._device.current():
            self.handle.begin_capture(mode)
            try:
                worked = work()
            finally:
                graph = self.handle.end_capture()
        if not worked:
            raise RuntimeError("the context fails while it is recorded")
        return graph

    def replay(self, graph: Any) -> None:
        """Launch a recorded graph."""
        with self._device.current():
            graph.launch(self.handle)

    def copy(self, array: DeviceArray, to: DeviceArray) -> None:
        """Within the device."""
        runtime = self._cupy.cuda.runtime
        with self._device.current():
            runtime.memcpyAsync(
                _address(to),
                _address(array),
                array.nbytes,
                runtime.memcpyDeviceToDevice,
                self.handle.ptr,
            )

    def zero(self, array: DeviceArray) -> None:
        """Set every byte to 0."""
        with self._device.current():
            self._cupy.cuda.runtime.memsetAsync(_address(array), 0, array.nbytes, self.handle.ptr)

    def launch(self, kernel: str, elements: int, *arguments: DeviceArray | float) -> None:
        """Run a kernel; pointers go as 64-bit numbers."""
        parameters = KERNELS[kernel].parameters
        values = tuple(
            np.uint64(_address(argument)) if isinstance(argument, DeviceArray) else parameter.dtype(argument)
            for parameter, argument in zip(parameters, arguments, strict=True)
        )
        grid, block = (KERNELS[kernel].grid(elements),), (THREADS,)
        with self._device.current():
            self._device._kernels[kernel](grid, block, values, 0, self.handle)

    @property
    def pointer(self) -> int:
        """Of the stream."""
        return int(self.handle.ptr)

    def hand_over(self, name: str, work: Callable[..., None], *arrays: DeviceArray) -> None:
        """At once: a library that enqueues on this stream keeps its order by itself."""
        with self._device.current():
            work(*(_address(array) for array in arrays))

    def mark(self) -> Any:
        """An event."""
        with self._device.current():
            return self.handle.record()

    def wait(self, mark: Any) -> None:
        """What follows waits for an event."""
        with self._device.current():
            self.handle.wait_event(mark)

    def synchronise(self) -> None:
        """Wait until everything is done."""
        with self._device.current():
            self.handle.synchronize()
        self._uploads.clear()


@dataclass(frozen=True, slots=True)
class _Download:
    done: Any
    out: NDArray[Any]
    source: DeviceArray

    def wait(self) -> NDArray[Any]:
        self.done.synchronize()
        return self.out


def _pointer(stream: Any) -> int:
    """Of a caller's stream: a number, or CuPy's `ptr`, or PyTorch's `cuda_stream`."""
    if stream is None:
        return 0
    for pointer in (stream, getattr(stream, "ptr", None), getattr(stream, "cuda_stream", None)):
        if isinstance(pointer, int):
            return pointer
    raise OptionError(
        f"a stream is a number or has `ptr` or `cuda_stream`, this is a {type(stream).__name__}"
    )


def _address(array: DeviceArray) -> int:
    return int(array.memory.ptr) + array.offset


def _import() -> ModuleType:
    try:
        import cupy
    except ImportError as error:
        raise BackendError(
            f"CuPy cannot be imported ({error}); run: pip install 'pcsr[gpu]', or 'pcsr[gpu-cuda12]' where the driver "
            "is older than 580"
        ) from error
    module: ModuleType = cupy
    return module
