"""How a picture is cut: tiles on the input for the backbone, blocks on the output for the per-pixel networks.

Tiles are cut by input pixels; the output pixels of a tile are those whose nearest input pixel it holds. Its
window adds what the backbone sees beyond (the halo), so every feature is that of the whole picture. Rows and
columns are indexed globally, so nothing at a seam differs but the rounding of sums taken in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pcsr.runtime.errors import MemoryLimitError, OptionError
from pcsr.runtime.geometry import Axis

__all__ = ["Region", "RowsDone", "Tile", "blocks", "choose_tile", "equal_parts", "plan_tiles"]

MIN_TILE = 16
# Sides that a tile may have, at most. With the first, CARN sees 6 % of the pixels twice in each direction.
LADDER = (640, 512, 384, 256, 192, 128, 96, 64, 48, 32, MIN_TILE)


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle, half open: rows [top, bottom), columns [left, right)."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.bottom - self.top, self.right - self.left

    @property
    def pixels(self) -> int:
        """Rows times columns."""
        return (self.bottom - self.top) * (self.right - self.left)

    def grown(self, margin: int, height: int, width: int) -> Region:
        """With a margin on each side, as far as a picture of this size has it."""
        return Region(
            max(self.top - margin, 0),
            min(self.bottom + margin, height),
            max(self.left - margin, 0),
            min(self.right + margin, width),
        )


@dataclass(frozen=True, slots=True)
class Tile:
    """One piece of the picture.

    Attributes:
        lr: input pixels whose tables are needed: those nearest to `hr` and to one output pixel around it.
        window: `lr` with the halo, as far as the picture goes: what the backbone is given.
        hr: output pixels that this tile computes.
    """

    lr: Region
    window: Region
    hr: Region


def equal_parts(length: int, most: int) -> int:
    """How long parts of nearly equal length are, as few as there can be of at most `most`."""
    count = -(-length // most)
    return -(-length // count)


def plan_tiles(rows: Axis, columns: Axis, side: int | tuple[int, int], *, halo: int) -> list[Tile]:
    """Tiles of `side` input pixels (rows and columns, or the same for both), the last smaller; in reading order."""
    down, across = (side, side) if isinstance(side, int) else side
    return [
        _tile(
            rows, columns, Region(top, min(top + down, rows.lr), left, min(left + across, columns.lr)), halo
        )
        for top in range(0, rows.lr, down)
        for left in range(0, columns.lr, across)
    ]


def _tile(rows: Axis, columns: Axis, core: Region, halo: int) -> Tile:
    top, bottom = np.searchsorted(rows.nearest, (core.top, core.bottom))
    left, right = np.searchsorted(columns.nearest, (core.left, core.right))
    hr = Region(int(top), int(bottom), int(left), int(right))
    # Refinement looks one output pixel further: at a scale of 1 or more one input pixel, and two where float32 skips
    # one, as it does on axes of thousands of pixels that are hardly enlarged.
    around = hr.grown(1, rows.hr, columns.hr)
    lr = Region(
        min(core.top, int(rows.nearest[around.top])),
        max(core.bottom, int(rows.nearest[around.bottom - 1]) + 1),
        min(core.left, int(columns.nearest[around.left])),
        max(core.right, int(columns.nearest[around.right - 1]) + 1),
    )
    return Tile(lr=lr, window=lr.grown(halo, rows.lr, columns.lr), hr=hr)


def blocks(region: Region, rows: Axis, *, pixels: int, columns: int = 2048) -> Iterator[Region]:
    """Cut an output region into blocks of about so many pixels, whole input rows each, at most so many columns.

    Whole input rows, because the per-pixel networks share work among the output rows of one input row.
    """
    width = min(region.right - region.left, columns)
    target = max(1, pixels // max(width, 1))
    nearest = rows.nearest[region.top : region.bottom]
    starts = np.flatnonzero(np.diff(nearest, prepend=-1)) + region.top
    edges = [region.top]
    for start, end in zip(starts, [*starts[1:], region.bottom], strict=True):
        if end - edges[-1] > target and start > edges[-1]:
            edges.append(int(start))
    edges.append(region.bottom)
    for top, bottom in pairwise(edges):
        for left in range(region.left, region.right, width):
            yield Region(top, bottom, left, min(left + width, region.right))


class RowsDone:
    """Which rows of a region are complete, while its blocks are done one after another."""

    def __init__(self, blocks: Sequence[Region]) -> None:
        """Begin.

        Args:
            blocks: of the region, in reading order.
        """
        self._blocks = iter(blocks)
        self._right = max((block.right for block in blocks), default=0)
        self._above = self._left_over = 0

    def add(self, pixels: int) -> int:
        """The row above which everything is done after so many pixels more, those of whole blocks; 0 if none is."""
        self._left_over += pixels
        while self._left_over:
            block = next(self._blocks)
            self._left_over -= block.pixels
            if block.right == self._right:
                self._above = block.bottom
        return self._above


def choose_tile(
    h: int,
    w: int,
    *,
    halo: int,
    asked: int | None,
    fixed_bytes: int,
    window_bytes: Callable[[int, int], int],
    limit: int,
    bytes_per_row: int = 0,
) -> int:
    """Most that a side of the tiles may have: what was asked for, or the largest on the ladder that the limit holds.

    Args:
        h: input rows.
        w: input columns.
        halo: of the backbone, in input pixels.
        asked: side asked for by the caller.
        fixed_bytes: what the picture needs whatever the tile (input, output, probabilities).
        window_bytes: what a window of so many rows and columns needs while its tile is worked on.
        limit: bytes that a call may take.
        bytes_per_row: what an input row of a row of tiles needs while those are worked on.

    Returns:
        The side; one that covers the picture where that fits, so that it is not tiled. Tiles are `equal_parts` of it.

    Raises:
        MemoryLimitError: not even the smallest tile fits.
        OptionError: a side below 16 was asked for.
    """
    if asked is not None and asked < MIN_TILE:
        raise OptionError(f"tile is {asked}; it must be {MIN_TILE} input pixels or more")

    def needed(side: int) -> int:
        margin = 2 * (halo + 1)
        down, across = equal_parts(h, side), equal_parts(w, side)
        window = window_bytes(min(h, down + margin), min(w, across + margin))
        return fixed_bytes + down * bytes_per_row + window

    if asked is not None:
        if needed(asked) > limit:
            raise MemoryLimitError(
                f"tiles of {asked} need about {needed(asked) >> 20} MiB and the memory limit is {limit >> 20} MiB; "
                "ask for smaller tiles or a higher limit"
            )
        return asked
    # A picture no larger than a full tile is one tile, also where it is longer than the tile is wide.
    whole = max(h, w)
    if h * w <= LADDER[0] ** 2 and needed(whole) <= limit:
        return whole
    for side in LADDER:
        if needed(side) <= limit:
            return side
    raise MemoryLimitError(
        f"a {w}x{h} picture needs about {needed(MIN_TILE) >> 20} MiB at this output size and the memory limit is "
        f"{limit >> 20} MiB; raise the limit or ask for a smaller output"
    )
