"""One tile on the device: tables, probabilities, classes, colours. Everything here only enqueues work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcsr.runtime.backends.profiles import Limits, Piece
from pcsr.runtime.bundle import Manifest
from pcsr.runtime.device.arrays import DeviceArray, Session, Stream
from pcsr.runtime.device.kernels import CHUNK
from pcsr.runtime.device.place import Place, feed_terms
from pcsr.runtime.tiling import Region

__all__ = ["Block", "Output", "PictureOnDevice", "TileTables", "TileWork"]


@dataclass(frozen=True, slots=True)
class PictureOnDevice:
    """An input picture.

    Attributes:
        values: (h, w, channels) uint8, uint16 or float32.
        shape: as the caller gave it; grey may be (h, w).
        ready: when it is all there; None: it is.
        on_host: whether it came from the host, where the result goes then.
    """

    values: DeviceArray
    shape: tuple[int, ...]
    ready: Any
    on_host: bool

    @property
    def channels(self) -> int:
        """1, 3 or 4."""
        return self.values.shape[2]


@dataclass(frozen=True, slots=True)
class Output:
    """Where the picture is put together.

    Attributes:
        image: (H, W, channels) in the input's type.
        class_map: (H, W) uint8.
        counts: (tiles, M) uint64, pixels of each class.
        flags: (tiles,) int32, not 0 where a colour is NaN or infinite.
    """

    image: DeviceArray
    class_map: DeviceArray
    counts: DeviceArray
    flags: DeviceArray


@dataclass(frozen=True, slots=True)
class TileTables:
    """Tables of every per-pixel network over a window, classifier first."""

    window: Region
    arrays: tuple[DeviceArray, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Output pixels that the per-pixel networks are given at once.

    Attributes:
        inner: pixels that it makes.
        region: the same with the margin that refinement reads.
        classes: (rows, columns) of `region`, uint8.
        starts: where each chunk's pixels of each class begin.
    """

    inner: Region
    region: Region
    classes: DeviceArray
    starts: DeviceArray


@dataclass(frozen=True, slots=True)
class TileWork:
    """Enqueues the work of one picture's tiles on one stream, in one precision.

    Attributes:
        stream: to work on.
        session: runs the graphs on it.
        manifest: of the bundle.
        table_dtype: float16 or float32.
        picture: the input.
        place: its geometry.
        limits: what the graphs may be given.
        refine: whether blocks have a margin.
    """

    stream: Stream
    session: Session
    manifest: Manifest
    table_dtype: type[np.generic]
    picture: PictureOnDevice
    place: Place
    limits: Limits
    refine: bool

    def tables(self, piece: Piece, flag: DeviceArray) -> TileTables:
        """Run the backbone; the flag is raised where a table is NaN or infinite."""
        stream, window = self.stream, piece.tile.window
        rows, columns = window.shape
        _, w, channels = self.picture.values.shape
        lr = stream.array((1, 3, rows, columns), np.float32)
        kernel = f"window_{self.picture.values.dtype.name}"
        stream.launch(
            kernel,
            window.pixels,
            self.picture.values,
            w,
            channels,
            window.top,
            window.left,
            rows,
            columns,
            lr,
        )
        outputs = []
        for number, C in enumerate(self.manifest.table_channels):
            # Classifier and class 0 are dense networks, the others sparse: docs/routing.md, section 3.
            shape = (rows, C, columns) if number < 2 else (rows, columns, C)
            outputs.append(stream.array(shape, self.table_dtype))
        self.session.run("backbone", {"lr": lr}, outputs, profile=piece.profile)
        for table in outputs:
            self._check(table, flag)
        return TileTables(window, tuple(outputs))

    def survey(self, piece: Piece, tables: TileTables, difficulties: DeviceArray, flag: DeviceArray) -> None:
        """Difficulties of the tile's own pixels to their place in the picture's (H, W)."""
        for region in piece.blocks():
            probability = self._probability(tables, region, flag)
            rows, columns = region.shape
            width = difficulties.shape[1]
            self.stream.launch(
                "store_difficulties",
                region.pixels,
                probability,
                rows,
                columns,
                width,
                region.top,
                region.left,
                difficulties,
            )

    def classes(
        self, kernel: str, tables: TileTables, region: Region, by: DeviceArray, flag: DeviceArray
    ) -> DeviceArray:
        """Classes of a region, (rows, columns), by its probabilities.

        Args:
            kernel: "classes_by_thresholds" or "classes_by_argmax".
            tables: of the tile.
            region: of the output.
            by: thresholds or weights.
            flag: raised where a probability is NaN or infinite.
        """
        probability = self._probability(tables, region, flag)
        classes = self.stream.array(region.shape, np.uint8)
        self.stream.launch(kernel, region.pixels, probability, *region.shape, by, classes)
        return classes

    def classes_of_region(
        self, difficulties: DeviceArray, region: Region, thresholds: DeviceArray
    ) -> DeviceArray:
        """The same from the picture's difficulties."""
        classes = self.stream.array(region.shape, np.uint8)
        self.stream.launch(
            "classes_of_region",
            region.pixels,
            difficulties,
            difficulties.shape[1],
            region.top,
            region.left,
            *region.shape,
            thresholds,
            classes,
        )
        return classes

    def block(self, inner: Region, region: Region, classes: DeviceArray, totals: DeviceArray) -> Block:
        """Count a region's pixels of each class into `totals`, (M,) int32."""
        chunks = -(-region.pixels // CHUNK)
        starts = self.stream.array((chunks, self.manifest.classes), np.uint32)
        self.stream.launch("count_classes", region.pixels, classes, region.pixels, starts)
        self.stream.launch("scan_counts", 1, chunks, starts, totals)
        return Block(inner, region, classes, starts)

    def residual(self, tables: TileTables, block: Block, counts: Sequence[int]) -> DeviceArray:
        """(rows, 3, columns) of the block's region: class 0 densely, the others on their pixels.

        Args:
            tables: of the tile.
            block: of it.
            counts: pixels of each class in the block's region.
        """
        region, stream = block.region, self.stream
        rows, columns = region.shape
        if counts[0]:
            out = self._dense("upsampler_0", tables.arrays[1], tables.window, region, 3)
        else:
            out = stream.array((rows, 3, columns), np.float32)
        routed = sum(counts[1:])
        if not routed:
            return out
        window = tables.window
        pixel, row, column = (stream.array((routed,), np.int32) for _ in range(3))
        stream.launch(
            "compact_classes",
            region.pixels,
            block.classes,
            region.pixels,
            columns,
            block.starts,
            self.place.y.nearest.part(region.top, (rows,)),
            self.place.x.nearest.part(region.left, (columns,)),
            window.top,
            window.left,
            window.shape[1],
            pixel,
            row,
            column,
        )
        first = 0
        for j in range(1, len(counts)):
            if counts[j]:
                indices = {
                    name: array.part(first, (counts[j],))
                    for name, array in (("pixel", pixel), ("row", row), ("column", column))
                }
                self._sparse(j, tables.arrays[1 + j], indices, region, out)
            first += counts[j]
        return out

    def finish(self, block: Block, residual: DeviceArray, output: Output, number: int) -> None:
        """Colours of the block's inner pixels into the picture; `number` is the tile's, for counts and flag."""
        inner, region, place, M = block.inner, block.region, self.place, self.manifest.classes
        _, w, channels = self.picture.values.shape
        H, W = output.class_map.shape
        self.stream.launch(
            f"finish_{self.picture.values.dtype.name}",
            inner.pixels,
            self.picture.values,
            w,
            channels,
            place.y.low,
            place.y.high,
            place.y.weight,
            place.x.low,
            place.x.high,
            place.x.weight,
            residual,
            block.classes,
            region.top,
            region.left,
            region.shape[1],
            inner.top - region.top,
            inner.left - region.left,
            *inner.shape,
            H,
            W,
            int(self.refine),
            output.image,
            output.class_map,
            output.counts.part(number * M, (M,)),
            output.flags.part(number, (1,)),
        )

    def _probability(self, tables: TileTables, region: Region, flag: DeviceArray) -> DeviceArray:
        planes = 1 if self.manifest.classes == 2 else self.manifest.classes
        probability = self._dense("classifier", tables.arrays[0], tables.window, region, planes)
        self._check(probability, flag)
        return probability

    def _dense(
        self, graph: str, table: DeviceArray, window: Region, region: Region, planes: int
    ) -> DeviceArray:
        stream, nearest = self.stream, self.place.rows.nearest
        rows, columns = region.shape
        first, last = int(nearest[region.top]), int(nearest[region.bottom - 1])
        _, C, w = table.shape
        row_terms, column_terms = feed_terms(stream, self.place, graph, region, dense=True)
        feed = {
            "table": table.part((first - window.top) * C * w, (last - first + 1, C, w)),
            "rows": self._indices(self.place.y.nearest.part(region.top, (rows,)), first),
            "columns": self._indices(self.place.x.nearest.part(region.left, (columns,)), window.left),
            "row_terms": row_terms,
            "column_terms": column_terms,
        }
        out = stream.array((rows, planes, columns), np.float32)
        self.session.run(graph, feed, [out])
        return out

    def _sparse(
        self, j: int, table: DeviceArray, indices: Mapping[str, DeviceArray], region: Region, out: DeviceArray
    ) -> None:
        stream, graph, columns = self.stream, f"upsampler_{j}", region.shape[1]
        h, w, C = table.shape
        row_terms, column_terms = feed_terms(stream, self.place, graph, region, dense=False)
        fixed = {"table": table.part(0, (h * w, C)), "row_terms": row_terms, "column_terms": column_terms}
        for first, end in self.limits.chunks(indices["row"].size):
            n = end - first
            chunk = {name: array.part(first, (n,)) for name, array in indices.items()}
            rgb = stream.array((n, 3), np.float32)
            self.session.run(graph, {**fixed, **chunk}, [rgb])
            stream.launch("scatter_rgb", n, rgb, chunk["row"], chunk["column"], n, columns, out)

    def _indices(self, nearest: DeviceArray, first: int) -> DeviceArray:
        indices = self.stream.array(nearest.shape, np.int32)
        self.stream.launch("shift_indices", nearest.size, nearest, nearest.size, first, indices)
        return indices

    def _check(self, values: DeviceArray, flag: DeviceArray) -> None:
        half = values.dtype == np.float16
        # The kernel looks at half precision by its bits.
        seen = values.viewed_as(np.uint16) if half else values
        kernel = "find_nonfinite_float16" if half else "find_nonfinite_float32"
        self.stream.launch(kernel, seen.size, seen, seen.size, flag)
