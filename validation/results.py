"""What was compared and what came out: plain values, as they stand in a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Comparison", "Failure", "Fidelity", "Quality", "Rule", "SetComparison"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to decide, a column of the report: k, adaptive or budget.

    Attributes:
        kind: the rule.
        value: of k or budget; None for adaptive.
    """

    kind: Literal["k", "adaptive", "budget"]
    value: float | None = None

    @property
    def label(self) -> str:
        """Like "k=0", "adaptive" or "budget=0.2"."""
        return self.kind if self.value is None else f"{self.kind}={self.value:z.12g}"

    @property
    def keywords(self) -> dict[str, Any]:
        """What an upscaler's call takes for it."""
        return {self.kind: True if self.value is None else self.value}


@dataclass(frozen=True, slots=True)
class Quality:
    """A picture against the truth, `metrics.shave_for(scale)` pixels left out on each side.

    Attributes:
        psnr: dB over all RGB samples, as in the paper.
        psnr_y: dB over luma.
        ssim: over luma.
    """

    psnr: float
    psnr_y: float
    ssim: float


@dataclass(frozen=True, slots=True)
class Fidelity:
    """The runtime against the oracle, over the whole picture, values neither clamped nor rounded.

    Attributes:
        psnr: dB.
        largest_difference: of a sample; 1 is from black to white.
        agreement: % of the pixels that both send to the same class.
    """

    psnr: float
    largest_difference: float
    agreement: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One picture, at one scale, by one rule.

    Attributes:
        name: of the picture, without its ending.
        size: (H, W) of the output and the cropped truth.
        truth_sha256: of the cropped truth's samples, so that a baseline knows its pictures again.
        bicubic: MATLAB's bicubic of the same LR, for comparison.
        runtime: the upscaler.
        oracle: the published inference in PyTorch; None without a checkpoint.
        fidelity: runtime against oracle; None without a checkpoint.
        shares: of the pixels in each class, lightest first.
        thresholds: on the difficulty (`Decision`), ascending; None for more than two classes under k.
        flops: of the runtime's routing by the paper's convention.
        flops_all_heavy: the same, every pixel in the heaviest class.
        macs: multiply-accumulates that really ran.
        macs_all_heavy: the same, every pixel in the heaviest class.
        milliseconds: that the upscaler took.
    """

    name: str
    size: tuple[int, int]
    truth_sha256: str
    bicubic: Quality
    runtime: Quality
    oracle: Quality | None
    fidelity: Fidelity | None
    shares: tuple[float, ...]
    thresholds: tuple[float, ...] | None
    flops: int
    flops_all_heavy: int
    macs: int
    macs_all_heavy: int
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """A picture that could not be compared, and why."""

    set: str
    name: str
    scale: float
    message: str


@dataclass(frozen=True, slots=True)
class SetComparison:
    """A set at one scale by one rule.

    Attributes:
        set: its name.
        scale: magnification.
        rule: label of the rule.
        pictures: that could be compared, in order; at least one.
        bicubic: mean of the pictures' values, as are the next two.
        runtime: see bicubic.
        oracle: see bicubic.
        fidelity: the lowest PSNR, the largest difference, and the agreement over all pixels.
        shares: over all pixels, lightest class first.
        flops: sum over the pictures, as are the other costs and the milliseconds.
        flops_all_heavy: see flops.
        macs: see flops.
        macs_all_heavy: see flops.
        milliseconds: see flops.
    """

    set: str
    scale: float
    rule: str
    pictures: tuple[Comparison, ...]
    bicubic: Quality
    runtime: Quality
    oracle: Quality | None
    fidelity: Fidelity | None
    shares: tuple[float, ...]
    flops: int
    flops_all_heavy: int
    macs: int
    macs_all_heavy: int
    milliseconds: float

    @property
    def drop(self) -> float | None:
        """Mean PSNR of the oracle less that of the runtime, dB; None without an oracle."""
        if self.oracle is None:
            return None
        same = self.oracle.psnr == self.runtime.psnr  # both may be infinite
        return 0.0 if same else self.oracle.psnr - self.runtime.psnr
