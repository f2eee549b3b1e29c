"""The dense x4 networks that PCSR is compared with: the same backbones, and a tail that upsamples."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pcsr.model.authors import backbone_arguments, load_authors
from pcsr.model.checkpoint import fill
from pcsr.model.cost import count
from pcsr.model.network import BACKBONES, NetworkSpec, skeleton
from pcsr.model.srresnet import SrResnet
from pcsr.runtime.errors import CheckpointError, OptionError

__all__ = ["DenseCost", "DenseNetwork", "dense_cost", "load_dense", "upscale_dense"]

SCALE = 4


class CarnTail(nn.Module):
    """Twice grouped convolution, ReLU and pixel shuffle; then a convolution to RGB."""

    def __init__(self, width: int, options: Mapping[str, int]) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for _ in range(2):
            expand = nn.Conv2d(width, 4 * width, 3, padding=1, groups=options["groups"])
            steps += [expand, nn.ReLU(), nn.PixelShuffle(2)]
        # The authors' names: upsample.up.body.0 and .3.
        self.upsample = nn.ModuleDict({"up": nn.ModuleDict({"body": nn.Sequential(*steps)})})
        self.exit = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, features: Tensor, lr: Tensor) -> Tensor:
        up = cast(nn.ModuleDict, self.upsample["up"])
        colours: Tensor = self.exit(up["body"](features))
        return colours


class FsrcnnTail(nn.Module):
    """One transposed convolution of stride 4."""

    def __init__(self, width: int, options: Mapping[str, int]) -> None:
        super().__init__()
        self.tail_conv = nn.ConvTranspose2d(width, 3, 9, stride=SCALE, padding=3, output_padding=1)

    def forward(self, features: Tensor, lr: Tensor) -> Tensor:
        colours: Tensor = self.tail_conv(features)
        return colours


class SrResnetTail(nn.Module):
    """Twice convolution and pixel shuffle, two convolutions, and the bilinear picture added."""

    def __init__(self, width: int, options: Mapping[str, int]) -> None:
        super().__init__()
        self.upconv1 = nn.Conv2d(width, 4 * width, 3, padding=1)
        self.upconv2 = nn.Conv2d(width, 4 * width, 3, padding=1)
        self.HRconv = nn.Conv2d(width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, features: Tensor, lr: Tensor) -> Tensor:
        for upconv in (self.upconv1, self.upconv2):
            features = _leaky(functional.pixel_shuffle(upconv(features), 2))
        base = functional.interpolate(lr, scale_factor=SCALE, mode="bilinear", align_corners=False)
        colours: Tensor = base + self.conv_last(_leaky(self.HRconv(features)))
        return colours


Tail = CarnTail | FsrcnnTail | SrResnetTail

TAILS: dict[str, type[Tail]] = {"carn": CarnTail, "fsrcnn": FsrcnnTail, "srresnet": SrResnetTail}


class DenseNetwork(nn.Module):
    """A backbone with its x4 tail: (1, 3, h, w) normalised to (1, 3, 4h, 4w) normalised.

    Args:
        backbone: key of `BACKBONES`.
        width: feature channels C.
        options: what the backbone takes beside its width; what is left out has the authors' default.
    """

    def __init__(self, backbone: str, width: int, *, options: tuple[tuple[str, int], ...] = ()) -> None:
        super().__init__()
        self.spec = _spec(backbone, width, options)
        complete = dict(self.spec.options)
        self.backbone = BACKBONES[backbone](width, **complete)
        self.tail: Tail = TAILS[backbone](width, complete)

    def forward(self, lr: Tensor) -> Tensor:
        colours: Tensor = self.tail(self.backbone(lr), lr)
        return colours


@dataclass(frozen=True, slots=True)
class DenseCost:
    """Work of a dense network per LR pixel."""

    published: int
    """FLOPs as the authors count them (see `NetworkCost.published`)."""
    macs: int
    """True multiply-accumulates."""


def load_dense(path: str | os.PathLike[str]) -> DenseNetwork:
    """Load one of the authors' dense x4 checkpoints, with the same caution as `load_checkpoint`.

    Raises:
        CheckpointError: the file cannot be read, cannot be trusted, is damaged, or holds no dense x4 network.
    """
    path = Path(path)
    name, args, tensors = load_authors(path)
    if name not in BACKBONES:
        raise CheckpointError(f"{path} holds {name[:80]!r}, not a dense network ({', '.join(BACKBONES)})")
    scale = args.get("scale", args.get("upscale", SCALE))
    if args.get("no_upsampling", False) is not False or type(scale) is not int or scale != SCALE:
        raise CheckpointError(f"{path}: the dense {name} does not upsample by {SCALE}; only x4 is supported")
    try:
        width, options = backbone_arguments(name, args)
        network = _dense_skeleton(name, width, options)
    except (CheckpointError, OptionError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    # The authors put backbone and tail on one level.
    tails = set(network.tail.state_dict())
    fill(
        network,
        {("tail." if key in tails else "backbone.") + key: value for key, value in tensors.items()},
        path,
    )
    return network


def upscale_dense(network: DenseNetwork, picture: NDArray[Any]) -> NDArray[np.float32]:
    """Upscale a picture by four.

    Args:
        network: in eval mode.
        picture: (h, w, 3) RGB, uint8, or float32 in 0 to 1 (nominal).

    Returns:
        (4h, 4w, 3) float32, de-normalised, neither clamped nor rounded.

    Raises:
        OptionError: not such a picture.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype not in (np.uint8, np.float32):
        raise OptionError(
            f"picture is {picture.dtype} of shape {picture.shape}; "
            "it must be (h, w, 3) uint8, or float32 in 0 to 1"
        )
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).to(next(network.parameters()).device)
    pixels = pixels / 255 if picture.dtype == np.uint8 else pixels
    mean = pixels.new_tensor(network.spec.mean)
    with torch.inference_mode():
        prediction = network((pixels - mean).permute(2, 0, 1).unsqueeze(0).contiguous())
        image = prediction[0].permute(1, 2, 0) + mean
    return cast(NDArray[np.float32], image.contiguous().cpu().numpy())


def dense_cost(network: DenseNetwork) -> DenseCost:
    """Count the work per LR pixel."""
    side = 16
    empty = _dense_skeleton(network.spec.backbone, network.spec.width, network.spec.options)
    flops, macs = count(empty, torch.empty(1, 3, side, side, device="meta"))
    return DenseCost(published=flops // side**2, macs=macs // side**2)


def _dense_skeleton(backbone: str, width: int, options: tuple[tuple[str, int], ...]) -> DenseNetwork:
    """A network with shapes but no memory, in eval mode, after the checks that every network gets."""
    skeleton(_spec(backbone, width, options))
    with torch.device("meta"):
        return DenseNetwork(backbone, width, options=options).eval()


def _spec(backbone: str, width: int, options: tuple[tuple[str, int], ...]) -> NetworkSpec:
    """A heavy-only spec, for its checks of sizes, its defaults and the normalisation."""
    mean = BACKBONES[backbone].AUTHORS_MEAN
    return NetworkSpec(backbone, width, upsamplers=((),), classifier=None, options=options, mean=mean)


def _leaky(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, SrResnet.SLOPE)
