"""What TensorRT 8.6 needs: its networks have no strict types, so flags and wishes of layers stand for them.

It is given the same ONNX files. With an fp16 file it may compute in half precision, and every layer whose result the
file says is float32 is asked to stay so: the sums of table, row and column terms, and probabilities.
"""

from __future__ import annotations

from typing import Any

__all__ = ["create_weak_network", "keep_float32"]


def create_weak_network(trt: Any, builder: Any) -> Any:
    """A network with a batch axis of its own, as ONNX needs it."""
    return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))


def keep_float32(trt: Any, network: Any, config: Any, *, half: bool) -> None:
    """Allow half precision where the file has it, and only there.

    Args:
        trt: the library.
        network: parsed from the file.
        config: of the builder.
        half: the file is one of half precision.
    """
    if not half:
        return
    config.set_flag(trt.BuilderFlag.FP16)
    config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if layer.type == trt.LayerType.CONSTANT or not layer.num_outputs:
            continue
        if all(layer.get_output(n).dtype == trt.DataType.FLOAT for n in range(layer.num_outputs)):
            layer.precision = trt.DataType.FLOAT
            for n in range(layer.num_outputs):
                layer.set_output_type(n, trt.DataType.FLOAT)
