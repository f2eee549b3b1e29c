"""Many pictures, one after another: reading, computing and encoding of successive ones overlap.

One thread reads ahead, the caller's computes, and two wait for encoders and put files in their places. What is read
ahead and what waits for encoders is bounded. A picture that fails is told and the rest go on, unless the disk that all
are written to is full, read-only or gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from pcsr.runtime.atomic import sweep_partial
from pcsr.runtime.errors import DiskError, PcsrError, PictureError
from pcsr.runtime.files import FileRequest, FileResult, FileWork
from pcsr.runtime.folder.entries import Identity, content_of
from pcsr.runtime.folder.journal import Journal
from pcsr.runtime.folder.plan import Job, Plan
from pcsr.runtime.pictures import PictureFile, output_format
from pcsr.runtime.upscaler import Upscaler

__all__ = ["Listener", "Outcome", "Run"]

logger = logging.getLogger(__name__)

# Threads that wait for encoders, and so pictures that wait for them.
ENCODERS = 2
# Seconds after which a wait looks up: the system may hand a signal to a thread that cannot take it.
GLANCE = 0.2


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one job: a result, an error, or neither: it was done before."""

    job: Job
    result: FileResult | None = None
    error: BaseException | None = None


class Listener(Protocol):
    """Who is told how it goes; from several threads, one at a time."""

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
    identity: Identity | None


@dataclass(slots=True)
class Run:
    """One run over the jobs of a plan.

    Attributes:
        upscaler: computes.
        plan: the jobs.
        request: what is asked for each, source and outputs apart.
        listener: is told how it goes.
        force: replace files that exist.
        journal: of the output folder; what it knows to be done is left.
        bundle_sha256: of the bundle's manifest, for the journal.
        stopped: why pictures were not tried, if some were not.
    """

    upscaler: Upscaler
    plan: Plan
    request: FileRequest
    listener: Listener
    force: bool = False
    journal: Journal | None = None
    bundle_sha256: str = ""
    stopped: BaseException | None = None
    _telling: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _counts: Counter[str] = field(default_factory=Counter)

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
            KeyboardInterrupt: what was under way is dropped, and what was computed is written.
            ClosedError: the upscaler was closed.
        """
        self._sweep()
        ahead: queue.Queue[_Ready | None] = queue.Queue(maxsize=1)
        reader = threading.Thread(target=self._read_all, args=(ahead,), name="pcsr-read")
        reader.start()
        try:
            with ThreadPoolExecutor(ENCODERS, thread_name_prefix="pcsr-finish") as finishers:
                pending: list[Future[bool]] = []
                try:
                    for ready in self._arriving(ahead):
                        self._wait(pending, fewer_than=ENCODERS)
                        if self._stop.is_set():
                            ready.work.close()
                            continue
                        if self._guarded(ready, self._compute):
                            pending.append(finishers.submit(self._guarded, ready, self._finish))
                finally:
                    self._wait(pending, fewer_than=1)
        finally:
            self._stop.set()
            # The reader may wait for room.
            while reader.is_alive():
                with contextlib.suppress(queue.Empty):
                    if (left := ahead.get_nowait()) is not None:
                        left.work.close()
                reader.join(GLANCE)

    @staticmethod
    def _arriving(ahead: queue.Queue[_Ready | None]) -> Iterator[_Ready]:
        while True:
            try:
                ready = ahead.get(timeout=GLANCE)
            except queue.Empty:
                continue
            if ready is None:
                return
            yield ready

    @staticmethod
    def _wait(pending: list[Future[bool]], *, fewer_than: int) -> None:
        while sum(not each.done() for each in pending) >= fewer_than:
            with contextlib.suppress(TimeoutError):
                next(each for each in pending if not each.done()).exception(timeout=GLANCE)
        pending[:] = [each for each in pending if not each.done()]

    def _read_all(self, ahead: queue.Queue[_Ready | None]) -> None:
        for job in self.plan.jobs:
            if self._stop.is_set():
                break
            work = FileWork(
                self.upscaler,
                self._request(job),
                waiting_bytes=self._waiting_bytes,
                log_level=logging.DEBUG,
            )
            ready = _Ready(job, work, None, None)  # type: ignore[arg-type]
            if self._guarded(ready, self._read):
                ahead.put(ready)
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
        if self.journal is not None and not self._is_wanted(ready, self.journal):
            ready.work.close()
            self._tell(Outcome(ready.job), "skipped")
            return False
        h, w = ready.file.header.size
        # Ahead only what is small beside the picture that is being computed; the other has its turn to be decoded.
        if h * w * 16 <= self.upscaler.memory_limit // 8:
            ready.work.decode()
        return True

    def _is_wanted(self, ready: _Ready, journal: Journal) -> bool:
        job = ready.job
        ready.identity = Identity(ready.file.sha256(), self.bundle_sha256, self._options(job))
        also = [path for _, path in job.files()][1:]
        state = journal.state(job.name, job.target, ready.identity, also=also)
        if state == "done" and not self.force:
            return False
        if state == "foreign" and not self.force:
            raise PictureError(
                f"{job.target} exists and is not from this journal, or was changed; give --force to replace it"
            )
        if state == "redo":
            logger.info("%s: made anew, since the input, the bundle or options changed", job.name)
        ready.work.replace = self.force or state == "redo"
        return True

    def _options(self, job: Job) -> dict[str, Any]:
        """All that changes the files that are written, for the journal."""
        request = self.request
        asked = {
            name: value
            for name, value in dataclasses.asdict(request.options).items()
            if value not in (None, False)
        }
        encoding = dataclasses.asdict(request.encoding)
        return {
            **asked,
            **{name: value for name, value in encoding.items() if value not in (None, False)},
            "form": request.encoding.form or output_format(job.target),
            "precision": self.upscaler.precision,
            **({"page": request.page} if request.page is not None else {}),
            **({"salvage": True} if request.salvage else {}),
            **({"class_map": True} if job.class_map else {}),
            **({"overlay": True} if job.overlay else {}),
        }

    def _compute(self, ready: _Ready) -> bool:
        job = ready.job
        ready.work.decode()
        for _, path in job.files():
            self._make_folder(path.parent)

        def progress(share: float) -> None:
            with self._telling:
                self.listener.working(job, share)

        ready.work.compute(progress)
        return True

    def _finish(self, ready: _Ready) -> bool:
        job, journal, identity = ready.job, self.journal, ready.identity

        def record(files: Mapping[Path, BinaryIO]) -> None:
            assert journal is not None
            assert identity is not None
            contents = {path: content_of(file) for path, file in files.items()}
            try:
                journal.record(
                    job.name,
                    contents.pop(job.target),
                    identity,
                    input_name=job.name,
                    input_bytes=ready.file.length,
                    also=contents,
                )
            except OSError as error:
                raise DiskError(
                    f"cannot write {journal.path}: {error.strerror or error}; check space"
                ) from error

        result = ready.work.finish(None if journal is None else record)
        ready.work.close()
        self._tell(Outcome(job, result=result), "done")
        return True

    def _guarded(self, ready: _Ready, step: Callable[[_Ready], bool]) -> bool:
        """Take one step with a picture; where it fails, that is told, and the next picture has its turn."""
        try:
            return step(ready)
        except Exception as error:
            ready.work.close()
            if isinstance(error, DiskError) and not self._stop.is_set():
                self.stopped = error
                self._stop.set()
            if not isinstance(error, PcsrError | MemoryError):
                logger.debug("unforeseen error with %s", ready.job.source, exc_info=True)
            self._tell(Outcome(ready.job, error=error), "failed")
            return False
        except BaseException:
            ready.work.close()
            raise

    def _tell(self, outcome: Outcome, what: str) -> None:
        with self._telling:
            self._counts[what] += 1
            self.listener.done(outcome)

    def _make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PictureError(
                f"cannot make the folder {folder}: {error.strerror or error}; check permission and space"
            ) from error

    def _sweep(self) -> None:
        """Remove what killed runs left where this one writes."""
        folders = {path.parent for job in self.plan.jobs for _, path in job.files()}
        swept = sum(sweep_partial(folder) for folder in sorted(folders) if folder.is_dir())
        if swept:
            logger.info("removed %d unfinished files of a run that was killed", swept)
