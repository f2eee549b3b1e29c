"""What a backend does to blocks in one, for those that have its steps alone: on the workers' pool, block by block."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.backends.protocol import Backend, Float, Painted, Surveyed, Tables
from pcsr.runtime.backends.workers import Workers
from pcsr.runtime.compose import Patch, cut
from pcsr.runtime.decision import (
    ByThresholds,
    Rule,
    classes_by_thresholds,
    classes_by_weights,
    difficulty,
)
from pcsr.runtime.tiling import Region

__all__ = ["paint_by_steps", "survey_by_steps"]


def survey_by_steps(
    backend: Backend, tables: Tables, place: Any, blocks: Iterable[Region], out: Float, workers: Workers
) -> Iterator[Surveyed]:
    """`Backend.survey`."""

    def survey(block: Region) -> Surveyed:
        started = time.perf_counter()
        cut(out, block)[...] = difficulty(backend.probabilities(tables, place, block))
        return Surveyed(block.pixels, time.perf_counter() - started)

    return workers.each(survey, blocks)


def paint_by_steps(
    backend: Backend,
    tables: Tables,
    place: Any,
    patch: Patch,
    blocks: Iterable[Region],
    rule: Rule,
    difficulties: Float | None,
    class_map: NDArray[np.uint8],
    workers: Workers,
) -> Iterator[Painted]:
    """`Backend.paint`."""

    def paint(block: Region) -> Painted:
        part = patch.part(block)
        region = part.region
        at = [time.perf_counter()]
        if isinstance(rule, ByThresholds):
            known = (
                difficulty(backend.probabilities(tables, place, region))
                if difficulties is None
                else cut(difficulties, region)
            )
            classes = classes_by_thresholds(known, rule.thresholds)
        else:
            classes = classes_by_weights(backend.probabilities(tables, place, region), rule.weights)
        at.append(time.perf_counter())
        residual = backend.residuals(tables, place, region, classes)
        at.append(time.perf_counter())
        backend.finish(residual, classes, part)
        written = cut(class_map, block, patch.inner)
        written[...] = cut(classes, block, region)
        # Several times as fast as np.bincount, which makes indices of them.
        counts = [int(np.count_nonzero(written == j)) for j in range(len(tables.upsamplers))]
        at.append(time.perf_counter())
        return Painted(counts, (at[1] - at[0], at[2] - at[1], at[3] - at[2]))

    return workers.each(paint, blocks)
