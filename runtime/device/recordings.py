"""Calls that come again and again, recorded as CUDA graphs.

The backbone of a small window is a hundred short kernels, and launching them takes longer than running them. A recorded
call replays them in one launch. It has a context of its own (TensorRT may keep numbers of the shapes in it) and
fixed memory, into which inputs are copied and from which outputs are; so only the backbone is recorded, with
few and small tensors, and only where that memory is small. The per-pixel networks have few kernels and their
sizes hardly ever repeat.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pcsr.runtime.device.arrays import AllocationError, DeviceArray
from pcsr.runtime.device.context import Context
from pcsr.runtime.errors import DeviceMemoryError

__all__ = ["Recordings"]

logger = logging.getLogger(__name__)

RECORDED = "backbone"
# A shape that was seen so often is recorded when it comes once more; of so many shapes.
SEEN, KEPT, REMEMBERED = 2, 4, 64
NEVER = -(1 << 60)
# Of one recording: larger windows keep the GPU busy without it.
LARGEST_BYTES = 64 << 20

Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Recording:
    context: Context
    memory: DeviceArray
    inputs: Mapping[str, DeviceArray]
    outputs: Sequence[DeviceArray]
    replay: Any


class Recordings:
    """Those of one session, the last few by shape."""

    def __init__(self, graphs: Any, stream: Any) -> None:
        self._graphs, self._stream = graphs, stream
        self._kept: OrderedDict[Key, _Recording] = OrderedDict()
        self._seen: OrderedDict[Key, int] = OrderedDict()

    def replay(
        self,
        graph: str,
        inputs: Mapping[str, DeviceArray],
        outputs: Sequence[DeviceArray],
        profile: int,
    ) -> bool:
        """Run a call by its recording, made now if it came often enough; False where there is none."""
        if graph != RECORDED or self._graphs.unrecordable:
            return False
        key = (profile, *(array.shape for array in inputs.values()))
        recording = self._kept.get(key)
        if recording is None:
            if not self._is_due(key):
                return False
            recording = self._record(graph, inputs, outputs, profile)
            if recording is None:
                self._seen[key] = NEVER
                return False
            self._kept[key] = recording
            if len(self._kept) > KEPT:
                self._drop_oldest()
        self._kept.move_to_end(key)
        for name, array in inputs.items():
            self._stream.copy(array, recording.inputs[name])
        self._stream.replay(recording.replay)
        for array, made in zip(outputs, recording.outputs, strict=True):
            self._stream.copy(made, array)
        return True

    def clear(self) -> None:
        """Forget all."""
        if self._kept:
            self._stream.synchronise()
        self._kept.clear()
        self._seen.clear()

    def _drop_oldest(self) -> None:
        # Its last replay may still run: neither its context nor its graph may go before it is done.
        self._stream.synchronise()
        self._kept.popitem(last=False)

    def _is_due(self, key: Key) -> bool:
        self._seen[key] = self._seen.get(key, 0) + 1
        self._seen.move_to_end(key)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return self._seen[key] > SEEN

    def _record(
        self, graph: str, inputs: Mapping[str, DeviceArray], outputs: Sequence[DeviceArray], profile: int
    ) -> _Recording | None:
        stream = self._stream
        if sum(array.nbytes for array in (*inputs.values(), *outputs)) > LARGEST_BYTES:
            return None
        try:
            own_context = self._graphs.context(graph)
            own = {name: stream.array(array.shape, array.dtype) for name, array in inputs.items()}
            made = [stream.array(array.shape, array.dtype) for array in outputs]
            for name, array in inputs.items():
                stream.copy(array, own[name])
            with stream.current():
                memory = own_context.prepare(stream, own, made, profile)
                if memory is None or not own_context.is_recordable(stream):
                    raise RuntimeError("TensorRT refuses")
                if memory.nbytes > LARGEST_BYTES:
                    return None
                # Whatever a context does only once after a change of shapes is not to be recorded.
                if not own_context.execute(stream):
                    raise RuntimeError("the context fails")
                stream.synchronise()
                replay = stream.record(lambda: own_context.execute(stream))
        except (AllocationError, DeviceMemoryError):
            return None
        except Exception as error:  # of CUDA, which share no base but RuntimeError
            self._graphs.unrecordable = True
            logger.warning(
                "calls of graph %s cannot be recorded as CUDA graphs (%s) and are enqueued", graph, error
            )
            return None
        return _Recording(own_context, memory, own, made, replay)
