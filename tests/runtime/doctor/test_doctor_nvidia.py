"""Drivers, CUDA libraries, CuPy and TensorRT, as they may be found; some are compiled here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from doctor_fakes import (
    CRASH,
    LIMIT,
    driver_of,
    errors,
    fake_tensorrt,
    modules,
    needs_no_driver,
    run,
)

from pcsr.runtime.doctor import Check, gpu
from pcsr.runtime.doctor.examination import _child
from pcsr.runtime.trial import Trial, run_trial, run_trials


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
