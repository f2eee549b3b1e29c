"""The backend of native kernels; see `Backend` for what each method promises."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.backends.graphs import Run, graph_bytes
from pcsr.runtime.backends.protocol import Float, Painted, Surveyed, Tables
from pcsr.runtime.backends.workers import Workers
from pcsr.runtime.bundle import Bundle, head_weights
from pcsr.runtime.compose import Patch
from pcsr.runtime.decision import Rule
from pcsr.runtime.distribution import Spread
from pcsr.runtime.errors import BackendError
from pcsr.runtime.geometry import Axis
from pcsr.runtime.native.abi import PlaceArrays
from pcsr.runtime.native.library import NativePasses, open_library
from pcsr.runtime.room import Room
from pcsr.runtime.terms import terms
from pcsr.runtime.tiling import Region, equal_parts

__all__ = ["NativeBackend", "open_native"]

logger = logging.getLogger(__name__)

# Measured (docs/performance.md): of 16 k pixels they take more processor time in all, larger ones gain nothing.
BLOCK = 1 << 15
# Output pixels of each worker that are done in one call, in which no progress is told and no interrupt heard, and at
# whose end workers wait for one another: 1.5 million take a tenth of a second by AVX-512, half a second where all are
# heavy. Fewer where somebody waits for what is done.
AT_ONCE, AT_ONCE_EAGER = 48 * BLOCK, 8 * BLOCK
# Residuals and classes, and for M = 16 the probabilities, their products with weights and the argmax of these.
BLOCK_BYTES = 192
# Heads' parts of a table row begin at multiples of it, and kernels read a group of pixels beyond the last column.
UNIT, GROUP = 16, 64


class NativeBackend:
    """Runs a bundle's network by native kernels."""

    name = "native"
    precision = "fp32"
    device = "cpu"
    block = BLOCK
    block_bytes = BLOCK_BYTES

    def __init__(self, bundle: Bundle, *, threads: int, memory_limit: int | None = None) -> None:
        """Open the library and the network.

        Args:
            bundle: whose weights to run.
            threads: of the backbone.
            memory_limit: bytes that a picture may take; None: none is known.
        """
        library = open_library()
        self.provider = f"native {library.instruction_set}"
        weights = bundle.weights()
        heads = ["classifier", *(f"upsampler_{j}" for j in range(bundle.manifest.classes))]
        self._channels = bundle.manifest.table_channels
        self._first = [
            head_weights(weights, head, width) for head, width in zip(heads, self._channels, strict=True)
        ]
        self._path, self._threads = bundle.path, threads
        self._probabilities = 1 if bundle.manifest.classes == 2 else bundle.manifest.classes
        self._engine = library.open(bundle.manifest, weights)
        self.table_bytes = 4 * self._engine.row
        self._room = Room(memory_limit)
        self._backbone = _graph(bundle, self._engine.no_backbone, threads)
        self._graph_bytes = graph_bytes(bundle.manifest)

    def working_bytes(self, h: int, w: int) -> int:
        """What the kernels say; of a graph in their place its own, and tables twice."""
        tables = h * w * self.table_bytes
        if self._backbone is None:
            return tables + self._engine.working_bytes(h, w, self._threads)
        return 2 * tables + h * w * self._graph_bytes

    def place(self, rows: Axis, columns: Axis) -> PlaceArrays:
        """Row and column terms of every per-pixel network, for one picture, as the kernels read them."""
        stride = columns.hr + GROUP
        row_terms, column_terms = [], []
        for number, (first, channels) in enumerate(zip(self._first, self._channels, strict=True)):
            made = terms(first, rows, columns)
            row_terms.append(_widened(made.rows, _padded(channels)))
            dense = number < 2
            column_terms.append(
                _widened(made.columns.T, stride) if dense else _widened(made.columns, _padded(channels))
            )
        return PlaceArrays(rows.nearest, columns.nearest, row_terms, column_terms, stride)

    def tables(self, lr: Float, window: Region) -> Tables:
        """Run the backbone: one (h, w, row) array."""
        out = self._room.array((*window.shape, self._engine.row))
        lr = np.ascontiguousarray(lr)
        if self._backbone is None:
            self._engine.tables(lr, out, self._threads)
            return Tables(window, out, ())
        made = self._backbone({"lr": lr[None]})
        out[:] = 0
        start = 0
        for number, (table, channels) in enumerate(zip(made, self._channels, strict=True)):
            out[..., start : start + channels] = table.transpose(0, 2, 1) if number < 2 else table
            start += _padded(channels)
        return Tables(window, out, ())

    def probabilities(self, tables: Tables, place: PlaceArrays, region: Region) -> Float:
        """Run the classifier on a block."""
        rows, columns = region.shape
        out = np.empty((rows, self._probabilities, columns), dtype=np.float32)
        if not self._engine.probabilities(tables.classifier, tables.window, place, region, out):
            raise self._not_finite(region)
        return out

    def residuals(
        self, tables: Tables, place: PlaceArrays, region: Region, classes: NDArray[np.uint8]
    ) -> Float:
        """Run on every pixel of a block the upsampler of its class."""
        rows, columns = region.shape
        out = np.empty((rows, 3, columns), dtype=np.float32)
        classes = np.ascontiguousarray(classes)
        if not self._engine.residuals(tables.classifier, tables.window, place, region, classes, out):
            raise self._not_finite(region)
        return out

    def finish(self, residual: Float, classes: NDArray[np.uint8], patch: Patch) -> None:
        """Compose by kernels."""
        self._engine.finish(residual, np.ascontiguousarray(classes), patch)

    def survey(
        self, tables: Tables, place: PlaceArrays, blocks: Iterable[Region], out: Float, workers: Workers
    ) -> Iterator[Surveyed]:
        """Write the difficulty of every pixel of many blocks in one call, on threads of its own."""
        for some in _many(blocks, workers):
            done, bad = self._engine.survey(tables.classifier, tables.window, place, some, out, workers.count)
            if bad is not None:
                raise self._not_finite(bad)
            yield done

    def paint(
        self,
        tables: Tables,
        place: PlaceArrays,
        patch: Patch,
        blocks: Iterable[Region],
        rule: Rule,
        difficulties: Float | None,
        class_map: NDArray[np.uint8],
        workers: Workers,
    ) -> Iterator[Painted]:
        """Class, upsample and compose many blocks in one call, on threads of its own."""
        for some in _many(blocks, workers):
            done, bad = self._engine.paint(
                tables.classifier,
                tables.window,
                place,
                patch,
                some,
                rule,
                difficulties,
                class_map,
                workers.count,
            )
            if bad is not None:
                raise self._not_finite(patch.part(bad).region)
            yield done

    def passes(self, spread: Spread) -> NativePasses:
        """Count by kernels, on as many threads as the backbone."""
        return NativePasses(self._engine, self._threads)

    def close(self) -> None:
        """Let go of the network, and of memory that was kept."""
        self._engine.close()
        self._room.close()

    def _not_finite(self, region: Region) -> BackendError:
        return BackendError(
            f"the block at row {region.top}, column {region.left} gives NaN or infinity in fp32; its values are "
            "beyond what the network takes"
        )


def open_native(
    bundle: Bundle, *, precision: str, threads: int, memory_limit: int | None = None
) -> NativeBackend:
    """Open a bundle in native kernels.

    Args:
        bundle: whose weights to run; its graphs are not.
        precision: "fp32", or "auto", which is the same.
        threads: of the backbone, and most that work on blocks.
        memory_limit: bytes that a picture may take; None: none is known.

    Raises:
        BackendError: the library is missing or does not fit, or the precision is another.
        BundleError: the bundle has no such precision, or its weights are damaged.
        OptionError: the environment names an instruction set that is not there.
        MemoryLimitError: there is no memory for the weights.
    """
    if precision not in ("auto", "fp32"):
        raise BackendError(
            f"the native kernels compute in fp32 alone; for {precision} use the backend onnxruntime"
        )
    # Its weights would do, but a precision that a bundle lacks is lacking in every backend.
    bundle.graphs("fp32")
    return NativeBackend(bundle, threads=threads, memory_limit=memory_limit)


def _many(blocks: Iterable[Region], workers: Workers) -> Iterator[list[Region]]:
    """As many blocks at a time as are done in one call, one for each worker at least; about the same pixels in each."""
    waiting = list(blocks)
    if not waiting:
        return
    most = workers.count * (AT_ONCE_EAGER if workers.eager else AT_ONCE)
    part = equal_parts(sum(block.pixels for block in waiting), most)
    some: list[Region] = []
    pixels = 0
    for block in waiting:
        some.append(block)
        pixels += block.pixels
        if pixels >= part and len(some) >= workers.count:
            yield some
            some, pixels = [], 0
    if some:
        yield some


def _graph(bundle: Bundle, missing: str, threads: int) -> Run | None:
    """The backbone's graph, where there is no kernel for it."""
    if not missing:
        return None
    from pcsr.runtime.backends.onnxruntime import open_model

    entry = bundle.graphs("fp32")["backbone"]
    logger.info("the backbone runs by ONNX Runtime: %s", missing)
    return open_model(bundle.read(entry), f"graph backbone ({bundle.path / entry.path})", threads=threads)


def _padded(channels: int) -> int:
    return -(-channels // UNIT) * UNIT


def _widened(values: Float, width: int) -> Float:
    """The same rows, with zeros up to a width."""
    out = np.zeros((len(values), width), dtype=np.float32)
    out[:, : values.shape[1]] = values
    return out
