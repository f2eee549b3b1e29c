"""What TensorRT 8.6 needs: its networks have no strict types, so flags and wishes of layers stand for them.

It is given the same ONNX files as later versions, but for int8, whose Q/DQ must be float32 there. With an fp16 file it
may compute in half precision, and every layer whose result the file says is float32 is asked to stay so: the sums of
table, row and column terms, and probabilities. With Q/DQ it may also compute in INT8, where they say so, and narrow the
rest as it likes, since a file of float32 does not say what must stay.
"""

from __future__ import annotations

from typing import Any

__all__ = ["create_weak_network", "narrow"]


def create_weak_network(trt: Any, builder: Any) -> Any:
    """A network with a batch axis of its own, as ONNX needs it."""
    return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))


def narrow(trt: Any, network: Any, config: Any, *, precision: str) -> None:
    """Allow half precision and INT8 where the file has them, and only there.

    Args:
        trt: the library.
        network: parsed from the file.
        config: of the builder.
        precision: of the file.
    """
    if precision == "fp32":
        return
    config.set_flag(trt.BuilderFlag.FP16)
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    if any(layer.type == trt.LayerType.QUANTIZE for layer in layers):
        config.set_flag(trt.BuilderFlag.INT8)
        return
    config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    for layer in layers:
        if layer.type == trt.LayerType.CONSTANT or not layer.num_outputs:
            continue
        if all(layer.get_output(n).dtype == trt.DataType.FLOAT for n in range(layer.num_outputs)):
            layer.precision = trt.DataType.FLOAT
            for n in range(layer.num_outputs):
                layer.set_output_type(n, trt.DataType.FLOAT)
