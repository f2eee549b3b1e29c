"""Backbones to ONNX: low-resolution picture to the tables of all per-pixel networks.

Channel groups are padded with zeros to a multiple of 16, which changes no result and lets vector units and
tensor cores work on whole registers (measured for ONNX Runtime in docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from pcsr.export.writer import GraphWriter
from pcsr.runtime.manifest import NetworkEntry, Normalisation

__all__ = ["BACKBONES", "backbone_graph", "pad_convolution", "pad_vector", "padded_channels"]

Float = NDArray[np.float32]
Weights = Mapping[str, Float]

# Width that vector units of both AVX2 and AVX-512, and tensor cores, like channel groups to be a multiple of.
LANES = 16


def padded_channels(channels: int, groups: int) -> NDArray[np.intp]:
    """Where each channel lies when every group is padded to a multiple of 16 channels with zeros."""
    width = channels // groups
    padded = -(-width // LANES) * LANES
    channel = np.arange(channels)
    return channel // width * padded + channel % width


def pad_convolution(
    weight: Float, inputs: NDArray[np.intp] | None, outputs: NDArray[np.intp], groups: int
) -> Float:
    """A convolution between padded layouts: zero weights for the channels that were added.

    Args:
        weight: (out, in / groups, kh, kw).
        inputs: place of each input channel within its group's layout; None: not padded.
        outputs: place of each output channel.
        groups: of the convolution.
    """
    padded_out = _padded_size(outputs)
    within = np.arange(weight.shape[1]) if inputs is None else inputs[: weight.shape[1]]
    padded_in = weight.shape[1] if inputs is None else _padded_size(inputs) // groups
    padded = np.zeros((padded_out, padded_in, *weight.shape[2:]), dtype=weight.dtype)
    padded[np.ix_(outputs, within)] = weight
    return padded


def pad_vector(vector: Float, outputs: NDArray[np.intp]) -> Float:
    """A bias in a padded layout."""
    padded = np.zeros(_padded_size(outputs), dtype=vector.dtype)
    padded[outputs] = vector
    return padded


def _padded_size(layout: NDArray[np.intp]) -> int:
    return int(-(-(layout[-1] + 1) // LANES) * LANES)


class _Convolutions:
    """Writes the convolutions of a backbone in a padded layout."""

    def __init__(self, g: GraphWriter, weights: Weights) -> None:
        self.g, self._weights = g, weights

    def __call__(
        self,
        x: str,
        name: str,
        *,
        inputs: NDArray[np.intp] | None,
        outputs: NDArray[np.intp],
        groups: int = 1,
        weight: str = "weight",
        bias: bool = True,
        out: str | None = None,
    ) -> str:
        values = self._weights[f"{name}.{weight}"]
        if values.ndim == 2:
            values = values[:, :, None, None]
        kernel = values.shape[2]
        out = out or name
        arguments = [x, self.g.weight(f"{name}.{weight}", pad_convolution(values, inputs, outputs, groups))]
        if bias:
            arguments.append(
                self.g.weight(f"{name}.bias", pad_vector(self._weights[f"{name}.bias"], outputs))
            )
        return self.g.node(
            "Conv", arguments, out, kernel_shape=[kernel, kernel], pads=[kernel // 2] * 4, group=groups
        )


def backbone_graph(
    network: NetworkEntry, normalisation: Normalisation, weights: Weights, half: bool
) -> onnx.ModelProto:
    g = GraphWriter("backbone", "low-resolution picture to the tables of all per-pixel networks", half=half)
    x = g.input("lr", (1, 3, "h", "w"), "RGB, 0 to 1 nominal")
    # Not folded into the first convolution: zero padding is of the normalised picture.
    for operator, values in (("Sub", normalisation.mean), ("Div", normalisation.std)):
        constant = np.array(values, dtype=np.float32).reshape(1, 3, 1, 1)
        if not (constant == (0 if operator == "Sub" else 1)).all():
            what = {"Sub": "mean", "Div": "deviation"}[operator]
            x = g.node(operator, [x, g.weight(what, constant, narrow=False)], f"without_{what}")
    features, layout = BACKBONES[network.backbone](g, g.narrow(x), network, weights)
    for head in ("classifier", *(f"upsampler_{j}" for j in range(len(network.upsamplers)))):
        _table(g, features, layout, head, weights, dense=head in ("classifier", "upsampler_0"))
    return g.model({"network": network.backbone})


def _table(
    g: GraphWriter, features: str, layout: NDArray[np.intp], head: str, weights: Weights, *, dense: bool
) -> None:
    """First layer's feature part as a 1x1 convolution, in the layout that the head gathers from."""
    values = weights[f"{head}.first.table"]
    channels = len(values)
    kernel = g.weight(
        f"{head}.first.table",
        pad_convolution(values[:, :, None, None], layout, np.arange(channels), 1)[:channels],
    )
    planar = g.node("Conv", [features, kernel], f"{head}/planar", kernel_shape=[1, 1])
    # (1, C, h, w) to (h, C, w) or (h, w, C); squeezed first, so the transposition keeps three axes.
    flat = g.node("Squeeze", [planar, g.weight("first_axis", np.array([0]))], f"{head}/channels_rows_columns")
    name = f"{head}_table"
    g.node("Transpose", [flat], name, perm=[1, 0, 2] if dense else [1, 2, 0])
    shape: Sequence[int | str] = ("h", channels, "w") if dense else ("h", "w", channels)
    g.output(name, shape, f"feature part of the first layer of {head}", kind="narrow")


def _carn(g: GraphWriter, x: str, network: NetworkEntry, weights: Weights) -> tuple[str, NDArray[np.intp]]:
    """CARN: cascades of residual blocks; every 1x1 convolution of a concatenation is a sum of parts."""
    groups = network.options["groups"]
    layout = padded_channels(network.width, groups)
    conv = _Convolutions(g, weights)

    def relu(tensor: str, name: str) -> str:
        return g.node("Relu", [tensor], name)

    def unit(x: str, block: str, name: str) -> str:
        """Residual unit: two grouped 3x3, a 1x1, the skip; weights shared by the three of a block."""
        y = x
        for i in (1, 2):
            y = conv(
                y,
                f"{block}.unit.conv{i}",
                inputs=layout,
                outputs=layout,
                groups=groups,
                out=f"{name}/conv{i}",
            )
            y = relu(y, f"{name}/relu{i}")
        y = conv(y, f"{block}.unit.conv3", inputs=layout, outputs=layout, out=f"{name}/conv3")
        return relu(g.node("Add", [y, x], f"{name}/sum"), name)

    def cascade(x: str, step: Callable[[str, int], str], name: str) -> str:
        parts = [x]
        for j in (1, 2, 3):
            parts.append(step(x, j))
            total = ""
            for i, part in enumerate(parts):
                mixed = conv(
                    part,
                    f"{name}.cascade{j}",
                    inputs=layout,
                    outputs=layout,
                    weight=f"weight{i}",
                    bias=i == 0,
                    out=f"{name}/mix{j}{i}",
                )
                total = g.node("Add", [mixed, total], f"{name}/sum{j}{i}") if total else mixed
            x = relu(total, f"{name}/out{j}")
        return x

    def block(x: str, b: int) -> str:
        name = f"backbone.block{b}"
        return cascade(x, lambda y, j: unit(y, name, f"{name}/unit{j}"), name)

    entry = conv(x, "backbone.entry", inputs=None, outputs=layout)
    return cascade(entry, block, "backbone"), layout


def _fsrcnn(g: GraphWriter, x: str, network: NetworkEntry, weights: Weights) -> tuple[str, NDArray[np.intp]]:
    """FSRCNN: head, shrink, mapping convolutions, expand; a PReLU where the weights have a slope."""
    conv = _Convolutions(g, weights)
    layout = None
    # The 5x5, the shrinking 1x1, the mapping layers, the expanding 1x1.
    for i in range(network.options["m"] + 3):
        name = f"backbone.layer{i}"
        outputs = padded_channels(len(weights[f"{name}.weight"]), 1)
        x = conv(x, name, inputs=layout, outputs=outputs)
        if f"{name}.slope" in weights:
            slope = g.weight(f"{name}.slope", weights[f"{name}.slope"].reshape(1, 1, 1))
            x = g.node("PRelu", [x, slope], f"{name}/prelu")
        layout = outputs
    assert layout is not None
    return x, layout


def _srresnet(
    g: GraphWriter, x: str, network: NetworkEntry, weights: Weights
) -> tuple[str, NDArray[np.intp]]:
    """SRResNet without batch normalisation: a first convolution and residual units."""
    conv = _Convolutions(g, weights)
    layout = padded_channels(network.width, 1)
    x = conv(x, "backbone.entry", inputs=None, outputs=layout)
    x = g.node("LeakyRelu", [x], "backbone.entry/activation", alpha=0.1)
    for i in range(network.options["nb"]):
        name = f"backbone.unit{i}"
        y = conv(x, f"{name}.conv1", inputs=layout, outputs=layout)
        y = g.node("Relu", [y], f"{name}/relu")
        y = conv(y, f"{name}.conv2", inputs=layout, outputs=layout)
        x = g.node("Add", [x, y], f"{name}/sum")
    return x, layout


BACKBONES: Mapping[str, Callable[[GraphWriter, str, NetworkEntry, Weights], tuple[str, NDArray[np.intp]]]] = {
    "carn": _carn,
    "fsrcnn": _fsrcnn,
    "srresnet": _srresnet,
}
