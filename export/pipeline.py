"""From a checkpoint, or a bundle that lacks something, to a bundle: rewrite, build, check, write."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from pcsr.export.bundle import PRECISIONS, Contents, commit, locked, sweep, target_state
from pcsr.export.check import TOLERANCES, cases, check_half, check_precision, graph_outputs
from pcsr.export.graphs import build_graphs
from pcsr.export.sources import Source, from_bundle, from_checkpoint, open_graphs
from pcsr.runtime.bundle import Bundle, read_bundle
from pcsr.runtime.errors import BackendError, BundleError, OptionError
from pcsr.runtime.manifest import FileEntry, Precision

__all__ = ["PRECISIONS", "Outcome", "export_bundle"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an export did.

    Attributes:
        bundle: as it is now.
        written: precisions that were built and checked, or copied from the bundle that was the source.
        kept: precisions that were there.
        errors: of what was built, by precision: the largest difference, as a share of the value range.
        compared_with: what they differ from: "PyTorch", or the graphs of the bundle that was the source.
        largest_half: largest magnitude of any float16 tensor on the sample picture, emulated, and its name.
    """

    bundle: Bundle
    written: tuple[str, ...]
    kept: tuple[str, ...]
    errors: Mapping[Precision, float]
    compared_with: str
    largest_half: tuple[float, str] | None


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
        force: replace a bundle that was made from another checkpoint, or that is damaged.
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
        raise OptionError(
            f"precision {', '.join(unknown) or '(none)'} is unknown; choose from {', '.join(PRECISIONS)}"
        )
    if importlib.util.find_spec("onnxruntime") is None:
        raise BackendError(
            "ONNX Runtime, in which every graph is checked, is missing; run: pip install 'pcsr[export,cpu]'"
        )
    if source.is_dir():
        read_bundle(source)
    if target_state(target) == "foreign":
        raise BundleError(
            f"{target} exists and is no bundle; it was left untouched, choose another place with -o"
        )
    # Links and dots resolved: the lock and the new folder belong beside the bundle itself.
    target = target.resolve()
    checkpoint = None if source.is_dir() else from_checkpoint(source)
    with locked(target):
        # A bundle is read under the lock: it may be the target, which another export was just adding to.
        return _export(checkpoint or from_bundle(read_bundle(source)), target, precisions, force, tell)


def _export(
    source: Source, target: Path, precisions: Sequence[str], force: bool, tell: Callable[[str], object]
) -> Outcome:
    kept: Mapping[Precision, Mapping[str, FileEntry]] = {}
    existing = None
    if target_state(target) == "bundle":
        existing = _what_stays(source, target, force)
    if existing is not None:
        kept, source = existing.manifest.graphs, source.onto(existing)
    missing = [p for p in PRECISIONS if p in precisions and p not in kept]
    if not missing:
        sweep(target)
        return Outcome(read_bundle(target), (), tuple(kept), {}, source.expected_by, None)
    copied = {p: source.graphs[p] for p in missing if p in source.graphs}
    build = [p for p in missing if p not in copied]
    if build:
        tell(f"building and checking {', '.join(build)}")
    built, errors, largest = _build(source, build)
    contents = Contents(
        fields=source.fields,
        weights=source.weights_file,
        sample=source.sample,
        graphs={**copied, **built},
        kept=kept,
    )
    bundle = commit(target, contents, replace=existing is None)
    return Outcome(bundle, tuple(missing), tuple(kept), errors, source.expected_by, largest)


def _what_stays(source: Source, target: Path, force: bool) -> Bundle | None:
    """The existing bundle if it stays and is whole; None: all of it goes."""
    try:
        existing = read_bundle(target)
        if existing.manifest.provenance["checkpoint_sha256"] == source.checkpoint_sha256:
            from_bundle(existing)
            return existing
        reason = "was made from another checkpoint"
    except BundleError as error:
        reason = f"is damaged ({error})"
    if not force:
        raise BundleError(
            f"{target} {reason}; give --force to replace all of it, or choose another place with -o"
        )
    return None


def _build(
    source: Source, precisions: Sequence[Precision]
) -> tuple[dict[Precision, dict[str, bytes]], dict[Precision, float], tuple[float, str] | None]:
    """Graphs of each precision, compared with what they must give."""
    built: dict[Precision, dict[str, bytes]] = {}
    errors: dict[Precision, float] = {}
    largest: tuple[float, str] | None = None
    if not precisions:
        return built, errors, largest
    pieces = cases(source.pixels())
    pairs = list(zip(pieces, source.expected(pieces), strict=True))
    for precision in precisions:
        models = _graphs(source, half=precision == "fp16")
        if precision == "fp16":
            # First, since it names the tensor that overflows.
            largest = max(
                check_half(models, source.weights, piece, expected, reference=source.expected_by)
                for piece, expected in pairs
            )
        built[precision] = {name: serialise(model) for name, model in models.items()}
        runs = open_graphs(built[precision], precision)
        errors[precision] = max(
            check_precision(
                precision,
                piece,
                expected,
                graph_outputs(runs, source.weights, piece),
                tolerance=max(TOLERANCES[precision], TOLERANCES[source.exactness]),
                reference=source.expected_by,
            )
            for piece, expected in pairs
        )
    return built, errors, largest


def _graphs(source: Source, *, half: bool) -> dict[str, onnx.ModelProto]:
    network, normalisation = source.fields["network"], source.fields["normalisation"]
    try:
        return build_graphs(network, normalisation, source.weights, half=half)
    except (
        KeyError,
        ValueError,
        IndexError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        if not source.graphs:
            raise
        raise BundleError(
            f"the bundle's weights do not fit its network, {network.backbone!a} ({error!r:.100}); "
            "export it anew from its checkpoint"
        ) from error


def serialise(model: onnx.ModelProto) -> bytes:
    """The same model to the same bytes."""
    content: bytes = model.SerializeToString(deterministic=True)
    return content
