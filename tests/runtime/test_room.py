"""Memory goes from one picture to the next, and never to two at a time."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pcsr.runtime import Upscaler
from pcsr.runtime.room import ALIGNMENT, Room


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


def test_the_smallest_that_is_large_enough_is_taken() -> None:
    room = Room()
    arrays = [room.array((rows, 16)) for rows in (1000, 10, 100)]
    large, _, middle = map(address, arrays)
    arrays.clear()
    first, second = room.array((50, 16)), room.array((50, 16))
    assert [address(first), address(second)] == [middle, large]


def test_nothing_is_kept_beside_what_is_larger() -> None:
    room = Room()
    small = room.array((10, 16))
    del small
    larger = room.array((1000, 16))
    assert room._spare == []
    del larger
    assert len(room._spare) == 1


def test_no_more_is_kept_than_an_eighth_of_the_memory_limit() -> None:
    room = Room(8 * 3000)
    arrays = [room.array((20, 16)) for _ in range(4)]
    arrays.clear()
    assert len(room._spare) == 2
    assert sum(each.size for each in room._spare) <= 3000


def test_threads_never_share_an_array() -> None:
    room = Room()

    def fill(number: int) -> bool:
        for _ in range(200):
            array = room.array((64, 16))
            array[...] = number
            if not (array == number).all():
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(fill, range(8)))


def test_nothing_is_kept_once_it_is_closed() -> None:
    room = Room()
    before, after = room.array((1000, 16)), room.array((10, 16))
    del before
    room.close()
    assert room._spare == []
    after[...] = 1
    del after
    assert room._spare == []


def test_a_closed_upscaler_keeps_no_memory_of_its_pictures(small_bundle: Path) -> None:
    with Upscaler.open(small_bundle, backend="native", threads=1) as up:
        up(np.zeros((40, 50, 3), np.uint8), scale=2, adaptive=True)
        rooms = up._resources.room, up._resources.backend._room
        assert all(room._spare for room in rooms)
    assert not any(room._spare for room in rooms)
