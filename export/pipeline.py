"""From a checkpoint, or a bundle that lacks something, to a bundle: rewrite, build, check, write."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from pcsr.export.bundle import (
    DEFAULT_PRECISIONS,
    PRECISIONS,
    Contents,
    commit,
    locked,
    sweep,
    target_state,
)
from pcsr.export.check import TOLERANCES, cases, check_half, check_int8, check_precision, graph_outputs
from pcsr.export.graphs import build_graphs
from pcsr.export.int8.cache import check_fits, parse_calibration, read_content
from pcsr.export.int8.forms import int8_forms
from pcsr.export.int8.layers import layers_of
from pcsr.export.sources import Source, from_bundle, from_checkpoint, open_graphs
from pcsr.runtime.bundle import Bundle, read_bundle
from pcsr.runtime.errors import BackendError, BundleError, CalibrationError, OptionError
from pcsr.runtime.manifest import FORMS, FileEntry, Form, Precision

__all__ = ["DEFAULT_PRECISIONS", "PRECISIONS", "Outcome", "export_bundle"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an export did.

    Attributes:
        bundle: as it is now.
        written: precisions that were built and checked, or copied from the bundle that was the source.
        kept: precisions that were there.
        errors: of what was built, by form: the largest difference as a share of the value range; of int8, whose
            largest says little, the root mean square as a share of its own.
        compared_with: what they differ from: "PyTorch", or the graphs of the bundle that was the source.
        largest_half: largest magnitude of any float16 tensor on the sample picture, emulated, and its name.
    """

    bundle: Bundle
    written: tuple[str, ...]
    kept: tuple[str, ...]
    errors: Mapping[Form, float]
    compared_with: str
    largest_half: tuple[float, str] | None


def export_bundle(
    source: Path,
    target: Path,
    *,
    precisions: Sequence[str] = DEFAULT_PRECISIONS,
    calibration: Path | None = None,
    force: bool = False,
    tell: Callable[[str], object] = logger.info,
) -> Outcome:
    """Make a bundle, or add to one what it lacks.

    Args:
        source: a checkpoint, or a bundle.
        target: the bundle to write; may be `source` itself.
        precisions: that the bundle shall have.
        calibration: cache for int8; a bundle that has int8 of another one gets it anew.
        force: replace a bundle that was made from another checkpoint, or that is damaged.
        tell: is given a line at each step.

    Raises:
        CheckpointError: the source is no usable checkpoint.
        BundleError: source or target is in the way of what was asked.
        BackendError: ONNX Runtime, which the checks need, is missing.
        CalibrationError: the cache is damaged, or of another network.
        CheckError: a rewrite or graph differs from PyTorch; nothing was written.
        OptionError: an unknown precision, or int8 without a cache or the reverse.
    """
    unknown = [p for p in precisions if p not in PRECISIONS]
    if unknown or not precisions:
        raise OptionError(
            f"precision {', '.join(unknown) or '(none)'} is unknown; choose from {', '.join(PRECISIONS)}"
        )
    if calibration is not None and "int8" not in precisions:
        raise OptionError("a calibration is for int8, which is not asked for; add it to --precision")
    cache = None
    if calibration is not None:
        cache = read_content(calibration)
        parse_calibration(cache, calibration)
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
        wanted = checkpoint or from_bundle(read_bundle(source))
        return _export(wanted, target, precisions, cache, force, tell)


def _export(
    source: Source,
    target: Path,
    precisions: Sequence[str],
    cache: bytes | None,
    force: bool,
    tell: Callable[[str], object],
) -> Outcome:
    kept: Mapping[Form, Mapping[str, FileEntry]] = {}
    existing = None
    if target_state(target) == "bundle":
        existing = _what_stays(source, target, force)
    if existing is not None:
        kept, source = existing.manifest.graphs, source.onto(existing)
    if cache is not None and cache != source.calibration:
        # What another calibration gave is replaced as a whole.
        kept = {form: files for form, files in kept.items() if form not in FORMS["int8"]}
        graphs = {form: files for form, files in source.graphs.items() if form not in FORMS["int8"]}
        source = dataclasses.replace(source, graphs=graphs, calibration=cache)
    there = tuple(p for p in PRECISIONS if FORMS[p][0] in kept)
    missing = [p for p in PRECISIONS if p in precisions and p not in there]
    if not missing:
        sweep(target)
        return Outcome(read_bundle(target), (), there, {}, source.expected_by, None)
    if "int8" in missing and source.calibration is None:
        raise OptionError(
            "int8 needs a calibration: make one with pcsr-calibrate, and name it with --calibration CACHE.json"
        )
    copied = {f: source.graphs[f] for p in missing for f in FORMS[p] if f in source.graphs}
    build = [p for p in missing if FORMS[p][0] not in copied]
    if build:
        tell(f"building and checking {', '.join(build)}")
    built, errors, largest = _build(source, build)
    keeps_int8 = "int8" in (*there, *missing)
    contents = Contents(
        fields=source.fields,
        weights=source.weights_file,
        sample=source.sample,
        graphs={**copied, **built},
        kept=kept,
        calibration=source.calibration if keeps_int8 else None,
    )
    bundle = commit(target, contents, replace=existing is None)
    return Outcome(bundle, tuple(missing), there, errors, source.expected_by, largest)


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
) -> tuple[dict[Form, dict[str, bytes]], dict[Form, float], tuple[float, str] | None]:
    """Graphs of each precision, compared with what they must give."""
    built: dict[Form, dict[str, bytes]] = {}
    errors: dict[Form, float] = {}
    largest: tuple[float, str] | None = None
    if not precisions:
        return built, errors, largest
    pieces = cases(source.pixels())
    pairs = list(zip(pieces, source.expected(pieces), strict=True))
    if "int8" in precisions:
        for form, models in _int8_graphs(source).items():
            built[form] = {name: serialise(model) for name, model in models.items()}
            runs = open_graphs(built[form], form)
            errors[form] = max(
                check_int8(form, piece, expected, graph_outputs(runs, source.weights, piece))
                for piece, expected in pairs
            )
    for precision in (p for p in precisions if p != "int8"):
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


def _int8_graphs(source: Source) -> dict[Form, dict[str, onnx.ModelProto]]:
    """Graphs of every form of int8, from the source's calibration.

    Raises:
        CalibrationError: it is of another network, or chooses no layer.
    """
    assert source.calibration is not None
    calibration = parse_calibration(source.calibration, Path("the calibration"))
    single, half = _graphs(source, half=False), _graphs(source, half=True)
    layers = layers_of(single, source.weights)
    check_fits(calibration, single, layers, cache="the calibration", bundle="the network that is exported")
    if not any(calibration.layers.values()):
        raise CalibrationError(
            "the calibration chooses no layer for int8; calibrate with a higher --allow-drop, or export without int8"
        )
    return int8_forms(single, half, layers, calibration)


def serialise(model: onnx.ModelProto) -> bytes:
    """The same model to the same bytes."""
    content: bytes = model.SerializeToString(deterministic=True)
    return content
