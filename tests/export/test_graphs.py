"""The graphs: exact for every form of network, and of a form that every engine takes and a person can read."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch.nn import functional

from pcsr.export import backbone_graphs
from pcsr.export.backbone_graphs import pad_convolution, pad_vector, padded_channels
from pcsr.export.check import Case, check_precision, graph_outputs, network_outputs
from pcsr.export.graphs import build_graphs
from pcsr.export.pipeline import export_bundle, serialise
from pcsr.export.rewrites import rewrite
from pcsr.export.sources import network_entry, open_graphs
from pcsr.model.network import Network
from pcsr.runtime.errors import CheckError
from pcsr.runtime.manifest import Normalisation

Make = Callable[..., Network]

# All that the graphs are made of; TensorRT 8.6, TensorRT-RTX and ONNX Runtime have each in both precisions.
OPERATORS = {
    "Add", "Cast", "Conv", "Div", "Gather", "Gemm", "Identity", "LeakyRelu", "MatMul", "PRelu", "Relu", "Sigmoid",
    "Softmax", "Squeeze", "Sub", "Transpose",
}  # fmt: skip


def graphs_of(network: Network, *, half: bool = False) -> dict[str, onnx.ModelProto]:
    normalisation = Normalisation(network.spec.mean, network.spec.std)
    return build_graphs(network_entry(network), normalisation, rewrite(network), half=half)


def error(
    network: Network, graphs: Mapping[str, onnx.ModelProto], case: Case, precision: str = "fp32"
) -> float:
    """Largest difference from PyTorch; CheckError beyond the tolerance."""
    runs = open_graphs({name: serialise(model) for name, model in graphs.items()}, precision)
    return check_precision(
        precision, case, network_outputs(network, case), graph_outputs(runs, rewrite(network), case)
    )


def picture(h: int, w: int) -> np.ndarray:
    return np.random.default_rng(h * 100 + w).random((h, w, 3), dtype=np.float32)


def test_graphs_of_any_size_and_scale_are_the_network(network: Network) -> None:
    graphs = graphs_of(network)
    for h, w, scale in ((1, 1, 1.0), (1, 1, 8.0), (5, 3, 1.7), (24, 31, 2.5), (17, 1, 3.9)):
        assert error(network, graphs, Case(picture(h, w), scale)) < 5e-6


def test_half_graphs_are_near_the_network(network: Network) -> None:
    graphs = graphs_of(network, half=True)
    assert 0 < error(network, graphs, Case(picture(20, 23), 2.5), "fp16") < 5e-3


@pytest.mark.parametrize("half", [False, True])
def test_every_engine_takes_the_graphs(network: Network, *, half: bool) -> None:
    for model in graphs_of(network, half=half).values():
        onnx.checker.check_model(model, full_check=True)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
        assert model.ir_version == 8
        assert {node.op_type for node in model.graph.node} <= OPERATORS


@pytest.mark.parametrize("half", [False, True])
def test_every_tensor_has_a_name_and_a_known_type(network: Network, *, half: bool) -> None:
    for model in graphs_of(network, half=half).values():
        graph = model.graph
        assert all(node.name == node.output[0] for node in graph.node)
        known = {value.name for value in [*graph.value_info, *graph.output]}
        assert {name for node in graph.node for name in node.output} <= known
        described = {prop.key for prop in model.metadata_props}
        assert {f"input {value.name}" for value in graph.input} <= described
        assert {f"output {value.name}" for value in graph.output} <= described
        assert {prop.key: prop.value for prop in model.metadata_props}["precision"] == (
            "fp16" if half else "fp32"
        )
        assert graph.doc_string
        assert graph.name in ("backbone", "classifier") or graph.name.startswith("upsampler_")


def interface(model: onnx.ModelProto) -> dict[str, tuple[str, tuple[int | str, ...]]]:
    kinds = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.INT32: "int32"}
    return {
        value.name: (
            kinds[value.type.tensor_type.elem_type],
            tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
        )
        for value in [*model.graph.input, *model.graph.output]
    }


@pytest.mark.parametrize(("half", "narrow"), [(False, "float32"), (True, "float16")])
def test_inputs_and_outputs_are_those_of_the_specification(make: Make, *, half: bool, narrow: str) -> None:
    graphs = graphs_of(make("three classes"), half=half)
    assert {name: interface(model) for name, model in graphs.items()} == {
        "backbone": {
            "lr": ("float32", (1, 3, "h", "w")),
            "classifier_table": (narrow, ("h", 8, "w")),
            "upsampler_0_table": (narrow, ("h", 5, "w")),
            "upsampler_1_table": (narrow, ("h", "w", 8)),
            "upsampler_2_table": (narrow, ("h", "w", 16)),
        },
        "classifier": {
            "table": (narrow, ("h", 8, "w")),
            "rows": ("int32", ("rows",)),
            "columns": ("int32", ("columns",)),
            "row_terms": ("float32", ("rows", 8, 1)),
            "column_terms": ("float32", (1, 8, "columns")),
            "probability": ("float32", ("rows", 3, "columns")),
        },
        "upsampler_0": {
            "table": (narrow, ("h", 5, "w")),
            "rows": ("int32", ("rows",)),
            "columns": ("int32", ("columns",)),
            "row_terms": ("float32", ("rows", 5, 1)),
            "column_terms": ("float32", (1, 5, "columns")),
            "rgb": ("float32", ("rows", 3, "columns")),
        },
        **{
            f"upsampler_{j}": {
                "table": (narrow, ("p", channels)),
                "pixel": ("int32", ("n",)),
                "row": ("int32", ("n",)),
                "column": ("int32", ("n",)),
                "row_terms": ("float32", ("rows", channels)),
                "column_terms": ("float32", ("columns", channels)),
                "rgb": ("float32", ("n", 3)),
            }
            for j, channels in ((1, 8), (2, 16))
        },
    }


def test_two_classes_have_one_probability(make: Make) -> None:
    classifier = graphs_of(make("fsrcnn"))["classifier"]
    assert interface(classifier)["probability"] == ("float32", ("rows", 1, "columns"))


def test_the_same_network_gives_the_same_bytes(network: Network) -> None:
    once, again = ({name: serialise(model) for name, model in graphs_of(network).items()} for _ in range(2))
    assert once == again


# --- the padded layout


@pytest.mark.parametrize("name", ["carn", "carn with two groups", "fsrcnn", "srresnet"])
def test_padding_changes_no_result(monkeypatch: pytest.MonkeyPatch, make: Make, name: str) -> None:
    network, case = make(name), Case(picture(19, 14), 2.0)
    padded = graphs_of(network)["backbone"]
    monkeypatch.setattr(backbone_graphs, "LANES", 1)
    plain = graphs_of(network)["backbone"]
    assert len(serialise(plain)) < len(serialise(padded))
    lr = np.ascontiguousarray(case.picture.transpose(2, 0, 1))[None]
    for left, right in zip(
        *(open_graphs({"g": serialise(m)}, "")["g"]({"lr": lr}) for m in (plain, padded)), strict=True
    ):
        np.testing.assert_allclose(left, right, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize(
    ("channels", "groups"), [(12, 1), (16, 1), (17, 1), (52, 4), (34, 2), (6, 6), (64, 4)]
)
def test_a_padded_convolution_is_the_convolution(channels: int, groups: int) -> None:
    torch.manual_seed(1)
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1, groups=groups)
    layout = padded_channels(channels, groups)
    size = groups * -(-(channels // groups) // 16) * 16
    x = torch.randn(1, channels, 6, 5)
    wide = torch.zeros(1, size, 6, 5)
    wide[:, layout] = x
    weight = torch.from_numpy(pad_convolution(layer.weight.detach().numpy(), layout, layout, groups))
    assert layer.bias is not None
    bias = torch.from_numpy(pad_vector(layer.bias.detach().numpy(), layout))
    result = functional.conv2d(wide, weight, bias, padding=1, groups=groups)
    with torch.no_grad():
        torch.testing.assert_close(result[:, layout], layer(x))
    added = np.setdiff1d(np.arange(size), layout)
    assert not result[:, added].any()


# --- half precision


def test_half_graphs_keep_sums_and_results_in_float32(network: Network) -> None:
    graphs = graphs_of(network, half=True)
    for name, model in graphs.items():
        types = {v.name: v.type.tensor_type.elem_type for v in [*model.graph.value_info, *model.graph.output]}
        single = {
            "probability",
            "rgb",
            "first",
            "with_rows",
            "with_columns",
            "without_mean",
            "without_deviation",
        }
        assert all(types[tensor] == TensorProto.FLOAT for tensor in single & set(types)), name
        layers = {n.output[0] for n in model.graph.node if n.op_type in ("Conv", "MatMul", "Gemm")}
        assert all(types[tensor] == TensorProto.FLOAT16 for tensor in layers), name


@pytest.mark.parametrize("value", [65504.0, 7e4, -1e30])
def test_a_weight_beyond_half_precision_is_named(make: Make, value: float) -> None:
    network = make("fsrcnn")
    with torch.no_grad():
        network.heads[1].linears[1].weight[3, 4] = value
    with pytest.raises(
        CheckError, match=r"weight upsampler_1.layer1.weight of graph upsampler_1 reaches .*fp32"
    ):
        graphs_of(network, half=True)


# --- a published form, through the whole export


def test_a_checkpoint_in_the_authors_format_becomes_a_bundle(data: Path, tmp_path: Path) -> None:
    outcome = export_bundle(data / "golden" / "srresnet-pcsr-random.pth", tmp_path / "bundle")
    assert outcome.written == ("fp32", "fp16")
    assert outcome.errors["fp32"] < 1e-5
    assert outcome.errors["fp16"] < 5e-3
    manifest = outcome.bundle.manifest
    assert (manifest.network.backbone, manifest.network.width, manifest.halo) == ("srresnet", 58, 33)
    assert manifest.cost.flops.backbone == 1940796
