"""What `pcsr-export` does with engines: build, compare, and say what was done."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pcsr.export.bundle import PRECISIONS
from pcsr.export.tensorrt.cache import Outcome, build_engines
from pcsr.export.tensorrt.compare import OutputError, compare_engines
from pcsr.export.tensorrt.plan import check_installed, require_gpu, this_machine, wanted_engines
from pcsr.export.tensorrt.request import Request
from pcsr.runtime.backends.engine_search import build_folder, engine_folders, find_engines
from pcsr.runtime.backends.engines import Flavour
from pcsr.runtime.bundle import Bundle
from pcsr.runtime.console import progress_line
from pcsr.runtime.errors import CheckError, OptionError
from pcsr.runtime.manifest import Precision

__all__ = ["check_ready", "run_request"]

logger = logging.getLogger(__name__)

# For one graph. Of TensorRT-RTX measured (docs/gpu.md); the other times its kernels on the GPU.
EXPECTED = {
    "tensorrt": "each may take minutes, as kernels are timed on the GPU",
    "tensorrt-rtx": "each takes about a second",
}


def check_ready(request: Request) -> None:
    """Refuse what cannot be done here before anything is.

    Raises:
        BackendError: a TensorRT is not installed, or there is no GPU and one is needed.
    """
    for flavour in request.flavours:
        check_installed(flavour)
        if request.compare or flavour == "tensorrt" or not request.ahead:
            require_gpu(flavour)


def run_request(
    bundle: Bundle, request: Request, wanted: Sequence[str] | None, *, as_json: bool
) -> Mapping[str, Any]:
    """Build and compare engines, and print what was done unless it goes into JSON.

    Args:
        bundle: whose graphs.
        request: what to do.
        wanted: precisions; None: those that the bundle has.
        as_json: print nothing.

    Returns:
        What JSON says of it.

    Raises:
        BackendError: a TensorRT is missing or does not work, refuses a graph, or a folder cannot be written to.
        BundleError: the bundle lacks a precision.
        CheckError: an engine's output differs from ONNX Runtime's.
        OptionError: an unknown precision, or sizes that leave some picture outside.
    """
    names = bundle.precisions if wanted is None else wanted
    precisions = [precision for precision in PRECISIONS if precision in names]
    unknown = [name for name in names if name not in PRECISIONS]
    if unknown or not precisions:
        raise OptionError(
            f"precision {', '.join(unknown) or '(none)'} is unknown; choose from {', '.join(PRECISIONS)}"
        )
    report: dict[str, Any] = {}
    if request.build:
        folder = build_folder(bundle, request.engine_cache)
        outcomes = [
            outcome
            for flavour in request.flavours
            for outcome in _build(bundle, request, flavour, precisions, folder)
        ]
        report |= {"engine_folder": str(folder), "engines": [_as_json(outcome) for outcome in outcomes]}
        if not as_json:
            _print_outcomes(folder, outcomes)
    if request.compare:
        errors = [
            error
            for flavour in request.flavours
            for precision in precisions
            for error in _compare(bundle, request, flavour, precision)
        ]
        report["compared"] = [
            {
                "precision": e.precision,
                "graph": e.graph,
                "output": e.output,
                "largest": e.largest,
                "mean": e.mean,
            }
            for e in errors
        ]
        if not as_json:
            _print_errors(errors)
        judge(errors)
    return report


def _build(
    bundle: Bundle, request: Request, flavour: Flavour, precisions: Sequence[Precision], folder: Path
) -> list[Outcome]:
    wanted = wanted_engines(bundle, request, flavour, precisions)
    first = wanted[0]
    gpus = first.gpu or f"compute capability {', '.join(first.compute_capabilities)}"
    logger.info(
        "up to %d engines of %s %s for %s in %s; %s",
        len(wanted), flavour, first.version, gpus, folder, EXPECTED[flavour],
    )  # fmt: skip
    return build_engines(bundle, wanted, folder, progress=progress_line)


def _compare(bundle: Bundle, request: Request, flavour: Flavour, precision: Precision) -> list[OutputError]:
    machine = this_machine(flavour)
    folders = engine_folders(bundle, request.engine_cache)
    engines = find_engines(bundle, precision, machine, folders=folders)
    return compare_engines(bundle, precision, engines)


def judge(errors: Sequence[OutputError]) -> None:
    """Refuse engines that differ.

    Raises:
        CheckError: the worst output is too far from ONNX Runtime's.
    """
    failed = [error for error in errors if not error.passed]
    if failed:
        worst = max(failed, key=lambda error: error.largest)
        raise CheckError(
            f"{len(failed)} outputs of engines differ from ONNX Runtime's, most of all {worst.output} of "
            f"{worst.precision} graph {worst.graph}: by {worst.largest:.2g} of its range"
        )


def _as_json(outcome: Outcome) -> Mapping[str, Any]:
    identity = outcome.engine.identity
    return {
        "file": outcome.engine.path.name,
        "graph": identity.graph,
        "precision": identity.precision,
        "flavour": identity.flavour,
        "built": outcome.reason is not None,
        "reason": outcome.reason,
        "seconds": round(outcome.seconds, 3),
        "bytes": outcome.engine.description.bytes,
    }


def _print_outcomes(folder: Path, outcomes: Sequence[Outcome]) -> None:
    built = [outcome for outcome in outcomes if outcome.reason is not None]
    click.echo(f"{folder}: built {len(built)} engines, kept {len(outcomes) - len(built)}")
    for outcome in built:
        size = outcome.engine.description.bytes / 1e6
        click.echo(f"  {outcome.engine.path.name} {size:.1f} MB, {outcome.seconds:.1f} s: {outcome.reason}")


def _print_errors(errors: Sequence[OutputError]) -> None:
    for e in errors:
        mark = "" if e.passed else "  FAILED"
        click.echo(
            f"  {e.precision} {e.graph} {e.output}: largest {e.largest:.2g}, mean {e.mean:.2g} of its range{mark}"
        )
