"""The check of graphs: it finds a wrong graph and names it, and half precision is emulated to the bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import skimage.data
import torch

from pcsr.export import pipeline
from pcsr.export.check import (
    Case,
    cases,
    check_half,
    check_precision,
    graph_outputs,
    network_outputs,
    working_bytes,
)
from pcsr.export.graphs import build_graphs
from pcsr.export.half import EmulatedHalf, emulated_backend
from pcsr.export.head_graphs import dense_head, sparse_head
from pcsr.export.pipeline import export_bundle, serialise
from pcsr.export.rewrites import rewrite
from pcsr.export.sources import from_checkpoint, network_entry, open_graphs
from pcsr.model.checkpoint import save_checkpoint
from pcsr.model.network import Network
from pcsr.runtime import Upscaler
from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.errors import CheckError
from pcsr.runtime.manifest import Normalisation

Make = Callable[..., Network]
Weights = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def case() -> Case:
    return cases(skimage.data.coffee()[100:164, 100:164])[0]


def build(network: Network, weights: Weights, *, half: bool = False) -> dict[str, onnx.ModelProto]:
    normalisation = Normalisation(network.spec.mean, network.spec.std)
    return build_graphs(network_entry(network), normalisation, weights, half=half)


def check(network: Network, weights: Weights, case: Case) -> float:
    """Graphs of these weights against the network, as the export does it."""
    graphs = {name: serialise(model) for name, model in build(network, weights).items()}
    got = graph_outputs(open_graphs(graphs, "fp32"), weights, case)
    return check_precision("fp32", case, network_outputs(network, case), got)


def test_a_wrong_weight_is_named_with_graph_tensor_error_and_tolerance(make: Make, case: Case) -> None:
    network = make("fsrcnn")
    weights = rewrite(network)
    assert check(network, weights, case) < 5e-6
    weights["upsampler_1.layer1.weight"] = weights["upsampler_1.layer1.weight"] * np.float32(1.02)
    with pytest.raises(CheckError) as caught:
        check(network, weights, case)
    assert "fp32 graph upsampler_1, tensor rgb, 40x24 at scale 4: differs from PyTorch by 0.00" in str(
        caught.value
    )
    assert "of its range, allowed is 2e-05; nothing was written" in str(caught.value)


@pytest.mark.parametrize("name", ["fsrcnn", "srresnet", "three classes"])
def test_no_weight_can_be_wrong_unnoticed(make: Make, case: Case, name: str) -> None:
    network = make(name)
    weights = rewrite(network)
    unnoticed = []
    for tensor, values in weights.items():
        # Not the same everywhere: softmax does not see what is added to all classes.
        noise = np.linspace(0.05, 0.1, values.size, dtype=np.float32).reshape(values.shape)
        try:
            check(network, {**weights, tensor: values + noise}, case)
        except CheckError:
            continue
        unnoticed.append(tensor)
    assert not unnoticed


def test_outputs_that_are_not_numbers_do_not_pass(make: Make, case: Case) -> None:
    expected = network_outputs(make("fsrcnn"), case)
    got = {key: np.where(values == values.max(), np.nan, values) for key, values in expected.items()}
    with pytest.raises(CheckError, match="differs from PyTorch by nan"):
        check_precision("fp32", case, expected, got)


def test_a_wrong_graph_is_not_written(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, tmp_path: Path
) -> None:
    def wrong(*arguments: object, **options: object) -> dict[str, onnx.ModelProto]:
        graphs = build_graphs(*arguments, **options)
        bias = next(t for t in graphs["classifier"].graph.initializer if t.name == "classifier.layer1.bias")
        bias.raw_data = np.frombuffer(bias.raw_data, np.float32).__add__(np.float32(1)).tobytes()
        return graphs

    monkeypatch.setattr(pipeline, "build_graphs", wrong)
    with pytest.raises(CheckError, match="fp32 graph classifier, tensor probability"):
        export_bundle(checkpoint, tmp_path / "bundle", precisions=["fp32"])
    assert [path.name for path in tmp_path.iterdir()] == [".bundle.lock"]


def test_the_cases_differ_in_size_scale_and_place() -> None:
    ramp = np.arange(64 * 64 * 3, dtype=np.int64).reshape(64, 64, 3).astype(np.uint8)
    made = cases(ramp)
    assert [(piece.picture.shape, piece.scale) for piece in made] == [
        ((24, 40, 3), 4.0), ((33, 17, 3), 2.3), ((1, 9, 3), 1.0)
    ]  # fmt: skip
    assert len({piece.picture[0, 0].tobytes() for piece in made}) == 3
    assert str(made[1]) == "17x33 at scale 2.3"


@pytest.mark.parametrize("name", ["carn", "fsrcnn", "srresnet"])
def test_working_memory_holds_at_least_what_a_layer_reads_and_writes(make: Make, name: str) -> None:
    network = make(name)
    backbone = build(network, rewrite(network))["backbone"]
    widest = max(
        value.type.tensor_type.shape.dim[1].dim_value
        for value in backbone.graph.value_info
        if len(value.type.tensor_type.shape.dim) == 4
    )
    assert working_bytes(backbone) >= 2 * 4 * widest
    assert working_bytes(backbone) <= 40 * 4 * widest


# --- half precision, emulated


def by_hand(weights: Weights, x: np.ndarray) -> np.ndarray:
    """A per-pixel network with one hidden layer in NumPy's own float16; x: (n, C) float32 sums of the first."""
    x = np.maximum(x, 0).astype(np.float16)
    # Sums in float32, then one rounding: what tensor cores do.
    product = (
        x.astype(np.float32) @ weights["head.layer1.weight"].astype(np.float16).astype(np.float32).T
    ).astype(np.float16)
    return product + weights["head.layer1.bias"].astype(np.float16)


@pytest.fixture
def head_weights() -> Weights:
    """Numbers of few bits, so that sums are exact in float32 and every rounding is one to half."""
    random = np.random.default_rng(3)
    return {
        "head.first.table": np.zeros((5, 1), np.float32),
        "head.layer1.weight": (random.integers(-2047, 2048, (3, 5)) / 1024).astype(np.float32),
        "head.layer1.bias": (random.integers(-4000, 4000, 3) / 999).astype(np.float32),
    }


def test_emulated_rounding_is_that_of_real_float16_on_every_pixel(head_weights: Weights) -> None:
    random = np.random.default_rng(4)
    table = (random.integers(-2047, 2048, (4, 5, 6)) / 512).astype(np.float16)
    row_terms = (random.integers(-9000, 9000, (8, 5, 1)) / 8192).astype(np.float32)
    column_terms = (random.integers(-9000, 9000, (1, 5, 9)) / 8192).astype(np.float32)
    rows, columns = (random.integers(0, n, m).astype(np.int32) for n, m in ((4, 8), (6, 9)))
    head_weights = {name.replace("head", "upsampler_0"): values for name, values in head_weights.items()}
    graph = EmulatedHalf(dense_head("upsampler_0", head_weights, True, classes=None))
    (rgb,) = graph(
        {
            "table": table,
            "rows": rows,
            "columns": columns,
            "row_terms": row_terms,
            "column_terms": column_terms,
        }
    )
    first = table.astype(np.float32)[rows][:, :, columns] + column_terms + row_terms
    flat = first.transpose(0, 2, 1).reshape(-1, 5)
    head_weights = {name.replace("upsampler_0", "head"): values for name, values in head_weights.items()}
    expected = by_hand(head_weights, flat).reshape(8, 9, 3).transpose(0, 2, 1)
    assert rgb.dtype == np.float32
    np.testing.assert_array_equal(rgb, expected.astype(np.float32))


def test_emulated_rounding_differs_from_float32(head_weights: Weights) -> None:
    head_weights = {name.replace("head", "upsampler_1"): values for name, values in head_weights.items()}
    feed = {
        "table": np.array([[0.1, 0.7, -0.3, 1.9, 1.1]], np.float16),
        **{name: np.zeros(1, np.int32) for name in ("pixel", "row", "column")},
        **{name: np.full((1, 5), 1 / 3, np.float32) for name in ("row_terms", "column_terms")},
    }
    (half,) = EmulatedHalf(sparse_head("upsampler_1", head_weights, True))(feed)
    feed["table"] = feed["table"].astype(np.float32)
    single = open_graphs({"g": serialise(sparse_head("upsampler_1", head_weights, False))}, "")["g"](feed)[0]
    assert 0 < np.abs(half - single).max() < 0.01


def test_every_half_tensor_of_every_network_is_watched(network: Network, case: Case) -> None:
    weights = rewrite(network)
    models = build(network, weights, half=True)
    largest, tensor = check_half(models, weights, case, network_outputs(network, case))
    assert 0 < largest < 1000
    graph = tensor.partition(": ")[0]
    assert tensor.partition(": ")[2] in {name for node in models[graph].graph.node for name in node.output}


def overflowing(network: Network) -> Network:
    """Every weight fits into half precision, the sums do not; what follows makes them small again."""
    first, second = network.heads[1].linears[:2]
    with torch.no_grad():
        first.weight.mul_(1e4)
        first.bias.mul_(1e4)
        second.weight.mul_(1e3)
        network.heads[1].linears[2].weight.mul_(1e-7)
    return network


def test_a_tensor_that_overflows_is_named(make: Make, case: Case) -> None:
    network = overflowing(make("fsrcnn"))
    weights = rewrite(network)
    with pytest.raises(
        CheckError, match=r"tensor \S+ of graph (backbone|upsampler_1) reaches .* beyond half .*fp32"
    ):
        check_half(build(network, weights, half=True), weights, case, network_outputs(network, case))


def test_a_network_too_large_for_half_exports_in_float32_only(make: Make, tmp_path: Path) -> None:
    save_checkpoint(overflowing(make("fsrcnn")), tmp_path / "large.safetensors")
    with pytest.raises(CheckError, match="--precision fp32"):
        export_bundle(tmp_path / "large.safetensors", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    export_bundle(tmp_path / "large.safetensors", tmp_path / "bundle", precisions=["fp32"])
    assert read_bundle(tmp_path / "bundle").precisions == ("fp32",)


def test_a_picture_under_emulation_is_nearly_that_of_float32(small_bundle: Path) -> None:
    photo = np.ascontiguousarray(skimage.data.chelsea()[60:100, 120:170])
    backend, graphs = emulated_backend(read_bundle(small_bundle))
    with Upscaler.open(small_bundle, precision="fp32", threads=1) as up:
        single = up(photo, scale=3, k=-25.0)
    with Upscaler(read_bundle(small_bundle), backend, threads=1, memory_limit=1 << 30) as up:
        half = up(photo, scale=3, k=-25.0)
    assert half.provider == "fp16 emulated in PyTorch"
    difference = np.abs(half.image.astype(int) - single.image)
    assert 0 < (difference > 0).mean() < 0.2
    assert difference.max() <= 1
    assert all(graph.largest[0] > 0 for name, graph in graphs.items() if name != "upsampler_0")


def test_a_bundle_says_what_pytorch_says(checkpoint: Path, small_bundle: Path, case: Case) -> None:
    source = from_checkpoint(checkpoint)
    assert source.expected_by == "PyTorch"
    (expected,) = source.expected([case])
    assert set(expected) == {("classifier", "probability"), ("upsampler_0", "rgb"), ("upsampler_1", "rgb")}
    assert read_bundle(small_bundle).manifest.halo == source.fields["halo"]
