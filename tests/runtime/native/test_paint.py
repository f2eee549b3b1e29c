"""Blocks painted in one call, against their steps one by one, and many against one: the same bytes."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pcsr.runtime.backends import Painted, Tables, Workers
from pcsr.runtime.backends.steps import paint_by_steps, survey_by_steps
from pcsr.runtime.compose import Patch
from pcsr.runtime.decision import ByThresholds, ByWeights, Rule, difficulty
from pcsr.runtime.errors import BackendError
from pcsr.runtime.geometry import axis
from pcsr.runtime.native import backend as native
from pcsr.runtime.tiling import Region

HEADS = {
    2: ((10, 10), (20,), (33, 17)),
    3: ((7,), (6,), (10, 11), (40, 8)),
    5: ((16,), (), (5,), (9,), (17,), (65, 9)),
}
SIZE, OUTPUT = (9, 41), (22, 150)
# Whole, and an odd part inside.
INNER = [Region(0, 22, 0, 150), Region(3, 19, 5, 132)]


@pytest.fixture(scope="module")
def workers() -> Iterator[Callable[[int], Workers]]:
    """So many workers."""
    with ThreadPoolExecutor(5) as pool:
        yield lambda count: Workers(count, 5, pool)


def parts(whole: Region, rows: int, columns: int) -> list[Region]:
    """Blocks of so many rows and columns, in reading order."""
    return [
        Region(top, min(top + rows, whole.bottom), left, min(left + columns, whole.right))
        for top in range(whole.top, whole.bottom, rows)
        for left in range(whole.left, whole.right, columns)
    ]


def whole(array: np.ndarray) -> Region:
    return Region(0, array.shape[0], 0, array.shape[1])


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
    classes: int, inner: Region, refined: bool, instruction_set: str, open_random, workers
) -> None:
    opened = open_random(*HEADS[classes])
    rows, columns = axis(SIZE[0], OUTPUT[0]), axis(SIZE[1], OUTPUT[1])
    window = Region(0, SIZE[0], 0, SIZE[1])
    tables = opened.tables(opened.bundle.tables(*SIZE), window)
    # Steps count classes by them.
    counted = replace(tables, upsamplers=(tables.classifier,) * classes)
    backend, place = opened.backend, opened.backend.place(rows, columns)
    region = inner.grown(1 if refined else 0, *OUTPUT)
    known, expected = np.zeros(OUTPUT, np.float32), np.zeros(OUTPUT, np.float32)
    everything = [whole(known)]
    surveys = [
        *backend.survey(tables, place, everything, known, workers(1)),
        *survey_by_steps(backend, tables, place, everything, expected, workers(1)),
    ]
    assert [each.pixels for each in surveys] == [known.size] * 2
    assert min(each.seconds for each in surveys) > 0
    np.testing.assert_array_equal(known, expected)
    picture = np.random.default_rng(5).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    y, x = slice(inner.top, inner.bottom), slice(inner.left, inner.right)
    blocks = parts(inner, 10, 90)
    for name, rule in rules(classes, known).items():
        for given in (None, known):
            if given is not None and isinstance(rule, ByWeights):
                continue
            written = []
            for paint, of in ((backend.paint, tables), (paint_by_steps, counted)):
                image, class_map = np.zeros((*OUTPUT, 3), np.uint8), np.full(OUTPUT, 99, np.uint8)
                patch = Patch(picture, rows, columns, region, inner, refined, image[y, x])
                arguments = (of, place, patch, blocks, rule, given, class_map[y, x], workers(2))
                painted = list(paint(*arguments) if of is tables else paint(backend, *arguments))
                assert min(min(each.seconds) for each in painted) >= 0
                counts = np.sum([each.counts for each in painted], axis=0)
                assert counts.sum() == inner.pixels
                written.append((image, class_map, counts))
            for one, other in zip(*written, strict=True):
                np.testing.assert_array_equal(one, other, err_msg=name)
            evenly = {"all in the lightest": 0, "ties": 0, "none in the lightest": classes - 1}.get(name)
            if evenly is not None:
                assert counts[evenly] == inner.pixels


# Window and output of all of a picture, and of a tile in its midst.
TILES = [
    (Region(0, 9, 0, 41), Region(0, 22, 0, 150)),
    (Region(1, 9, 2, 41), Region(5, 21, 11, 147)),
]


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(("window", "inner"), TILES)
def test_blocks_and_threads_change_no_byte(
    window: Region,
    inner: Region,
    dtype: str,
    refined: bool,
    instruction_set: str,
    open_random,
    workers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = open_random(*HEADS[3])
    rows, columns = axis(SIZE[0], OUTPUT[0]), axis(SIZE[1], OUTPUT[1])
    tables = opened.tables(opened.bundle.tables(*SIZE), window)
    backend, place = opened.backend, opened.backend.place(rows, columns)
    picture = np.random.default_rng(5).random((*SIZE, 4))
    picture = (picture * (1 if dtype == "float32" else 255)).astype(dtype)
    region = inner.grown(1 if refined else 0, *OUTPUT)
    known = np.zeros(OUTPUT, np.float32)
    list(backend.survey(tables, place, [region], known, workers(1)))
    rule = ByThresholds(tuple(np.quantile(known[known > 0], [0.3, 0.7]).astype(np.float32)))

    def paint(blocks: list[Region], count: int, given: np.ndarray | None) -> list[bytes]:
        image, class_map = np.zeros((*inner.shape, 4), picture.dtype), np.full(inner.shape, 99, np.uint8)
        patch = Patch(picture, rows, columns, region, inner, refined, image)
        painted = backend.paint(tables, place, patch, blocks, rule, given, class_map, workers(count))
        counts = np.sum([each.counts for each in painted], axis=0)
        return [image.tobytes(), class_map.tobytes(), counts.tobytes()]

    expected = paint([inner], 1, None)
    assert paint([inner], 1, known) == expected
    for count in range(1, 6):
        # With one, several calls in a row.
        monkeypatch.setattr(native, "AT_ONCE", 1 if count == 1 else 1 << 20)
        blocks, found = parts(inner, 1 + count, 31 * count), np.zeros(OUTPUT, np.float32)
        surveyed = list(backend.survey(tables, place, parts(region, 3, 40), found, workers(count)))
        assert sum(each.pixels for each in surveyed) == region.pixels
        np.testing.assert_array_equal(found, known)
        assert paint(blocks, count, None) == expected
        assert paint(blocks, count, known) == expected


def test_difficulties_are_rounded_at_every_step(instruction_set: str, open_random, workers) -> None:
    opened = open_random(*HEADS[5])
    rows, columns = axis(3, 7), axis(30, 61)
    tables = opened.tables(opened.bundle.tables(3, 30), Region(0, 3, 0, 30))
    place, found = opened.backend.place(rows, columns), np.empty((7, 61), np.float32)
    list(opened.backend.survey(tables, place, [whole(found)], found, workers(1)))
    expected = difficulty(opened.backend.probabilities(tables, place, whole(found)))
    np.testing.assert_array_equal(found, expected)


class Small:
    """Five blocks of four rows, on input rows of their own, in a network that puts every pixel in the heavier class."""

    def __init__(self, open_random: Any, *, refined: bool = False, **spoilt: int) -> None:
        self.opened = open_random(*HEADS[2])
        given = self.opened.bundle.tables(10, 20)
        for head, row in spoilt.items():
            given[head][row, 7] = np.nan
        self.rows, self.columns = axis(10, 20), axis(20, 40)
        self.tables: Tables = self.opened.tables(given, Region(0, 10, 0, 20))
        self.image, self.class_map = np.zeros((20, 40, 3), np.uint8), np.full((20, 40), 99, np.uint8)
        self.blocks = parts(whole(self.image), 4, 40)
        picture = np.zeros((10, 20, 3), np.uint8)
        everything = whole(self.image)
        self.patch = Patch(picture, self.rows, self.columns, everything, everything, refined, self.image)
        self.place = self.opened.backend.place(self.rows, self.columns)

    def paint(self, workers: Workers, blocks: list[Region] | None = None) -> Iterator[Painted]:
        rule = ByThresholds((np.float32(-1),))
        return self.opened.backend.paint(
            *(self.tables, self.place, self.patch, self.blocks if blocks is None else blocks),
            *(rule, None, self.class_map, workers),
        )

    def survey(self, workers: Workers) -> np.ndarray:
        out = np.zeros((20, 40), np.float32)
        list(self.opened.backend.survey(self.tables, self.place, self.blocks, out, workers))
        return out


@pytest.mark.parametrize("spoilt", ["classifier", "upsampler_1"])
def test_the_block_that_is_not_finite_is_named(
    spoilt: str, instruction_set: str, open_random, workers
) -> None:
    # In the third of five.
    small = Small(open_random, **{spoilt: 4})
    message = re.escape("the block at row 8, column 0 gives NaN or infinity in fp32")
    for count in range(1, 6):
        with pytest.raises(BackendError, match=message):
            list(small.paint(workers(count)))
        if spoilt == "classifier":
            with pytest.raises(BackendError, match=message):
                small.survey(workers(count))


@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_of_several_blocks_that_are_not_finite_the_first_is_named(
    at_once: int, open_random, workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "AT_ONCE", at_once)
    small = Small(open_random, classifier=9, upsampler_1=5)
    for count in range(1, 6):
        with pytest.raises(BackendError, match="the block at row 8, column 0"):
            list(small.paint(workers(count)))
        with pytest.raises(BackendError, match="the block at row 16, column 0"):
            small.survey(workers(count))


def test_a_refined_block_that_is_not_finite_is_named_with_its_margin_as_by_its_steps(
    open_random, workers
) -> None:
    small = Small(open_random, refined=True, upsampler_1=5)
    counted = replace(small.tables, upsamplers=(small.tables.classifier,) * 2)
    rule = ByThresholds((np.float32(-1),))
    arguments = (small.place, small.patch, small.blocks, rule, None, small.class_map, workers(2))
    for run in (
        small.opened.backend.paint(small.tables, *arguments),
        paint_by_steps(small.opened.backend, counted, *arguments),
    ):
        with pytest.raises(BackendError, match="the block at row 7, column 0"):
            list(run)


def test_no_blocks_are_no_work(open_random, workers) -> None:
    small = Small(open_random)
    assert list(small.paint(workers(2), [])) == []
    assert (small.class_map == 99).all()


def test_whoever_stops_between_calls_ends_the_work(
    open_random, workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "AT_ONCE", 1)
    small = Small(open_random)
    painting = small.paint(workers(2))
    assert sum(next(painting).counts) == 2 * 4 * 40
    painting.close()  # type: ignore[attr-defined]
    assert (small.class_map[:8] == 1).all()
    assert (small.class_map[8:] == 99).all()
