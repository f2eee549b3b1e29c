"""A picture cut into calls that fit the shapes which a set of engines takes.

Every engine has optimisation profiles: for each input the smallest and largest shape. Tiles are windows that the
backbone's profiles hold; the dense networks run on blocks of output rows and columns, the sparse ones on chunks of
routed pixels. docs/gpu.md says how the builder chooses the profiles, so that no picture is left outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pcsr.runtime.backends.engines import Profile
from pcsr.runtime.errors import BackendError
from pcsr.runtime.geometry import Axis
from pcsr.runtime.tiling import Region, Tile, equal_parts, plan_tiles

__all__ = ["Limits", "Piece", "limits", "plan_pieces"]

# What of the graphs' inputs a limit is read from: (input, axis). docs/bundle.md has their shapes.
WINDOW = (("lr", 2), ("lr", 3))
DENSE = {
    "table_rows": ("table", 0),
    "table_columns": ("table", 2),
    "rows": ("rows", 0),
    "columns": ("columns", 0),
}
SPARSE = {"table": ("table", 0), "points": ("pixel", 0)}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call of each graph may be given, over all engines of a precision.

    Attributes:
        windows: ((h, w) smallest, (h, w) largest) of the backbone, a pair each profile, in the engine's order.
        table: (h, w), largest table of the dense networks.
        block: (rows, columns) of output, largest of the dense networks.
        points: most pixels of a sparse call.
        flat: most input pixels of a sparse network's table.
    """

    windows: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    table: tuple[int, int]
    block: tuple[int, int]
    points: int
    flat: int

    @property
    def window(self) -> tuple[int, int]:
        """(h, w), the largest window that every graph takes."""
        h = max(high[0] for _, high in self.windows)
        w = min(max(high[1] for _, high in self.windows), self.table[1], self.flat)
        return max(1, min(h, self.flat // w)), w

    def profile(self, h: int, w: int) -> int:
        """Number of the first of the backbone's profiles that takes a window.

        Raises:
            BackendError: none does.
        """
        for number, (low, high) in enumerate(self.windows):
            if low[0] <= h <= high[0] and low[1] <= w <= high[1]:
                return number
        raise BackendError(
            f"no profile of the backbone's engine takes a {w}x{h} window; build the engines anew with pcsr-export"
        )

    def chunks(self, n: int) -> Iterator[tuple[int, int]]:
        """Cut n routed pixels into sparse calls: (first, end) of each."""
        return ((first, min(first + self.points, n)) for first in range(0, n, self.points))


@dataclass(frozen=True, slots=True)
class Piece:
    """A tile and how its output is cut for the dense networks.

    Attributes:
        tile: what the backbone is given and what output it stands for.
        profile: of the backbone.
        rows: edges between blocks, output rows from first to end.
        columns: edges between blocks, output columns.
    """

    tile: Tile
    profile: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def blocks(self) -> Iterator[Region]:
        """Output regions of the dense calls, in reading order."""
        for top, bottom in pairwise(self.rows):
            for left, right in pairwise(self.columns):
                yield Region(top, bottom, left, right)


def limits(engines: Mapping[str, Sequence[Profile]]) -> Limits:
    """What a set of engines takes.

    Args:
        engines: profiles of each graph's engine, by the names of the bundle's graphs.

    Raises:
        BackendError: a graph or an input is missing, or a smallest shape is too large to cut pictures for.
    """

    def side(graph: str, profile: Profile, where: tuple[str, int], end: str) -> int:
        try:
            found: int = getattr(profile[where[0]], end)[where[1]]
        except (KeyError, IndexError) as error:
            raise BackendError(
                f"the engine of graph {graph} has no profile of input {where[0]}; build it anew"
            ) from error
        if end == "min" and graph != "backbone" and found > 1:
            raise BackendError(
                f"the engine of graph {graph} takes no less than {found} along input {where[0]}; build it anew"
            )
        return found

    if not {"backbone", "classifier", "upsampler_0"} <= engines.keys():
        raise BackendError(f"engines of {', '.join(engines) or 'no graph'} are no full set; build the others")

    def most(graphs: Sequence[str], where: tuple[str, int]) -> int:
        """The largest that the first profile of all these graphs takes."""
        for graph in graphs:
            side(graph, engines[graph][0], where, "min")
        return min(side(graph, engines[graph][0], where, "max") for graph in graphs)

    dense = ["classifier", "upsampler_0"]
    sparse = [graph for graph in engines if graph not in (*dense, "backbone")]
    blocks = {name: most(dense, where) for name, where in DENSE.items()}
    calls = {name: most(sparse, where) for name, where in SPARSE.items()}
    low, high = (
        [
            (side("backbone", p, WINDOW[0], end), side("backbone", p, WINDOW[1], end))
            for p in engines["backbone"]
        ]
        for end in ("min", "max")
    )
    return Limits(
        windows=tuple(zip(low, high, strict=True)),
        table=(blocks["table_rows"], blocks["table_columns"]),
        block=(blocks["rows"], blocks["columns"]),
        points=calls["points"],
        flat=calls["table"],
    )


def plan_pieces(
    rows: Axis, columns: Axis, limit: Limits, *, halo: int, tile: int | None = None, margin: int = 0
) -> Iterator[Piece]:
    """Cut a picture.

    Args:
        rows: of the picture.
        columns: of the picture.
        limit: of the engines.
        halo: input pixels that the backbone sees on each side of a pixel.
        tile: largest side of a tile in input pixels, without its halo; None: what the engines take.
        margin: output pixels around a tile that are computed with it; 1 for refinement.

    Raises:
        BackendError: the engines take no window of this picture.
    """
    sides = (
        _side(rows.lr, limit.window[0], halo, tile),
        _side(columns.lr, limit.window[1], halo, tile),
    )
    down: dict[tuple[int, int], tuple[int, ...]] = {}
    for piece in plan_tiles(rows, columns, sides, halo=halo):
        hr = piece.hr.grown(margin, rows.hr, columns.hr)
        if (hr.top, hr.bottom) not in down:
            down[hr.top, hr.bottom] = _row_edges(rows, hr.top, hr.bottom, limit)
        yield Piece(
            tile=piece,
            profile=limit.profile(*piece.window.shape),
            rows=down[hr.top, hr.bottom],
            columns=_even_edges(hr.left, hr.right, limit.block[1]),
        )


def _side(lr: int, window: int, halo: int, tile: int | None) -> int:
    """Side of the tiles along an axis: as few as possible, and all about the same."""
    whole = lr if tile is None else min(tile, lr)
    # What a tile computes, one pixel around it for refinement, and what the backbone sees beyond.
    margin = 2 * (halo + 1)
    if min(whole + margin, lr) > window:
        if window <= margin:
            raise BackendError(
                f"the engines take windows of {window} input pixels and this backbone needs {margin + 1} for the "
                "smallest tile; build them anew with a larger --max-lr"
            )
        whole = min(whole, window - margin)
    return equal_parts(lr, whole)


def _even_edges(first: int, end: int, most: int) -> tuple[int, ...]:
    pieces = -(-(end - first) // most)
    step = -(-(end - first) // pieces)
    return (*range(first, end, step), end)


def _row_edges(rows: Axis, top: int, bottom: int, limit: Limits) -> tuple[int, ...]:
    """As many rows as a block may have, ending with an input row's last output row where one does."""
    nearest, edges = rows.nearest, [top]
    while edges[-1] < bottom:
        start = edges[-1]
        end = min(start + limit.block[0], bottom)
        # No more input rows than a table may have.
        end = min(end, int(nearest.searchsorted(nearest[start] + limit.table[0])))
        if end < bottom:
            # Output rows of one input row share work, so they are kept together.
            whole = int(nearest.searchsorted(nearest[end]))
            end = whole if whole > start else end
        edges.append(end)
    return tuple(edges)
