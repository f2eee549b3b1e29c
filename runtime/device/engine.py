"""Engines of TensorRT run on streams. Uses only what TensorRT 8.6, 10, 11 and TensorRT-RTX share.

Thin on purpose: shapes and addresses in, work on a stream out. The road sees to it that shapes lie within the
profiles. What a call works in comes from the device's pool and goes back at once, so it is counted with all else
and contexts share it. Calls that come again and again are recorded as CUDA graphs: `recordings`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from pcsr.runtime.backends.engines import Engine
from pcsr.runtime.backends.profiles import Limits, limits
from pcsr.runtime.device.arrays import DeviceArray, aligned
from pcsr.runtime.device.context import Context, new_context
from pcsr.runtime.device.cupy_device import CupyDevice
from pcsr.runtime.device.recordings import Recordings
from pcsr.runtime.errors import BackendError, DeviceMemoryError

__all__ = ["EngineGraphs"]

logger = logging.getLogger(__name__)


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
        self.unrecordable = False
        self.limits: Limits = limits({name: file.identity.profiles for name, file in engines.items()})
        self._trt, self._device, self._files = trt, device, dict(engines)
        self._logger = trt.Logger(trt.Logger.WARNING)
        self._runtime: Any = None
        self._engines: dict[str, Any] = {}
        self._lock = threading.Lock()

    def session(self, stream: Any) -> _Session:
        """For one caller on one stream."""
        return _Session(self, stream)

    def context(self, graph: str) -> Context:
        """A new execution context, which works in memory that it is given for each call.

        Raises:
            BackendError: the plan is damaged, or TensorRT refuses it.
            DeviceMemoryError: there is no memory for what the context keeps.
        """
        with self._lock, self._device.current():
            if graph not in self._engines:
                self._engines[graph] = self._load(graph)
            engine = self._engines[graph]
            handle = new_context(self._trt, engine)
            if handle is None:
                # The pool may hold what it needs.
                self._device.release()
                handle = new_context(self._trt, engine)
        if handle is None:
            raise DeviceMemoryError(
                f"TensorRT makes no execution context for graph {graph}, as a rule for want of the device's memory; "
                "lower memory_limit, which leaves it more, or build engines for smaller shapes (--max-lr, --points)"
            )
        return Context(graph, engine, handle, self._outputs(engine))

    def _outputs(self, engine: Any) -> list[str]:
        """Names of an engine's outputs, in its order."""
        trt = self._trt
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
        self._contexts: dict[str, Context] = {}
        self._recordings = Recordings(graphs, stream)

    def run(
        self,
        graph: str,
        inputs: Mapping[str, DeviceArray],
        outputs: Sequence[DeviceArray],
        *,
        profile: int = 0,
    ) -> None:
        """Enqueue; a context that fails is replaced once."""
        # Held until the work is enqueued: what is freed before may be used again by the next copy.
        arrays = {name: aligned(array, self._stream) for name, array in inputs.items()}
        if self._recordings.replay(graph, arrays, outputs, profile):
            return
        if graph not in self._contexts:
            self._contexts[graph] = self._graphs.context(graph)
        if self._contexts[graph].enqueue(self._stream, arrays, outputs, profile):
            return
        logger.warning("an execution context of graph %s failed and is replaced", graph)
        del self._contexts[graph]
        self._contexts[graph] = self._graphs.context(graph)
        if not self._contexts[graph].enqueue(self._stream, arrays, outputs, profile):
            shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
            raise BackendError(
                f"TensorRT cannot run graph {graph} with {shapes}; its message above says why, and pcsr-doctor what "
                "does not work here"
            )

    def release(self) -> None:
        """Forget recordings, whose memory is better used elsewhere now."""
        self._recordings.clear()
