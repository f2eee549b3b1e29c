"""A bundle's graphs driven on NumPy arrays, whoever runs a graph.

The classifier and class 0 run densely on every pixel of a block: the table is expanded by rows and columns,
which shares work among the output rows of an input row and needs no index lists. The other classes run on the
pixels routed to them, in chunks that stay in cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.backends.protocol import Float, Painted, Surveyed, Tables
from pcsr.runtime.backends.steps import paint_by_steps, survey_by_steps
from pcsr.runtime.backends.workers import Workers
from pcsr.runtime.bundle import Bundle, head_weights
from pcsr.runtime.compose import Patch, finish
from pcsr.runtime.decision import Rule
from pcsr.runtime.distribution import NumpyPasses, Spread
from pcsr.runtime.errors import BackendError
from pcsr.runtime.geometry import Axis
from pcsr.runtime.manifest import Manifest
from pcsr.runtime.terms import Terms, terms
from pcsr.runtime.tiling import Region

__all__ = ["GraphBackend", "Run", "graph_bytes"]

Run = Callable[[Mapping[str, NDArray[Any]]], Sequence[NDArray[Any]]]
"""Runs one graph: inputs by name to outputs in order."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    rows: Axis
    columns: Axis
    classifier: Terms
    upsamplers: tuple[Terms, ...]


# ONNX Runtime's arena holds more than the live tensors, by fragments and scratch space (measured).
ARENA_OVERHEAD = 1.2


def graph_bytes(manifest: Manifest) -> int:
    """Bytes that the backbone's graph takes while it runs, per input pixel."""
    return int(manifest.working_bytes * ARENA_OVERHEAD)


class GraphBackend:
    """Runs the graphs of a bundle through callables; see `Backend` for what each method promises."""

    # The per-pixel networks' and that of composing (measured, rounded up).
    block_bytes = 1536

    def __init__(
        self,
        bundle: Bundle,
        graphs: Mapping[str, Run],
        *,
        name: str,
        provider: str,
        precision: str,
        device: str,
        block: int,
        chunk: int,
    ) -> None:
        """Take over graphs that are ready to run.

        Args:
            bundle: theirs.
            graphs: by name, like the manifest's.
            name: of the backend.
            provider: what runs them.
            precision: theirs.
            device: where they run.
            block: output pixels to be given at once.
            chunk: rows that an upsampler is given at once.
        """
        self.name, self.provider, self.precision, self.device = name, provider, precision, device
        self.block = block
        self._chunk = chunk
        self._graphs = dict(graphs)
        self._path = bundle.path
        self._channels = bundle.manifest.table_channels
        self.table_bytes = sum(self._channels) * (4 if precision == "fp32" else 2)
        self._working_bytes = graph_bytes(bundle.manifest) + self.table_bytes
        self._probabilities = 1 if bundle.manifest.classes == 2 else bundle.manifest.classes
        heads = ["classifier", *(f"upsampler_{j}" for j in range(bundle.manifest.classes))]
        weights = bundle.weights()
        widths = zip(heads, self._channels, strict=True)
        self._first = {head: head_weights(weights, head, width) for head, width in widths}

    def working_bytes(self, h: int, w: int) -> int:
        """The graph's, in proportion."""
        return h * w * self._working_bytes

    def place(self, rows: Axis, columns: Axis) -> _Place:
        """Row and column terms of every per-pixel network, for one picture."""
        classifier, *upsamplers = (terms(first, rows, columns) for first in self._first.values())
        return _Place(rows, columns, classifier, tuple(upsamplers))

    def tables(self, lr: Float, window: Region) -> Tables:
        """Run the backbone."""
        h, w = window.shape
        classifier, lightest, *others = self._channels
        shapes = [(h, classifier, w), (h, lightest, w), *((h, w, channels) for channels in others)]
        made = self._run("backbone", {"lr": np.ascontiguousarray(lr[None])}, *shapes)
        return Tables(window, made[0], tuple(made[1:]))

    def probabilities(self, tables: Tables, place: _Place, region: Region) -> Float:
        """Run the classifier on a block."""
        head, P = place.classifier, self._probabilities
        found = self._dense("classifier", tables.classifier, head, P, tables.window, place, region)
        return self._finite(found, region)

    def residuals(self, tables: Tables, place: _Place, region: Region, classes: NDArray[np.uint8]) -> Float:
        """Run class 0 on the whole block where it has any pixel, the others on theirs."""
        if (classes == 0).any():
            lightest = place.upsamplers[0]
            out = self._dense("upsampler_0", tables.upsamplers[0], lightest, 3, tables.window, place, region)
        else:
            rows, columns = region.shape
            out = np.empty((rows, 3, columns), dtype=np.float32)
        for j in range(1, len(place.upsamplers)):
            routed = np.flatnonzero(classes == j).astype(np.int32)
            if routed.size:
                self._sparse(j, routed, tables, place, region, out)
        return self._finite(out, region)

    def finish(self, residual: Float, classes: NDArray[np.uint8], patch: Patch) -> None:
        """Compose in NumPy."""
        finish(residual, classes, patch)

    def survey(
        self, tables: Tables, place: _Place, blocks: Iterable[Region], out: Float, workers: Workers
    ) -> Iterator[Surveyed]:
        """By its steps."""
        return survey_by_steps(self, tables, place, blocks, out, workers)

    def paint(
        self,
        tables: Tables,
        place: _Place,
        patch: Patch,
        blocks: Iterable[Region],
        rule: Rule,
        difficulties: Float | None,
        class_map: NDArray[np.uint8],
        workers: Workers,
    ) -> Iterator[Painted]:
        """By its steps."""
        return paint_by_steps(self, tables, place, patch, blocks, rule, difficulties, class_map, workers)

    def passes(self, spread: Spread) -> NumpyPasses:
        """Count in NumPy."""
        return NumpyPasses(spread)

    def _run(self, graph: str, feed: Mapping[str, NDArray[Any]], *shapes: Shape) -> Sequence[NDArray[Any]]:
        """Run a graph that is to give floating-point arrays of these shapes.

        Raises:
            BackendError: it gives others: its hash may be right, and it is not the bundle's graph.
        """
        made = self._graphs[graph](feed)
        # A graph may give sequences and texts, too.
        found = [
            each.shape if getattr(each, "dtype", np.dtype(object)).kind == "f" else None for each in made
        ]
        if found != list(shapes):
            raise BackendError(
                f"graph {graph} of {self._path} gave {_written(found)} instead of {_written(shapes)}; "
                "export the bundle anew with --force"
            )
        return made

    def _finite(self, values: Float, region: Region) -> Float:
        """The same values.

        Raises:
            BackendError: some are NaN or infinite.
        """
        if np.isfinite(values).all():
            return values
        raise BackendError(
            f"the block at row {region.top}, column {region.left} gives NaN or infinity in {self.precision}; its "
            "values are beyond what the network takes"
            + ("" if self.precision == "fp32" else ", so open the bundle with precision fp32")
        )

    def _dense(
        self,
        graph: str,
        table: NDArray[Any],
        head: Terms,
        channels: int,
        window: Region,
        place: _Place,
        region: Region,
    ) -> Float:
        y, x = slice(region.top, region.bottom), slice(region.left, region.right)
        nearest = place.rows.nearest[y]
        first, last = int(nearest[0]), int(nearest[-1])
        feed = {
            "table": table[first - window.top : last + 1 - window.top],
            "rows": nearest - np.int32(first),
            "columns": place.columns.nearest[x] - np.int32(window.left),
            "row_terms": head.rows[y, :, None],
            "column_terms": np.ascontiguousarray(head.columns[x].T)[None],
        }
        rows, columns = region.shape
        return self._run(graph, feed, (rows, channels, columns))[0]

    def _sparse(
        self, j: int, routed: NDArray[np.int32], tables: Tables, place: _Place, region: Region, out: Float
    ) -> None:
        table, head, window = tables.upsamplers[j], place.upsamplers[j], tables.window
        y, x = slice(region.top, region.bottom), slice(region.left, region.right)
        # The index of a pixel's input pixel in the flat table is a sum of a row's and a column's part.
        row_start = (place.rows.nearest[y] - np.int32(window.top)) * np.int32(table.shape[1])
        column_start = place.columns.nearest[x] - np.int32(window.left)
        fixed = {
            "table": table.reshape(-1, table.shape[-1]),
            "row_terms": head.rows[y],
            "column_terms": head.columns[x],
        }
        for start in range(0, routed.size, self._chunk):
            row, column = np.divmod(routed[start : start + self._chunk], np.int32(region.shape[1]))
            feed = {"pixel": row_start[row] + column_start[column], "row": row, "column": column, **fixed}
            out[row, :, column] = self._run(f"upsampler_{j}", feed, (len(row), 3))[0]

    def close(self) -> None:
        """Let go of the graphs."""
        self._graphs.clear()


def _written(shapes: Sequence[Shape | None]) -> str:
    """Like 48×3×64, 48×6×64; or "nothing"."""
    return (
        ", ".join("no floats" if each is None else "×".join(map(str, each)) for each in shapes) or "nothing"
    )
