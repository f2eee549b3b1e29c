"""`pcsr-train`: a folder of photographs to a PCSR network."""

from __future__ import annotations

from pathlib import Path

import click

from pcsr.runtime.console import exit_on_error, start_logging
from pcsr.runtime.errors import OptionError

__all__ = ["main"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("config", metavar="CONFIG.yaml")
@click.option("--data", metavar="FOLDER", help="Folder of training pictures.")
@click.option("--out", default="training-run", show_default=True, help="Folder for state, log and network.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out; a changed plan extends it.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:1.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key, like data.patch=32."
)
@click.option("--hours", type=float, help="Plan by time from now on, at the speed measured at the start.")
@click.option("--threads", type=click.IntRange(1), help="Threads on a CPU; all usable cores by default.")
@click.option("--validate", metavar="FOLDER", help="A few small pictures to measure on while training.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard's files too.")
@click.option("--dry-run", is_flag=True, help="Only show sizes, cost, memory and hours.")
@click.option("-v", "--verbose", is_flag=True, help="Log details.")
@exit_on_error()
def main(
    config: str,
    data: str | None,
    out: str,
    resume: bool,
    device: str,
    settings: tuple[str, ...],
    hours: float | None,
    threads: int | None,
    validate: str | None,
    tensorboard: bool,
    dry_run: bool,
    verbose: bool,
) -> None:
    """Train a PCSR network.

    CONFIG.yaml is a file, or the name of one that ships with the toolkit: carn, fsrcnn, srresnet, carn-m3.
    Ctrl-C and SIGTERM save before they end the run; --resume goes on exactly where the last state was saved.

    Status: 0 done, 1 the run stopped (its last good state is kept), 2 nothing was tried, 130 interrupted.
    """
    start_logging(verbose=verbose)
    try:
        from pcsr.training import command
    except ModuleNotFoundError as error:
        raise OptionError(f"training needs {error.name}; run: pip install 'pcsr[train]'") from error
    request = command.Request(
        config=Path(config),
        data=data,
        out=Path(out),
        resume=resume,
        device=device,
        settings=settings,
        hours=hours,
        threads=threads,
        validate=validate,
        tensorboard=tensorboard,
    )
    if dry_run:
        click.echo("\n".join(command.dry_run(request)))
        return
    result = command.run_command(request)
    click.echo(f"{result}: written; pcsr-export {result} -o BUNDLE makes a bundle of it")
