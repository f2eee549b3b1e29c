"""A block painted in one call, against its steps one by one: the same bytes."""

from dataclasses import replace

import numpy as np
import pytest

from pcsr.runtime.backends.steps import paint_by_steps, survey_by_steps
from pcsr.runtime.compose import Patch
from pcsr.runtime.decision import ByThresholds, ByWeights, Rule, difficulty
from pcsr.runtime.errors import BackendError
from pcsr.runtime.geometry import axis
from pcsr.runtime.tiling import Region

HEADS = {
    2: ((10, 10), (20,), (33, 17)),
    3: ((7,), (6,), (10, 11), (40, 8)),
    5: ((16,), (), (5,), (9,), (17,), (65, 9)),
}
SIZE, OUTPUT = (9, 41), (22, 150)
# Whole, and an odd part inside.
INNER = [Region(0, 22, 0, 150), Region(3, 19, 5, 132)]


def rules(classes: int, difficulties: np.ndarray) -> dict[str, Rule]:
    cuts = np.quantile(difficulties, np.linspace(0, 1, classes + 1)[1:-1]).astype(np.float32)
    made: dict[str, Rule] = {
        "cuts": ByThresholds(tuple(cuts)),
        "all in the lightest": ByThresholds((np.float32(np.inf),) * (classes - 1)),
        "none in the lightest": ByThresholds((np.float32(-1),) * (classes - 1)),
    }
    if classes > 2:
        weights = np.linspace(1, 0.3, classes).astype(np.float32)
        made["weights"] = ByWeights(weights)
        made["ties"] = ByWeights(np.zeros(classes, dtype=np.float32))
    return made


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("classes", HEADS)
def test_one_call_gives_what_its_steps_give(
    classes: int, inner: Region, refined: bool, instruction_set: str, open_random
) -> None:
    opened = open_random(*HEADS[classes])
    rows, columns = axis(SIZE[0], OUTPUT[0]), axis(SIZE[1], OUTPUT[1])
    window = Region(0, SIZE[0], 0, SIZE[1])
    tables = opened.tables(opened.bundle.tables(*SIZE), window)
    # Steps count classes by them.
    counted = replace(tables, upsamplers=(tables.classifier,) * classes)
    backend, place = opened.backend, opened.backend.place(rows, columns)
    region = inner.grown(1 if refined else 0, *OUTPUT)
    everything = Region(0, OUTPUT[0], 0, OUTPUT[1])
    known, expected = np.zeros(OUTPUT, np.float32), np.zeros(OUTPUT, np.float32)
    backend.survey(tables, place, everything, known)
    survey_by_steps(backend, tables, place, everything, expected)
    np.testing.assert_array_equal(known, expected)
    picture = np.random.default_rng(5).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    y, x = slice(inner.top, inner.bottom), slice(inner.left, inner.right)
    for name, rule in rules(classes, known).items():
        for given in (None, known[region.top : region.bottom, region.left : region.right]):
            if given is not None and isinstance(rule, ByWeights):
                continue
            written = []
            for paint, of in ((backend.paint, tables), (paint_by_steps, counted)):
                image, class_map = np.zeros((*OUTPUT, 3), np.uint8), np.full(OUTPUT, 99, np.uint8)
                patch = Patch(picture, rows, columns, region, inner, refined, image[y, x])
                arguments = (of, place, patch, rule, given, class_map[y, x])
                painted = paint(*arguments) if of is tables else paint(backend, *arguments)
                assert min(painted.seconds) >= 0
                assert sum(painted.counts) == inner.pixels
                written.append((image, class_map, painted.counts))
            for one, other in zip(*written, strict=True):
                np.testing.assert_array_equal(one, other, err_msg=name)
            whole = {"all in the lightest": 0, "ties": 0, "none in the lightest": classes - 1}.get(name)
            if whole is not None:
                assert painted.counts[whole] == inner.pixels


def test_difficulties_are_rounded_at_every_step(instruction_set: str, open_random) -> None:
    opened = open_random(*HEADS[5])
    rows, columns = axis(3, 7), axis(30, 61)
    tables = opened.tables(opened.bundle.tables(3, 30), Region(0, 3, 0, 30))
    place, region = opened.backend.place(rows, columns), Region(0, 7, 0, 61)
    found = np.empty((7, 61), np.float32)
    opened.backend.survey(tables, place, region, found)
    np.testing.assert_array_equal(found, difficulty(opened.backend.probabilities(tables, place, region)))


@pytest.mark.parametrize("spoilt", ["classifier", "upsampler_1"])
def test_values_that_are_not_finite_are_refused(spoilt: str, instruction_set: str, open_random) -> None:
    opened = open_random(*HEADS[2])
    given = opened.bundle.tables(4, 20)
    given[spoilt][2, 7] = np.nan
    rows, columns = axis(4, 8), axis(20, 40)
    region = Region(0, 8, 0, 40)
    tables = opened.tables(given, Region(0, 4, 0, 20))
    picture = np.zeros((4, 20, 3), np.uint8)
    patch = Patch(picture, rows, columns, region, region, False, np.zeros((8, 40, 3), np.uint8))
    place, class_map = opened.backend.place(rows, columns), np.zeros((8, 40), np.uint8)
    rule = ByThresholds((np.float32(-1),))
    with pytest.raises(BackendError, match="NaN or infinity"):
        opened.backend.paint(tables, place, patch, rule, None, class_map)
    if spoilt == "classifier":
        with pytest.raises(BackendError, match="row 0, column 0"):
            opened.backend.survey(tables, place, region, np.zeros((8, 40), np.float32))
