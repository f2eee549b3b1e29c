"""What the checks of `gpu_check` are given, and how they say that something is not so."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_check_targets import Machine
from numpy.typing import NDArray

from pcsr.export.pipeline import export_bundle
from pcsr.model.reference import Reference
from pcsr.runtime import Result, Upscaler
from pcsr.validation.metrics import agreement, largest_difference, psnr

__all__ = ["Figures", "NotProven", "Setup", "Skip", "nearness", "prove", "prove_near"]

Figures = dict[str, Any]

# PSNR of our picture against another of ours, unrounded: of fp16 the tables alone carry 11 bits.
LEAST_PSNR = {False: 70.0, True: 45.0}
# Per cent of the pixels.
LEAST_AGREEMENT = {False: 99.9, True: 98.0}


class NotProven(Exception):  # noqa: N818 - what was to be shown was not
    """A check did not find what it must."""


class Skip(Exception):  # noqa: N818 - no error
    """A check cannot be made here."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What checks work with.

    Attributes:
        machine: where.
        bundle: under test.
        checkpoint: that it was exported from, or None.
        reference: folder of the authors' cases and checkpoints, or None.
        data: folder of pictures or sets, or None.
        dense: checkpoint of the dense network, or None.
        work: folder for what is exported on the way.
        small: sizes and numbers of a dry run.
        cpu: results of the CPU road by what was asked.
        references: those of the published inference.
    """

    machine: Machine
    bundle: Path
    checkpoint: Path | None
    reference: Path | None
    data: Path | None
    dense: Path | None
    work: Path
    small: bool
    cpu: dict[str, Result] = field(default_factory=dict)
    references: dict[str, Reference] = field(default_factory=dict)

    def on_cpu(self, picture: NDArray[Any], **options: Any) -> Result:
        """The CPU road's result in fp32, computed once for all targets."""
        key = f"{picture.shape} {picture.dtype} {picture.ravel()[:64].tolist()} {sorted(options.items())}"
        if key not in self.cpu:
            with Upscaler.open(self.bundle, precision="fp32") as up:
                self.cpu[key] = up(picture, **options)
        return self.cpu[key]

    def reference_bundle(self) -> Path:
        """The authors' CARN-PCSR, exported."""
        if self.reference is None:
            raise Skip("no --reference folder")
        bundle = self.work / "carn-pcsr"
        if not bundle.exists():
            export_bundle(self.reference / "official" / "carn-pcsr.pth", bundle, precisions=("fp32",))
        return bundle


def prove(claim: bool, what: str) -> None:
    """Raise `NotProven` where a claim does not hold."""
    if not claim:
        raise NotProven(what)


def nearness(result: Result, expected: Result) -> Figures:
    """How near two results are."""
    return {
        "agreement": agreement(result.class_map, expected.class_map),
        "psnr": psnr(result.image, expected.image, rounded=False),
        "largest": largest_difference(result.image, expected.image),
    }


def prove_near(found: Figures, half: bool, what: str) -> None:
    """Raise `NotProven` where two results are too far from one another."""
    prove(
        found["psnr"] >= LEAST_PSNR[half] and found["agreement"] >= LEAST_AGREEMENT[half],
        f"{what}: {found['psnr']:.1f} dB, {found['agreement']:.2f} % of the pixels in the same class",
    )
