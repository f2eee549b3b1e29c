"""ONNX Runtime, its providers and whole bundles, as they may be found."""

from __future__ import annotations

from pathlib import Path

import pytest
from doctor_fakes import (
    LIMIT,
    driver_of,
    examined,
    modules,
)

from pcsr.runtime.doctor import Check, graphs
from pcsr.runtime.doctor.examination import _child
from pcsr.runtime.trial import run_trial

CUDA = "CUDAExecutionProvider"


def test_an_onnx_runtime_that_is_not_there_is_missing_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "raise ModuleNotFoundError(\"No module named 'onnxruntime'\", name='onnxruntime')"
    for name, value in modules(tmp_path, onnxruntime=source).items():
        monkeypatch.setenv(name, value)
    trial = run_trial(_child("onnxruntime"), timeout=LIMIT)
    commands = {None: "pip install 'pcsr[cpu]'", "13.0": "pip install 'pcsr[gpu]'"}
    commands["12.8"] = "pip install 'pcsr[gpu-cuda12]'"
    for cuda, command in commands.items():
        check = graphs.check_onnxruntime(trial, distributions=[], driver=driver_of(cuda))
        assert (check.status, check.summary, check.todo) == ("missing", "not installed", command)


def test_two_onnx_runtimes_at_once_are_broken_with_the_command(tmp_path: Path) -> None:
    second = tmp_path / "onnxruntime_gpu-1.20.0.dist-info"
    second.mkdir()
    (second / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.20.0\n")
    (second / "top_level.txt").write_text("onnxruntime\n")
    # What an interrupted pip leaves behind: a distribution without a name.
    rest = tmp_path / "~nnxruntime-1.19.0.dist-info"
    rest.mkdir()
    (rest / "top_level.txt").write_text("onnxruntime\ncupy\n")
    status, report, _ = examined("--require", "onnxruntime", PYTHONPATH=str(tmp_path))
    check = report["checks"]["onnxruntime"]
    assert status == 3
    assert check["status"] == "broken"
    assert check["facts"]["distributions"] == ["onnxruntime", "onnxruntime-gpu"]
    assert check["todo"] == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'pcsr[gpu]'"
    assert "both installed" in report["checks"]["upscaler.carn.onnxruntime.cpu"]["summary"]


READY = Check(
    "onnxruntime", "ONNX Runtime", "ONNX Runtime", "ok", "", facts={"distributions": ["onnxruntime-gpu"]}
)


def test_a_provider_that_is_named_and_runs_nothing_is_not_ok() -> None:
    """Azure's takes no node of an ordinary graph, and get_providers names it all the same."""
    name = "AzureExecutionProvider"
    trial = run_trial(_child("provider", name), timeout=LIMIT)
    assert trial.value["got"][0] == name
    check = graphs.check_provider(name, trial, onnxruntime=READY, driver=driver_of("13.0"))
    assert check.status == "warning"
    assert "no part of the graph ran on it, but on CPUExecutionProvider" in check.summary


FALLS_BACK = """
import os
__version__ = "1.23"
def preload_dlls(): pass
class SessionOptions:
    def add_session_config_entry(self, key, value): pass
class InferenceSession:
    def __init__(self, graph, options, providers):
        os.write(2, b"\\x1b[31m[E:onnxruntime] Failed to load library libonnxruntime_providers_cuda.so with error: "
                    b"libcublasLt.so.12: cannot open shared object file: No such file or directory\\x1b[m\\n")
    def get_providers(self): return ["CPUExecutionProvider"]
    def get_inputs(self): return []
    def run(self, names, feed):
        import numpy
        return [numpy.zeros(1)]
"""


@pytest.mark.parametrize(
    ("cuda", "todo"),
    [
        ("13.1", "pip install 'pcsr[gpu]'"),
        ("12.4", "pip install 'pcsr[gpu-cuda12]'"),
        (None, "see the driver"),
    ],
)
def test_a_fall_back_to_the_processor_is_broken_and_names_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: str | None, todo: str
) -> None:
    for name, value in modules(tmp_path, onnxruntime=FALLS_BACK).items():
        monkeypatch.setenv(name, value)
    trial = run_trial(_child("provider", CUDA), timeout=LIMIT)
    check = graphs.check_provider(CUDA, trial, onnxruntime=READY, driver=driver_of(cuda))
    assert check.status == "broken"
    assert check.summary == "ONNX Runtime gave CPUExecutionProvider instead: libcublasLt.so.12 is not found"
    assert check.todo == todo


def test_an_upscaler_that_gives_another_picture_is_broken() -> None:
    spoil = """
import numpy as np
from pcsr.runtime.backends import graphs
def residuals(self, tables, place, region, classes):
    return np.full((region.shape[0], 3, region.shape[1]), 0.5, np.float32)
graphs.GraphBackend.residuals = residuals
"""
    good = run_trial(_child("upscaler", "fsrcnn", "onnxruntime", "cpu"), timeout=LIMIT)
    assert good.ok
    bad = run_trial(spoil + _child("upscaler", "fsrcnn", "onnxruntime", "cpu"), timeout=LIMIT)
    check = graphs.check_upscaler("fsrcnn", "onnxruntime", "cpu", bad, needs=READY)
    assert check.status == "broken"
    assert "the result is not the picture" in check.summary
