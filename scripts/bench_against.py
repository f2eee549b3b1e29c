"""This commit's ratios beside recorded ones of the same class of machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench_machine import machine_class
from bench_record import Cell, Picture, Processor, Record, Source
from bench_tables import Section

from pcsr.runtime.errors import OptionError

__all__ = ["BAND", "Change", "changes", "check_comparable", "verdict"]

BAND = 0.25
"""Relative change of a ratio's median that is not noise (docs/performance.md says how it was found)."""


@dataclass(frozen=True, slots=True)
class Change:
    """One ratio, then and now.

    Attributes:
        cell: size, scale and threads.
        name: of the row.
        baseline: whose time it is divided by.
        before: median in the record.
        now: median of this run.
        band: that `relative` must not leave.
    """

    cell: str
    name: str
    baseline: str
    before: float
    now: float
    band: float

    @property
    def relative(self) -> float:
        """0.1: a tenth slower."""
        return self.now / self.before - 1

    @property
    def holds(self) -> bool:
        """Within the band, as wide by quotient downwards as upwards."""
        return 1 / (1 + self.band) <= self.now / self.before <= 1 + self.band


def check_comparable(
    record: Record, processor: Processor, network: Source, dense: Source | None, picture: Picture
) -> None:
    """Refuse a record whose ratios would say nothing here.

    Raises:
        OptionError: it is of another class of machine, of more threads than there are cores here, of other networks
            or of another picture.
    """
    then, now = machine_class(record.environment.processor), machine_class(processor)
    if then != now:
        raise OptionError(
            f"the record is of another class of machine ({then}) than this one ({now}), and ratios of one say "
            "nothing about the other; name a record of this class, or make one with --json"
        )
    threads = max(cell.threads for cell in record.cells)
    if threads > processor.cores:
        raise OptionError(
            f"the record has cells of {threads} threads and this process may use "
            f"{processor.cores} cores; make a record here with --json"
        )
    for what, before, after in (
        ("network", record.network, network),
        ("dense network", record.dense, dense),
        ("picture", record.picture.sha256, picture.sha256),
    ):
        if before != after:
            raise OptionError(f"the record is of another {what}; give what it was made with, or make it anew")


def changes(before: Record, now: Record, band: float) -> list[Change]:
    """Every ratio that both have, of competitors of ours to others'.

    Raises:
        OptionError: they have none in common.
    """
    then = {cell.name: cell for cell in before.cells}
    found = [
        Change(cell.name, name, baseline, old, new, band)
        for cell in now.cells
        if cell.name in then
        for (name, baseline), new in _medians(cell)
        for old in [dict(_medians(then[cell.name])).get((name, baseline))]
        if old is not None
    ]
    if not found:
        raise OptionError("the record and this run have no ratio in common; ask for competitors that it has")
    return found


def _medians(cell: Cell) -> Iterator[tuple[tuple[str, str], float]]:
    """Row and baseline with the median ratio, of the runtime's rows."""
    for row in cell.rows:
        if row.rule is not None and row.competitor != "oracle":
            for baseline, quartiles in row.ratios.items():
                yield (row.name, baseline), quartiles[1]


def verdict(found: Sequence[Change]) -> Section:
    """The table of all ratios, those outside the band named."""
    rows = [
        (
            f"{each.name}, of {each.baseline}",
            each.cell,
            f"{each.before:.3f}",
            f"{each.now:.3f}",
            f"{100 * each.relative:+.1f} %",
            "holds" if each.holds else "SLOWER" if each.relative > 0 else "FASTER: record it anew",
        )
        for each in found
    ]
    return Section(
        f"Against the record, band {100 * found[0].band:g} %",
        ("ratio", "cell", "record", "now", "change", "verdict"),
        tuple(rows),
    )
