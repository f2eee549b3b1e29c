"""Probes: whatever a child process does, the answer is a value or a reason."""

import shutil
import sys
from pathlib import Path

import msgspec
import pytest

from pcsr.runtime.probe import Gpu, TensorRT, Unavailable, probe, probe_gpu, probe_tensorrt

CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


class Number(msgspec.Struct):
    number: int


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (CRASH, "it crashed (SIGSEGV)"),
        ("import sys; sys.exit('no library')", "no library"),
        ("raise ValueError('strange')", "ValueError: strange"),
        ("import os; os._exit(3)", "it ended with status 3"),
        ("print('hello')", "its answer makes no sense"),
        ("pass", "its answer makes no sense"),
        ('print(\'{"number": "one"}\')', "its answer makes no sense"),
        ("import time; time.sleep(60)", "it did not answer within 1 s"),
    ],
)
def test_a_child_that_fails_gives_its_reason(program: str, reason: str) -> None:
    answer = probe(program, answer=Number, seconds=1 if "sleep" in program else 60)
    assert isinstance(answer, Unavailable)
    assert answer.reason.startswith(reason)


def test_the_last_line_is_the_answer() -> None:
    program = "import sys; print('noise'); print('{\"number\": %d}' % len(sys.argv[1]))"
    assert probe(program, "four", answer=Number) == Number(4)


def test_a_folder_of_the_same_name_is_not_the_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tensorrt_rtx_bindings.py").write_text("raise SystemExit('wrong')")
    assert isinstance(probe_tensorrt("tensorrt_rtx_bindings"), TensorRT)


def test_tensorrt_rtx_builds_without_a_gpu() -> None:
    found = probe_tensorrt("tensorrt_rtx_bindings")
    assert isinstance(found, TensorRT), found
    assert found.version.startswith("1.")


def test_a_module_that_is_missing_is_named() -> None:
    found = probe_tensorrt("no_such_tensorrt")
    assert isinstance(found, Unavailable)
    assert "no_such_tensorrt cannot be imported" in found.reason


def test_the_gpu_is_found_where_the_driver_tool_finds_one() -> None:
    found = probe_gpu()
    if shutil.which("nvidia-smi") and sys.platform == "linux":
        assert isinstance(found, Gpu), found
    else:
        assert found == Unavailable("there is no NVIDIA driver (libcuda.so.1 cannot be loaded)")
