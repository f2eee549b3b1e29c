"""The project's one benchmark: every competitor on the same picture, in one process, in turn.

Machines are noisy, so what counts is the ratio of times measured side by side: each round calls every
competitor once, and tables give the median and quartiles of the ratios, round by round.

    python scripts/bench.py CHECKPOINT --dense DENSE_CHECKPOINT --picture PICTURE --truth TRUTH --process 5
    python scripts/bench.py CHECKPOINT --competitors native --rules adaptive --sizes 420x276,960x540 --threads 1,2
    python scripts/bench.py CHECKPOINT --dense DENSE_CHECKPOINT --picture PICTURE --against RECORD.json
    python scripts/bench.py srresnet --random all
    python scripts/bench.py CHECKPOINT --folder 50
    python scripts/bench.py --show RECORD.json --markdown

Status: 0 done, 1 outside the band of a record, 2 nothing was tried.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import click
from bench_against import BAND, changes, check_comparable, verdict
from bench_competitors import COMPETITORS, check_names, parse_rule
from bench_folder import time_folders
from bench_machine import processor
from bench_measure import Plan, measure
from bench_networks import Random, load_networks, load_pictures
from bench_plots import draw
from bench_record import Record, read_record, write_record
from bench_tables import Section, in_markdown, on_terminal, sections
from rich.console import Console

from pcsr.runtime.console import exit_on_error, parse_size, start_logging
from pcsr.runtime.errors import OptionError
from pcsr.runtime.machine import usable_cores

logger = logging.getLogger("pcsr.bench")

RULES = ("k=0", "adaptive", "budget=0", "budget=0.05", "budget=0.3", "budget=1")
# What --against needs to see a change of either backend in under two minutes.
AGAINST_COMPETITORS, AGAINST_RULES = ("native", "onnxruntime", "dense-onnxruntime"), ("k=0", "adaptive")
OUTSIDE = 1


class Several(click.ParamType):
    """A list with commas in between, each part read by a function."""

    name = "LIST"

    def __init__(self, read: Callable[[str], Any]) -> None:
        self._read = read

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        try:
            return tuple(self._read(part.strip()) for part in value.split(","))
        except (ValueError, OptionError) as error:
            self.fail(str(error), param, ctx)


def a_count(text: str) -> int:
    """Threads, 1 or more; ValueError for anything else."""
    if (count := int(text)) < 1:
        raise ValueError(f"{count} is not 1 or more")
    return count


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Competitors: " + "; ".join(f"{name}: {what}" for name, what in COMPETITORS.items()) + ".",
)
@click.argument("checkpoint", required=False)
@click.option("--dense", type=click.Path(path_type=Path), help="The dense x4 network's checkpoint (.pth).")
@click.option(
    "--random",
    type=click.Choice(["dense", "all"]),
    help="Random weights, for times alone: of the dense network; or of both, CHECKPOINT being a backbone's name.",
)
@click.option("--picture", type=click.Path(path_type=Path), help="Input picture.  [default: a cat, 420x276]")
@click.option("--truth", type=click.Path(path_type=Path), help="What it should become, for PSNR.")
@click.option("--competitors", type=Several(str), help="[default: all but int8]")
@click.option("--rules", type=Several(parse_rule), help=f"Of the runtime.  [default: {','.join(RULES)}]")
@click.option("--sizes", type=Several(parse_size), help="Of the input, cut or mirrored.  [default: its own]")
@click.option("--scales", type=Several(float), help="[default: 4]")
@click.option("--threads", type=Several(a_count), help="[default: usable cores]")
@click.option("--rounds", type=click.IntRange(3), default=5, show_default=True)
@click.option("--process", type=click.IntRange(0), default=0, help="Also time so many runs of pcsr-upscale.")
@click.option("--calibration", type=click.Path(path_type=Path), help="Cache, for the competitor int8.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write the record to this file.")
@click.option("--markdown", is_flag=True, help="Print tables as Markdown.")
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Draw time against PSNR and size into this folder."
)
@click.option(
    "--against", type=click.Path(path_type=Path), help="Compare with this record; status 1 if it changed."
)
@click.option("--band", type=click.FloatRange(0), default=BAND, show_default=True, help="Of --against.")
@click.option(
    "--show", type=click.Path(path_type=Path), help="Measure nothing: tables and plots of this record."
)
@click.option("--folder", type=click.IntRange(2), help="Instead: how busy computing is, of so many pictures.")
@exit_on_error()
def main(
    *,
    checkpoint: str | None,
    dense: Path | None,
    random: str | None,
    picture: Path | None,
    truth: Path | None,
    competitors: tuple[str, ...] | None,
    rules: tuple[Any, ...] | None,
    sizes: tuple[tuple[int, int], ...] | None,
    scales: tuple[float, ...] | None,
    threads: tuple[int, ...] | None,
    rounds: int,
    process: int,
    calibration: Path | None,
    report: Path | None,
    markdown: bool,
    plot: Path | None,
    against: Path | None,
    band: float,
    show: Path | None,
    folder: int | None,
) -> None:
    """Time the runtime of CHECKPOINT beside the published inference, dense networks and bicubic."""
    start_logging()
    if show is not None:
        record = read_record(show)
        _tell(list(sections(record)), markdown=markdown)
        _draw(record, plot, show.stem)
        return
    if checkpoint is None:
        raise OptionError("name a checkpoint, or with --random all a backbone")
    if folder is not None:
        count = usable_cores() if threads is None else threads[0]
        _tell([time_folders(Path(checkpoint), folder, count, report)], markdown=markdown)
        return
    before = None if against is None else read_record(against)
    pictures = load_pictures(picture, truth)
    like = None if before is None else before.cells[0]
    plan = Plan(
        competitors=competitors or (AGAINST_COMPETITORS if like else _all(calibration)),
        rules=rules or tuple(map(parse_rule, AGAINST_RULES if like else RULES)),
        sizes=sizes or ((parse_size(like.lr) if like else pictures.size),),
        scales=scales or (like.scale if like else 4.0,),
        threads=threads or (like.threads if like else usable_cores(),),
        rounds=rounds,
        process_runs=process,
        calibration=calibration,
    )
    check_names(plan.competitors)
    if plot is not None and pictures.truth is None and len(plan.sizes) < 2:
        # Minutes before there would be nothing to draw.
        raise OptionError(
            "--plot draws time against PSNR, for which it needs --truth, or against several --sizes"
        )
    with TemporaryDirectory() as made:
        networks = load_networks(checkpoint, dense, cast(Random | None, random), Path(made))
        if before is not None:
            check_comparable(before, processor(), networks.pcsr_source, networks.dense_source, pictures.told)
        record = measure(plan, networks, pictures)
    if report is not None:
        write_record(record, report)
    _tell(list(sections(record)), markdown=markdown)
    _draw(record, plot, "bench" if report is None else report.stem)
    if before is not None:
        found = changes(before, record, band)
        _tell([verdict(found)], markdown=markdown)
        if not all(change.holds for change in found):
            sys.exit(OUTSIDE)


def _all(calibration: Path | None) -> tuple[str, ...]:
    """Every competitor; int8 where it can be made."""
    return tuple(name for name in COMPETITORS if name != "int8" or calibration is not None)


def _tell(parts: Sequence[Section], *, markdown: bool) -> None:
    if markdown:
        click.echo(in_markdown(parts))
    else:
        on_terminal(parts, Console())


def _draw(record: Record, folder: Path | None, stem: str) -> None:
    if folder is None:
        return
    made = draw(record, folder, stem)
    for file in made:
        logger.info("wrote %s", file)
    if not made:
        logger.warning("nothing to draw: there is no ground truth, and one size only")


if __name__ == "__main__":
    main()
