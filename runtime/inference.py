"""One picture's way through a bundle, top to bottom.

plan tiles → probabilities per tile → decide once → colours per tile → compose → result

`k` judges every pixel by itself and takes one sweep over the tiles; `adaptive` and `budget` look at the difficulty
of every pixel first and take two, keeping the backbone's tables in between where memory allows.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.backends import Backend, Tables, Workers
from pcsr.runtime.bundle import Manifest
from pcsr.runtime.compose import Patch, check_picture, cut, to_float
from pcsr.runtime.cost import normalised_costs, picture_cost
from pcsr.runtime.decision import (
    ByThresholds,
    ByWeights,
    Rule,
    adaptive_thresholds,
    argmax_weights,
    budget_thresholds,
    cost_steps,
    threshold_by_k,
)
from pcsr.runtime.errors import OptionError
from pcsr.runtime.geometry import axis, output_size, scale_key
from pcsr.runtime.kept_geometry import KeptGeometry, geometry_bytes
from pcsr.runtime.options import Account, Decision, Options, Progress, PutRows, Result
from pcsr.runtime.progress import ShareDone
from pcsr.runtime.room import Room
from pcsr.runtime.row_source import RowSource
from pcsr.runtime.tiling import Region, RowsDone, Tile, blocks, choose_tile, equal_parts, plan_tiles

__all__ = ["HostRoad", "Inference", "Resources"]

logger = logging.getLogger(__name__)

# A refined block computes a margin of one pixel twice: taller blocks make that a few per cent.
REFINED_BLOCKS = 2
# Pixels of a block where memory is scarce.
LEAST_BLOCK = 1 << 12
# Output pixels that are handed out together, or more, until the last of a tile: whoever takes them should have work.
HANDED_OUT = 1 << 19


@dataclass(frozen=True, slots=True)
class Resources:
    """What all pictures of an upscaler share.

    Attributes:
        backend: runs the networks.
        manifest: of the bundle.
        pool: threads for blocks of output pixels, where the backend has none of its own.
        threads: of them, and of a backend that has.
        memory_limit: bytes that one picture may take, itself and its result included.
        tile: side of the tiles in input pixels, at most, that was asked for.
        room: memory for what a picture needs of its own while it is computed.
        geometry: what depends on the sizes of the last picture alone.
    """

    backend: Backend
    manifest: Manifest
    pool: ThreadPoolExecutor
    threads: int
    memory_limit: int
    tile: int | None
    room: Room
    geometry: KeptGeometry


class HostRoad:
    """Runs pictures through a host backend; see `Road`."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def prepare(self, picture: Any, options: Options, *, stream: Any = None) -> NDArray[Any] | RowSource:
        """Check the picture."""
        if isinstance(picture, RowSource):
            return picture
        check_picture(picture)
        if stream is not None:
            raise OptionError("a stream goes with a picture on the device; this backend computes on the host")
        checked: NDArray[Any] = picture
        return checked

    def compute(
        self, prepared: NDArray[Any] | RowSource, options: Options, progress: Progress | None
    ) -> Result:
        """Upscale it."""
        work = Inference(self._resources, prepared, options, progress)
        account = work.run()
        return Result(
            image=work.image,
            class_map=work.class_map,
            **{each.name: getattr(account, each.name) for each in fields(account)},
        )

    def compute_rows(
        self, prepared: NDArray[Any] | RowSource, options: Options, progress: Progress | None, put: PutRows
    ) -> Account:
        """Upscale it and hand out rows while the next are made."""
        return Inference(self._resources, prepared, options, progress, put).run()

    def deliver(self, computed: Result) -> Result:
        """It is there already."""
        return computed

    def discard(self, prepared: NDArray[Any] | RowSource) -> None:
        """Nothing is held."""

    def close(self) -> None:
        """Release workers and graphs."""
        self._resources.pool.shutdown()
        self._resources.backend.close()
        self._resources.room.close()
        self._resources.geometry.close()


class Inference:
    """One picture on its way."""

    def __init__(
        self,
        resources: Resources,
        picture: NDArray[Any] | RowSource,
        options: Options,
        progress: Progress | None,
        put: PutRows | None = None,
    ) -> None:
        self.put = put
        self.resources = resources
        self.backend = resources.backend
        self.manifest = resources.manifest
        self.picture = picture
        self.source = picture if isinstance(picture, RowSource) else None
        self.options = options
        h, w = picture.shape[:2]
        self.size = output_size(h, w, options.scale, options.size)
        self.rows = axis(h, self.size[0])
        self.columns = axis(w, self.size[1])
        self.costs = normalised_costs(self.manifest.cost, scale_key(h, w, options.scale, self.size))
        stages = ["backbone", "classifier", "decision", "upsamplers", "compose"]
        self.seconds = dict.fromkeys(stages if put is None else [*stages, "delivery"], 0.0)
        self.counts = np.zeros(self.manifest.classes, dtype=np.int64)
        # Refused before anything is computed.
        self.steps = () if options.budget is None else cost_steps(self.manifest.cost.flops.upsamplers)
        sweeps = 1 if options.kind == "k" else 2
        self.progress = ShareDone(progress, h * w, sweeps * self.size[0] * self.size[1])

    def run(self) -> Account:
        started = time.perf_counter()
        tiles, kept = self._plan()
        self.place = self.resources.geometry.place(self.rows, self.columns)
        if self.put is None:
            self._canvas(0, self.size[0])
        if self.options.kind == "k":
            decision, rule = self._decide_by_k()
            for tile in self._held(tiles):
                self._paint(tile, self._tables(tile), rule, None)
        else:
            difficulty = self.resources.room.array(self.size)
            tables: list[Tables | None] = []
            for tile in self._held(tiles):
                made = self._tables(tile)
                self._survey(tile, made, difficulty)
                tables.append(made if kept else None)
            decision, rule = self._decide_by_picture(difficulty)
            for number, tile in enumerate(self._held(tiles)):
                self._paint(tile, tables[number] or self._tables(tile), rule, difficulty)
                tables[number] = None
        counts: list[int] = self.counts.tolist()
        return Account(
            shares=tuple(count / (self.size[0] * self.size[1]) for count in counts),
            decision=decision,
            cost=picture_cost(self.manifest.cost, self.rows.lr * self.columns.lr, counts),
            milliseconds={
                **{stage: 1000 * spent for stage, spent in self.seconds.items()},
                "total": 1000 * (time.perf_counter() - started),
            },
            tile=self.tile,
            backend=self.backend.name,
            provider=self.backend.provider,
            precision=self.backend.precision,
        )

    def _held(self, tiles: list[Tile]) -> Iterator[Tile]:
        """The tiles, each when the input rows of its window are in memory."""
        if self.source is not None:
            self.source.begin()
        for tile in tiles:
            if self.source is not None:
                # The same for all tiles of a row.
                self.source.hold(tile.window.top, tile.window.bottom)
            yield tile

    def _canvas(self, top: int, bottom: int) -> None:
        """Room for output rows: all of them, or those of one row of tiles."""
        shape = (bottom - top, self.size[1])
        self.top = self.handed_out = top
        self.image = np.empty((*shape, *self.picture.shape[2:]), dtype=self.picture.dtype)
        self.class_map = np.empty(shape, dtype=np.uint8)

    def _paint(self, tile: Tile, tables: Tables, rule: Rule, difficulty: NDArray[np.float32] | None) -> None:
        """Colour a tile, and hand out the rows that it completes."""
        if self.put is not None and tile.hr.left == 0:
            self._canvas(tile.hr.top, tile.hr.bottom)
        for bottom in self._colour(tile, tables, rule, difficulty):
            if self.put is None or tile.hr.right < self.size[1]:
                continue
            if bottom == tile.hr.bottom or (bottom - self.handed_out) * self.size[1] >= HANDED_OUT:
                started = time.perf_counter()
                rows = slice(self.handed_out - self.top, bottom - self.top)
                self.put(self.image[rows], self.class_map[rows])
                self.handed_out = bottom
                self.seconds["delivery"] += time.perf_counter() - started

    def _plan(self) -> tuple[list[Tile], bool]:
        """Tiles, and whether the tables of all of them may be kept between two sweeps."""
        h, w = self.picture.shape[:2]
        pixels = self.size[0] * self.size[1]
        two_sweeps = self.options.kind != "k"
        sample = self.picture.dtype.itemsize * math.prod(self.picture.shape[2:])
        pixel = sample + 1
        difficulty = pixels * 4 * two_sweeps
        # Rows that are handed out are there twice: somebody has those before while the next are made.
        output = 0 if self.put is not None else pixels * pixel
        row_bytes = 2 * pixel * -(-pixels // h) if self.put is not None else 0
        given = h * w * sample
        if self.source is not None:
            # The rows of a row of tiles, and its halo on both sides.
            row_bytes += w * sample
            given = min(h, 2 * (self.manifest.halo + 1)) * w * sample
        # Blocks of all workers at once may take a quarter of the limit. Where they would take more, fewer run, and
        # where a single one would, it is smaller.
        most = self.resources.memory_limit // (4 * self.backend.block_bytes)
        block = self.backend.block * (REFINED_BLOCKS if self.options.refine else 1)
        self.block = max(LEAST_BLOCK, min(block, most))
        workers = max(1, min(self.resources.threads, most // self.block))
        eager = self.put is not None
        self.workers = Workers(workers, self.resources.threads, self.resources.pool, eager)
        place = geometry_bytes(self.backend, self.size)
        fixed = given + difficulty + output + place + workers * self.block * self.backend.block_bytes
        side = choose_tile(
            h,
            w,
            halo=self.manifest.halo,
            asked=self.resources.tile,
            fixed_bytes=fixed,
            bytes_per_row=row_bytes,
            window_bytes=self.backend.working_bytes,
            limit=self.resources.memory_limit,
        )
        self.tile = equal_parts(h, side), equal_parts(w, side)
        tiles = plan_tiles(self.rows, self.columns, self.tile, halo=self.manifest.halo)
        all_tables = sum(tile.window.pixels for tile in tiles) * self.backend.table_bytes
        largest = max(self.backend.working_bytes(*shape) for shape in {tile.window.shape for tile in tiles})
        band = self.tile[0] * row_bytes
        kept = fixed + band + largest + all_tables <= self.resources.memory_limit
        logger.debug(
            "%d tiles of %dx%d, tables %s between sweeps",
            len(tiles),
            *self.tile[::-1],
            "kept" if kept else "made anew",
        )
        return tiles, kept

    def _tables(self, tile: Tile) -> Tables:
        window = tile.window
        started = time.perf_counter()
        lr = to_float(self.picture[window.top : window.bottom, window.left : window.right])
        # Grey is shown to the network as equal red, green and blue; alpha is not shown.
        rgb = np.repeat(lr, 3, axis=1) if lr.shape[1] == 1 else lr[:, :3]
        made = self.backend.tables(np.ascontiguousarray(rgb.transpose(1, 0, 2)), window)
        self.seconds["backbone"] += time.perf_counter() - started
        self.progress.add_input(window.pixels)
        return made

    def _decide_by_k(self) -> tuple[Decision, Rule]:
        k = self.options.k or 0.0
        if self.manifest.classes > 2:
            return Decision("k", k, None), ByWeights(argmax_weights(k, self.costs))
        thresholds = (threshold_by_k(k, self.costs),)
        return Decision("k", k, tuple(map(float, thresholds))), ByThresholds(thresholds)

    def _decide_by_picture(self, difficulty: NDArray[np.float32]) -> tuple[Decision, Rule]:
        started = time.perf_counter()
        values, budget = difficulty.reshape(-1), self.options.budget
        passes = self.backend.passes(self.resources.pool.map)
        if budget is None:
            thresholds = adaptive_thresholds(values, self.manifest.classes, passes=passes)
        else:
            thresholds = budget_thresholds(values, budget, steps=self.steps, passes=passes)
        self.seconds["decision"] += time.perf_counter() - started
        return Decision(self.options.kind, budget, tuple(map(float, thresholds))), ByThresholds(thresholds)

    def _survey(self, tile: Tile, tables: Tables, difficulty: NDArray[np.float32]) -> None:
        cut_up = blocks(tile.hr, self.rows, pixels=min(self.block, self.backend.block))
        for some in self.backend.survey(tables, self.place, cut_up, difficulty, self.workers):
            self.seconds["classifier"] += some.seconds / self.workers.count
            self.progress.add_output(some.pixels)

    def _colour(
        self, tile: Tile, tables: Tables, rule: Rule, difficulty: NDArray[np.float32] | None
    ) -> Iterator[int]:
        """Colour a tile; yields now and then the output row above which all of its rows are done."""
        refined, inner = self.options.refine, tile.hr
        region = inner.grown(1 if refined else 0, *self.size)
        canvas = Region(self.top, self.top + len(self.image), 0, self.size[1])
        out, class_map = cut(self.image, inner, canvas), cut(self.class_map, inner, canvas)
        patch = Patch(self.picture, self.rows, self.columns, region, inner, refined, out)
        cut_up = list(blocks(inner, self.rows, pixels=self.block))
        done = RowsDone(cut_up)
        for some in self.backend.paint(
            tables, self.place, patch, cut_up, rule, difficulty, class_map, self.workers
        ):
            for stage, seconds in zip(("classifier", "upsamplers", "compose"), some.seconds, strict=True):
                self.seconds[stage] += seconds / self.workers.count
            self.counts += some.counts
            pixels = sum(some.counts)
            self.progress.add_output(pixels)
            yield done.add(pixels)
