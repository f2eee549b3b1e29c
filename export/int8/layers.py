"""Which layers of a bundle's graphs can be quantised, and what they read and write."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = [
    "Layer",
    "Sum",
    "channels_read",
    "graph_hash",
    "initializers",
    "layers_of",
    "observed_tensors",
    "sums_of",
]

# Operators with weights, and the place of the weight among their inputs is found by looking.
WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or linear layer.

    Attributes:
        graph: name of its graph.
        node: name of its node there.
        operator: "Conv", "Gemm" or "MatMul".
        input: the activation tensor that it reads, by its name in the fp32 graph.
        output: the tensor that it writes.
        weight: its weight's initializer.
        bias: its bias's initializer, which behind a MatMul an Add reads; None: it has none.
        axis: the weight's axis of output channels.
        groups: of a convolution.
        macs: multiply-accumulates without padding, per LR pixel in the backbone and per HR pixel elsewhere.
    """

    graph: str
    node: str
    operator: str
    input: str
    output: str
    weight: str
    bias: str | None
    axis: int
    groups: int
    macs: int

    @property
    def key(self) -> str:
        """Graph and node, unique in a bundle."""
        return f"{self.graph}:{self.node}"


def layers_of(
    models: Mapping[str, onnx.ModelProto], weights: Mapping[str, NDArray[Any]]
) -> tuple[Layer, ...]:
    """All layers that may run in INT8, in the order of the data.

    The classifier, its table included, decides and stays in floating point.

    Args:
        models: fp32 graphs by name.
        weights: of the bundle, unpadded: their sizes are what is counted.
    """
    found = []
    for graph, model in models.items():
        if graph == "classifier":
            continue
        constants = {tensor.name for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type not in WEIGHTED or node.name == "classifier/planar":
                continue
            at = next(i for i, name in enumerate(node.input) if name in constants)
            weight = node.input[at]
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            found.append(
                Layer(
                    graph=graph,
                    node=node.name,
                    operator=node.op_type,
                    input=node.input[1 - at],
                    output=node.output[0],
                    weight=weight,
                    bias=_bias(node, model, constants),
                    # Gemm multiplies (n, in) by (in, out); the others have (out, in …).
                    axis=1 if node.op_type == "Gemm" else 0,
                    groups=attributes.get("group", 1),
                    macs=int(weights[weight].size),
                )
            )
    return tuple(found)


def _bias(node: onnx.NodeProto, model: onnx.ModelProto, constants: set[str]) -> str | None:
    if node.op_type == "MatMul":
        reader = next(reader for reader in model.graph.node if node.output[0] in reader.input)
        return next((name for name in reader.input if name in constants), None)
    return node.input[2] if len(node.input) > 2 else None


@dataclass(frozen=True, slots=True)
class Sum:
    """Layers whose outputs are added up with nothing between: one layer in parts, or simply one layer.

    Attributes:
        layers: in the order of the data.
        nodes: that add them up.
        output: the tensor that results.
    """

    layers: tuple[Layer, ...]
    nodes: tuple[str, ...]
    output: str

    @property
    def graph(self) -> str:
        """Name of its graph."""
        return self.layers[0].graph

    @property
    def macs(self) -> int:
        """Of all its layers."""
        return sum(layer.macs for layer in self.layers)


def channels_read(layer: Layer, weight: NDArray[Any]) -> int:
    """Channels of the tensor that a layer reads, by its weight."""
    return int(weight.shape[0] if layer.operator == "Gemm" else weight.shape[1] * layer.groups)


def sums_of(model: onnx.ModelProto, layers: Sequence[Layer]) -> tuple[Sum, ...]:
    """All layers of one graph, each in the one sum that it is part of, in the order of the data."""
    readers = Counter(name for node in model.graph.node for name in node.input)
    readers.update(output.name for output in model.graph.output)
    found = {layer.output: Sum((layer,), (), layer.output) for layer in layers}
    for node in model.graph.node:
        parts = [found[name] for name in node.input if name in found and readers[name] == 1]
        if node.op_type == "Add" and len(parts) == len(node.input):
            for part in parts:
                del found[part.output]
            found[node.output[0]] = Sum(
                tuple(layer for part in parts for layer in part.layers),
                (*(name for part in parts for name in part.nodes), node.name),
                node.output[0],
            )
    order = {layer.node: number for number, layer in enumerate(layers)}
    return tuple(sorted(found.values(), key=lambda one: order[one.layers[0].node]))


def residual_outputs(model: onnx.ModelProto, layers: Sequence[Layer]) -> tuple[str, ...]:
    """Outputs of sums that are added to a skip, which is what others read too: the ends of residual branches."""
    constants = {tensor.name for tensor in model.graph.initializer}
    readers = Counter(name for node in model.graph.node for name in node.input)
    ends = {one.output for one in sums_of(model, layers) if readers[one.output] == 1}
    return tuple(
        name
        for node in model.graph.node
        if node.op_type == "Add" and not constants & set(node.input)
        for name in node.input
        if name in ends
    )


def observed_tensors(model: onnx.ModelProto, layers: Sequence[Layer]) -> tuple[str, ...]:
    """Tensors whose range is needed: what layers read, and the ends of residual branches."""
    return tuple(dict.fromkeys([*(layer.input for layer in layers), *residual_outputs(model, layers)]))


def initializers(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """A graph's constants by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def graph_hash(model: onnx.ModelProto) -> str:
    """Sha256 of what a graph computes: nodes, names, attributes and constants, whatever wrote the file."""
    digest = hashlib.sha256()
    for value in [*model.graph.input, *model.graph.output]:
        digest.update(f"{value.name}:{value.type.tensor_type.elem_type};".encode())
    for node in model.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        digest.update(repr((node.op_type, list(node.input), list(node.output))).encode())
        digest.update(repr(sorted((key, _plain(value)) for key, value in attributes.items())).encode())
    for name, values in sorted(initializers(model).items()):
        digest.update(f"{name}:{values.dtype}:{values.shape};".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) or hasattr(value, "__iter__") else value
