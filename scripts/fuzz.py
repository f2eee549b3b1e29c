"""Damaged pictures, bundles, manifests, checkpoints and calibration caches, by the thousand, as strangers send them.

    python scripts/fuzz.py --target picture --cases 10000 --keep found

Each is made from an intact one, a seed deciding how, and done in a child process as a program would do it. It may
succeed, or be refused with an error of the family. A finding is all else: another exception, a signal, a hang, much
memory, something left in the folder, or a picture that was accepted and cannot be written.

Status: 0 nothing found, 2 usage, 3 something was found.
"""

from __future__ import annotations

import random
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import msgspec
from fuzz_case import Case, lay
from fuzz_targets import TARGETS, make_case
from fuzz_watch import Outcome, Watch
from rich.console import Console
from rich.table import Table

from pcsr.runtime.console import exit_on_error
from pcsr.runtime.errors import CheckError, OptionError

# Of a stranger's pictures: damage is found by small ones, in less time.
LARGEST = 1 << 20
# Inputs kept of findings that look alike.
ALIKE = 3


class Finding(msgspec.Struct, frozen=True):
    """What ended as nothing should; the first of those alike, and how many there were."""

    target: str
    verdict: str
    kind: str
    count: int
    origin: str
    seed: str
    detail: str
    replay: str


class Tally(msgspec.Struct, frozen=True):
    """What became of the cases of one target."""

    cases: int
    accepted: int
    refused: dict[str, int]
    found: int
    peak_growth_mib: float
    slowest_seconds: float
    seconds: float


class Report(msgspec.Struct, frozen=True):
    """All of a run."""

    seed: int
    targets: dict[str, Tally]
    findings: list[Finding]


@click.command()
@click.option(
    "--target", type=click.Choice([*TARGETS, "all"]), default="all", show_default=True, help="What to damage."
)
@click.option(
    "--cases", type=click.IntRange(1), default=300, show_default=True, help="How many, of each target."
)
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed makes the same cases.")
@click.option(
    "--corpus",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help=f"Folder of pictures, damaged beside those made here; files above {LARGEST >> 20} MiB are left out.",
)
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Folder for inputs that were findings, {ALIKE} at most of those alike.",
)
@click.option(
    "--replay",
    type=click.Path(exists=True, path_type=Path),
    help="Do this one file, or folder of a bundle, instead; needs --target.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@exit_on_error()
def main(
    target: str,
    cases: int,
    seed: int,
    corpus: Path | None,
    keep: Path | None,
    replay: Path | None,
    as_json: bool,
) -> None:
    """Look for inputs that end in anything but success or an error that was foreseen."""
    if replay is not None:
        if target == "all":
            raise OptionError(
                "--replay needs --target: what the file is for cannot be told from a damaged one"
            )
        return _replay(target, replay.absolute())
    extra = {} if corpus is None else _pictures(corpus)
    collected = Findings(keep)
    tallies = {}
    for name in TARGETS if target == "all" else [target]:
        with Watch() as watch:
            tallies[name] = _run(name, cases, seed, watch, collected, extra if name == "picture" else {})
    report = Report(seed, tallies, collected.all())
    if as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    else:
        _print(report)
    if report.findings:
        raise CheckError(
            f"{len(report.findings)} kinds of findings in {sum(t.cases for t in tallies.values())} cases"
        )


def _pictures(folder: Path) -> dict[str, bytes]:
    from pcsr.runtime.pictures import pictures_below

    files = pictures_below(folder, what_for="damage")
    small = [file for file in files if file.stat().st_size <= LARGEST]
    if not small:
        raise OptionError(f"{folder} has no picture of {LARGEST >> 20} MiB or less; name another folder")
    return {str(file): file.read_bytes() for file in small}


def seeded(target: str, seed: int, count: int) -> Iterator[tuple[str, random.Random]]:
    """Seeds of cases, and what decides with them: any case can be made without those before it."""
    for number in range(count):
        text = f"{seed}/{target}/{number}"
        yield text, random.Random(text)


class Findings:
    """Findings, counted by what they look like; the first few of those alike are kept on disk."""

    def __init__(self, keep: Path | None) -> None:
        self._keep = keep
        self._first: dict[tuple[str, str, str], Finding] = {}
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def add(self, case: Case, outcome: Outcome, seed: str) -> None:
        """Take one up, and say so on stderr."""
        alike = case.target, outcome.verdict, outcome.kind
        self._counts[alike] += 1
        replay = ""
        if self._keep is not None and self._counts[alike] <= ALIKE:
            folder = self._keep / f"{case.target}-{outcome.verdict}-{seed.replace('/', '-')}"
            folder.mkdir(parents=True, exist_ok=True)
            laid = lay(case, folder)
            replay = f"python scripts/fuzz.py --target {case.target} --replay {shlex.quote(str(laid))}"
        if alike not in self._first:
            self._first[alike] = Finding(
                *alike, count=1, origin=case.origin, seed=seed, detail=outcome.detail, replay=replay
            )
            click.echo(f"{outcome.verdict}: {outcome.kind}\n  {case.origin}", err=True)
            click.echo(f"  {replay}" if replay else f"  seed {seed}", err=True)

    def all(self) -> list[Finding]:
        """One of each."""
        return [
            msgspec.structs.replace(found, count=self._counts[alike]) for alike, found in self._first.items()
        ]


def _run(
    target: str, cases: int, seed: int, watch: Watch, found: Findings, extra: Mapping[str, bytes]
) -> Tally:
    started, accepted, findings, slowest, growth = time.monotonic(), 0, 0, 0.0, 0
    refused: Counter[str] = Counter()
    for text, decides in seeded(target, seed, cases):
        case = make_case(target, decides, extra=extra)
        outcome = watch.run(case)
        growth, slowest = max(growth, outcome.growth), max(slowest, outcome.seconds)
        if outcome.is_finding:
            findings += 1
            found.add(case, outcome, text)
        elif outcome.verdict == "accepted":
            accepted += 1
        else:
            refused[outcome.kind] += 1
    seconds = time.monotonic() - started
    return Tally(
        cases,
        accepted,
        dict(refused),
        findings,
        round(growth / 2**20, 1),
        round(slowest, 2),
        round(seconds, 1),
    )


def _replay(target: str, path: Path) -> None:
    with Watch() as watch:
        outcome = watch.run_on(target, path)
    click.echo(f"{outcome.verdict} {outcome.kind}".rstrip())
    click.echo(outcome.detail.rstrip())
    if outcome.is_finding:
        raise CheckError(f"{path} is a finding: {outcome.verdict}")


def _print(report: Report) -> None:
    console = Console(width=110)
    table = Table("target", "cases", "accepted", "refused", "found", "MiB at most", "slowest, s", "seconds")
    for name, tally in report.targets.items():
        refused = sum(tally.refused.values())
        figures = (
            tally.cases,
            tally.accepted,
            refused,
            tally.found,
            tally.peak_growth_mib,
            tally.slowest_seconds,
        )
        table.add_row(name, *map(str, figures), str(tally.seconds))
    console.print(table)
    for found in report.findings:
        console.print(
            f"{found.target}: {found.verdict}, {found.kind}, {found.count} times", markup=False, style="bold"
        )
        console.print(
            f"  {found.origin}\n  {found.replay or f'seed {found.seed}'}", markup=False, highlight=False
        )
        console.print(found.detail, markup=False, highlight=False)


if __name__ == "__main__":
    main()
