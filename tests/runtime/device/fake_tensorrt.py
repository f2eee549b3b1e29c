"""A stand-in for TensorRT 10: plans are ONNX graphs, which ONNX Runtime runs at the addresses that a context is given.

It is as strict as the library: shapes must lie in the profile that was chosen, everything must be set before a call,
and the memory that a call works in must be there, which the call overwrites.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from fake_cupy import FREED, FakeCupy

from pcsr.runtime.backends.engines import Engine

__all__ = ["FakeTensorrt"]

WORKING_BYTES = 4096
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int32)": np.int32}


class FakeTensorrt:
    """The module `tensorrt`.

    Attributes:
        executed: (graph, profile, shapes) of every call.
        contexts: that are made.
    """

    __version__ = "10.16"
    Logger = type("Logger", (), {"WARNING": 2, "__init__": lambda self, severity: None})
    TensorIOMode = SimpleNamespace(INPUT=1, OUTPUT=2)
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")

    def __init__(self, cupy: FakeCupy, engines: Mapping[str, Engine]) -> None:
        self.cupy = cupy
        self.executed: list[tuple[str, int, dict[str, tuple[int, ...]]]] = []
        self.contexts = 0
        self._by_plan = {engine.path.read_bytes(): engine for engine in engines.values()}

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(
            deserialize_cuda_engine=lambda plan: FakeEngine(self, plan, self._by_plan[bytes(plan)])
        )


class FakeEngine:
    """As `ICudaEngine`."""

    def __init__(self, library: FakeTensorrt, plan: bytes, file: Engine) -> None:
        self.library, self.identity = library, file.identity
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(bytes(plan), options, providers=["CPUExecutionProvider"])
        self.inputs = {each.name: each for each in self.session.get_inputs()}
        self.outputs = {each.name: each for each in self.session.get_outputs()}
        self.num_io_tensors = len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, number: int) -> str:
        return [*self.inputs, *self.outputs][number]

    def get_tensor_mode(self, name: str) -> int:
        return 1 if name in self.inputs else 2

    def create_execution_context(self, strategy: str) -> FakeContext:
        assert strategy == "user managed"
        self.library.contexts += 1
        return FakeContext(self)


class FakeContext:
    """As `IExecutionContext`."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self.device_memory = 0

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream
        # Shapes are those of a profile and go with it.
        self._profile, self._shapes = profile, {}
        return profile < len(self._engine.identity.profiles)

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        assert self._profile is not None
        self._shapes[name] = tuple(shape)
        return self._engine.identity.profiles[self._profile][name].holds(shape)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sides: dict[Any, int] = {}
        for each, shape in self._shapes.items():
            for symbol, side in zip(self._engine.inputs[each].shape, shape, strict=True):
                assert sides.setdefault(symbol, side) == side, (each, symbol)
        return tuple(sides.get(symbol, symbol) for symbol in self._engine.outputs[name].shape)

    def update_device_memory_size_for_shapes(self) -> int:
        assert self._shapes.keys() == self._engine.inputs.keys()
        return WORKING_BYTES

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address % 256 == 0

    def execute_async_v3(self, stream: int) -> bool:
        engine = self._engine
        everything = engine.inputs | engine.outputs
        assert self._addresses.keys() == everything.keys()
        assert self.device_memory
        shapes = {**self._shapes, **{name: self.get_tensor_shape(name) for name in engine.outputs}}
        addresses, memory = dict(self._addresses), self.device_memory
        engine.library.executed.append((engine.identity.graph, self._profile or 0, shapes))

        def work() -> None:
            ctypes.memset(memory, FREED, WORKING_BYTES)
            binding = engine.session.io_binding()
            for name, each in everything.items():
                bind = binding.bind_input if name in engine.inputs else binding.bind_output
                bind(name, "cpu", 0, TYPES[each.type], shapes[name], addresses[name])
            engine.session.run_with_iobinding(binding)

        engine.library.cupy._do(stream, work)
        return True
