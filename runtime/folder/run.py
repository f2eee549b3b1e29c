"""Many pictures, one after another: reading, computing and encoding of successive ones overlap.

One thread reads ahead, one computes, and two wait for encoders and put files in their places. What is read ahead and
what waits for encoders is bounded. A picture that fails is told and the rest go on, unless the disk that all are
written to is full, read-only or gone.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from pcsr.runtime.atomic import DISK_ERRORS, sweep_partial
from pcsr.runtime.errors import CancelledError, DiskError, PcsrError, PictureError
from pcsr.runtime.files import FileRequest, FileResult, FileWork
from pcsr.runtime.folder.entries import Identity
from pcsr.runtime.folder.plan import Job, Plan
from pcsr.runtime.folder.resume import Resume
from pcsr.runtime.pictures import PictureFile
from pcsr.runtime.sheltered import sheltered
from pcsr.runtime.upscaler import Upscaler

__all__ = ["Listener", "Outcome", "Run"]

logger = logging.getLogger(__name__)

# Threads that wait for encoders, and so pictures that wait for them.
ENCODERS = 2
# Bytes that a pixel takes at the most: four samples of 32 bits.
PIXEL_BYTES = 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one job: a result, an error, or neither: it was done before."""

    job: Job
    result: FileResult | None = None
    error: Exception | None = None


class Listener(Protocol):
    """Who is told how it goes; from several threads, one at a time. What it raises ends the run."""

    def working(self, job: Job, share: float) -> None:
        """A picture is being computed, so much of it done."""

    def done(self, outcome: Outcome) -> None:
        """A picture is through."""


@dataclass(slots=True)
class _Ready:
    """A picture that has been opened."""

    job: Job
    work: FileWork
    file: PictureFile
    identity: Identity | None = None


@dataclass(slots=True)
class Run:
    """One run over the jobs of a plan.

    Attributes:
        upscaler: computes.
        plan: the jobs.
        request: what is asked for each, source and outputs apart.
        listener: is told how it goes.
        force: replace files that exist.
        resume: knows what is done and need not be done again.
        stopped: why pictures were not tried, if the disk was the reason.
    """

    upscaler: Upscaler
    plan: Plan
    request: FileRequest
    listener: Listener
    force: bool = False
    resume: Resume | None = None
    stopped: DiskError | None = None
    _telling: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _counts: Counter[str] = field(default_factory=Counter)
    _computing: FileWork | None = None
    _broken: BaseException | None = None

    @property
    def counts(self) -> Mapping[str, int]:
        """Pictures "done", "failed", "skipped" (done before), and "not tried"."""
        tried = sum(self._counts.values())
        return {
            **{name: self._counts[name] for name in ("done", "failed", "skipped")},
            "not tried": len(self.plan.jobs) - tried,
        }

    def run(self) -> None:
        """Work through all jobs.

        Raises:
            KeyboardInterrupt: what was being computed is dropped, and what had been computed is written.
            Whatever the listener raises, with the same consequences.
        """
        self._sweep()
        sheltered(self._work, interrupt=self._stop_soon)

    def _stop_soon(self) -> None:
        """Take no other picture, and drop the one that is being computed."""
        self._stop.set()
        if (work := self._computing) is not None:
            work.break_off()

    def _work(self) -> None:
        # One waits here, another in the reader's hands for room, while a third is being computed.
        ahead: queue.Queue[_Ready | None] = queue.Queue(maxsize=1)
        reader = threading.Thread(target=self._read_all, args=(ahead,), name="pcsr-read")
        reader.start()
        with ThreadPoolExecutor(ENCODERS, thread_name_prefix="pcsr-finish") as finishers:
            pending: set[Future[bool]] = set()
            # To the last one whatever happens: the reader waits for room.
            for ready in iter(ahead.get, None):
                try:
                    while len(pending) >= ENCODERS:
                        pending = wait(pending, return_when=FIRST_COMPLETED).not_done
                    if self._stop.is_set():
                        ready.work.close()
                    elif self._guarded(ready, self._compute):
                        pending.add(finishers.submit(self._guarded, ready, self._finish))
                except BaseException as error:
                    ready.work.close()
                    self._break(error)
        reader.join()
        if self._broken is not None:
            raise self._broken

    def _read_all(self, ahead: queue.Queue[_Ready | None]) -> None:
        try:
            for job in self.plan.jobs:
                if self._stop.is_set():
                    break
                work = FileWork(
                    self.upscaler,
                    self._request(job),
                    waiting_bytes=self._waiting_bytes,
                    log_level=logging.DEBUG,
                )
                ready = _Ready(job, work, None)  # type: ignore[arg-type]  # `_read` opens it
                if self._guarded(ready, self._read):
                    ahead.put(ready)
                # This frame must not hold what is being computed meanwhile.
                del work, ready
        except BaseException as error:
            self._break(error)
        finally:
            ahead.put(None)

    def _request(self, job: Job) -> FileRequest:
        return dataclasses.replace(
            self.request,
            source=job.source,
            target=job.target,
            class_map=job.class_map,
            overlay=job.overlay,
            replace=self.force,
        )

    @property
    def _waiting_bytes(self) -> int:
        return min(256 << 20, self.upscaler.memory_limit // (4 * ENCODERS))

    def _read(self, ready: _Ready) -> bool:
        ready.file = ready.work.open()
        if self.resume is not None and not self._is_wanted(ready, self.resume):
            ready.work.close()
            self._tell(Outcome(ready.job), "skipped")
            return False
        h, w = ready.file.header.size
        # Ahead only what is small beside the picture that is being computed; the other has its turn to be decoded.
        if h * w * PIXEL_BYTES <= self.upscaler.memory_limit // 8:
            ready.work.decode()
        return True

    def _is_wanted(self, ready: _Ready, resume: Resume) -> bool:
        job = ready.job
        ready.identity = resume.identity(job, ready.file)
        state = resume.state(job, ready.identity)
        if state == "foreign" and not self.force:
            raise PictureError(
                f"{job.target} exists and is not from this journal, or was changed; give --force to replace it"
            )
        if state == "redo":
            logger.info("%s: made anew, since the input, the bundle or options changed", job.name)
        ready.work.replace = self.force or state == "redo"
        return state != "done"

    def _compute(self, ready: _Ready) -> bool:
        job = ready.job
        self._computing = ready.work
        try:
            if self._stop.is_set():
                ready.work.break_off()
            ready.work.decode()
            for folder in {path.parent for _, path in job.files()}:
                _make_folder(folder)
            ready.work.compute(lambda share: self._tell_share(job, share))
        finally:
            self._computing = None
        return True

    def _finish(self, ready: _Ready) -> bool:
        def record(files: Mapping[Path, BinaryIO]) -> None:
            assert self.resume is not None
            assert ready.identity is not None
            self.resume.record(ready.job, ready.identity, ready.file.length, files)

        result = ready.work.finish(None if self.resume is None else record)
        ready.work.close()
        self._tell(Outcome(ready.job, result=result), "done")
        return True

    def _guarded(self, ready: _Ready, step: Callable[[_Ready], bool]) -> bool:
        """Take one step with a picture; where it fails, that is told, and the next picture has its turn."""
        try:
            return step(ready)
        except CancelledError:
            # By nobody but us: it counts as not tried.
            ready.work.close()
        except Exception as error:
            ready.work.close()
            if isinstance(error, DiskError) and not self._stop.is_set():
                self.stopped = error
                self._stop_soon()
            if not isinstance(error, PcsrError | MemoryError):
                logger.debug("unforeseen error with %s", ready.job.source, exc_info=True)
            _let_go_of_frames(error)
            self._tell(Outcome(ready.job, error=error), "failed")
        return False

    def _tell(self, outcome: Outcome, what: str) -> None:
        with self._telling:
            self._counts[what] += 1
            try:
                self.listener.done(outcome)
            except Exception as error:
                self._break(error)

    def _tell_share(self, job: Job, share: float) -> None:
        with self._telling:
            try:
                self.listener.working(job, share)
            except Exception as error:
                self._break(error)

    def _break(self, error: BaseException) -> None:
        """End the run by what nobody could foresee, like a standard output that is closed."""
        self._broken = self._broken or error
        self._stop_soon()

    def _sweep(self) -> None:
        """Remove what killed runs left where this one writes."""
        folders = {path.parent for job in self.plan.jobs for _, path in job.files()}
        swept = 0
        for folder in sorted(folders):
            if folder.is_dir():
                try:
                    swept += sweep_partial(folder)
                except OSError as error:
                    logger.warning(
                        "cannot look into %s for unfinished files of killed runs: %s", folder, error.strerror
                    )
        if swept:
            logger.info("removed %d unfinished files of a run that was killed", swept)


def _let_go_of_frames(error: BaseException) -> None:
    """They hold the picture and its open file, as long as anybody keeps the error."""
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__cause__ or each.__context__


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        kind = DiskError if error.errno in DISK_ERRORS else PictureError
        raise kind(
            f"cannot make the folder {folder}: {error.strerror or error}; check permission and space"
        ) from error
