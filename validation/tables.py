"""A report as tables for people."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pcsr.runtime.console import format_size
from pcsr.validation.metrics import shave_for
from pcsr.validation.results import Comparison, Quality, SetComparison
from pcsr.validation.run import Report

__all__ = ["print_report"]


def print_report(report: Report, console: Console) -> None:
    """Print every picture, then each set with a column for each rule, then what failed; not the verdict."""
    ran, settings = report.ran, report.settings
    _say(
        console,
        f"{report.bundle} on {ran['backend']} {ran['provider']} {ran['precision']}, "
        f"{ran['threads']} threads, against {report.checkpoint or 'the truth only'}",
    )
    _say(
        console,
        f"LR: MATLAB's bicubic, {'unrounded' if settings.lr == 'float' else '8 bits'}; "
        f"refinement {'on' if settings.refine else 'off'}. PSNR in dB, RGB and Y (MATLAB's luma); "
        "SSIM of Y; both without the scale's number of pixels on each side. "
        "Between runtime and oracle: unrounded values of the whole picture.",
    )
    for one in report.sets:
        console.print(_pictures(one))
    for _, columns in itertools.groupby(report.sets, key=lambda one: (one.set, one.scale)):
        console.print(_summary(list(columns)))
    for failure in report.failures:
        _say(console, f"could not compare {failure.set}/{failure.name} ×{failure.scale:g}: {failure.message}")
    for note in report.notes:
        _say(console, f"note: {note}")
    for reason in report.check_failures:
        _say(console, f"check failed: {reason}")


def _say(console: Console, line: str) -> None:
    # As Text: file names may hold what rich would take for markup.
    console.print(Text(line), soft_wrap=True)


def _pictures(one: SetComparison) -> Table:
    """A row for each picture of a set, the set's own row last."""
    names = ["picture", "size", "bicubic", "PSNR", "PSNR Y", "SSIM"]
    if one.fidelity is not None:
        names += ["oracle", "oracle Y", "oracle SSIM", "between", "largest diff", "same class %"]
    names += [f"{_class_names(one)} %", "GFLOPs", "GMACs", "% of all heavy"]
    table = _table(f"{one.set} ×{one.scale:g} {one.rule} (shave {shave_for(one.scale)})", names)
    for picture in one.pictures:
        _row(table, [picture.name, format_size(picture.size), *_numbers(picture)])
    table.add_section()
    _row(table, [f"all {len(one.pictures)}", "", *_numbers(one)])
    return table


def _summary(columns: list[SetComparison]) -> Table:
    """A column for each rule, of one set at one scale."""
    first = columns[0]
    table = _table(
        f"{first.set} ×{first.scale:g}, {len(first.pictures)} pictures",
        ["mean", "bicubic", *(one.rule for one in columns)],
    )
    bicubic = _quality(first.bicubic)
    for row, name in enumerate(("PSNR", "PSNR Y", "SSIM")):
        _row(table, [name, bicubic[row], *(_quality(one.runtime)[row] for one in columns)])
    if first.oracle is not None:
        for row, name in enumerate(("oracle PSNR", "oracle PSNR Y", "oracle SSIM")):
            _row(table, [name, "", *(_quality(one.oracle)[row] if one.oracle else "" for one in columns)])
        drops = ("" if one.drop is None else f"{one.drop:z.5f}" for one in columns)
        _row(table, ["drop from oracle", "", *drops])
        for row, name in enumerate(("lowest PSNR between", "largest difference", "same class %")):
            _row(table, [name, "", *(_fidelity(one)[row] for one in columns)])
    for row, name in enumerate(
        (f"{_class_names(first)} %", "GFLOPs (paper)", "GMACs (true)", "% of all heavy, both")
    ):
        _row(table, [name, "", *(_cost(one)[row] for one in columns)])
    _row(table, ["seconds", "", *(f"{one.milliseconds / 1000:.2f}" for one in columns)])
    return table


def _table(title: str, names: list[str]) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for number, name in enumerate(names):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _row(table: Table, cells: Iterable[str]) -> None:
    table.add_row(*(Text(cell) for cell in cells))


def _numbers(one: Comparison | SetComparison) -> list[str]:
    cells = [f"{one.bicubic.psnr:.4f}", *_quality(one.runtime)]
    if one.oracle is not None:
        cells += _quality(one.oracle) + _fidelity(one)
    return cells + _cost(one)


def _class_names(one: SetComparison) -> str:
    classes = len(one.shares)
    return "light / heavy" if classes == 2 else "class " + " / ".join(map(str, range(classes)))


def _quality(quality: Quality) -> list[str]:
    similar = "-" if math.isnan(quality.ssim) else f"{quality.ssim:.5f}"
    return [f"{quality.psnr:.4f}", f"{quality.psnr_y:.4f}", similar]


def _fidelity(one: Comparison | SetComparison) -> list[str]:
    if one.fidelity is None:
        return ["", "", ""]
    near = one.fidelity
    return [f"{near.psnr:.2f}", f"{near.largest_difference:.1e}", f"{near.agreement:.4f}"]


def _cost(one: Comparison | SetComparison) -> list[str]:
    return [
        " / ".join(f"{100 * share:.2f}" for share in one.shares),
        f"{one.flops / 1e9:.3f}",
        f"{one.macs / 1e9:.3f}",
        f"{100 * one.flops / one.flops_all_heavy:.1f} / {100 * one.macs / one.macs_all_heavy:.1f}",
    ]
