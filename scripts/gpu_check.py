"""The one command on a machine with an NVIDIA GPU: proves and times what is said of GPUs, and writes it down.

    python scripts/gpu_check.py -c training/networks/carn.safetensors --output docs/results/NAME.json

The file is written anew, whole, after every check, so that a run that is cut off has told what it knew. A check that
fails stops no other. With --dry-run all of it runs on the processor, in small, and proves no more than that it runs.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
from gpu_check_int8 import INT8
from gpu_check_proofs import PROOFS as PROOFS_OF_FLOATS
from gpu_check_setup import Figures, NotProven, Setup, Skip
from gpu_check_targets import Cuda, Machine, Simulated
from gpu_check_timings import PEERS, TIMINGS, goals
from rich.console import Console
from rich.table import Table

from pcsr.runtime.atomic import write_whole
from pcsr.runtime.console import exit_on_error
from pcsr.runtime.errors import BackendError, OptionError
from pcsr.runtime.shipped import find_bundle

SCHEMA = 1
PROOFS = {**PROOFS_OF_FLOATS, **INT8}
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
# Of the minutes; what proofs leave of it, timings get too.
SHARE_OF_PROOFS = 0.6
LAST_LINES = 12


class Report:
    """What was found, in a file that is always whole."""

    def __init__(self, path: Path | None, head: Mapping[str, Any], console: Console) -> None:
        self._path, self._head, self._console = path, head, console
        self.results: list[dict[str, Any]] = []

    def add(self, result: dict[str, Any]) -> None:
        """Keep a result, and say it in a line."""
        self.results.append(result)
        self.write()
        note = f": {result['message']}" if result["message"] else ""
        name = f"{result['check']}, {result['target']}"
        self._console.print(
            f"{result['status']:7} {name} ({result['seconds']:.1f} s){note}", markup=False, highlight=False
        )

    def goals(self) -> list[str]:
        """What was aimed at beside what was measured, which nothing is in a dry run."""
        return [] if self._head["simulated"] else goals(self.results)

    def write(self) -> None:
        """The whole file anew."""
        if self._path is not None:
            whole = {**self._head, "results": self.results, "goals": self.goals()}
            # Infinity, as the PSNR of equal pictures, becomes null; NumPy's numbers become plain ones.
            text = msgspec.json.format(msgspec.json.encode(whole, enc_hook=float), indent=1)
            write_whole(self._path, text + b"\n")


def run_check(name: str, check: Callable[[], Figures], target: str) -> dict[str, Any]:
    """Run a check on a target, whatever becomes of it."""
    started, figures, message, trace = time.perf_counter(), None, "", None
    try:
        figures, status = check(), "passed"
    except Skip as skip:
        status, message = "skipped", str(skip)
    except NotProven as failure:
        status, message = "failed", str(failure)
    except Exception as error:  # the others are to run all the same
        status, message = "failed", f"{type(error).__name__}: {error}".partition("\n")[0]
        trace = traceback.format_exc().splitlines()[-LAST_LINES:]
    return _result(name, target, status, time.perf_counter() - started, figures, message, trace)


def _result(
    check: str,
    target: str,
    status: str,
    seconds: float = 0.0,
    figures: Figures | None = None,
    message: str = "",
    trace: Sequence[str] | None = None,
) -> dict[str, Any]:
    return {
        "check": check,
        "target": target,
        "status": status,
        "seconds": round(seconds, 3),
        "figures": figures,
        "message": message,
        "trace": trace,
    }


def run_all(
    setup: Setup, report: Report, *, only: Sequence[str], minutes: float, clock: Callable[[], float]
) -> None:
    """Open every backend that works here, prove, then time, until the time is over."""
    begun = clock()
    with ExitStack() as stack:
        targets = []
        for backend, precision in setup.machine.backends:
            try:
                targets.append(stack.enter_context(setup.machine.opened(setup.bundle, backend, precision)))
            except BackendError as error:
                report.add(_result("open", f"{backend} {precision}", "skipped", message=str(error)))
        for checks, until in ((PROOFS, SHARE_OF_PROOFS * 60 * minutes), (TIMINGS, 60 * minutes)):
            for name, check in checks.items():
                if only and name not in only:
                    continue
                # Peers are the same for every target.
                for target in targets[:1] if name in PEERS else targets:
                    if clock() - begun > until:
                        report.add(_result(name, target.label, "skipped", message="no time left"))
                    else:
                        report.add(run_check(name, partial(check, setup, target), target.label))


def machine_for(device: str, engine_cache: str | None, *, dry_run: bool) -> Machine:
    """The machine that checks run on.

    Raises:
        BackendError: CuPy is missing or sees no such GPU.
    """
    if dry_run:
        return Simulated()
    try:
        return Cuda(device, engine_cache)
    except ImportError as error:
        raise BackendError(
            f"CuPy cannot be imported ({error}); install it with: pip install 'pcsr[gpu]', or rehearse with --dry-run"
        ) from error
    except RuntimeError as error:
        raise BackendError(
            f"CuPy cannot use {device} ({error}); pcsr-doctor says what is missing, --dry-run rehearses without a GPU"
        ) from error


def _shown(value: object) -> object:
    # Where files lie is nobody's business.
    return value.name if isinstance(value, Path) else value


def tables(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Times in Markdown: a table for each check and case."""
    lines = []
    for result in results:
        if result["check"] not in TIMINGS or result["status"] != "passed":
            continue
        figures = result["figures"]
        if result["check"] == "stages":
            lines += [
                f"\n{figures['case']}, {result['target']}, adaptive\n",
                "| stage | ms | least by bandwidth |",
                "|---|---|---|",
            ]
            lines += [
                f"| {name} | {each['ms']:.3f} | {each['least ms']:.3f} |"
                for name, each in figures["stages"].items()
            ]
            continue
        cases = {"": figures} if result["check"] == "pictures" else figures
        for case, timed in cases.items():
            lines += [
                f"\n{result['check']} {case}, {result['target']}\n",
                "| | ms | of the first | shares |",
                "|---|---|---|---|",
            ]
            for name, each in timed.items():
                if "error" in each:
                    lines.append(f"| {name} | {each['error']} | | |")
                    continue
                low, middle, high = each["ms"]
                shares = " / ".join(f"{100 * share:.1f}" for share in each.get("shares", ()))
                lines.append(
                    f"| {name} | {middle:.2f} [{low:.2f}, {high:.2f}] | {each['of the first'][1]:.3f} | {shares} |"
                )
    return lines


def print_summary(console: Console, title: str, results: Sequence[Mapping[str, Any]]) -> None:
    """A line for each check, a column for each target."""
    targets = list(dict.fromkeys(result["target"] for result in results))
    table = Table("check", *targets, title=title)
    for check in dict.fromkeys(result["check"] for result in results):
        row = {result["target"]: result["status"] for result in results if result["check"] == check}
        table.add_row(check, *(row.get(target, "") for target in targets))
    console.print(table)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", default="carn")
@click.option(
    "--checkpoint",
    "-c",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="That the bundle was exported from.",
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of the authors' cases (golden/) and checkpoints (official/).",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Sets of pictures.  [default: photographs of scikit-image]",
)
@click.option(
    "--dense",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The dense x4 network.  [default: random weights]",
)
@click.option("--device", default="cuda:0", show_default=True)
@click.option("--engine-cache", metavar="FOLDER", help="Where engines lie.")
@click.option("--build", is_flag=True, help="Build missing engines first; the minutes begin after that.")
@click.option(
    "--only", multiple=True, type=click.Choice([*PROOFS, *TIMINGS]), help="Run this check; may be repeated."
)
@click.option("--minutes", type=click.FloatRange(min=0), default=8.0, show_default=True)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("build/gpu-check"),
    show_default=True,
    help="Folder for bundles that are exported on the way.",
)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file, written anew after every check.")
@click.option("--markdown", is_flag=True, help="Print the times as tables for docs.")
@click.option("--dry-run", is_flag=True, help="In small, on the processor.")
@exit_on_error()
def main(
    *,
    bundle: str,
    checkpoint: Path | None,
    reference: Path | None,
    data: Path | None,
    dense: Path | None,
    device: str,
    engine_cache: str | None,
    build: bool,
    only: tuple[str, ...],
    minutes: float,
    work: Path,
    output: Path | None,
    markdown: bool,
    dry_run: bool,
) -> None:
    """Prove and time BUNDLE (default: carn) on a GPU."""
    if dry_run and output is not None and output.resolve().is_relative_to(RESULTS):
        raise OptionError(
            f"{output} lies where results of GPUs are kept; a dry run is none: name another file"
        )
    machine = machine_for(device, engine_cache, dry_run=dry_run)
    folder = find_bundle(bundle)
    work.mkdir(parents=True, exist_ok=True)
    setup = Setup(
        machine=machine,
        bundle=folder,
        checkpoint=checkpoint,
        reference=reference,
        data=data,
        dense=dense,
        work=work,
        small=dry_run,
    )
    console = Console()
    head = {
        "schema": SCHEMA,
        "title": machine.title,
        "simulated": machine.simulated,
        "device": device if not dry_run else "simulated",
        "arguments": {name: _shown(value) for name, value in click.get_current_context().params.items()},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "bundle": folder.name,
        "machine": machine.describe(),
    }
    report = Report(output, head, console)
    report.write()
    if build:
        report.add(run_check("build", lambda: machine.build(folder, work), folder.name))
        if reference is not None and not dry_run:
            report.add(run_check("build", lambda: machine.build(setup.reference_bundle(), work), "carn-pcsr"))
    run_all(setup, report, only=only, minutes=minutes, clock=time.monotonic)
    print_summary(console, machine.title, report.results)
    for line in report.goals():
        console.print(line, markup=False, highlight=False)
    if markdown:
        for line in tables(report.results):
            click.echo(line)
    if any(result["status"] == "failed" for result in report.results):
        sys.exit(3)


if __name__ == "__main__":
    main()
