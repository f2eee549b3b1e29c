"""Building in a child process: what crashes, hangs or is interrupted there leaves this process whole.

The child has a session of its own, so Ctrl-C reaches the parent alone, which then kills the child: no version of
TensorRT has to be asked to stop. The identity and the ONNX file go to its standard input, lines of JSON come back.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec

from pcsr.export.tensorrt.builder import UnsupportedGraphError, build_plan
from pcsr.export.tensorrt.polygraphy_tools import unsupported_nodes
from pcsr.runtime.backends.engines import Identity
from pcsr.runtime.errors import BackendError

__all__ = ["build_in_child"]

COMMAND = "from pcsr.export.tensorrt.worker import main; main()"
# Characters of a child's last words that are shown.
SHOWN = 500


class Line(msgspec.Struct):
    """One line from the child: how far it is, or why it failed."""

    share: float | None = None
    error: str | None = None
    unsupported: bool = False


def build_in_child(
    model: bytes, identity: Identity, plan: Path, *, progress: Callable[[float], object] | None = None
) -> None:
    """Build an engine in a child process.

    Args:
        model: ONNX.
        identity: what it is to be.
        plan: file that the child writes.
        progress: is given the share of the work done, where this TensorRT tells it.

    Raises:
        BackendError: TensorRT refuses the graph, crashes, or is killed.
    """
    # Into a file and not a pipe: nobody reads it before the end, and a full pipe would stop the child.
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", COMMAND, str(plan)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            start_new_session=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        try:
            failure = _follow(process, msgspec.json.encode(identity) + b"\n" + model, progress)
        except BaseException:
            process.kill()
            raise
        finally:
            _close(process)
        words.seek(0)
        said = _last_line(words.read())
    if failure is None and process.returncode == 0 and plan.is_file():
        return
    if failure is not None:
        nodes = unsupported_nodes(model, identity.flavour) if failure.unsupported else ""
        raise BackendError(f"{failure.error}" + (f"; Polygraphy's report names {nodes}" if nodes else ""))
    where = f"building graph {identity.graph} with {identity.flavour} {identity.version}"
    if process.returncode == -signal.SIGKILL:
        raise BackendError(
            f"{where} was killed, as a rule because memory ran out; ask for smaller shapes (--max-lr, --points) or "
            "less --workspace"
        )
    ending = f"crashed (signal {-process.returncode})" if process.returncode < 0 else "failed"
    raise BackendError(f"{where} {ending}: {said or 'it said nothing'}")


def _follow(
    process: subprocess.Popen[bytes], request: bytes, progress: Callable[[float], object] | None
) -> Line | None:
    """Give the child its work and read its lines to the end; the one that tells an error, if there is one."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(request)
        process.stdin.close()
    except BrokenPipeError:
        # It has ended already; its status says how.
        return None
    failure = None
    for text in process.stdout:
        line = msgspec.json.decode(text, type=Line)
        failure = line if line.error is not None else failure
        if line.share is not None and progress is not None:
            progress(line.share)
    return failure


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        # What was not written to a child that has ended is no matter.
        with suppress(BrokenPipeError):
            if pipe is not None:
                pipe.close()
    process.wait()


def _last_line(words: bytes) -> str:
    lines = [line for line in words.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:SHOWN] if lines else ""


def main() -> None:
    """Build what standard input asks for into the file that the argument names."""
    # Libraries that print must not print between the lines.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    request, _, model = sys.stdin.buffer.read().partition(b"\n")
    identity = msgspec.json.decode(request, type=Identity)
    try:
        content = build_plan(model, identity, lambda share: _tell(answers, Line(share=share)))
    except BackendError as error:
        _tell(answers, Line(error=str(error), unsupported=isinstance(error, UnsupportedGraphError)))
        sys.exit(1)
    # Where nobody waits any more, nothing is left behind.
    if _tell(answers, Line(share=1.0)):
        Path(sys.argv[1]).write_bytes(content)


def _tell(answers: IO[bytes], line: Line) -> bool:
    """Whether somebody still listens; an exception must not reach the library that called."""
    try:
        answers.write(msgspec.json.encode(line) + b"\n")
    except OSError:
        return False
    return True
