"""The doctor tells what works here, and no library however broken takes it down."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pcsr.runtime import machine
from pcsr.runtime.backends import onnxruntime as backend
from pcsr.runtime.doctor import Check, examination, gpu, graphs, host
from pcsr.runtime.doctor.examination import _child, _ways
from pcsr.runtime.doctor.report import REQUIREMENTS, Report, Status
from pcsr.runtime.trial import Trial, run_trial, run_trials

COMMAND = Path(sys.executable).with_name("pcsr-doctor")
DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "doctor.md"
LIMIT = 60
CUDA = "CUDAExecutionProvider"

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


# --- this machine as it is


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
    assert checks["libvips"]["facts"]["formats"] == dict.fromkeys(("png", "jpeg", "tiff", "webp"), "")
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


# --- libraries that crash, hang, lie


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
    status, report, stderr = examined(**variables)
    assert status == 3
    assert "upscaler.carn" not in stderr
    assert "crashed with SIGILL" in stderr
    assert report["works"] == dict.fromkeys(("cpu", "onnxruntime", "cuda", "tensorrt"), False)
    assert "crashed with SIGILL at its import" in report["checks"]["onnxruntime"]["summary"]
    assert "pip install 'pcsr[cpu]'" in report["checks"]["onnxruntime"]["todo"]
    assert report["checks"]["onnxruntime.cpu"]["summary"] == "ONNX Runtime does not work here"


def driver_of(cuda: str | None) -> Check:
    """A driver that works up to a version of CUDA, or none."""
    status: Status = "ok" if cuda else "missing"
    return Check("driver", "NVIDIA", "driver", status, "", facts={"cuda": cuda} if cuda else {})


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


def test_a_default_bundle_that_does_not_ship_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "shipped_bundles", lambda: ())
    # Other backends than ONNX Runtime, as they come, are tried on the GPU alone.
    assert {("carn", "onnxruntime", "cpu"), ("carn", "onnxruntime", "cuda:0")} <= set(_ways())
    trial = run_trial(_child("upscaler", "none", "onnxruntime", "cpu"), timeout=LIMIT)
    assert "BundleError: no bundle named none ships with pcsr" in trial.reason


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


def tensorrt_trial(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, *, driver: bool
) -> tuple[Trial, Check]:
    """What the child makes of a fake TensorRT, and what is made of that."""
    for name, value in modules(folder, tensorrt=source).items():
        monkeypatch.setenv(name, value)
    code = _child("tensorrt", "tensorrt", runtime_always=False, driver=driver)
    trial = run_trial(code, timeout=LIMIT)
    return trial, gpu.check_tensorrt(gpu.FLAVOURS[0], trial, driver=driver)


# As 8.6 is without a driver.
OLD = fake_tensorrt(
    "8.6.1", builder="raise TypeError('pybind11::init(): factory function returned nullptr')", runtime=CRASH
)


def test_no_runtime_is_created_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial, check = tensorrt_trial(tmp_path, monkeypatch, OLD, driver=False)
    assert trial.ok
    assert trial.value["builder"] is False
    assert "runtime" not in trial.value
    assert check.status == "warning"
    assert "8.6.1; no Builder (TypeError: pybind11::init()" in check.summary
    assert "no driver" in check.summary


def test_with_a_driver_the_runtime_is_tried_and_its_crash_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial, check = tensorrt_trial(tmp_path, monkeypatch, OLD, driver=True)
    assert trial.signal == "SIGSEGV"
    assert (check.status, check.summary) == ("broken", "8.6.1: crashed with SIGSEGV at Runtime()")


def test_a_crash_after_all_was_created_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the lean runtimes do: they return an object and end the process at its end."""
    source = f"import atexit\natexit.register(lambda: exec({CRASH!r}))\n" + fake_tensorrt("11.4")
    _, check = tensorrt_trial(tmp_path, monkeypatch, source, driver=True)
    assert (check.status, check.summary) == ("broken", "11.4: crashed with SIGSEGV at leaving")


def test_one_that_works_is_ok_and_one_that_lacks_its_builder_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, check = tensorrt_trial(tmp_path, monkeypatch, fake_tensorrt("10.9"), driver=True)
    assert (check.status, check.summary, check.todo) == ("ok", "10.9; Builder and Runtime can be created", "")
    source = fake_tensorrt("10.9") + "del Builder"
    _, check = tensorrt_trial(tmp_path, monkeypatch, source, driver=True)
    assert (check.status, check.summary) == (
        "broken",
        "10.9; Runtime can be created; the module has no Builder",
    )


def test_a_name_that_only_this_process_knows_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_alias", json)
    assert gpu.find_module(["tensorrt_rtx_alias", "json"]) == "json"


@needs_no_driver
def test_tensorrt_rtx_builds_without_a_driver() -> None:
    flavour = gpu.FLAVOURS[2]
    module = gpu.find_module(flavour.modules)
    if module is None:
        pytest.skip("TensorRT-RTX is not installed (pip install 'pcsr[trt-rtx]')")
    trial = run_trial(_child("tensorrt", module, runtime_always=True, driver=False), timeout=LIMIT)
    check = gpu.check_tensorrt(flavour, trial, driver=False)
    assert "Builder and Runtime can be created; there is no driver" in check.summary, trial
    assert check.status == "warning"


# --- ONNX Runtime's providers

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


# --- drivers and CUDA libraries, compiled here

LIBCUDA = r"""
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int cuInit(unsigned flags) {
    const char *how = getenv("FAKE_CUDA");
    if (!strcmp(how, "hang")) sleep(600);
    if (!strcmp(how, "crash")) abort();
    return atoi(how);
}
int cuDriverGetVersion(int *version) { *version = 12040; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "NVIDIA [bold]H100\x1b[31m", size); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)80 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) {
    *value = which == 75 ? 9 : which == 76 ? 0 : -1;
    return 0;
}
int cuGetErrorName(int error, const char **name) {
    *name = error == 999 ? "CUDA_ERROR_UNKNOWN" : error == 34 ? "CUDA_ERROR_STUB_LIBRARY" : 0;
    return *name ? 0 : 1;
}
"""


def compile_library(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", path], input=source, text=True, check=True
    )


@pytest.fixture(scope="module")
def libcuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a driver's library that does as FAKE_CUDA says."""
    folder = tmp_path_factory.mktemp("driver")
    compile_library(folder / "libcuda.so.1", LIBCUDA)
    return folder


@pytest.mark.parametrize(
    ("how", "summary", "todo"),
    [
        ("999", "CUDA 12.4; cuInit says CUDA_ERROR_UNKNOWN", "nvidia-modprobe"),
        ("34", "cuInit says CUDA_ERROR_STUB_LIBRARY", "LD_LIBRARY_PATH"),
        ("12345", "cuInit says error 12345", "reinstall the driver"),
        ("crash", "crashed with SIGABRT at cuInit", "dmesg"),
    ],
)
def test_a_driver_that_does_not_work_is_broken(
    libcuda: Path, monkeypatch: pytest.MonkeyPatch, how: str, summary: str, todo: str
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(libcuda))
    monkeypatch.setenv("FAKE_CUDA", how)
    trial = run_trial(_child("driver"), timeout=LIMIT)
    check = gpu.check_driver(trial)
    assert check.status == "broken"
    assert summary in check.summary
    assert todo in check.todo


def test_what_hangs_is_reported(libcuda: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = fake_tensorrt("10.9", builder="import time; time.sleep(600)")
    for name, value in modules(tmp_path, tensorrt=source).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(libcuda))
    monkeypatch.setenv("FAKE_CUDA", "hang")
    codes = {
        "driver": _child("driver"),
        "tensorrt": _child("tensorrt", "tensorrt", runtime_always=False, driver=True),
    }
    # Long enough for both to get where they hang.
    trials = run_trials(codes, timeout=6, workers=2)
    driver = gpu.check_driver(trials["driver"])
    assert (driver.status, driver.summary) == ("broken", "did not end within 6 s at cuInit")
    tensorrt = gpu.check_tensorrt(gpu.FLAVOURS[0], trials["tensorrt"], driver=True)
    assert (tensorrt.status, tensorrt.summary) == ("broken", "10.9: did not end within 6 s at Builder()")


def test_with_a_driver_and_a_tensorrt_that_work_its_requirement_is_met(libcuda: Path, tmp_path: Path) -> None:
    fakes = {name: fake_tensorrt("10.9") for name in ("tensorrt", "tensorrt_lean", "tensorrt_rtx")}
    variables = modules(tmp_path, **fakes, cupy="__version__ = '13.6.0'")
    variables |= {"LD_LIBRARY_PATH": str(libcuda), "FAKE_CUDA": "0"}
    done = run("--require", "tensorrt", "-v", "--engine-cache", tmp_path / "engines", **variables)
    assert f"{tmp_path / 'engines'}; no engines yet" in done.stdout
    assert (done.returncode, errors(done)) == (0, "")
    assert done.stdout.endswith("tensorrt: works\n")
    # What a device calls itself is neither markup nor a command to the terminal.
    assert "cuda:1 NVIDIA [bold]H100�[31m (9.0, 80.0 GiB)" in done.stdout
    assert "Builder and Runtime can be created" in done.stdout
    # CuPy is there and has nothing in it.
    assert "AttributeError" in done.stdout
    assert "pip install 'pcsr[gpu-cuda12]'" in done.stdout
    # The backend routes with its kernels.
    assert "see CuPy" in done.stdout


def test_cuda_libraries_are_found_in_wheels_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "nvidia"
    compile_library(
        folder / "cudnn" / "lib" / "libcudnn.so.9", "unsigned long cudnnGetVersion() { return 91002; }"
    )
    (folder / "cufft" / "lib").mkdir(parents=True)
    (folder / "cufft" / "lib" / "libcufft.so.12").write_text("no library")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    trial = run_trial(_child("cuda_libraries"), timeout=LIMIT)
    libraries = trial.value["libraries"]
    (cudnn,) = libraries["cudnn"]
    assert (cudnn["soname"], cudnn["version"], cudnn["error"]) == ("libcudnn.so.9", "9.10.2", "")
    assert cudnn["path"] == str(folder / "cudnn" / "lib" / "libcudnn.so.9")
    (cufft,) = [entry for entry in libraries["cufft"] if entry["soname"] == "libcufft.so.12"]
    assert "file too short" in cufft["error"] or "ELF" in cufft["error"]
    check = gpu.check_cuda_libraries(trial, driver=driver_of("12.9"))
    assert check.status == "broken"
    assert "cudnn 9.10.2" in check.summary
    assert check.todo == "pip install 'pcsr[gpu-cuda12]'"


@pytest.fixture
def no_library() -> Trial:
    facts = {"loaded": False, "error": "libcuda.so.1: cannot open"}
    return Trial("done", facts, "", None, "", 0.1)


def test_a_container_without_the_library_is_told_from_a_machine_without_a_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_library: Trial
) -> None:
    monkeypatch.setattr(gpu, "KERNEL_DRIVER", tmp_path / "version")
    monkeypatch.setattr(gpu, "PCI_DEVICES", tmp_path / "devices")
    check = gpu.check_driver(no_library)
    assert (check.status, check.facts["cards_on_the_bus"]) == ("missing", 0)
    assert check.todo.startswith("only for NVIDIA GPUs: ")
    devices = (("gpu", "0x10de", "0x030200"), ("net", "0x10de", "0x020000"), ("vga", "0x1234", "0x030000"))
    for name, vendor, kind in devices:
        (tmp_path / "devices" / name).mkdir(parents=True)
        (tmp_path / "devices" / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / "devices" / name / "class").write_text(f"{kind}\n")
    check = gpu.check_driver(no_library)
    assert (check.status, check.facts["cards_on_the_bus"]) == ("missing", 1)
    assert check.todo.startswith("install NVIDIA's driver")
    text = (
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version: 12\n"
    )
    (tmp_path / "version").write_text(text)
    check = gpu.check_driver(no_library)
    assert (check.status, check.facts["kernel_driver"]) == ("broken", "570.86.15")
    assert "NVIDIA_DRIVER_CAPABILITIES" in check.todo


# --- the machine


def checks_of_host() -> Mapping[str, Check]:
    return {check.key: check for check in host.check_host()}


@pytest.mark.parametrize(
    ("content", "architecture", "status", "instructions"),
    [
        ("model name\t: Old\nflags\t\t: sse sse2 avx\n", "x86_64", "warning", []),
        (
            "flags\t\t: avx2 avx512f avx512_vnni amx_int8\n",
            "x86_64",
            "ok",
            ["AVX2", "AVX-512", "AVX-512 VNNI", "AMX INT8"],
        ),
        (
            "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n",
            "aarch64",
            "ok",
            ["NEON", "dot product", "I8MM"],
        ),
        ("", "x86_64", "ok", []),
    ],
)
def test_instruction_sets_are_read_from_the_processors_flags(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str,
    architecture: str,
    status: str,
    instructions: list[str],
) -> None:
    (tmp_path / "cpuinfo").write_text(content)
    monkeypatch.setattr(host, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(host.platform, "machine", lambda: architecture)
    check = checks_of_host()["processor"]
    assert (check.status, check.facts["instructions"]) == (status, instructions)


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "total_memory", lambda: 1 << 29)
    check = checks_of_host()["memory"]
    assert check.status == "warning"
    assert "0.5 GiB, limited by the cgroup" in check.summary


def test_a_package_that_is_absent_or_too_old_is_broken_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions = {"numpy": "1.26.4", "msgspec": None}
    real = host.installed
    monkeypatch.setattr(host, "installed", lambda name: versions[name] if name in versions else real(name))
    check = checks_of_host()["packages"]
    assert (check.status, check.todo) == ("broken", "pip install 'numpy>=2.0' 'msgspec>=0.19'")
    assert check.summary == "numpy 1.26.4 is older than 2.0; msgspec is not installed"


def test_an_engine_cache_that_cannot_be_written_to_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pcsr" / "engines"
    monkeypatch.setattr(gpu, "default_cache", lambda: folder)
    check = gpu.check_engine_cache()
    assert (check.status, check.facts["engines"], check.facts["writable"]) == ("ok", 0, True)
    assert list(tmp_path.iterdir()) == []
    folder.mkdir(parents=True)
    (folder / "backbone-fp16-0123456789ab.plan").write_bytes(bytes(3 << 20))
    check = gpu.check_engine_cache()
    assert "1 engines, 3.0 MiB" in check.summary
    assert gpu.check_engine_cache(tmp_path).facts["folder"] == str(tmp_path)
    # Root may write anywhere; nobody can make a folder in a file.
    (tmp_path / "file").touch(mode=0o444)
    monkeypatch.setattr(gpu, "default_cache", lambda: tmp_path / "file" / "engines")
    check = gpu.check_engine_cache()
    assert (check.status, check.facts["writable"]) == ("warning", False)
    assert "--engine-cache" in check.todo


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
