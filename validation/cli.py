"""`pcsr-validate`: proof in dB that a bundle upscales as it should."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pcsr.runtime.atomic import unwritable
from pcsr.runtime.console import exit_on_error, start_logging
from pcsr.runtime.errors import OptionError
from pcsr.validation.baseline import write_baseline
from pcsr.validation.compare import Watch
from pcsr.validation.results import Rule
from pcsr.validation.run import Settings, baseline_of, validate, write_report
from pcsr.validation.sets import LrKind, find_sets
from pcsr.validation.tables import print_report

__all__ = ["main", "output_console", "parse_scales", "watching"]

# dB that a set may lose; int8 loses some by design, and this is more than a calibration allows.
MAX_DROP, INT8_MAX_DROP = 0.01, 0.1
# Where no terminal says how wide it is, tables are not folded.
WIDTH = 240


def parse_scales(text: str) -> tuple[float, ...]:
    """Scales of a text like "2,3,4" or "2.5".

    Raises:
        OptionError: it has another form.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{text!r} are no scales; write them like 2,3,4 or 2.5") from None


def output_console() -> Console:
    """Standard output for tables; wide when it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


@contextmanager
def watching(data: Path, *, scales: int, limit: int | None) -> Iterator[Watch]:
    """Progress on stderr: a bar on a terminal, else a line for each picture."""
    total = scales * sum(len(group.paths) for group in find_sets(data, limit=limit))
    console = Console(stderr=True)
    if not console.is_terminal:
        seen = 0

        def say(group: str, name: str, scale: float) -> None:
            nonlocal seen
            seen += 1
            click.echo(f"[{seen}/{total}] {group}/{name} ×{scale:g}", err=True)

        yield say
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total)
        started = False

        def show(group: str, name: str, scale: float) -> None:
            nonlocal started
            progress.update(task, advance=int(started), description=f"{group}/{name} ×{scale:g}")
            started = True

        yield show


@click.command()
@click.argument("bundle")
@click.option(
    "-c",
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Compare with PyTorch's published inference of this checkpoint, and fail below it.",
)
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of pictures (one set), or of folders of pictures (a set each): the ground truth.",
)
@click.option("-s", "--scale", "scales", default="4", show_default=True, help="Scales, like 2,3,4 or 2.5.")
@click.option(
    "--k", "ks", type=float, multiple=True, help="A column with this k; may be given several times."
)
@click.option("--adaptive", is_flag=True, help="A column with the paper's adaptive decision.")
@click.option("--budget", "budgets", type=float, multiple=True, help="A column with this budget, 0 to 1.")
@click.option("--refine", is_flag=True, help="Refinement, in runtime and oracle.")
@click.option(
    "--lr",
    type=click.Choice(["float", "8bit"]),
    default="float",
    show_default=True,
    help="Leave the LR that is made from the truth unrounded, or round it to 8 bits.",
)
@click.option("--device", default="cpu", show_default=True)
@click.option("--backend", default="auto", show_default=True)
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, fp16 or int8.")
@click.option(
    "--engine-cache",
    type=click.Path(path_type=Path),
    help="Folder of TensorRT engines.  [default: in the bundle, or the user's cache]",
)
@click.option("--threads", type=click.IntRange(min=1), help="Default: the cores this process may use.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N pictures of each set.")
@click.option(
    "--max-drop",
    type=float,
    help=f"dB that a set's mean PSNR may lie below the oracle's and the baseline's.  [default: {MAX_DROP}; "
    f"int8: {INT8_MAX_DROP}]",
)
@click.option("--baseline", type=click.Path(path_type=Path), help="Fail where a set fell below this file.")
@click.option(
    "--save-baseline", type=click.Path(path_type=Path), help="Keep the results as a baseline, if they pass."
)
@click.option("--report", type=click.Path(path_type=Path), help="Write everything as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
@exit_on_error()
def main(
    *,
    bundle: str,
    checkpoint: Path | None,
    data: Path,
    scales: str,
    ks: tuple[float, ...],
    adaptive: bool,
    budgets: tuple[float, ...],
    refine: bool,
    lr: LrKind,
    device: str,
    backend: str,
    precision: str,
    engine_cache: Path | None,
    threads: int | None,
    limit: int | None,
    max_drop: float | None,
    baseline: Path | None,
    save_baseline: Path | None,
    report: Path | None,
    verbose: bool,
) -> None:
    """Compare BUNDLE with ground truth, with PyTorch (-c) and with a baseline (--baseline).

    BUNDLE is one that ships with pcsr, by name, or a folder made by pcsr-export.

    The last line is PASSED, or FAILED with the reason, or says that nothing was gated.

    \b
    Status: 0 passed or reported, 1 a picture could not be compared, 2 nothing was tried,
    3 a check failed, 130 interrupted.
    """  # noqa: D301 - click's mark for lines that are to stay as they are
    start_logging(verbose=verbose)
    rules = (
        *(Rule("k", k) for k in ks),
        *([Rule("adaptive")] if adaptive else []),
        *(Rule("budget", budget) for budget in budgets),
    )
    settings = Settings(
        scales=parse_scales(scales),
        rules=rules or (Rule("k", 0.0),),
        refine=refine,
        lr=lr,
        device=device,
        backend=backend,
        precision=precision,
        engine_cache=None if engine_cache is None else str(engine_cache),
        threads=threads,
        max_drop=(INT8_MAX_DROP if precision == "int8" else MAX_DROP) if max_drop is None else max_drop,
        limit=limit,
    )
    # Found out now, not after an hour.
    for target in (save_baseline, report):
        if target is not None and (problem := unwritable(target)):
            raise OptionError(problem)
    with watching(data, scales=len(settings.scales), limit=limit) as watch:
        found = validate(
            bundle,
            data,
            settings,
            checkpoint=checkpoint,
            baseline=baseline,
            command=shlex.join(["pcsr-validate", *sys.argv[1:]]),
            watch=watch,
        )
    print_report(found, output_console())
    if report is not None:
        write_report(report, found)
    if save_baseline is not None:
        if found.status == 0:
            write_baseline(save_baseline, baseline_of(found))
        else:
            click.echo(f"{save_baseline} was not written: only a passed validation is kept", err=True)
    click.echo(found.verdict)
    sys.exit(found.status)
