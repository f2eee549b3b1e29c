"""What a calibration found, as text, table, JSON and plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pcsr.export.int8.cache import Calibration, Sensitivity
from pcsr.runtime.atomic import whole_file, write_whole
from pcsr.runtime.errors import OptionError

__all__ = ["sensitivity_files", "summary", "write_sensitivity"]

SUFFIXES = (".md", ".json", ".svg")
# Layers whose names the plot shows.
NAMED = 8


def summary(calibration: Calibration) -> list[str]:
    """A few lines on observer, layers, cost and share."""
    settings = calibration.settings
    observers = ", ".join(
        f"{observed.observer}{'' if observed.percentile is None else f' {observed.percentile:g}'} for {graph}"
        for graph, observed in settings.observers.items()
    )
    uses = [picture.use for picture in calibration.pictures]
    chosen, whole = (sum(map(len, part.values())) for part in (calibration.layers, calibration.weights))
    lines = [
        f"observers: {observers}; {uses.count('calibration')} pictures observed, {uses.count('held out')} held out, "
        f"{len(calibration.skipped)} skipped",
        f"{chosen} of {whole} layers in INT8, of all multiply-accumulates "
        + ", ".join(f"{100 * share:.1f} % at ×{scale}" for scale, share in calibration.shares.items()),
    ]
    for name, effect in calibration.effects.items():
        drops = ", ".join(f"{drop:+.3f} at ×{scale}" for scale, drop in effect.drops.items())
        lines.append(
            f"{name}: mean drop {drops} dB, worst picture {effect.worst:.3f} dB, same class {effect.agreement:.1f} %"
        )
    if not chosen:
        lines.append(
            f"no layer is within {settings.allow_drop:g} dB; raise --allow-drop, or give more --pictures"
        )
    return lines


def sensitivity_files(file: Path) -> tuple[Path, Path, Path]:
    """Where table, JSON and plot go: beside one another, whatever of their endings was given."""
    stem = file.with_suffix("") if file.suffix in SUFFIXES else file
    table, data, plot = (stem.with_name(stem.name + suffix) for suffix in SUFFIXES)
    return table, data, plot


def write_sensitivity(file: Path, calibration: Calibration) -> tuple[Path, Path, Path]:
    """Write the sensitivities as a table (.md), JSON and a plot (.svg).

    Raises:
        OptionError: matplotlib, which draws the plot, is missing.
        OSError: a file cannot be written.
    """
    table, data, plot = sensitivity_files(file)
    rows = sorted(calibration.sensitivities, key=lambda row: -row.effect.noise)
    write_whole(table, ("\n".join(_table(rows, calibration)) + "\n").encode())
    write_whole(data, msgspec.json.format(msgspec.json.encode(calibration.sensitivities), indent=1) + b"\n")
    _plot(plot, rows, calibration)
    return table, data, plot


def _is_chosen(row: Sensitivity, calibration: Calibration) -> bool:
    return row.nodes[0] in calibration.layers[row.graph]


def _table(rows: Sequence[Sensitivity], calibration: Calibration) -> list[str]:
    scales = list(rows[0].effect.drops)
    drops = [f"drop ×{scale} dB" for scale in scales]
    head = ["graph", "layer", "share of MACs %", *drops, "noise", "same class %", "int8"]
    lines = [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * (len(head) - 3) + "---|"]
    for row in rows:
        cells = [row.graph, row.output, f"{100 * row.share:.2f}"]
        cells += [f"{row.effect.drops[scale]:.4f}" for scale in scales]
        cells += [f"{row.effect.noise:.2e}", f"{row.effect.agreement:.2f}"]
        cells.append("yes" if _is_chosen(row, calibration) else "no")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def check_plotting() -> None:
    """Say before the work that the plot cannot be drawn.

    Raises:
        OptionError: matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise OptionError(
            "the plot of --sensitivity needs matplotlib; run: pip install 'pcsr[calibrate]'"
        ) from error


def _plot(file: Path, rows: Sequence[Sensitivity], calibration: Calibration) -> None:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # The same table gives the same file.
    with mpl.rc_context({"svg.hashsalt": "pcsr", "font.size": 9}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        FigureCanvasSVG(figure)
        axes: Any = figure.add_subplot()
        for chosen, colour, label in ((True, "#2b6cb0", "in INT8"), (False, "#c05621", "floating point")):
            group = [row for row in rows if _is_chosen(row, calibration) == chosen]
            axes.scatter(
                [100 * row.share for row in group],
                [max(row.effect.noise, 1e-12) for row in group],
                color=colour, label=label, s=18,
            )  # fmt: skip
        for row in rows[:NAMED]:
            axes.annotate(
                row.output if row.graph == "backbone" else f"{row.graph} {row.output}",
                (100 * row.share, max(row.effect.noise, 1e-12)),
                textcoords="offset points", xytext=(5, 3), fontsize=7,
            )  # fmt: skip
        axes.set(
            yscale="log",
            xmargin=0.15,
            xlabel="share of all multiply-accumulates, %",
            ylabel="mean squared difference from fp32",
            title="Each layer alone in INT8",
        )
        axes.legend()
        with whole_file(file) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
