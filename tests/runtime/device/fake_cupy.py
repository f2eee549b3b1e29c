"""A stand-in for CuPy: its names and signatures as in version 14.2, and a GPU whose memory is the host's.

It does at once what it is asked, as a GPU may; freed memory is overwritten, so nobody reads it unpunished. Kernels are
the CUDA sources compiled for the host. It proves how `cupy_device` calls the library, not the library.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from pcsr.runtime.device.kernels import KERNELS, Parameter

__all__ = ["FakeCupy"]

ALIGNMENT, FREED = 256, 0xDD
TO_DEVICE, TO_HOST, WITHIN = 1, 2, 3


class OutOfMemoryError(MemoryError):
    """As `cupy.cuda.memory.OutOfMemoryError`."""


class FakeCupy(ModuleType):
    """The module `cupy`.

    Attributes:
        calls: what was asked of the runtime, in order.
        gpus: how many there are.
    """

    __version__ = "14.2.0"

    def __init__(self, library: Callable[[], ctypes.CDLL], *, memory: int = 1 << 30, gpus: int = 1) -> None:
        super().__init__("cupy")
        self.calls: list[tuple[Any, ...]] = []
        self.uint8 = np.uint8
        self.gpus, self._library, self._memory = gpus, library, memory
        self._here, self._one_kernel = threading.local(), threading.Lock()
        self._streams = self._events = 0
        self._recording: dict[int, list[Callable[[], None]]] = {}
        cupy = self

        class Device:
            def __init__(self, index: int = 0) -> None:
                if index >= cupy.gpus:
                    raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
                self.id = index
                self.compute_capability = "90"

            def use(self) -> None:
                pass

            def __enter__(self) -> Device:
                return self

            def __exit__(self, *exception: object) -> None:
                pass

        class Stream:
            def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
                cupy._streams += 1
                self.ptr = 1000 + cupy._streams
                self.non_blocking = non_blocking
                self._before: list[int] = []

            def __enter__(self) -> Stream:
                self._before.append(cupy.current_stream)
                cupy._here.stream = self.ptr
                return self

            def __exit__(self, *exception: object) -> None:
                cupy._here.stream = self._before.pop()

            def record(self, event: Any = None) -> Any:
                event = event or Event()
                runtime.eventRecord(event.ptr, self.ptr)
                return event

            def wait_event(self, event: Any) -> None:
                runtime.streamWaitEvent(self.ptr, event.ptr)

            def synchronize(self) -> None:
                cupy.calls.append(("synchronize", self.ptr))

            def begin_capture(self, mode: int | None = None) -> None:
                cupy.calls.append(("begin_capture", self.ptr, mode))
                cupy._recording[self.ptr] = []

            def end_capture(self) -> Any:
                work = cupy._recording.pop(self.ptr)

                def launch(stream: Any = None) -> None:
                    cupy.calls.append(("graphLaunch", stream.ptr))
                    for each in work:
                        each()

                return SimpleNamespace(launch=launch)

        class Event:
            def __init__(
                self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
            ) -> None:
                cupy._events += 1
                self.ptr, self.timed, self.done = cupy._events, not disable_timing, True

            def synchronize(self) -> None:
                pass

        class Module:
            def load(self, cubin: bytes) -> None:
                assert isinstance(cubin, bytes)

            def get_function(self, name: str) -> Callable[..., None]:
                assert name in KERNELS
                return lambda grid, block, args, shared_mem=0, stream=None: cupy._launch(
                    name, grid, block, args, stream
                )

        class MemoryPool:
            def __init__(self) -> None:
                self.limit, self.used = 0, 0

            def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
                self.limit = size or 0

            def malloc(self, size: int) -> Any:
                assert cupy.current_stream, "memory would go to the default stream's part of the pool"
                if self.limit and self.used + size > self.limit:
                    raise OutOfMemoryError(size)
                self.used += size
                pointer = _Block(size)
                weakref.finalize(pointer, self._free, pointer.values)
                return pointer

            def _free(self, values: np.ndarray) -> None:
                values[...] = FREED
                self.used -= values.size

            def free_all_blocks(self, stream: Any = None) -> None:
                cupy.calls.append(("free_all_blocks",))

        class PinnedMemoryPool:
            def malloc(self, size: int) -> Any:
                return _Pinned(size)

            def free_all_blocks(self) -> None:
                cupy.calls.append(("free_pinned",))

        def elapsed(begin: Any, end: Any) -> float:
            assert begin.timed
            assert end.timed
            return 0.25

        runtime = SimpleNamespace(
            memGetInfo=lambda: (memory // 2, memory),
            getDeviceProperties=lambda device: {
                "name": b"stand-in",
                "major": 9,
                "minor": 0,
                "totalGlobalMem": memory,
                "multiProcessorCount": 132,
            },
            driverGetVersion=lambda: 13000,
            runtimeGetVersion=lambda: 13000,
            deviceSynchronize=lambda: None,
            memcpyHostToDevice=TO_DEVICE,
            memcpyDeviceToHost=TO_HOST,
            memcpyDeviceToDevice=WITHIN,
            streamCaptureModeThreadLocal=1,
            memcpyAsync=self._copy,
            memsetAsync=self._set,
            eventRecord=lambda event, stream: self.calls.append(("record", event, stream)),
            streamWaitEvent=lambda stream, event, flags=0: self.calls.append(("wait", stream, event)),
        )
        nvrtc = ModuleType("nvrtc")
        vars(nvrtc).update(
            getSupportedArchs=lambda: [80, 90],
            createProgram=lambda src, name, headers, include_names: 1,
            compileProgram=lambda program, options: None,
            getCUBIN=lambda program: b"cubin",
            destroyProgram=lambda program: None,
        )
        self.cuda = SimpleNamespace(
            Device=Device,
            Stream=Stream,
            Event=Event,
            Module=Module,
            MemoryPool=MemoryPool,
            PinnedMemoryPool=PinnedMemoryPool,
            UnownedMemory=lambda ptr, size, owner, device_id=-1: _Unowned(ptr, owner, device_id),
            MemoryPointer=lambda mem, offset: SimpleNamespace(ptr=mem.ptr + offset, mem=mem),
            get_elapsed_time=elapsed,
            get_current_stream=lambda device_id=-1: Stream(),
            runtime=runtime,
            nvrtc=nvrtc,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        )

    @property
    def current_stream(self) -> int:
        """Of this thread; 0 is the default one."""
        return getattr(self._here, "stream", 0)

    def ndarray(self, shape: Sequence[int], dtype: Any = float, memptr: Any = None) -> FakeArray:
        """An array on memory that is there."""
        return FakeArray(tuple(shape), np.dtype(dtype), memptr.ptr, memptr.mem, memptr.mem.device_id)

    def asarray(self, values: Any) -> FakeArray:
        """An array of another library's, by its interface; a copy of a NumPy array."""
        if isinstance(values, np.ndarray):
            return self.put(values)
        found = values.__cuda_array_interface__
        strides, shape = found.get("strides"), found["shape"]
        return FakeArray(
            shape, np.dtype(found["typestr"]), found["data"][0], values, 0, contiguous=strides is None
        )

    def asnumpy(self, array: FakeArray) -> np.ndarray:
        """A copy on the host."""
        return array.get()

    def zeros(self, size: int, dtype: Any = float) -> FakeArray:
        """An array of a caller's."""
        return self.put(np.zeros(size, dtype))

    def empty_like(self, array: FakeArray) -> FakeArray:
        """The same."""
        return self.put(array.get())

    def copyto(self, dst: FakeArray, src: FakeArray) -> None:
        """Within the device."""
        ctypes.memmove(dst.data.ptr, src.data.ptr, int(np.prod(src.shape)) * src.dtype.itemsize)

    def from_dlpack(self, values: Any) -> FakeArray:
        """The same by DLPack."""
        return self.asarray(values.__dlpack__())

    def put(self, values: np.ndarray, *, device: int = 0) -> FakeArray:
        """A copy on the device, as a caller has it."""
        block = _Block(values.nbytes)
        block.values[...] = np.frombuffer(values.tobytes(), np.uint8)
        return FakeArray(values.shape, values.dtype, block.ptr, block, device)

    def _do(self, stream: int, work: Callable[[], None]) -> None:
        if stream in self._recording:
            self._recording[stream].append(work)
        else:
            work()

    def _copy(self, dst: int, src: int, size: int, kind: int, stream: int) -> None:
        self.calls.append(("copy", kind, size, stream))
        self._do(stream, lambda: ctypes.memmove(dst, src, size) and None)

    def _set(self, ptr: int, value: int, size: int, stream: int) -> None:
        self._do(stream, lambda: ctypes.memset(ptr, value, size) and None)

    def _launch(
        self, name: str, grid: tuple[int], block: tuple[int], args: tuple[Any, ...], stream: Any
    ) -> None:
        self.calls.append(("launch", name, stream.ptr))
        kernel = KERNELS[name]
        assert len(args) == len(kernel.parameters)
        values = [_argument(p, value) for p, value in zip(kernel.parameters, args, strict=True)]
        head = (ctypes.c_uint(grid[0]), ctypes.c_uint(block[0]), ctypes.c_int(0))
        run = getattr(self._library(), f"run_{name}")

        def work() -> None:
            # The host's kernels share what stands for threadIdx.
            with self._one_kernel:
                run(*head, *values)

        self._do(stream.ptr, work)


def _argument(parameter: Parameter, value: Any) -> Any:
    if parameter.pointer:
        assert type(value) is np.uint64, (parameter, type(value))
        return ctypes.c_void_p(int(value))
    assert type(value) is np.dtype(parameter.dtype).type, (parameter, type(value))
    return np.ctypeslib.as_ctypes_type(parameter.dtype)(value)


class _Block:
    """Memory, aligned as CUDA's."""

    device_id = 0

    def __init__(self, size: int) -> None:
        whole = np.full(size + ALIGNMENT, FREED, np.uint8)
        start = -whole.ctypes.data % ALIGNMENT
        self.values = whole[start : start + size]
        self.ptr = self.values.ctypes.data


class _Pinned(bytearray):
    """Pinned memory: a buffer that knows its address."""

    @property
    def ptr(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self))


class _Unowned:
    def __init__(self, ptr: int, owner: Any, device_id: int) -> None:
        self.ptr, self.owner, self.device_id = ptr, owner, device_id


class FakeArray:
    """As `cupy.ndarray`."""

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        ptr: int,
        owner: Any,
        device: int,
        *,
        contiguous: bool = True,
    ) -> None:
        self.shape, self.dtype, self._owner = shape, dtype, owner
        self.data = SimpleNamespace(ptr=ptr)
        self.device = SimpleNamespace(id=device)
        self.flags = SimpleNamespace(c_contiguous=contiguous)
        self.strides: tuple[int, ...] | None = None if contiguous else (1,) * len(shape)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.data.ptr, False),
            "strides": self.strides,
            "version": 3,
        }

    def get(self) -> np.ndarray:
        """A copy on the host."""
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        return np.frombuffer(ctypes.string_at(self.data.ptr, size), self.dtype).reshape(self.shape)
