"""The runtime beside the oracle, both beside ground truth: picture by picture, then as means over a set."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.bicubic import resize
from pcsr.runtime.errors import BackendError, MemoryLimitError, PictureError
from pcsr.runtime.options import Result
from pcsr.validation import metrics
from pcsr.validation.results import Comparison, Failure, Fidelity, Quality, Rule, SetComparison
from pcsr.validation.sets import LrKind, PictureSet, make_pair, read_truth

if TYPE_CHECKING:
    from pcsr.model.reference import Reference

__all__ = ["Oracle", "Upscale", "Watch", "compare_folder", "compare_picture", "load_oracle"]

Upscale = Callable[..., Result]
"""An `Upscaler`, or what is called like one: (h, w, 3) float32 LR; scale, refine and a rule's keywords."""
Oracle = Callable[..., "Reference"]
"""Called like `Upscale`."""
Watch = Callable[[str, str, float], object]
"""Told set, picture and scale before each comparison."""


def load_oracle(checkpoint: str | os.PathLike[str], *, threads: int | None = None) -> Oracle:
    """The published inference of a checkpoint, in PyTorch.

    Args:
        checkpoint: the authors' .pth or our .safetensors.
        threads: of PyTorch, for this whole process; None leaves them.

    Raises:
        BackendError: PyTorch is not installed.
        CheckpointError: the file is not a complete PCSR checkpoint.
    """
    try:
        import torch

        from pcsr.model.checkpoint import load_checkpoint
        from pcsr.model.reference import upscale
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise BackendError(
            "comparing with a checkpoint runs the published inference in PyTorch, which is not installed; "
            "install it with: pip install 'pcsr[export]'"
        ) from error
    network = load_checkpoint(checkpoint)
    if threads is not None:
        torch.set_num_threads(threads)

    def oracle(picture: NDArray[Any], **options: Any) -> Reference:
        return upscale(network, picture, **options)

    return oracle


def compare_picture(
    upscale: Upscale,
    truth: NDArray[Any],
    *,
    name: str,
    scale: float,
    rules: Sequence[Rule],
    refine: bool = False,
    lr: LrKind = "float",
    oracle: Oracle | None = None,
) -> tuple[Comparison, ...]:
    """Compare one picture at one scale by several rules.

    The LR is made from the truth as `sets.make_pair` says.

    Args:
        upscale: the upscaler.
        truth: (H, W, 3) uint8, or float32 from 0 to 1.
        name: of the picture.
        scale: real magnification, 1 or more.
        rules: one comparison each.
        refine: for upscaler and oracle.
        lr: "float" or "8bit".
        oracle: from `load_oracle`.

    Raises:
        PictureError: the picture is too small for the scale.
        PcsrError: whatever upscaler and oracle raise.
    """
    small, truth = make_pair(truth, scale=scale, lr=lr)
    bicubic = _quality(resize(small, size=(truth.shape[0], truth.shape[1])), truth, scale)
    return tuple(
        _compare(
            upscale(small, scale=scale, refine=refine, **rule.keywords),
            oracle(small, scale=scale, refine=refine, **rule.keywords) if oracle else None,
            truth,
            name=name,
            scale=scale,
            bicubic=bicubic,
        )
        for rule in rules
    )


def _compare(
    result: Result,
    reference: Reference | None,
    truth: NDArray[Any],
    *,
    name: str,
    scale: float,
    bicubic: Quality,
) -> Comparison:
    fidelity = None
    if reference is not None:
        fidelity = Fidelity(
            psnr=metrics.psnr(result.image, reference.image, rounded=False),
            largest_difference=metrics.largest_difference(result.image, reference.image),
            agreement=metrics.agreement(result.class_map, reference.class_map),
        )
    return Comparison(
        name=name,
        size=(truth.shape[0], truth.shape[1]),
        truth_sha256=hashlib.sha256(np.ascontiguousarray(truth).tobytes()).hexdigest(),
        bicubic=bicubic,
        runtime=_quality(result.image, truth, scale),
        oracle=_quality(reference.image, truth, scale) if reference is not None else None,
        fidelity=fidelity,
        shares=result.shares,
        thresholds=result.decision.thresholds,
        flops=result.cost.flops,
        flops_all_heavy=result.cost.flops_all_heavy,
        macs=result.cost.macs,
        macs_all_heavy=result.cost.macs_all_heavy,
        milliseconds=result.milliseconds["total"],
    )


def _quality(picture: NDArray[Any], truth: NDArray[Any], scale: float) -> Quality:
    shave = metrics.shave_for(scale)
    return Quality(
        psnr=metrics.psnr(picture, truth, shave=shave),
        psnr_y=metrics.psnr(picture, truth, shave=shave, channel="y"),
        ssim=metrics.ssim(picture, truth, shave=shave),
    )


def compare_folder(
    upscale: Upscale,
    sets: Iterable[PictureSet],
    *,
    scales: Sequence[float],
    rules: Sequence[Rule],
    refine: bool = False,
    lr: LrKind = "float",
    oracle: Oracle | None = None,
    watch: Watch | None = None,
) -> tuple[tuple[SetComparison, ...], tuple[Failure, ...]]:
    """Compare sets of pictures at several scales by several rules.

    A picture that cannot be read, or not be upscaled within the memory limit, is a failure; the others go on.

    Args:
        upscale: the upscaler.
        sets: from `sets.find_sets`.
        scales: real magnifications.
        rules: columns of the report.
        refine: for upscaler and oracle.
        lr: "float" or "8bit".
        oracle: from `load_oracle`.
        watch: told of each picture before its turn.

    Returns:
        Every set at every scale by every rule of which at least one picture could be compared, and the
        failures.

    Raises:
        PcsrError: what no picture is to blame for.
    """
    compared: list[SetComparison] = []
    failures: list[Failure] = []
    for group in sets:
        for scale in scales:
            rows: list[tuple[Comparison, ...]] = []
            for path in group.paths:
                if watch is not None:
                    watch(group.name, path.stem, scale)
                try:
                    truth = read_truth(path)
                    rows.append(
                        compare_picture(
                            upscale,
                            truth,
                            name=path.stem,
                            scale=scale,
                            rules=rules,
                            refine=refine,
                            lr=lr,
                            oracle=oracle,
                        )
                    )
                except (PictureError, MemoryLimitError) as error:
                    failures.append(Failure(group.name, path.stem, scale, str(error)))
            if rows:
                columns = zip(rules, zip(*rows, strict=True), strict=True)
                compared += [_sum_up(group.name, scale, rule.label, column) for rule, column in columns]
    return tuple(compared), tuple(failures)


def _sum_up(name: str, scale: float, rule: str, pictures: tuple[Comparison, ...]) -> SetComparison:
    pixels = [picture.size[0] * picture.size[1] for picture in pictures]
    fidelities = [picture.fidelity for picture in pictures if picture.fidelity is not None]
    fidelity = None
    if fidelities:
        fidelity = Fidelity(
            psnr=min(one.psnr for one in fidelities),
            largest_difference=max(one.largest_difference for one in fidelities),
            agreement=_weighted([one.agreement for one in fidelities], pixels),
        )
    oracles = [picture.oracle for picture in pictures if picture.oracle is not None]
    return SetComparison(
        set=name,
        scale=scale,
        rule=rule,
        pictures=pictures,
        bicubic=_mean(picture.bicubic for picture in pictures),
        runtime=_mean(picture.runtime for picture in pictures),
        oracle=_mean(oracles) if oracles else None,
        fidelity=fidelity,
        shares=tuple(_weighted(share, pixels) for share in zip(*(p.shares for p in pictures), strict=True)),
        flops=sum(picture.flops for picture in pictures),
        flops_all_heavy=sum(picture.flops_all_heavy for picture in pictures),
        macs=sum(picture.macs for picture in pictures),
        macs_all_heavy=sum(picture.macs_all_heavy for picture in pictures),
        milliseconds=sum(picture.milliseconds for picture in pictures),
    )


def _mean(qualities: Iterable[Quality]) -> Quality:
    each = list(qualities)
    # Pictures smaller than SSIM's window have none.
    similar = [quality.ssim for quality in each if not math.isnan(quality.ssim)]
    return Quality(
        psnr=math.fsum(quality.psnr for quality in each) / len(each),
        psnr_y=math.fsum(quality.psnr_y for quality in each) / len(each),
        ssim=math.fsum(similar) / len(similar) if similar else math.nan,
    )


def _weighted(values: Sequence[float], weights: Sequence[int]) -> float:
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
