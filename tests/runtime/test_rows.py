"""Rows that are handed out while others are made, and rows that are read as they are needed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data

from pcsr.runtime import Upscaler
from pcsr.runtime.pictures.streamed import ReadRows, StreamedRows


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.chelsea()[60:110, 120:187])


@pytest.fixture
def up(small_bundle: Path) -> Iterator[Upscaler]:
    with Upscaler.open(small_bundle, threads=2) as opened:
        yield opened


@pytest.mark.parametrize("rule", [{}, {"adaptive": True}, {"budget": 0.4, "refine": True}])
@pytest.mark.parametrize("tile", [None, 16])
def test_rows_handed_out_are_the_picture(
    small_bundle: Path, photo: np.ndarray, rule: dict[str, Any], tile: int | None
) -> None:
    with Upscaler.open(small_bundle, threads=2, tile=tile) as up:
        expected = up(photo, scale=2.5, **rule)
        bands: list[tuple[np.ndarray, np.ndarray]] = []
        account = up.upscale_rows(photo, lambda *rows: bands.append(rows), scale=2.5, **rule)

    assert len(bands) == (1 if tile is None else 4)
    np.testing.assert_array_equal(np.concatenate([image for image, _ in bands]), expected.image)
    np.testing.assert_array_equal(np.concatenate([classes for _, classes in bands]), expected.class_map)
    assert (account.shares, account.decision, account.cost) == (
        expected.shares,
        expected.decision,
        expected.cost,
    )


@pytest.mark.parametrize("rule", [{}, {"adaptive": True}, {"budget": 0.4, "refine": True}])
@pytest.mark.parametrize("tile", [None, 30])
@pytest.mark.parametrize("backend", ["native", "onnxruntime"])
def test_rows_are_handed_out_before_their_tiles_are_complete(
    small_bundle: Path,
    photo: np.ndarray,
    rule: dict[str, Any],
    tile: int | None,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pcsr.runtime.native.backend.AT_ONCE_EAGER", 1)
    monkeypatch.setattr("pcsr.runtime.inference.HANDED_OUT", 1 << 16)
    with Upscaler.open(small_bundle, threads=1, tile=tile, backend=backend) as up:
        expected = up(photo, scale=14, **rule)
        bands: list[tuple[np.ndarray, np.ndarray]] = []
        up.upscale_rows(photo, lambda *rows: bands.append(rows), scale=14, **rule)

    assert len(bands) > (1 if tile is None else 2)
    assert all(len(image) == len(classes) > 0 for image, classes in bands)
    # Not row by row: whoever takes them is called for that.
    width = expected.class_map.shape[1]
    assert sum(len(classes) * width < 1 << 16 for _, classes in bands) <= (1 if tile is None else 2)
    np.testing.assert_array_equal(np.concatenate([image for image, _ in bands]), expected.image)
    np.testing.assert_array_equal(np.concatenate([classes for _, classes in bands]), expected.class_map)


@pytest.mark.parametrize("rule", [{}, {"adaptive": True}, {"budget": 0.4, "refine": True}])
@pytest.mark.parametrize("tile", [None, 16])
def test_rows_that_are_read_as_they_are_needed_give_the_same_picture(
    small_bundle: Path, photo: np.ndarray, rule: dict[str, Any], tile: int | None
) -> None:
    tall, held = np.concatenate([photo, photo[::-1], photo]), []

    def start() -> ReadRows:
        position = 0

        def read(top: int, out: np.ndarray) -> None:
            nonlocal position
            assert top == position, "from top to bottom, no row twice"
            position += len(out)
            held.append(len(out))
            out[:] = tall[top : top + len(out)]

        return read

    with Upscaler.open(small_bundle, threads=2, tile=tile) as up:
        expected = up(tall, scale=2.5, **rule)
        bands: list[np.ndarray] = []
        rows = StreamedRows(tall.shape, tall.dtype, start, name="tall")
        up.upscale_rows(rows, lambda image, _: bands.append(image), scale=2.5, **rule)

    np.testing.assert_array_equal(np.concatenate(bands), expected.image)
    if tile is not None:
        assert max(held) < 60


def test_what_takes_rows_can_end_the_work(up: Upscaler, photo: np.ndarray) -> None:
    def put(*rows: np.ndarray) -> None:
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        up.upscale_rows(photo, put, scale=2)
    assert up(photo, scale=2).image.shape == (100, 134, 3)
