"""INT8 beside FP16 on the same device: what it costs in PSNR, and whether it is faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from gpu_check_proofs import truths
from gpu_check_setup import Figures, Setup, Skip, prove
from gpu_check_targets import Target, photo
from gpu_check_timings import CASES, ours, rounds

from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.errors import BackendError
from pcsr.validation.metrics import agreement, psnr, shave_for
from pcsr.validation.sets import make_pair

__all__ = ["INT8"]

# Of the mean over pictures; what a calibration allows, and a third for pictures that it has not seen.
LARGEST_DROP = 0.04


def int8(setup: Setup, target: Target) -> Figures:
    """PSNR lost against fp16 at x4 and x2, agreement of classes, and times in turn."""
    backend, precision = target.label.split()
    if precision != "fp16":
        raise Skip("beside fp16")
    if "int8" not in read_bundle(setup.bundle).precisions:
        raise Skip("the bundle has no int8 graphs")
    try:
        opening = setup.machine.opened(setup.bundle, backend, "int8")
        with opening as other:
            return _beside(setup, target, other)
    except BackendError as error:
        raise Skip(f"not opened: {error}") from error


def _beside(setup: Setup, target: Target, other: Target) -> Figures:
    found: Figures = {}
    for scale in (4.0, 2.0):
        drops, same = [], []
        for _, truth in truths(setup):
            lr, cropped = make_pair(truth, scale=scale)
            size = (cropped.shape[0], cropped.shape[1])
            results = [each.up(lr, size=size, k=0.0) for each in (target, other)]
            half, integer = (psnr(result.image, cropped, shave=shave_for(scale)) for result in results)
            drops.append(half - integer)
            same.append(agreement(results[0].class_map, results[1].class_map))
        found[f"x{scale:g}"] = {
            "mean drop dB": float(np.mean(drops)),
            "largest drop dB": float(np.max(drops)),
            "least agreement": float(np.min(same)),
        }
    for case in CASES[setup.small]:
        there = target.put(photo(*case.lr))
        found[case.name] = rounds(
            setup,
            {
                name: ours(each, there, case.scale, {"k": 0.0})
                for name, each in (("fp16", target), ("int8", other))
            },
        )
    worst = max(found[name]["mean drop dB"] for name in ("x4", "x2"))
    prove(worst <= LARGEST_DROP, f"{worst:.4f} dB are lost on the mean against fp16")
    return found


INT8: Mapping[str, Callable[[Setup, Target], Figures]] = {"int8": int8}
