"""An execution context of TensorRT, and the memory it works in: where versions differ, they do so here.

A context keeps little of its own. What a call works in is allocated for its very shapes, which TensorRT tells from
version 10 on; version 8 asks for what its largest profile needs. The memory may be freed as soon as the call is
enqueued: whoever gets it next is behind it on the same stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pcsr.runtime.device.arrays import DeviceArray
from pcsr.runtime.errors import BackendError

__all__ = ["Context", "new_context"]


def new_context(trt: Any, engine: Any) -> Any:
    """A context without memory; None where TensorRT makes none."""
    if hasattr(trt, "ExecutionContextAllocationStrategy"):
        return engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    return engine.create_execution_context_without_device_memory()


class Context:
    """A context of one graph, for one stream."""

    def __init__(self, graph: str, engine: Any, handle: Any, outputs: Sequence[str]) -> None:
        self._graph, self._engine, self._handle, self._outputs = graph, engine, handle, outputs
        # The first context of an engine starts in profile 0, others in none.
        self._profile = -1

    def enqueue(
        self,
        stream: Any,
        inputs: Mapping[str, DeviceArray],
        outputs: Sequence[DeviceArray],
        profile: int,
    ) -> bool:
        """Run the graph on a stream; False where TensorRT refuses.

        Raises:
            BackendError: the engine is of another graph: its outputs are others.
            AllocationError: there is no memory to work in.
        """
        with stream.current():
            memory = self.prepare(stream, inputs, outputs, profile)
            return memory is not None and self.execute(stream)

    def prepare(
        self,
        stream: Any,
        inputs: Mapping[str, DeviceArray],
        outputs: Sequence[DeviceArray],
        profile: int,
    ) -> DeviceArray | None:
        """Set shapes and addresses; the memory to work in, or None where TensorRT refuses. Raises as `enqueue`."""
        context = self._handle
        if len(self._outputs) != len(outputs):
            raise BackendError(
                f"the engine of graph {self._graph} has the outputs {', '.join(self._outputs)}; build it anew"
            )
        if self._profile != profile:
            if not context.set_optimization_profile_async(profile, stream.pointer):
                return None
            self._profile = profile
        for name, array in inputs.items():
            if not context.set_input_shape(name, array.shape):
                return None
        for name, array in zip(self._outputs, outputs, strict=True):
            shape = tuple(context.get_tensor_shape(name))
            if shape != array.shape:
                raise BackendError(
                    f"output {name} of graph {self._graph} has the shape {shape} and not {array.shape}; build it anew"
                )
        memory: DeviceArray = stream.array((max(self._working_bytes(), 1),), np.uint8)
        context.device_memory = address(memory)
        named = {**inputs, **dict(zip(self._outputs, outputs, strict=True))}
        if not all(context.set_tensor_address(name, address(array)) for name, array in named.items()):
            return None
        return memory

    def execute(self, stream: Any) -> bool:
        """Enqueue what was prepared."""
        context = self._handle
        return bool(context.execute_async_v3(stream.pointer))

    def is_recordable(self, stream: Any) -> bool:
        """Whether a CUDA graph can be made of it: TensorRT-RTX says so, others show it when it is tried."""
        context = self._handle
        return not hasattr(context, "is_stream_capturable") or bool(
            context.is_stream_capturable(stream.pointer)
        )

    def _working_bytes(self) -> int:
        context, engine = self._handle, self._engine
        if hasattr(context, "update_device_memory_size_for_shapes"):
            return int(context.update_device_memory_size_for_shapes())
        return int(engine.device_memory_size)


def address(array: DeviceArray) -> int:
    """Of an array's first element."""
    return int(array.memory.ptr) + array.offset
