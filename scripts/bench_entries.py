"""A competitor in a cell on its way to a row of the record: warmed up, judged, timed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from bench_competitors import BASELINES, Competitor, Output, Setting
from bench_ours import PRECISIONS
from bench_peers import dense_reference, oracle
from bench_record import Cell, Difference, Peak, Row, Stage, Work, ratios
from bench_rounds import Timed
from numpy.typing import NDArray

from pcsr.model.dense import DenseNetwork
from pcsr.model.network import Network
from pcsr.runtime.console import format_size
from pcsr.validation.metrics import agreement, psnr, shave_for

__all__ = ["Entry", "cell", "enter"]


@dataclass(slots=True)
class Entry:
    """One competitor in one cell.

    Attributes:
        competitor: who.
        output: of the warm-up, without its pixels: those of all cells together would not fit into memory.
        psnr: of the warm-up's picture.
        difference: of the warm-up's picture from the same network in PyTorch.
        milliseconds: by stage, of every call since.
    """

    competitor: Competitor
    output: Output
    psnr: float | None
    difference: Difference | None
    milliseconds: list[Mapping[str, float]] = field(default_factory=list)

    def run(self) -> None:
        """Call it once more."""
        self.milliseconds.append(self.competitor.run().milliseconds)


def enter(
    competitors: Sequence[Competitor],
    setting: Setting,
    truth: NDArray[np.uint8] | None,
    *,
    network: Network | None,
    dense: DenseNetwork | None,
) -> list[Entry]:
    """Call each competitor once and judge what it gives.

    Args:
        competitors: of the cell.
        setting: of the cell.
        truth: what the picture should become; None: nobody knows.
        network: what the runtime's pictures are held against, by the oracle with the same rule; None: against nothing.
        dense: the same for dense networks.
    """
    references: dict[str, Output] = {}

    def reference(competitor: Competitor) -> Output | None:
        if network is not None and competitor.name in PRECISIONS and competitor.rule is not None:
            label = competitor.rule.label
            if label not in references:
                references[label] = oracle(network, setting, competitor.rule).run()
            return references[label]
        if dense is not None and competitor.name.startswith("dense-"):
            if "dense" not in references:
                references["dense"] = Output(dense_reference(dense, setting))
            return references["dense"]
        return None

    entries = []
    for competitor in competitors:
        output = competitor.run()
        if competitor.name == "oracle" and competitor.rule is not None:
            references[competitor.rule.label] = output
        expected = reference(competitor)
        entries.append(
            Entry(
                competitor,
                Output(
                    np.empty((0, 0, 3), np.uint8), output.macs, None, output.shares, {}, output.stage_macs
                ),
                None if truth is None else psnr(output.image, truth, shave=shave_for(setting.scale)),
                None if expected is None else _difference(output, expected),
            )
        )
    return entries


def _difference(output: Output, expected: Output) -> Difference:
    apart = np.abs(output.image.astype(np.int16) - expected.image)
    agreed = None
    if output.class_map is not None and expected.class_map is not None:
        agreed = agreement(output.class_map, expected.class_map) / 100
    return Difference(largest=int(apart.max()), mean=float(apart.mean()), agreement=agreed)


def cell(setting: Setting, timed: Sequence[tuple[Entry, Timed]], peak: Peak | None) -> Cell:
    """Rows of what was timed side by side."""
    seconds = {entry.competitor.name: times.seconds for entry, times in timed}
    baselines = {name: seconds[name] for name in BASELINES if name in seconds}
    return Cell(
        lr=format_size((setting.lr.shape[0], setting.lr.shape[1])),
        output_pixels=setting.output_pixels,
        scale=setting.scale,
        threads=setting.threads,
        rows=tuple(_row(entry, times, setting.threads, baselines, peak) for entry, times in timed),
    )


def _row(
    entry: Entry, times: Timed, threads: int, baselines: Mapping[str, Sequence[float]], peak: Peak | None
) -> Row:
    competitor, output = entry.competitor, entry.output
    stages = {
        stage: statistics.median(call[stage] for call in entry.milliseconds)
        for stage in entry.milliseconds[0]
        if stage != "total"
    }
    return Row(
        competitor=competitor.name,
        rule=None if competitor.rule is None else competitor.rule.label,
        ran=competitor.ran,
        seconds=tuple(times.seconds),
        busy=times.busy(threads),
        spun_ms=1000 * statistics.median(times.after),
        ratios={name: ratios(times.seconds, seconds) for name, seconds in baselines.items()},
        work=_work(output.macs, 1000 * statistics.median(times.seconds), peak),
        stages={
            stage: Stage(milliseconds=spent, work=_work(output.stage_macs.get(stage), spent, peak))
            for stage, spent in stages.items()
        },
        shares=output.shares,
        psnr=entry.psnr,
        difference=entry.difference,
    )


def _work(macs: int | None, milliseconds: float, peak: Peak | None) -> Work | None:
    """What multiply-accumulates in so much time come to; None where none are needed."""
    if not macs:
        return None
    gflops = 2 * macs / (milliseconds / 1000) / 1e9
    return Work(gmacs=macs / 1e9, gflops=gflops, of_peak=None if peak is None else gflops / peak.gflops)
