"""The int8 forms compute what they should: the algebra around the integers is exact, borders included."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pcsr.calibration.evaluation import Network
from pcsr.export.graphs import build_graphs
from pcsr.export.int8.forms import with_half_tables
from pcsr.export.int8.layers import graph_hash, initializers, layers_of, sums_of
from pcsr.export.int8.lint import lint
from pcsr.export.int8.placement import (
    LIMIT,
    OFFSET,
    SMALLEST_SCALE,
    Scales,
    quantised_weight,
    tensorrt_form,
    usable_scale,
    weight_scales,
)
from pcsr.export.int8.processor import processor_form
from pcsr.export.pipeline import serialise
from pcsr.export.rewrites import rewrite
from pcsr.export.sources import network_entry
from pcsr.model.network import NetworkSpec
from pcsr.runtime.backends.onnxruntime import open_model
from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.manifest import Normalisation
from pcsr.runtime.shipped import shipped_bundle

from .conftest import random_network

SPECS = {
    "carn": NetworkSpec("carn", 40, ((6, 6), (40, 40)), (8,), mean=(0.45, 0.44, 0.4)),
    "fsrcnn": NetworkSpec("fsrcnn", 36, ((6, 6), (40, 40)), (8,), mean=(0.4, 0.5, 0.45)),
    "srresnet": NetworkSpec("srresnet", 34, ((6,), (40, 40)), (8,), options=(("nb", 2),)),
}


def network(name: str) -> tuple[dict[str, onnx.ModelProto], dict[str, NDArray[np.float32]]]:
    made = random_network(SPECS[name])
    weights = rewrite(made)
    normalisation = Normalisation(mean=made.spec.mean, std=made.spec.std)
    return build_graphs(network_entry(made), normalisation, weights, half=False), weights


def run(model: onnx.ModelProto, feed: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.float32]]:
    return list(open_model(serialise(model), "test")(feed))


def feed_of(graph: str, models: Mapping[str, onnx.ModelProto]) -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(1)
    if graph == "backbone":
        return {"lr": rng.random((1, 3, 9, 11), dtype=np.float32)}
    found: dict[str, NDArray[np.generic]] = {}
    for value in models[graph].graph.input:
        sizes = {"h": 4, "w": 5, "rows": 6, "columns": 7, "p": 20, "n": 30}
        shape = [d.dim_value or sizes[d.dim_param] for d in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.elem_type == onnx.TensorProto.INT32:
            largest = {"rows": 4, "columns": 5, "pixel": 20, "row": 6, "column": 7}[value.name]
            found[value.name] = rng.integers(0, largest, shape).astype(np.int32)
        else:
            found[value.name] = rng.normal(size=shape).astype(np.float32)
    return found


def scales_of(
    graph: str, models: Mapping[str, onnx.ModelProto], weights: Mapping[str, NDArray[np.float32]]
) -> tuple[Scales, list[str]]:
    """Ranges of this very feed, and means, of which corrections must reach the output."""
    layers = [layer for layer in layers_of(models, weights) if layer.graph == graph]
    model = onnx.ModelProto()
    model.CopyFrom(models[graph])
    from pcsr.export.int8.layers import observed_tensors

    names = [n for n in observed_tensors(model, layers) if n not in {i.name for i in model.graph.input}]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    feed = feed_of(graph, models)
    seen = {**feed, **dict(zip(names, run(model, feed)[-len(names) :], strict=True))}
    values = initializers(models[graph])
    rng = np.random.default_rng(2)
    found = Scales(
        {name: float(np.abs(seen[name]).max()) for name in observed_tensors(models[graph], layers)},
        {name: float(seen[name].min()) for name in observed_tensors(models[graph], layers)},
        {layer.node: weight_scales(values[layer.weight], layer.axis) for layer in layers},
        {
            layer.input: rng.normal(
                size=values[layer.weight].shape[0]
                if layer.operator == "Gemm"
                else values[layer.weight].shape[1] * layer.groups
            )
            for layer in layers
        },
    )
    return found, [layer.node for layer in layers]


def unrounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The form without the rounding of activations: what is left is linear algebra that must be exact."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    constants = {tensor.name for tensor in bare.graph.initializer}
    source: dict[str, str] = {}
    kept = []
    for node in bare.graph.node:
        if node.op_type == "QuantizeLinear" or (
            node.op_type == "DequantizeLinear" and node.input[0] not in constants
        ):
            source[node.output[0]] = source.get(node.input[0], node.input[0])
            continue
        for i, name in enumerate(node.input):
            node.input[i] = source.get(name, name)
        kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del bare.graph.node[:]
    bare.graph.node.extend(kept)
    del bare.graph.value_info[:]
    return bare


def with_rounded_weights(model: onnx.ModelProto, layers: list, scales: Scales) -> onnx.ModelProto:  # type: ignore[type-arg]
    """The float graph with weights as int8 has them and biases as they are corrected, made independently."""
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    values = initializers(model)
    for layer in layers:
        weight, steps = values[layer.weight], scales.weights[layer.node]
        shape = [1] * weight.ndim
        shape[layer.axis] = -1
        rounded = np.clip(np.rint(weight / steps.reshape(shape)), -127, 127) * steps.reshape(shape)
        node = next(node for node in expected.graph.node if node.name == layer.node)
        name = f"{layer.node}/rounded"
        expected.graph.initializer.append(numpy_helper.from_array(rounded.astype(np.float32), name))
        node.input[list(node.input).index(layer.weight)] = name
        correction = np.zeros(weight.shape[layer.axis], dtype=np.float64)
        lost = (weight - rounded).T if layer.operator == "Gemm" else weight - rounded
        means = scales.means[layer.input]
        for channel in range(len(lost)):
            # The input channels of this output channel's group.
            width = lost.shape[1]
            first = channel * layer.groups // len(lost) * width
            correction[channel] = sum(lost[channel, i].sum() * means[first + i] for i in range(width))
        old = np.zeros_like(correction) if layer.bias is None else values[layer.bias]
        bias = numpy_helper.from_array(
            (old + correction.reshape(old.shape)).astype(np.float32), f"{name}/bias"
        )
        expected.graph.initializer.append(bias)
        if layer.operator == "MatMul":
            adder = next(reader for reader in expected.graph.node if layer.output in reader.input)
            adder.input[list(adder.input).index(layer.bias)] = bias.name
        else:
            del node.input[2:]
            node.input.append(bias.name)
    return expected


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("graph", ["backbone", "upsampler_0", "upsampler_1"])
def test_but_for_rounding_the_form_for_tensorrt_is_the_network(name: str, graph: str) -> None:
    models, weights = network(name)
    scales, chosen = scales_of(graph, models, weights)
    layers = [layer for layer in layers_of(models, weights) if layer.graph == graph]
    assert chosen
    form = tensorrt_form(models[graph], models[graph], layers, scales, half=False)
    feed = feed_of(graph, models)
    expected = run(with_rounded_weights(models[graph], layers, scales), feed)
    for ours, theirs in zip(run(unrounded(form), feed), expected, strict=True):
        assert np.abs(ours - theirs).max() < 2e-5 * max(1.0, np.ptp(theirs))
    # And with it, it is near.
    for ours, theirs in zip(run(form, feed), expected, strict=True):
        assert 0 < np.sqrt(np.mean((ours - theirs) ** 2)) < 0.05 * max(1.0, np.ptp(theirs))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("limit", [LIMIT, 63])
def test_the_form_for_processors_is_near_and_really_made_of_integer_kernels(name: str, limit: int) -> None:
    models, weights = network(name)
    kernels = 0
    for graph in ("backbone", "upsampler_1"):
        scales, _ = scales_of(graph, models, weights)
        layers = [layer for layer in layers_of(models, weights) if layer.graph == graph]
        form = processor_form(models[graph], layers, scales, limit=limit)
        feed = feed_of(graph, models)
        corrected = with_rounded_weights(models[graph], layers, scales)
        for ours, theirs in zip(run(form, feed), run(corrected, feed), strict=True):
            assert np.sqrt(np.mean((ours - theirs) ** 2)) < 0.06 * max(1.0, np.ptp(theirs))
        expected = [found for found in lint(form, "onnxruntime") if found.int8]
        kernels += len(expected)
        assert fused(form) == len(expected)
        stored = [values for values in initializers(form).values() if values.dtype == np.int8]
        assert max((np.abs(v.astype(int)).max() for v in stored if v.ndim > 1), default=0) <= limit
    assert kernels > 0


def fused(model: onnx.ModelProto) -> int:
    """Integer kernels in the graph as ONNX Runtime runs it."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        onnxruntime.InferenceSession(serialise(model), options, providers=["CPUExecutionProvider"])
        optimised = onnx.load(options.optimized_model_filepath)
    return sum(node.op_type in ("QLinearConv", "QGemm") for node in optimised.graph.node)


def test_bytes_of_parts_with_other_scales_and_zero_points_are_put_together_exactly() -> None:
    """A sum of two 1x1 convolutions, one of a tensor with a sign and one of a ReLU's, as one integer layer."""
    rng = np.random.default_rng(3)
    weights = {f"w{i}": rng.normal(size=(32, 32, 1, 1)).astype(np.float32) for i in range(3)}
    constants = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    constants.append(numpy_helper.from_array(rng.normal(size=32).astype(np.float32), "b"))
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"], "positive"),
        helper.make_node("Conv", ["x", "w0", "b"], ["first"], "first", kernel_shape=[1, 1]),
        helper.make_node("Conv", ["positive", "w1"], ["second"], "second", kernel_shape=[1, 1]),
        helper.make_node("Add", ["first", "second"], ["sum"], "sum"),
        helper.make_node("Relu", ["sum"], ["mid"], "mid"),
        helper.make_node("Conv", ["mid", "w2"], ["y"], "y", kernel_shape=[1, 1]),
    ]
    shape = [1, 32, "h", "w"]
    io = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "backbone", io[:1], io[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    layers = layers_of({"backbone": model}, weights)
    assert [len(one.layers) for one in sums_of(model, layers)] == [2, 1]
    x = np.clip(rng.normal(size=(1, 32, 5, 6)), -3, 3).astype(np.float32)
    scales = Scales(
        {"x": 3.0, "positive": 2.0, "mid": 20.0},
        {"x": -3.0, "positive": 0.0, "mid": 0.0},
        {layer.node: weight_scales(weights[layer.weight], layer.axis) for layer in layers},
    )
    form = processor_form(model, layers, scales, limit=LIMIT)
    # The same by hand: each part rounded by itself, then floating point.
    steps = {"x": float(usable_scale(np.array(3 / 127))), "positive": float(usable_scale(np.array(2 / 255)))}
    mid_step = float(usable_scale(np.array(20 / 255)))
    parts = {
        "x": np.clip(np.rint(x / steps["x"]), -128, 127) * steps["x"],
        "positive": np.clip(np.rint(np.maximum(x, 0) / steps["positive"]), 0, 255) * steps["positive"],
    }
    common = max(steps.values())
    joined = np.concatenate(
        [
            weights["w0"][:, :, 0, 0] * steps["x"] / common,
            weights["w1"][:, :, 0, 0] * steps["positive"] / common,
        ],
        axis=1,
    )
    row = usable_scale(np.abs(joined).max(axis=1) / LIMIT)
    rounded = quantised_weight(joined, row, 0) * row[:, None]
    real = np.concatenate(
        [parts["x"] * common / steps["x"], parts["positive"] * common / steps["positive"]], axis=1
    )
    total = (
        np.einsum("oc,nchw->nohw", rounded, real) + numpy_helper.to_array(constants[3])[None, :, None, None]
    )
    mid = np.clip(np.rint(np.maximum(total, 0) / mid_step), 0, 255) * mid_step
    expected = np.einsum("oc,nchw->nohw", weights["w2"][:, :, 0, 0], mid)
    (ours,) = run(form, {"x": x})
    # A value between two steps may go either way: by one step of one channel.
    assert np.abs(ours - expected).max() < 2 * mid_step * np.abs(weights["w2"]).max()
    assert np.mean(np.abs(ours - expected) > 1e-3) < 0.05


def test_scales_are_positive_and_the_same_in_half_precision() -> None:
    scales = usable_scale(np.array([0, 1e-9, 1e-3, 0.1, 7.0], dtype=np.float32))
    assert scales.min() == SMALLEST_SCALE
    assert (scales.astype(np.float16).astype(np.float32) == scales).all()
    # The offset too, or the zero of a tensor would be none.
    assert ((scales * OFFSET).astype(np.float16).astype(np.float32) == scales * OFFSET).all()


def test_activation_scales_have_rank_0_and_weights_one_a_channel() -> None:
    models, weights = network("carn")
    scales, _ = scales_of("backbone", models, weights)
    layers = [layer for layer in layers_of(models, weights) if layer.graph == "backbone"]
    form = tensorrt_form(models["backbone"], models["backbone"], layers, scales, half=False)
    ranks = {
        tuple(tensor.dims)
        for node in form.graph.node
        if node.op_type == "QuantizeLinear"
        for tensor in form.graph.initializer
        if tensor.name == node.input[1]
    }
    assert ranks == {()}
    assert all(found.int8 for found in lint(form, "tensorrt") if found.node != "classifier/planar")


def test_tables_of_the_form_for_tensorrt_8_are_half_as_everywhere() -> None:
    models, _ = network("fsrcnn")
    for graph in ("backbone", "upsampler_0", "upsampler_1"):
        narrowed = with_half_tables(models[graph])
        types = {
            value.name: value.type.tensor_type.elem_type
            for value in [*narrowed.graph.input, *narrowed.graph.output]
        }
        tables = [kind for name, kind in types.items() if "table" in name]
        assert set(tables) == {onnx.TensorProto.FLOAT16}
        feed = feed_of(graph, models)
        expected = run(models[graph], feed)
        given = {n: v.astype(np.float16) if n == "table" else v for n, v in feed.items()}
        for ours, theirs in zip(run(narrowed, given), expected, strict=True):
            assert np.abs(ours.astype(np.float32) - theirs).max() < 1e-2 * max(1.0, np.ptp(theirs))


def test_a_graph_hash_is_of_what_is_computed_and_of_nothing_else() -> None:
    models, _ = network("fsrcnn")
    model = models["backbone"]
    before = graph_hash(model)
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.producer_name = "another"
    other.metadata_props.add(key="a", value="b")
    assert graph_hash(other) == before
    other.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(
            numpy_helper.to_array(model.graph.initializer[0]) * np.float32(1.001),
            model.graph.initializer[0].name,
        )
    )
    assert graph_hash(other) != before


def test_the_classifier_is_never_quantised() -> None:
    for name in SPECS:
        models, weights = network(name)
        found = layers_of(models, weights)
        assert not [layer for layer in found if "classifier" in layer.key]
        # All other layers are there: their arithmetic is that of the weights.
        planned = sum(layer.macs for layer in found if layer.graph == "upsampler_1")
        assert planned == sum(
            v.size for n, v in weights.items() if n.startswith("upsampler_1.layer") and n.endswith("weight")
        )


@pytest.mark.parametrize("name", ["carn", "fsrcnn"])
def test_shipped_bundles_have_int8_that_fits_them(name: str) -> None:
    from pathlib import Path

    from pcsr.calibration.run import network_of
    from pcsr.export.int8.cache import check_fits, parse_calibration

    bundle = read_bundle(shipped_bundle(name))
    found: Network = network_of(bundle)
    calibration = parse_calibration(bundle.calibration(), Path(name))
    check_fits(calibration, found.models, found.layers, cache=name, bundle=name)
    assert max(effect.drop for key, effect in calibration.effects.items() if key.startswith("chosen")) < 0.05
    assert min(calibration.shares.values()) > 0.9
