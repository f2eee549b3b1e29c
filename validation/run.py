"""One validation from start to finish, and the report that keeps everything about it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pcsr.runtime import Upscaler
from pcsr.runtime.atomic import write_whole
from pcsr.runtime.bundle import MANIFEST
from pcsr.runtime.console import Status
from pcsr.runtime.errors import OptionError
from pcsr.runtime.machine import usable_cores
from pcsr.validation.baseline import (
    Baseline,
    Verdict,
    check_baseline,
    check_oracle,
    make_baseline,
    read_baseline,
)
from pcsr.validation.compare import Watch, compare_folder, load_oracle
from pcsr.validation.results import Failure, Rule, SetComparison
from pcsr.validation.sets import LrKind, find_sets

__all__ = ["Report", "Settings", "baseline_of", "validate", "write_report"]

NOTHING_GATED = "REPORTED: nothing was gated (give -c or --baseline)"


@dataclass(frozen=True, slots=True)
class Settings:
    """What is compared and how.

    Attributes:
        scales: real magnifications.
        rules: columns of the report.
        refine: refinement, in runtime and oracle.
        lr: "float", unrounded and unclamped, or "8bit".
        device: for the upscaler, as are the next four.
        backend: see device.
        precision: see device.
        engine_cache: see device.
        threads: see device; given, it holds for PyTorch too.
        max_drop: dB that a set's mean PSNR may lie below the oracle's and the baseline's.
        limit: no more pictures than this from each set.
    """

    scales: tuple[float, ...] = (4.0,)
    rules: tuple[Rule, ...] = (Rule("k", 0.0),)
    refine: bool = False
    lr: LrKind = "float"
    device: str = "cpu"
    backend: str = "auto"
    precision: str = "auto"
    engine_cache: str | None = None
    threads: int | None = None
    max_drop: float = 0.01
    limit: int | None = None

    def __post_init__(self) -> None:
        if not self.scales or not self.rules:
            raise OptionError("there is nothing to compare; give at least one scale and one rule")
        for what, values in (("scale", self.scales), ("rule", [rule.label for rule in self.rules])):
            if len(set(values)) < len(values):
                raise OptionError(f"a {what} is named twice; name each once")
        if not all(math.isfinite(scale) and scale >= 1 for scale in self.scales):
            raise OptionError(f"scales are {self.scales}; each must be a finite number, 1 or more")
        if not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise OptionError(f"max_drop is {self.max_drop}; it must be a finite number of dB, 0 or more")
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"limit is {self.limit}; it must be 1 picture or more")


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a validation found; as JSON, null is an infinite PSNR or an SSIM without windows.

    Attributes:
        verdict: the last line: PASSED, FAILED: reason, or REPORTED: nothing was gated.
        status: exit status that says the same.
        check_failures: why the gate failed.
        notes: what a reader should know.
        bundle: path.
        manifest_sha256: of the bundle's manifest, which holds the hashes of the rest.
        checkpoint: path, where there was one.
        checkpoint_sha256: see checkpoint.
        baseline: path, where there was one.
        data: path.
        settings: as asked for.
        ran: backend, provider, precision, device and threads that really ran.
        versions: of Python and the packages that compute.
        machine: processor, usable cores, system.
        command: as typed, for the commands; "" from Python.
        sets: the results.
        failures: pictures that could not be compared.
    """

    verdict: str
    status: int
    check_failures: tuple[str, ...]
    notes: tuple[str, ...]
    bundle: str
    manifest_sha256: str
    checkpoint: str | None
    checkpoint_sha256: str | None
    baseline: str | None
    data: str
    settings: Settings
    ran: dict[str, str]
    versions: dict[str, str]
    machine: dict[str, str]
    command: str
    sets: tuple[SetComparison, ...]
    failures: tuple[Failure, ...]


def validate(
    bundle: str | os.PathLike[str],
    data: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    baseline: str | os.PathLike[str] | None = None,
    command: str = "",
    watch: Watch | None = None,
) -> Report:
    """Compare a bundle's pictures with the truth, with the oracle of a checkpoint, and with a baseline.

    Args:
        bundle: folder of the bundle, or the name of one that ships.
        data: folder of pictures, or of folders of pictures.
        settings: the defaults when None.
        checkpoint: gates against the published inference of this one.
        baseline: gates against this file.
        command: for the report.
        watch: told set, picture and scale before each comparison.

    Raises:
        OptionError: no pictures, a damaged baseline or one for other settings, a rule that the bundle cannot
            follow, a checkpoint that the bundle was not made from.
        BundleError: the bundle is missing or damaged.
        CheckpointError: the checkpoint is.
        BackendError: a backend is missing or broken, or PyTorch for the oracle.
    """
    settings = settings or Settings()
    sets = find_sets(Path(data), limit=settings.limit)
    past = read_baseline(baseline) if baseline is not None else None
    if past is not None:
        _check_settings(past, settings, baseline)
    with Upscaler.open(
        bundle,
        device=settings.device,
        backend=settings.backend,
        precision=settings.precision,
        engine_cache=settings.engine_cache,
        threads=settings.threads,
    ) as upscaler:
        checkpoint_sha256, oracle = None, None
        if checkpoint is not None:
            oracle = load_oracle(checkpoint, threads=settings.threads)
            checkpoint_sha256 = _sha256(Path(checkpoint))
            made_from = upscaler.bundle.manifest.provenance["checkpoint_sha256"]
            if checkpoint_sha256 != made_from:
                # A dB gate alone would let a better network pass as proof of this bundle.
                raise OptionError(
                    f"{bundle} was made from another checkpoint than {checkpoint} (sha256 {made_from[:12]}…, not "
                    f"{checkpoint_sha256[:12]}…); compare it with that one, or export this one"
                )
        ran = {
            "backend": upscaler.backend,
            "provider": upscaler.provider,
            "precision": upscaler.precision,
            "device": upscaler.device,
            "threads": str(upscaler.threads),
        }
        compared, failures = compare_folder(
            upscaler,
            sets,
            scales=settings.scales,
            rules=settings.rules,
            refine=settings.refine,
            lr=settings.lr,
            oracle=oracle,
            watch=watch,
        )
    verdicts = []
    if checkpoint is not None:
        verdicts.append(check_oracle(compared, max_drop=settings.max_drop))
    if past is not None:
        verdicts.append(check_baseline(compared, past, max_drop=settings.max_drop))
    line, status = _verdict(verdicts, failures)
    return Report(
        verdict=line,
        status=status,
        check_failures=tuple(failure for verdict in verdicts for failure in verdict.failures),
        notes=tuple(note for verdict in verdicts for note in verdict.notes),
        bundle=str(bundle),
        manifest_sha256=_sha256(upscaler.bundle.path / MANIFEST),
        checkpoint=None if checkpoint is None else str(checkpoint),
        checkpoint_sha256=checkpoint_sha256,
        baseline=None if baseline is None else str(baseline),
        data=str(data),
        settings=settings,
        ran=ran,
        versions=_versions(),
        machine=_machine(),
        command=command,
        sets=compared,
        failures=failures,
    )


def baseline_of(report: Report) -> Baseline:
    """The baseline that a report would be from now on.

    Raises:
        OptionError: the report is not one to keep: a check or a picture failed.
    """
    if report.status != Status.DONE:
        raise OptionError(
            f"no baseline was saved, for the validation did not pass ({report.verdict}); mend it first"
        )
    return make_baseline(
        report.sets,
        lr=report.settings.lr,
        refine=report.settings.refine,
        provenance={"manifest_sha256": report.manifest_sha256, "command": report.command, **report.versions},
    )


def write_report(path: str | os.PathLike[str], report: Report) -> None:
    """Write the whole report as JSON, whole or not at all.

    Raises:
        OptionError: it cannot be written there.
    """
    try:
        write_whole(Path(path), msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    except OSError as error:
        raise OptionError(
            f"cannot write the report {path}: {error.strerror or error}; name another file"
        ) from error


def _check_settings(past: Baseline, settings: Settings, path: Any) -> None:
    if past.lr != settings.lr:
        raise OptionError(f"baseline {path} was made with --lr {past.lr}; ask for the same, or save another")
    if past.refine != settings.refine:
        how = "with" if past.refine else "without"
        raise OptionError(f"baseline {path} was made {how} --refine; ask for the same, or save another")


def _verdict(verdicts: list[Verdict], failures: tuple[Failure, ...]) -> tuple[str, int]:
    """The last line and the exit status; a failed picture weighs more than a check, which saw less for it."""
    reasons = [reason for verdict in verdicts for reason in verdict.failures]
    if failures:
        first = failures[0]
        reasons.insert(0, f"{first.set}/{first.name} ×{first.scale:g} could not be compared: {first.message}")
        # Of one picture at several scales, and of several pictures.
        reasons[1:1] = [f"{failure.set}/{failure.name}" for failure in failures[1:]]
    if reasons:
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        return f"FAILED: {reasons[0]}{more}", Status.FAILED if failures else Status.CHECK_FAILED
    return "PASSED" if verdicts else NOTHING_GATED, Status.DONE


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    names = ("pcsr", "numpy", "onnxruntime", "onnxruntime-gpu", "torch", "pyvips")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": named[0] if named else platform.processor() or platform.machine(),
        "cores": str(usable_cores()),
        "system": platform.platform(),
    }
