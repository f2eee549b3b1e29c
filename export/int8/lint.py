"""Which layers of a Q/DQ graph an engine will run in INT8, and why it will not run the others so.

An engine says nothing where a rule is broken: it computes in floating point, between needless roundings. The rules were
found by building (docs/calibration.md). They hold for any ONNX file, not only for ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pcsr.runtime.errors import OptionError

__all__ = ["TARGETS", "Finding", "Target", "lint", "read_model"]

Target = Literal["tensorrt", "onnxruntime"]
TARGETS: tuple[Target, ...] = ("tensorrt", "onnxruntime")

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Operators that hold integers themselves instead of Q/DQ.
INTEGER = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
FILE_LIMIT = 2 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """On one layer.

    Attributes:
        node: its name, or that of its output.
        operator: of the node.
        int8: whether the engine will run it in INT8.
        quantised: whether the file wants that: its weight comes out of a DequantizeLinear.
        reasons: why it will not, or what keeps it from being as light as it could be.
    """

    node: str
    operator: str
    int8: bool
    quantised: bool
    reasons: tuple[str, ...]


def read_model(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        OptionError: it cannot be read, or is no valid ONNX model.
    """
    try:
        if path.stat().st_size > FILE_LIMIT:
            raise OptionError(
                f"{path} is larger than 2 GiB, more than an ONNX file can be; name another file"
            )
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror or error}; name an ONNX file") from error
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        first = str(error).strip().split("\n")[0][:160]
        raise OptionError(f"{path} is no valid ONNX file ({first}); name another") from error
    return model


def lint(model: onnx.ModelProto, target: Target) -> list[Finding]:
    """Judge every layer of a graph, in the order of the file.

    Args:
        model: any ONNX model.
        target: "tensorrt": from 8.6 on and TensorRT-RTX, "onnxruntime": on processors.
    """
    return list(_Lint(model, target).findings())


class _Lint:
    def __init__(self, model: onnx.ModelProto, target: Target) -> None:
        self.target = target
        self.opset = max(
            (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1
        )
        self.graph = model.graph
        self.writers = {name: node for node in model.graph.node for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)
        self.outputs = {output.name for output in model.graph.output}
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t

    def findings(self) -> Iterator[Finding]:
        for node in self.graph.node:
            name = node.name or (node.output[0] if node.output else "")
            if node.op_type in INTEGER:
                takes = self.target == "onnxruntime"
                why = () if takes else (f"{node.op_type} is not supported; write Q/DQ around a float layer",)
                yield Finding(name, node.op_type, takes, True, why)
            elif node.op_type in LAYERS and len(node.input) >= 2:
                yield self._layer(node, name)

    def _layer(self, node: onnx.NodeProto, name: str) -> Finding:
        data, weight = node.input[0], node.input[1]
        if self._is_weight(data) and not self._is_weight(weight):
            data, weight = weight, data
        if not self._is_dequantised(weight):
            return Finding(name, node.op_type, False, False, ("its weight is not quantised",))
        problems = [*self._data(data), *self._weight(node, weight), *self._bias(node)]
        problems += self._behind(node)
        notes = self._notes(node, weight)
        return Finding(name, node.op_type, not problems, True, (*problems, *notes))

    # --- what a layer reads --------------------------------------------------------------------------------

    def _data(self, tensor: str) -> Iterator[str]:
        node = self._dequantiser(tensor)
        if node is None:
            yield "its input is not behind QuantizeLinear and DequantizeLinear"
            return
        source = self.writers.get(node.input[0])
        joined = source is not None and source.op_type == "Concat"
        if source is None or source.op_type not in ("QuantizeLinear", "Concat"):
            yield "its input is dequantised, but was not quantised in this graph"
        yield from self._scale(node, "input", channels=None, axis=None)
        yield from self._zero(node, "input", "uint8" if self.target == "onnxruntime" else "int8")
        if self.target == "tensorrt" and joined:
            yield "its input is put together from bytes, whose scales may differ; quantise the concatenation"

    def _weight(self, node: onnx.NodeProto, tensor: str) -> Iterator[str]:
        dequantiser = self._dequantiser(tensor)
        if dequantiser is None or dequantiser.input[0] not in self.constants:
            yield "its weight is no int8 constant behind a DequantizeLinear"
            return
        stored = self.constants[dequantiser.input[0]]
        if stored.data_type != TensorProto.INT8:
            yield f"its weight is {_type(stored.data_type)}, not int8"
        axis = self._output_axis(node, tensor, len(stored.dims))
        channels = stored.dims[axis] if axis < len(stored.dims) else None
        yield from self._scale(dequantiser, "weight", channels=channels, axis=axis)
        yield from self._zero(dequantiser, "weight", "int8")

    def _bias(self, node: onnx.NodeProto) -> Iterator[str]:
        if len(node.input) < 3 or not node.input[2]:
            return
        dequantised = self._is_dequantised(node.input[2])
        if self.target == "tensorrt" and dequantised:
            yield "its bias is a dequantised integer; TensorRT refuses that, keep it floating point"
        if self.target == "onnxruntime" and not dequantised:
            yield "its bias is not an int32 constant behind a DequantizeLinear"

    def _scale(
        self, node: onnx.NodeProto, what: str, *, channels: int | None, axis: int | None
    ) -> Iterator[str]:
        tensor = self.constants.get(node.input[1])
        if tensor is None:
            yield f"the scale of its {what} is no constant"
            return
        values = _values(tensor)
        if not (np.isfinite(values).all() and (values > 0).all()):
            yield f"the scale of its {what} is not positive everywhere (or is 0 in float16)"
        if tensor.data_type == TensorProto.FLOAT16 and self.opset < 19:
            yield f"the scale of its {what} is float16, which Q/DQ take from opset 19 on; this is {self.opset}"
        if tensor.data_type == TensorProto.FLOAT16 and self.target == "onnxruntime":
            yield f"the scale of its {what} is float16; ONNX Runtime fuses float32 alone"
        if values.ndim == 0:
            return
        if channels is None:
            shape = "x".join(map(str, values.shape))
            yield f"the scale of its {what} has the shape [{shape}]; only rank 0 is fused, and nothing warns"
            return
        given = next((a.i for a in node.attribute if a.name == "axis"), 1)
        rank = len(self.constants[node.input[0]].dims)
        if given % rank != axis:
            yield f"the scales of its {what} run along axis {given}, its output channels along axis {axis}"
        elif values.shape != (channels,):
            yield f"its {what} has {values.size} scales for {channels} output channels"

    def _zero(self, node: onnx.NodeProto, what: str, wanted: str) -> Iterator[str]:
        if len(node.input) < 3 or not node.input[2]:
            yield f"the zero point of its {what} is not given; without one the type is uint8"
            return
        tensor = self.constants.get(node.input[2])
        if tensor is None:
            yield f"the zero point of its {what} is no constant"
            return
        if _type(tensor.data_type) != wanted:
            yield f"its {what} is quantised to {_type(tensor.data_type)}, not {wanted}"
        elif wanted == "int8" and _values(tensor).any():
            yield f"the zero point of its {what} is not 0"

    # --- what stands behind a layer ------------------------------------------------------------------------

    def _behind(self, node: onnx.NodeProto) -> Iterator[str]:
        output = node.output[0]
        readers = self.readers.get(output, [])
        if self.target == "tensorrt":
            for reader in readers:
                after = self._through_pair(reader)
                if after is not None and after.op_type in ("Relu", "Add"):
                    yield (
                        f"{reader.op_type} stands between it and {after.op_type} {after.name}; quantise behind that"
                    )
            return
        if node.op_type in ("Gemm", "MatMul"):
            return
        alone = len(readers) == 1 and output not in self.outputs
        if alone and readers[0].op_type in ("Relu", "Clip"):
            output = readers[0].output[0]
            readers = self.readers.get(output, [])
            alone = len(readers) == 1 and output not in self.outputs
        if not (alone and readers[0].op_type == "QuantizeLinear"):
            yield "its output, behind ReLU if there is one, is not read by one QuantizeLinear alone"

    def _through_pair(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The reader behind a QuantizeLinear and its DequantizeLinear."""
        for wanted in ("QuantizeLinear", "DequantizeLinear"):
            if node.op_type != wanted:
                return None
            readers = self.readers.get(node.output[0], [])
            if not readers:
                return None
            node = readers[0]
        return node

    def _notes(self, node: onnx.NodeProto, weight: str) -> Iterator[str]:
        if self.target != "tensorrt":
            return
        for reader in self.readers.get(node.output[0], []):
            if reader.op_type != "Add":
                continue
            for other in reader.input:
                writer = self.writers.get(other)
                if other == node.output[0] or other in self.constants or writer is None:
                    continue
                if writer.op_type not in (*LAYERS, "Add", "DequantizeLinear"):
                    yield f"note: the skip {other} is added in floating point; through Q/DQ it is read as int8"

    # --- helpers -------------------------------------------------------------------------------------------

    def _is_weight(self, tensor: str) -> bool:
        node = self._dequantiser(tensor)
        return tensor in self.constants or (node is not None and node.input[0] in self.constants)

    def _dequantiser(self, tensor: str) -> onnx.NodeProto | None:
        node = self.writers.get(tensor)
        # A cast between the scales' type and the layers' is looked through.
        if node is not None and node.op_type == "Cast":
            node = self.writers.get(node.input[0])
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def _is_dequantised(self, tensor: str) -> bool:
        return self._dequantiser(tensor) is not None

    def _output_axis(self, node: onnx.NodeProto, weight: str, rank: int) -> int:
        if node.op_type == "Conv":
            return 0
        if node.op_type == "ConvTranspose":
            return 1
        if node.op_type == "Gemm":
            transposed = next((a.i for a in node.attribute if a.name == "transB"), 0)
            return 0 if transposed else 1
        return rank - 1 if node.input[1] == weight else rank - 2


def _values(tensor: onnx.TensorProto) -> NDArray[Any]:
    values: NDArray[Any] = numpy_helper.to_array(tensor)
    return values


def _type(number: int) -> str:
    return str(helper.tensor_dtype_to_np_dtype(number))
