"""What INT8 layers do to pictures that were held out: PSNR, noise, routing, and the share of the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pcsr.calibration.collect import opened
from pcsr.calibration.pictures import Picture
from pcsr.export.int8.cache import Effect
from pcsr.export.int8.layers import Layer
from pcsr.export.int8.placement import Scales, tensorrt_form
from pcsr.export.pipeline import serialise
from pcsr.runtime.backends.graphs import Run
from pcsr.runtime.backends.onnxruntime import open_model
from pcsr.runtime.bundle import Bundle
from pcsr.runtime.upscaler import Upscaler
from pcsr.validation.metrics import agreement, psnr, shave_for

__all__ = ["Judge", "Network", "int8_share"]


@dataclass(frozen=True, slots=True)
class Network:
    """A bundle's fp32 graphs, built from its weights, and their layers.

    Attributes:
        bundle: theirs.
        models: by name.
        layers: that may be quantised.
    """

    bundle: Bundle
    models: Mapping[str, onnx.ModelProto]
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class _Reference:
    """One picture at one scale, and what fp32 makes of it; `truth` is None where only noise is measured."""

    scale: float
    lr: NDArray[np.float32]
    truth: NDArray[Any] | None
    size: tuple[int, int]
    image: NDArray[np.float32]
    class_map: NDArray[np.uint8]
    psnr: float
    shares: tuple[float, ...]


class Judge:
    """Upscales the held-out pictures with some layers quantised and compares with fp32.

    Noise is the geometric mean of that on photographs and that on the same pictures hardened, at the largest scale: a
    range fit for one alone is bad for the other, as text and drawings saturate what photographs hardly reach. The Q/DQ
    graphs are those for TensorRT 8.6, in float32: the same integers as in every form, without the rounding to float16
    around them.
    """

    def __init__(
        self,
        network: Network,
        pictures: Sequence[Picture],
        *,
        scales: Sequence[float],
        k: float,
        threads: int,
    ) -> None:
        """Run the pictures in fp32.

        Args:
            network: to judge.
            pictures: held out.
            scales: of magnification.
            k: of the decision.
            threads: to use.
        """
        self._network, self._k, self._threads = network, k, threads
        self._exact = {name: self._open(name, model) for name, model in network.models.items()}
        self._references = []
        with opened(network.bundle, self._exact, precision="fp32", threads=threads) as up:
            for scale in scales:
                for picture in pictures:
                    self._references.append(self._reference(up, scale, *picture.pair(scale)))
            for picture in pictures:
                hard = picture.hardened(max(scales))
                self._references.append(self._reference(up, max(scales), hard, None))

    def _reference(
        self, up: Upscaler, scale: float, lr: NDArray[np.float32], truth: NDArray[Any] | None
    ) -> _Reference:
        result = up(lr, scale=scale, k=self._k)
        H, W = result.image.shape[:2]
        quality = 0.0 if truth is None else psnr(result.image, truth, shave=shave_for(scale))
        return _Reference(scale, lr, truth, (H, W), result.image, result.class_map, quality, result.shares)

    def _open(self, name: str, model: onnx.ModelProto) -> Run:
        threads = self._threads if name == "backbone" else 1
        return open_model(serialise(model), f"graph {name}", threads=threads)

    def shares(self) -> dict[float, tuple[float, ...]]:
        """Mean share of the pixels in each class, by scale."""
        found: dict[float, list[tuple[float, ...]]] = {}
        for reference in self._references:
            if reference.truth is not None:
                found.setdefault(reference.scale, []).append(reference.shares)
        return {
            scale: tuple(float(share) for share in np.mean(shares, axis=0)) for scale, shares in found.items()
        }

    def effect(self, chosen: Collection[Layer], scales: Mapping[str, Scales]) -> Effect:
        """Of these layers in INT8, everything else in float32.

        Args:
            chosen: the layers.
            scales: by graph.
        """
        graphs = dict(self._exact)
        for name, model in self._network.models.items():
            its = [layer for layer in chosen if layer.graph == name]
            if its:
                graphs[name] = self._open(name, tensorrt_form(model, model, its, scales[name], half=False))
        drops: dict[float, list[float]] = {}
        noise: dict[bool, list[float]] = {True: [], False: []}
        same = []
        with opened(self._network.bundle, graphs, precision="int8", threads=self._threads) as up:
            for reference in self._references:
                result = up(reference.lr, size=reference.size, k=self._k)
                difference = (result.image - reference.image).astype(np.float64)
                noise[reference.truth is None].append(float(np.mean(difference * difference)))
                if reference.truth is not None:
                    quality = psnr(result.image, reference.truth, shave=shave_for(reference.scale))
                    drops.setdefault(reference.scale, []).append(reference.psnr - quality)
                    same.append(agreement(result.class_map, reference.class_map))
        return Effect(
            drops={f"{scale:g}": float(np.mean(values)) for scale, values in drops.items()},
            worst=float(max(max(values) for values in drops.values())),
            noise=math.sqrt(float(np.mean(noise[True]) * np.mean(noise[False]))),
            agreement=float(np.mean(same)),
        )


def int8_share(bundle: Bundle, chosen: Collection[Layer], scale: float, shares: Sequence[float]) -> float:
    """Share of a picture's multiply-accumulates that these layers do.

    Counted as the manifest counts: padding apart, the backbone once per LR pixel, each upsampler on the pixels routed
    to it, the classifier on all.

    Args:
        bundle: whose.
        chosen: the layers.
        scale: of magnification.
        shares: of the pixels in each class.
    """
    cost = bundle.manifest.cost.macs
    each = {"backbone": 1 / scale**2} | {f"upsampler_{j}": share for j, share in enumerate(shares)}
    upsamplers = sum(share * macs for share, macs in zip(shares, cost.upsamplers, strict=True))
    whole = cost.backbone / scale**2 + cost.classifier + upsamplers
    return sum(layer.macs * each[layer.graph] for layer in chosen) / whole
