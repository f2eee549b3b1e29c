"""Ctrl-C and SIGTERM end a run soon: what was finished is there and whole, and nothing else is."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcsr.runtime import Upscaler
from pcsr.runtime.atomic import PARTIAL
from pcsr.runtime.pictures import read_picture
from pcsr.runtime.sheltered import sheltered

FolderOf = Callable[..., Path]
# The command, with what a test changes in it before.
PROGRAM = """
import signal, sys, threading, time
from pcsr.runtime.files import FileWork
from pcsr.runtime.pictures import PictureWriter
signal.signal(signal.SIGINT, signal.default_int_handler)
{}
from pcsr.runtime.cli import main
main()
"""
SLOW_COMPUTE = """
compute = FileWork.compute
def slow(work, progress):
    time.sleep(0.2)
    compute(work, progress)
FileWork.compute = slow
"""
SLOW_FINISH = """
encode = PictureWriter._encode
def slow(writer, file):
    encode(writer, file)
    print("encoded", flush=True)
    time.sleep(30)
PictureWriter._encode = slow
"""
# The encoder takes nothing, so that what makes rows waits for it.
NO_ENCODER = """
from pcsr.runtime.pictures.rows import RowPipe
init = RowPipe.__init__
RowPipe.__init__ = lambda pipe, *arguments, limit: init(pipe, *arguments, limit=1)
def wait(writer, file):
    print("encoding", flush=True)
    while not writer._broken_off:
        time.sleep(0.01)
    raise RuntimeError("broken off")
PictureWriter._encode = wait
"""
TO_ANOTHER_THREAD = (
    SLOW_COMPUTE
    + """
def strike():
    time.sleep(2)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    time.sleep(30)
threading.Thread(target=strike, daemon=True).start()
"""
)


@contextmanager
def running(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable,
        "-c",
        PROGRAM.format(program),
        *map(str, arguments),
        "-s",
        "2",
        "--threads",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_lines(process: subprocess.Popen[str], count: int) -> None:
    assert process.stdout is not None
    for _ in range(count):
        assert process.stdout.readline()


def assert_whole(source: Path, out: Path, upscaler: Upscaler) -> int:
    """Every file in the output folder is complete; how many there are."""
    files = list(out.iterdir())
    for path in files:
        expected = upscaler(read_picture(source / path.name).pixels, scale=2)
        np.testing.assert_array_equal(read_picture(path).pixels, expected.image)
    return len(files)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_keeps_what_is_finished_and_says_what_is_not(
    folder_of: FolderOf, tmp_path: Path, small_bundle: Path, upscaler: Upscaler, number: int, status: int
) -> None:
    source, out = folder_of(30), tmp_path / "out"
    with running(SLOW_COMPUTE, source, "-o", out, "-b", small_bundle) as process:
        read_lines(process, 3)
        process.send_signal(number)
        sent = time.monotonic()
        stdout, stderr = process.communicate(timeout=60)
    assert time.monotonic() - sent < 15
    assert process.returncode == status
    done = 3 + len(stdout.splitlines())
    assert done < 30
    assert assert_whole(source, out, upscaler) == done
    assert f"30 pictures: {done} done, {30 - done} not tried" in stderr
    assert stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in stderr


def test_a_signal_that_the_system_hands_to_another_thread_ends_the_run_too(
    folder_of: FolderOf, tmp_path: Path, small_bundle: Path, upscaler: Upscaler
) -> None:
    source, out = folder_of(60), tmp_path / "out"
    with running(TO_ANOTHER_THREAD, source, "-o", out, "-b", small_bundle) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert assert_whole(source, out, upscaler) < 60


def test_the_second_signal_ends_at_once_and_leaves_nothing_under_its_name(
    folder_of: FolderOf, tmp_path: Path, small_bundle: Path
) -> None:
    source, out = folder_of(3), tmp_path / "out"
    with running(SLOW_FINISH, source, "-o", out, "-b", small_bundle) as process:
        read_lines(process, 1)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        process.wait(timeout=60)
    assert time.monotonic() - sent < 10
    assert process.returncode == 130
    assert all(PARTIAL.fullmatch(path.name) for path in out.iterdir())


@pytest.mark.parametrize("count", [1, 3])
def test_a_run_that_waits_for_its_encoder_is_interrupted_all_the_same(
    folder_of: FolderOf, tmp_path: Path, small_bundle: Path, count: int
) -> None:
    source, out = folder_of(count, h=80), tmp_path / "out"
    out.mkdir()
    named = source if count > 1 else source / "00.png"
    with running(NO_ENCODER, named, "-o", out, "-b", small_bundle, "--tile", 16) as process:
        read_lines(process, 1)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - sent < 15
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert list(out.iterdir()) == []


def test_an_interrupt_between_any_two_statements_leaves_no_thread_behind(
    folder_of: FolderOf, tmp_path: Path, run_of: Any
) -> None:
    source = folder_of(6)
    # At many moments: the handler raises in the main thread wherever that is.
    for number in range(25):
        run, _ = run_of(source, tmp_path / f"out{number}")
        with pytest.raises(KeyboardInterrupt):
            struck(run.run, after=0.002 * number)
        # The upscaler's own workers come as they are needed, and stay.
        assert not [each.name for each in threading.enumerate() if each.name.startswith("pcsr-")]
        out = tmp_path / f"out{number}"
        assert not out.exists() or not any(PARTIAL.fullmatch(path.name) for path in out.iterdir())


def struck(work: Callable[[], object], *, after: float) -> None:
    timer = threading.Timer(after, signal.raise_signal, [signal.SIGINT])
    timer.start()
    try:
        work()
    finally:
        timer.join()
        # Where the work was over before, the interrupt comes here.
        time.sleep(0.01)


def test_work_is_told_of_an_interrupt_and_ends_before_it_is_raised() -> None:
    stop, ended = threading.Event(), threading.Event()

    def work() -> None:
        signal.raise_signal(signal.SIGINT)
        if stop.wait(20):
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        sheltered(work, interrupt=stop.set)
    assert ended.is_set()


def test_what_the_work_gives_or_raises_comes_out() -> None:
    assert sheltered(lambda: 3, interrupt=lambda: None) == 3
    with pytest.raises(ZeroDivisionError):
        sheltered(lambda: 1 // 0, interrupt=lambda: None)


# --- who reads


def test_a_reader_who_has_gone_ends_the_run_also_when_all_was_done_before(
    folder_of: FolderOf, tmp_path: Path, small_bundle: Path, upscale: Any
) -> None:
    source, out = folder_of(6), tmp_path / "out"
    assert upscale(source, "-o", out, "--resume").exit_code == 0
    read, write = os.pipe()
    os.close(read)
    arguments = (source, "-o", out, "-b", small_bundle, "-s", "2", "--resume", "--json")
    with os.fdopen(write, "wb") as closed:
        command = [Path(sys.executable).with_name("pcsr-upscale"), *map(str, arguments)]
        done = subprocess.run(
            command, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=30, check=False
        )
    assert done.returncode == 1
    assert "error: [Errno 32] Broken pipe" in done.stderr
    assert "Traceback" not in done.stderr


def test_on_a_terminal_a_bar_shows_how_far_it_is_and_results_stay_whole(
    folder_of: FolderOf, tmp_path: Path, small_bundle: Path
) -> None:
    source, out = folder_of(4), tmp_path / "out"
    (source / "01.png").write_text("no picture")
    shown, status = on_terminal(
        SLOW_COMPUTE, source, "-o", out, "-b", small_bundle, "-s", "2", "--threads", "1"
    )
    assert status == 1
    assert "3/4" in shown
    assert "megapixels/s" in shown
    assert f"{out}/00.png 62x48 light" in shown.replace("\r\n", "")
    assert "4 pictures: 3 done, 1 failed" in shown


def on_terminal(program: str, *arguments: object) -> tuple[str, int]:
    """All that the command shows on a terminal, and its status."""
    ours, its = pty.openpty()
    command = [sys.executable, "-c", PROGRAM.format(program), *map(str, arguments)]
    wide = os.environ | {"COLUMNS": "200", "TERM": "xterm"}
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=wide) as process:
        os.close(its)
        shown = b""
        # The system answers so when the last one has closed the other end.
        while block := read_terminal(ours):
            shown += block
        os.close(ours)
        process.wait(timeout=30)
    return shown.decode(), process.returncode


def read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""
