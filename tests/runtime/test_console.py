from __future__ import annotations

import logging
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from pcsr.runtime import console
from pcsr.runtime.console import exit_on_error, format_size, parse_bytes, parse_size, progress_line
from pcsr.runtime.errors import (
    BackendError,
    BundleError,
    CancelledError,
    CheckError,
    CheckpointError,
    MemoryLimitError,
    OptionError,
    PcsrError,
    PictureError,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [("3840x2160", (2160, 3840)), ("1X1", (1, 1)), ("640×480", (480, 640)), (" 8x9 ", (9, 8))],
)
def test_a_size_is_width_by_height_in_text_and_height_first_in_python(
    text: str, size: tuple[int, int]
) -> None:
    assert parse_size(text) == size
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    "text",
    ["", "3840", "3840,2160", "3840x", "x2160", "-1x5", "0x5", "5x0", "1.5x2", "1x2x3", "a" * 99, "٣x٣"],
)
def test_another_form_of_size_is_refused_and_the_right_one_shown(text: str) -> None:
    with pytest.raises(OptionError, match="3840x2160"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("512MiB", 512 << 20),
        ("1GiB", 1 << 30),
        ("1.5 gib", 3 << 29),
        ("2GB", 2_000_000_000),
        ("2g", 2 << 30),
        ("64k", 64 << 10),
        ("1TiB", 1 << 40),
        ("10b", 10),
        ("1073741824", 1 << 30),
    ],
)
def test_memory_is_read_in_binary_and_decimal_units(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0", "0.1b", "1PiBs", "1 G i B", "nan", "1e9", "inf"])
def test_memory_in_another_form_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="512MiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PictureError("p"), 1),
        (MemoryLimitError("m"), 1),
        (MemoryError(), 1),
        (OptionError("o"), 2),
        (BundleError("b"), 2),
        (CheckpointError("c"), 2),
        (BackendError("e"), 2),
        (CheckError("c"), 3),
        (CancelledError("c"), 130),
        (KeyboardInterrupt(), 130),
        (console.Terminated(), 143),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_each_error_ends_a_command_with_its_status_and_one_line(error: BaseException, status: int) -> None:
    @click.command()
    @exit_on_error()
    def command() -> None:
        raise error

    result = CliRunner().invoke(command)

    assert result.exit_code == status
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1


def test_an_error_of_several_lines_is_printed_as_one() -> None:
    @click.command()
    @exit_on_error()
    def command() -> None:
        raise PcsrError("first\n  second")

    assert CliRunner().invoke(command).stderr == "error: first second\n"


def test_a_bug_is_not_disguised_as_a_foreseen_error() -> None:
    with pytest.raises(ZeroDivisionError), exit_on_error():
        1 / 0  # noqa: B018


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_runs_the_clean_up_and_ends_with_its_status(number: signal.Signals, status: int) -> None:
    program = f"""
import os, time
from pcsr.runtime.console import exit_on_error
with exit_on_error():
    try:
        os.kill(os.getpid(), {int(number)})
        time.sleep(60)
    finally:
        print("cleaned up")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stdout, done.stderr) == (status, "cleaned up\n", "interrupted\n")


def test_the_handler_of_sigterm_is_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with exit_on_error():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_progress_is_quiet_for_ten_seconds_and_then_a_plain_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter([0.0, 3.0, 9.9, 10.0, 12.0, 20.5])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, logger="pcsr"), progress_line("upscaling") as show:
        for share in (0.1, 0.3, 0.4, 0.5, 0.75):
            show(share)

    assert caplog.messages == ["upscaling: 40 %", "upscaling: 75 %"]
