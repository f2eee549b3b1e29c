"""SRResNet without batch norm: one convolution, then a trunk of residual blocks."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["SrResnet", "TrunkBlock"]


class TrunkBlock(nn.Module):
    """x + conv2(ReLU(conv1(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.conv2(torch.relu(self.conv1(x)))
        return output


class SrResnet(nn.Module):
    """The SRResNet backbone: (1, 3, h, w) normalised picture to (1, width, h, w) features.

    Args:
        width: feature channels C (`nf` in the authors' configuration).
        nb: residual blocks in the trunk. No skip over the whole trunk and no activation after it.

    Source: Ledig et al., "Photo-Realistic Single Image Super-Resolution Using a GAN" (CVPR 2017), in the
    modified form (MSRResNet) that PCSR uses.
    """

    OPTIONS: ClassVar[Mapping[str, int]] = MappingProxyType({"nb": 16})
    """Options beside the width, with the authors' defaults."""
    AUTHORS_ARGS: ClassVar[Mapping[str, str]] = MappingProxyType({"nf": "width", "nb": "nb"})
    """Names in the authors' configuration, and ours."""
    AUTHORS_WIDTH: ClassVar[int] = 64
    """The width where the authors' configuration gives none."""
    AUTHORS_MEAN: ClassVar[tuple[float, float, float]] = (0.0, 0.0, 0.0)
    """Subtracted from the picture in the authors' training."""

    SLOPE: ClassVar[float] = 0.1
    """Slope of the leaky ReLUs below zero."""

    def __init__(self, width: int, *, nb: int = 16) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, width, 3, padding=1)
        self.recon_trunk = nn.Sequential(*(TrunkBlock(width) for _ in range(nb)))

    @property
    def halo(self) -> int:
        """LR pixels that an output pixel sees to each side; the layers form one chain."""
        return sum(layer.kernel_size[0] // 2 for layer in self.modules() if isinstance(layer, nn.Conv2d))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.recon_trunk(functional.leaky_relu(self.conv_first(x), self.SLOPE))
        return features
