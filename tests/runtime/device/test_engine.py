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
from pcsr.runtime.device import context, recordings
from pcsr.runtime.device import engine as layer
from pcsr.runtime.device.arrays import DeviceArray
from pcsr.runtime.device.engine import EngineGraphs
from pcsr.runtime.errors import BackendError, DeviceMemoryError, OptionError
from pcsr.runtime.probe import Gpu

VERSIONS = ("8.6", "10.0", "10", "11.0", "11", "rtx")
OBJECTS = {"trt": "", "runtime": "Runtime.", "engine": "ICudaEngine.", "context": "IExecutionContext."}


# What one kind of version has and others lack; the layer asks before it uses them.
SINCE_10 = {
    "ExecutionContextAllocationStrategy",
    "ExecutionContextAllocationStrategy.USER_MANAGED",
    "ICudaEngine.create_execution_context",
    "IExecutionContext.update_device_memory_size_for_shapes",
}
ONLY_8 = {"ICudaEngine.create_execution_context_without_device_memory", "ICudaEngine.device_memory_size"}
ONLY_RTX = {"IExecutionContext.is_stream_capturable"}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_of_tensorrt_is_in_every_version_that_the_path_serves(shared: Path, version: str) -> None:
    lines = (shared / "tensorrt" / f"names-{version}.txt").read_text(encoding="utf-8").splitlines()
    known = {line.partition("\t")[0] for line in lines}
    used = set()
    for module in (layer, context, recordings):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node).split(".")[0] in OBJECTS:
                first, _, rest = ast.unparse(node).partition(".")
                used.add(OBJECTS[first] + rest)
    used.discard("__version__")
    assert used >= SINCE_10 | ONLY_8 | ONLY_RTX
    assert len(used) >= 17
    used -= ONLY_8 if version != "8.6" else SINCE_10
    used -= ONLY_RTX if version != "rtx" else set()
    assert used <= known
    assert (version == "8.6") == ("ExecutionContextAllocationStrategy" not in known)


Log = list[tuple[Any, ...]]


class Execution:
    """A context of version 8, which answers as the library does."""

    def __init__(self, library: Library) -> None:
        self.library, self.log = library, library.log

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.log.append(("profile", profile, stream))
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self.log.append(("shape", name, tuple(shape)))
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.library.outputs[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.log.append(("address", name, address))
        return True

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "device_memory":
            self.log.append(("memory", value))
        super().__setattr__(name, value)

    def execute_async_v3(self, stream: int) -> bool:
        self.log.append(("execute", stream))
        return not (self.library.fails and self.library.fails.pop(0))


class ExecutionSince10(Execution):
    def update_device_memory_size_for_shapes(self) -> int:
        self.log.append(("size",))
        return self.library.working_bytes


class ExecutionOfRtx(ExecutionSince10):
    def is_stream_capturable(self, stream: int) -> bool:
        self.log.append(("asked", stream))
        return False


class Library:
    """A module of TensorRT 8.6 whose one engine doubles: x (n, 3) to y (n, 3)."""

    __version__ = "8.6"
    Logger = type("Logger", (), {"WARNING": 2, "__init__": lambda self, severity: None})
    TensorIOMode = SimpleNamespace(INPUT=1, OUTPUT=2)
    execution: type[Execution] = Execution

    def __init__(self) -> None:
        self.log: Log = []
        self.fails: list[bool] = []
        self.contexts = 0
        self.refused_contexts = 0
        self.outputs = {"y": (5, 3)}
        self.working_bytes = 1000
        self.engine = self._engine()

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: self.engine if plan == b"plan" else None)

    def _engine(self) -> Any:
        return SimpleNamespace(
            num_io_tensors=2,
            get_tensor_name=lambda number: ("x", "y")[number],
            get_tensor_mode=lambda name: {"x": 1, "y": 2}[name],
            create_execution_context_without_device_memory=self.new,
            device_memory_size=self.working_bytes,
        )

    def new(self) -> Execution | None:
        if self.refused_contexts:
            self.refused_contexts -= 1
            return None
        self.contexts += 1
        return self.execution(self)


class Library10(Library):
    __version__ = "10.16"
    execution = ExecutionSince10
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")

    def _engine(self) -> Any:
        def create_execution_context(strategy: str) -> Execution | None:
            assert strategy == "user managed"
            return self.new()

        engine = super()._engine()
        del engine.create_execution_context_without_device_memory, engine.device_memory_size
        engine.create_execution_context = create_execution_context
        return engine


class LibraryRtx(Library10):
    __version__ = "1.7"
    execution = ExecutionOfRtx


class Gpu0:
    """The little of a CuPy device that the layer uses."""

    released = 0

    @contextmanager
    def current(self) -> Iterator[None]:
        yield

    def release(self) -> None:
        self.released += 1


class Stream:
    """Gives memory at ascending aligned addresses, and says what was copied and recorded."""

    pointer = 77

    def __init__(self, log: Log) -> None:
        self.log, self.next = log, 1 << 20
        self.recordable = True

    @contextmanager
    def current(self) -> Iterator[None]:
        yield

    def array(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        self.next += 1 << 12
        return DeviceArray(SimpleNamespace(ptr=self.next), 0, tuple(shape), np.dtype(dtype))

    def copy(self, array: DeviceArray, to: DeviceArray) -> None:
        self.log.append(("copy", array.memory.ptr + array.offset, to.memory.ptr))

    def synchronise(self) -> None:
        self.log.append(("synchronise",))

    def record(self, work: Callable[[], bool]) -> str:
        if not self.recordable:
            raise RuntimeError("cudaErrorStreamCaptureInvalidated")
        self.log.append(("record",))
        assert work()
        return "graph"

    def replay(self, graph: str) -> None:
        self.log.append(("replay", graph))


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


@pytest.fixture(params=[Library, Library10, LibraryRtx])
def library(request: pytest.FixtureRequest) -> Library:
    made: Library = request.param()
    return made


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
    # Shapes before the size of the memory, which depends on them.
    assert library.log == [
        ("profile", 0, 77),
        ("shape", "x", (5, 3)),
        *([] if type(library) is Library else [("size",)]),
        ("memory", y.memory.ptr + (1 << 12)),
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


class TestRecordings:
    """CUDA graphs of the backbone's calls, whose shapes repeat."""

    def runs(
        self, graphs: EngineGraphs, library: Library, times: int, graph: str = "backbone"
    ) -> tuple[Any, Stream]:
        stream = Stream(library.log)
        session = graphs.session(stream)
        for _ in range(times):
            self.run(session, stream, graph)
        return session, stream

    def run(self, session: Any, stream: Stream, graph: str = "backbone") -> tuple[DeviceArray, DeviceArray]:
        x, y = stream.array((5, 3), np.float32), stream.array((5, 3), np.float32)
        session.run(graph, {"x": x}, [y])
        return x, y

    @pytest.fixture
    def library(self) -> Library:
        return Library10()

    def test_a_shape_that_comes_again_is_recorded_and_replayed_on_the_callers_arrays(
        self, graphs: EngineGraphs, library: Library
    ) -> None:
        session, stream = self.runs(graphs, library, 2)
        library.log.clear()
        self.run(session, stream)
        kinds = [entry[0] for entry in library.log]
        # A context of its own, run once and waited for before it is recorded.
        assert library.contexts == 2
        assert kinds[-7:] == ["execute", "synchronise", "record", "execute", "copy", "replay", "copy"]
        own_x, own_y = (entry[2] for entry in library.log if entry[0] == "address")
        library.log.clear()
        x, y = self.run(session, stream)
        assert library.log == [
            ("copy", x.memory.ptr, own_x),
            ("replay", "graph"),
            ("copy", own_y, y.memory.ptr),
        ]

    def test_only_the_backbone_is(self, graphs: EngineGraphs, library: Library) -> None:
        self.runs(graphs, library, 9, graph="classifier")
        assert "record" not in [entry[0] for entry in library.log]

    def test_what_needs_much_memory_is_enqueued_and_not_tried_again(
        self, graphs: EngineGraphs, library: Library
    ) -> None:
        library.working_bytes = recordings.LARGEST_BYTES + 1
        self.runs(graphs, library, 9)
        assert "record" not in [entry[0] for entry in library.log]
        assert library.contexts == 2

    def test_what_cannot_be_recorded_is_enqueued_and_said_once(
        self, graphs: EngineGraphs, library: Library, caplog: pytest.LogCaptureFixture
    ) -> None:
        stream = Stream(library.log)
        stream.recordable = False
        session = graphs.session(stream)
        with caplog.at_level(logging.WARNING):
            for _ in range(9):
                self.run(session, stream)
        assert caplog.text.count("cannot be recorded as CUDA graphs") == 1
        assert "cudaErrorStreamCaptureInvalidated" in caplog.text
        executed = [entry for entry in library.log if entry[0] == "execute"]
        assert len(executed) == 9 + 1

    def test_a_library_that_says_no_is_believed(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        library = LibraryRtx()
        device: Any = Gpu0()
        names = ("backbone", "classifier", "upsampler_0", "upsampler_1")
        engines = {name: engine_file(tmp_path, name, b"plan") for name in names}
        with caplog.at_level(logging.WARNING):
            self.runs(EngineGraphs(library, device, engines, precision="fp32"), library, 5)
        assert ("asked", 77) in library.log
        assert "cannot be recorded" in caplog.text

    def test_the_last_few_are_kept_and_memory_is_given_up_when_asked(
        self, graphs: EngineGraphs, library: Library
    ) -> None:
        stream = Stream(library.log)
        session = graphs.session(stream)
        for n in range(1, recordings.KEPT + 2):
            library.outputs["y"] = (n, 3)
            for _ in range(3):
                x, y = stream.array((n, 3), np.float32), stream.array((n, 3), np.float32)
                session.run("backbone", {"x": x}, [y])
        assert len(session._recordings._kept) == recordings.KEPT
        session.release()
        assert not session._recordings._kept
        library.log.clear()
        session.run("backbone", {"x": x}, [y])
        assert ("execute", 77) in library.log


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

    @pytest.mark.parametrize(("version", "level"), [("10.16", "WARNING"), (None, "INFO")])
    def test_leaving_out_what_is_installed_is_a_warning(
        self,
        small_bundle: Path,
        as_if_on_a_gpu: Callable[[str | None], None],
        caplog: pytest.LogCaptureFixture,
        version: str | None,
        level: str,
    ) -> None:
        as_if_on_a_gpu(version)
        with (
            caplog.at_level(logging.INFO, "pcsr.runtime.backends.choice"),
            pytest.raises(BackendError, match="CUDAExecutionProvider"),
        ):
            Upscaler.open(small_bundle, device="cuda:0")
        (record,) = [record for record in caplog.records if "not running by tensorrt" in record.getMessage()]
        assert record.levelname == level

    def test_without_tensorrt_it_names_the_extra(
        self, small_bundle: Path, as_if_on_a_gpu: Callable[[str | None], None]
    ) -> None:
        as_if_on_a_gpu(None)
        with pytest.raises(BackendError, match=r"pip install 'pcsr\[trt\]'"):
            Upscaler.open(small_bundle, backend="tensorrt", device="cuda")
