"""What half precision does to a graph, emulated: every float16 tensor is computed in float32 and rounded.

A processor proves little about float16 graphs: ONNX Runtime has no kernels for them there and may compute
through in float32. The emulation rounds after every node, as a device does that accumulates in float32, and
records the largest magnitude on the way, since a tensor beyond 65504 becomes infinite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional

from pcsr.export.writer import HALF_MAX
from pcsr.runtime.backends.graphs import GraphBackend
from pcsr.runtime.bundle import Bundle
from pcsr.runtime.errors import CheckError

__all__ = ["EmulatedHalf", "emulated_backend"]

Attributes = Mapping[str, Any]


def _convolution(inputs: Sequence[Tensor], attributes: Attributes) -> Tensor:
    x, weight, *bias = inputs
    pads = attributes.get("pads", [0, 0])
    return functional.conv2d(
        x, weight, bias[0] if bias else None, padding=(pads[0], pads[1]), groups=attributes.get("group", 1)
    )


OPERATORS: Mapping[str, Callable[[Sequence[Tensor], Attributes], Tensor]] = {
    "Add": lambda x, a: x[0] + x[1],
    "Cast": lambda x, a: x[0],
    "Conv": _convolution,
    "Div": lambda x, a: x[0] / x[1],
    "Gather": lambda x, a: torch.index_select(x[0], a.get("axis", 0), x[1]),
    "Gemm": lambda x, a: x[2] + x[0] @ x[1],
    "Identity": lambda x, a: x[0],
    "LeakyRelu": lambda x, a: functional.leaky_relu(x[0], a["alpha"]),
    "MatMul": lambda x, a: x[0] @ x[1],
    "PRelu": lambda x, a: torch.where(x[0] < 0, x[0] * x[1], x[0]),
    "Relu": lambda x, a: torch.relu(x[0]),
    "Sigmoid": lambda x, a: torch.sigmoid(x[0]),
    "Softmax": lambda x, a: torch.softmax(x[0], dim=a["axis"]),
    "Squeeze": lambda x, a: x[0].squeeze(int(x[1])),
    "Sub": lambda x, a: x[0] - x[1],
    "Transpose": lambda x, a: x[0].permute(a["perm"]),
}


@dataclass
class EmulatedHalf:
    """Runs one graph node by node; see the module.

    Attributes:
        model: whose float16 tensors are rounded.
        largest: magnitude of the largest value that any float16 tensor took so far, and its name.
    """

    model: onnx.ModelProto
    largest: tuple[float, str] = (0.0, "")
    _weights: dict[str, Tensor] = field(init=False)
    _halves: set[str] = field(init=False)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self._weights = {
            tensor.name: torch.from_numpy(_float(numpy_helper.to_array(tensor)))
            for tensor in graph.initializer
        }
        values = [*graph.value_info, *graph.input, *graph.output]
        self._halves = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT16}

    def __call__(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the graph.

        Raises:
            CheckError: a float16 tensor would be infinite or is not a number.
        """
        values = dict(self._weights)
        values |= {
            name: torch.from_numpy(_float(np.ascontiguousarray(array))) for name, array in feed.items()
        }
        with torch.inference_mode():
            for node in self.model.graph.node:
                attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
                result = OPERATORS[node.op_type]([values[name] for name in node.input], attributes)
                name = node.output[0]
                values[name] = self._rounded(name, result) if name in self._halves else result
        outputs = [(output.name, values[output.name].numpy()) for output in self.model.graph.output]
        return [array.astype(np.float16) if name in self._halves else array for name, array in outputs]

    def _rounded(self, name: str, result: Tensor) -> Tensor:
        magnitude = float(result.abs().max()) if result.numel() else 0.0
        if not magnitude < HALF_MAX:
            raise CheckError(
                f"tensor {name} of graph {self.model.graph.name} reaches {magnitude:.4g}, beyond half precision's "
                f"{HALF_MAX:.0f}; export this network with --precision fp32"
            )
        self.largest = max(self.largest, (magnitude, name))
        return result.half().float()


def emulated_backend(bundle: Bundle) -> tuple[GraphBackend, dict[str, EmulatedHalf]]:
    """A backend that runs a bundle's fp16 graphs under emulation, and the graphs with their largest values."""
    files = bundle.graphs("fp16")
    graphs = {name: EmulatedHalf(onnx.load_from_string(bundle.read(entry))) for name, entry in files.items()}
    backend = GraphBackend(
        bundle,
        graphs,
        name="emulated",
        provider="fp16 emulated in PyTorch",
        precision="fp16",
        device="cpu",
        block=1 << 18,
        chunk=1 << 16,
    )
    return backend, graphs


def _float(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32) if array.dtype == np.float16 else array.copy()
