"""The layer that runs engines, as far as it goes without a GPU: names, order of calls, what follows a failure.

TensorRT-RTX is the real library; where a GPU would be needed, a stand-in answers like the library does.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from pcsr.runtime import Upscaler
from pcsr.runtime.backends import tensorrt as backend
from pcsr.runtime.backends.engines import Description, Engine, Identity, Range, Tuning
from pcsr.runtime.device import engine as layer
from pcsr.runtime.device.arrays import DeviceArray
from pcsr.runtime.device.engine import EngineGraphs
from pcsr.runtime.errors import BackendError, DeviceMemoryError, OptionError
from pcsr.runtime.probe import Gpu

VERSIONS = ("8.6", "10.0", "10", "11.0", "11", "rtx")
OBJECTS = {"trt": "", "runtime": "Runtime.", "engine": "ICudaEngine.", "context": "IExecutionContext."}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_of_tensorrt_is_in_every_version(shared: Path, version: str) -> None:
    lines = (shared / "tensorrt" / f"names-{version}.txt").read_text(encoding="utf-8").splitlines()
    known = {line.partition("\t")[0] for line in lines}
    used = set()
    for node in ast.walk(ast.parse(Path(layer.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and ast.unparse(node).split(".")[0] in OBJECTS:
            first, _, rest = ast.unparse(node).partition(".")
            used.add(OBJECTS[first] + rest)
    used.discard("__version__")
    assert len(used) >= 12
    assert used <= known


class Context:
    """Answers as the library does."""

    def __init__(
        self, log: list[tuple[Any, ...]], outputs: dict[str, tuple[int, ...]], fails: list[bool]
    ) -> None:
        self.log, self.shapes, self.fails = log, outputs, fails

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.log.append(("profile", profile, stream))
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self.log.append(("shape", name, tuple(shape)))
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.log.append(("address", name, address))
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.log.append(("execute", stream))
        return not self.fails.pop(0)


class Library:
    """A module of TensorRT whose one engine doubles: x (n, 3) to y (n, 3)."""

    __version__ = "10.16"
    Logger = type("Logger", (), {"WARNING": 2, "__init__": lambda self, severity: None})
    TensorIOMode = SimpleNamespace(INPUT=1, OUTPUT=2)

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.fails = [False] * 9
        self.contexts = 0
        self.refused_contexts = 0
        self.outputs = {"y": (5, 3)}

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: self if plan == b"plan" else None)

    num_io_tensors = 2

    def get_tensor_name(self, number: int) -> str:
        return ("x", "y")[number]

    def get_tensor_mode(self, name: str) -> int:
        return {"x": 1, "y": 2}[name]

    def create_execution_context(self) -> Context | None:
        if self.refused_contexts:
            self.refused_contexts -= 1
            return None
        self.contexts += 1
        return Context(self.log, self.outputs, self.fails)


class Gpu0:
    """The little of a CuPy device that the layer uses."""

    released = 0

    @contextmanager
    def current(self) -> Iterator[None]:
        yield

    def release(self) -> None:
        self.released += 1


class Stream:
    """Gives memory at ascending aligned addresses, and says what was copied."""

    handle = SimpleNamespace(ptr=77)

    def __init__(self, log: list[tuple[Any, ...]]) -> None:
        self.log, self.next = log, 1 << 20

    def array(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        self.next += 1 << 12
        return DeviceArray(SimpleNamespace(ptr=self.next), 0, tuple(shape), np.dtype(dtype))

    def copy(self, source: DeviceArray, to: DeviceArray) -> None:
        self.log.append(("copy", source.memory.ptr + source.offset, to.memory.ptr))


def engine_file(folder: Path, graph: str, plan: bytes, profiles: int = 1, **identity: Any) -> Engine:
    shapes = {
        "backbone": {"lr": (1, 3, 8, 8)},
        "classifier": {"table": (8, 4, 8), "rows": (64,), "columns": (64,)},
        "upsampler_0": {"table": (8, 4, 8), "rows": (64,), "columns": (64,)},
        "upsampler_1": {"table": (64, 4), "pixel": (100,)},
    }[graph]
    profile = {name: Range((1,) * len(shape), shape, shape) for name, shape in shapes.items()}
    described = Identity(
        graph=graph,
        precision="fp32",
        graph_sha256="0" * 64,
        flavour="tensorrt",
        version="10.16",
        platform="linux-x86_64",
        compute_capabilities=("9.0",),
        gpu="GPU",
        profiles=(profile,) * profiles,
        tuning=Tuning(),
        **identity,
    )
    path = folder / f"{described.stem}.plan"
    path.write_bytes(plan)
    description = Description(described, len(plan), hashlib.sha256(plan).hexdigest())
    path.with_suffix(".json").write_bytes(msgspec.json.encode(description))
    return Engine(path, description)


@pytest.fixture
def library() -> Library:
    return Library()


@pytest.fixture
def graphs(tmp_path: Path, library: Library) -> EngineGraphs:
    names = ("backbone", "classifier", "upsampler_0", "upsampler_1")
    engines = {name: engine_file(tmp_path, name, b"plan") for name in names}
    device: Any = Gpu0()
    return EngineGraphs(library, device, engines, precision="fp32")


def test_shapes_and_addresses_are_set_and_the_graph_is_enqueued(
    graphs: EngineGraphs, library: Library
) -> None:
    stream = Stream(library.log)
    x, y = stream.array((5, 3), np.float32), stream.array((5, 3), np.float32)
    session = graphs.session(stream)
    session.run("upsampler_1", {"x": x}, [y])
    assert library.log == [
        ("profile", 0, 77),
        ("shape", "x", (5, 3)),
        ("address", "x", x.memory.ptr),
        ("address", "y", y.memory.ptr),
        ("execute", 77),
    ]
    library.log.clear()
    session.run("upsampler_1", {"x": x}, [y])
    session.run("upsampler_1", {"x": x}, [y], profile=1)
    assert [entry[1] for entry in library.log if entry[0] == "profile"] == [1]
    assert library.contexts == 1


def test_an_input_that_is_not_aligned_is_copied_first(graphs: EngineGraphs, library: Library) -> None:
    stream = Stream(library.log)
    whole, y = stream.array((9, 3), np.float32), stream.array((5, 3), np.float32)
    graphs.session(stream).run("upsampler_1", {"x": whole.part(3, (5, 3))}, [y])
    copy = next(entry for entry in library.log if entry[0] == "copy")
    assert copy[1] == whole.memory.ptr + 12
    assert ("address", "x", copy[2]) in library.log
    assert copy[2] % 256 == 0


def test_a_context_that_fails_is_replaced_once(
    graphs: EngineGraphs, library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    stream = Stream(library.log)
    x, y = stream.array((5, 3), np.float32), stream.array((5, 3), np.float32)
    session = graphs.session(stream)
    library.fails[:] = [True, False, True, True]
    with caplog.at_level(logging.WARNING):
        session.run("upsampler_1", {"x": x}, [y])
    assert "replaced" in caplog.text
    assert library.contexts == 2
    with pytest.raises(BackendError, match=r"upsampler_1 with x \(5, 3\)"):
        session.run("upsampler_1", {"x": x}, [y])


def test_a_shape_that_is_not_the_contracts_is_an_error(graphs: EngineGraphs, library: Library) -> None:
    stream = Stream(library.log)
    x, y = stream.array((5, 3), np.float32), stream.array((5, 3), np.float32)
    library.outputs["y"] = (3, 5)
    with pytest.raises(BackendError, match="shape"):
        graphs.session(stream).run("upsampler_1", {"x": x}, [y])


def test_no_memory_for_a_context_frees_the_pool_and_tries_again(
    graphs: EngineGraphs, library: Library
) -> None:
    library.refused_contexts = 1
    assert graphs.context("backbone") is not None
    device: Any = graphs._device
    assert device.released == 1
    library.refused_contexts = 2
    with pytest.raises(DeviceMemoryError, match="context"):
        graphs.context("backbone")


def test_a_plan_that_is_refused_or_changed_is_an_error(tmp_path: Path, library: Library) -> None:
    names = ("backbone", "classifier", "upsampler_0", "upsampler_1")
    engines = {name: engine_file(tmp_path, name, b"other") for name in names}
    device: Any = Gpu0()
    graphs = EngineGraphs(library, device, engines, precision="fp32")
    with pytest.raises(BackendError, match="refuses"):
        graphs.context("backbone")
    engines["classifier"].path.write_bytes(b"tampr")
    with pytest.raises(BackendError, match="sha256"):
        graphs.context("classifier")


def test_the_real_library_refuses_rubbish_without_a_gpu_and_nothing_crashes(tmp_path: Path) -> None:
    trt = importlib.import_module("tensorrt_rtx_bindings")
    names = ("backbone", "classifier", "upsampler_0", "upsampler_1")
    device: Any = Gpu0()
    engines = {name: engine_file(tmp_path, name, b"rubbish") for name in names}
    graphs = EngineGraphs(trt, device, engines, precision="fp32")
    with pytest.raises(BackendError):
        graphs.context("backbone")


class TestOpening:
    def test_the_processor_is_no_place_for_it(self, small_bundle: Path) -> None:
        with pytest.raises(OptionError, match="cuda"):
            Upscaler.open(small_bundle, backend="tensorrt")

    def test_without_a_gpu_it_says_so(self, small_bundle: Path) -> None:
        with pytest.raises(BackendError, match="NVIDIA"):
            Upscaler.open(small_bundle, backend="tensorrt", device="cuda")

    def test_auto_says_what_it_leaves_out_and_goes_on_on_the_device(
        self, small_bundle: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with (
            caplog.at_level(logging.INFO, "pcsr.runtime.backends.choice"),
            pytest.raises(BackendError, match="CUDAExecutionProvider"),
        ):
            Upscaler.open(small_bundle, device="cuda:0")
        assert "not running by tensorrt" in caplog.text

    @pytest.fixture
    def as_if_on_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
        def pretend(version: str | None) -> None:
            gpu = Gpu(name="GPU", compute_capability="9.0", memory=1 << 36, cuda="12.8")
            monkeypatch.setattr(backend, "_gpu", lambda index: gpu)
            monkeypatch.setattr(backend, "_is_installed", lambda flavour: version and flavour == "tensorrt")
            monkeypatch.setattr(backend, "_version", lambda module: version)

        return pretend

    def test_without_engines_it_names_the_command(
        self, small_bundle: Path, tmp_path: Path, as_if_on_a_gpu: Callable[[str | None], None]
    ) -> None:
        as_if_on_a_gpu("10.16")
        with pytest.raises(BackendError, match=rf"pcsr-export {small_bundle} --trt --precision fp16"):
            Upscaler.open(small_bundle, backend="tensorrt", device="cuda", engine_cache=tmp_path)

    def test_without_tensorrt_it_names_the_extra(
        self, small_bundle: Path, as_if_on_a_gpu: Callable[[str | None], None]
    ) -> None:
        as_if_on_a_gpu(None)
        with pytest.raises(BackendError, match=r"pip install 'pcsr\[trt\]'"):
            Upscaler.open(small_bundle, backend="tensorrt", device="cuda")
