"""Memory of tables goes from one picture to the next, and never to two at a time."""

import numpy as np

from pcsr.runtime.native.backend import ALIGNMENT, Room


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def test_what_nobody_has_goes_to_the_next() -> None:
    room = Room()
    first = room.array((40, 50, 16))
    at, rows = address(first), first[3:5]
    del first
    second = room.array((10, 16))
    assert address(second) != at, "a view of it is still there"
    del rows
    third = room.array((39, 50, 16))
    assert (address(third), third.shape, third.dtype) == (at, (39, 50, 16), np.float32)
    fourth = room.array((40, 50, 16))
    assert not np.shares_memory(third, fourth)
    for array in (second, third, fourth):
        assert address(array) % ALIGNMENT == 0


def test_the_largest_is_kept_and_no_other() -> None:
    room = Room()
    large, small = room.array((1000, 16)), room.array((10, 16))
    at = address(large)
    del large, small
    large, other = room.array((1000, 16)), room.array((10, 16))
    assert address(large) == at
    assert not np.shares_memory(large, other)
