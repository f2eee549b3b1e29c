"""What the NVIDIA driver and a TensorRT say of themselves, asked in a child process: see `trial`.

The driver itself is asked, so that no CUDA library needs to be installed. Before a step that may crash its name is
reported, so that the parent knows where the child ended.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Report", "driver", "path_of_library", "tensorrt"]

Report = Callable[..., None]
"""`report` of `run_trial`: adds facts to those of the child."""

# Attributes of CUdevice_attribute in cuda.h.
MAJOR, MINOR = 75, 76


def driver(report: Report) -> None:
    """Ask the NVIDIA driver for its version and devices."""
    report(step="loading libcuda.so.1")
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        report(loaded=False, error=str(error))
        return
    report(loaded=True, path=path_of_library("libcuda.so"), step="cuInit")
    status = cuda.cuInit(0)
    report(status=status, error=_error_name(cuda, status) if status else "")
    version = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(version)) == 0:
        report(cuda=f"{version.value // 1000}.{version.value % 1000 // 10}")
    if status:
        return
    report(step="listing the devices")
    count = ctypes.c_int()
    _must(cuda, cuda.cuDeviceGetCount(ctypes.byref(count)))
    report(devices=[_device(cuda, index) for index in range(count.value)])


def _device(cuda: ctypes.CDLL, index: int) -> dict[str, Any]:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    _must(cuda, cuda.cuDeviceGet(ctypes.byref(device), index))
    _must(cuda, cuda.cuDeviceGetName(name, len(name), device))
    _must(cuda, cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device))
    _must(cuda, cuda.cuDeviceGetAttribute(ctypes.byref(major), MAJOR, device))
    _must(cuda, cuda.cuDeviceGetAttribute(ctypes.byref(minor), MINOR, device))
    return {
        "name": name.value.decode(errors="replace"),
        "memory_bytes": memory.value,
        "compute_capability": f"{major.value}.{minor.value}",
    }


def _must(cuda: ctypes.CDLL, status: int) -> None:
    if status:
        raise OSError(_error_name(cuda, status))


def _error_name(cuda: ctypes.CDLL, status: int) -> str:
    text = ctypes.c_char_p()
    if cuda.cuGetErrorName(status, ctypes.byref(text)) == 0 and text.value:
        return text.value.decode(errors="replace")
    return f"error {status}"


def path_of_library(library: str) -> str:
    """File of a library that is loaded here, "" if it cannot be told."""
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.split(maxsplit=5)[5] for line in lines if f"/{library}" in line), "")


def tensorrt(report: Report, module: str, *, runtime_always: bool, driver: bool) -> None:
    """Create a Builder and a Runtime, as far as that cannot crash for want of a driver.

    Args:
        report: what is seen.
        module: to import.
        runtime_always: whether this flavour's Runtime stands a machine without a driver.
        driver: whether there is one.
    """
    report(module=module, step=f"import {module}")
    trt = importlib.import_module(module)
    report(version=str(trt.__version__), parser=hasattr(trt, "OnnxParser"), step="Logger()")
    log = trt.Logger(trt.Logger.ERROR)
    # Errors of one are no reason to leave out the other. Null comes as None or as a TypeError, by version.
    if hasattr(trt, "Builder"):
        report(step="Builder()")
        builder, error = _create(trt.Builder, log)
        report(builder=builder is not None, builder_error=error)
    # A Runtime of 8.6, and every lean one, crashes without a driver.
    if driver or runtime_always:
        report(step="Runtime()")
        runtime, error = _create(trt.Runtime, log)
        report(runtime=runtime is not None, runtime_error=error)
    report(step="leaving")


def _create(kind: Callable[[Any], Any], log: Any) -> tuple[Any, str]:
    try:
        made = kind(log)
    except Exception as error:  # whatever a version raises is the finding
        return None, f"{type(error).__name__}: {error}"
    return made, "" if made is not None else "it gave None"
