"""Graphs run by ONNX Runtime in a device's own memory, through IO binding: nothing is copied, nothing goes to the host.

Every session works on one stream, so a lane has sessions of its own; with graphs of a few megabytes that costs little.
A GPU is not waited for: what a call enqueues is in the stream's order, like a kernel.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from pcsr.runtime.backends.profiles import Limits
from pcsr.runtime.bundle import Bundle
from pcsr.runtime.device.arrays import AllocationError, Device, DeviceArray, Stream, aligned
from pcsr.runtime.errors import BackendError

__all__ = ["OnnxRuntimeGraphs"]

logger = logging.getLogger(__name__)

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# ONNX Runtime has no profiles: memory alone bounds a call. 2^20 rows of a heavy layer take 300 MB.
SIDE, ANY, POINTS = 1 << 15, 1 << 30, 1 << 20
LIMITS = Limits(
    windows=(((1, 1), (SIDE, SIDE)),), table=(SIDE, SIDE), block=(ANY, ANY), points=POINTS, flat=SIDE * SIDE
)
# What its exceptions say where memory ends; they have no type of their own.
OUT_OF_MEMORY = ("Failed to allocate memory", "out of memory", "ALLOC_FAILED")

Shape = tuple[Any, tuple[int, ...]]
"""Type and shape of a tensor."""


class OnnxRuntimeGraphs:
    """The graphs of a bundle in one precision; see `Graphs`."""

    def __init__(
        self,
        ort: ModuleType,
        bundle: Bundle,
        device: Device,
        *,
        precision: str,
        limits: Limits = LIMITS,
    ) -> None:
        """Try the provider on a first graph.

        Args:
            ort: the module `onnxruntime`.
            bundle: whose graphs they are.
            device: where they run.
            precision: of them.
            limits: of a call.

        Raises:
            BackendError: ONNX Runtime refuses a graph, or takes another provider than the device's.
            BundleError: the bundle lacks the precision.
        """
        self.precision = precision
        self._ort, self._bundle, self._device = ort, bundle, device
        self._files = bundle.graphs(precision)
        self._said = False
        self.limits = limits
        self.open("classifier", None)

    def session(self, stream: Stream) -> _Session:
        """For one caller on one stream."""
        return _Session(self, stream)

    def open(self, graph: str, stream: Stream | None) -> Any:
        """An ONNX Runtime session that works on a stream; None: on one of its own.

        Raises:
            BackendError: ONNX Runtime refuses the graph, or takes another provider than the device's.
        """
        where = f"graph {graph} ({self._bundle.path / self._files[graph].path})"
        model, provider = self._bundle.read(self._files[graph]), PROVIDERS[self._device.kind]
        options: dict[str, Any] = {}
        if self._device.kind == "cuda":
            options = {
                "device_id": self._device.index,
                # Windows come in many shapes; a search among all algorithms for each would take seconds.
                "cudnn_conv_algo_search": "HEURISTIC",
                "arena_extend_strategy": "kSameAsRequested",
                # On by default, and no more exact than half precision.
                "use_tf32": "0",
                **({} if stream is None else {"user_compute_stream": str(stream.pointer)}),
            }
        try:
            session = self._start(model, (provider, options), alone=True)
        except Exception as first:  # ONNX Runtime's exceptions share no base but Exception
            try:
                session = self._start(model, (provider, options), alone=False)
            except Exception as error:
                raise BackendError(f"ONNX Runtime refuses {where}: {error}") from error
            if not self._said:
                self._said = True
                logger.warning("parts of %s run on the processor: %s", where, first)
        got = session.get_providers()
        if got[0] != provider:
            raise BackendError(
                f"{where} was to run on {provider} and ONNX Runtime gave {', '.join(got)}; its message above this "
                "one says why (often a CUDA or cuDNN library of another version)"
            )
        return session

    def run(self, graph: str, session: Any, shapes: Mapping[str, Shape], addresses: Sequence[int]) -> None:
        """Run a session on inputs and outputs by name, each with its type and shape, at the given addresses.

        Raises:
            AllocationError: the device has no memory for what the graph needs.
            BackendError: it fails otherwise.
        """
        binding, device = session.io_binding(), (self._device.kind, self._device.index)
        inputs = {each.name for each in session.get_inputs()}
        for (name, (kind, shape)), address in zip(shapes.items(), addresses, strict=True):
            bind = binding.bind_input if name in inputs else binding.bind_output
            bind(name, *device, kind, shape, address)
        options = self._ort.RunOptions()
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        try:
            session.run_with_iobinding(binding, options)
        except Exception as error:  # see above
            if any(words in str(error) for words in OUT_OF_MEMORY):
                raise AllocationError from error
            given = ", ".join(f"{name} {shape}" for name, (_, shape) in shapes.items())
            raise BackendError(f"ONNX Runtime cannot run graph {graph} with {given}: {error}") from error

    def close(self) -> None:
        """Nothing is held here: sessions are the lanes'."""

    def _start(self, model: bytes, provider: tuple[str, dict[str, Any]], *, alone: bool) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # One block for every shape ever seen would be kept: docs/performance.md.
        options.enable_mem_pattern = False
        if alone and provider[0] != PROVIDERS["cpu"]:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return self._ort.InferenceSession(model, options, providers=[provider])


class _Session:
    """See `Session`."""

    def __init__(self, graphs: OnnxRuntimeGraphs, stream: Stream) -> None:
        self._graphs, self._stream = graphs, stream
        self._sessions: dict[str, Any] = {}

    def run(
        self,
        graph: str,
        inputs: Mapping[str, DeviceArray],
        outputs: Sequence[DeviceArray],
        *,
        profile: int = 0,
    ) -> None:
        """Enqueue."""
        if graph not in self._sessions:
            self._sessions[graph] = self._graphs.open(graph, self._stream)
        session = self._sessions[graph]
        names = [each.name for each in session.get_outputs()]
        arrays = {name: aligned(array, self._stream) for name, array in inputs.items()}
        arrays |= zip(names, outputs, strict=True)
        shapes = {name: (array.dtype.type, array.shape) for name, array in arrays.items()}
        self._stream.hand_over(
            graph, lambda *addresses: self._graphs.run(graph, session, shapes, addresses), *arrays.values()
        )

    def release(self) -> None:
        """Nothing is kept that only saves time."""
