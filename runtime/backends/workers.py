"""Several blocks at once: how many, and by which threads of Python where a backend has none of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

from pcsr.runtime.tiling import Region

__all__ = ["Workers"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Workers:
    """Who takes the blocks of a picture.

    Attributes:
        count: of blocks that may be worked on at once; their memory is planned for.
        threads: of the pool, as many or more.
        pool: shared with other pictures.
        eager: somebody waits for blocks that are done, to encode their rows meanwhile.
    """

    count: int
    threads: int
    pool: Executor
    eager: bool = False

    def each(self, work: Callable[[Region], T], blocks: Iterable[Region]) -> Iterator[T]:
        """Like `map` on the pool, a few blocks ahead, none left running when the caller stops."""
        # Blocks that wait take no memory, but the pool would start them: none do where not all threads may run.
        ahead = 2 * self.count if self.count == self.threads else self.count
        rest = iter(blocks)
        pending = [self.pool.submit(work, block) for block in itertools.islice(rest, ahead)]
        try:
            while pending:
                result = pending[0].result()
                del pending[0]
                yield result
                pending += [self.pool.submit(work, block) for block in itertools.islice(rest, 1)]
        finally:
            for future in pending:
                if not future.cancel():
                    future.exception()
