"""What `pcsr-upscale` does when it has understood what is asked: one picture, or many."""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pcsr.runtime.atomic import sweep_partial
from pcsr.runtime.console import Status, progress_line
from pcsr.runtime.errors import OptionError, PcsrError
from pcsr.runtime.files import FileRequest, FileResult, FileWork
from pcsr.runtime.folder.plan import Plan
from pcsr.runtime.options import Progress
from pcsr.runtime.report import failure, line, report
from pcsr.runtime.sheltered import sheltered

if TYPE_CHECKING:
    from pcsr.runtime.upscaler import Upscaler

__all__ = ["make_output", "upscale_many", "upscale_one"]

logger = logging.getLogger(__name__)


def upscale_one(upscaler: Upscaler, request: FileRequest, *, as_json: bool) -> None:
    """Upscale a picture, with a bar, and print what became of it.

    Raises:
        KeyboardInterrupt: nothing is left of it.
        PcsrError: as `upscale_file` raises.
    """
    # A folder that may be written to and not be listed cannot be swept.
    with suppress(OSError):
        if swept := sweep_partial(request.target.absolute().parent):
            logger.info("removed %d unfinished files of a run that was killed", swept)
    work = FileWork(upscaler, request)

    def upscale(show: Progress) -> FileResult:
        with work:
            work.open()
            work.compute(show)
            return work.finish()

    try:
        with progress_line("upscaling") as show:
            result = sheltered(lambda: upscale(show), interrupt=work.break_off)
    except PcsrError as error:
        if as_json:
            click.echo(json.dumps(failure(request.source, request.target, " ".join(str(error).split()))))
        raise
    if as_json:
        click.echo(json.dumps(report(result, request.options, threads=upscaler.threads)))
    else:
        click.echo(line(result))


def upscale_many(
    upscaler: Upscaler, plan: Plan, request: FileRequest, *, as_json: bool, force: bool, resume: bool
) -> None:
    """Upscale the pictures of a plan, and print what became of each.

    Raises:
        SystemExit: a picture failed, or was not tried.
        KeyboardInterrupt: what was computed is written.
        OptionError: another run is at work in the folder, or its journal cannot be read.
    """
    from pcsr.runtime.folder.journal import Journal
    from pcsr.runtime.folder.resume import Resume
    from pcsr.runtime.folder.run import Run
    from pcsr.runtime.folder.telling import Teller

    with ExitStack() as stack:
        done_before = None
        if plan.root is not None:
            make_output(plan.root)
            if resume:
                manifest = (upscaler.bundle.path / "manifest.json").read_bytes()
                done_before = Resume(
                    journal=stack.enter_context(Journal.open(plan.root)),
                    request=request,
                    bundle_sha256=hashlib.sha256(manifest).hexdigest(),
                    precision=upscaler.precision,
                )
        logger.info("%d pictures to upscale", len(plan.jobs))
        teller = Teller(plan, request.options, threads=upscaler.threads, as_json=as_json)
        run = Run(
            upscaler=upscaler,
            plan=plan,
            request=request,
            listener=teller,
            force=force,
            resume=done_before,
        )
        try:
            with teller:
                run.run()
        finally:
            teller.summary(run)
    if run.counts["failed"] or run.counts["not tried"]:
        raise SystemExit(int(Status.FAILED))


def make_output(folder: Path) -> None:
    """Make the output folder, and those above it.

    Raises:
        OptionError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(
            f"cannot make the folder {folder}: {error.strerror or error}; name another with -o"
        ) from error
