"""The exact rewrites: a PyTorch network to the weights that graphs and kernels are made from.

Each rewrite is one small function that returns float64 arrays; `rewrite` applies them, checks each against
the module it replaces on random input, and rounds to float32 once at the end. The names of the result are those
of network.safetensors (docs/bundle.md).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pcsr.model.carn import Carn
from pcsr.model.fsrcnn import Fsrcnn
from pcsr.model.heads import MLP
from pcsr.model.network import Network
from pcsr.model.srresnet import SrResnet, TrunkBlock
from pcsr.runtime.errors import CheckError

__all__ = [
    "fold_batch_norm",
    "heavy_margin",
    "rewrite",
    "scale_output",
    "split_concatenation",
    "split_first_layer",
]

Double = NDArray[np.float64]

TOLERANCE = 1e-5
PROBE_SIDE = 7


def fold_batch_norm(weight: Double, norm: nn.BatchNorm2d) -> tuple[Double, Double]:
    """A bias-free convolution and the batch norm behind it, as one convolution with bias."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = _array(norm.weight) / np.sqrt(_array(norm.running_var) + norm.eps)
    return weight * gain[:, None, None, None], _array(norm.bias) - gain * _array(norm.running_mean)


def split_concatenation(weight: Double, parts: int) -> list[Double]:
    """A 1x1 convolution of a concatenation of equal parts, as one for each, to be summed."""
    return np.split(weight, parts, axis=1)


def split_first_layer(linear: nn.Linear, features: int) -> dict[str, Double]:
    """The first layer of a per-pixel network by input: feature table, relative position, cell, bias.

    The layer reads [feature (C), r_y, r_x, c_y, c_x].
    """
    weight = _array(linear.weight)
    geometry = dict(
        zip(("relative_y", "relative_x", "cell_y", "cell_x"), weight[:, features:].T, strict=True)
    )
    return {"table": weight[:, :features], **geometry, "bias": _array(linear.bias)}


def heavy_margin(linear: nn.Linear) -> nn.Linear:
    """The last layer of a two-class classifier as one output, heavy minus light.

    softmax([a, b])[1] is sigmoid(b - a).
    """
    margin = nn.Linear(linear.in_features, 1, dtype=torch.float64)
    margin.weight.data = linear.weight.data[1:] - linear.weight.data[:1]
    margin.bias.data = linear.bias.data[1:] - linear.bias.data[:1]
    return margin


def scale_output(linear: nn.Linear, deviation: Sequence[float]) -> nn.Linear:
    """The last layer of an upsampler with the normalisation's deviation multiplied in."""
    scaled = copy.deepcopy(linear)
    factor = torch.tensor(deviation, dtype=torch.float64)
    scaled.weight.data *= factor[:, None]
    scaled.bias.data *= factor
    return scaled


def rewrite(network: Network) -> dict[str, NDArray[np.float32]]:
    """All rewrites, each checked.

    Returns:
        float32 arrays by the names of docs/bundle.md.

    Raises:
        CheckError: a rewrite changed what it replaces by more than 1e-5 of the value range, or a weight
            does not fit into float32.
    """
    exact = copy.deepcopy(network).double().eval()
    assert exact.classifier is not None
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = dict(BACKBONES[network.spec.backbone](exact.backbone))
        weights |= _head("classifier", _two_class(exact.classifier), network.spec.width)
        for j, upsampler in enumerate(exact.heads):
            weights |= _head(f"upsampler_{j}", _denormalised(upsampler, network.spec.std), network.spec.width)
    return {name: _single(name, values) for name, values in weights.items()}


def _single(name: str, values: Double) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(rounded).all():
        raise CheckError(
            f"weight {name} reaches {np.abs(values).max():.4g} once folded, beyond float32; "
            "the checkpoint's numbers are out of any sensible range"
        )
    return rounded


# --- per-pixel networks ------------------------------------------------------------------------------------


def _with_last(mlp: MLP, change: Callable[[nn.Linear], nn.Linear]) -> MLP:
    changed = copy.deepcopy(mlp)
    last = changed.layers[-1]
    assert isinstance(last, nn.Linear)
    changed.layers[-1] = change(last)
    return changed


def _two_class(classifier: MLP) -> MLP:
    last = classifier.layers[-1]
    assert isinstance(last, nn.Linear)
    if last.out_features != 2:
        return classifier
    rewritten = _with_last(classifier, heavy_margin)
    probe = torch.randn(64, _first(classifier).in_features, dtype=torch.float64)
    _check("heavy_margin", classifier(probe).softmax(dim=1)[:, 1:], rewritten(probe).sigmoid())
    return rewritten


def _denormalised(upsampler: MLP, deviation: Sequence[float]) -> MLP:
    if all(value == 1 for value in deviation):
        return upsampler
    rewritten = _with_last(upsampler, lambda last: scale_output(last, deviation))
    probe = torch.randn(64, _first(upsampler).in_features, dtype=torch.float64)
    _check("scale_output", upsampler(probe) * torch.tensor(deviation), rewritten(probe))
    return rewritten


def _first(mlp: MLP) -> nn.Linear:
    first = mlp.layers[0]
    assert isinstance(first, nn.Linear)
    return first


def _head(name: str, mlp: MLP, features: int) -> dict[str, Double]:
    first = _first(mlp)
    parts = split_first_layer(first, features)
    probe = torch.randn(64, first.in_features, dtype=torch.float64)
    geometry = np.stack([parts[part] for part in ("relative_y", "relative_x", "cell_y", "cell_x")])
    split = (
        probe[:, :features].numpy() @ parts["table"].T
        + probe[:, features:].numpy() @ geometry
        + parts["bias"]
    )
    _check(f"split_first_layer of {name}", first(probe), torch.from_numpy(split))
    weights = {f"{name}.first.{part}": values for part, values in parts.items()}
    for i, layer in enumerate(mlp.linears[1:], start=1):
        weights[f"{name}.layer{i}.weight"] = _array(layer.weight)
        weights[f"{name}.layer{i}.bias"] = _array(layer.bias)
    return weights


# --- backbones ---------------------------------------------------------------------------------------------


def _carn(backbone: Carn) -> dict[str, Double]:
    weights = _convolution("backbone.entry", backbone.entry)
    weights |= _cascade("backbone", backbone.fusions)
    for b, block in enumerate(backbone.blocks, start=1):
        weights |= _cascade(f"backbone.block{b}", block.fusions)
        convolutions = [layer for layer in block.unit.body if isinstance(layer, nn.Conv2d)]
        for i, convolution in enumerate(convolutions, start=1):
            weights |= _convolution(f"backbone.block{b}.unit.conv{i}", convolution)
    return weights


def _cascade(name: str, fusions: Sequence[nn.Sequential]) -> dict[str, Double]:
    """The three 1x1 convolutions with batch norm of a cascade, folded and split by part."""
    weights = {}
    for j, fusion in enumerate(fusions, start=1):
        convolution, norm = fusion[0], fusion[1]
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        folded, bias = fold_batch_norm(_array(convolution.weight), norm)
        parts = split_concatenation(folded, j + 1)
        probe = torch.randn(1, convolution.in_channels, PROBE_SIDE, PROBE_SIDE, dtype=torch.float64)
        summed = sum(
            functional.conv2d(piece, torch.from_numpy(np.ascontiguousarray(part)))
            for piece, part in zip(probe.chunk(j + 1, dim=1), parts, strict=True)
        )
        bias_map = torch.from_numpy(bias)[None, :, None, None]
        _check(
            f"fold_batch_norm, split_concatenation of {name}.cascade{j}",
            norm(convolution(probe)),
            summed + bias_map,
        )
        for i, part in enumerate(parts):
            weights[f"{name}.cascade{j}.weight{i}"] = part[:, :, 0, 0]
        weights[f"{name}.cascade{j}.bias"] = bias
    return weights


def _fsrcnn(backbone: Fsrcnn) -> dict[str, Double]:
    weights: dict[str, Double] = {}
    i = -1
    # In the order of the data, each activation behind its convolution.
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            i += 1
            weights |= _convolution(f"backbone.layer{i}", module)
        elif isinstance(module, nn.PReLU):
            weights[f"backbone.layer{i}.slope"] = _array(module.weight)
    return weights


def _srresnet(backbone: SrResnet) -> dict[str, Double]:
    weights = _convolution("backbone.entry", backbone.conv_first)
    for i, block in enumerate(backbone.recon_trunk):
        assert isinstance(block, TrunkBlock)
        weights |= _convolution(f"backbone.unit{i}.conv1", block.conv1)
        weights |= _convolution(f"backbone.unit{i}.conv2", block.conv2)
    return weights


BACKBONES: Mapping[str, Callable[[Any], dict[str, Double]]] = {
    "carn": _carn,
    "fsrcnn": _fsrcnn,
    "srresnet": _srresnet,
}


def _convolution(name: str, convolution: nn.Conv2d) -> dict[str, Double]:
    return {f"{name}.weight": _array(convolution.weight), f"{name}.bias": _array(convolution.bias)}


def _array(tensor: Tensor | None) -> Double:
    assert tensor is not None
    return tensor.detach().double().numpy()


def _check(what: str, expected: Tensor, got: Tensor) -> None:
    span = float(expected.max() - expected.min()) or 1.0
    error = float((expected - got).abs().max())
    if not error <= TOLERANCE * span:
        raise CheckError(
            f"rewrite {what} changes its output by {error:.3g} (allowed {TOLERANCE * span:.3g}); "
            "this is a bug in the rewrite or a network of a form it was not written for"
        )
