"""CARN: a cascading residual network with grouped convolutions and shared residual units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

__all__ = ["Carn", "CarnBlock", "ResidualUnit"]

# Both levels of the cascade repeat three times: three blocks, and three calls of the shared unit in a block.
STEPS = 3


class ResidualUnit(nn.Module):
    """ReLU(1x1(ReLU(3x3(ReLU(3x3(x))))) + x), the 3x3 convolutions grouped.

    `body` holds the convolutions at 0, 2 and 4, as in the authors' checkpoints.
    """

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=groups),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, groups=groups),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + x)


def _fusion(inputs: int, width: int) -> nn.Sequential:
    """1x1 convolution without bias (0), batch norm (1), ReLU (2) over the running concatenation."""
    return nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def _cascade(x: Tensor, steps: Sequence[nn.Module], fusions: Sequence[nn.Module]) -> Tensor:
    """Apply each step to the last output and fuse all that has been computed so far, newest last."""
    gathered = output = x
    for step, fusion in zip(steps, fusions, strict=True):
        gathered = torch.cat([gathered, step(output)], dim=1)
        output = fusion(gathered)
    return output


class CarnBlock(nn.Module):
    """One residual unit, called three times with the same weights, its outputs fused after each call."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.b1 = ResidualUnit(width, groups)
        self.c1 = _fusion(2 * width, width)
        self.c2 = _fusion(3 * width, width)
        self.c3 = _fusion(4 * width, width)

    @property
    def unit(self) -> ResidualUnit:
        """The shared residual unit (`b1` in checkpoints)."""
        return self.b1

    @property
    def fusions(self) -> tuple[nn.Sequential, ...]:
        """Per step: 1x1 convolution (0) and batch norm (1) over 2, 3, 4 times the width."""
        return self.c1, self.c2, self.c3

    def forward(self, x: Tensor) -> Tensor:
        return _cascade(x, [self.b1] * STEPS, self.fusions)


class Carn(nn.Module):
    """The CARN backbone: (1, 3, h, w) normalised picture to (1, width, h, w) features.

    Args:
        width: feature channels C (`nf` in the authors' configuration), a multiple of `groups`.
        groups: groups of the 3x3 convolutions in the residual units.

    Source: Ahn et al., "Fast, Accurate, and Lightweight Super-Resolution with Cascading Residual Network"
    (ECCV 2018), as modified by PCSR (batch norm in the cascades, no upsampling).
    """

    OPTIONS: ClassVar[Mapping[str, int]] = MappingProxyType({"groups": 4})
    """Options beside the width, with the authors' defaults."""
    AUTHORS_ARGS: ClassVar[Mapping[str, str]] = MappingProxyType({"nf": "width", "group": "groups"})
    """Names in the authors' configuration, and ours."""
    AUTHORS_WIDTH: ClassVar[int] = 64
    """The width where the authors' configuration gives none."""
    AUTHORS_MEAN: ClassVar[tuple[float, float, float]] = (0.4488, 0.4371, 0.4040)
    """Subtracted from the picture in the authors' training; their checkpoints do not say so."""

    def __init__(self, width: int, *, groups: int = 4) -> None:
        super().__init__()
        self.entry = nn.Conv2d(3, width, 3, padding=1)
        self.b1 = CarnBlock(width, groups)
        self.b2 = CarnBlock(width, groups)
        self.b3 = CarnBlock(width, groups)
        self.c1 = _fusion(2 * width, width)
        self.c2 = _fusion(3 * width, width)
        self.c3 = _fusion(4 * width, width)

    @property
    def blocks(self) -> tuple[CarnBlock, ...]:
        return self.b1, self.b2, self.b3

    @property
    def fusions(self) -> tuple[nn.Sequential, ...]:
        """Per block: 1x1 convolution (0) and batch norm (1) over 2, 3, 4 times the width."""
        return self.c1, self.c2, self.c3

    @property
    def halo(self) -> int:
        """LR pixels that an output pixel sees to each side: the entry, then every call of every unit."""
        calls = [layer for block in self.blocks for layer in block.unit.body if isinstance(layer, nn.Conv2d)]
        return self.entry.kernel_size[0] // 2 + STEPS * sum(conv.kernel_size[0] // 2 for conv in calls)

    def forward(self, x: Tensor) -> Tensor:
        return _cascade(self.entry(x), self.blocks, self.fusions)
