"""FSRCNN: a five-by-five view, a shrink, a short chain of small convolutions, an expansion."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor, nn

__all__ = ["Fsrcnn"]


class Fsrcnn(nn.Module):
    """The FSRCNN backbone: (1, 3, h, w) normalised picture to (1, width, h, w) features.

    Args:
        width: feature channels C (`d` in the paper).
        s: channels of the mapping layers.
        m: number of mapping layers; nothing but one PReLU after the last stands between them.

    `head_conv`: 5x5 convolution, PReLU. `body_conv`: [1x1 shrink, PReLU], m convolutions 3x3, PReLU, [1x1
    expansion, PReLU]. Every PReLU has one slope for all channels.

    Source: Dong et al., "Accelerating the Super-Resolution Convolutional Neural Network" (ECCV 2016), without
    its deconvolution.
    """

    OPTIONS: ClassVar[Mapping[str, int]] = MappingProxyType({"s": 12, "m": 4})
    """Options beside the width, with the authors' defaults."""
    AUTHORS_ARGS: ClassVar[Mapping[str, str]] = MappingProxyType({"d": "width", "s": "s", "m": "m"})
    """Names in the authors' configuration, and ours."""
    AUTHORS_WIDTH: ClassVar[int] = 56
    """The width where the authors' configuration gives none."""
    AUTHORS_MEAN: ClassVar[tuple[float, float, float]] = (0.0, 0.0, 0.0)
    """Subtracted from the picture in the authors' training."""

    def __init__(self, width: int, *, s: int = 12, m: int = 4) -> None:
        super().__init__()
        self.head_conv = nn.Sequential(nn.Conv2d(3, width, 5, padding=2), nn.PReLU())
        self.body_conv = nn.Sequential(
            nn.Sequential(nn.Conv2d(width, s, 1), nn.PReLU()),
            *(nn.Conv2d(s, s, 3, padding=1) for _ in range(m)),
            nn.PReLU(),
            nn.Sequential(nn.Conv2d(s, width, 1), nn.PReLU()),
        )

    @property
    def halo(self) -> int:
        """LR pixels that an output pixel sees to each side; the layers form one chain."""
        return sum(layer.kernel_size[0] // 2 for layer in self.modules() if isinstance(layer, nn.Conv2d))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.body_conv(self.head_conv(x))
        return features
