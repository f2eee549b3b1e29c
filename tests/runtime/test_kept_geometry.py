"""Kept geometry: of one size at a time, within a part of the memory limit, and gone when it is closed."""

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from pcsr.runtime.geometry import Axis, axis
from pcsr.runtime.kept_geometry import KEPT_PART, KeptGeometry, geometry_bytes


class Place:
    """What a backend makes."""


@pytest.fixture
def backend() -> Any:
    """Bytes of a table as CARN has them."""
    return SimpleNamespace(table_bytes=512, place=lambda rows, columns: Place())


def test_the_last_sizes_are_kept_and_no_others(backend: Any) -> None:
    kept = KeptGeometry(backend, 1 << 30)
    rows, columns = axis(10, 20), axis(30, 60)
    first = kept.place(rows, columns)
    assert kept.place(axis(10, 20), axis(30, 60)) is first
    gone = weakref.ref(first)
    del first
    # The columns of the output, then of the input.
    for other in (axis(30, 61), axis(31, 61)):
        second = kept.place(rows, other)
        assert kept.place(rows, other) is second
        gc.collect()
        assert gone() is None
    assert kept.place(rows, columns) is not second


@pytest.mark.parametrize(("room", "same"), [(0, True), (-1, False)])
def test_what_is_larger_than_its_part_of_the_limit_is_not_kept(backend: Any, room: int, same: bool) -> None:
    rows, columns = axis(10, 20), axis(30, 60)
    assert geometry_bytes(backend, (20, 60)) == 80 * 512
    kept = KeptGeometry(backend, (80 * 512 + room) * KEPT_PART)
    assert (kept.place(rows, columns) is kept.place(rows, columns)) is same


def test_old_sizes_are_let_go_of_before_new_ones_are_made(backend: Any) -> None:
    alive: list[bool] = []
    kept = KeptGeometry(backend, 1 << 30)
    old = weakref.ref(kept.place(axis(10, 20), axis(30, 60)))

    def place(rows: Axis, columns: Axis) -> Place:
        gc.collect()
        alive.append(old() is not None)
        return Place()

    backend.place = place
    kept.place(axis(10, 21), axis(30, 60))
    assert alive == [False]


def test_closed_it_keeps_nothing(backend: Any) -> None:
    kept = KeptGeometry(backend, 1 << 30)
    rows, columns = axis(10, 20), axis(30, 60)
    place = weakref.ref(kept.place(rows, columns))
    kept.close()
    gc.collect()
    assert place() is None
    assert kept.place(rows, columns) is not kept.place(rows, columns)
