"""Engines of TensorRT run on streams. Uses only what TensorRT 8.6, 10, 11 and TensorRT-RTX share.

Thin on purpose: shapes and addresses in, work on a stream out. The road sees to it that shapes lie within the
profiles. Nothing is captured into CUDA graphs: a graph needs a context of its own and fixed addresses, and whether
that pays is for a GPU to say.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from pcsr.runtime.backends.engines import Engine
from pcsr.runtime.backends.profiles import Limits, limits
from pcsr.runtime.device.arrays import DeviceArray
from pcsr.runtime.device.cupy_device import CupyDevice
from pcsr.runtime.errors import BackendError, DeviceMemoryError

__all__ = ["EngineGraphs"]

logger = logging.getLogger(__name__)

# What memory from CUDA is aligned to; parts of an array need not be.
ALIGNMENT = 256


class EngineGraphs:
    """The engines of a bundle in one precision; see `Graphs`. They are loaded when a session first wants one."""

    def __init__(
        self, trt: Any, device: CupyDevice, engines: Mapping[str, Engine], *, precision: str
    ) -> None:
        """Take engines that fit this machine.

        Args:
            trt: the module, `tensorrt` or `tensorrt_rtx_bindings`.
            device: where they run.
            engines: by graph, as `find_engines` gives them.
            precision: of theirs.

        Raises:
            BackendError: they are no full set.
        """
        self.precision = precision
        self.limits: Limits = limits({name: file.identity.profiles for name, file in engines.items()})
        self._trt, self._device, self._files = trt, device, dict(engines)
        self._logger = trt.Logger(trt.Logger.WARNING)
        self._runtime: Any = None
        self._engines: dict[str, Any] = {}
        self._lock = threading.Lock()

    def session(self, stream: Any) -> _Session:
        """For one caller on one stream."""
        return _Session(self, stream)

    def context(self, graph: str) -> Any:
        """A new execution context.

        Raises:
            BackendError: the plan is damaged, or TensorRT refuses it.
            DeviceMemoryError: there is no memory for what the context needs.
        """
        with self._lock, self._device.current():
            if graph not in self._engines:
                self._engines[graph] = self._load(graph)
            engine = self._engines[graph]
            context = engine.create_execution_context()
            if context is None:
                # The pool may hold what it needs.
                self._device.release()
                context = engine.create_execution_context()
        if context is None:
            raise DeviceMemoryError(
                f"TensorRT makes no execution context for graph {graph}, as a rule for want of the device's memory; "
                "lower memory_limit, which leaves it more, or build engines for smaller shapes (--max-lr, --points)"
            )
        return context

    def outputs(self, graph: str) -> list[str]:
        """Names of a graph's outputs, in its order."""
        engine, trt = self._engines[graph], self._trt
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        return [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]

    def close(self) -> None:
        """Unload them."""
        with self._lock, self._device.current():
            self._engines.clear()
            self._runtime = None

    def _load(self, graph: str) -> Any:
        file, trt = self._files[graph], self._trt
        plan = file.read()
        if self._runtime is None:
            self._runtime = trt.Runtime(self._logger)
            if self._runtime is None:
                raise BackendError("TensorRT makes no runtime here; pcsr-doctor says what is missing")
        runtime = self._runtime
        if file.identity.tuning.version_compat:
            # Such a plan brings the runtime of its version along as machine code. Its hash was checked.
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(
                f"TensorRT {trt.__version__} refuses {file.path} (its message above says why); build it anew"
            )
        return engine


class _Session:
    """See `Session`."""

    def __init__(self, graphs: EngineGraphs, stream: Any) -> None:
        self._graphs, self._stream = graphs, stream
        self._contexts: dict[str, tuple[Any, list[str], int]] = {}

    def run(
        self,
        graph: str,
        inputs: Mapping[str, DeviceArray],
        outputs: Sequence[DeviceArray],
        *,
        profile: int = 0,
    ) -> None:
        """Enqueue; a context that fails is replaced once."""
        if self._enqueue(graph, inputs, outputs, profile):
            return
        logger.warning("an execution context of graph %s failed and is replaced", graph)
        del self._contexts[graph]
        if not self._enqueue(graph, inputs, outputs, profile):
            shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
            raise BackendError(
                f"TensorRT cannot run graph {graph} with {shapes}; its message above says why, and pcsr-doctor what "
                "does not work here"
            )

    def _enqueue(
        self, graph: str, inputs: Mapping[str, DeviceArray], outputs: Sequence[DeviceArray], profile: int
    ) -> bool:
        context, names = self._context(graph, profile)
        if context is None:
            return False
        if len(names) != len(outputs):
            raise BackendError(
                f"the engine of graph {graph} has the outputs {', '.join(names)}; build it anew"
            )
        with self._graphs._device.current():
            # Held until the work is enqueued: what is freed before may be used again by the next copy.
            aligned = {name: self._aligned(array) for name, array in inputs.items()}
            for name, array in aligned.items():
                address = int(array.memory.ptr + array.offset)
                if not (
                    context.set_input_shape(name, array.shape) and context.set_tensor_address(name, address)
                ):
                    return False
            for name, array in zip(names, outputs, strict=True):
                shape = tuple(context.get_tensor_shape(name))
                if shape != array.shape:
                    raise BackendError(
                        f"output {name} of graph {graph} has the shape {shape} and not {array.shape}; build it anew"
                    )
                if not context.set_tensor_address(name, array.memory.ptr + array.offset):
                    return False
            return bool(context.execute_async_v3(self._stream.handle.ptr))

    def _context(self, graph: str, profile: int) -> tuple[Any, list[str]]:
        """The context of a graph, in a profile; None where it cannot take it."""
        if graph not in self._contexts:
            context = self._graphs.context(graph)
            # The first context of an engine starts in profile 0, others in none.
            self._contexts[graph] = context, self._graphs.outputs(graph), -1
        context, names, current = self._contexts[graph]
        if current != profile:
            with self._graphs._device.current():
                if not context.set_optimization_profile_async(profile, self._stream.handle.ptr):
                    return None, names
            self._contexts[graph] = context, names, profile
        return context, names

    def _aligned(self, array: DeviceArray) -> DeviceArray:
        if (array.memory.ptr + array.offset) % ALIGNMENT == 0:
            return array
        copy: DeviceArray = self._stream.array(array.shape, array.dtype)
        self._stream.copy(array, copy)
        return copy
