"""The doctor tells what works here, and no library however broken takes it down."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from doctor_fakes import (
    COMMAND,
    CRASH,
    LIMIT,
    examined,
    fake_tensorrt,
    modules,
    needs_no_driver,
    run,
)

from pcsr.runtime import machine
from pcsr.runtime.backends import onnxruntime as backend
from pcsr.runtime.doctor import Check, examination, graphs
from pcsr.runtime.doctor.examination import _child, _ways
from pcsr.runtime.doctor.report import REQUIREMENTS, Report
from pcsr.runtime.trial import run_trial

DOCS = Path(__file__).resolve().parents[3] / "docs" / "doctor.md"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], str]:
    """A run in an empty home, which must stay empty."""
    home = tmp_path_factory.mktemp("home")
    variables = {"HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    found = examined(**variables)
    assert list(home.iterdir()) == []
    return found


def test_the_default_road_works_here(here: tuple[int, dict[str, Any], str]) -> None:
    status, report, stderr = here
    assert (status, stderr) == (0, "")
    assert report["ok"]
    assert report["required"] == ["cpu"]
    assert report["works"]["cpu"]
    assert report["works"]["onnxruntime"]
    checks = report["checks"]
    for key in ("python", "packages", "libvips", "onnxruntime", "onnxruntime.cpu"):
        assert checks[key]["status"] == "ok", checks[key]
    for bundle in ("carn", "fsrcnn"):
        check = checks[f"upscaler.{bundle}.onnxruntime.cpu"]
        assert check["status"] == "ok"
        assert check["summary"].startswith("works, ")
        assert check["facts"]["provider"] == "CPUExecutionProvider"
    assert checks["libvips"]["facts"]["formats"] == dict.fromkeys(("png", "jpeg", "tiff", "webp", "avif"), "")
    assert checks["cores"]["facts"]["usable"] == machine.usable_cores()
    assert checks["memory"]["facts"]["usable_bytes"] == machine.total_memory()
    nodes = checks["onnxruntime.cpu"]["facts"]["nodes"]
    assert set(nodes) == {"CPUExecutionProvider"}
    assert nodes["CPUExecutionProvider"] > 1


@needs_no_driver
def test_cuda_is_missing_with_the_reason_and_the_command(here: tuple[int, dict[str, Any], str]) -> None:
    _, report, _ = here
    checks = report["checks"]
    assert not report["works"]["cuda"]
    assert not report["works"]["tensorrt"]
    assert checks["driver"]["status"] == "missing"
    assert "libcuda.so.1" in checks["driver"]["summary"]
    assert "docker run --gpus all" in checks["driver"]["todo"]
    assert checks["onnxruntime.cuda"]["status"] == "missing"
    assert "pip uninstall -y onnxruntime && pip install 'pcsr[gpu]'" in checks["onnxruntime.cuda"]["todo"]
    assert "not tried" in checks["upscaler.carn.onnxruntime.cuda"]["summary"]


def test_every_key_is_documented(here: tuple[int, dict[str, Any], str]) -> None:
    _, report, _ = here
    text = DOCS.read_text()
    table = text.rpartition("| check | `facts` |")[2]
    keys = {key for key in report["checks"] if not key.startswith("upscaler.")}
    named = set(re.findall(r"`([\w.]+)`", text))
    assert not {key for key in keys | report.keys() | report["works"].keys() if key not in named}
    for key, check in report["checks"].items():
        row = next((line for line in table.splitlines() if f"`{key}`" in line and line.startswith("| `")), "")
        if key in ("environment", "packages", "export") or key.startswith("upscaler."):
            continue
        assert not {
            fact for fact in check["facts"] if f"`{fact}`" not in row and not fact.endswith("_error")
        }, key
        assert check.keys() == {"group", "title", "status", "summary", "todo", "facts", "output"}


@needs_no_driver
def test_what_is_required_and_does_not_work_is_status_3_with_the_reason() -> None:
    status, report, stderr = examined("--require", "onnxruntime", "--require", "cuda")
    assert status == 3
    assert not report["ok"]
    assert report["required"] == ["onnxruntime", "cuda"]
    assert stderr.startswith("error: cuda does not work: driver: no driver")
    assert "\n" not in stderr
    assert "onnxruntime does not work" not in stderr


@pytest.mark.parametrize("arguments", [["--require", "luck"], ["--timeout", "0"], ["--quick"], ["extra"]])
def test_usage_is_status_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""


def test_help_loads_nothing_heavy() -> None:
    program = """
import sys
from click.testing import CliRunner
from pcsr.runtime.doctor.cli import main
result = CliRunner().invoke(main, ["--help"])
assert result.exit_code == 0 and "--require" in result.output
print(sorted({"onnxruntime", "pyvips", "rich", "torch", "onnx"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


@needs_no_driver
def test_no_mixture_of_broken_libraries_takes_it_down(tmp_path: Path) -> None:
    variables = modules(
        tmp_path,
        tensorrt=fake_tensorrt("10.9", builder=CRASH),
        tensorrt_lean="raise RuntimeError('of\\nno use')",
        tensorrt_rtx="import sys; print('{\"version\": 1}'); sys.exit(0)",
        cupy="__version__ = '[bold]14\\x1b[31m'; import os; os.write(1, b'\\xff{}')",
    )
    status, report, _ = examined(**variables)
    checks = report["checks"]
    assert (status, report["ok"]) == (0, True)
    assert checks["tensorrt"]["status"] == "broken"
    assert checks["tensorrt"]["summary"] == "10.9: crashed with SIGSEGV at Builder(), without a driver"
    assert checks["tensorrt_lean"]["status"] == "broken"
    assert "RuntimeError: of no use at import tensorrt_lean" in checks["tensorrt_lean"]["summary"]
    assert "Traceback" in checks["tensorrt_lean"]["output"]
    assert "ended by itself with status 0" in checks["tensorrt_rtx"]["summary"]
    assert checks["cupy"]["status"] == "warning"
    # No byte code, and no core of the crash.
    assert {path.suffix for path in tmp_path.iterdir()} == {".py"}


def test_an_onnx_runtime_that_crashes_at_its_import_is_status_3(tmp_path: Path) -> None:
    variables = modules(tmp_path, onnxruntime="import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    status, report, stderr = examined("--require", "onnxruntime", **variables)
    assert status == 3
    assert "upscaler.carn" not in stderr
    assert "crashed with SIGILL" in stderr
    # Native kernels compute without it.
    assert report["works"] == {"cpu": True, "onnxruntime": False, "cuda": False, "tensorrt": False}
    assert "crashed with SIGILL at its import" in report["checks"]["onnxruntime"]["summary"]
    assert "pip install 'pcsr[cpu]'" in report["checks"]["onnxruntime"]["todo"]
    assert report["checks"]["onnxruntime.cpu"]["summary"] == "ONNX Runtime does not work here"


def test_a_default_bundle_that_does_not_ship_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "shipped_bundles", lambda: ())
    # On the processor and on the GPU.
    assert {("carn", "onnxruntime", "cpu"), ("carn", "onnxruntime", "cuda:0")} <= set(_ways())
    trial = run_trial(_child("upscaler", "none", "onnxruntime", "cpu"), timeout=LIMIT)
    assert "BundleError: no bundle named none ships with pcsr" in trial.reason


def test_sigterm_ends_it_and_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    hang = f"import os, time; open({str(pid)!r} + '.new', 'w').write(str(os.getpid()))\n"
    hang += f"os.rename({str(pid)!r} + '.new', {str(pid)!r}); time.sleep(600)"
    variables = {**os.environ, **modules(tmp_path, pyvips=hang)}
    with subprocess.Popen([COMMAND, "--timeout", "600"], env=variables, stderr=subprocess.PIPE) as doctor:
        _wait_for(pid.exists)
        doctor.send_signal(signal.SIGTERM)
        _, err = doctor.communicate(timeout=LIMIT)
    assert doctor.returncode == 143
    assert err.splitlines()[-1] == b"interrupted"
    _wait_for(lambda: not Path("/proc", pid.read_text(), "cmdline").exists())


def _wait_for(condition: Any) -> None:
    for _ in range(20 * LIMIT):
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError


def test_a_requirement_names_the_check_that_says_most() -> None:
    def check(key: str, status: Any) -> Check:
        return Check(key, "TensorRT", key, status, "")

    checks = {key: check(key, "missing") for row in REQUIREMENTS["tensorrt"] for key in row}
    report = Report(
        checks | {"driver": check("driver", "ok"), "tensorrt_rtx": check("tensorrt_rtx", "broken")}, 1.0
    )
    found = report.failing("tensorrt")
    assert found is not None
    assert found.key == "tensorrt_rtx"
    assert (
        Report({**report.checks, "tensorrt_lean": check("tensorrt_lean", "ok")}, 1.0).failing("tensorrt")
        is None
    )


def test_the_names_of_the_providers_are_the_backends() -> None:
    assert (backend.PROVIDERS["cpu"], backend.PROVIDERS["cuda"]) == (graphs.CPU, graphs.CUDA)
