"""Tiles change nothing: the same picture cut up and whole, over sizes, scales, tiles, rules and refinement.

What may remain is the rounding of sums that are taken in another order. So, given the same thresholds, a class
differs only where the untiled difficulty lies within `NEAR` of one for each class above the lightest, and colours
differ by `COLOUR_TOLERANCE` at the most wherever the classes of the 3x3 neighbourhood agree.
"""

import logging
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from rounded_means import adaptive_intervals, assert_thresholds_within

from pcsr.runtime import Result, Upscaler
from pcsr.runtime.errors import MemoryLimitError
from pcsr.runtime.geometry import axis, output_size
from pcsr.runtime.tiling import Region, RowsDone, blocks, equal_parts, plan_tiles

NEAR = 5e-5
COLOUR_TOLERANCE = 2e-5
THRESHOLD_TOLERANCE = 1e-5

TILES = (16, 17, 24, 32, 48)
# Several tiles a side, and for the published network, which sees 19 pixels far, windows that end inside.
LARGEST_SIDE, LARGEST_FOR_PUBLISHED = 60, 120
PHOTO = skimage.data.astronaut()

UpscalerByTile = Callable[[int | None], Upscaler]


@dataclass(frozen=True, slots=True)
class Case:
    """A picture, how it is enlarged, and the side of the tiles."""

    kind: str
    picture: np.ndarray
    options: dict[str, Any]
    tile: int

    def __repr__(self) -> str:
        h, w = self.picture.shape[:2]
        return f"Case({self.kind} {w}x{h}, {self.options}, tile={self.tile})"


def photo(h: int, w: int, random: np.random.Generator) -> np.ndarray:
    top, left = random.integers(0, 512 - LARGEST_FOR_PUBLISHED, 2)
    return PHOTO[top : top + h, left : left + w] / np.float32(255)


def noise(h: int, w: int, random: np.random.Generator) -> np.ndarray:
    return random.uniform(-0.1, 1.1, (h, w, 3))


def gradient(h: int, w: int, random: np.random.Generator) -> np.ndarray:
    y, x = np.ogrid[0 : 1 : h * 1j, 0 : 1 : w * 1j]
    slopes = random.uniform(-1, 1, (2, 3))
    return 0.5 + 0.5 * (y[..., None] * slopes[0] + x[..., None] * slopes[1])


def near_constant(h: int, w: int, random: np.random.Generator) -> np.ndarray:
    return 0.4 + random.uniform(0, 1e-6, (h, w, 3))


KINDS = {"photo": photo, "noise": noise, "gradient": gradient, "near-constant": near_constant}

scales = st.one_of(st.sampled_from([1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 8.0]), st.floats(1, 8))
rules = st.one_of(
    st.floats(-3, 3).map(lambda k: {"k": k}),
    st.just({"adaptive": True}),
    st.floats(0, 1).map(lambda budget: {"budget": budget}),
)


@st.composite
def cases(draw: st.DrawFn, largest: int = LARGEST_SIDE) -> Case:
    h, w = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    kind = draw(st.sampled_from(list(KINDS)))
    picture = KINDS[kind](h, w, np.random.default_rng(draw(st.integers(0, 999))))
    if draw(st.booleans()):
        goal: dict[str, Any] = {"scale": draw(scales)}
    else:
        goal = {"size": (draw(st.integers(h, 8 * h)), draw(st.integers(w, 8 * w)))}
    options = {**goal, **draw(rules), "refine": draw(st.booleans())}
    return Case(kind, picture.astype(np.float32), options, draw(st.sampled_from(TILES)))


def opener(bundle: Path) -> Iterator[UpscalerByTile]:
    """Upscalers by tile, None for untiled, opened once each."""
    opened: dict[int | None, Upscaler] = {}

    def by_tile(tile: int | None) -> Upscaler:
        if tile not in opened:
            opened[tile] = Upscaler.open(bundle, threads=2, tile=tile)
        return opened[tile]

    yield by_tile
    for up in opened.values():
        up.close()


@pytest.fixture(scope="module")
def small(small_bundle: Path) -> Iterator[UpscalerByTile]:
    yield from opener(small_bundle)


@pytest.fixture(scope="module")
def carn(carn_bundle: Path) -> Iterator[UpscalerByTile]:
    yield from opener(carn_bundle)


@pytest.fixture(scope="module")
def three_classes(three_class_bundle: Path) -> Iterator[UpscalerByTile]:
    yield from opener(three_class_bundle)


def untiled_probabilities(up: Upscaler, case: Case) -> np.ndarray:
    """Probabilities (H, P, W) from the backend, asked once for the whole picture."""
    h, w = case.picture.shape[:2]
    H, W = output_size(h, w, case.options.get("scale"), case.options.get("size"))
    place = up._resources.backend.place(axis(h, H), axis(w, W))
    lr = np.ascontiguousarray(case.picture.transpose(2, 0, 1))
    tables = up._resources.backend.tables(lr, Region(0, h, 0, w))
    return up._resources.backend.probabilities(tables, place, Region(0, H, 0, W))


def assert_colours_agree(whole: Result, tiled: Result, case: Case) -> None:
    differs = whole.class_map != tiled.class_map
    touched = sliding_window_view(np.pad(differs, 1), (3, 3)).any((2, 3))
    assert np.abs(whole.image - tiled.image)[~touched].max(initial=0) <= COLOUR_TOLERANCE, case


def assert_thresholds_agree(whole: Result, tiled: Result, difficulty: np.ndarray, case: Case) -> None:
    above = len(whole.shares) - 1
    drift = THRESHOLD_TOLERANCE * above
    if "adaptive" not in case.options:
        assert tiled.decision.thresholds == pytest.approx(whole.decision.thresholds, abs=drift), case
    else:
        within = adaptive_intervals(difficulty, above + 1, near=NEAR * above, drift=drift)
        assert_thresholds_within(tiled.decision.thresholds, within, drift)
        assert_thresholds_within(whole.decision.thresholds, within, drift)


def assert_tiles_change_nothing(open_by_tile: UpscalerByTile, case: Case) -> None:
    whole = open_by_tile(None)(case.picture, **case.options)
    tiled = open_by_tile(case.tile)(case.picture, **case.options)
    assert whole.tile == case.picture.shape[:2]
    probability = untiled_probabilities(open_by_tile(None), case).astype(np.float64)
    above = len(whole.shares) - 1
    difficulty = probability[:, 0] if above == 1 else np.einsum("ypx,p->yx", probability, range(above + 1))
    for result in (whole, tiled):
        assert result.decision.thresholds is not None
        away = difficulty[..., None] - result.decision.thresholds
        differs = (away >= 0).sum(axis=2) != result.class_map
        assert np.abs(away).min(axis=2)[differs].max(initial=0) <= NEAR * above, case
    assert_thresholds_agree(whole, tiled, difficulty, case)
    assert_colours_agree(whole, tiled, case)


def examples(number: int) -> settings:
    return settings(max_examples=number, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@examples(60)
@given(case=cases())
def test_tiles_change_nothing(small: UpscalerByTile, case: Case) -> None:
    assert_tiles_change_nothing(small, case)


@examples(8)
@given(case=cases(LARGEST_FOR_PUBLISHED))
def test_tiles_change_nothing_for_the_published_network(carn: UpscalerByTile, case: Case) -> None:
    assert_tiles_change_nothing(carn, case)


@pytest.mark.slow
@examples(400)
@given(case=cases())
def test_tiles_change_nothing_over_many_cases(small: UpscalerByTile, case: Case) -> None:
    assert_tiles_change_nothing(small, case)


@pytest.mark.slow
@examples(60)
@given(case=cases(LARGEST_FOR_PUBLISHED))
def test_tiles_change_nothing_for_the_published_network_over_many_cases(
    carn: UpscalerByTile, case: Case
) -> None:
    assert_tiles_change_nothing(carn, case)


@examples(15)
@given(case=cases().filter(lambda case: "k" not in case.options))
def test_tiles_change_nothing_with_three_classes(three_classes: UpscalerByTile, case: Case) -> None:
    assert_tiles_change_nothing(three_classes, case)


@examples(10)
@given(case=cases())
def test_tiles_change_nothing_with_three_classes_by_k(three_classes: UpscalerByTile, case: Case) -> None:
    goal = {name: case.options[name] for name in ("scale", "size") if name in case.options}
    options = {**goal, "k": 0.0, "refine": case.options["refine"]}
    whole = three_classes(None)(case.picture, **options)
    tiled = three_classes(case.tile)(case.picture, **options)
    differs = whole.class_map != tiled.class_map
    ranked = np.sort(untiled_probabilities(three_classes(None), case), axis=1)
    assert (ranked[:, -1] - ranked[:, -2])[differs].max(initial=0) <= 2 * NEAR
    assert_colours_agree(whole, tiled, case)


@pytest.mark.parametrize("refine", [False, True])
def test_tables_made_anew_between_sweeps_give_the_same_bytes_as_kept_ones(
    small_bundle: Path, caplog: pytest.LogCaptureFixture, refine: bool
) -> None:
    picture = np.ascontiguousarray(PHOTO[:180, :200])
    options: dict[str, Any] = {"scale": 1.5, "adaptive": True, "refine": refine}
    caplog.set_level(logging.DEBUG, "pcsr.runtime.inference")
    with Upscaler.open(small_bundle, threads=1, tile=16) as up:
        kept = up(picture, **options)
    assert "kept between sweeps" in caplog.text
    with (
        Upscaler.open(small_bundle, threads=1, tile=16, memory_limit=1 << 20) as up,
        pytest.raises(MemoryLimitError) as refused,
    ):
        up(picture, **options)
    # The error says what the smallest piece of work needs: with that and no more, no tables can be kept.
    needed = re.search(r"need about (\d+) MiB", str(refused.value))
    assert needed is not None
    caplog.clear()
    limit = (int(needed[1]) + 1) << 20
    with Upscaler.open(small_bundle, threads=1, tile=16, memory_limit=limit) as up:
        anew = up(picture, **options)
    assert "made anew between sweeps" in caplog.text
    assert anew.image.tobytes() == kept.image.tobytes()
    assert anew.class_map.tobytes() == kept.class_map.tobytes()
    assert anew.decision == kept.decision


def test_tiles_hold_what_refinement_looks_at_also_where_float32_skips_an_input_pixel() -> None:
    rows, columns = axis(8000, 8001), axis(20, 20)
    (skipped,) = np.flatnonzero(np.diff(rows.nearest) == 2)
    edge = int(rows.nearest[skipped]) + 1
    # Tiles that end right before the pixel that is skipped, and right behind it.
    for side in (edge, edge + 1):
        for tile in plan_tiles(rows, columns, side, halo=3):
            seen = rows.nearest[max(tile.hr.top - 1, 0) : tile.hr.bottom + 1]
            assert tile.lr.top <= seen.min()
            assert seen.max() < tile.lr.bottom
            assert tile.lr.bottom - tile.lr.top <= side + 3


@settings(deadline=None)
@given(length=st.integers(1, 20_000), most=st.integers(16, 700))
def test_parts_are_as_few_as_they_can_be_and_of_nearly_equal_length(length: int, most: int) -> None:
    part = equal_parts(length, most)
    count = math.ceil(length / most)
    assert part <= most
    assert math.ceil(length / part) == count
    # None could be shorter by a pixel, were all as long.
    assert (part - 1) * count < length


def test_tiles_are_of_nearly_equal_size(small_bundle: Path) -> None:
    with Upscaler.open(small_bundle, threads=1, tile=32) as up:
        assert up(PHOTO[:50, :67], scale=2).tile == (25, 23)


@settings(deadline=None)
@given(
    top=st.integers(0, 30),
    left=st.integers(0, 30),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    cut=st.tuples(st.integers(1, 200), st.integers(1, 40)),
    data=st.data(),
)
def test_rows_are_done_when_all_blocks_of_theirs_are(
    top: int, left: int, size: tuple[int, int], cut: tuple[int, int], data: st.DataObject
) -> None:
    region = Region(top, top + size[0], left, left + size[1])
    cut_up = list(blocks(region, axis(20, 60), pixels=cut[0], columns=cut[1]))
    done, missing = RowsDone(cut_up), np.zeros((60, 60), dtype=bool)
    missing[region.top : region.bottom, region.left : region.right] = True
    while cut_up:
        count = data.draw(st.integers(1, len(cut_up)))
        some, cut_up = cut_up[:count], cut_up[count:]
        for block in some:
            missing[block.top : block.bottom, block.left : block.right] = False
        above = done.add(sum(block.pixels for block in some))
        incomplete = np.flatnonzero(missing.any(axis=1))
        first = incomplete[0] if len(incomplete) else region.bottom
        assert above == (first if first > region.top else 0)
    assert above == region.bottom
