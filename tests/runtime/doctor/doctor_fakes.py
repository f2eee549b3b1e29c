"""The doctor as a command, and libraries made up for it to examine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pcsr.runtime.doctor import Check
from pcsr.runtime.doctor.examination import _ways
from pcsr.runtime.doctor.report import REQUIREMENTS, Status

COMMAND = Path(sys.executable).with_name("pcsr-doctor")
LIMIT = 60

KEYS = {
    "system",
    "processor",
    "cores",
    "memory",
    "environment",
    "python",
    "packages",
    "export",
    "libvips",
    "native",
    "onnxruntime",
    "onnxruntime.cpu",
    "onnxruntime.cuda",
    "driver",
    "cuda_libraries",
    "cupy",
    "tensorrt",
    "tensorrt_lean",
    "tensorrt_rtx",
    "engine_cache",
} | {f"upscaler.{bundle}.{name}.{device.partition(':')[0]}" for bundle, name, device in _ways()}

needs_no_driver = pytest.mark.skipif(
    Path("/proc/driver/nvidia/version").exists(), reason="this machine has an NVIDIA driver"
)


def run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The installed command, as a process."""
    return subprocess.run(
        [COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **variables},
    )


def errors(done: subprocess.CompletedProcess[str]) -> str:
    """What a run wrote to stderr, but for the progress of a slow one."""
    lines = done.stderr.splitlines()
    return "\n".join(line for line in lines if not line.startswith("examining: "))


def examined(*arguments: str, **variables: str) -> tuple[int, dict[str, Any], str]:
    """Status, JSON object and stderr of a run; its keys are always the same."""
    done = run("--json", *arguments, **variables)
    report = json.loads(done.stdout)
    assert report["checks"].keys() >= KEYS
    assert report["works"].keys() == REQUIREMENTS.keys()
    return done.returncode, report, errors(done)


def modules(folder: Path, **sources: str) -> dict[str, str]:
    """Modules in a folder, and the variable that puts them before those that are installed."""
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    return {"PYTHONPATH": str(folder)}


CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


def fake_tensorrt(version: str, *, builder: str = "pass", runtime: str = "pass") -> str:
    """A module with TensorRT's names, and what happens in its two constructors."""
    return f"""
__version__ = {version!r}
class Logger:
    ERROR = 1
    def __init__(self, severity): pass
class Builder:
    def __init__(self, log):
        {builder}
class Runtime:
    def __init__(self, log):
        {runtime}
"""


def driver_of(cuda: str | None) -> Check:
    """A driver that works up to a version of CUDA, or none."""
    status: Status = "ok" if cuda else "missing"
    return Check("driver", "NVIDIA", "driver", status, "", facts={"cuda": cuda} if cuda else {})
