"""The form that ONNX Runtime fuses on processors: uint8 activations, int8 weights, outputs quantised.

ONNX Runtime makes an integer kernel only of a layer whose inputs, bias and output are all quantised. So this form
differs from TensorRT's in more than types, though layers and ranges are the same choice:

* A sum of 1x1 convolutions becomes one convolution of the concatenation of their inputs (exact): partial sums need no
  rounding, and one deep product is faster than several flat ones. The concatenated bytes keep each part's own scale
  and zero point; what they lack is folded into weights and bias.
* A grouped convolution becomes a whole one with zeros between the groups: integer kernels have no use for narrow
  groups, and four times the products take less time than a float convolution and the conversions around it.
* A layer is left in floating point where its output is not one that a range was observed for, and where integer
  kernels lose time: `pays` has the rule, docs/calibration.md the measurements.
* What an integer layer writes is read in its rounded form by everybody, or the layer would not be fused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pcsr.export.int8.layers import Layer, Sum, channels_read, initializers, sums_of
from pcsr.export.int8.placement import (
    LIMIT,
    OFFSET,
    Float,
    Scales,
    labelled,
    lost_means,
    quantised_weight,
    rescaled,
    usable_scale,
)
from pcsr.runtime.manifest import Form

__all__ = ["WEIGHT_LIMITS", "pays", "processor_form"]

# Products of uint8 and int8 are added in pairs in 16 bits where the processor has no VNNI, which saturates with weights
# beyond 7 bits.
WEIGHT_LIMITS: Mapping[Form, int] = {"int8-cpu": 63, "int8-vnni": LIMIT}
# Channels below which layers stay as they are. Narrower ones would gain too in a row (16 channels: 1.8 times), but
# those that there are stand between layers that cannot be fused.
WIDTH = 32
# Groups up to which a convolution is worth running as a whole one, most of whose weights are 0.
GROUPS = 4


def pays(layer: Layer, weight: NDArray[Any]) -> bool:
    """Whether an integer kernel of ONNX Runtime is faster than the floating-point one, on processors with VNNI."""
    narrowest = min(channels_read(layer, weight), weight.shape[layer.axis])
    return layer.operator in ("Conv", "Gemm") and layer.groups <= GROUPS and narrowest >= WIDTH


def processor_form(
    single: onnx.ModelProto, layers: Sequence[Layer], scales: Scales, *, limit: int, always: bool = False
) -> onnx.ModelProto:
    """One graph in the form for processors.

    Args:
        single: the fp32 graph; not changed.
        layers: the chosen ones of this graph.
        scales: of these and of every tensor that was observed.
        limit: largest magnitude of a weight: 127, or 63 for processors without VNNI.
        always: layers that do not pay too, to measure that they do not.
    """
    paying = [layer for layer in layers if always or pays(layer, initializers(single)[layer.weight])]
    return _Processor(single, scales, limit).run(layers, paying)


@dataclass(frozen=True, slots=True)
class _Unit:
    """A layer, or several 1x1 convolutions whose outputs are summed, that becomes one integer layer.

    Attributes:
        layers: in the order of the parts.
        sums: nodes that added their outputs up, the last one giving the output.
        output: the tensor that it gives.
        skip: the tensor that is added to it, where a residual branch ends; the sum's node is `ending`.
        ending: node of that sum.
        activation: node of the ReLU behind it all, if there is one.
        result: the tensor that is quantised in the end.
    """

    layers: tuple[Layer, ...]
    sums: tuple[str, ...]
    output: str
    skip: str | None
    ending: str | None
    activation: str | None
    result: str


class _Processor:
    def __init__(self, single: onnx.ModelProto, scales: Scales, limit: int) -> None:
        self.single = single
        self.model = onnx.ModelProto()
        self.model.CopyFrom(single)
        self.values = initializers(single)
        self.scales, self.limit = scales, limit
        self.nodes = {node.name: node for node in self.model.graph.node}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            for name in set(node.input):
                self.readers.setdefault(name, []).append(node)
        self.outputs = {output.name for output in self.model.graph.output}
        self.new: dict[str, NDArray[Any]] = {}
        self.written: list[onnx.NodeProto] = []
        # Tensors by the name of their rounded form, and of their bytes.
        self.rounded: dict[str, str] = {}

    def run(self, layers: Sequence[Layer], paying: Sequence[Layer]) -> onnx.ModelProto:
        chosen = {layer.node: layer for layer in paying}
        units = {unit.layers[0].node: unit for unit in self._units(chosen, layers)}
        # A unit is written where the last of its nodes stood: all it reads is there by then.
        place = {}
        for unit in units.values():
            names = [*(layer.node for layer in unit.layers), *unit.sums, unit.ending, unit.activation]
            for name in names:
                if name is not None:
                    place[name] = unit
        order = [node.name for node in self.model.graph.node]
        last = {
            id(unit): max(order.index(name) for name, its in place.items() if its is unit)
            for unit in units.values()
        }
        results = {unit.result for unit in units.values()}
        for position, name in enumerate(order):
            if name not in place:
                self._copy(self.nodes[name], results)
            elif position == last[id(place[name])]:
                self._write(place[name])
        return self._finished()

    # --- what can be fused ---------------------------------------------------------------------------------

    def _units(self, chosen: Mapping[str, Layer], layers: Sequence[Layer]) -> Iterator[_Unit]:
        for one in sums_of(self.single, layers):
            flat = all(self.values[layer.weight].shape[2:] == (1, 1) for layer in one.layers)
            if all(layer.node in chosen for layer in one.layers) and (flat or len(one.layers) == 1):
                unit = self._unit(one)
                if unit is not None:
                    yield unit

    def _unit(self, one: Sum) -> _Unit | None:
        """What becomes of the output; None where it is nothing that can be quantised."""
        end, skip, ending = one.output, None, None
        adder = self._only_reader(end, "Add")
        if adder is not None:
            other = next((name for name in adder.input if name != end), end)
            if end in self.scales.activations and other in self.scales.activations:
                end, skip, ending = adder.output[0], other, adder.name
        relu = self._only_reader(end, "Relu")
        result = end if relu is None else relu.output[0]
        if result in self.outputs or result not in self.scales.activations:
            return None
        activation = None if relu is None else relu.name
        return _Unit(one.layers, one.nodes, one.output, skip, ending, activation, result)

    def _only_reader(self, tensor: str, operator: str) -> onnx.NodeProto | None:
        readers = self.readers.get(tensor, [])
        alone = len(readers) == 1 and tensor not in self.outputs and readers[0].op_type == operator
        return readers[0] if alone else None

    # --- writing -------------------------------------------------------------------------------------------

    def _copy(self, node: onnx.NodeProto, results: set[str]) -> None:
        for i, name in enumerate(node.input):
            if name in results:
                node.input[i] = self.rounded[name]
        self.written.append(node)

    def _write(self, unit: _Unit) -> None:
        first = unit.layers[0]
        if first.operator == "Gemm":
            weight = self.values[first.weight].astype(np.float64).T
        else:
            weight = np.concatenate([self._whole(layer) for layer in unit.layers], axis=1)
        steps = [self._step(layer.input) for layer in unit.layers]
        common = max(scale for scale, _ in steps)
        width = [weight.shape[1] // len(unit.layers)] * len(unit.layers)
        factors = np.repeat([scale / common for scale, _ in steps], width)
        exact, spread = weight, factors.reshape(1, -1, *[1] * (weight.ndim - 2))
        weight = exact * spread
        scales = usable_scale(np.abs(weight).reshape(len(weight), -1).max(axis=1) / self.limit)
        integers = np.clip(quantised_weight(weight, scales, 0), -self.limit, self.limit)
        single = len(unit.layers) == 1
        zero = steps[0][1] if single else 0
        bias = np.zeros(len(weight))
        for layer in unit.layers:
            bias += 0.0 if layer.bias is None else self.values[layer.bias].reshape(-1).astype(np.float64)
        if self.scales.means:
            # By this form's own rounding, of weights that have other scales here.
            means = np.concatenate([self.scales.means[layer.input] for layer in unit.layers])
            bias += lost_means(exact - rescaled(integers, scales, 0) / spread, means)
        product = scales.astype(np.float64) * common
        offsets = np.rint(bias / product)
        if not single:
            # The zero points of the parts, which the concatenation does not know.
            zeros = np.repeat([point for _, point in steps], width)
            offsets -= integers.reshape(len(weight), -1).astype(np.int64) @ zeros
        name = f"{unit.output}/integer"
        data = self._quantised_input(unit, name, common, zero)
        stored = integers.T if first.operator == "Gemm" else integers
        inputs = [
            data,
            self._dequantised(f"{name}/weight", np.ascontiguousarray(stored), scales, first.axis),
            self._dequantised(
                f"{name}/bias",
                np.clip(offsets, -(2.0**31), 2.0**31 - 1).astype(np.int32),
                product.astype(np.float32),
                0,
            ),
        ]
        node = self.nodes[first.node]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Conv":
            attributes["group"] = 1
        self._add(node.op_type, inputs, unit.output, **attributes)
        end = unit.output
        if unit.ending is not None:
            assert unit.skip is not None
            end = self._add("Add", [self._pair(unit.output), self._pair(unit.skip)], f"{unit.output}/ended")
        if unit.activation is not None:
            end = self._add("Relu", [end], f"{unit.output}/activated")
        self.rounded[unit.result] = self._pair(unit.result, source=end)

    def _whole(self, layer: Layer) -> NDArray[np.float64]:
        """A convolution's weight, (out, in, kh, kw), with zeros between its groups."""
        weight = self.values[layer.weight].astype(np.float64)
        outputs, inputs = len(weight) // layer.groups, weight.shape[1]
        whole = np.zeros((len(weight), inputs * layer.groups, *weight.shape[2:]))
        for group in range(layer.groups):
            rows = slice(group * outputs, (group + 1) * outputs)
            whole[rows, group * inputs : (group + 1) * inputs] = weight[rows]
        return whole

    def _step(self, tensor: str) -> tuple[float, int]:
        """Scale and zero point of a tensor's bytes."""
        scale, offset = self.scales.step(tensor)
        return scale, 0 if offset else OFFSET

    def _quantised_input(self, unit: _Unit, name: str, scale: float, zero: int) -> str:
        if len(unit.layers) == 1:
            return self._pair(unit.layers[0].input)
        for layer in unit.layers:
            self._pair(layer.input)
        parts = [f"{layer.input}/bytes" for layer in unit.layers]
        joined = self._add("Concat", parts, f"{name}/bytes", axis=1)
        return self._dequantise(joined, f"{name}/input", scale, zero)

    def _pair(self, tensor: str, *, source: str | None = None) -> str:
        """A tensor behind Q and DQ, made once."""
        if tensor not in self.rounded:
            scale, zero = self._step(tensor)
            names = [source or tensor, *self._point(tensor, scale, zero)]
            self._add("QuantizeLinear", names, f"{tensor}/bytes")
            self.rounded[tensor] = self._dequantise(f"{tensor}/bytes", tensor, scale, zero)
        return self.rounded[tensor]

    def _dequantise(self, data: str, name: str, scale: float, zero: int) -> str:
        return self._add("DequantizeLinear", [data, *self._point(name, scale, zero)], f"{name}/dequantized")

    def _point(self, name: str, scale: float, zero: int) -> list[str]:
        self.new[f"{name}/scale"] = np.array(scale, dtype=np.float32)
        self.new[f"zero{zero}"] = np.array(zero, dtype=np.uint8)
        return [f"{name}/scale", f"zero{zero}"]

    def _dequantised(self, name: str, values: NDArray[Any], scales: Float, axis: int) -> str:
        self.new[name] = values
        self.new[f"{name}/scale"] = scales
        self.new[f"{name}/zero"] = np.zeros(len(scales), dtype=values.dtype)
        return self._add(
            "DequantizeLinear", [name, f"{name}/scale", f"{name}/zero"], f"{name}/dequantized", axis=axis
        )

    def _add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.written.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def _finished(self) -> onnx.ModelProto:
        graph = self.model.graph
        del graph.node[:]
        # Bytes that are only concatenated leave a dequantisation behind that nobody reads.
        used, needed = set(self.outputs), []
        for node in reversed(self.written):
            if node.output[0] in used:
                used |= set(node.input)
                needed.append(node)
        graph.node.extend(reversed(needed))
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        kept += [numpy_helper.from_array(values, name) for name, values in self.new.items() if name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        del graph.value_info[:]
        return labelled(self.model, "int8")
