"""What a benchmark runs: the networks, and pictures of every size from one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import skimage.data
import torch
from bench_record import Picture, Source
from numpy.typing import NDArray

from pcsr.model.checkpoint import load_checkpoint, save_checkpoint
from pcsr.model.dense import DenseNetwork, load_dense
from pcsr.model.network import BACKBONES, Network, NetworkSpec, build
from pcsr.runtime.errors import CheckpointError, OptionError, PictureError
from pcsr.runtime.pictures import read_picture

__all__ = ["Networks", "Pictures", "Random", "load_networks", "load_pictures"]

Random = Literal["dense", "all"]

DENSE_WIDTHS = {"carn": 64, "fsrcnn": 56, "srresnet": 64}
"""Of the authors' dense networks."""
PCSR_SIZES: dict[str, tuple[int, tuple[tuple[int, ...], ...], tuple[int, ...]]] = {
    "carn": (52, ((20, 20, 20), (74, 74, 74, 74)), (10, 10)),
    "fsrcnn": (48, ((10, 10, 10), (58, 58, 58, 58)), ()),
    "srresnet": (58, ((40, 40, 40), (170, 170, 170, 170)), (20, 20)),
}
"""Width, upsamplers and classifier of the authors' PCSR networks."""


@dataclass(frozen=True, slots=True)
class Networks:
    """A PCSR network with its file, and the dense x4 network that it is held against."""

    pcsr: Network
    file: Path
    pcsr_source: Source
    dense: DenseNetwork | None
    dense_source: Source | None


def load_networks(checkpoint: str, dense: Path | None, random: Random | None, made: Path) -> Networks:
    """Load or make the networks.

    Args:
        checkpoint: a file; with random "all" a backbone's name.
        dense: file of the dense network.
        random: which networks get random weights and the published sizes, good for times alone.
        made: folder for the file of a random network.

    Raises:
        CheckpointError: a file cannot be used, or holds no complete PCSR network.
        OptionError: no such backbone, or `dense` where it is to be random.
    """
    if random is not None and dense is not None:
        raise OptionError("--dense names a checkpoint and --random makes the weights up; give one of them")
    torch.manual_seed(0)
    if random == "all":
        if checkpoint not in BACKBONES:
            raise OptionError(
                f"--random all takes a backbone ({', '.join(BACKBONES)}) in place of the checkpoint, "
                f"not {checkpoint!r}"
            )
        width, upsamplers, classifier = PCSR_SIZES[checkpoint]
        network = build(NetworkSpec(checkpoint, width, upsamplers, classifier))
        file = made / f"random-{checkpoint}.safetensors"
        save_checkpoint(network, file)
        source = Source(backbone=checkpoint)
    else:
        file = Path(checkpoint)
        network = load_checkpoint(file)
        source = Source(backbone=network.spec.backbone, file=file.name, sha256=_sha256(file.read_bytes()))
    if network.classifier is None:
        raise CheckpointError(f"{file} has no classifier; the benchmark needs a complete PCSR network")
    if dense is not None:
        loaded = load_dense(dense)
        told = Source(backbone=loaded.spec.backbone, file=dense.name, sha256=_sha256(dense.read_bytes()))
        return Networks(network, file, source, loaded, told)
    if random is None:
        return Networks(network, file, source, None, None)
    backbone = network.spec.backbone
    made_up = DenseNetwork(backbone, DENSE_WIDTHS[backbone]).eval()
    return Networks(network, file, source, made_up, Source(backbone=backbone))


@dataclass(frozen=True, slots=True)
class Pictures:
    """A picture and perhaps its ground truth, and what all sizes are made of it."""

    lr: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None
    told: Picture

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        h, w = self.lr.shape[:2]
        return h, w

    def at(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """The picture cut to (h, w), and where it is smaller mirrored: contents and so routing stay alike."""
        more = [max(0, want - have) for want, have in zip(size, self.size, strict=True)]
        grown = np.pad(self.lr, ((0, more[0]), (0, more[1]), (0, 0)), mode="symmetric")
        return np.ascontiguousarray(grown[: size[0], : size[1]])

    def truth_at(self, size: tuple[int, int], scale: float) -> NDArray[np.uint8] | None:
        """The ground truth of `at`, where there is one at that scale: of sizes within the picture."""
        if self.truth is None or any(want > have for want, have in zip(size, self.size, strict=True)):
            return None
        if self.truth.shape[:2] != tuple(scale * side for side in self.size):
            return None
        return np.ascontiguousarray(self.truth[: round(scale * size[0]), : round(scale * size[1])])


def load_pictures(picture: Path | None, truth: Path | None) -> Pictures:
    """Read them; without a picture a photograph of a cat, 420x276.

    Raises:
        OptionError: a truth without its picture.
        PictureError: a file cannot be read, or is not RGB of 8 bits.
    """
    if truth is not None and picture is None:
        raise OptionError("--truth belongs to a picture; name it with --picture")
    lr = skimage.data.chelsea()[:276, :420] if picture is None else _rgb(picture)
    return Pictures(
        lr=np.ascontiguousarray(lr),
        truth=None if truth is None else _rgb(truth),
        told=Picture(
            name="skimage.data.chelsea" if picture is None else picture.name,
            sha256=_sha256(np.ascontiguousarray(lr).tobytes()),
            truth=None if truth is None else truth.name,
        ),
    )


def _rgb(file: Path) -> NDArray[np.uint8]:
    pixels: NDArray[Any] = read_picture(file).pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise PictureError(f"{file} is not RGB of 8 bits; the benchmark takes nothing else")
    return pixels


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
