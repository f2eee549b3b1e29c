"""Cutting pictures for engines: every call within the profile, every output pixel in exactly one."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from pcsr.export.tensorrt.profiles import Sizes, graph_profiles
from pcsr.runtime import shipped_bundle
from pcsr.runtime.backends.engines import Profile, Range
from pcsr.runtime.backends.profiles import Limits, Piece, limits, plan_pieces
from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.errors import BackendError, OptionError
from pcsr.runtime.geometry import Axis, axis

MANIFEST = read_bundle(shipped_bundle("carn")).manifest
HALO = MANIFEST.halo
SIZES = {
    "default": Sizes(),
    "small": Sizes(min_lr=(8, 8), opt_lr=(40, 40), max_lr=(2 * (HALO + 1) + 16,) * 2, points=3 << 11),
    "wide": Sizes(min_lr=(1, 1), opt_lr=(100, 300), max_lr=(100, 1000), points=7000),
}


def profiles(sizes: Sizes) -> dict[str, tuple[Profile, ...]]:
    sizes.check(MANIFEST)
    return dict(graph_profiles(MANIFEST, sizes))


def spans(edges: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    return sorted(set(edges))


def assert_partition(parts: list[tuple[int, int]], length: int) -> None:
    assert [parts[0][0], parts[-1][1]] == [0, length]
    assert all(end == start for (_, end), (start, _) in pairwise(parts))
    assert all(start < end for start, end in parts)


def assert_calls_fit(
    piece: Piece, rows: Axis, columns: Axis, engines: dict[str, tuple[Profile, ...]]
) -> None:
    """The shapes of every call that a piece needs, against the profiles themselves."""
    h, w = piece.tile.window.shape
    assert engines["backbone"][piece.profile]["lr"].holds((1, 3, h, w))
    dense, sparse = engines["classifier"][0], engines["upsampler_1"][0]
    channels, wide = dense["table"].max[1], sparse["table"].max[1]
    # All pairs of a row and a column span are blocks, so the corners of both sets are enough.
    heights, widths = ({b - a for a, b in pairwise(edges)} for edges in (piece.rows, piece.columns))
    for top, bottom in pairwise(piece.rows):
        first, last = rows.nearest[top], rows.nearest[bottom - 1]
        assert dense["table"].holds((last - first + 1, channels, w))
        assert piece.tile.window.top <= first <= last < piece.tile.window.bottom
    for height in heights:
        assert dense["rows"].holds((height,))
        assert dense["row_terms"].holds((height, channels, 1))
    for width in widths:
        assert dense["columns"].holds((width,))
        assert dense["column_terms"].holds((1, channels, width))
    assert columns.nearest[piece.columns[0]] >= piece.tile.window.left
    assert columns.nearest[piece.columns[-1] - 1] < piece.tile.window.right
    assert sparse["table"].holds((h * w, wide))
    assert sparse["row_terms"].holds((rows.hr, wide))
    assert sparse["column_terms"].holds((columns.hr, wide))


def assert_planned(
    size: tuple[int, int], out: tuple[int, int], engines: dict[str, tuple[Profile, ...]]
) -> int:
    rows, columns = axis(size[0], out[0]), axis(size[1], out[1])
    pieces = list(plan_pieces(rows, columns, limits(engines), halo=HALO))
    for piece in pieces:
        assert_calls_fit(piece, rows, columns, engines)
    # Tiles and blocks are products of spans of rows and of columns, so each axis is judged by itself.
    down = spans((p.tile.hr.top, p.tile.hr.bottom) for p in pieces)
    across = spans((p.tile.hr.left, p.tile.hr.right) for p in pieces)
    assert_partition(down, out[0])
    assert_partition(across, out[1])
    assert len(pieces) == len(down) * len(across)
    assert_partition(spans(edge for p in pieces for edge in pairwise(p.rows)), out[0])
    assert_partition(spans(edge for p in pieces for edge in pairwise(p.columns)), out[1])
    return len(pieces)


def logarithmic(random: random.Random, low: float, high: float) -> float:
    return math.exp(random.uniform(math.log(low), math.log(high)))


def pictures(count: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Input and output sizes: 1x1 to 20000x20000, strips among them, scales 1 to 16, each axis by its own."""
    chance = random.Random(20)
    for number in range(count):
        h, w = (round(logarithmic(chance, 1, 20000)) for _ in range(2))
        if number % 4 == 0:
            h = chance.randint(1, 3)
        scale = logarithmic(chance, 1, 16)
        skew = 1.0 if number % 2 else chance.uniform(1, 1.2)
        yield (h, w), (max(h, round(h * scale)), max(w, round(w * scale * skew)))


def test_ten_thousand_pictures_of_any_size_and_scale_fit_the_profiles() -> None:
    engines = [profiles(sizes) for sizes in SIZES.values()]
    tiled = 0
    for number, (size, out) in enumerate(pictures(10_000)):
        # The small profiles cut the largest pictures into hundreds of thousands of tiles.
        chosen = engines[number % 3] if max(size) < 300 else engines[0]
        tiled += assert_planned(size, out, chosen) > 1
    assert tiled > 1000


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(
    ("size", "out"),
    [
        ((1, 1), (1, 1)),
        ((1, 1), (5000, 7000)),
        ((1, 20000), (1, 20000)),
        ((3000, 1), (48000, 1)),
        ((15, 15), (61, 33)),
        ((16, 16), (16, 16)),
        ((1080, 1920), (4320, 7680)),
    ],
)
def test_extreme_pictures_fit(size: tuple[int, int], out: tuple[int, int], sizes: Sizes) -> None:
    assert_planned(size, out, profiles(sizes))


def test_the_largest_picture_fits_the_default() -> None:
    assert assert_planned((20000, 20000), (320000, 320000), profiles(Sizes())) == 121


def test_blocks_of_a_piece_cover_it_once_and_stay_below_the_points() -> None:
    rows, columns = axis(100, 777), axis(300, 3001)
    engines = profiles(SIZES["wide"])
    for margin in (0, 1):
        for piece in plan_pieces(rows, columns, limits(engines), halo=HALO, tile=60, margin=margin):
            hr = piece.tile.hr.grown(margin, rows.hr, columns.hr)
            seen = np.zeros(hr.shape, dtype=int)
            for block in piece.blocks():
                assert block.pixels <= 7000
                seen[
                    block.top - hr.top : block.bottom - hr.top, block.left - hr.left : block.right - hr.left
                ] += 1
            assert (seen == 1).all()
            assert_calls_fit(piece, rows, columns, engines)


def test_a_usual_picture_is_one_tile_in_the_main_profile() -> None:
    rows, columns = axis(1080, 4320), axis(1920, 7680)
    pieces = list(plan_pieces(rows, columns, limits(profiles(Sizes())), halo=HALO))
    assert [piece.profile for piece in pieces] == [0]
    assert len(list(pieces[0].blocks())) == 36
    # Blocks end with whole input rows: no input row's work is done twice.
    starts = rows.nearest[np.array(pieces[0].rows[1:-1])]
    assert (starts != rows.nearest[np.array(pieces[0].rows[1:-1]) - 1]).all()


def test_a_small_picture_takes_the_small_profile() -> None:
    rows, columns = axis(15, 60), axis(1920, 7680)
    assert next(plan_pieces(rows, columns, limits(profiles(Sizes())), halo=HALO)).profile == 1


def test_a_smaller_tile_can_be_asked_for() -> None:
    rows, columns = axis(512, 1024), axis(512, 1024)
    pieces = list(plan_pieces(rows, columns, limits(profiles(Sizes())), halo=HALO, tile=64))
    assert len(pieces) == 64
    assert max(piece.tile.window.shape for piece in pieces) == (64 + 2 * (HALO + 1),) * 2


def test_chunks_cover_the_routed_pixels() -> None:
    limit = limits(profiles(SIZES["wide"]))
    parts = list(limit.chunks(12_345))
    assert_partition(parts, 12_345)
    assert max(end - first for first, end in parts) <= limit.points
    assert list(limit.chunks(0)) == []


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        (Sizes(min_lr=(300, 16)), "--min-lr and --opt-lr are 16x300 and 480x270"),
        (Sizes(max_lr=(200, 1920)), "--opt-lr and --max-lr are 480x270 and 1920x200"),
        (Sizes(opt_lr=(20, 20), max_lr=(40, 40)), "--max-lr is 40x40; this backbone sees"),
        (Sizes(points=100), "--points is 100; it must be 6144 or more"),
        (Sizes(points=1 << 26), "--points makes tensors of 67108864 pixels"),
        (Sizes(max_lr=(30000, 30000)), "--max-lr makes tensors of 900000000 pixels"),
    ],
)
def test_sizes_that_would_leave_a_picture_outside_are_refused(sizes: Sizes, reason: str) -> None:
    with pytest.raises(OptionError, match="^" + reason.replace("(", r"\(")):
        sizes.check(MANIFEST)


# --- engines that are no set of ours


def changed(graph: str, name: str, shape: Range) -> dict[str, tuple[Profile, ...]]:
    engines = profiles(Sizes())
    engines[graph] = ({**engines[graph][0], name: shape}, *engines[graph][1:])
    return engines


def test_a_set_that_is_not_whole_is_refused() -> None:
    engines = profiles(Sizes())
    del engines["classifier"]
    with pytest.raises(BackendError, match="no full set"):
        limits(engines)
    engines = profiles(Sizes())
    engines["upsampler_1"] = ({"table": engines["upsampler_1"][0]["table"]},)
    with pytest.raises(BackendError, match="graph upsampler_1 has no profile of input pixel"):
        limits(engines)


def test_a_profile_that_takes_no_single_row_is_refused() -> None:
    with pytest.raises(BackendError, match="graph classifier takes no less than 2 along input rows"):
        limits(changed("classifier", "rows", Range(min=(2,), opt=(2,), max=(9,))))


def test_windows_too_small_for_the_halo_are_refused() -> None:
    engines = profiles(Sizes())
    small: Profile = {"lr": Range(min=(1, 3, 1, 1), opt=(1, 3, 1, 1), max=(1, 3, 20, 20))}
    engines["backbone"] = (small,)
    rows = axis(30, 30)
    with pytest.raises(BackendError, match="build them anew with a larger --max-lr"):
        next(plan_pieces(rows, rows, limits(engines), halo=HALO))
    # A picture that is no larger than a window needs no tiles.
    assert assert_planned((20, 20), (40, 40), engines) == 1


def test_engines_built_for_different_sizes_are_held_to_the_smaller_one() -> None:
    engines = changed("upsampler_1", "table", Range(min=(1, 74), opt=(100, 74), max=(10_000, 74)))
    limit: Limits = limits(engines)
    assert limit.window[0] * limit.window[1] <= 10_000
    with pytest.raises(BackendError, match="larger --max-lr"):
        list(plan_pieces(axis(5000, 5000), axis(5000, 5000), limit, halo=HALO))
    engines = changed("classifier", "table", Range(min=(1, 10, 1), opt=(8, 10, 8), max=(64, 10, 300)))
    assert assert_planned((700, 900), (1400, 3000), engines) > 1
