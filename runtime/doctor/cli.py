"""`pcsr-doctor`: what is installed, what works, what is missing and what to do about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import click

from pcsr.runtime.console import exit_on_error, progress_line, start_logging
from pcsr.runtime.doctor.examination import DEFAULT_TIMEOUT, examine
from pcsr.runtime.doctor.report import REQUIREMENTS, Check, Group, Report, pcsr_version
from pcsr.runtime.errors import CheckError

__all__ = ["main"]

STYLES = {"ok": "green", "warning": "yellow", "missing": "cyan", "broken": "bold red"}
# Where nobody watches, no terminal's width breaks a command in two.
PLAIN_WIDTH = 200


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--require",
    "required",
    multiple=True,
    type=click.Choice(list(REQUIREMENTS)),
    help="Fail if this does not work. May be given several times.  [default: cpu]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=DEFAULT_TIMEOUT,
    show_default=True,
    help="Seconds that each trial may take.",
)
@click.option(
    "--engine-cache",
    type=click.Path(path_type=Path),
    help="Folder of TensorRT engines.  [default: in the bundle, or the user's cache]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option("-v", "--verbose", is_flag=True, help="Also show what failed trials wrote.")
@click.version_option(package_name="pcsr")
@exit_on_error()
def main(
    *,
    required: tuple[str, ...],
    timeout: float,
    engine_cache: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Examine this machine: what is installed, what works, what is missing.

    What may crash or hang is tried in child processes. Nothing is written. For a bug report, paste the output.

    Status: 0 what is required works, 2 usage, 3 it does not, 130 interrupted.
    """
    start_logging(verbose=verbose)
    required = tuple(dict.fromkeys(required)) or ("cpu",)
    with progress_line("examining") as show:
        report = examine(timeout=timeout, engine_cache=engine_cache, progress=show)
    if as_json:
        click.echo(json.dumps(report.as_json(required)))
    else:
        _show(report, verbose=verbose)
    failing = {name: check for name in required if (check := report.failing(name)) is not None}
    if failing:
        raise CheckError("; ".join(_why(name, check) for name, check in failing.items()))
    if not as_json:
        click.echo(f"{', '.join(required)}: works")


def _why(requirement: str, check: Check) -> str:
    todo = f"; to do: {check.todo}" if check.todo else ""
    return f"{requirement} does not work: {check.title}: {check.summary}{todo}"


def _show(report: Report, *, verbose: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    console.print(f"pcsr-doctor {pcsr_version()}, {report.seconds:.1f} s")
    width = max(len(check.title) for check in report.checks.values())
    for group in get_args(Group):
        table = Table(title=group, title_justify="left", title_style="bold", show_header=False, box=None)
        table.add_column(width=max(map(len, STYLES)))
        table.add_column(width=width)
        table.add_column(overflow="fold")
        for check in report.checks.values():
            # What nobody needs who has not got it is in the JSON object only.
            if check.group != group or (check.status == "missing" and not check.todo):
                continue
            table.add_row(
                Text(check.status, STYLES[check.status]), check.title, Text(_printable(check.summary))
            )
            if check.todo:
                table.add_row("", "", Text(f"→ {_printable(check.todo)}"))
            if verbose and check.output:
                table.add_row("", "", Text(_printable(check.output), "dim"))
        if table.row_count:
            console.print()
            console.print(table)
    console.print()


def _printable(text: str) -> str:
    # Names of devices and messages of libraries are neither markup nor commands to the terminal.
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)
