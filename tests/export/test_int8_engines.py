"""INT8 engines, built without a GPU: each layer that was chosen really becomes one of INT8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pcsr.export.int8.cache import parse_calibration
from pcsr.export.int8.layers import WEIGHTED, initializers, layers_of, observed_tensors
from pcsr.export.int8.placement import Scales, tensorrt_form, weight_scales
from pcsr.export.pipeline import serialise
from pcsr.export.tensorrt.builder import build_plan
from pcsr.export.tensorrt.layer_table import int8_layers
from pcsr.export.tensorrt.profiles import Sizes, graph_profiles
from pcsr.runtime import shipped_bundle, shipped_bundles
from pcsr.runtime.backends.engine_search import engine_form
from pcsr.runtime.bundle import Bundle, read_bundle

from .test_engine_builder import CONFIGS, graphs_and_profiles, identity


def built(bundle: Bundle, graph: str, model: bytes) -> dict[str, bool]:
    """The table of a graph built for three chips."""
    messages: list[str] = []
    asked = identity(graph, "int8", graph_profiles(bundle.manifest, Sizes())[graph])
    plan = build_plan(model, asked, lambda share: True, messages=messages)
    assert len(plan) > 100_000
    return int8_layers(messages)


@pytest.mark.parametrize("name", shipped_bundles())
def test_every_chosen_layer_becomes_int8_and_no_other(name: str) -> None:
    bundle = read_bundle(shipped_bundle(name))
    chosen = parse_calibration(bundle.calibration(), Path(name)).layers
    files = bundle.graphs("int8")
    assert len(files) == 4
    for graph, entry in files.items():
        table = built(bundle, graph, bundle.read(entry))
        layers = {
            node.name
            for node in onnx.load_from_string(bundle.read(entry)).graph.node
            if node.op_type in ("Conv", "Gemm", "MatMul")
        }
        # A product with one output may be part of another kernel; those of INT8 have one each.
        assert {node for node in layers if table.get(node)} == set(chosen.get(graph, ()))


@pytest.mark.slow
@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_network_of_the_real_size_becomes_int8(config: Path) -> None:
    """Ranges are made up: what is proven is that every layer of every graph is fused."""
    exact, profiles = graphs_and_profiles(config, half=False)
    half, _ = graphs_and_profiles(config, half=True)
    models = {name: onnx.load_from_string(content) for name, content in exact.items()}
    weights = {n: v for model in models.values() for n, v in initializers(model).items()}
    for graph, model in models.items():
        layers = [layer for layer in layers_of(models, weights) if layer.graph == graph]
        tensors = observed_tensors(model, layers)
        # Behind a ReLU there is nothing negative.
        writers = {node.output[0]: node.op_type for node in model.graph.node}
        scales = Scales(
            dict.fromkeys(tensors, 4.0),
            {name: 0.0 if writers.get(name) == "Relu" else -4.0 for name in tensors},
            {layer.node: weight_scales(weights[layer.weight], layer.axis) for layer in layers},
        )
        form = tensorrt_form(model, onnx.load_from_string(half[graph]), layers, scales, half=True)
        messages: list[str] = []
        asked = identity(graph, "int8", profiles[graph])
        build_plan(serialise(form), asked, lambda share: True, messages=messages)
        table = int8_layers(messages)
        assert {layer.node for layer in layers} == {
            node.name for node in form.graph.node if table.get(node.name) and node.op_type in WEIGHTED
        }


def test_a_scale_of_rank_1_is_caught_by_the_table_although_it_builds() -> None:
    bundle = read_bundle(shipped_bundle("fsrcnn"))
    entry = bundle.graphs("int8")["backbone"]
    model = onnx.load_from_string(bundle.read(entry))
    before = built(bundle, "backbone", serialise(model))
    spoilt = 0
    for tensor in model.graph.initializer:
        if tensor.name.endswith("/scale") and not tensor.dims:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values).reshape(1), tensor.name))
            spoilt += 1
    assert spoilt > 3
    after = built(bundle, "backbone", serialise(model))
    assert sum(before.values()) > 3
    assert not any(after.values())


def test_the_form_of_an_engine_is_that_of_its_version() -> None:
    assert engine_form("int8", "8.6.1") == "int8-trt8"
    assert engine_form("int8", "10.16.1") == engine_form("int8", "1.7.1") == "int8"
    assert engine_form("fp16", "8.6.1") == "fp16"


def test_a_table_is_read_line_by_line() -> None:
    line = (
        "Name: c_myl0_1, LayerType: {kind}, Inputs: [ {{ Name: a, Datatype: {read}, Format: x }}], Constants: "
        "[ {{ Name: w, Datatype: {weight}, Format: x }}], Outputs: [ {{ Name: o, Datatype: Float }}], TacticName: , "
        "StreamId: 0, Metadata: [ONNX Layer: body/{name}][ONNX Layer: w/{name}]"
    )
    rows = [
        ("correlation", "Int8", "Int8", "one"),
        ("gemm", "Half", "Int8", "two"),
        ("correlation", "Int8", "Half", "three"),
        ("kgen", "Int8", "Int8", "four"),
    ]
    text = "\n".join(line.format(kind=k, read=r, weight=w, name=n) for k, r, w, n in rows)
    found = int8_layers(["Layers:\n" + text, "something else"])
    assert {name: found.get(f"body/{name}") for name in ("one", "two", "three", "four")} == {
        "one": True,
        "two": False,
        "three": False,
        "four": None,
    }
