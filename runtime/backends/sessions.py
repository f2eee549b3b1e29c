"""Sessions of ONNX Runtime on the CPU: a graph opened for any size of its input, or for one."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.backends.graphs import Run
from pcsr.runtime.errors import BackendError, MemoryLimitError

__all__ = ["Graph", "SizedBackbone"]

PROVIDER = "CPUExecutionProvider"
# What its exceptions say where memory ends; they have no type of their own.
OUT_OF_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation", "Unable to allocate")
# Opening a session takes 10 ms and more: from here on a first window loses little by it, and the next ones gain
# (docs/performance.md).
SIZED_PIXELS = 1 << 15

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Graph:
    """A serialised graph that may be opened several times.

    Attributes:
        ort: ONNX Runtime.
        model: serialised ONNX.
        where: what to call it in an error.
    """

    ort: ModuleType
    model: bytes
    where: str

    def open(self, threads: int, size: Size | None = None) -> Run:
        """Open it.

        Args:
            threads: of the session.
            size: the h and w that every input will have; None: any.

        Raises:
            BackendError: ONNX Runtime refuses the graph; so does the returned callable where it fails.
        """
        session = self._session(threads, size)
        outputs = session.get_outputs()
        sized = size is not None and all(map(_is_known, outputs))

        def run(feed: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
            try:
                made: Sequence[NDArray[Any]] = (
                    _run_into_own(session, outputs, feed) if sized else session.run(None, feed)
                )
                return made
            except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
                if any(words in str(error) for words in OUT_OF_MEMORY):
                    raise MemoryLimitError(
                        f"there is not enough memory to run {self.where}; give a lower memory limit, or smaller tiles"
                    ) from error
                raise BackendError(
                    f"ONNX Runtime cannot run {self.where}: {error}; export the bundle anew with --force"
                ) from error

        return run

    def _session(self, threads: int, size: Size | None) -> Any:
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # A memory pattern is one large block for each shape ever seen, beside what the arena holds already: with
        # tiles of several sizes that doubles the memory and gains no time (docs/performance.md).
        options.enable_mem_pattern = False
        # Threads that spin while they wait would take the cores from the workers of the other stages.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # A linear layer with int8 weights behind a DequantizeLinear would be computed with inputs rounded to 8 bits
        # too, by scales of its own: an int8 graph says by itself what is rounded.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if size is not None:
            for name, length in zip("hw", size, strict=True):
                options.add_free_dimension_override_by_name(name, length)
        try:
            return self.ort.InferenceSession(self.model, options, providers=[PROVIDER])
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            raise BackendError(f"ONNX Runtime refuses {self.where}: {error}") from error


class SizedBackbone:
    """Runs a backbone's graph, a large window in a session for its very height and width.

    Where ONNX Runtime does not know them, it does not see that a sum of two feature maps may take the place of one of
    them, and first copies that, on one thread. The results are the same.

    One session is kept, that of the last run, as each holds the memory that its window needs. Callers at the same
    time with windows of several sizes open theirs anew each time.
    """

    def __init__(self, graph: Graph, threads: int) -> None:
        """Open the graph for windows of any size.

        Raises:
            BackendError: ONNX Runtime refuses it.
        """
        self._graph, self._threads = graph, threads
        self._opening = threading.Lock()
        self._kept: tuple[Size | None, Run] | None = (None, graph.open(threads))

    def __call__(self, feed: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """Run it.

        Raises:
            BackendError: ONNX Runtime cannot.
            MemoryLimitError: there is not enough memory.
        """
        h, w = feed["lr"].shape[2:]
        return self._opened((h, w) if h * w >= SIZED_PIXELS else None)(feed)

    def _opened(self, size: Size | None) -> Run:
        with self._opening:
            if self._kept is None or self._kept[0] != size:
                # The memory of one goes before that of the next comes.
                self._kept = None
                self._kept = size, self._graph.open(self._threads, size)
            return self._kept[1]


def _is_known(output: Any) -> bool:
    """Whether a session says all about an output of float32."""
    return output.type == "tensor(float)" and all(isinstance(length, int) for length in output.shape)


def _run_into_own(
    session: Any, outputs: Sequence[Any], feed: Mapping[str, NDArray[Any]]
) -> list[NDArray[np.float32]]:
    """Run a session into arrays of NumPy, whose shapes it knows.

    Its own arrays would lie among its other tensors, and keep the memory of all of them when it is closed.
    """
    made = [np.empty(output.shape, dtype=np.float32) for output in outputs]
    binding = session.io_binding()
    for name, values in feed.items():
        binding.bind_cpu_input(name, values)
    for output, array in zip(outputs, made, strict=True):
        binding.bind_output(output.name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
    session.run_with_iobinding(binding)
    return made
