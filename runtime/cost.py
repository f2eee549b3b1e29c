"""What a picture cost, by the paper's convention and in multiply-accumulates that really ran."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from pcsr.runtime.options import Cost

__all__ = ["CostTable", "PixelCosts", "normalised_costs", "picture_cost"]


class PixelCosts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Costs per pixel: the backbone per LR pixel, classifier and upsamplers per HR pixel."""

    backbone: int
    classifier: int
    upsamplers: tuple[int, ...]

    def total(self, lr_pixels: int, hr_pixels_per_class: Sequence[int]) -> int:
        """Cost of a picture whose HR pixels were sent to the classes in these numbers."""
        heads = sum(n * cost for n, cost in zip(hr_pixels_per_class, self.upsamplers, strict=True))
        return lr_pixels * self.backbone + sum(hr_pixels_per_class) * self.classifier + heads


class CostTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Both conventions side by side.

    `flops`: the paper's: twice the multiply-accumulates of convolutions and linear layers of the network as
    published, plus its counts for batch normalisation and PReLU. `macs`: multiply-accumulates of the rewritten
    network (first layers shared through tables), padding not counted.
    """

    flops: PixelCosts
    macs: PixelCosts


def normalised_costs(table: CostTable, scale: float) -> tuple[np.float32, ...]:
    """The paper's cost of each class at a scale, as shares of their sum.

    Each is the cost of a 16x16 picture with all its pixels in that class, classifier left out, in float32.
    """
    side = round(16 * scale)
    each = np.array(
        [256 * table.flops.backbone + side * side * upsampler for upsampler in table.flops.upsamplers],
        dtype=np.float32,
    )
    return tuple(each / each.sum(dtype=np.float32))


def picture_cost(table: CostTable, lr_pixels: int, pixels_per_class: Sequence[int]) -> Cost:
    """Cost of a picture as it was routed, and with everything in the heaviest class."""
    heaviest = [0] * len(pixels_per_class)
    heaviest[-1] = sum(pixels_per_class)
    return Cost(
        flops=table.flops.total(lr_pixels, pixels_per_class),
        flops_all_heavy=table.flops.total(lr_pixels, heaviest),
        macs=table.macs.total(lr_pixels, pixels_per_class),
        macs_all_heavy=table.macs.total(lr_pixels, heaviest),
    )
