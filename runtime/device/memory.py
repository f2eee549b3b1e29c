"""What a picture takes on the device, and who may have it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pcsr.runtime.backends.profiles import Limits, Piece, plan_pieces
from pcsr.runtime.bundle import Manifest
from pcsr.runtime.errors import BackendError, DeviceMemoryError
from pcsr.runtime.geometry import Axis

__all__ = ["SMALLEST_TILE", "MemoryGate", "Plan", "first_plan", "make_plan"]

SMALLEST_TILE = 64
# Output pixels that the per-pixel networks are given at once: enough to fill any GPU.
BLOCK_PIXELS = 1 << 20
# A block's residual, the indices and colours of routed pixels, their counts; in bytes per output pixel.
BLOCK_BYTES = 12 + 12 + 12 + 1
# A pool rounds sizes up and keeps pieces of other sizes (counted, not measured).
POOL_OVERHEAD = 1.1


@dataclass(frozen=True, slots=True)
class Plan:
    """How a picture is cut.

    Attributes:
        pieces: tiles and their blocks.
        side: largest side of a tile.
        limits: that the blocks were cut by; smaller than the engines' where blocks get a margin.
        kept: whether the tables of all tiles are kept between two sweeps.
        bytes: of the device's memory at the most, as far as it can be known.
    """

    pieces: Sequence[Piece]
    side: int
    limits: Limits
    kept: bool
    bytes: int


def make_plan(
    rows: Axis,
    columns: Axis,
    *,
    side: int,
    limits: Limits,
    manifest: Manifest,
    table_bytes: int,
    fixed_bytes: int,
    two_sweeps: bool,
    refine: bool,
    memory_limit: int,
) -> Plan:
    """Cut a picture into tiles of a side at the most.

    Args:
        rows: of the picture.
        columns: of the picture.
        side: in input pixels; the engines may take less.
        limits: of the engines.
        manifest: of the bundle.
        table_bytes: of a number in a table.
        fixed_bytes: what is there whatever the tile: input, output, difficulties.
        two_sweeps: whether tables may be kept between two.
        refine: whether blocks get a margin of one pixel.
        memory_limit: up to which tables are kept.
    """
    cut = _block_limits(limits, columns.hr, margin=int(refine))
    pieces = list(plan_pieces(rows, columns, cut, halo=manifest.halo, tile=side))
    planes = 1 if manifest.classes == 2 else manifest.classes
    table = sum(manifest.table_channels) * table_bytes
    windows = [piece.tile.window.pixels for piece in pieces]
    working = manifest.working_bytes * table_bytes // 4
    # Two layers of the widest per-pixel network; the first is as wide as its table.
    block_bytes = BLOCK_BYTES + 4 * planes + 2 * max(manifest.table_channels) * table_bytes
    largest = max(
        piece.tile.window.pixels * (table + 12)
        + max(
            piece.tile.window.pixels * working,
            # Classes of all blocks, and the rest for one block at a time.
            2 * piece.tile.hr.pixels + max(block.pixels for block in piece.blocks()) * block_bytes,
        )
        for piece in pieces
    )
    once = int((fixed_bytes + largest) * POOL_OVERHEAD)
    all_tables = int(sum(windows) * table * POOL_OVERHEAD)
    kept = two_sweeps and once + all_tables <= memory_limit
    actual = max(
        max(_core(rows, p.tile.hr.top, p.tile.hr.bottom), _core(columns, p.tile.hr.left, p.tile.hr.right))
        for p in pieces
    )
    return Plan(pieces, actual, cut, kept, once + (all_tables if kept else 0))


def _core(axis: Axis, first: int, end: int) -> int:
    """Input pixels that a range of output pixels is nearest to."""
    return int(axis.nearest[end - 1]) - int(axis.nearest[first]) + 1


def first_plan(
    rows: Axis,
    columns: Axis,
    *,
    asked: int | None,
    limits: Limits,
    manifest: Manifest,
    table_bytes: int,
    fixed_bytes: int,
    two_sweeps: bool,
    refine: bool,
    memory_limit: int,
) -> Plan:
    """The largest tiles that the engines and the memory take, or those that were asked for.

    Raises:
        DeviceMemoryError: the limit holds no tile.
        BackendError: the engines take no tile of this picture.
    """
    side = asked or max(rows.lr, columns.lr)
    while True:
        plan = make_plan(
            rows,
            columns,
            side=side,
            limits=limits,
            manifest=manifest,
            table_bytes=table_bytes,
            fixed_bytes=fixed_bytes,
            two_sweeps=two_sweeps,
            refine=refine,
            memory_limit=memory_limit,
        )
        if plan.bytes <= memory_limit:
            return plan
        if plan.side <= SMALLEST_TILE or asked:
            raise DeviceMemoryError(
                f"a {columns.lr}x{rows.lr} picture needs about {plan.bytes >> 20} MiB of the device's memory at "
                f"this output size in tiles of {plan.side}, and the limit is {memory_limit >> 20} MiB; "
                "raise the limit, or ask for a smaller output" + (" or smaller tiles" if asked else "")
            )
        side = max(SMALLEST_TILE, plan.side // 2)


def _block_limits(limits: Limits, width: int, *, margin: int) -> Limits:
    """Limits for blocks that are to grow by a margin, and no larger than is of use."""
    rows, columns = limits.block[0] - 2 * margin, limits.block[1] - 2 * margin
    table_rows = limits.table[0] - 2 * margin
    if min(rows, columns, table_rows) < 1:
        raise BackendError(
            f"the engines take blocks of {limits.block[1]}x{limits.block[0]} output pixels, too few to refine; "
            "build them anew with pcsr-export and larger profiles"
        )
    columns = min(columns, width)
    rows = min(rows, max(1, BLOCK_PIXELS // columns))
    return replace(limits, block=(rows, columns), table=(table_rows, limits.table[1]))


class MemoryGate:
    """Lets callers in, first come first served, as long as what they need together is there."""

    def __init__(self, limit: int) -> None:
        self._limit, self._taken = limit, 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, nbytes: int) -> Iterator[None]:
        """Wait until so much is free; more than there is waits until everything is."""
        nbytes = min(nbytes, self._limit)
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                self._changed.wait_for(
                    lambda: self._queue[0] is ticket and self._taken + nbytes <= self._limit
                )
                self._taken += nbytes
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._taken -= nbytes
                self._changed.notify_all()
