"""How much of the processor's float32 peak the parts of the native kernels reach.

    python scripts/bench_kernels.py --json FILE

Every instruction set that this processor has but the plain one, which is a reference, on one thread and on two. Each
part is timed beside the peak of multiply-adds in registers, in turn in one process, each time the best of three tries;
shares are medians of the rounds'.
Only multiply-adds that the network asks for count, no padding. Those of Winograd's convolutions are the products'; what
the direct form would take for the same result has a column of its own. Parts work on a strip's rows, which lie in the
second-level cache; the last one is a whole backbone, with what strips compute twice.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
from bench_machine import commit, processor
from peaks import compiler
from rich.console import Console
from rich.table import Table

from pcsr.runtime.atomic import write_whole
from pcsr.runtime.native import open_library

ROOT = Path(__file__).resolve().parent.parent


class Part(msgspec.Struct, frozen=True):
    """A part, of all threads together; medians.

    `gflops` and `share` of the peak count what is multiplied, `direct_share` what the direct form would; None where
    nothing is. `nanoseconds` are for each pixel: of the output for per-pixel networks, else of the input.
    """

    name: str
    gflops: float | None
    share: float | None
    direct_share: float | None
    nanoseconds: float


class Run(msgspec.Struct, frozen=True):
    """An instruction set on so many threads; the peak is a median, too."""

    instruction_set: str
    threads: int
    peak_gflops: float
    parts: tuple[Part, ...]


class Report(msgspec.Struct, frozen=True):
    """All runs, where and when they were."""

    processor: str
    compiler: str
    commit: str
    date: str
    rounds: int
    runs: tuple[Run, ...]


def measure(rounds: int) -> Iterator[Run]:
    """Compile for each instruction set, and run on one thread and on two."""
    for instruction_set in open_library().instruction_sets[1:]:
        program = f"build/bench/{instruction_set}"
        command = ["make", program, f"CXX={' '.join(compiler())}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        for threads in (1, 2):
            done = subprocess.run(
                [str(ROOT / program), str(threads), str(rounds)], capture_output=True, text=True, check=True
            )
            yield read_run(done.stdout, instruction_set, threads=threads)


def read_run(printed: str, instruction_set: str, *, threads: int) -> Run:
    """What the program printed: a line for each part, an empty one, a line for each round."""
    described, measured = printed.split("\n\n")
    rounds = [[float(number) for number in line.split("\t")] for line in measured.splitlines()]
    peaks = [row[0] for row in rounds]
    parts = []
    for number, line in enumerate(described.splitlines(), start=1):
        name, *numbers = line.split("\t")
        multiplied, direct, pixels = (threads * float(each) for each in numbers)
        seconds = [row[number] for row in rounds]
        median = statistics.median(seconds)
        # What the peak would have done in the same time.
        possible = statistics.median(peak * each for peak, each in zip(peaks, seconds, strict=True))
        parts.append(
            Part(
                name,
                gflops=2e-9 * multiplied / median if multiplied else None,
                share=multiplied / possible if multiplied else None,
                direct_share=direct / possible if direct else None,
                nanoseconds=1e9 * median / pixels,
            )
        )
    return Run(instruction_set, threads, 2e-9 * statistics.median(peaks), tuple(parts))


def print_run(run: Run) -> None:
    """A row for each part."""
    table = Table(title=f"{run.instruction_set}, threads: {run.threads}; peak {run.peak_gflops:.0f} GFLOP/s")
    table.add_column("part")
    for name in ("GFLOP/s", "of the peak", "as direct", "ns/pixel"):
        table.add_column(name, justify="right")
    for part in run.parts:
        shares = ("" if each is None else f"{each:.1%}" for each in (part.share, part.direct_share))
        gflops = "" if part.gflops is None else f"{part.gflops:.0f}"
        table.add_row(part.name, gflops, *shares, f"{part.nanoseconds:.2f}")
    # Wide enough for the table whatever the terminal: nothing is abbreviated in a log.
    Console(width=100).print(table)


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True)
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write the numbers here.")
def main(*, rounds: int, report: Path | None) -> None:
    """Measure the native kernels beside the peak."""
    runs = []
    for run in measure(rounds):
        print_run(run)
        runs.append(run)
    if report is not None:
        said = subprocess.run([*compiler(), "--version"], capture_output=True, text=True, check=True)
        here = processor()
        made = Report(
            processor=f"{here.model} ({here.vendor}), {here.cores} cores",
            compiler=said.stdout.splitlines()[0],
            commit=commit(),
            date=time.strftime("%Y-%m-%d"),
            rounds=rounds,
            runs=tuple(runs),
        )
        write_whole(report, msgspec.json.format(msgspec.json.encode(made)) + b"\n")


if __name__ == "__main__":
    main()
