"""The CUDA sources, run on the CPU by the host's compiler, do what their NumPy twins do; the twins, what the CPU
road does. Threads and blocks run in ascending order and backwards: results may not depend on it."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcsr.runtime import compose
from pcsr.runtime.decision import (
    adaptive_thresholds,
    argmax_weights,
    budget_counts,
    budget_thresholds,
    classes_by_thresholds,
    classes_by_weights,
    difficulty,
)
from pcsr.runtime.device.kernels import KERNELS
from pcsr.runtime.device.twins import TWINS
from pcsr.runtime.geometry import axis
from pcsr.runtime.terms import terms
from pcsr.runtime.tiling import Region

DTYPES = ("uint8", "uint16", "float32")
CLASSES = (2, 3, 5)


@dataclass(frozen=True)
class Both:
    """Runs a kernel forwards and backwards and its twin, on copies, and wants the same bytes in every array."""

    classes: int
    kernels: tuple[Callable[..., None], Callable[..., None]]

    def __call__(self, name: str, elements: int, *arguments: Any) -> None:
        written = [parameter.written for parameter in KERNELS[name].parameters]
        results = []
        for launch in self.kernels:
            own = [a.copy() if w else a for a, w in zip(arguments, written, strict=True)]
            launch(name, elements, *own)
            results.append(own)
        TWINS[name](self.classes, *arguments)
        for own in results:
            for parameter, ran, twin in zip(KERNELS[name].parameters, own, arguments, strict=True):
                if parameter.written:
                    np.testing.assert_array_equal(ran, twin, err_msg=f"{name}: {parameter.name}")


@pytest.fixture(params=CLASSES)
def both(request: pytest.FixtureRequest, host_kernels: Callable[..., Any]) -> Both:
    classes = request.param
    return Both(classes, (host_kernels(classes), host_kernels(classes, backwards=True)))


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(5)


def picture_of(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    if dtype == "float32":
        return random.uniform(-0.2, 1.2, shape).astype(np.float32)
    return random.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def probabilities(random: np.random.Generator, classes: int, rows: int, columns: int) -> np.ndarray:
    p = random.dirichlet(np.full(classes, 0.4), (rows, columns)).astype(np.float32).transpose(0, 2, 1)
    return np.ascontiguousarray(p[:, 1:] if classes == 2 else p)


def test_every_kernel_has_a_twin_with_its_parameters() -> None:
    assert TWINS.keys() == KERNELS.keys()
    for name, twin in TWINS.items():
        _, *parameters = inspect.signature(twin).parameters
        ours = [p.name for p in KERNELS[name].parameters]
        # `classes` is the number of classes to a twin, and an array to some kernels.
        expected = ["of" if p == "classes" and parameters[ours.index(p)] == "of" else p for p in ours]
        expected = ["out" if p == "classes" and parameters[ours.index(p)] == "out" else p for p in expected]
        assert parameters == expected, name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (29, 1), (13, 21)])
def test_a_window_is_what_the_cpu_road_gives_the_backbone(
    host_kernels: Callable[..., Any],
    random: np.random.Generator,
    dtype: str,
    channels: int,
    shape: tuple[int, int],
) -> None:
    both = Both(2, (host_kernels(2), host_kernels(2, backwards=True)))
    h, w = shape
    picture = picture_of(random, (h, w, channels), dtype)
    top, left = h // 3, w // 4
    rows, columns = h - top, w - left - w // 5
    lr = np.full(3 * rows * columns, -1, np.float32)
    both(f"window_{dtype}", rows * columns, picture.reshape(-1), w, channels, top, left, rows, columns, lr)
    part = compose.to_float(picture[top : top + rows, left : left + columns])
    part = np.repeat(part, 3, axis=1) if channels == 1 else part[:, :3]
    np.testing.assert_array_equal(lr.reshape(3, rows, columns), part.transpose(1, 0, 2))


@pytest.mark.parametrize(("lr", "hr"), [(1, 1), (4, 6), (7, 38), (194, 291)])
def test_terms_are_those_of_the_cpu_road(both: Both, random: np.random.Generator, lr: int, hr: int) -> None:
    rows, channels = axis(lr, hr), 6
    parts = ("relative_y", "relative_x", "cell_y", "cell_x", "bias")
    first = {part: random.normal(size=channels).astype(np.float32) for part in parts}
    expected = terms(first, rows, rows)
    for across, slope, constant, want in (
        (0, "relative_y", first["cell_y"] * rows.cell + first["bias"], expected.rows),
        (1, "relative_x", first["cell_x"] * rows.cell, expected.columns.T),
    ):
        made = np.zeros(hr * channels, np.float32)
        both("axis_terms", made.size, rows.relative, first[slope], constant, hr, channels, across, made)
        np.testing.assert_array_equal(made.reshape(want.shape), want)
    indices = np.zeros(hr, np.int32)
    both("shift_indices", hr, rows.nearest, hr, 3, indices)
    np.testing.assert_array_equal(indices, rows.nearest - 3)


@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_found(both: Both, random: np.random.Generator, bad: float | None) -> None:
    values = random.normal(size=3000).astype(np.float32) * 1000
    values[0], values[1] = 65504, 0  # the largest of half precision
    if bad is not None:
        values[1234] = bad
    for name, given_values in (("float32", values), ("float16", values.astype(np.float16).view(np.uint16))):
        flag = np.zeros(1, np.int32)
        both(f"find_nonfinite_{name}", values.size, given_values, values.size, flag)
        assert flag[0] == (bad is not None)


@pytest.mark.parametrize("size", [(1, 1), (3, 300), (41, 7)])
def test_classes_are_those_of_the_cpu_road(
    both: Both, random: np.random.Generator, size: tuple[int, int]
) -> None:
    (rows, columns), M = size, both.classes
    p = probabilities(random, M, rows, columns)
    d = difficulty(p)
    thresholds = np.sort(random.choice(d.reshape(-1), M - 1)).astype(np.float32)
    expected = classes_by_thresholds(d, tuple(thresholds))
    classes = np.full(rows * columns, 9, np.uint8)
    both("classes_by_thresholds", classes.size, p.reshape(-1), rows, columns, thresholds, classes)
    np.testing.assert_array_equal(classes.reshape(size), expected)
    # The same through the store of a larger picture.
    H, W, top, left = rows + 5, columns + 3, 2, 1
    store = np.full(H * W, -1, np.float32)
    both("store_difficulties", classes.size, p.reshape(-1), rows, columns, W, top, left, store)
    assert (store.reshape(H, W)[top : top + rows, left : left + columns] == d).all()
    assert (store == -1).sum() == H * W - rows * columns
    classes[:] = 9
    both("classes_of_region", classes.size, store, W, top, left, rows, columns, thresholds, classes)
    np.testing.assert_array_equal(classes.reshape(size), expected)


@pytest.mark.parametrize("k", [-2.0, 0.0, 0.7])
def test_argmax_is_that_of_the_cpu_road(
    host_kernels: Callable[..., Any], random: np.random.Generator, k: float
) -> None:
    rows, columns, costs = 17, 29, tuple(np.float32([0.2, 0.3, 0.5]))
    p = probabilities(random, 3, rows, columns)
    p[0, :, :4] = np.float32(1 / 3)  # ties
    log_weight = -k * np.log(np.float64(costs))
    weights = np.exp(log_weight - log_weight.max()).astype(np.float32)
    classes = np.zeros(rows * columns, np.uint8)
    both = Both(3, (host_kernels(3), host_kernels(3, backwards=True)))
    both("classes_by_argmax", classes.size, p.reshape(-1), rows, columns, weights, classes)
    np.testing.assert_array_equal(
        classes.reshape(rows, columns), classes_by_weights(p, argmax_weights(k, costs))
    )


@pytest.mark.parametrize("n", [1, 255, 256, 4096, 4097, 9001])
@pytest.mark.parametrize("mix", ["random", "light", "heaviest"])
def test_compaction_lists_the_pixels_of_each_class_in_order(
    both: Both, random: np.random.Generator, n: int, mix: str
) -> None:
    M, columns = both.classes, 37
    classes = {
        "random": lambda: random.integers(0, M, n).astype(np.uint8),
        "light": lambda: np.zeros(n, np.uint8),
        "heaviest": lambda: np.full(n, M - 1, np.uint8),
    }[mix]()
    chunks = -(-n // 4096)
    counts, totals = np.zeros(chunks * M, np.uint32), np.zeros(M, np.int32)
    both("count_classes", n, classes, n, counts)
    np.testing.assert_array_equal(counts.reshape(chunks, M).sum(axis=0), np.bincount(classes, minlength=M))
    both("scan_counts", 1, chunks, counts, totals)
    np.testing.assert_array_equal(totals, np.bincount(classes, minlength=M))
    nearest = np.sort(random.integers(5, 40, n // columns + 1)).astype(np.int32)
    across = np.sort(random.integers(3, 30, columns)).astype(np.int32)
    pixel, row, column = (np.full(n, -1, np.int32) for _ in range(3))
    both("compact_classes", n, classes, n, columns, counts, nearest, across, 5, 3, 27, pixel, row, column)
    at = totals[1:].sum()
    wanted = np.concatenate([np.flatnonzero(classes == j) for j in range(1, M)])
    np.testing.assert_array_equal(row[:at] * columns + column[:at], wanted)
    np.testing.assert_array_equal(pixel[:at], (nearest[row[:at]] - 5) * 27 + across[column[:at]] - 3)
    assert (pixel[at:] == -1).all()
    # Back to where they came from.
    rows = n // columns + 1
    rgb, residual = random.normal(size=3 * at).astype(np.float32), np.zeros(rows * 3 * columns, np.float32)
    both("scatter_rgb", int(at), rgb, row, column, int(at), columns, residual)
    placed = residual.reshape(rows, 3, columns)[row[:at], :, column[:at]]
    np.testing.assert_array_equal(placed, rgb.reshape(-1, 3))


def decide_by_means(both: Both, d: np.ndarray) -> np.ndarray:
    M, n = both.classes, d.size
    unit = 2.0**37
    extremes, total = np.array([0xFFFFFFFF, 0], np.uint32), np.zeros(1, np.uint64)
    centres, reached = np.zeros(M), np.zeros(2 * (M - 1), np.uint64)
    thresholds, state = np.zeros(M - 1, np.float32), np.zeros(2, np.int32)
    both("find_extremes", n, d, n, unit, extremes, total)
    both("means_begin", 1, extremes, total, n, unit, centres, reached, thresholds, state)
    for _ in range(19):
        both("means_pass", n, d, n, unit, thresholds, state, reached)
        both("means_update", 1, extremes, total, n, unit, 19, 1e-4, centres, reached, thresholds, state)
    assert state[1] == 1
    return thresholds


def decide_by_budget(both: Both, d: np.ndarray, budget: float, steps: tuple[int, ...]) -> np.ndarray:
    M, n = both.classes, d.size
    wanted = np.array(budget_counts(n, budget, steps), np.uint64)
    extremes, total = np.array([0xFFFFFFFF, 0], np.uint32), np.zeros(1, np.uint64)
    bounds, reached = np.zeros(2 * (M - 1), np.uint32), np.zeros(3 * (M - 1), np.uint64)
    tried, thresholds = np.zeros(3 * (M - 1), np.float32), np.zeros(M - 1, np.float32)
    both("find_extremes", n, d, n, 1.0, extremes, total)
    both("budget_begin", 1, extremes, bounds, tried, reached)
    for _ in range(16):
        both("budget_pass", n, d, n, tried, reached)
        both("budget_update", 1, wanted, bounds, tried, reached)
    both("budget_ties", 1, bounds, tried, reached)
    both("budget_pass", n, d, n, tried, reached)
    both("budget_end", 1, wanted, tried, reached, thresholds)
    return thresholds


def difficulties(random: np.random.Generator, kind: str, M: int, n: int) -> np.ndarray:
    if kind == "softmax":
        return difficulty(probabilities(random, M, 1, n))[0].copy()
    if kind == "ties":
        return (random.integers(0, 8 * (M - 1), n, endpoint=True) / 8).astype(np.float32)
    if kind == "extremes":
        return np.where(random.random(n) < 0.5, np.float32(0), np.float32(M - 1))
    assert kind == "narrow"
    return (0.3 + random.normal(0, 1e-4, n)).astype(np.float32)


@pytest.mark.parametrize("kind", ["softmax", "ties", "extremes", "narrow"])
@pytest.mark.parametrize("n", [1, 2, 700, 5000])
def test_means_are_those_of_the_cpu_road(both: Both, random: np.random.Generator, kind: str, n: int) -> None:
    d = difficulties(random, kind, both.classes, n)
    np.testing.assert_allclose(
        decide_by_means(both, d), adaptive_thresholds(d, both.classes), rtol=0, atol=1e-5
    )


def test_passes_reach_more_values_than_they_have_threads(
    host_kernels: Callable[..., Any], random: np.random.Generator
) -> None:
    both = Both(2, (host_kernels(2), host_kernels(2, backwards=True)))
    d = random.random(1024 * 256 + 1234).astype(np.float32)
    d[-1] = 7
    extremes, total = np.array([0xFFFFFFFF, 0], np.uint32), np.zeros(1, np.uint64)
    both("find_extremes", d.size, d, d.size, 2.0**30, extremes, total)
    assert total[0] / 2**30 == pytest.approx(d.sum(dtype=np.float64), rel=1e-9)
    reached, tried = np.zeros(3, np.uint64), np.array([0.25, 0.5, 7], np.float32)
    both("budget_pass", d.size, d, d.size, tried, reached)
    assert reached.tolist() == [np.count_nonzero(d >= t) for t in tried]


@pytest.mark.parametrize("kind", ["softmax", "ties", "extremes", "narrow"])
@pytest.mark.parametrize("budget", [0.003, 0.2, 0.5, 0.97, 1.0])
def test_budgets_are_exactly_those_of_the_cpu_road(
    both: Both, random: np.random.Generator, kind: str, budget: float
) -> None:
    M = both.classes
    d = difficulties(random, kind, M, 1000)
    steps = (1,) if M == 2 else tuple(int(s) for s in random.integers(1, 1 << 20, M - 1))
    expected = budget_thresholds(d, budget, steps=steps)
    assert tuple(decide_by_budget(both, d, budget, steps)) == expected


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_budget_of_few_values_is_exactly_that_of_the_cpu_road(both: Both, data: st.DataObject) -> None:
    M = both.classes
    values = st.floats(0, M - 1, width=32)
    d = np.array(data.draw(st.lists(values, min_size=1, max_size=12)), np.float32)
    steps = (1,) if M == 2 else tuple(data.draw(st.lists(st.integers(1, 99), min_size=M - 1, max_size=M - 1)))
    budget = data.draw(st.floats(0, 1))
    assert tuple(decide_by_budget(both, d, budget, steps)) == budget_thresholds(d, budget, steps=steps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("lr", "hr"), [((1, 1), (1, 1)), ((1, 9), (3, 31)), ((8, 1), (20, 2)), ((9, 11), (22, 28))], ids=str
)
@pytest.mark.parametrize("refine", [0, 1])
def test_the_finish_is_that_of_the_cpu_road(
    host_kernels: Callable[..., Any],
    random: np.random.Generator,
    dtype: str,
    channels: int,
    lr: tuple[int, int],
    hr: tuple[int, int],
    refine: int,
) -> None:
    both = Both(3, (host_kernels(3), host_kernels(3, backwards=True)))
    (h, w), (H, W) = lr, hr
    picture = picture_of(random, (h, w, channels), dtype)
    rows, columns = axis(h, H), axis(w, W)
    class_map = (random.integers(0, 3, hr) * (random.random(hr) < 0.3)).astype(np.uint8)
    residual = random.normal(0, 0.2, (H, 3, W)).astype(np.float32)
    image, expected = np.zeros((H, W, channels), dtype), np.zeros((H, W, channels), dtype)
    mapped, counts, flag = np.full(H * W, 9, np.uint8), np.zeros(3, np.uint64), np.zeros(1, np.int32)
    # Two blocks with a margin, as a refined picture is cut.
    middle = H // 2
    for inner in (Region(0, middle, 0, W), Region(middle, H, 0, W)):
        if not inner.pixels:
            continue
        region = inner.grown(refine, H, W)
        part = np.ascontiguousarray(residual[region.top : region.bottom, :, region.left : region.right])
        classes = np.ascontiguousarray(class_map[region.top : region.bottom, region.left : region.right])
        both(
            f"finish_{dtype}",
            inner.pixels,
            picture.reshape(-1),
            w,
            channels,
            rows.low,
            rows.high,
            rows.weight,
            columns.low,
            columns.high,
            columns.weight,
            part.reshape(-1),
            classes.reshape(-1),
            region.top,
            region.left,
            W,
            inner.top - region.top,
            inner.left - region.left,
            *inner.shape,
            H,
            W,
            refine,
            image.reshape(-1),
            mapped,
            counts,
            flag,
        )
        base = compose.base(picture, rows, columns, region)
        colour = part + base[:, :3]
        if refine:
            colour = compose.refine(colour, classes, region, inner, hr)
        out = expected[inner.top : inner.bottom]
        if channels == 4:
            compose.store(colour, out[..., :3])
            first = inner.top - region.top
            compose.store(base[first : first + inner.shape[0], 3:], out[..., 3:])
        else:
            compose.store(colour, out)
    np.testing.assert_array_equal(image, expected)
    np.testing.assert_array_equal(mapped.reshape(hr), class_map)
    np.testing.assert_array_equal(counts, np.bincount(class_map.reshape(-1), minlength=3))
    assert not flag[0]


def test_the_finish_tells_of_colours_that_are_not_finite(host_kernels: Callable[..., Any]) -> None:
    both = Both(2, (host_kernels(2), host_kernels(2, backwards=True)))
    rows = axis(2, 4)
    residual = np.zeros(4 * 3 * 4, np.float32)
    residual[17] = math.nan
    flag = np.zeros(1, np.int32)
    sides = (rows.low, rows.high, rows.weight)
    picture = np.full(12, 0.5, np.float32)
    image, class_map, counts = np.zeros(48, np.float32), np.zeros(16, np.uint8), np.zeros(2, np.uint64)
    both(
        "finish_float32", 16, picture, 2, 3, *sides, *sides, residual, np.zeros(16, np.uint8), 0, 0, 4, 0, 0, 4, 4,
        4, 4, 0, image, class_map, counts, flag,
    )  # fmt: skip
    assert flag[0] == 1
