"""From one calibration to the int8 graphs of every kind of engine."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper

from pcsr.export.int8.cache import Calibration, graph_scales
from pcsr.export.int8.layers import Layer
from pcsr.export.int8.placement import labelled, tensorrt_form
from pcsr.export.int8.processor import WEIGHT_LIMITS, processor_form
from pcsr.runtime.manifest import FORMS, Form

__all__ = ["int8_forms"]

Models = Mapping[str, onnx.ModelProto]


def int8_forms(
    single: Models, half: Models, layers: tuple[Layer, ...], calibration: Calibration
) -> dict[Form, dict[str, onnx.ModelProto]]:
    """All forms of all graphs.

    Args:
        single: fp32 graphs by name.
        half: fp16 graphs by name.
        layers: all of `single`.
        calibration: that fits them; see `check_fits`.
    """
    forms: dict[Form, dict[str, onnx.ModelProto]] = {form: {} for form in FORMS["int8"]}
    for graph, exact in single.items():
        chosen = [
            layer
            for layer in layers
            if layer.graph == graph and layer.node in calibration.layers.get(graph, ())
        ]
        if not chosen:
            # What has no integer layer is what it is in the precision around it.
            forms["int8"][graph] = forms["int8-trt8"][graph] = half[graph]
            forms["int8-cpu"][graph] = forms["int8-vnni"][graph] = exact
            continue
        scales = graph_scales(calibration, graph)
        forms["int8"][graph] = tensorrt_form(exact, half[graph], chosen, scales, half=True)
        forms["int8-trt8"][graph] = with_half_tables(tensorrt_form(exact, exact, chosen, scales, half=False))
        form: Form
        for form, limit in WEIGHT_LIMITS.items():
            forms[form][graph] = processor_form(exact, chosen, scales, limit=limit)
    return forms


def with_half_tables(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 graph whose tables, as input or output, are float16, as those of every engine in less than fp32."""
    narrowed = onnx.ModelProto()
    narrowed.CopyFrom(model)
    graph = narrowed.graph
    del graph.value_info[:]
    for value in graph.input:
        if value.name == "table":
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
            for node in graph.node:
                for i, name in enumerate(node.input):
                    if name == "table":
                        node.input[i] = "table/float"
            graph.node.insert(
                0, helper.make_node("Cast", ["table"], ["table/float"], "table/float", to=TensorProto.FLOAT)
            )
    for value in graph.output:
        if value.name.endswith("_table"):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
            writer = next(node for node in graph.node if value.name in node.output)
            writer.output[0] = f"{value.name}/float"
            graph.node.append(
                helper.make_node(
                    "Cast", [f"{value.name}/float"], [value.name], value.name, to=TensorProto.FLOAT16
                )
            )
            writer.name = f"{value.name}/float"
    return labelled(narrowed, "int8")
