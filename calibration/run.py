"""A whole calibration: observe, choose the observer, measure every layer, choose the layers."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from pcsr.calibration.choice import choose_layers
from pcsr.calibration.collect import Collector
from pcsr.calibration.evaluation import Judge, Network, int8_share
from pcsr.calibration.observers import (
    Entropy,
    Histogram,
    MeanSquare,
    MinMax,
    Observer,
    Percentile,
    observer_named,
)
from pcsr.calibration.pictures import Chosen, choose_pictures
from pcsr.calibration.resume import Progress, progress_file
from pcsr.export.graphs import build_graphs
from pcsr.export.int8.cache import Calibration, Effect, Observed, PictureEntry, Range, Sensitivity, Settings
from pcsr.export.int8.layers import Layer, Sum, channels_read, graph_hash, initializers, layers_of, sums_of
from pcsr.export.int8.placement import LIMIT, Scales, tensor_scale, weight_scales
from pcsr.export.writer import HALF_MAX
from pcsr.runtime.bundle import Bundle
from pcsr.runtime.errors import CalibrationError, CheckError, OptionError

__all__ = ["AUTO", "Request", "calibrate", "forget_progress", "overall"]

logger = logging.getLogger(__name__)

Show = Callable[[str, float], object]
"""Is told what is being done and the share of it that is done."""

# Parts of the work in order, and their shares of the time.
STAGES = {"observing": 0.3, "comparing observers": 0.07, "measuring layers": 0.57, "choosing layers": 0.06}

# What "auto" compares, each with all layers of a graph in INT8.
CANDIDATES: tuple[Observer, ...] = (
    MinMax(),
    Percentile(99.9),
    Percentile(99.95),
    Percentile(99.99),
    MeanSquare(),
    Entropy(),
)
AUTO = "auto"

Histograms = Mapping[str, Mapping[str, Histogram]]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.

    Attributes:
        data: folder of pictures.
        cache: file to write.
        observer: a name, or "auto": for each graph the one with the least noise on the pictures held out.
        percentile: of the values, for the observer of that name.
        k: of the decision that routes pixels.
        scales: of magnification.
        pictures: to use, held-out ones included.
        seed: of the choice of pictures.
        allow_drop: dB that the mean PSNR of the pictures held out may fall by, at any scale.
        threads: to use.
    """

    data: Path
    cache: Path
    observer: str = AUTO
    percentile: float = 99.99
    k: float = 0.0
    scales: tuple[float, ...] = (2.0, 3.0, 4.0)
    pictures: int = 32
    seed: int = 0
    allow_drop: float = 0.03
    threads: int = 1

    def __post_init__(self) -> None:
        if self.observer != AUTO:
            observer_named(self.observer, self.percentile)
        if not self.scales or not all(1 <= scale <= 64 for scale in self.scales):
            raise OptionError(f"scales are {self.scales}; they must lie between 1 and 64")
        if len(set(self.scales)) != len(self.scales):
            raise OptionError("a scale is given twice")
        if self.pictures < 1:
            raise OptionError(f"pictures is {self.pictures}; it must be 1 or more")
        if not self.allow_drop >= 0:
            raise OptionError(f"allow_drop is {self.allow_drop}; it must be 0 dB or more")
        if not np.isfinite(self.k):
            raise OptionError(f"k is {self.k}; it must be a finite number")


def overall(what: str, share: float) -> float:
    """Share of the whole work that is done when this share of one part is."""
    before = list(STAGES)[: list(STAGES).index(what)]
    return sum(STAGES[name] for name in before) + share * STAGES[what]


def forget_progress(cache: Path) -> None:
    """Remove what is kept beside a cache for a run that is killed: it has been written."""
    progress_file(cache).unlink(missing_ok=True)


def network_of(bundle: Bundle) -> Network:
    """The fp32 graphs that a bundle's weights give, whatever precisions it has.

    Raises:
        BundleError: its weights are damaged.
        CalibrationError: it has no layer that could be quantised.
    """
    manifest, weights = bundle.manifest, bundle.weights()
    models = build_graphs(manifest.network, manifest.normalisation, weights, half=False)
    layers = layers_of(models, weights)
    if not layers:
        raise CalibrationError(f"{bundle.path} has no layer that could run in INT8")
    return Network(bundle, models, layers)


def calibrate(bundle: Bundle, request: Request, *, show: Show = lambda what, share: None) -> Calibration:
    """Measure a bundle on pictures and choose its INT8 layers.

    A run that was killed goes on from where it was if all it depends on is the same.

    Args:
        bundle: to calibrate.
        request: how.
        show: is told about progress.

    Returns:
        What the cache says; `write_calibration` writes it.

    Raises:
        BundleError: the bundle is damaged.
        CalibrationError: it has no layer that could be quantised.
        CheckError: a tensor became infinite or not a number.
        OptionError: no usable pictures.
        OSError: progress cannot be saved beside the cache.
    """
    network = network_of(bundle)
    # Less than the network sees to both sides of a pixel would be nothing but border.
    least = int(np.ceil((2 * bundle.manifest.halo + 1) * max(request.scales)))
    chosen = choose_pictures(request.data, count=request.pictures, seed=request.seed, least=least)
    graphs = {graph: graph_hash(network.models[graph]) for graph in _graphs(network)}
    progress = Progress(request.cache, _key(request, chosen, graphs))
    if progress.observed:
        logger.info(
            "going on with a calibration that ended early: %d observations, %d layers are there",
            progress.observed,
            len(progress.rows),
        )
    histograms = _observe(network, chosen, request, progress, show)
    judge = Judge(network, chosen.held_out, scales=request.scales, k=request.k, threads=request.threads)
    observers, corrected = _observers(network, histograms, request, judge, show)
    plain = {graph: dataclasses.replace(scales, means={}) for graph, scales in corrected.items()}
    effects = {
        "all layers": judge.effect(network.layers, plain),
        "all layers, corrected": judge.effect(network.layers, corrected),
    }
    helps = effects["all layers, corrected"].noise < effects["all layers"].noise
    scales, other = (corrected, plain) if helps else (plain, corrected)
    rows = _measure(network, judge, scales, histograms, progress, show)
    layers = {(layer.graph, layer.node): layer for layer in network.layers}

    def picked_layers(some: Sequence[Sensitivity]) -> list[Layer]:
        return [layers[row.graph, node] for row in some for node in row.nodes]

    def of(some: Sequence[Sensitivity], used: Mapping[str, Scales]) -> Effect:
        return judge.effect(picked_layers(some), used)

    show("choosing layers", 0.0)
    picked, effect = choose_layers(rows, lambda some: of(some, scales), limit=request.allow_drop)
    if effect is not None:
        effects["chosen layers, corrected" if helps else "chosen layers"] = effect
        effects["chosen layers" if helps else "chosen layers, corrected"] = of(picked, other)
    in_int8 = picked_layers(picked)
    return Calibration(
        format="pcsr-calibration",
        version=1,
        graphs=graphs,
        settings=Settings(
            observers={
                graph: Observed(
                    observer=observer.name,  # type: ignore[arg-type]
                    percentile=observer.percent if isinstance(observer, Percentile) else None,
                )
                for graph, observer in observers.items()
            },
            k=float(request.k),
            scales=tuple(map(float, request.scales)),
            pictures=request.pictures,
            seed=request.seed,
            allow_drop=float(request.allow_drop),
        ),
        pictures=tuple(
            PictureEntry(name=picture.name, sha256=picture.sha256, use=use)  # type: ignore[arg-type]
            for use, group in (("calibration", chosen.calibration), ("held out", chosen.held_out))
            for picture in group
        ),
        skipped=chosen.skipped,
        activations={
            graph: {
                tensor: Range(
                    low=histogram.span[0],
                    high=histogram.span[1],
                    largest=scales[graph].activations[tensor],
                    means=tuple(map(float, corrected[graph].means[tensor])),
                    scale=tensor_scale(histogram.span[0], scales[graph].activations[tensor]),
                )
                for tensor, histogram in tensors.items()
            }
            for graph, tensors in ((graph, histograms[graph]) for graph in graphs)
        },
        weights={graph: _vectors(scales[graph].weights) for graph in graphs},
        corrected=helps,
        layers={graph: tuple(layer.node for layer in in_int8 if layer.graph == graph) for graph in graphs},
        sensitivities=tuple(rows),
        effects=effects,
        shares={
            f"{scale:g}": int8_share(bundle, in_int8, scale, shares)
            for scale, shares in judge.shares().items()
        },
        versions=_versions(),
    )


def _graphs(network: Network) -> list[str]:
    return list(dict.fromkeys(layer.graph for layer in network.layers))


def _vectors(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[float, ...]]:
    return {node: tuple(map(float, values)) for node, values in arrays.items()}


def _versions() -> dict[str, str]:
    names = ("pcsr", "numpy", "onnx", "onnxruntime")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def _key(request: Request, chosen: Chosen, graphs: Mapping[str, str]) -> str:
    """Everything that the work so far depends on, the number of threads apart."""
    said = {
        "observer": [request.observer, request.percentile],
        "k": request.k,
        "scales": request.scales,
        "pictures": [
            [picture.sha256 for picture in group] for group in (chosen.calibration, chosen.held_out)
        ],
        "graphs": dict(graphs),
        "versions": _versions(),
    }
    return hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()


def _observe(
    network: Network, chosen: Chosen, request: Request, progress: Progress, show: Show
) -> dict[str, dict[str, Histogram]]:
    """Histograms of every tensor over all pictures and scales; of graphs that have layers."""
    collector = Collector(
        network.bundle,
        network.models,
        network.layers,
        histograms=progress.histograms,
        threads=request.threads,
    )
    work = [(picture, scale) for picture in chosen.calibration for scale in request.scales]
    for done, (picture, scale) in enumerate(work[progress.observed :], start=progress.observed):
        show("observing", done / len(work))
        collector.add(picture.pair(scale)[0], scale=scale, k=request.k, name=picture.name)
        progress.observed = done + 1
        progress.save(collector.histograms)
    return collector.histograms


def _observers(
    network: Network, histograms: Histograms, request: Request, judge: Judge, show: Show
) -> tuple[dict[str, Observer], dict[str, Scales]]:
    """For each graph the observer asked for, or the best; and its scales, with means."""
    if request.observer != AUTO:
        observer = observer_named(request.observer, request.percentile)
        only = dict.fromkeys(_graphs(network), observer)
        return only, {graph: _scales(network, histograms, graph, observer) for graph in only}
    best: dict[str, Observer] = {}
    scales: dict[str, Scales] = {}
    work = len(_graphs(network)) * len(CANDIDATES)
    for graph in _graphs(network):
        its = [layer for layer in network.layers if layer.graph == graph]
        tried = []
        for number, observer in enumerate(CANDIDATES):
            show("comparing observers", (len(best) * len(CANDIDATES) + number) / work)
            found = _scales(network, histograms, graph, observer)
            tried.append((judge.effect(its, {graph: found}).noise, number, found))
        _, number, scales[graph] = min(tried, key=lambda one: one[:2])
        best[graph] = CANDIDATES[number]
    return best, scales


def _scales(network: Network, histograms: Histograms, graph: str, observer: Observer) -> Scales:
    """Of one graph, with the means that biases are corrected by.

    Raises:
        CheckError: a tensor's range is beyond what a float16 scale holds.
    """
    values = initializers(network.models[graph])
    its = [layer for layer in network.layers if layer.graph == graph]
    activations = {tensor: observer.largest(histogram) for tensor, histogram in histograms[graph].items()}
    for tensor, largest in activations.items():
        if not largest / LIMIT < HALF_MAX:
            raise CheckError(
                f"tensor {tensor} of graph {graph} reaches {largest:.4g}; a scale for that is beyond float16, "
                "so this network cannot be quantised"
            )
    weights = {layer.node: weight_scales(values[layer.weight], layer.axis) for layer in its}
    lows = {tensor: histogram.span[0] for tensor, histogram in histograms[graph].items()}
    # A class that no pixel was routed to has no means.
    channels = {layer.input: channels_read(layer, values[layer.weight]) for layer in its}
    means = {
        tensor: histogram.means if histogram.values else np.zeros(channels[tensor])
        for tensor, histogram in histograms[graph].items()
    }
    return Scales(activations, lows, weights, means)


def _measure(
    network: Network,
    judge: Judge,
    scales: Mapping[str, Scales],
    histograms: Histograms,
    progress: Progress,
    show: Show,
) -> list[Sensitivity]:
    """Each layer alone in INT8."""
    shares = judge.shares()
    units = [unit for graph in _graphs(network) for unit in _units(network, graph)]
    for unit in units[len(progress.rows) :]:
        show("measuring layers", len(progress.rows) / len(units))
        each = [int8_share(network.bundle, unit.layers, scale, routed) for scale, routed in shares.items()]
        progress.rows.append(
            Sensitivity(
                graph=unit.graph,
                nodes=tuple(layer.node for layer in unit.layers),
                output=unit.output,
                macs=unit.macs,
                share=float(np.mean(each)),
                effect=judge.effect(unit.layers, scales),
            )
        )
        progress.save(histograms)
    return progress.rows


def _units(network: Network, graph: str) -> tuple[Sum, ...]:
    """What is measured and chosen at once."""
    return sums_of(network.models[graph], [layer for layer in network.layers if layer.graph == graph])
