"""From a checkpoint, or a bundle that lacks something, to a bundle: rewrite, build, check, write."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pyvips
import safetensors.numpy
from numpy.typing import NDArray

from pcsr.export.bundle import Contents, commit, locked, provenance, target_state
from pcsr.export.check import (
    Case,
    Outputs,
    cases,
    check_half,
    check_precision,
    graph_outputs,
    network_outputs,
    working_bytes,
)
from pcsr.export.graphs import build_graphs
from pcsr.export.rewrites import rewrite
from pcsr.model.checkpoint import checkpoint_sha256, load_checkpoint
from pcsr.model.cost import network_cost
from pcsr.model.network import Network
from pcsr.runtime.backends.graphs import Run
from pcsr.runtime.backends.onnxruntime import open_model
from pcsr.runtime.bundle import Bundle, FileEntry, NetworkEntry, Normalisation, read_bundle
from pcsr.runtime.cost import CostTable, PixelCosts
from pcsr.runtime.errors import BundleError, OptionError

__all__ = ["PRECISIONS", "Outcome", "export_bundle"]

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an export did.

    Attributes:
        bundle: as it is now.
        written: precisions that were built and checked.
        kept: precisions that were there.
        errors: largest difference from PyTorch by precision, as a share of the value range.
        largest_half: largest magnitude of any float16 tensor on the sample picture, emulated, and its name.
    """

    bundle: Bundle
    written: tuple[str, ...]
    kept: tuple[str, ...]
    errors: Mapping[str, float]
    largest_half: tuple[float, str] | None


@dataclass(frozen=True, slots=True)
class _Source:
    """What graphs are built from, and what they are compared with."""

    fields: Mapping[str, Any]
    weights: Mapping[str, NDArray[np.float32]]
    sample: bytes
    expected: Callable[[Case], Outputs]
    existing: Mapping[str, Mapping[str, bytes]]
    checkpoint_sha256: str


def export_bundle(
    source: Path,
    target: Path,
    *,
    precisions: Sequence[str] = PRECISIONS,
    force: bool = False,
    tell: Callable[[str], object] = logger.info,
) -> Outcome:
    """Make a bundle, or add to one what it lacks.

    Args:
        source: a checkpoint, or a bundle.
        target: the bundle to write; may be `source` itself.
        precisions: that the bundle shall have.
        force: replace a bundle that was made from another checkpoint.
        tell: is given a line at each step.

    Raises:
        CheckpointError: the source is no usable checkpoint.
        BundleError: source or target is in the way of what was asked.
        BackendError: ONNX Runtime, which the checks need, is missing.
        CheckError: a rewrite or graph differs from PyTorch; nothing was written.
        OptionError: an unknown precision.
    """
    unknown = [p for p in precisions if p not in PRECISIONS]
    if unknown or not precisions:
        raise OptionError(f"precision {', '.join(unknown) or '(none)'} is unknown; choose from {', '.join(PRECISIONS)}")
    if target_state(target) == "foreign":
        raise BundleError(f"{target} exists and is no bundle; it was left untouched, choose another place with -o")
    read = _from_bundle(read_bundle(source)) if source.is_dir() else _from_checkpoint(source)
    with locked(target):
        return _export(read, target, precisions, force, tell)


def _export(
    source: _Source, target: Path, precisions: Sequence[str], force: bool, tell: Callable[[str], object]
) -> Outcome:
    kept: Mapping[str, Mapping[str, FileEntry]] = {}
    replace = False
    if target_state(target) == "bundle":
        kept, replace = _what_stays(source, target, force)
    missing = [p for p in PRECISIONS if p in precisions and p not in kept]
    if not missing:
        return Outcome(read_bundle(target), (), tuple(kept), {}, None)
    tell(f"building and checking {', '.join(missing)}")
    fields, built, errors, largest = _build(source, missing)
    contents = Contents(
        fields=fields,
        weights=safetensors.numpy.save(dict(source.weights)),
        sample=source.sample,
        graphs=built,
        kept=kept,
    )
    bundle = commit(target, contents, replace=replace)
    return Outcome(bundle, tuple(missing), tuple(kept), errors, largest)


def _what_stays(source: _Source, target: Path, force: bool) -> tuple[Mapping[str, Mapping[str, FileEntry]], bool]:
    """Graphs of an existing bundle that stay, and whether everything else of it goes."""
    try:
        existing = read_bundle(target)
        if existing.manifest.provenance.get("checkpoint_sha256") == source.checkpoint_sha256:
            for entry in (entry for files in existing.manifest.graphs.values() for entry in files.values()):
                existing.read(entry)
            existing.weights()
            return existing.manifest.graphs, False
        reason = "was made from another checkpoint"
    except BundleError as error:
        reason = f"is damaged ({error})"
    if not force:
        raise BundleError(f"{target} {reason}; give --force to replace all of it, or choose another place with -o")
    return {}, True


def _build(
    source: _Source, precisions: Sequence[str]
) -> tuple[dict[str, Any], dict[str, dict[str, bytes]], dict[str, float], tuple[float, str] | None]:
    """Graphs of each precision, compared with what they must give."""
    pieces = list(cases(_pixels(source.sample)))
    expected = [source.expected(piece) for piece in pieces]
    network, normalisation = source.fields["network"], source.fields["normalisation"]
    built: dict[str, dict[str, bytes]] = {}
    errors: dict[str, float] = {}
    largest: tuple[float, str] | None = None
    fields = dict(source.fields)
    for precision in precisions:
        models = build_graphs(network, normalisation, source.weights, half=precision == "fp16")
        fields.setdefault("working_bytes", working_bytes(models["backbone"]))
        built[precision] = {name: serialise(model) for name, model in models.items()}
        runs = _runs(built[precision], precision)
        errors[precision] = max(
            check_precision(precision, piece, reference, graph_outputs(runs, source.weights, piece))
            for piece, reference in zip(pieces, expected, strict=True)
        )
        if precision == "fp16":
            largest = max(
                check_half(models, source.weights, piece, reference)
                for piece, reference in zip(pieces, expected, strict=True)
            )
    return fields, built, errors, largest


def serialise(model: onnx.ModelProto) -> bytes:
    """The same model to the same bytes."""
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _runs(graphs: Mapping[str, bytes], precision: str) -> dict[str, Run]:
    return {name: open_model(content, f"{precision} graph {name}") for name, content in graphs.items()}


def _from_checkpoint(path: Path) -> _Source:
    network = load_checkpoint(path)
    digest = checkpoint_sha256(path)
    fields = {
        "network": network_entry(network),
        "normalisation": Normalisation(mean=network.spec.mean, std=network.spec.std),
        "halo": network.halo,
        "cost": cost_table(network),
        "provenance": provenance(digest),
    }
    sample = resources.files("pcsr.export").joinpath("sample.png").read_bytes()
    return _Source(fields, rewrite(network), sample, lambda case: network_outputs(network, case), {}, digest)


def _from_bundle(bundle: Bundle) -> _Source:
    """A bundle has the rewritten weights; further graphs are compared with its own."""
    manifest = bundle.manifest
    weights = bundle.weights()
    precision = next(p for p in PRECISIONS if p in manifest.graphs)
    existing = {
        p: {name: bundle.read(entry) for name, entry in files.items()} for p, files in manifest.graphs.items()
    }
    runs = _runs(existing[precision], precision)
    fields = {
        name: getattr(manifest, name)
        for name in ("network", "normalisation", "halo", "working_bytes", "cost", "provenance")
    }
    return _Source(
        fields,
        weights,
        bundle.sample(),
        lambda case: graph_outputs(runs, weights, case),
        existing,
        manifest.provenance.get("checkpoint_sha256", ""),
    )


def network_entry(network: Network) -> NetworkEntry:
    """The network's sizes as the manifest says them."""
    spec = network.spec
    assert spec.classifier is not None
    return NetworkEntry(
        backbone=spec.backbone,
        width=spec.width,
        options=dict(spec.options),
        classifier=spec.classifier,
        upsamplers=spec.upsamplers,
    )


def cost_table(network: Network) -> CostTable:
    """The network's costs as the manifest says them."""
    cost = network_cost(network)
    flops, macs = (
        PixelCosts(backbone=unit.backbone, classifier=unit.classifier, upsamplers=unit.upsamplers)
        for unit in (cost.published, cost.hoisted_macs)
    )
    return CostTable(flops=flops, macs=macs)


def _pixels(png: bytes) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = pyvips.Image.new_from_buffer(png, "").numpy()
    return pixels

