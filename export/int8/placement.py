"""Q/DQ for TensorRT: one named pass that puts quantisation where the builder fuses it.

The rules (docs/calibration.md), of which `lint` checks the result:

* A layer reads its input through QuantizeLinear and DequantizeLinear, int8 with zero point 0 and one scale a tensor,
  of rank 0: a scale of shape (1,) builds without a warning and runs in floating point.
* All int8 readers of a tensor share one pair. So does a residual sum whose other side is an int8 layer's output, and
  the skip is then read as int8.
* Weights are int8 constants behind a DequantizeLinear with a scale per output channel.
* Biases stay floating point, and nothing stands between a layer, its sum and its activation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pcsr.export.int8.layers import Layer, initializers

__all__ = [
    "LIMIT",
    "SMALLEST_SCALE",
    "Scales",
    "quantised_weight",
    "tensorrt_form",
    "usable_scale",
    "weight_scales",
]

LIMIT = 127
"""Largest magnitude of an int8 value: symmetric, -128 is never used."""
# The smallest normal float16: TensorRT refuses scales that are 0 there.
SMALLEST_SCALE = 2.0**-14
# The first whose Q/DQ take float16, and the IR version of its time.
HALF_OPSET, HALF_IR = 19, 9

Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scales:
    """Of one graph.

    Attributes:
        activations: largest magnitude of each tensor that is represented; int8 values are multiples of a 127th.
        weights: scale per output channel of each layer, by node.
        corrections: what is added to each layer's bias, by node.
    """

    activations: Mapping[str, float]
    weights: Mapping[str, Float]
    corrections: Mapping[str, Float] = field(default_factory=dict)


def usable_scale(scale: NDArray[np.floating]) -> Float:
    """Positive and exact in float16, so that all forms have the same scales."""
    rounded: Float = np.maximum(scale, SMALLEST_SCALE).astype(np.float16).astype(np.float32)
    return rounded


def weight_scales(weight: NDArray[np.floating], axis: int) -> Float:
    """Scale of each output channel, the largest magnitude being 127."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return usable_scale(np.abs(weight).max(axis=others) / LIMIT)


def quantised_weight(weight: NDArray[np.floating], scales: Float, axis: int) -> NDArray[np.int8]:
    """Int8 values of a weight."""
    shape = [1] * weight.ndim
    shape[axis] = -1
    steps: NDArray[np.int8] = np.clip(np.rint(weight / scales.reshape(shape)), -LIMIT, LIMIT).astype(np.int8)
    return steps


def tensorrt_form(
    single: onnx.ModelProto, model: onnx.ModelProto, layers: Sequence[Layer], scales: Scales, *, half: bool
) -> onnx.ModelProto:
    """Place Q/DQ around the chosen layers of one graph.

    Args:
        single: the graph in fp32, whose weights are quantised.
        model: the graph in the precision of what stays floating point; not changed.
        layers: the chosen ones of this graph.
        scales: of at least these layers and what they read.
        half: whether `model` is the fp16 graph: for TensorRT from 10 on and TensorRT-RTX. Otherwise the fp32 graph:
            for TensorRT 8.6, which narrows by builder flags.
    """
    return _Placement(single, model, scales, half).run(layers)


class _Placement:
    def __init__(self, single: onnx.ModelProto, model: onnx.ModelProto, scales: Scales, half: bool) -> None:
        self.exact = initializers(single)
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.scales = scales
        self.type = np.float16 if half else np.float32
        self.half = half
        self.nodes: list[onnx.NodeProto] = []
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.read: dict[str, str] = {}
        # Corrected biases that a later node reads: its old input and the new one, by the tensor added to.
        self.corrected: dict[str, tuple[str, str]] = {}

    def run(self, layers: Sequence[Layer]) -> onnx.ModelProto:
        chosen = {layer.node: layer for layer in layers}
        skips = self._skips(set(chosen))
        for node in self.model.graph.node:
            if node.name in chosen:
                self._layer(node, chosen[node.name])
            elif node.name in skips:
                for i, name in enumerate(node.input):
                    if name == skips[node.name]:
                        node.input[i] = self._pair(name)
            for tensor in set(node.input) & set(self.corrected):
                old, new = self.corrected[tensor]
                node.input[list(node.input).index(old)] = new
            self.nodes.append(node)
        return self._finished()

    def _skips(self, chosen: set[str]) -> dict[str, str]:
        """Sums that read a quantised tensor beside an int8 layer's output, and that tensor."""
        outputs = {node.output[0] for node in self.model.graph.node if node.name in chosen}
        quantised = {self._activation(node) for node in self.model.graph.node if node.name in chosen}
        return {
            node.name: next(iter(quantised & set(node.input)))
            for node in self.model.graph.node
            if node.op_type == "Add" and outputs & set(node.input) and quantised & set(node.input)
        }

    def _activation(self, node: onnx.NodeProto) -> str:
        first, second = node.input[:2]
        return str(second if first in self.constants else first)

    def _layer(self, node: onnx.NodeProto, layer: Layer) -> None:
        for i, name in enumerate(node.input[:2]):
            node.input[i] = self._weight(layer) if name == layer.weight else self._pair(name)
        correction = self.scales.corrections.get(layer.node)
        if correction is not None:
            self._correct(node, layer, correction)

    def _pair(self, tensor: str) -> str:
        """The tensor behind Q and DQ, made once."""
        if tensor not in self.read:
            largest = self.scales.activations[tensor.removesuffix("/half")]
            scale = self._constant(
                f"{tensor}/scale", usable_scale(np.array(largest / LIMIT)).astype(self.type)
            )
            zero = self._constant("zero", np.array(0, dtype=np.int8))
            self._node("QuantizeLinear", [tensor, scale, zero], f"{tensor}/int8")
            self.read[tensor] = self._node(
                "DequantizeLinear", [f"{tensor}/int8", scale, zero], f"{tensor}/dequantized"
            )
        return self.read[tensor]

    def _weight(self, layer: Layer) -> str:
        name = f"{layer.weight}/dequantized"
        if name not in self.read:
            scales = self.scales.weights[layer.node]
            values = quantised_weight(self.exact[layer.weight], scales, layer.axis)
            scale = self._constant(f"{layer.weight}/scale", scales.astype(self.type))
            zero = self._constant(f"zero{len(scales)}", np.zeros(len(scales), dtype=np.int8))
            stored = self._constant(f"{layer.weight}/int8", values)
            self.read[name] = self._node("DequantizeLinear", [stored, scale, zero], name, axis=layer.axis)
        return self.read[name]

    def _correct(self, node: onnx.NodeProto, layer: Layer, correction: Float) -> None:
        exact = np.zeros_like(correction) if layer.bias is None else self.exact[layer.bias]
        bias = exact + correction.reshape(exact.shape)
        name = self._constant(f"{layer.node}/bias", bias.astype(self.type))
        if layer.operator == "MatMul":
            assert layer.bias is not None
            self.corrected[layer.output] = layer.bias, name
            return
        del node.input[2:]
        node.input.append(name)

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        # Not through ascontiguousarray, which makes a vector of a scalar.
        self.constants[name] = numpy_helper.from_array(values, name)
        return name

    def _node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def _finished(self) -> onnx.ModelProto:
        graph = self.model.graph
        del graph.node[:]
        graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        del graph.initializer[:]
        graph.initializer.extend(tensor for name, tensor in self.constants.items() if name in used)
        del graph.value_info[:]
        if self.half:
            self.model.opset_import[0].version, self.model.ir_version = HALF_OPSET, HALF_IR
        return labelled(self.model, "int8")


def labelled(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The model with its precision among the metadata, checked, shapes inferred."""
    for entry in model.metadata_props:
        if entry.key == "precision":
            entry.value = precision
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
