"""One picture's way through a bundle on a device, top to bottom; the counterpart of `pcsr.runtime.inference`.

upload → plan tiles → tables and probabilities per tile → decide once → compact → upsamplers → finish → download

The host enqueues, and waits only for what shapes the work to come: how many pixels of each class a tile's blocks
have. Whatever is NaN or infinite raises a flag, and its tile is done again in float32.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.backends.profiles import Piece
from pcsr.runtime.bundle import Bundle, Manifest, head_weights
from pcsr.runtime.compose import check_picture
from pcsr.runtime.cost import normalised_costs, picture_cost
from pcsr.runtime.decision import argmax_weights, cost_steps, threshold_by_k
from pcsr.runtime.device.arrays import AllocationError, Device, DeviceArray, Download, Graphs, Stream
from pcsr.runtime.device.decide import adaptive_on_device, budget_on_device, upload_small
from pcsr.runtime.device.lanes import MOST_LANES, Lane, Lanes, Streams
from pcsr.runtime.device.memory import SMALLEST_TILE, MemoryGate, Plan, first_plan, make_plan
from pcsr.runtime.device.place import Place, Places
from pcsr.runtime.device.tiles import Block, Output, PictureOnDevice, TileTables, TileWork
from pcsr.runtime.errors import BackendError, DeviceMemoryError, OptionError, PictureError
from pcsr.runtime.geometry import output_size, scale_key
from pcsr.runtime.options import Decision, Options, Progress, Result
from pcsr.runtime.progress import ShareDone

__all__ = ["Computed", "DeviceRoad", "Prepared"]

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True)
class Computed:
    """A picture that is done but for its download."""

    prepared: Prepared
    output: Output
    summary: Mapping[str, Any]
    started: float


class DeviceRoad:
    """Runs pictures on a device. Safe to use from several threads.

    Attributes:
        name: of the backend.
        provider: what runs the graphs.
        precision: of them.
        device: as it was asked for.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        graphs: Mapping[str, Graphs],
        *,
        name: str,
        provider: str,
        precision: str,
        asked: str,
        tile: int | None = None,
        lanes: int = MOST_LANES,
    ) -> None:
        """Take over a device and graphs.

        Args:
            bundle: whose graphs they are.
            device: where they run.
            graphs: by precision; beside the one that runs there may be fp32, to redo tiles in.
            name: of the backend.
            provider: what runs the graphs.
            precision: that runs.
            asked: the device as the caller named it.
            tile: largest side of tiles in input pixels that was asked for.
            lanes: callers that may work at once; more wait.
        """
        self.name, self.provider, self.precision, self.device = name, provider, precision, asked
        self.memory_limit = device.memory_limit
        self._bundle, self._on, self._graphs, self._tile = bundle, device, graphs, tile
        manifest, weights = bundle.manifest, bundle.weights()
        heads = ["classifier", *(f"upsampler_{j}" for j in range(manifest.classes))]
        widths = zip(heads, manifest.table_channels, strict=True)
        self._places = Places({head: head_weights(weights, head, width) for head, width in widths})
        self._lanes, self._streams = Lanes(device, graphs, most=lanes), Streams(device)
        self._gate = MemoryGate(device.memory_limit)
        self._warned = threading.Event()

    def prepare(self, picture: Any, options: Options, *, stream: Any = None) -> Prepared:
        """Check a picture and begin its upload, or take it over where it lies on the device.

        Raises:
            PictureError: not a picture.
            DeviceMemoryError: it does not fit.
            OptionError: a stream with a picture of the host.
        """
        on_host = isinstance(picture, np.ndarray)
        if on_host:
            check_picture(picture)
            if stream is not None:
                raise OptionError("a stream goes with a picture on the device; this one is a NumPy array")
        with self._streams.borrowed_on_failure() as copies:
            began = copies.mark()
            if on_host:
                values = np.ascontiguousarray(picture).reshape(*picture.shape[:2], -1)
                array = self._allocate(copies, values.shape, values.dtype)
                copies.upload(values, array)
            else:
                array = self._adopt(picture, copies, stream)
            shape = tuple(picture.shape)
            return Prepared(PictureOnDevice(array, shape, copies.mark(), on_host), copies, stream, began)

    def compute(self, prepared: Prepared, options: Options, progress: Progress | None) -> Computed:
        """Upscale a picture; returns when it is done on the device.

        Raises:
            DeviceMemoryError: the device cannot hold the smallest tile.
            BackendError: a graph fails, or gives values that are not finite in float32 either.
            CancelledError: `progress` said so.
        """
        try:
            started = time.perf_counter()
            run = _Pictures(self, prepared, options, progress)
            output, summary = run.run()
            return Computed(prepared, output, summary, started)
        except BaseException:
            self._streams.give(prepared.copies)
            raise

    def deliver(self, computed: Computed) -> Result:
        """Bring the result to where the picture came from."""
        prepared, output = computed.prepared, computed.output
        copies, shape = prepared.copies, prepared.picture.shape
        H, W = output.class_map.shape
        image = output.image.part(0, (H, W, *shape[2:]))
        milliseconds = dict(computed.summary["milliseconds"])
        try:
            before = copies.mark()
            if prepared.picture.on_host:
                downloads = copies.download(image), copies.download(output.class_map)
                after = copies.mark()
                picture, class_map = (download.wait() for download in downloads)
                milliseconds["download"] = self._on.milliseconds(before, after)
            else:
                picture = self._on.publish(image, copies, prepared.caller)
                class_map = self._on.publish(output.class_map, copies, prepared.caller)
        finally:
            self._streams.give(copies)
        milliseconds["total"] = 1000 * (time.perf_counter() - computed.started)
        rest = {name: value for name, value in computed.summary.items() if name != "milliseconds"}
        return Result(image=picture, class_map=class_map, milliseconds=milliseconds, **rest)

    def close(self) -> None:
        """Release everything; nothing may be running."""
        self._lanes.clear()
        self._streams.clear()
        self._places.clear()
        for graphs in self._graphs.values():
            graphs.close()
        self._on.close()

    def _allocate(self, stream: Stream, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        try:
            return stream.array(shape, dtype)
        except AllocationError:
            pass
        self._on.release()
        try:
            return stream.array(shape, dtype)
        except AllocationError:
            raise DeviceMemoryError(
                f"the device has no room for a picture of {math.prod(shape) * dtype.itemsize >> 20} MiB; "
                f"the limit is {self.memory_limit >> 20} MiB"
            ) from None

    def _adopt(self, picture: Any, copies: Stream, caller: Any) -> DeviceArray:
        array = self._on.adopt(picture, copies, caller)
        if len(array.shape) not in (2, 3) or (len(array.shape) == 3 and array.shape[2] not in (1, 3, 4)):
            raise PictureError(
                f"a picture has the shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), not {array.shape}"
            )
        if array.dtype not in (np.uint8, np.uint16, np.float32):
            raise PictureError(f"a picture is uint8, uint16 or float32, not {array.dtype}; convert it first")
        if 0 in array.shape:
            raise PictureError(f"a picture of shape {array.shape} has no pixels")
        if array.dtype == np.float32:
            flag = copies.array((1,), np.int32)
            copies.zero(flag)
            copies.launch("find_nonfinite_float32", array.size, array, array.size, flag)
            if copies.download(flag).wait()[0]:
                raise PictureError("the picture has NaN or infinite values; replace them first")
        return array.part(0, (*array.shape[:2], array.shape[2] if len(array.shape) == 3 else 1))


class _Pictures:
    """One picture on its way: plans, and tries again with smaller tiles where the device's memory ends."""

    def __init__(
        self, road: DeviceRoad, prepared: Prepared, options: Options, progress: Progress | None
    ) -> None:
        self.road, self.prepared, self.options, self.progress = road, prepared, options, progress
        self.manifest: Manifest = road._bundle.manifest
        self.picture = prepared.picture
        h, w = self.picture.shape[:2]
        self.size = output_size(h, w, options.scale, options.size)
        self.costs = normalised_costs(self.manifest.cost, scale_key(h, w, options.scale, self.size))
        # Refused before anything is computed.
        self.steps = () if options.budget is None else cost_steps(self.manifest.cost.flops.upsamplers)

    def run(self) -> tuple[Output, dict[str, Any]]:
        road = self.road
        h, w = self.picture.shape[:2]
        with road._lanes.take() as lane:
            lane.work.wait(self.picture.ready)
            place = road._places.get((h, w), self.size, lane.work)
            plan = first_plan(
                place.rows,
                place.columns,
                asked=road._tile,
                memory_limit=road.memory_limit,
                **self._plan_options,
            )
            with road._gate.reserve(plan.bytes):
                while True:
                    try:
                        return _Attempt(self, lane, place, plan).run()
                    except AllocationError:
                        pass
                    # What the attempt held is free by now, and its work done.
                    lane.work.synchronise()
                    road._on.release()
                    plan = self._smaller(plan, place)

    @property
    def _plan_options(self) -> dict[str, Any]:
        H, W = self.size
        two_sweeps = self.options.kind != "k"
        values = self.picture.values
        image = H * W * self.picture.channels * values.dtype.itemsize
        return {
            "limits": self.road._graphs[self.road.precision].limits,
            "manifest": self.manifest,
            "table_bytes": 2 if self.road.precision == "fp16" else 4,
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
        self.road, self.options, self.manifest = run.road, run.options, run.manifest
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
        precision = "fp32" if number in self.exact else self.road.precision
        return TileWork(
            self.stream,
            self.lane.session(precision),
            self.manifest,
            np.float16 if precision == "fp16" else np.float32,
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
        if number in self.exact or self.road.precision == "fp32":
            raise BackendError(
                f"{where} gives NaN or infinity in fp32; its values are beyond what the network takes"
            )
        if "fp32" not in self.road._graphs:
            raise BackendError(
                f"{where} gives NaN or infinity in fp16 and there are no fp32 graphs to redo it in; "
                "add them as in docs/gpu.md, or open the bundle with precision fp32"
            )
        self.exact.add(number)
        if not self.road._warned.is_set():
            self.road._warned.set()
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
            spent[stage] += self.road._on.milliseconds(begin, end)
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
            "backend": self.road.name,
            "provider": self.road.provider,
            "precision": self.road.precision,
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
