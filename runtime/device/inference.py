"""One picture's way through a bundle on a device, top to bottom; the counterpart of `pcsr.runtime.inference`.

plan tiles → tables and probabilities per tile → decide once → compact → upsamplers → finish

The host enqueues, and waits only for what shapes the work to come: how many pixels of each class a tile's blocks
have. Whatever is NaN or infinite raises a flag, and its tile is done again in float32.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.backends.profiles import Piece
from pcsr.runtime.cost import normalised_costs, picture_cost
from pcsr.runtime.decision import argmax_weights, cost_steps, threshold_by_k
from pcsr.runtime.device.arrays import AllocationError, Device, DeviceArray, Download, Graphs, Stream
from pcsr.runtime.device.decide import adaptive_on_device, budget_on_device, upload_small
from pcsr.runtime.device.lanes import Lane, Lanes
from pcsr.runtime.device.memory import SMALLEST_TILE, MemoryGate, Plan, first_plan, make_plan
from pcsr.runtime.device.place import Place, Places
from pcsr.runtime.device.tiles import Block, Output, PictureOnDevice, TileTables, TileWork
from pcsr.runtime.errors import BackendError, DeviceMemoryError
from pcsr.runtime.geometry import output_size, scale_key
from pcsr.runtime.manifest import Manifest
from pcsr.runtime.options import Decision, Options, Progress
from pcsr.runtime.progress import ShareDone

__all__ = ["DeviceResources", "Prepared", "infer"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceResources:
    """What all pictures of a road share.

    Attributes:
        on: the device.
        graphs: by precision; beside the one that runs there may be fp32, to redo tiles in.
        precision: that runs.
        manifest: of the bundle.
        lanes: what a caller works with.
        places: geometry of the last pictures.
        gate: of the device's memory.
        tile: largest side of tiles in input pixels that was asked for.
        warned: whether a tile that was redone was said.
    """

    on: Device
    graphs: Mapping[str, Graphs]
    precision: str
    manifest: Manifest
    lanes: Lanes
    places: Places
    gate: MemoryGate
    tile: int | None
    warned: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture on its way to the device.

    Attributes:
        picture: on the device.
        copies: stream that brings it and takes the result back.
        caller: the caller's stream; None for the default one.
        began: on `copies`, before the upload.
    """

    picture: PictureOnDevice
    copies: Stream
    caller: Any
    began: Any


def infer(
    resources: DeviceResources, prepared: Prepared, options: Options, progress: Progress | None
) -> tuple[Output, dict[str, Any]]:
    """Upscale a picture; returns when it is done on the device, with fields of `Result`."""
    return _Pictures(resources, prepared, options, progress).run()


class _Pictures:
    """One picture on its way: plans, and tries again with smaller tiles where the device's memory ends."""

    def __init__(
        self,
        resources: DeviceResources,
        prepared: Prepared,
        options: Options,
        progress: Progress | None,
    ) -> None:
        self.resources, self.prepared, self.options, self.progress = resources, prepared, options, progress
        self.manifest = resources.manifest
        self.picture = prepared.picture
        h, w = self.picture.shape[:2]
        self.size = output_size(h, w, options.scale, options.size)
        self.costs = normalised_costs(self.manifest.cost, scale_key(h, w, options.scale, self.size))
        # Refused before anything is computed.
        self.steps = () if options.budget is None else cost_steps(self.manifest.cost.flops.upsamplers)

    def run(self) -> tuple[Output, dict[str, Any]]:
        shared = self.resources
        h, w = self.picture.shape[:2]
        with shared.lanes.take() as lane:
            lane.work.wait(self.picture.ready)
            place = shared.places.get((h, w), self.size, lane.work)
            plan = first_plan(
                place.rows,
                place.columns,
                asked=shared.tile,
                memory_limit=shared.on.memory_limit,
                **self._plan_options,
            )
            with shared.gate.reserve(plan.bytes):
                while True:
                    try:
                        return _Attempt(self, lane, place, plan).run()
                    except AllocationError:
                        pass
                    # What the attempt held is free by now, and its work done.
                    lane.release()
                    shared.on.release()
                    plan = self._smaller(plan, place)

    @property
    def _plan_options(self) -> dict[str, Any]:
        H, W = self.size
        two_sweeps = self.options.kind != "k"
        values = self.picture.values
        image = H * W * self.picture.channels * values.dtype.itemsize
        return {
            "limits": self.resources.graphs[self.resources.precision].limits,
            "manifest": self.manifest,
            "table_bytes": 4 if self.resources.precision == "fp32" else 2,
            "fixed_bytes": values.nbytes + image + H * W * (1 + 4 * two_sweeps),
            "two_sweeps": two_sweeps,
            "refine": self.options.refine,
        }

    def _smaller(self, plan: Plan, place: Place) -> Plan:
        if plan.side <= SMALLEST_TILE:
            h, w = self.picture.shape[:2]
            raise DeviceMemoryError(
                f"the device ran out of memory with a {w}x{h} picture in tiles of {plan.side}, "
                f"{plan.bytes >> 20} MiB by the plan; give it less other work, or ask for a smaller output"
            )
        side = max(SMALLEST_TILE, plan.side // 2)
        logger.warning("out of device memory; going on with tiles of %d instead of %d", side, plan.side)
        # No tables are kept either.
        return make_plan(place.rows, place.columns, side=side, memory_limit=0, **self._plan_options)


class _Attempt:
    """One try with one plan. Its arrays are freed with it."""

    def __init__(self, run: _Pictures, lane: Lane, place: Place, plan: Plan) -> None:
        self.resources, self.options, self.manifest = run.resources, run.options, run.manifest
        self.costs, self.steps, self.size = run.costs, run.steps, run.size
        self.prepared, self.picture = run.prepared, run.picture
        self.lane, self.place, self.plan, self.stream = lane, place, plan, lane.work
        h, w = self.picture.shape[:2]
        sweeps = 1 if self.options.kind == "k" else 2
        self.progress = ShareDone(run.progress, h * w, sweeps * math.prod(self.size))
        self.exact: set[int] = set()
        self.spans: list[tuple[str, Any, Any]] = []

    def run(self) -> tuple[Output, dict[str, Any]]:
        H, W = self.size
        M, tiles = self.manifest.classes, len(self.plan.pieces)
        self.output = Output(
            image=self.stream.array((H, W, self.picture.channels), self.picture.values.dtype),
            class_map=self.stream.array((H, W), np.uint8),
            counts=self._zeros((tiles, M), np.uint64),
            flags=self._zeros((tiles,), np.int32),
        )
        self.difficulties: DeviceArray | None = None
        if self.options.kind == "k":
            self._decide_by_k()
            for number in range(tiles):
                self._colour(number, None)
        else:
            self.difficulties = self.stream.array((H, W), np.float32)
            tables = self._survey()
            self._decide_by_picture()
            for number in range(tiles):
                self._colour(number, tables[number])
                tables[number] = None
        for spoiled in np.flatnonzero(self._download(self.output.flags)):
            self._colour_again(int(spoiled))
        return self.output, self._summary()

    def _work(self, number: int) -> TileWork:
        """Work on a tile, in the precision that it needs."""
        precision = "fp32" if number in self.exact else self.resources.precision
        return TileWork(
            self.stream,
            self.lane.session(precision),
            self.manifest,
            np.float32 if precision == "fp32" else np.float16,
            self.picture,
            self.place,
            self.plan.limits,
            self.options.refine,
        )

    def _decide_by_k(self) -> None:
        k = self.options.k or 0.0
        if self.manifest.classes > 2:
            self.weights = upload_small(self.stream, argmax_weights(k, self.costs), np.float32)
            self.thresholds = None
        else:
            self.thresholds = upload_small(self.stream, [float(threshold_by_k(k, self.costs))], np.float32)

    def _survey(self) -> list[TileTables | None]:
        """Difficulties of all tiles; their tables, where they are kept."""
        tiles = len(self.plan.pieces)
        flags = self._zeros((tiles,), np.int32)
        tables = [self._survey_tile(number, flags) for number in range(tiles)]
        for spoiled in map(int, np.flatnonzero(self._download(flags))):
            self._use_exact(spoiled)
            self.stream.zero(flags)
            tables[spoiled] = self._survey_tile(spoiled, flags)
            if self._download(flags)[spoiled]:
                self._use_exact(spoiled)
        return tables

    def _survey_tile(self, number: int, flags: DeviceArray) -> TileTables | None:
        piece, work, flag = self.plan.pieces[number], self._work(number), flags.part(number, (1,))
        assert self.difficulties is not None
        tables = self._tables(work, piece, flag)
        with self._stage("classifier"):
            work.survey(piece, tables, self.difficulties, flag)
        self.progress.add_output(piece.tile.hr.pixels)
        return tables if self.plan.kept else None

    def _tables(self, work: TileWork, piece: Piece, flag: DeviceArray) -> TileTables:
        with self._stage("backbone"):
            tables = work.tables(piece, flag)
        self.progress.add_input(piece.tile.window.pixels)
        return tables

    def _decide_by_picture(self) -> None:
        assert self.difficulties is not None
        with self._stage("decision"):
            if self.options.budget is None:
                self.thresholds = adaptive_on_device(self.stream, self.difficulties, self.manifest.classes)
            else:
                self.thresholds = budget_on_device(
                    self.stream, self.difficulties, self.options.budget, self.steps
                )

    def _colour(self, number: int, tables: TileTables | None) -> None:
        """Classes and colours of a tile, from its tables or anew."""
        piece, work, M = self.plan.pieces[number], self._work(number), self.manifest.classes
        inner = list(piece.blocks())
        status = self._zeros((1 + len(inner) * M,), np.int32)
        flag = status.part(0, (1,))
        if tables is None:
            tables = self._tables(work, piece, flag)
        with self._stage("classifier"):
            blocks = [
                self._classify(work, tables, region, flag, status.part(1 + b * M, (M,)))
                for b, region in enumerate(inner)
            ]
        # The one thing that the host waits for: the numbers of pixels are the shapes of what follows.
        host = self._download(status)
        if host[0]:
            self._use_exact(number)
            self._colour(number, None)
            return
        counts = host[1:].reshape(len(blocks), M).tolist()
        for block, of_block in zip(blocks, counts, strict=True):
            with self._stage("upsamplers"):
                residual = work.residual(tables, block, of_block)
            with self._stage("compose"):
                work.finish(block, residual, self.output, number)
        self.progress.add_output(piece.tile.hr.pixels)

    def _classify(
        self, work: TileWork, tables: TileTables, inner: Any, flag: DeviceArray, totals: DeviceArray
    ) -> Block:
        region = inner.grown(int(self.options.refine), *self.size)
        if self.difficulties is not None:
            assert self.thresholds is not None
            classes = work.classes_of_region(self.difficulties, region, self.thresholds)
        elif self.thresholds is not None:
            classes = work.classes("classes_by_thresholds", tables, region, self.thresholds, flag)
        else:
            classes = work.classes("classes_by_argmax", tables, region, self.weights, flag)
        return work.block(inner, region, classes, totals)

    def _colour_again(self, number: int) -> None:
        """A tile whose colours were not finite."""
        self._use_exact(number)
        M = self.manifest.classes
        flag = self.output.flags.part(number, (1,))
        self.stream.zero(self.output.counts.part(number * M, (M,)))
        self.stream.zero(flag)
        self._colour(number, None)
        if self._download(flag)[0]:
            self._use_exact(number)

    def _use_exact(self, number: int) -> None:
        """From now on this tile is done in float32.

        Raises:
            BackendError: it was, or cannot be.
        """
        window = self.plan.pieces[number].tile.window
        where = f"the tile at row {window.top}, column {window.left}"
        if number in self.exact or self.resources.precision == "fp32":
            raise BackendError(
                f"{where} gives NaN or infinity in fp32; its values are beyond what the network takes"
            )
        if "fp32" not in self.resources.graphs:
            raise BackendError(
                f"{where} gives NaN or infinity in fp16 and there are no fp32 graphs to redo it in; "
                "add them as in docs/gpu.md, or open the bundle with precision fp32"
            )
        self.exact.add(number)
        if not self.resources.warned.is_set():
            self.resources.warned.set()
            logger.warning(
                "%s gave NaN or infinity in fp16 and is redone in fp32; so are others, unsaid", where
            )

    def _summary(self) -> dict[str, Any]:
        counts = [int(n) for n in self._download(self.output.counts).sum(axis=0)]
        thresholds = None
        if self.thresholds is not None:
            thresholds = tuple(map(float, self._download(self.thresholds)))
        stages = ("upload", "backbone", "classifier", "decision", "upsamplers", "compose")
        spent = dict.fromkeys(stages, 0.0)
        self.stream.synchronise()
        spans = [("upload", self.prepared.began, self.picture.ready), *self.spans]
        for stage, begin, end in spans:
            spent[stage] += self.resources.on.milliseconds(begin, end)
        options, rows, columns = self.options, self.place.rows, self.place.columns
        value = (
            options.budget
            if options.kind == "budget"
            else (options.k or 0.0)
            if options.kind == "k"
            else None
        )
        return {
            "shares": tuple(count / math.prod(self.size) for count in counts),
            "decision": Decision(options.kind, value, thresholds),
            "cost": picture_cost(self.manifest.cost, rows.lr * columns.lr, counts),
            "milliseconds": spent,
            "tile": (min(self.plan.side, rows.lr), min(self.plan.side, columns.lr)),
            "redone_tiles": len(self.exact),
        }

    def _zeros(self, shape: tuple[int, ...], dtype: type[np.generic]) -> DeviceArray:
        array = self.stream.array(shape, dtype)
        self.stream.zero(array)
        return array

    def _download(self, array: DeviceArray) -> NDArray[Any]:
        download: Download = self.stream.download(array)
        return download.wait()

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        begin = self.stream.mark()
        yield
        self.spans.append((name, begin, self.stream.mark()))
