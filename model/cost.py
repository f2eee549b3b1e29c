"""What a network costs per pixel: the paper's convention, and multiply-accumulates, side by side.

Counted by walking the modules of a network as a small picture goes through, each call of a shared module on its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pcsr.model.heads import GEOMETRY, MLP
from pcsr.model.network import Network

__all__ = ["NetworkCost", "PixelCost", "count", "network_cost", "normalised_cost_list", "total"]

# The paper normalises costs on a picture of this size; any would do for the counts themselves.
SIDE = 16


@dataclass(frozen=True, slots=True)
class PixelCost:
    """Work per pixel in one unit of account."""

    backbone: int
    """Per LR pixel."""
    classifier: int
    """Per HR pixel; 0 in a heavy-only network."""
    upsamplers: tuple[int, ...]
    """Per HR pixel of each class, lightest first."""


@dataclass(frozen=True, slots=True)
class NetworkCost:
    """The same network in three units of account."""

    published: PixelCost
    """FLOPs as the authors count them: two per multiply-accumulate of convolutions and linear layers, two per
    element of a batch norm, one per element of a PReLU; nothing for biases, ReLU, softmax and sampling."""
    macs: PixelCost
    """Multiply-accumulates of convolutions and linear layers of the network as published."""
    hoisted_macs: PixelCost
    """Multiply-accumulates once the first linear layer of every head is split: its C feature inputs become a
    1x1 convolution per LR pixel (counted with the backbone), its four geometric ones a term per row and per
    column (not counted: nothing beside H * W)."""


def network_cost(network: Network) -> NetworkCost:
    """Count the work per pixel of a network."""
    # A copy in eval mode: a picture that goes through must not move the batch norms' statistics. Not on the
    # meta device, whose first use costs a second of imports.
    backbone = copy.deepcopy(network.backbone).cpu().eval()
    flops, macs = count(backbone, torch.zeros(1, 3, SIDE, SIDE))
    heads = [_linear_macs(head) for head in network.heads]
    classifier = 0 if network.classifier is None else _linear_macs(network.classifier)
    every_head = [*network.heads, *([] if network.classifier is None else [network.classifier])]
    tables = network.spec.width * sum(head.linears[0].out_features for head in every_head)
    pixels = SIDE * SIDE
    return NetworkCost(
        published=PixelCost(flops // pixels, 2 * classifier, tuple(2 * head for head in heads)),
        macs=PixelCost(macs // pixels, classifier, tuple(heads)),
        hoisted_macs=PixelCost(
            macs // pixels + tables,
            0 if network.classifier is None else classifier - _first_macs(network.classifier),
            tuple(macs - _first_macs(head) for macs, head in zip(heads, network.heads, strict=True)),
        ),
    )


def total(
    cost: PixelCost, h: int, w: int, pixels_per_class: Sequence[int], *, classified: bool = True
) -> int:
    """Work of a whole picture.

    Args:
        cost: per pixel.
        h: LR height.
        w: LR width.
        pixels_per_class: HR pixels that each class got, lightest first.
        classified: whether the classifier ran on every HR pixel.
    """
    upsampling = sum(n * each for n, each in zip(pixels_per_class, cost.upsamplers, strict=True))
    return h * w * cost.backbone + (sum(pixels_per_class) * cost.classifier if classified else 0) + upsampling


def normalised_cost_list(cost: NetworkCost, scale_key: float) -> tuple[float, ...]:
    """Cost of each class as the k rule uses it: shares of their sum, in float32.

    Args:
        cost: of the network.
        scale_key: the scale, or where only a size is known, its mean over both axes rounded to one decimal.

    Returns:
        M float32 values, lightest class first: backbone and upsampler (not the classifier) on a 16x16 picture
        with every pixel in that class, divided by their sum (paper, section 3.3).
    """
    side = round(SIDE * scale_key)
    published = cost.published
    each = [SIDE * SIDE * published.backbone + side * side * upsampler for upsampler in published.upsamplers]
    rounded = np.array(each, dtype=np.float32)
    return tuple(float(share) for share in rounded / rounded.sum(dtype=np.float32))


def count(module: nn.Module, inputs: Tensor) -> tuple[int, int]:
    """FLOPs by the published convention and multiply-accumulates of one forward pass.

    The published convention counts a transposed convolution at its output size, stride^2 times too much; the
    multiply-accumulates are the true ones.

    Args:
        module: on the same device as `inputs`; on PyTorch's meta device nothing is computed.
        inputs: what it is called with.
    """
    flops = macs = 0

    def add(layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        nonlocal flops, macs
        if isinstance(layer, nn.Conv2d):
            work = output.numel() * (layer.in_channels // layer.groups) * math.prod(layer.kernel_size)
            flops, macs = flops + 2 * work, macs + work
        elif isinstance(layer, nn.ConvTranspose2d):
            kernel = math.prod(layer.kernel_size)
            flops += 2 * output.numel() * (layer.in_channels // layer.groups) * kernel
            macs += arguments[0].numel() * (layer.out_channels // layer.groups) * kernel
        elif isinstance(layer, nn.BatchNorm2d):
            flops += 2 * output.numel()
        elif isinstance(layer, nn.PReLU):
            flops += output.numel()

    hooks = [layer.register_forward_hook(add) for layer in module.modules()]
    try:
        with torch.inference_mode():
            module(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return flops, macs


def _linear_macs(head: MLP) -> int:
    return sum(linear.in_features * linear.out_features for linear in head.linears)


def _first_macs(head: MLP) -> int:
    """What the split takes from the work per HR pixel: the whole first layer, features and geometry."""
    first = head.linears[0]
    assert first.in_features > GEOMETRY
    return first.in_features * first.out_features
