"""`pcsr-calibrate`: ranges and INT8 layers of a bundle, measured on pictures, into a cache for `pcsr-export`."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from pcsr.runtime.atomic import unwritable
from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.console import exit_on_error, progress_line, start_logging
from pcsr.runtime.errors import OptionError
from pcsr.runtime.machine import usable_cores
from pcsr.runtime.shipped import find_bundle

__all__ = ["main"]

logger = logging.getLogger(__name__)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("bundle", metavar="BUNDLE")
@click.option("--data", required=True, metavar="FOLDER", help="Folder of pictures, in subfolders too.")
@click.option("-o", "--output", required=True, metavar="CACHE.json", help="Calibration cache to write.")
@click.option(
    "--observer",
    type=click.Choice(["auto", "minmax", "percentile", "entropy", "mse"]),
    default="auto",
    show_default=True,
    help="How ranges are chosen; auto: whichever gives least noise on the pictures held out.",
)
@click.option("--percentile", type=float, default=99.99, show_default=True, help="For --observer percentile.")
@click.option("--k", type=float, default=0.0, show_default=True, help="Decision that routes pixels.")
@click.option("-s", "--scale", "scales", default="2,3,4", show_default=True, help="Scales to measure at.")
@click.option(
    "--pictures",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="How many; an eighth is held out.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of pictures.")
@click.option(
    "--allow-drop", type=float, default=0.03, show_default=True, help="dB of PSNR that INT8 may cost."
)
@click.option(
    "--sensitivity", metavar="FILE", help="Save what each layer costs: FILE.md, FILE.json, FILE.svg."
)
@click.option("--threads", type=click.IntRange(1, 512), help="All usable cores by default.")
@click.option("--force", is_flag=True, help="Replace an existing cache.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option("-v", "--verbose", is_flag=True, help="Log details.")
@exit_on_error()
def main(
    bundle: str,
    data: str,
    output: str,
    observer: str,
    percentile: float,
    k: float,
    scales: str,
    pictures: int,
    seed: int,
    allow_drop: float,
    sensitivity: str | None,
    threads: int | None,
    force: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Measure what INT8 needs to know of a bundle.

    BUNDLE is a folder made by pcsr-export, or the name of a bundle that ships with pcsr. Pictures are shrunk by each
    scale and upscaled again in fp32: activations are observed on the pixels that are really routed to each upsampler.
    Then each layer is measured alone in INT8 on the pictures held out, and as many are chosen as --allow-drop permits.
    A run that was killed goes on when it is started again in the same way.

    Status: 0 done, 1 a file cannot be written, 2 nothing was tried, 3 a tensor became infinite, 130 interrupted.
    """
    start_logging(verbose=verbose)
    if not output or not data:
        raise OptionError("--data or -o is empty; name a folder of pictures, and the cache to write")
    place = Path(output)
    opened = read_bundle(find_bundle(bundle))
    try:
        from pcsr.calibration import report, run
        from pcsr.export.int8.cache import write_calibration
    except ModuleNotFoundError as error:
        raise OptionError(f"calibrating needs {error.name}; run: pip install 'pcsr[calibrate]'") from error
    files = [place]
    if sensitivity is not None:
        report.check_plotting()
        files += report.sensitivity_files(Path(sensitivity))
    _check_free(files, force)
    request = run.Request(
        data=Path(data),
        cache=place,
        observer=observer,
        percentile=percentile,
        k=k,
        scales=_scales(scales),
        pictures=pictures,
        seed=seed,
        allow_drop=allow_drop,
        threads=usable_cores() if threads is None else threads,
    )
    started = time.monotonic()
    try:
        with progress_line("calibrating") as tell:
            calibration = run.calibrate(
                opened, request, show=lambda what, share: tell(run.overall(what, share))
            )
        # Another calibration may have written it meanwhile.
        _check_free(files, force)
        write_calibration(place, calibration)
        if sensitivity is not None:
            report.write_sensitivity(Path(sensitivity), calibration)
    except KeyboardInterrupt:
        logger.info("what was done is kept beside %s: the same command goes on from here", place)
        raise
    except OSError as error:
        # A write says neither which file it was of nor what to do.
        reason = (
            f"{error.strerror or error}; make room there, what was done is kept and the same command goes on"
        )
        raise OSError(error.errno, reason, str(place)) from error
    run.forget_progress(place)
    if as_json:
        click.echo(
            msgspec.json.encode(
                {
                    "cache": str(place),
                    "layers": calibration.layers,
                    "effects": calibration.effects,
                    "shares": calibration.shares,
                    "skipped": calibration.skipped,
                    "seconds": round(time.monotonic() - started, 1),
                }
            ).decode()
        )
        return
    for line in report.summary(calibration):
        click.echo(line)
    click.echo(
        f"{place}: written in {time.monotonic() - started:.0f} s; use it with: "
        f"pcsr-export {bundle} -o NEW-BUNDLE --precision fp32,int8 --calibration {place}"
    )


def _check_free(files: Sequence[Path], force: bool) -> None:
    """Refuse to write where something is already, or where nothing can be."""
    for file in files:
        problem = unwritable(file)
        if problem is None and file.exists() and not force:
            problem = f"{file} exists; give --force to replace it, or write elsewhere"
        if problem is not None:
            raise OptionError(problem)


def _scales(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{text!r} are no scales; write them like 2,3,4 or 2.5") from None
