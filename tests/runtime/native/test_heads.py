"""The per-pixel networks in native kernels, against the formula in NumPy and against the graphs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcsr.export.head_graphs import dense_head, sparse_head
from pcsr.runtime.backends import Tables
from pcsr.runtime.backends.graphs import GraphBackend
from pcsr.runtime.backends.onnxruntime import open_model
from pcsr.runtime.errors import BackendError
from pcsr.runtime.geometry import Axis, axis
from pcsr.runtime.tiling import Region

# Hidden sizes of the classifier, then of the upsamplers: as shipped, without hidden layers, odd, deep, wide, many.
NETWORKS = [
    ((10, 10), (20, 20, 20), (74, 74, 74, 74)),
    ((), (10, 10, 10), (58, 58, 58, 58)),
    ((), (), ()),
    ((7,), (1,), (33, 2)),
    ((16, 31, 5, 3), (17,), (16, 1, 65, 9)),
    ((3,), (6,), (10, 11), (64, 40, 8)),
    ((), (5, 5), (), (9,), (48,)),
    ((4,), (8,), (257, 300)),
]
# Rows and columns of input and output: whole and fractional scales, each axis its own, down to single pixels.
SIZES = [
    ((1, 1), (1, 1)),
    ((1, 1), (4, 4)),
    ((5, 7), (5, 7)),
    ((6, 35), (12, 70)),
    ((3, 40), (9, 120)),
    ((4, 17), (16, 68)),
    ((9, 50), (14, 75)),
    ((11, 13), (41, 48)),
    ((5, 70), (50, 77)),
    ((2, 9), (8, 200)),
]
NEAR = 3e-6

Sizes = tuple[tuple[int, int], tuple[int, int]]
Open = Callable[..., Any]


def whole(rows: Axis, columns: Axis) -> tuple[Region, Region]:
    """Window and output region of all there is."""
    return Region(0, rows.lr, 0, columns.lr), Region(0, rows.hr, 0, columns.hr)


def axes(sizes: Sizes) -> tuple[Axis, Axis]:
    (h, w), (H, W) = sizes
    return axis(h, H), axis(w, W)


def some_classes(region: Region, M: int, *, seed: int = 2) -> np.ndarray:
    """Runs of every class, and single pixels of others in them."""
    rng = np.random.default_rng(seed)
    rows, columns = region.shape
    runs = np.repeat(rng.integers(0, M, (rows, columns // 9 + 1)), 9, axis=1)[:, :columns]
    return np.where(rng.random((rows, columns)) < 0.1, rng.integers(0, M, runs.shape), runs).astype(np.uint8)


def softmax(x: np.ndarray) -> np.ndarray:
    """Of (H, W, M) as the backend gives it; of one logit the sigmoid."""
    if x.shape[2] == 1:
        return 1 / (1 + np.exp(-x)).transpose(0, 2, 1)
    power = np.exp(x - x.max(axis=2, keepdims=True))
    return (power / power.sum(axis=2, keepdims=True)).transpose(0, 2, 1)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_probabilities_are_those_of_the_formula(
    instruction_set: str, open_random: Open, network: tuple[tuple[int, ...], ...], sizes: Sizes
) -> None:
    opened = open_random(*network)
    rows, columns = axes(sizes)
    given = opened.bundle.tables(rows.lr, columns.lr)
    window, region = whole(rows, columns)
    place = opened.backend.place(rows, columns)
    found = opened.backend.probabilities(opened.tables(given, window), place, region)
    expected = softmax(opened.bundle.expected("classifier", given["classifier"], rows, columns))
    np.testing.assert_allclose(found, expected, rtol=0, atol=NEAR)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_every_pixel_gets_the_residual_of_its_class(
    instruction_set: str, open_random: Open, network: tuple[tuple[int, ...], ...], sizes: Sizes
) -> None:
    opened = open_random(*network)
    rows, columns = axes(sizes)
    given = opened.bundle.tables(rows.lr, columns.lr)
    window, region = whole(rows, columns)
    classes = some_classes(region, len(network) - 1)
    place = opened.backend.place(rows, columns)
    found = opened.backend.residuals(opened.tables(given, window), place, region, classes)
    for j in range(len(network) - 1):
        head = f"upsampler_{j}"
        expected = opened.bundle.expected(head, given[head], rows, columns)[classes == j]
        scale = max(1.0, float(np.abs(expected).max(initial=0)))
        np.testing.assert_allclose(
            found.transpose(0, 2, 1)[classes == j], expected, rtol=0, atol=NEAR * scale
        )


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_size_and_any_part_of_it_is_computed(
    instruction_set: str, open_random: Open, data: st.DataObject
) -> None:
    opened = open_random((5,), (4,), (9, 6))
    h, w = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 40))
    H, W = data.draw(st.integers(h, 5 * h)), data.draw(st.integers(w, 5 * w))
    top, left = data.draw(st.integers(0, H - 1)), data.draw(st.integers(0, W - 1))
    region = Region(top, data.draw(st.integers(top + 1, H)), left, data.draw(st.integers(left + 1, W)))
    rows, columns = axis(h, H), axis(w, W)
    given = opened.bundle.tables(h, w)
    # The smallest window that holds the region.
    window = Region(
        int(rows.nearest[region.top]),
        int(rows.nearest[region.bottom - 1]) + 1,
        int(columns.nearest[region.left]),
        int(columns.nearest[region.right - 1]) + 1,
    )
    tables = opened.tables(given, window)
    place = opened.backend.place(rows, columns)
    y, x = slice(region.top, region.bottom), slice(region.left, region.right)
    expected = softmax(opened.bundle.expected("classifier", given["classifier"], rows, columns))
    found = opened.backend.probabilities(tables, place, region)
    np.testing.assert_allclose(found, expected[y, :, x], rtol=0, atol=NEAR)
    classes = some_classes(region, 2, seed=w)
    heads = [opened.bundle.expected(f"upsampler_{j}", given[f"upsampler_{j}"], rows, columns) for j in (0, 1)]
    wanted = np.where(classes[..., None] == 0, heads[0][y, x], heads[1][y, x]).transpose(0, 2, 1)
    residual = opened.backend.residuals(tables, place, region, classes)
    np.testing.assert_allclose(residual, wanted, rtol=0, atol=NEAR * max(1.0, float(np.abs(wanted).max())))


@pytest.mark.parametrize(("lr", "hr"), [(20_000, 20_001), (100_000, 100_003)])
def test_columns_that_float32_skips_are_skipped(
    instruction_set: str, open_random: Open, lr: int, hr: int
) -> None:
    opened = open_random((5,), (4,), (9, 6))
    rows, columns = axis(1, 1), axis(lr, hr)
    assert np.diff(columns.nearest).max() == 2
    given = opened.bundle.tables(1, lr)
    window, region = whole(rows, columns)
    tables, place = opened.tables(given, window), opened.backend.place(rows, columns)
    expected = softmax(opened.bundle.expected("classifier", given["classifier"], rows, columns))
    found = opened.backend.probabilities(tables, place, region)
    np.testing.assert_allclose(found, expected, rtol=0, atol=NEAR)


@pytest.mark.parametrize("network", NETWORKS[:1] + NETWORKS[5:7], ids=str)
def test_the_graphs_give_the_same(
    instruction_set: str, open_random: Open, network: tuple[tuple[int, ...], ...]
) -> None:
    opened = open_random(*network)
    bundle, M = opened.bundle, len(network) - 1
    models = {"classifier": dense_head("classifier", bundle.made, False, classes=M)}
    models["upsampler_0"] = dense_head("upsampler_0", bundle.made, False, classes=None)
    models |= {f"upsampler_{j}": sparse_head(f"upsampler_{j}", bundle.made, False) for j in range(1, M)}
    graphs = GraphBackend(
        bundle,
        {name: open_model(model.SerializeToString(), name) for name, model in models.items()},
        name="graphs",
        provider="",
        precision="fp32",
        device="cpu",
        block=1,
        chunk=1000,
    )
    rows, columns = axis(8, 19), axis(30, 95)
    given = bundle.tables(8, 30)
    window, region = whole(rows, columns)
    classes = some_classes(region, M)
    dense = {name: np.ascontiguousarray(given[name].transpose(0, 2, 1)) for name in given}
    theirs = Tables(
        window,
        dense["classifier"],
        (dense["upsampler_0"], *(given[f"upsampler_{j}"] for j in range(1, M))),
    )
    ours, place = opened.tables(given, window), opened.backend.place(rows, columns)
    expected = graphs.probabilities(theirs, graphs.place(rows, columns), region)
    np.testing.assert_allclose(opened.backend.probabilities(ours, place, region), expected, rtol=0, atol=NEAR)
    expected = graphs.residuals(theirs, graphs.place(rows, columns), region, classes)
    found = opened.backend.residuals(ours, place, region, classes)
    np.testing.assert_allclose(found, expected, rtol=0, atol=NEAR * float(np.abs(expected).max()))


@pytest.mark.parametrize(("rows_each", "columns_each"), [(1, 1000), (3, 7), (5, 64), (1000, 33)])
def test_blocks_and_threads_change_no_byte(
    instruction_set: str, open_random: Open, rows_each: int, columns_each: int
) -> None:
    opened = open_random((10, 10), (20, 20), (37, 37))
    rows, columns = axis(9, 23), axis(60, 151)
    window, region = whole(rows, columns)
    tables = opened.tables(opened.bundle.tables(9, 60), window)
    place = opened.backend.place(rows, columns)
    classes = some_classes(region, 2)
    probabilities = opened.backend.probabilities(tables, place, region)
    residuals = opened.backend.residuals(tables, place, region, classes)

    def compare(part: Region) -> None:
        y, x = slice(part.top, part.bottom), slice(part.left, part.right)
        found = opened.backend.probabilities(tables, place, part)
        np.testing.assert_array_equal(found, probabilities[y, :, x])
        found = opened.backend.residuals(tables, place, part, classes[y, x])
        np.testing.assert_array_equal(found, residuals[y, :, x])

    parts = [
        Region(top, min(top + rows_each, 23), left, min(left + columns_each, 151))
        for top in range(0, 23, rows_each)
        for left in range(0, 151, columns_each)
    ]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(compare, parts))


def test_tables_and_classes_may_lie_at_any_address(instruction_set: str, open_random: Open) -> None:
    opened = open_random((10,), (20,), (37,))
    rows, columns = axis(5, 10), axis(33, 66)
    window, region = whole(rows, columns)
    tables = opened.tables(opened.bundle.tables(5, 33), window)
    shifted = np.empty(tables.classifier.size + 1, dtype=np.float32)[1:].reshape(tables.classifier.shape)
    shifted[:] = tables.classifier
    classes = some_classes(region, 2)
    odd = np.empty(classes.size + 3, dtype=np.uint8)[3:].reshape(classes.shape)
    odd[:] = classes
    place = opened.backend.place(rows, columns)
    np.testing.assert_array_equal(
        opened.backend.residuals(Tables(window, shifted, ()), place, region, odd),
        opened.backend.residuals(tables, place, region, classes),
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("head", [0, 1, 2])
def test_what_is_not_finite_is_refused_with_the_place(
    instruction_set: str, open_random: Open, head: int, value: float
) -> None:
    opened = open_random((6,), (6,), (6,))
    rows, columns = axis(4, 8), axis(20, 40)
    window, region = whole(rows, columns)
    tables = opened.tables(opened.bundle.tables(4, 20), window)
    # ReLU hides a NaN or a negative infinity from what follows it.
    tables.classifier[3, 19, 16 * head + 5] = value
    place = opened.backend.place(rows, columns)
    run: Callable[[], Any] = partial(opened.backend.probabilities, tables, place, region)
    if head > 0:
        classes = np.full(region.shape, head - 1, dtype=np.uint8)
        run = partial(opened.backend.residuals, tables, place, region, classes)
    with pytest.raises(BackendError, match=r"the block at row 0, column 0 gives NaN or infinity"):
        run()


def test_large_logits_saturate(instruction_set: str, open_random: Open) -> None:
    opened = open_random((), (), ())
    rows, columns = axis(1, 1), axis(40, 40)
    window, region = whole(rows, columns)
    tables = opened.tables(opened.bundle.tables(1, 40), window)
    tables.classifier[0, :, 0] = np.linspace(-2000, 2000, 40)
    found = opened.backend.probabilities(tables, opened.backend.place(rows, columns), region)[0, 0]
    assert found[0] == pytest.approx(0, abs=1e-37)
    assert found[-1] == 1
    assert (np.diff(found) >= 0).all()
