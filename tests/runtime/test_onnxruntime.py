"""The portable backend gives what was asked for, or says why not and what to do."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from pcsr.runtime import Upscaler, shipped_bundle
from pcsr.runtime.backends import onnxruntime as backend
from pcsr.runtime.backends import sessions
from pcsr.runtime.backends.sessions import Graph, SizedBackbone
from pcsr.runtime.bundle import Bundle, read_bundle
from pcsr.runtime.errors import BackendError, BundleError, MemoryLimitError, OptionError


def test_an_unknown_backend_or_device_is_refused_with_the_choices(small_bundle: Path) -> None:
    with pytest.raises(OptionError, match="'openvino'; choose one of: auto, tensorrt, native, onnxruntime"):
        Upscaler.open(small_bundle, backend="openvino")
    for device in ("gpu", "cuda:x", "cpu:0", "cuda:", ""):
        with pytest.raises(OptionError, match="use cpu, cuda or cuda:<index>"):
            Upscaler.open(small_bundle, device=device)


def test_cuda_without_its_provider_is_an_error_and_never_the_processor(small_bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"no CUDAExecutionProvider, only .*pip install 'pcsr\[gpu\]'"):
        Upscaler.open(small_bundle, device="cuda:0")


def test_two_wheels_that_overwrite_each_other_are_detected(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both wheels own the same files: only their metadata tells.
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: iter([name]))
    with pytest.raises(BackendError, match="both installed.*pip uninstall onnxruntime onnxruntime-gpu"):
        Upscaler.open(small_bundle, backend="onnxruntime")


def test_a_missing_onnx_runtime_names_the_extra(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"pip install 'pcsr\[cpu\]'"):
        Upscaler.open(small_bundle, backend="onnxruntime")


def test_a_graph_that_onnx_runtime_refuses_is_named() -> None:
    with pytest.raises(BackendError, match="ONNX Runtime refuses graph nonsense"):
        backend.open_model(b"nonsense", "graph nonsense")


def test_auto_takes_float32_on_the_processor_whatever_order_the_bundle_has(small_bundle: Path) -> None:
    with Upscaler.open(small_bundle, backend="onnxruntime", precision="auto") as up:
        assert up.precision == "fp32"


def test_an_unknown_precision_is_refused_with_the_choices(small_bundle: Path) -> None:
    with pytest.raises(OptionError, match="'fp8'; choose one of: auto, fp32, fp16"):
        Upscaler.open(small_bundle, precision="fp8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads is 0"),
        ({"threads": "2"}, "whole number"),
        ({"memory_limit": "1GiB"}, "whole number"),
        ({"threads": 10_000_000}, "between 1 and 512"),
        ({"memory_limit": 0}, "memory_limit is 0"),
        ({"tile": 15}, "16 input pixels"),
    ],
)
def test_meaningless_arguments_of_open_are_refused(
    small_bundle: Path, options: dict[str, int], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        Upscaler.open(small_bundle, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("exact", [True, False])
def test_int8_takes_the_form_of_the_processor(monkeypatch: pytest.MonkeyPatch, exact: bool) -> None:
    monkeypatch.setattr(backend, "multiplies_int8", lambda: exact)
    read: list[str] = []
    whole = Bundle.read
    monkeypatch.setattr(Bundle, "read", lambda self, entry: (read.append(entry.path), whole(self, entry))[1])
    with Upscaler.open("fsrcnn", precision="int8") as up:
        assert up.precision == "int8"
    forms = {path.split("/")[1] for path in read if path.startswith("graphs/")}
    assert forms == {"int8-vnni" if exact else "int8-cpu"}


def test_int8_is_not_taken_unasked_but_where_there_is_nothing_else(tmp_path: Path) -> None:
    from pcsr.export.pipeline import export_bundle

    with Upscaler.open("fsrcnn") as up:
        assert up.precision == "fp32"
    only = export_bundle(shipped_bundle("fsrcnn"), tmp_path / "only", precisions=["int8"]).bundle
    with Upscaler.open(only.path) as up:
        assert up.precision == "int8"


def test_int8_on_a_gpu_is_for_tensorrt() -> None:
    with pytest.raises(BackendError, match="runs int8 on cpu alone.*use the backend tensorrt there, or fp16"):
        Upscaler.open("fsrcnn", device="cuda", backend="onnxruntime", precision="int8")


def test_a_bundle_without_int8_says_how_to_get_it(small_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"no int8 graphs.*--precision int8 --calibration CACHE\.json"):
        Upscaler.open(small_bundle, precision="int8")


# --- a backbone in a session for one size


def sized_backbone(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[SizedBackbone, list[tuple[int, int] | None]]:
    """A bundle's backbone, sized from 20x30 pixels on, and the sizes that it is opened for from now on."""
    read = read_bundle(bundle)
    graph = Graph(onnxruntime, read.read(read.graphs("fp32")["backbone"]), "graph backbone")
    backbone = SizedBackbone(graph, 2)
    opened: list[tuple[int, int] | None] = []
    whole = Graph.open
    monkeypatch.setattr(sessions, "SIZED_PIXELS", 600)
    monkeypatch.setattr(
        Graph,
        "open",
        lambda self, threads, size=None: (opened.append(size), whole(self, threads, size))[1],
    )
    return backbone, opened


def test_a_session_for_one_size_gives_the_same_bytes(
    carn_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, opened = sized_backbone(carn_bundle, monkeypatch)
    lr = np.random.default_rng(0).random((1, 3, 20, 30), dtype=np.float32)
    sized = backbone({"lr": lr})
    assert opened == [(20, 30)]
    monkeypatch.setattr(sessions, "SIZED_PIXELS", 601)
    free = backbone({"lr": lr})
    assert opened == [(20, 30), None]
    assert [table.tobytes() for table in sized] == [table.tobytes() for table in free]


def test_a_session_for_one_size_is_kept_until_another_is_needed(
    carn_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, opened = sized_backbone(carn_bundle, monkeypatch)
    for size in [(8, 8), (20, 30), (20, 30), (30, 20), (9, 8), (8, 9)]:
        tables = backbone({"lr": np.zeros((1, 3, *size), dtype=np.float32)})
        assert tables[0].shape[::2] == size
    assert opened == [(20, 30), (30, 20), None]


def test_tables_do_not_hold_the_memory_of_their_session(
    carn_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, _ = sized_backbone(carn_bundle, monkeypatch)
    tables = backbone({"lr": np.zeros((1, 3, 20, 30), dtype=np.float32)})
    assert all(table.flags.owndata for table in tables)


def test_a_size_that_could_not_be_opened_is_tried_again(
    carn_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, opened = sized_backbone(carn_bundle, monkeypatch)
    lr = np.zeros((1, 3, 20, 30), dtype=np.float32)
    with monkeypatch.context() as refused:
        refused.setattr(onnxruntime, "InferenceSession", None)
        with pytest.raises(BackendError, match="ONNX Runtime refuses graph backbone"):
            backbone({"lr": lr})
    assert backbone({"lr": lr})[0].shape[::2] == (20, 30)
    assert opened == [(20, 30), (20, 30)]


# --- graphs whose hash is right and that are not the bundle's: whoever can write a bundle can write its manifest too


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


def replace_graph(bundle: Path, graph: str, change: Callable[[onnx.ModelProto], object]) -> None:
    """Change a graph, and let the manifest agree with it."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    entry = manifest["graphs"]["fp32"][graph]
    model = onnx.load(bundle / entry["path"])
    change(model)
    content = model.SerializeToString()
    (bundle / entry["path"]).write_bytes(content)
    entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def upscale(bundle: Path) -> None:
    picture = np.arange(24 * 20 * 3, dtype=np.uint8).reshape(24, 20, 3)
    with Upscaler.open(bundle, backend="onnxruntime", precision="fp32", threads=1) as up:
        up(picture, scale=2, adaptive=True)


def rename_an_input(model: onnx.ModelProto) -> None:
    name = model.graph.input[0].name
    model.graph.input[0].name = "another"
    for node in model.graph.node:
        node.input[:] = ["another" if each == name else each for each in node.input]


def lose_an_output(model: onnx.ModelProto) -> None:
    del model.graph.output[-1]


def transpose_the_output(model: onnx.ModelProto) -> None:
    """Right in everything but the order of the axes, and saying nothing of its shape."""
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["turned" if each == output else each for each in node.output]
    rank = len(model.graph.output[0].type.tensor_type.shape.dim)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    order = list(reversed(range(rank)))
    model.graph.node.append(onnx.helper.make_node("Transpose", ["turned"], [output], perm=order))


def spoil_a_weight(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(weight), np.nan), weight.name))


def give_words(model: onnx.ModelProto) -> None:
    output = model.graph.output[0]
    for node in model.graph.node:
        node.output[:] = ["numbers" if each == output.name else each for each in node.output]
    output.type.tensor_type.elem_type = onnx.TensorProto.STRING
    cast = onnx.helper.make_node("Cast", ["numbers"], [output.name], to=onnx.TensorProto.STRING)
    model.graph.node.append(cast)


def ask_for_memory(model: onnx.ModelProto) -> None:
    """Four tebibytes of zeros, of which one is added to the result."""
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["result" if each == output else each for each in node.output]
    numbers = {"many": np.array([1 << 20, 1 << 20])}
    model.graph.initializer.extend(numpy_helper.from_array(n, name) for name, n in numbers.items())
    # The number of zeros depends on the input, or they would be made when the graph is opened.
    model.graph.node.extend(
        [
            onnx.helper.make_node("Shape", [model.graph.input[0].name], ["shape"]),
            onnx.helper.make_node("ReduceMin", ["shape"], ["smallest"], keepdims=0),
            onnx.helper.make_node("Mul", ["many", "smallest"], ["lengths"]),
            onnx.helper.make_node("ConstantOfShape", ["lengths"], ["zeros"]),
            onnx.helper.make_node("ReduceMax", ["zeros"], ["zero"], keepdims=0),
            onnx.helper.make_node("Add", ["result", "zero"], [output]),
        ]
    )


GRAPHS = ["backbone", "classifier", "upsampler_0", "upsampler_1"]


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_that_fails_when_it_runs_is_named(bundle: Path, graph: str) -> None:
    replace_graph(bundle, graph, rename_an_input)
    with pytest.raises(
        BackendError, match=rf"ONNX Runtime cannot run graph {graph} \({bundle}.*export the bundle anew"
    ):
        upscale(bundle)


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_that_gives_another_shape_is_named(bundle: Path, graph: str) -> None:
    replace_graph(bundle, graph, transpose_the_output)
    with pytest.raises(
        BackendError, match=f"graph {graph} of {bundle} gave .* instead of .*export the bundle anew"
    ):
        upscale(bundle)


@pytest.mark.parametrize("graph", ["classifier", "upsampler_0", "upsampler_1"])
def test_a_graph_that_gives_words_is_named(bundle: Path, graph: str) -> None:
    replace_graph(bundle, graph, give_words)
    with pytest.raises(BackendError, match=f"graph {graph} of {bundle} gave no floats instead of"):
        upscale(bundle)


def test_a_graph_that_memory_cannot_hold_says_so(bundle: Path) -> None:
    replace_graph(bundle, "classifier", ask_for_memory)
    with pytest.raises(MemoryLimitError, match="not enough memory to run graph classifier"):
        upscale(bundle)


def test_a_backbone_that_gives_too_few_tables_is_named(bundle: Path) -> None:
    replace_graph(bundle, "backbone", lose_an_output)
    with pytest.raises(BackendError, match=f"graph backbone of {bundle} gave .* instead of"):
        upscale(bundle)


@pytest.mark.parametrize("graph", GRAPHS)
def test_what_is_not_a_number_ends_the_picture_and_not_in_it(bundle: Path, graph: str) -> None:
    replace_graph(bundle, graph, spoil_a_weight)
    with pytest.raises(BackendError, match="NaN or infinity in fp32"):
        upscale(bundle)
