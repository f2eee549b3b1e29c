"""Patches: a step's crops from nothing but the seed and the step's number, and what the network sees of them.

Every step has a generator of its own, so a run that is resumed draws what it would have drawn, and there is no
generator's state to keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pcsr.runtime import bicubic, geometry
from pcsr.training.config import DataConfig
from pcsr.training.pictures import Pool

__all__ = ["Batch", "Draw", "Lenses", "draw", "lenses", "prepare"]


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """What one step cuts out, still on the host.

    Attributes:
        crops: (B, H, H, 3) uint8.
        positions: (B, n) int64, row-major HR pixels, without repetition within a patch.
    """

    crops: NDArray[np.uint8]
    positions: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What the network is trained on in one step.

    Attributes:
        lr: (B, 3, h, h) float32, normalised, unrounded.
        rows: (B * n,) int64, the nearest LR pixel of each HR pixel, counted through the batch.
        relative: (B * n, 2) float32, (y, x) from that pixel's centre, in half LR pixels.
        cell: (1,) float32, extent of an HR pixel, in half LR pixels.
        target: (B * n, 3) float32, what is missing between the bilinear base and the truth, normalised.
    """

    lr: Tensor
    rows: Tensor
    relative: Tensor
    cell: Tensor
    target: Tensor


def draw(pool: Pool, data: DataConfig, *, seed: int, step: int, batch: int, pixels: int) -> Draw:
    """Draw the crops of a step.

    Args:
        pool: pictures; each is drawn in proportion to its area.
        data: scales and patch.
        seed: of the run.
        step: counted through the whole run.
        batch: patches B.
        pixels: HR pixels n of each patch.
    """
    random = np.random.Generator(np.random.Philox(key=np.array([seed, step], dtype=np.uint64)))
    side = data.hr_side(random.uniform(*data.scales))
    areas = np.array([picture.shape[0] * picture.shape[1] for picture in pool.pictures], dtype=np.float64)
    chosen = np.searchsorted(np.cumsum(areas), random.random(batch) * areas.sum(), side="right")
    crops = np.empty((batch, side, side, 3), dtype=np.uint8)
    positions = np.empty((batch, pixels), dtype=np.int64)
    for index, which in enumerate(np.minimum(chosen, len(areas) - 1)):
        picture = pool.pictures[which]
        top = random.integers(picture.shape[0] - side + 1)
        left = random.integers(picture.shape[1] - side + 1)
        crop = picture[top : top + side, left : left + side]
        upside_down, mirrored, transposed = random.random(3) < 0.5
        crop = crop[::-1] if upside_down else crop
        crop = crop[:, ::-1] if mirrored else crop
        crops[index] = crop.transpose(1, 0, 2) if transposed else crop
        positions[index] = random.choice(side * side, pixels, replace=False, shuffle=False)
    return Draw(crops, positions)


@dataclass(frozen=True, slots=True, eq=False)
class Lenses:
    """Everything that depends on the size of a patch alone.

    Attributes:
        shrink: (h, H) float32, MATLAB's bicubic as a matrix.
        enlarge: (H, h) float32, the bilinear base as a matrix.
        nearest: (H,) int64, nearest LR pixel.
        relative: (H,) float32.
        cell: (1,) float32.
    """

    shrink: Tensor
    enlarge: Tensor
    nearest: Tensor
    relative: Tensor
    cell: Tensor


@lru_cache(maxsize=1024)
def lenses(h: int, H: int, device: torch.device) -> Lenses:
    """Matrices and coordinates that take H HR pixels to h LR pixels and back."""
    axis = geometry.axis(h, H)
    enlarge = np.zeros((H, h), dtype=np.float32)
    positions = np.arange(H)
    # At the borders both neighbours are the same pixel, and the weights add up.
    np.add.at(enlarge, (positions, axis.low), 1 - axis.weight)
    np.add.at(enlarge, (positions, axis.high), axis.weight)
    # Resizing the identity along one axis gives the matrix of the resize.
    shrink = bicubic.resize(np.eye(H, dtype=np.float32), size=(h, H))
    return Lenses(
        shrink=torch.from_numpy(shrink).to(device),
        enlarge=torch.from_numpy(enlarge).to(device),
        nearest=torch.from_numpy(axis.nearest.astype(np.int64)).to(device),
        relative=torch.from_numpy(axis.relative).to(device),
        cell=torch.tensor([float(axis.cell)], device=device),
    )


def prepare(drawn: Draw, *, patch: int, mean: Tensor, std: Tensor) -> Batch:
    """Make LR patches and targets on the training device.

    Args:
        drawn: crops and positions.
        patch: LR side h.
        mean: (3, 1, 1) float32 on the training device.
        std: likewise.
    """
    device = mean.device
    H = drawn.crops.shape[1]
    lens = lenses(patch, H, device)
    crops = _to(drawn.crops, device).permute(0, 3, 1, 2)
    hr = (crops.float() / 255 - mean) / std
    lr = lens.shrink @ hr @ lens.shrink.T
    missing = (hr - lens.enlarge @ lr @ lens.enlarge.T).flatten(2)
    positions = _to(drawn.positions, device)
    B, n = positions.shape
    y, x = positions // H, positions % H
    patches = torch.arange(B, device=device)[:, None]
    rows = (patches * patch + lens.nearest[y]) * patch + lens.nearest[x]
    return Batch(
        lr=lr.contiguous(memory_format=torch.channels_last),
        rows=rows.flatten(),
        relative=torch.stack([lens.relative[y], lens.relative[x]], dim=2).view(B * n, 2),
        cell=lens.cell,
        target=missing.gather(2, positions[:, None].expand(B, 3, n)).transpose(1, 2).reshape(B * n, 3),
    )


def _to(array: NDArray[np.uint8] | NDArray[np.int64], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
