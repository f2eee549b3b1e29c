"""Probes: whatever a child process does, the answer is a value or a reason."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from pcsr.runtime import probe
from pcsr.runtime.probe import Gpu, TensorRT, Unavailable, probe_gpu, probe_tensorrt
from pcsr.runtime.trial import Trial

CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
BUILDER = """
__version__ = "9.9"
class Logger:
    ERROR = 1
    def __init__(self, level): pass
class Builder:
    def __init__(self, log): {made}
class OnnxParser: pass
"""
H100 = {"name": "NVIDIA H100", "memory_bytes": 80 << 30, "compute_capability": "9.0"}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (CRASH, "some_tensorrt crashed with SIGSEGV at import some_tensorrt"),
        ("raise ValueError('strange')", "some_tensorrt cannot be imported: ValueError: strange"),
        ("import os; os._exit(3)", "some_tensorrt ended by itself with status 3 at import some_tensorrt"),
        (BUILDER.format(made=CRASH), "some_tensorrt 9.9 crashed with SIGSEGV at Builder()"),
        (BUILDER.format(made="raise TypeError('null')"), "some_tensorrt 9.9 makes no builder"),
        (BUILDER.format(made="pass").replace("class Builder", "class Other"), "is a runtime alone"),
        (BUILDER.format(made="pass").replace("class OnnxParser", "class Other"), "is a runtime alone"),
        ("import time; time.sleep(60)", "some_tensorrt did not end within 2 s at import some_tensorrt"),
    ],
)
def test_a_tensorrt_that_does_not_work_gives_its_reason(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_tensorrt.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if "sleep" in source:
        monkeypatch.setattr(probe, "PROBE_SECONDS", 2)
    found = probe_tensorrt("some_tensorrt")
    assert isinstance(found, Unavailable)
    assert reason in found.reason


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            {"loaded": True, "status": 100, "error": "CUDA_ERROR_NO_DEVICE"},
            "cuInit says CUDA_ERROR_NO_DEVICE",
        ),
        ({"loaded": True, "status": 0, "devices": [H100]}, "there is no GPU 1, only 1 in all"),
    ],
)
def test_a_driver_that_has_not_that_gpu_gives_its_reason(
    said: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "run_trial", lambda *_, **__: Trial("done", said, "", None, "", 0.1))
    found = probe_gpu(1)
    assert isinstance(found, Unavailable)
    assert reason in found.reason


def test_a_gpu_is_what_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"loaded": True, "status": 0, "cuda": "12.8", "devices": [H100, {**H100, "name": "other"}]}
    monkeypatch.setattr(probe, "run_trial", lambda *_, **__: Trial("done", said, "", None, "", 0.1))
    assert probe_gpu(1) == Gpu("other", "9.0", 80 << 30, "12.8")


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
        assert isinstance(found, Unavailable)
        assert found.reason.startswith("there is no NVIDIA driver (libcuda.so.1: ")
