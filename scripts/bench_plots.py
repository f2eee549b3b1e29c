"""Two pictures of a record: time against PSNR, and time against size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from bench_record import Cell, Record, Row, label, median_ms
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

__all__ = ["draw", "plot_dial", "plot_growth"]

COLOURS = {
    "native": "tab:orange",
    "onnxruntime": "tab:blue",
    "int8": "tab:cyan",
    "dense-onnxruntime": "black",
    "dense-openvino": "tab:purple",
    "dense-pytorch": "tab:red",
    "oracle": "tab:brown",
    "bicubic": "tab:green",
}
# Elements are named by content and not at random, so that the same record gives the same file.
STYLE = {"svg.hashsalt": "pcsr", "svg.fonttype": "path", "font.size": 9}


def draw(record: Record, folder: Path, stem: str) -> list[Path]:
    """Draw what the record has: files `STEM-dial.svg` and `STEM-growth.svg` in the folder.

    Args:
        record: with PSNR for the one, several sizes for the other.
        folder: made where it is not there.
        stem: begins the names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with mpl.rc_context(STYLE):
        for name, figure in (("dial", plot_dial(record)), ("growth", plot_growth(record))):
            if figure is not None:
                file = folder / f"{stem}-{name}.svg"
                figure.savefig(file, metadata={"Date": None}, bbox_inches="tight")
                made.append(file)
    return made


def plot_dial(record: Record) -> Figure | None:
    """Time against PSNR in the first cell that has a ground truth: budgets as a curve, the others as points."""
    cell = next((c for c in record.cells if any(row.psnr is not None for row in c.rows)), None)
    if cell is None:
        return None
    figure = Figure(figsize=(7.5, 4.2))
    axes: Axes = figure.subplots()
    for name in dict.fromkeys(row.competitor for row in cell.rows):
        rows = [row for row in cell.rows if row.competitor == name and row.psnr is not None]
        budgets = sorted((row for row in rows if (row.rule or "").startswith("budget")), key=median_ms)
        if budgets:
            axes.plot(*_points(budgets), "o-", color=COLOURS.get(name), markersize=4, label=f"{name}, budget")
        for marker, rule in (("s", "k=0"), ("D", "adaptive")):
            chosen = [row for row in rows if row.rule == rule and name != "oracle"]
            if chosen:
                axes.plot(*_points(chosen), marker, color=COLOURS.get(name), label=label(name, rule))
        others = [row for row in rows if row.rule is None or name == "oracle"]
        if others:
            axes.plot(*_points(others), "^", color=COLOURS.get(name), label=others[0].name)
    axes.set(xscale="log", xlabel="milliseconds, median", ylabel="PSNR, dB", title=_title(record, cell))
    _number(axes.xaxis)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def plot_growth(record: Record) -> Figure | None:
    """Time against output pixels of every competitor that has several sizes."""
    if not record.growth:
        return None
    figure = Figure(figsize=(7.5, 4.2))
    axes: Axes = figure.subplots()
    styles = dict(
        zip(sorted({(g.scale, g.threads) for g in record.growth}), ("-", "--", "-.", ":"), strict=False)
    )
    for line in record.growth:
        chosen = sorted(
            (
                (cell.output_pixels / 1e6, median_ms(row) / 1000)
                for cell in record.cells
                if (cell.scale, cell.threads) == (line.scale, line.threads)
                for row in cell.rows
                if row.name == line.name
            ),
        )
        axes.plot(
            *zip(*chosen, strict=True),
            marker="o",
            markersize=4,
            linestyle=styles.get((line.scale, line.threads), "-"),
            color=COLOURS.get(line.name.partition(",")[0]),
            label=f"{line.name}, ×{line.scale:g}, threads: {line.threads} ({line.ns_per_pixel:.0f} ns/pixel)",
        )
    axes.set(xscale="log", yscale="log", xlabel="output, megapixels", ylabel="seconds, median")
    axes.set_title(_title(record, None))
    _number(axes.xaxis)
    _number(axes.yaxis)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def _number(axis: Axis) -> None:
    """Mark a logarithmic axis at 1, 2, 5, 10 and so on, in plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
    axis.axes.grid(visible=True, alpha=0.25)


def _points(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [median_ms(row) for row in rows], [row.psnr for row in rows if row.psnr is not None]


def _title(record: Record, cell: Cell | None) -> str:
    where = record.environment.processor.model
    return f"{record.network.backbone}, {where}" + ("" if cell is None else f", {cell.name}")
