"""What is measured of a model for its card, and the JSON file that keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import torch

from pcsr.export.pipeline import export_bundle
from pcsr.model.checkpoint import checkpoint_sha256
from pcsr.model.dense import load_dense, upscale_dense
from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.errors import CheckError, OptionError, PictureError
from pcsr.training.networks import provenance
from pcsr.training.plan import PHASES
from pcsr.training.state import read_state
from pcsr.training.watch import LOG
from pcsr.validation import Rule, Settings, validate
from pcsr.validation.compare import Watch
from pcsr.validation.metrics import psnr, shave_for, ssim
from pcsr.validation.results import Quality, SetComparison
from pcsr.validation.run import Report
from pcsr.validation.sets import find_sets, make_pair, read_truth

SCALES = (1.5, 2.0, 3.0, 4.0)
DENSE_SCALE = 4.0
"""The only scale of the published dense networks."""
RULES = (Rule("budget", 1.0), Rule("k", 0.0), Rule("adaptive"))
HEAVY, K0, ADAPTIVE = (rule.label for rule in RULES)
BICUBIC, DENSE, PUBLISHED = "bicubic", "published dense", "published "
"""What is measured beside the rules; the label of a rule follows the last."""

Watching = Callable[[int], AbstractContextManager[Watch]]
"""Shows progress over the sets at a number of scales."""


class Figures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A set at one scale: means in dB, shares of the pixels (lightest class first), costs as shares of all-heavy."""

    set: str
    scale: float
    what: str
    pictures: int
    psnr: float
    psnr_y: float
    ssim: float | None
    """None for pictures too small for its window."""
    shares: tuple[float, ...] = ()
    flops: float | None = None
    macs: float | None = None


class PictureFigures(msgspec.Struct, frozen=True, kw_only=True):
    """PSNR (RGB, dB) of one picture at one scale, by what was measured."""

    set: str
    name: str
    scale: float
    psnr: dict[str, float]

    @property
    def gain(self) -> float:
        """By how many dB k = 0 is better than bicubic."""
        return round(self.psnr[K0] - self.psnr[BICUBIC], 3)


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """A plan of the training run and the step at which it was made."""

    time: str
    step: int
    plan: tuple[dict[str, Any], ...]


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """What a run knows of itself that its network's metadata leaves out, to be the same after each resume."""

    hours: float
    plans: tuple[Planned, ...]


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The content of the JSON file."""

    name: str
    command: str
    checkpoint_sha256: str
    manifest_sha256: str
    published: dict[str, str]
    """sha256 of the published checkpoints, by file name."""
    ran: dict[str, str]
    versions: dict[str, str]
    machine: dict[str, str]
    trained_on: str
    training: Training | None
    sets: tuple[Figures, ...]
    pictures: tuple[PictureFigures, ...]

    @property
    def scales(self) -> tuple[float, ...]:
        """Scales that were measured, ascending."""
        return tuple(sorted({row.scale for row in self.sets}))


def measure(
    name: str,
    *,
    checkpoint: Path,
    bundle: Path,
    data: Path,
    published_pcsr: Path | None,
    published_dense: Path | None,
    training: Training | None,
    trained_on: str,
    threads: int | None,
    command: str,
    watching: Watching,
) -> Results:
    """Measure a bundle, and what it is compared with, on every set.

    Raises:
        OptionError: the bundle was made from another checkpoint, or there are no pictures.
        PictureError: a picture could not be measured.
        CheckError: an upscaled picture equals the truth, so that there is no mean.
    """
    sha256 = checkpoint_sha256(checkpoint)
    if read_bundle(bundle).manifest.provenance["checkpoint_sha256"] != sha256:
        raise OptionError(f"{bundle} was made from another checkpoint than {checkpoint}; export this one")
    settings = Settings(scales=SCALES, rules=RULES, precision="fp32", threads=threads)
    report = _validated(bundle, data, settings, watching)
    sets, pictures = _figures(report.sets), _pictures(report.sets)
    published = {}
    if published_pcsr is not None:
        published[published_pcsr.name] = checkpoint_sha256(published_pcsr)
        with TemporaryDirectory() as folder:
            export_bundle(published_pcsr, Path(folder) / "bundle", precisions=("fp32",))
            # Without adaptive, which no table compares.
            fewer = replace(settings, rules=RULES[:2])
            theirs = _figures(_validated(Path(folder) / "bundle", data, fewer, watching).sets)
        sets += [
            msgspec.structs.replace(row, what=PUBLISHED + row.what) for row in theirs if row.what != BICUBIC
        ]
    if published_dense is not None:
        published[published_dense.name] = checkpoint_sha256(published_dense)
        sets += _dense(published_dense, data, threads, watching)
    return Results(
        name=name,
        command=command,
        checkpoint_sha256=sha256,
        manifest_sha256=report.manifest_sha256,
        published=published,
        ran=report.ran,
        versions=report.versions,
        machine=report.machine,
        trained_on=trained_on,
        training=training,
        sets=tuple(sets),
        pictures=tuple(pictures),
    )


def training_of(run: Path, metadata: dict[str, str]) -> Training:
    """Hours and plans of a training run.

    Args:
        run: its folder.
        metadata: of the network that came out of it.

    Raises:
        OptionError: the run made another network, or its log cannot be read.
        TrainingError: its state cannot be read.
    """
    state, _ = read_state(run)
    if any(metadata.get(key) != value for key, value in provenance(state).items()):
        raise OptionError(f"{run} is not the run that the checkpoint came from; name that one, or none")
    plans: list[Planned] = []
    try:
        for line in (run / LOG).read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            plan = tuple({**stretch, "phase": PHASES[stretch["phase"]]} for stretch in entry.get("plan", ()))
            if plan and (not plans or plans[-1].plan != plan):
                plans.append(Planned(time=entry["time"], step=entry["step"], plan=plan))
    except (OSError, ValueError, KeyError) as error:
        raise OptionError(f"cannot read {run / LOG} ({error}); mend the line, or leave --run away") from error
    return Training(hours=round(state.seconds / 3600, 2), plans=tuple(plans))


def encode(results: Results) -> bytes:
    """JSON with a line for each row of figures, so that a diff shows what changed."""

    def shown(value: Any) -> str:
        if not isinstance(value, list) or not value:
            return json.dumps(value, ensure_ascii=False)
        return "[\n  " + ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in value) + "\n ]"

    fields = msgspec.json.decode(msgspec.json.encode(results))
    lines = ",\n".join(f' "{key}": {shown(value)}' for key, value in fields.items())
    return f"{{\n{lines}\n}}\n".encode()


def read_results(path: Path) -> Results:
    """Read what `encode` wrote.

    Raises:
        OptionError: it cannot be read, or is something else.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except (OSError, msgspec.DecodeError) as error:
        raise OptionError(f"cannot read the results {path} ({error}); make them with: measure") from error


def _validated(bundle: Path, data: Path, settings: Settings, watching: Watching) -> Report:
    with watching(len(settings.scales)) as watch:
        report = validate(bundle, data, settings, watch=watch)
    for failure in report.failures:
        raise PictureError(f"{failure.set}/{failure.name} ×{failure.scale:g}: {failure.message}")
    return report


def _figures(compared: tuple[SetComparison, ...]) -> list[Figures]:
    rows = []
    for one in compared:
        if one.rule == compared[0].rule:
            rows.append(_row(one, BICUBIC, one.bicubic))
        cost = {"flops": one.flops / one.flops_all_heavy, "macs": one.macs / one.macs_all_heavy}
        rows.append(
            msgspec.structs.replace(
                _row(one, one.rule, one.runtime),
                shares=tuple(round(share, 4) for share in one.shares),
                **{name: round(value, 4) for name, value in cost.items()},
            )
        )
    return rows


def _row(one: SetComparison, what: str, quality: Quality) -> Figures:
    return Figures(
        set=one.set,
        scale=one.scale,
        what=what,
        pictures=len(one.pictures),
        psnr=_decibels(quality.psnr, one.set),
        psnr_y=_decibels(quality.psnr_y, one.set),
        ssim=None if math.isnan(quality.ssim) else round(quality.ssim, 4),
    )


def _pictures(compared: tuple[SetComparison, ...]) -> list[PictureFigures]:
    found: dict[tuple[str, str, float], dict[str, float]] = {}
    for one in compared:
        for picture in one.pictures:
            where = f"{one.set}/{picture.name}"
            of_it = found.setdefault((one.set, picture.name, one.scale), {})
            of_it[BICUBIC] = _decibels(picture.bicubic.psnr, where)
            of_it[one.rule] = _decibels(picture.runtime.psnr, where)
    return [
        PictureFigures(set=group, name=name, scale=scale, psnr=values)
        for (group, name, scale), values in found.items()
    ]


def _dense(checkpoint: Path, data: Path, threads: int | None, watching: Watching) -> list[Figures]:
    """The published dense network in PyTorch, at its one scale."""
    network = load_dense(checkpoint)
    if threads is not None:
        torch.set_num_threads(threads)
    shave = shave_for(DENSE_SCALE)
    rows = []
    with watching(1) as watch:
        for group in find_sets(data):
            each = []
            for path in group.paths:
                watch(group.name, path.stem, DENSE_SCALE)
                lr, truth = make_pair(read_truth(path), scale=DENSE_SCALE)
                image = upscale_dense(network, lr)
                luma = psnr(image, truth, shave=shave, channel="y")
                each.append((psnr(image, truth, shave=shave), luma, ssim(image, truth, shave=shave)))
            rgb, luma, similar = (math.fsum(column) / len(each) for column in zip(*each, strict=True))
            rows.append(
                Figures(
                    set=group.name,
                    scale=DENSE_SCALE,
                    what=DENSE,
                    pictures=len(each),
                    psnr=_decibels(rgb, group.name),
                    psnr_y=_decibels(luma, group.name),
                    ssim=None if math.isnan(similar) else round(similar, 4),
                )
            )
    return rows


def _decibels(value: float, where: str) -> float:
    if not math.isfinite(value):
        raise CheckError(f"{where} came out equal to the truth, so no mean can be formed; leave it out")
    return round(value, 3)
