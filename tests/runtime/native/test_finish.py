"""Composing in native kernels, against NumPy."""

from typing import Any

import numpy as np
import pytest

from pcsr.runtime import compose
from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.compose import Patch
from pcsr.runtime.geometry import axis
from pcsr.runtime.native import open_native
from pcsr.runtime.native.backend import NativeBackend
from pcsr.runtime.shipped import shipped_bundle
from pcsr.runtime.tiling import Region

FULL = {"uint8": 255, "uint16": 65535, "float32": 1}
# Input and output sizes: single pixels, scale 1 (where float32 skips columns), whole, fractional, each axis its own.
SIZES = [
    ((1, 1), (1, 1)),
    ((1, 1), (3, 5)),
    ((2, 777), (2, 777)),
    ((9, 20), (18, 40)),
    ((7, 33), (28, 132)),
    ((6, 40), (22, 61)),
    ((3, 5), (40, 300)),
]


@pytest.fixture
def backend(instruction_set: str) -> NativeBackend:
    return open_native(read_bundle(shipped_bundle("fsrcnn")), precision="fp32", threads=1)


def random_picture(h: int, w: int, channels: int | None, dtype: str, *, seed: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (h, w) if channels is None else (h, w, channels)
    if dtype == "float32":
        return (rng.random(shape) * 1.5 - 0.2).astype(np.float32)
    return rng.integers(0, FULL[dtype] + 1, shape).astype(dtype)


def both(
    backend: NativeBackend,
    picture: np.ndarray,
    size: tuple[int, int],
    inner: Region | None = None,
    **given: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """What NumPy and the kernels write, in a frame of other values."""
    rows, columns = axis(picture.shape[0], size[0]), axis(picture.shape[1], size[1])
    inner = inner or Region(0, size[0], 0, size[1])
    refined = given.get("refined", False)
    region = inner.grown(1 if refined else 0, *size)
    rng = np.random.default_rng(4)
    residual = rng.normal(scale=0.2, size=(region.shape[0], 3, region.shape[1])).astype(np.float32)
    classes = (rng.random(region.shape) < given.get("heavy", 0.1)).astype(np.uint8) * 2
    written = []
    for finish in (compose.finish, backend.finish):
        canvas = np.full((size[0] + 2, size[1] + 2, *picture.shape[2:]), 7, dtype=picture.dtype)
        out = canvas[1:-1, 1:-1][inner.top : inner.bottom, inner.left : inner.right]
        finish(residual.copy(), classes, Patch(picture, rows, columns, region, inner, refined, out))
        written.append(canvas)
    return written[0], written[1]


def assert_equal_but_for_ties(found: np.ndarray, expected: np.ndarray) -> None:
    if found.dtype == np.float32:
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        return
    off = np.abs(found.astype(int) - expected)
    assert off.max() <= 1
    # In 16 bits a level is as fine as a float's last digits.
    assert (off != 0).mean() < (1e-3 if found.dtype == np.uint8 else 0.05)


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("dtype", list(FULL))
@pytest.mark.parametrize("channels", [None, 1, 3, 4])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_are_those_of_numpy(
    backend: NativeBackend,
    size: tuple[tuple[int, int], tuple[int, int]],
    channels: int | None,
    dtype: str,
    refined: bool,
) -> None:
    expected, found = both(backend, random_picture(*size[0], channels, dtype), size[1], refined=refined)
    assert_equal_but_for_ties(found, expected)


@pytest.mark.parametrize("inner", [Region(0, 9, 5, 40), Region(7, 18, 0, 33), Region(3, 4, 17, 18)], ids=str)
@pytest.mark.parametrize("refined", [False, True])
def test_a_part_is_written_where_it_belongs_and_nothing_else(
    backend: NativeBackend, inner: Region, refined: bool
) -> None:
    picture = random_picture(9, 20, 3, "uint8")
    expected, found = both(backend, picture, (18, 40), inner, refined=refined)
    assert_equal_but_for_ties(found, expected)
    untouched = expected == 7
    np.testing.assert_array_equal(found[untouched], expected[untouched])


@pytest.mark.parametrize("heavy", [0.0, 0.02, 0.6, 1.0])
def test_refinement_is_that_of_numpy_however_many_pixels_are_heavy(
    backend: NativeBackend, heavy: float
) -> None:
    picture = random_picture(7, 33, 3, "float32")
    expected, found = both(backend, picture, (28, 132), refined=True, heavy=heavy)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_blocks_change_no_byte(backend: NativeBackend) -> None:
    picture = random_picture(6, 40, 4, "float32")
    rows, columns = axis(6, 22), axis(40, 61)
    region = Region(0, 22, 0, 61)
    rng = np.random.default_rng(5)
    residual = rng.normal(size=(22, 3, 61)).astype(np.float32)
    classes = (rng.random((22, 61)) < 0.2).astype(np.uint8)
    whole, parts = np.empty((22, 61, 4), np.float32), np.empty((22, 61, 4), np.float32)
    backend.finish(residual.copy(), classes, Patch(picture, rows, columns, region, region, True, whole))
    for top in range(0, 22, 5):
        for left in range(0, 61, 23):
            inner = Region(top, min(top + 5, 22), left, min(left + 23, 61))
            grown = inner.grown(1, 22, 61)
            y, x = slice(grown.top, grown.bottom), slice(grown.left, grown.right)
            out = parts[inner.top : inner.bottom, inner.left : inner.right]
            given = residual[y, :, x].copy(), classes[y, x]
            backend.finish(*given, Patch(picture, rows, columns, grown, inner, True, out))
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("dtype", list(FULL))
@pytest.mark.parametrize(
    "view",
    [
        lambda picture: picture[::-1],
        lambda picture: picture[:, ::-2],
        lambda picture: picture[..., ::-1],
        lambda picture: picture.transpose(1, 0, 2),
        lambda picture: np.broadcast_to(picture[:, :1], picture.shape),
    ],
    ids=["upside down", "every other column", "channels the other way", "columns first", "a column repeated"],
)
def test_a_picture_is_read_as_it_lies_in_memory(backend: NativeBackend, dtype: str, view: Any) -> None:
    picture = view(random_picture(9, 20, 3, dtype))
    h, w = picture.shape[:2]
    copied = both(backend, np.ascontiguousarray(picture), (2 * h, 3 * w))
    for found, expected in zip(both(backend, picture, (2 * h, 3 * w)), copied, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_samples_may_lie_at_any_address(backend: NativeBackend) -> None:
    picture = random_picture(9, 20, 3, "float32")
    shifted = np.empty(picture.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(picture.shape)
    shifted[:] = picture
    assert not shifted.flags.aligned
    np.testing.assert_array_equal(both(backend, shifted, (18, 60))[1], both(backend, picture, (18, 60))[1])


def test_halves_go_to_the_even_level(backend: NativeBackend) -> None:
    picture = np.zeros((1, 6, 1), np.uint8)
    region = Region(0, 1, 0, 6)
    # Products with 255 that are halves in float32, too.
    residual = np.repeat(np.float32([0.5, 1.5, 2.5, 127.5, -3, 300])[None, None] / 255, 3, axis=1)
    assert (residual[0, 0, :4] * 255 % 1 == 0.5).all()
    out = np.empty((1, 6, 1), np.uint8)
    patch = Patch(picture, axis(1, 1), axis(6, 6), region, region, False, out)
    backend.finish(residual.astype(np.float32), np.zeros((1, 6), np.uint8), patch)
    assert out.ravel().tolist() == [0, 2, 2, 128, 0, 255]
