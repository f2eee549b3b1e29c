"""What a backend does to a block in one, for those that have its steps alone."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.backends.protocol import Backend, Float, Painted, Tables
from pcsr.runtime.compose import Patch
from pcsr.runtime.decision import (
    ByThresholds,
    Rule,
    classes_by_thresholds,
    classes_by_weights,
    difficulty,
)
from pcsr.runtime.tiling import Region

__all__ = ["paint_by_steps", "survey_by_steps"]


def survey_by_steps(backend: Backend, tables: Tables, place: Any, region: Region, out: Float) -> None:
    """`Backend.survey`."""
    out[...] = difficulty(backend.probabilities(tables, place, region))


def paint_by_steps(
    backend: Backend,
    tables: Tables,
    place: Any,
    patch: Patch,
    rule: Rule,
    difficulties: Float | None,
    class_map: NDArray[np.uint8],
) -> Painted:
    """`Backend.paint`."""
    region, inner = patch.region, patch.inner
    at = [time.perf_counter()]
    if not isinstance(rule, ByThresholds):
        classes = classes_by_weights(backend.probabilities(tables, place, region), rule.weights)
    else:
        if difficulties is None:
            difficulties = difficulty(backend.probabilities(tables, place, region))
        classes = classes_by_thresholds(difficulties, rule.thresholds)
    at.append(time.perf_counter())
    residual = backend.residuals(tables, place, region, classes)
    at.append(time.perf_counter())
    backend.finish(residual, classes, patch)
    top, left = inner.top - region.top, inner.left - region.left
    rows, columns = inner.shape
    class_map[...] = classes[top : top + rows, left : left + columns]
    # Several times as fast as np.bincount, which makes indices of them.
    counts = [int(np.count_nonzero(class_map == j)) for j in range(len(tables.upsamplers))]
    at.append(time.perf_counter())
    return Painted(counts, (at[1] - at[0], at[2] - at[1], at[3] - at[2]))
