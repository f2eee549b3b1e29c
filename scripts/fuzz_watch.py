"""The fuzz harness's watch over its child process: a signal, a hang or lost memory is a finding, and not the end."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from types import TracebackType
from typing import IO, Any, Self

from fuzz_case import Case, lay

WORKER = Path(__file__).resolve().parent / "fuzz_worker.py"
SECONDS = 20.0
GROWTH = 600 << 20
# How often memory is looked at while a case runs.
TICK_S = 0.05
# More for the first case of a target in a worker, which imports before it.
START_SECONDS = 60.0
NOISE_LIMIT = 4000
FORESEEN = ("accepted", "refused")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a case ended.

    Attributes:
        verdict: "accepted" or "refused", or a finding: "traceback", "promise" (accepted, and not what was promised),
            "signal", "exit", "hang", "memory", "leftovers".
        kind: name of the error, or what tells this finding from others.
        detail: message, traceback, or the end of what the process wrote.
        growth: bytes by which the worker's memory grew at most.
        seconds: that it took.
    """

    verdict: str
    kind: str
    detail: str = ""
    growth: int = 0
    seconds: float = 0.0

    @property
    def is_finding(self) -> bool:
        """Whether something ended as nothing should."""
        return self.verdict not in FORESEEN


class Watch:
    """Runs cases in a worker that is kept alive, and replaced when it dies. Leave it as a context."""

    def __init__(
        self, *, worker: Sequence[str | Path] = (WORKER,), seconds: float = SECONDS, growth: int = GROWTH
    ) -> None:
        """Start nothing yet.

        Args:
            worker: arguments of Python that start it.
            seconds: that a case may take.
            growth: bytes by which the worker's memory may grow in a case.
        """
        self._worker, self._seconds, self._growth = worker, seconds, growth
        self._home = TemporaryDirectory(prefix="pcsr-fuzz-")
        self._root = Path(self._home.name)
        self._process: subprocess.Popen[bytes] | None = None
        self._noise: IO[bytes] | None = None
        self._warm: set[str] = set()
        for name in ("in", "out", "tmp"):
            (self._root / name).mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        self._home.cleanup()

    def run(self, case: Case) -> Outcome:
        """Lay a case on disk, have it done, and look at what is left."""
        with TemporaryDirectory(dir=self._root / "in") as folder:
            return self.run_on(case.target, lay(case, Path(folder)))

    def run_on(self, target: str, path: Path) -> Outcome:
        """The same with what is on disk already."""
        outcome = self._outcome(target, path)
        if outcome.is_finding:
            for name in ("out", "tmp"):
                _empty(self._root / name)
        return outcome

    def _outcome(self, target: str, path: Path) -> Outcome:
        process = self._running()
        before = _listing(path.parent), _listing(self._root)
        started = time.monotonic()
        try:
            answer = self._ask({"target": target, "path": str(path), "out": str(self._root / "out")}, process)
        except _EndedError as ended:
            return Outcome(*self._buried(ended), seconds=time.monotonic() - started)
        outcome = Outcome(**answer, seconds=time.monotonic() - started)
        if outcome.is_finding:
            return outcome
        if outcome.growth > self._growth:
            return replace(
                outcome,
                verdict="memory",
                kind="grew too much",
                detail=f"grew by {outcome.growth >> 20} MiB",
            )
        after = _listing(path.parent), _listing(self._root)
        if after != before:
            changed = sorted((after[0] ^ before[0]) | (after[1] ^ before[1]))
            return replace(outcome, verdict="leftovers", kind="files", detail="\n".join(map(str, changed)))
        return outcome

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        self._noise = TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, *map(str, self._worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._noise,
            cwd=self._root / "out",
            env={
                **os.environ,
                "TMPDIR": str(self._root / "tmp"),
                "PYTHONDONTWRITEBYTECODE": "1",
                "ORT_DISABLE_TELEMETRY": "1",
            },
            start_new_session=True,
        )
        self._warm.clear()
        return self._process

    def _ask(self, question: dict[str, str], process: subprocess.Popen[bytes]) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        # What is imported before a first case counts too; it is far below the limit.
        base = _memory(process.pid)
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            raise _EndedError from error
        said = b""
        warm = question["target"] in self._warm
        until = time.monotonic() + self._seconds + (0 if warm else START_SECONDS)
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not said.endswith(b"\n"):
                if selector.select(TICK_S):
                    more = os.read(process.stdout.fileno(), 1 << 16)
                    if not more:
                        raise _EndedError
                    said += more
                    continue
                used = _memory(process.pid)
                if used - base > self._growth:
                    raise _EndedError(
                        "memory", "grew too much", f"grew by {used - base >> 20} MiB, and was stopped"
                    )
                if time.monotonic() > until:
                    raise _EndedError("hang", "no end", f"did not end within {self._seconds:g} s")
        self._warm.add(question["target"])
        answer: dict[str, Any] = json.loads(said)
        return answer

    def _buried(self, ended: _EndedError) -> tuple[str, str, str]:
        """Verdict, kind and detail of a worker that has ended, or ends now."""
        assert self._process is not None
        if ended.verdict:
            # Where it hangs; the worker's fault handler writes that down.
            self._process.send_signal(signal.SIGABRT)
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            status = None
        noise = self._last_words()
        self._stop()
        if ended.verdict:
            return ended.verdict, ended.kind, f"{ended.detail}\n{noise}"
        if status is not None and status < 0:
            return "signal", signal.Signals(-status).name, noise
        return "exit", f"status {status}", noise

    def _last_words(self) -> str:
        assert self._noise is not None
        size = os.fstat(self._noise.fileno()).st_size
        return os.pread(self._noise.fileno(), NOISE_LIMIT, max(size - NOISE_LIMIT, 0)).decode(
            errors="replace"
        )

    def _stop(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            if self._process.poll() is None:
                # Its group is that of its own session.
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None
        if self._noise is not None:
            self._noise.close()
            self._noise = None


class _EndedError(Exception):
    """The worker is no more, or is to be no more, and why."""

    def __init__(self, verdict: str = "", kind: str = "", detail: str = "") -> None:
        super().__init__(detail)
        self.verdict, self.kind, self.detail = verdict, kind, detail


def _memory(process: int) -> int:
    """Bytes of memory that a process has; 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _listing(folder: Path) -> frozenset[tuple[str, int, int]]:
    """What lies below a folder: names, and of files sizes and times of change."""
    found = set()
    for parent, folders, files in os.walk(folder):
        found |= {(os.path.relpath(Path(parent, name), folder), 0, 0) for name in folders}
        for name in files:
            path = Path(parent, name)
            status = path.lstat()
            found.add((os.path.relpath(path, folder), status.st_size, status.st_mtime_ns))
    return frozenset(found)


def _empty(folder: Path) -> None:
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in files:
            Path(parent, name).unlink()
        for name in folders:
            Path(parent, name).rmdir()
