"""A record as tables, for a terminal or for Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench_record import Cell, Quartiles, Record, Row, Source, Work, median_ms
from rich.console import Console
from rich.table import Table

__all__ = ["Section", "in_markdown", "on_terminal", "sections"]


@dataclass(frozen=True, slots=True)
class Section:
    """A table with what is said above it. The first column is text, the others are numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sections(record: Record) -> Iterator[Section]:
    """Everything that a record tells, the machine first."""
    yield _machine(record)
    for cell in record.cells:
        yield _times(cell)
        yield _work(cell)
        yield from _stages(cell)
    if record.growth:
        header = (
            "time against size",
            "scale",
            "threads",
            "ns per output pixel",
            "fixed ms",
            "largest to predicted",
        )
        rows = [
            (
                each.name,
                f"×{each.scale:g}",
                f"{each.threads}",
                f"{each.ns_per_pixel:.0f}",
                f"{each.fixed_ms:.0f}",
                f"{each.largest_to_predicted:.3f}",
            )
            for each in record.growth
        ]
        yield Section("Growth", header, tuple(rows))
    if record.speedups:
        rows = [
            (each.name, each.lr, f"×{each.scale:g}", "→".join(map(str, each.threads)), _spread(each.times))
            for each in record.speedups
        ]
        yield Section(
            "Threads",
            ("times faster by more threads", "LR", "scale", "threads", "median [quartiles]"),
            tuple(rows),
        )
    if record.process is not None:
        run = record.process
        found = (f"{statistics.median(run.seconds):.2f}", f"{max(run.peak_mib):.0f}")
        yield Section(
            "Whole process", ("start to end", "s, median", "MiB, largest"),
            ((f"`{run.command}`, {run.lr}, {len(run.seconds)} runs", *found),),
        )  # fmt: skip
    if record.left_out:
        yield Section("Left out", ("competitor", "why"), tuple(sorted(record.left_out.items())))


def _machine(record: Record) -> Section:
    environment = record.environment
    processor = environment.processor
    rows = [
        ("processor", f"{processor.model} ({processor.vendor}), {processor.cores} cores"),
        ("vector units", " ".join(processor.vector_units) or "none that is known"),
        ("caches", ", ".join(f"{level} {size}" for level, size in processor.caches.items()) or "not known"),
        *(
            (
                f"peak of threads: {threads}",
                f"{peak.gflops:.0f} GFLOP/s ({peak.instruction_set}), {peak.copy_gb_per_s:.1f} GB/s copied",
            )
            for threads, peak in environment.peaks.items()
        ),
        ("load before, after", " ".join(f"{load:.2f}" for load in environment.load)),
        ("versions", ", ".join(f"{name} {found}" for name, found in environment.versions.items())),
        ("commit", f"{environment.commit[:12]}{'+' * environment.commit.endswith('+')}, {environment.date}"),
        (
            "networks",
            f"{_source(record.network)}; dense: {_source(record.dense) if record.dense else 'none'}",
        ),
        (
            "picture",
            record.picture.name + (f", truth {record.picture.truth}" if record.picture.truth else ""),
        ),
        (
            "method",
            f"{record.method.rounds} rounds after {record.method.warm_up}, all in turn, "
            f"{record.method.pause_ms:.0f} ms of rest after each call",
        ),
    ]
    if not environment.peaks:
        rows.append(("peak", "not measured: no compiler"))
    return Section("Machine", ("", ""), tuple(rows))


def _source(source: Source) -> str:
    return f"{source.backbone} ({source.file or 'random weights: times say something, pictures nothing'})"


def _times(cell: Cell) -> Section:
    baselines = list(next(iter(cell.rows)).ratios) if cell.rows else []
    rows = [
        (
            row.name,
            _milliseconds(median_ms(row)),
            *(_spread(row.ratios[name]) for name in baselines),
            "" if row.shares is None else f"{100 * row.shares[-1]:.1f}",
            "" if row.psnr is None else f"{row.psnr:.4f}",
        )
        for row in cell.rows
    ]
    header = (cell.name, "ms", *(f"of {name}" for name in baselines), "heaviest class %", "PSNR dB")
    return Section(f"{cell.name}: times", header, tuple(rows))


def _work(cell: Cell) -> Section:
    rows = [
        (
            row.name,
            row.ran,
            "" if row.work is None else f"{row.work.gmacs:.2f}",
            _rate(row.work),
            f"{100 * row.busy:.0f}",
            f"{row.spun_ms:.1f}",
            *_difference(row),
        )
        for row in cell.rows
    ]
    header = (
        cell.name, "ran", "GMAC", "GFLOP/s (of peak)", "threads busy %", "spun on, ms",
        "levels from PyTorch, largest", "mean", "same class %",
    )  # fmt: skip
    return Section(f"{cell.name}: work, and nearness to PyTorch", header, tuple(rows))


def _difference(row: Row) -> tuple[str, str, str]:
    apart = row.difference
    if apart is None:
        return "", "", ""
    agreed = "" if apart.agreement is None else f"{100 * apart.agreement:.4f}"
    return f"{apart.largest}", f"{apart.mean:.1e}", agreed


def _stages(cell: Cell) -> Iterator[Section]:
    staged = [row for row in cell.rows if row.stages]
    if not staged:
        return
    names = list(staged[0].stages)
    rows = [
        (
            row.name,
            *(
                f"{_milliseconds(stage.milliseconds)}{'' if stage.work is None else ': ' + _rate(stage.work)}"
                for stage in (row.stages[name] for name in names)
            ),
        )
        for row in staged
    ]
    yield Section(f"{cell.name}: stages", ("ms: GFLOP/s (of peak)", *names), tuple(rows))


def _rate(work: Work | None) -> str:
    if work is None:
        return ""
    return f"{work.gflops:.0f}" + ("" if work.of_peak is None else f" ({100 * work.of_peak:.0f} %)")


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _spread(found: Quartiles) -> str:
    return f"{found[1]:.3f} [{found[0]:.3f}, {found[2]:.3f}]"


def on_terminal(parts: Sequence[Section], console: Console) -> None:
    """Print tables."""
    for part in parts:
        table = Table(title=part.title, title_justify="left")
        for number, name in enumerate(part.header):
            table.add_column(name, justify="right" if number and len(part.header) > 2 else "left")
        for row in part.rows:
            table.add_row(*row)
        console.print(table)


def in_markdown(parts: Sequence[Section]) -> str:
    """The same as Markdown."""
    lines = []
    for part in parts:
        lines += [f"**{part.title}**", "", _line(part.header), "|---" * len(part.header) + "|"]
        lines += [*(_line(row) for row in part.rows), ""]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
