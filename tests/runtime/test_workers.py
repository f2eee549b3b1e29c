"""Blocks on the workers' pool: in order, no more at once than there is memory for, none left behind."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from pcsr.runtime.backends import Workers
from pcsr.runtime.tiling import Region

BLOCKS = [Region(top, top + 1, 0, 10) for top in range(20)]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as opened:
        yield opened


def test_results_come_in_order(pool: ThreadPoolExecutor) -> None:
    def work(block: Region) -> int:
        time.sleep(0.001 * (block.top % 3))
        return block.top

    assert list(Workers(4, 4, pool).each(work, BLOCKS)) == list(range(20))
    assert list(Workers(4, 4, pool).each(work, [])) == []


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_more_blocks_run_at_once_than_there_is_memory_for(pool: ThreadPoolExecutor, count: int) -> None:
    running, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(count)

    def work(block: Region) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        # The first ones, who wait for one another, show that no fewer may run.
        if block.top < count:
            together.wait(timeout=60)
        time.sleep(0.002)
        with lock:
            running -= 1

    assert len(list(Workers(count, 4, pool).each(work, BLOCKS))) == 20
    assert most == count


def test_whoever_stops_leaves_no_work_running(pool: ThreadPoolExecutor) -> None:
    begun: list[int] = []
    done: list[int] = []

    def work(block: Region) -> None:
        begun.append(block.top)
        time.sleep(0.002)
        done.append(block.top)

    results = Workers(4, 4, pool).each(work, iter(BLOCKS))
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert sorted(begun) == sorted(done)
    assert len(done) < 20


def test_an_interrupt_leaves_no_work_running(
    pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, done = threading.Event(), threading.Event()

    def work(block: Region) -> None:
        begun.set()
        time.sleep(0.2)
        done.set()

    def interrupted(future: Future[None], timeout: float | None = None) -> None:
        assert begun.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(Workers(1, 4, pool).each(work, BLOCKS))
    assert done.is_set()


def test_an_error_comes_at_its_blocks_turn(pool: ThreadPoolExecutor) -> None:
    def work(block: Region) -> int:
        if block.top in (5, 6):
            time.sleep(0.003 * (6 - block.top))
            raise ValueError(f"block {block.top}")
        return block.top

    results = Workers(4, 4, pool).each(work, BLOCKS)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="block 5"):
        next(results)
