"""One run of the benchmark: every size, scale and number of threads, all competitors in turn, to a record."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench_competitors import Competitor, Setting
from bench_entries import cell, enter
from bench_growth import growth, speedups
from bench_machine import begin, ended
from bench_networks import Networks, Pictures
from bench_ours import PRECISIONS, Ours
from bench_peers import PEERS, bicubic, oracle
from bench_process import time_process
from bench_record import Method, Record
from bench_rounds import in_turn

from pcsr.export.pipeline import export_bundle
from pcsr.model.dense import SCALE as DENSE_SCALE
from pcsr.runtime.console import format_size
from pcsr.runtime.errors import BackendError
from pcsr.validation.results import Rule

__all__ = ["Plan", "measure"]

logger = logging.getLogger("pcsr.bench")

PAUSE = 0.05
"""Seconds after each call for threads that spin to fall asleep; `Row.spun_ms` tells how long they did."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to time.

    Attributes:
        competitors: keys of `COMPETITORS`.
        rules: of the runtime's competitors.
        sizes: (h, w) of the inputs.
        scales: real magnifications.
        threads: numbers of them.
        rounds: that count, after one that does not.
        process_runs: of `pcsr-upscale`; 0 leaves it out.
        calibration: cache for int8.
    """

    competitors: tuple[str, ...]
    rules: tuple[Rule, ...]
    sizes: tuple[tuple[int, int], ...]
    scales: tuple[float, ...]
    threads: tuple[int, ...]
    rounds: int
    process_runs: int
    calibration: Path | None = None


def measure(plan: Plan, networks: Networks, pictures: Pictures) -> Record:
    """Time everything that was asked for.

    Raises:
        PcsrError: whatever export and competitors raise; but one whose library is missing is left out, and the
            record says so.
    """
    environment = begin(plan.threads)
    left_out: dict[str, str] = {}
    settings = [
        Setting(pictures.at(size), scale, threads)
        for size in plan.sizes
        for scale in plan.scales
        for threads in plan.threads
    ]
    with TemporaryDirectory() as made, ExitStack() as stack:
        bundle = Path(made) / "bundle"
        precisions = ("fp32",) if plan.calibration is None else ("fp32", "int8")
        export_bundle(
            networks.file, bundle, precisions=precisions, calibration=plan.calibration, tell=logger.debug
        )
        ours = stack.enter_context(Ours(bundle))
        entries = []
        for setting in settings:
            h, w = setting.lr.shape[:2]
            logger.info(
                "warming up: %s, scale %g, threads: %d", format_size((h, w)), setting.scale, setting.threads
            )
            entries.append(
                enter(
                    _competitors(plan, setting, networks, ours, left_out),
                    setting,
                    pictures.truth_at((h, w), setting.scale),
                    network=networks.pcsr if "oracle" in plan.competitors else None,
                    dense=networks.dense,
                )
            )
        runs = {(number, i): e.run for number, each in enumerate(entries) for i, e in enumerate(each)}
        logger.info("timing: %d rounds of %d calls", plan.rounds, len(runs))
        timed = in_turn(runs, plan.rounds, pause=PAUSE)
        process = time_process(bundle, plan.process_runs) if plan.process_runs else None
    environment = ended(environment)
    cells = tuple(
        cell(
            setting,
            [(entry, timed[number, i]) for i, entry in enumerate(entries[number])],
            environment.peaks.get(str(setting.threads)),
        )
        for number, setting in enumerate(settings)
    )
    return Record(
        environment=environment,
        network=networks.pcsr_source,
        dense=networks.dense_source,
        picture=pictures.told,
        method=Method(rounds=plan.rounds, warm_up=1, pause_ms=1000 * PAUSE),
        cells=cells,
        left_out=left_out,
        growth=growth(cells),
        speedups=speedups(cells),
        process=process,
    )


def _competitors(
    plan: Plan, setting: Setting, networks: Networks, ours: Ours, left_out: dict[str, str]
) -> list[Competitor]:
    """Those that can run in this setting; why the others cannot goes to `left_out`."""
    found: list[Competitor] = []
    for name in plan.competitors:
        try:
            if name == "oracle":
                found.append(oracle(networks.pcsr, setting, Rule("k", 0.0)))
            elif name == "bicubic":
                found.append(bicubic(setting))
            elif name == "int8" and plan.calibration is None:
                left_out[name] = "no calibration cache was given (--calibration FILE)"
            elif name in PRECISIONS:
                found += ours.competitors(name, setting, plan.rules)
            elif networks.dense is None:
                left_out[name] = "no dense network was given (--dense FILE, or --random dense)"
            elif setting.scale != DENSE_SCALE:
                left_out[f"{name} ×{setting.scale:g}"] = f"the dense networks upsample by {DENSE_SCALE} only"
            else:
                found.append(PEERS[name](networks.dense, setting))
        except BackendError as error:
            left_out[name] = str(error)
    return found
