"""The calibration cache: what was measured once, so that exports need no pictures. Specified in docs/calibration.md.

The file comes from outside, so it is validated in whole before anything of it is used, and it is for one network: the
hash of every graph is in it.
"""

from __future__ import annotations

import errno
import math
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import onnx
from msgspec import Meta

from pcsr.export.int8.layers import Layer, channels_read, graph_hash, initializers, observed_tensors
from pcsr.export.int8.placement import SMALLEST_SCALE, Scales, tensor_scale, weight_scales
from pcsr.runtime.atomic import write_whole
from pcsr.runtime.errors import CalibrationError

__all__ = [
    "Calibration",
    "Effect",
    "Observed",
    "PictureEntry",
    "Range",
    "Sensitivity",
    "Settings",
    "check_fits",
    "graph_scales",
    "parse_calibration",
    "read_calibration",
    "read_content",
    "write_calibration",
]

# A file has a few hundred kB. Nothing larger is read.
FILE_LIMIT = 64 << 20
SHOWN = 160

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Vector = Annotated[tuple[float, ...], Meta(min_length=1, max_length=65536)]


class Observed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the ranges of a graph's tensors were chosen."""

    observer: Literal["minmax", "percentile", "entropy", "mse"]
    percentile: float | None
    """Of the values, where the observer is the percentile."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How it was measured."""

    observers: dict[Name, Observed]
    """By graph."""
    k: float
    scales: Annotated[tuple[float, ...], Meta(min_length=1, max_length=64)]
    pictures: Annotated[int, Meta(ge=1)]
    """Asked for; `Calibration.pictures` lists those there were."""
    seed: int
    allow_drop: float
    """Decibels that the choice of layers may cost."""


class PictureEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A picture that was used."""

    name: str
    sha256: Sha256
    use: Literal["calibration", "held out"]


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of one tensor."""

    low: float
    """Smallest value seen."""
    high: float
    """Largest value seen."""
    largest: float
    """Magnitude from which on values saturate, as the observer chose it."""
    scale: float
    """Value of one step: a 255th of `largest` where `low` is not negative, else a 127th; exact in float16, at least
    2^-14."""
    means: Vector
    """Mean of each channel."""


class Effect(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What some layers in int8 do to the pictures held out, beside fp32."""

    drops: dict[str, float]
    """Mean loss of PSNR against the truth in dB, by scale."""
    worst: float
    """Largest loss of a picture, in dB."""
    noise: float
    """Mean square of the difference from fp32, 1 being from black to white: the geometric mean of that of the pictures
    and that of the same with their contrast raised."""
    agreement: float
    """Percentage of the pixels that are sent to the same class."""

    @property
    def drop(self) -> float:
        """Mean loss at the scale that loses most: a gain at one makes no loss at another good."""
        return max(self.drops.values())


class Sensitivity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one layer costs when it alone is in int8, and what it saves.

    Layers whose outputs are added up count as one, as engines run them best so.
    """

    graph: Name
    nodes: Annotated[tuple[Name, ...], Meta(min_length=1)]
    output: Name
    """The tensor that it gives."""
    macs: Annotated[int, Meta(ge=0)]
    """Multiply-accumulates, per LR pixel in the backbone and per HR pixel elsewhere."""
    share: float
    """Of all multiply-accumulates of a picture, at the mean of the scales and as the pictures were routed."""
    effect: Effect


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of the file, version 1."""

    format: Literal["pcsr-calibration"]
    version: Literal[1]
    graphs: dict[Name, Sha256]
    """Hash of each fp32 graph that has layers, by what it computes."""
    settings: Settings
    pictures: Annotated[tuple[PictureEntry, ...], Meta(min_length=1)]
    skipped: tuple[tuple[str, str], ...]
    """Files left out, with the reason."""
    activations: dict[Name, dict[Name, Range]]
    """By graph and tensor."""
    weights: dict[Name, dict[Name, Vector]]
    """Scale of each output channel, by graph and node."""
    corrected: bool
    """Whether biases are corrected by the means: whether that helped."""
    layers: dict[Name, tuple[Name, ...]]
    """The chosen ones: nodes by graph."""
    sensitivities: tuple[Sensitivity, ...]
    effects: dict[str, Effect]
    """Of all layers and of the chosen ones, with and without correction."""
    shares: dict[str, float]
    """Share of the multiply-accumulates that the chosen layers are, by scale."""
    versions: dict[str, str]


def graph_scales(calibration: Calibration, graph: str) -> Scales:
    """Scales of one graph as the Q/DQ pass takes them."""
    return Scales(
        {tensor: found.largest for tensor, found in calibration.activations[graph].items()},
        {tensor: found.low for tensor, found in calibration.activations[graph].items()},
        {node: np.array(v, dtype=np.float32) for node, v in calibration.weights[graph].items()},
        {tensor: np.array(found.means) for tensor, found in calibration.activations[graph].items()}
        if calibration.corrected
        else {},
    )


def write_calibration(path: Path, calibration: Calibration) -> bytes:
    """Write the file whole or not at all; its content.

    Raises:
        OSError: it cannot be written.
    """
    content = msgspec.json.format(msgspec.json.encode(calibration), indent=1) + b"\n"
    # What the reader would refuse is not written.
    parse_calibration(content, path)
    write_whole(path, content)
    return content


def read_calibration(path: Path) -> Calibration:
    """Read and validate a cache.

    Raises:
        CalibrationError: there is none, or it is damaged, contradictory or of a version unknown here.
    """
    return parse_calibration(read_content(path), path)


def read_content(path: Path) -> bytes:
    """What a cache's file holds, for `parse_calibration` and for the bundle.

    Raises:
        CalibrationError: it cannot be read.
    """
    try:
        # A pipe would be waited for, and a device may never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        with path.open("rb") as file:
            return file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise CalibrationError(
            f"cannot read {path}: {error.strerror or error}; "
            f"make one with: pcsr-calibrate BUNDLE --data FOLDER -o {path}"
        ) from error


def parse_calibration(content: bytes, path: Path) -> Calibration:
    """Validate the content of a cache; `path` is named in errors.

    Raises:
        CalibrationError: it is damaged, contradictory or of a version unknown here.
    """
    again = "calibrate again with pcsr-calibrate"
    if len(content) > FILE_LIMIT:
        raise CalibrationError(f"{path} is larger than {FILE_LIMIT} bytes, so it is no calibration cache")
    try:
        head: Any = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CalibrationError(f"{path} is not whole JSON ({_shown(error)}); {again}") from error
    if not isinstance(head, dict) or head.get("format") != "pcsr-calibration":
        raise CalibrationError(f"{path} is no calibration cache; give a file that pcsr-calibrate wrote")
    if type(head.get("version")) is not int or head["version"] != 1:
        raise CalibrationError(
            f"{path} has version {_shown(head.get('version'))} and this pcsr reads version 1; upgrade pcsr, or {again}"
        )
    try:
        calibration = msgspec.convert(head, Calibration)
    except msgspec.ValidationError as error:
        raise CalibrationError(f"{path} is damaged: {_shown(error)}; {again}") from error
    problem = _contradiction(calibration)
    if problem:
        raise CalibrationError(f"{path} contradicts itself: {problem}; {again}")
    return calibration


def _contradiction(calibration: Calibration) -> str | None:
    for graph, tensors in calibration.activations.items():
        for tensor, found in tensors.items():
            where = f"tensor {_shown(tensor)} of graph {_shown(graph)}"
            if not (math.isfinite(found.low) and math.isfinite(found.high) and found.low <= found.high):
                return f"{where} has no finite range"
            if not (0 <= found.largest < math.inf):
                return f"{where} saturates at {found.largest}"
            if not all(map(math.isfinite, found.means)):
                return f"{where} has means that are not finite"
            if not found.scale > 0 or found.scale != tensor_scale(found.low, found.largest):
                return f"{where} has the scale {found.scale}, which is not that of its largest magnitude"
    for graph, nodes in calibration.weights.items():
        for node, scales in nodes.items():
            if not all(SMALLEST_SCALE <= scale < math.inf for scale in scales):
                return f"weight scales of node {_shown(node)} of graph {_shown(graph)} are not all positive"
    parts = (calibration.activations, calibration.weights, calibration.layers, calibration.settings.observers)
    if any(set(part) != set(calibration.graphs) for part in parts):
        return "graphs, activations, weights, layers and observers are not of the same graphs"
    for graph, chosen in calibration.layers.items():
        if len(set(chosen)) != len(chosen) or not set(chosen) <= set(calibration.weights[graph]):
            return f"the layers of graph {_shown(graph)} are not nodes with weights"
    return None


def check_fits(
    calibration: Calibration,
    models: Mapping[str, onnx.ModelProto],
    layers: Sequence[Layer],
    *,
    cache: str,
    bundle: str,
) -> None:
    """Refuse the cache of another network.

    Args:
        calibration: the cache.
        models: fp32 graphs by name.
        layers: of these.
        cache: what to call the cache in an error.
        bundle: what to call the graphs.

    Raises:
        CalibrationError: a graph is not the one that was calibrated; names it.
    """
    with_layers = {layer.graph for layer in layers}
    for graph in sorted(with_layers | set(calibration.graphs)):
        if graph not in calibration.graphs or graph not in with_layers:
            raise CalibrationError(
                f"{cache} is not of {bundle}: only one of them has a graph {graph} with layers; calibrate that bundle"
            )
        if calibration.graphs[graph] != graph_hash(models[graph]):
            raise CalibrationError(
                f"{cache} was calibrated on another {graph} than that of {bundle}; "
                "calibrate this bundle with pcsr-calibrate"
            )
    for graph in with_layers:
        its = [layer for layer in layers if layer.graph == graph]
        values = initializers(models[graph])
        sizes = {layer.node: values[layer.weight].shape[layer.axis] for layer in its}
        found = calibration.weights[graph]
        missing = set(observed_tensors(models[graph], its)) ^ set(calibration.activations[graph])
        if missing or {node: len(scales) for node, scales in found.items()} != sizes:
            raise CalibrationError(
                f"{cache} lacks scales of graph {graph}, or has some too many; calibrate with pcsr-calibrate"
            )
        for layer in its:
            weight = values[layer.weight]
            if len(calibration.activations[graph][layer.input].means) != channels_read(layer, weight):
                raise CalibrationError(
                    f"{cache} has another number of means for tensor {layer.input} of graph {graph} than that has "
                    "channels; calibrate with pcsr-calibrate"
                )
            least = weight_scales(weight, layer.axis)
            if not np.array_equal(least, np.array(found[layer.node], dtype=np.float32)):
                raise CalibrationError(
                    f"{cache} has other weight scales for node {layer.node} of graph {graph} than its weights "
                    "give; calibrate with pcsr-calibrate"
                )


def _shown(foreign: object) -> str:
    """A text from outside for a message: shortened, and no control characters for the terminal."""
    text = str(foreign)
    return text[:SHOWN].encode("unicode_escape").decode() + ("…" if len(text) > SHOWN else "")
