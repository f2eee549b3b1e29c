"""Q/DQ for TensorRT: one named pass that puts quantisation where the builder fuses it.

The rules (docs/calibration.md), of which `lint` checks the result:

* A layer reads its input through QuantizeLinear and DequantizeLinear, int8 with zero point 0 and one scale a tensor,
  of rank 0: a scale of shape (1,) builds without a warning and runs in floating point.
* TensorRT knows no other zero point, which would leave what comes out of a ReLU with half of the 256 values. So 128
  steps are subtracted before, which costs nothing (it is part of the kernel that rounds), and what they make in a
  layer's output is a constant that its bias takes back. Padding must be of the same constant then, so it stands before
  the rounding too, and not in the convolution.
* All int8 readers of a tensor share one pair, padded ones another. A residual sum whose other side is an int8 layer's
  output reads its skip as int8.
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
    "OFFSET",
    "SMALLEST_SCALE",
    "Scales",
    "lost_means",
    "quantised_weight",
    "rescaled",
    "tensor_scale",
    "tensorrt_form",
    "usable_scale",
    "weight_scales",
]

LIMIT = 127
"""Largest magnitude of an int8 weight, and of an activation with negative values: -128 is not used there."""
OFFSET = 128
"""Steps by which tensors without negative values are moved down, so that they have all 256 integers."""
# The smallest normal float16: TensorRT refuses scales that are 0 there.
SMALLEST_SCALE = 2.0**-14
# The first whose Q/DQ take float16, and the IR version of its time.
HALF_OPSET, HALF_IR = 19, 9

Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scales:
    """Of one graph.

    Attributes:
        activations: largest magnitude of each tensor that is represented.
        lows: smallest value of each tensor.
        weights: scale per output channel of each layer, by node.
        means: (C,) mean of each channel of what layers read, by tensor: what rounding the weights takes from the mean
            of each output channel is put back by the bias then. Empty: it is not.
    """

    activations: Mapping[str, float]
    lows: Mapping[str, float]
    weights: Mapping[str, Float]
    means: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def step(self, tensor: str) -> tuple[float, int]:
        """Of a tensor: the value of one step, and how many of them the integers are moved down: 128 or none."""
        unsigned = self.lows[tensor] >= 0
        return tensor_scale(self.lows[tensor], self.activations[tensor]), OFFSET if unsigned else 0


def tensor_scale(low: float, largest: float) -> float:
    """Value of one step: a 255th of the largest magnitude where no value is negative, else a 127th."""
    return float(usable_scale(np.array(largest / (LIMIT + OFFSET if low >= 0 else LIMIT))))


def usable_scale(scale: NDArray[np.floating]) -> Float:
    """Positive and exact in float16, so that all forms have the same scales."""
    # What is beyond float16 becomes infinite, and is refused by whoever asked.
    with np.errstate(over="ignore"):
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


def rescaled(integers: NDArray[Any], steps: Float, axis: int) -> NDArray[np.float64]:
    """The values that the integers of a weight stand for."""
    shape = [1] * integers.ndim
    shape[axis] = -1
    values: NDArray[np.float64] = integers.astype(np.float64) * steps.astype(np.float64).reshape(shape)
    return values


def lost_means(lost: NDArray[np.float64], means: NDArray[np.float64]) -> NDArray[np.float64]:
    """What rounding a weight takes from the mean of each output channel.

    Bias correction (Nagel et al., Data-free quantization, 2019, section 4.2) with means that were observed.

    Args:
        lost: (out, in / groups, …), the weight less what its integers stand for.
        means: (in,) of the channels read.
    """
    by_input = lost.reshape(*lost.shape[:2], -1).sum(axis=2)
    groups = len(means) // by_input.shape[1]
    grouped = by_input.reshape(groups, -1, by_input.shape[1])
    found: NDArray[np.float64] = np.einsum("goi,gi->go", grouped, means.reshape(groups, -1)).reshape(-1)
    return found


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


@dataclass(frozen=True, slots=True)
class _Skips:
    """Residual sums: the quantised tensor that each reads, and what the layer beside it owes for its offset."""

    tensors: dict[str, str]
    owed: dict[str, float]


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
        # What stands for a tensor, padded or not, behind Q and DQ.
        self.read: dict[tuple[str, tuple[int, ...]], str] = {}
        # Biases that a later node reads: its old input and the new one, by the tensor added to.
        self.biases: dict[str, tuple[str, str]] = {}

    def run(self, layers: Sequence[Layer]) -> onnx.ModelProto:
        chosen = {layer.node: layer for layer in layers}
        skips = self._skips(chosen)
        for node in self.model.graph.node:
            if node.name in chosen:
                self._layer(node, chosen[node.name], skips.owed.get(node.name, 0.0))
            elif node.name in skips.tensors:
                tensor = skips.tensors[node.name]
                for i, name in enumerate(node.input):
                    node.input[i] = self._pair(name) if name == tensor else name
            for tensor in set(node.input) & set(self.biases):
                old, new = self.biases[tensor]
                node.input[list(node.input).index(old)] = new
            self.nodes.append(node)
        return self._finished()

    def _skips(self, chosen: Mapping[str, Layer]) -> _Skips:
        """Sums that read a quantised tensor beside an int8 layer's output."""
        found = _Skips({}, {})
        writers = {node.output[0]: node.name for node in self.model.graph.node if node.name in chosen}
        quantised = {self._activation(node) for node in self.model.graph.node if node.name in chosen}
        for node in self.model.graph.node:
            ends = [name for name in node.input if name in writers]
            skip = next((name for name in node.input if name in quantised and name not in ends), None)
            if node.op_type == "Add" and ends and skip is not None:
                found.tensors[node.name] = skip
                found.owed[writers[ends[0]]] = self._offset(skip)
        return found

    def _activation(self, node: onnx.NodeProto) -> str:
        first, second = node.input[:2]
        return str(second if first in self.constants else first)

    def _step(self, tensor: str) -> tuple[float, int]:
        return self.scales.step(tensor.removesuffix("/half"))

    def _offset(self, tensor: str) -> float:
        """What a quantised tensor has less than the real one."""
        scale, steps = self._step(tensor)
        return scale * steps

    def _layer(self, node: onnx.NodeProto, layer: Layer, owed: float) -> None:
        offset = 0.0
        for i, name in enumerate(node.input[:2]):
            if name == layer.weight:
                node.input[i] = self._weight(layer)
            else:
                offset = self._offset(name)
                node.input[i] = self._pair(name, self._own_padding(node) if offset else ())
        values, steps = self.exact[layer.weight], self.scales.weights[layer.node]
        rounded = rescaled(quantised_weight(values, steps, layer.axis), steps, layer.axis)
        others = tuple(i for i in range(values.ndim) if i != layer.axis)
        constant = offset * rounded.sum(axis=others) + owed
        if self.scales.means:
            lost = values - rounded
            constant = constant + lost_means(lost.T if layer.axis else lost, self.scales.means[layer.input])
        if constant.any():
            self._add_to_bias(node, layer, constant)

    def _own_padding(self, node: onnx.NodeProto) -> tuple[int, ...]:
        """The padding of a convolution, taken from it."""
        for attribute in node.attribute:
            if attribute.name == "pads" and any(attribute.ints):
                taken = tuple(attribute.ints)
                attribute.ints[:] = [0] * len(taken)
                return taken
        return ()

    def _pair(self, tensor: str, padding: tuple[int, ...] = ()) -> str:
        """The tensor behind Q and DQ, made once; moved down, and padded with what stands for 0 then."""
        if (tensor, padding) not in self.read:
            step, steps = self._step(tensor)
            scale = self._constant(f"{tensor}/scale", np.array(step, dtype=self.type))
            zero = self._constant("zero", np.array(0, dtype=np.int8))
            source, name = tensor, f"{tensor}/padded" if padding else tensor
            if steps:
                offset = self._constant(f"{tensor}/offset", np.array(step * steps, dtype=self.type))
                source = f"{tensor}/moved"
                if (source, ()) not in self.read:
                    self.read[source, ()] = self._node("Sub", [tensor, offset], source)
            if padding:
                sides = self._constant(f"padding{padding[0]}", _pads(padding))
                fill = self._constant(f"{tensor}/lowest", np.array(-step * steps, dtype=self.type))
                source = self._node("Pad", [source, sides, fill], name)
            integers = self._node("QuantizeLinear", [source, scale, zero], f"{name}/int8")
            self.read[tensor, padding] = self._node(
                "DequantizeLinear", [integers, scale, zero], f"{name}/dequantized"
            )
        return self.read[tensor, padding]

    def _weight(self, layer: Layer) -> str:
        name = f"{layer.weight}/dequantized"
        if (name, ()) not in self.read:
            scales = self.scales.weights[layer.node]
            values = quantised_weight(self.exact[layer.weight], scales, layer.axis)
            scale = self._constant(f"{layer.weight}/scale", scales.astype(self.type))
            zero = self._constant(f"zero{len(scales)}", np.zeros(len(scales), dtype=np.int8))
            stored = self._constant(f"{layer.weight}/int8", values)
            self.read[name, ()] = self._node("DequantizeLinear", [stored, scale, zero], name, axis=layer.axis)
        return self.read[name, ()]

    def _add_to_bias(self, node: onnx.NodeProto, layer: Layer, constant: NDArray[np.float64]) -> None:
        exact = np.zeros_like(constant) if layer.bias is None else self.exact[layer.bias]
        bias = exact + constant.reshape(exact.shape)
        name = self._constant(f"{layer.node}/bias", bias.astype(self.type))
        if layer.operator == "MatMul":
            assert layer.bias is not None
            self.biases[layer.output] = layer.bias, name
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


def _pads(padding: Sequence[int]) -> NDArray[np.int64]:
    """Padding of a convolution (top, left, bottom, right) as Pad takes it for (1, C, h, w)."""
    top, left, bottom, right = padding
    return np.array([0, 0, top, left, 0, 0, bottom, right], dtype=np.int64)


def labelled(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The model with its precision among the metadata, checked, shapes inferred."""
    for entry in model.metadata_props:
        if entry.key == "precision":
            entry.value = precision
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
