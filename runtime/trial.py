"""Code tried in a child process, so that a crash or a hang is a finding and not the end of this process.

Some libraries end the process that asks them: a TensorRT runtime without a driver, a wheel built for newer
processors. A trial runs a piece of Python in an interpreter of its own, with a time limit, and says how it went.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Ending", "Trial", "run_trial", "run_trials"]

Ending = Literal["done", "raised", "exited", "crashed", "timed out", "not started"]

# Reports have the pipe for themselves; what the code and its libraries print goes where their errors go.
# No core file: a crash is expected here, and a trial writes nothing.
PRELUDE = """
import json as _json, os as _os, resource as _resource, sys as _sys
_resource.setrlimit(_resource.RLIMIT_CORE, (0, 0))
_pipe = _os.fdopen(_os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
_os.dup2(2, 1)
_said = {}
def _send(message):
    _pipe.write(_json.dumps(message) + "\\n")
    _pipe.flush()
def report(**facts):
    _said.update(facts)
    _send(_said)
def _raised(kind, error, trace):
    _sys.__excepthook__(kind, error, trace)
    _send(f"{kind.__name__}: {error}" if str(error) else kind.__name__)
_sys.excepthook = _raised
"""
# A module may end the process by itself, with status 0: only code that came to its end is done.
POSTLUDE = "\n_send(True)\n"
# CuPy and the driver would keep what they compile; ONNX Runtime from 1.32 leaves a device's number and a database of
# its telemetry in the home folder.
ENVIRONMENT = {
    "PYTHONDONTWRITEBYTECODE": "1",
    "CUPY_CACHE_IN_MEMORY": "1",
    "CUDA_CACHE_DISABLE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    # A library's deprecation is no finding, and must not become an exception.
    "PYTHONWARNINGS": "ignore",
}
NOISE_LIMIT = 4000
# A process that hangs in a driver may outlive SIGKILL; it is not waited for longer.
AFTER_KILL_S = 1.0
# The system may hand Ctrl-C to any thread, and Python acts on it only when the main one wakes: it never sleeps longer.
WAKE_S = 0.2
LINE_LIMIT = 400


@dataclass(frozen=True, slots=True)
class Trial:
    """How a trial ended.

    Attributes:
        ending: "done" if it ran to its end.
        value: all that it reported, also where it failed after that.
        reason: why it is not "done", in one line; empty if it is.
        signal: name of the signal that ended a crash, like "SIGSEGV".
        noise: the end of what else it and its libraries wrote.
        seconds: from its start to its end.
    """

    ending: Ending
    value: Mapping[str, Any]
    reason: str
    signal: str | None
    noise: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether it ran to its end."""
        return self.ending == "done"

    @property
    def facts(self) -> dict[str, Any]:
        """What it reported, without the step at which it was."""
        return {name: fact for name, fact in self.value.items() if name != "step"}

    @property
    def failure(self) -> str:
        """Why it is not "done", and at which step."""
        return f"{self.reason} at {self.value.get('step', 'its start')}"


def run_trial(code: str, *, timeout: float) -> Trial:
    """Run Python code in a child process and wait for it, or for the time limit.

    The code calls `report(**facts)`, as often as it likes, with what JSON can hold. Reporting a `step` before
    whatever is dangerous tells which one crashed. The child imports what this process could import (not from the
    current folder), and writes no byte code, core file or kernel cache.

    Args:
        code: Python source.
        timeout: seconds until the child and all its descendants in its session are killed.
    """
    return _Runner().run(code, timeout)


def run_trials(
    codes: Mapping[str, str],
    *,
    timeout: float,
    workers: int,
    progress: Callable[[], None] | None = None,
) -> dict[str, Trial]:
    """Run several trials, some at a time.

    On any exception, Ctrl-C among them, the children that run are killed.

    Args:
        codes: Python source by name.
        timeout: of each, in seconds.
        workers: children at a time.
        progress: called when one has ended.

    Returns:
        The trials by name, in the order of the codes.
    """
    runner = _Runner()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="pcsr-trial")
    try:
        futures = {pool.submit(runner.run, code, timeout): name for name, code in codes.items()}
        found = {}
        pending = set(futures)
        while pending:
            ended, pending = wait(pending, timeout=WAKE_S, return_when=FIRST_COMPLETED)
            for future in ended:
                found[futures[future]] = future.result()
                if progress is not None:
                    progress()
        return {name: found[name] for name in codes}
    finally:
        runner.stop()
        pool.shutdown(cancel_futures=True)


class _Runner:
    """Starts children, and can kill all that run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, code: str, timeout: float) -> Trial:
        started = time.monotonic()
        try:
            process = self._start(code)
        except OSError as error:
            reason = f"Python ({sys.executable or 'of unknown place'}) cannot be started: {error}"
            return Trial("not started", {}, reason, None, "", time.monotonic() - started)
        limit = None
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            limit = timeout
            out, err = _kill_and_drain(process)
        finally:
            with self._lock:
                self._running.discard(process)
        return _judge(process.returncode, out, err, timed_out_after=limit, seconds=time.monotonic() - started)

    def stop(self) -> None:
        """Kill what runs, and start nothing more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                _kill(process)

    def _start(self, code: str) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise OSError("the trials were stopped")
            # A session of its own: what the child starts dies with it.
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", PRELUDE + code + POSTLUDE],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **ENVIRONMENT},
                start_new_session=True,
            )
            self._running.add(process)
            return process


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is not None:
        return  # its number may be another's by now
    # Its group is that of its own session, so nothing of ours is in it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _kill_and_drain(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    _kill(process)
    try:
        return process.communicate(timeout=AFTER_KILL_S)
    except subprocess.TimeoutExpired as error:
        return error.stdout or b"", error.stderr or b""


def _judge(
    status: int | None, out: bytes, err: bytes, *, timed_out_after: float | None, seconds: float
) -> Trial:
    """Make a finding of how a child ended.

    Args:
        status: as Popen has it: below zero for a signal, None if it could not be killed.
        out: what it reported.
        err: what else it and its libraries wrote.
        timed_out_after: the limit in seconds, if it was reached.
        seconds: that it took.
    """
    value: Mapping[str, Any] = {}
    exception, done = "", False
    # The last line may have been cut by a crash.
    for line in out.decode().split("\n")[:-1]:
        match json.loads(line):
            case dict() as said:
                value = said
            case str() as text:
                exception = text
            case bool():
                done = True
    noise = err.decode(errors="backslashreplace").strip()[-NOISE_LIMIT:]
    killer: str | None = None
    ending: Ending
    if timed_out_after is not None:
        ending, reason = "timed out", f"did not end within {timed_out_after:g} s"
    elif status is not None and status < 0:
        ending, killer = "crashed", _signal_name(-status)
        reason = f"crashed with {killer}"
        if killer == "SIGKILL":
            reason = "was killed (SIGKILL), as the system does when memory runs out"
    elif exception:
        ending, reason = "raised", _one_line(exception)
    elif status or not done:
        ending, reason = "exited", f"ended by itself with status {status}"
    else:
        ending, reason = "done", ""
    return Trial(ending, value, reason, killer, noise, seconds)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LINE_LIMIT else f"{line[:LINE_LIMIT]}…"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
