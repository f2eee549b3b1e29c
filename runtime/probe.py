"""What works on this machine, tried in a child process: a library that crashes takes only the child with it.

Some versions of TensorRT end the process when no driver is there, so nothing is believed before it was tried here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TypeVar

import msgspec

__all__ = ["Gpu", "TensorRT", "Unavailable", "probe", "probe_gpu", "probe_tensorrt"]

# A first import from a cold disk, and a CUDA context on a machine with many GPUs, take many seconds.
PROBE_SECONDS = 120.0
# Characters of a child's last words that are shown.
SHOWN = 300

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why something does not work here, as the end of a sentence."""

    reason: str


class Gpu(msgspec.Struct, frozen=True):
    """A GPU as the driver describes it.

    Attributes:
        name: like "NVIDIA H100 80GB HBM3".
        compute_capability: like "9.0".
        memory: bytes, in all.
        cuda: the highest CUDA version that the driver supports, like "12.8".
    """

    name: str
    compute_capability: str
    memory: int
    cuda: str


class TensorRT(msgspec.Struct, frozen=True):
    """A TensorRT that can build here.

    Attributes:
        version: like "10.16.1.11".
        file: the module that was imported.
    """

    version: str
    file: str


# The driver itself is asked, so that no CUDA library needs to be installed.
GPU = """
import ctypes, json, sys
name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
try:
    cuda = ctypes.CDLL(name)
except OSError:
    sys.exit(f"there is no NVIDIA driver ({name} cannot be loaded)")
def call(function, *arguments):
    error = getattr(cuda, function)(*arguments)
    if error:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(error, ctypes.byref(text))
        sys.exit(f"{function} of the NVIDIA driver fails with error {error}, {(text.value or b'unknown').decode()}")
def number(function, *arguments, kind=ctypes.c_int):
    value = kind()
    call(function, ctypes.byref(value), *arguments)
    return value.value
index = int(sys.argv[1])
call("cuInit", 0)
count = number("cuDeviceGetCount")
if index >= count:
    sys.exit(f"there is no GPU {index}, only {count} in all (CUDA_VISIBLE_DEVICES may hide some)")
device = number("cuDeviceGet", index)
text = ctypes.create_string_buffer(256)
call("cuDeviceGetName", text, 256, device)
version = number("cuDriverGetVersion")
print(json.dumps({
    "name": text.value.decode(),
    "compute_capability": ".".join(str(number("cuDeviceGetAttribute", which, device)) for which in (75, 76)),
    "memory": number("cuDeviceTotalMem_v2", device, kind=ctypes.c_size_t),
    "cuda": f"{version // 1000}.{version % 1000 // 10}",
}))
"""

TENSORRT = """
import importlib, json, sys
try:
    trt = importlib.import_module(sys.argv[1])
except ImportError as error:
    sys.exit(f"{sys.argv[1]} cannot be imported: {error}")
if not hasattr(trt, "Builder") or not hasattr(trt, "OnnxParser"):
    sys.exit(f"{sys.argv[1]} {trt.__version__} is a runtime alone and cannot build")
logger = trt.Logger(trt.Logger.ERROR)
try:
    builder = trt.Builder(logger)
except TypeError:
    builder = None
if builder is None:
    sys.exit(f"{sys.argv[1]} {trt.__version__} makes no builder, as a rule because it finds no GPU or driver")
print(json.dumps({"version": trt.__version__, "file": trt.__file__}))
"""


def probe(
    program: str, *arguments: str, answer: type[Answer], seconds: float = PROBE_SECONDS
) -> Answer | Unavailable:
    """Run a Python program in a child process and decode what it prints.

    Args:
        program: its text. The last line it prints is one JSON object; to refuse, it calls `sys.exit(reason)`.
        arguments: its `sys.argv[1:]`.
        answer: what the JSON object is decoded to.
        seconds: after which it is ended.
    """
    # -P: a folder that happens to be named like a library is not taken for it.
    command = [sys.executable, "-P", "-c", program, *arguments]
    try:
        ran = subprocess.run(command, capture_output=True, timeout=seconds, check=False, env=_environment())
    except subprocess.TimeoutExpired:
        return Unavailable(f"it did not answer within {seconds:g} s")
    except OSError as error:
        return Unavailable(f"no child process can be started ({error.strerror or error})")
    said = [line for line in ran.stderr.decode(errors="replace").splitlines() if line.strip()]
    if ran.returncode < 0:
        return Unavailable(f"it crashed ({_signal(-ran.returncode)})")
    if ran.returncode:
        return Unavailable(said[-1][:SHOWN] if said else f"it ended with status {ran.returncode}")
    try:
        return msgspec.json.decode(ran.stdout.splitlines()[-1], type=answer)
    except (IndexError, msgspec.DecodeError) as error:
        return Unavailable(f"its answer makes no sense ({error})")


def probe_gpu(index: int = 0) -> Gpu | Unavailable:
    """What the driver says of a GPU, by its number among those that are visible."""
    return probe(GPU, str(index), answer=Gpu)


def probe_tensorrt(module: str) -> TensorRT | Unavailable:
    """Whether a TensorRT can be imported and makes a builder.

    Args:
        module: its name, "tensorrt" or "tensorrt_rtx_bindings".
    """
    return probe(TENSORRT, module, answer=TensorRT)


def _environment() -> dict[str, str]:
    # Deprecation warnings of a library are no answer, and under -W error would end the child.
    return {**os.environ, "PYTHONWARNINGS": "ignore"}


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
