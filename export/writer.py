"""A small ONNX graph writer: named nodes, named tensors, one place that knows about half precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pcsr.runtime.errors import CheckError

__all__ = ["HALF_MAX", "OPSET", "GraphWriter"]

# The newest that ONNX Runtime, TensorRT 8.6 and TensorRT-RTX all take, and the IR version of its time.
OPSET = 17
IR_VERSION = 8
# The largest finite float16.
HALF_MAX = 65504.0

Shape = Sequence[int | str]


class GraphWriter:
    """Collects the nodes of one graph.

    With `half`, weights and everything between `narrow` and `widen` are float16; inputs, outputs that are not
    said to be narrow, and sums written outside of the two stay float32.
    """

    def __init__(self, name: str, description: str, *, half: bool = False) -> None:
        self.half = half
        self._name, self._description = name, description
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._descriptions: dict[str, str] = {}

    def input(self, name: str, shape: Shape, description: str, *, kind: str = "float") -> str:
        """Declare an input; kind is "float", "narrow" (float16 with `half`) or "index" (int32)."""
        self._inputs.append(self._value(name, shape, kind))
        self._descriptions[f"input {name}"] = description
        return name

    def output(self, name: str, shape: Shape, description: str, *, kind: str = "float") -> None:
        """Declare a tensor written before as an output."""
        self._outputs.append(self._value(name, shape, kind))
        self._descriptions[f"output {name}"] = description

    def _value(self, name: str, shape: Shape, kind: str) -> onnx.ValueInfoProto:
        narrow = TensorProto.FLOAT16 if self.half else TensorProto.FLOAT
        types = {"float": TensorProto.FLOAT, "narrow": narrow, "index": TensorProto.INT32}
        return helper.make_tensor_value_info(name, types[kind], list(shape))

    def weight(self, name: str, values: NDArray[Any], *, narrow: bool = True) -> str:
        """Add an initializer; rounded to float16 with `half` unless it belongs to a float32 sum.

        Raises:
            CheckError: it does not fit into float16.
        """
        values = np.ascontiguousarray(values)
        if self.half and narrow and values.dtype == np.float32:
            largest = float(np.abs(values).max())
            if not largest < HALF_MAX:
                raise CheckError(
                    f"weight {name} of graph {self._name} reaches {largest:.4g}, beyond half precision's "
                    f"{HALF_MAX:.0f}; export this network with --precision fp32"
                )
            values = values.astype(np.float16)
        if name not in self._weights:
            self._weights[name] = numpy_helper.from_array(values, name)
        return name

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node named like its output."""
        self._nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def narrow(self, tensor: str) -> str:
        """To the type that layers compute in."""
        return self._cast(tensor, TensorProto.FLOAT16, "half")

    def widen(self, tensor: str) -> str:
        """To float32."""
        return self._cast(tensor, TensorProto.FLOAT, "float")

    def _cast(self, tensor: str, to: int, suffix: str) -> str:
        return self.node("Cast", [tensor], f"{tensor}/{suffix}", to=to) if self.half else tensor

    def model(self, metadata: Mapping[str, str]) -> onnx.ModelProto:
        """The finished model, shapes inferred and checked."""
        graph = helper.make_graph(
            self._nodes,
            self._name,
            self._inputs,
            self._outputs,
            list(self._weights.values()),
            self._description,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="pcsr"
        )
        precision = {"precision": "fp16" if self.half else "fp32"}
        for key, value in {**metadata, **precision, **self._descriptions}.items():
            model.metadata_props.add(key=key, value=value)
        onnx.checker.check_model(model, full_check=True)
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
