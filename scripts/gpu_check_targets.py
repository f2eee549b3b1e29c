"""What `gpu_check` runs on: a GPU, or the simulated device of a dry run; and upscalers opened there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
import skimage.data
from numpy.typing import NDArray

from pcsr.export.tensorrt.command import check_ready, run_request
from pcsr.export.tensorrt.plan import this_machine
from pcsr.export.tensorrt.request import parse_request
from pcsr.runtime import Upscaler
from pcsr.runtime.backends.engine_search import Machine as EngineMachine
from pcsr.runtime.backends.engine_search import machine_platform
from pcsr.runtime.backends.engines import MODULES, Flavour
from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.device.onnxruntime import OnnxRuntimeGraphs
from pcsr.runtime.device.road import DeviceRoad
from pcsr.runtime.device.simulated import SimulatedArray, SimulatedDevice
from pcsr.runtime.errors import BackendError
from pcsr.runtime.probe import Unavailable, probe_gpu, probe_tensorrt

__all__ = ["Cuda", "Machine", "Simulated", "Target", "photo"]

Pixels = NDArray[Any]

# What engines of a dry run are built for.
AHEAD = "8.9"
# A copy that measures bandwidth: larger than any cache, as large as an 8K picture in float32.
COPY_BYTES, COPIES = 256 << 20, 20
PACKAGES = ("pcsr", "numpy", "torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", *(
    name for cuda in ("12", "13") for name in (f"cupy-cuda{cuda}x", f"tensorrt-cu{cuda}", f"tensorrt-rtx-cu{cuda}-libs")
))  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """An upscaler under test.

    Attributes:
        label: backend and precision.
        up: opened.
        opened: seconds that opening took.
        put: a picture to the device.
        get: a picture from there.
    """

    label: str
    up: Upscaler
    opened: float
    put: Callable[[Pixels], Any]
    get: Callable[[Any], Pixels]

    @property
    def half(self) -> bool:
        """Whether it computes in fp16."""
        return self.up.precision == "fp16"


class Machine(Protocol):
    """Where upscalers are opened.

    Attributes:
        title: what results are headed with.
        simulated: no GPU; nothing that was measured means anything.
        backends: backend and precision of each target, the most important first.
        device: of it, as PyTorch names it.
    """

    title: str
    device: str
    simulated: bool
    backends: Sequence[tuple[str, str]]

    def describe(self) -> dict[str, Any]:
        """What a reader needs to place the numbers."""

    def build(self, bundle: Path, folder: Path) -> dict[str, Any]:
        """Build the engines that are missing, or on the simulated device one for a GPU that is not there."""

    def opened(self, bundle: Path, backend: str, precision: str, **options: int) -> Any:
        """A context manager that gives a `Target`; options are `tile` and `memory_limit`."""

    def engine_machine(self, flavour: Flavour) -> EngineMachine:
        """What an engine that is built here must fit."""

    def memory_used(self) -> int:
        """Bytes of the device."""

    def bandwidth(self) -> float:
        """Bytes per second, read and written, of a copy within the device."""

    def synchronise(self) -> None:
        """Wait for everything."""

    def others(self, picture: Pixels) -> Mapping[str, tuple[Any, Callable[[Any], Pixels], Any]]:
        """The picture on the device as other libraries hold it: array, the way back, and a stream or None."""


def photo(h: int, w: int, *, dtype: str = "uint8", seed: int = 0) -> Pixels:
    """A photograph of (h, w, 3), mirrored on where it ends."""
    source = (skimage.data.chelsea, skimage.data.coffee, skimage.data.astronaut)[seed % 3]()
    rows, columns = (-(-side // have) for side, have in zip((h, w), source.shape, strict=False))
    tiles = [[source[:: 1 - 2 * (y % 2), :: 1 - 2 * (x % 2)] for x in range(columns)] for y in range(rows)]
    whole = np.concatenate([np.concatenate(row, axis=1) for row in tiles])
    top, left = (
        (7 * seed * side) % (have - side + 1) for side, have in zip((h, w), whole.shape, strict=False)
    )
    picture = np.ascontiguousarray(whole[top : top + h, left : left + w])
    return picture if dtype == "uint8" else picture / np.float32(255)


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe_host() -> dict[str, Any]:
    """Processor, versions, commit."""
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
        ).stdout.strip()
    except OSError:
        commit = "unknown"
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "versions": versions(),
        "commit": commit,
    }


def _nvidia_smi(index: int) -> str:
    query = "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit"
    try:
        ran = subprocess.run(
            ["nvidia-smi", f"--id={index}", query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        return f"no nvidia-smi ({error})"
    return ran.stdout.strip()


class Cuda:
    """A GPU."""

    simulated = False
    backends: Sequence[tuple[str, str]] = (
        ("tensorrt", "fp16"),
        ("onnxruntime", "fp16"),
        ("tensorrt", "fp32"),
        ("onnxruntime", "fp32"),
    )

    def __init__(self, device: str, engine_cache: str | None) -> None:
        import cupy

        self._cupy, self._engine_cache = cupy, engine_cache
        self._index = int(device.partition(":")[2] or 0)
        self.device = f"cuda:{self._index}"
        cupy.cuda.Device(self._index).use()
        gpu = probe_gpu(self._index)
        self.title = gpu.reason if isinstance(gpu, Unavailable) else gpu.name

    def describe(self) -> dict[str, Any]:
        runtime = self._cupy.cuda.runtime
        properties = runtime.getDeviceProperties(self._index)
        return {
            "gpu": self.title,
            "compute capability": f"{properties['major']}.{properties['minor']}",
            "memory": int(properties["totalGlobalMem"]),
            "multiprocessors": int(properties["multiProcessorCount"]),
            "driver, clocks, power": _nvidia_smi(self._index),
            "cuda of the driver": runtime.driverGetVersion(),
            "cuda of CuPy": runtime.runtimeGetVersion(),
            **describe_host(),
        }

    def build(self, bundle: Path, folder: Path) -> dict[str, Any]:
        flavour = next((each for each, module in MODULES.items() if importlib.util.find_spec(module)), None)
        if flavour is None:
            return {"engines": "no TensorRT is installed"}
        return _build(bundle, flavour=flavour, ahead=None, cache=self._engine_cache)

    @contextmanager
    def opened(self, bundle: Path, backend: str, precision: str, **options: int) -> Iterator[Target]:
        cache = self._engine_cache if backend == "tensorrt" else None
        started = time.perf_counter()
        with Upscaler.open(
            bundle,
            device=self.device,
            backend=backend,
            precision=precision,
            engine_cache=cache,
            **options,
        ) as up:
            seconds = time.perf_counter() - started
            yield Target(f"{backend} {precision}", up, seconds, self._cupy.asarray, self._cupy.asnumpy)

    def engine_machine(self, flavour: Flavour) -> EngineMachine:
        return this_machine(flavour)

    def memory_used(self) -> int:
        free, total = self._cupy.cuda.runtime.memGetInfo()
        return int(total - free)

    def bandwidth(self) -> float:
        source = self._cupy.zeros(COPY_BYTES, self._cupy.uint8)
        to, stream = self._cupy.empty_like(source), self._cupy.cuda.get_current_stream()
        self._cupy.copyto(to, source)
        begin = stream.record()
        for _ in range(COPIES):
            self._cupy.copyto(to, source)
        end = stream.record()
        end.synchronize()
        milliseconds = float(self._cupy.cuda.get_elapsed_time(begin, end))
        return 2 * COPY_BYTES * COPIES / (milliseconds / 1000)

    def synchronise(self) -> None:
        self._cupy.cuda.runtime.deviceSynchronize()

    def others(self, picture: Pixels) -> Mapping[str, tuple[Any, Callable[[Any], Pixels], Any]]:
        cupy = self._cupy
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            late = cupy.asarray(picture)
        found = {
            "CuPy": (cupy.asarray(picture), cupy.asnumpy, None),
            "CuPy on a stream of the caller": (late, cupy.asnumpy, stream),
        }
        import torch

        if torch.cuda.is_available():
            tensor = torch.from_numpy(picture).to(f"cuda:{self._index}")
            back = lambda array: torch.utils.dlpack.from_dlpack(array).cpu().numpy()  # noqa: E731 - one expression
            found["PyTorch"] = tensor, back, torch.cuda.current_stream(self._index)
        return found


class Simulated:
    """The simulated device, on which ONNX Runtime's graphs run."""

    simulated = True
    device = "cpu"
    title = "dry run on the simulated device: NOTHING HERE WAS MEASURED ON A GPU"
    backends: Sequence[tuple[str, str]] = (("simulated", "fp16"), ("simulated", "fp32"))

    def __init__(self) -> None:
        self._devices: list[SimulatedDevice] = []

    def describe(self) -> dict[str, Any]:
        return {"gpu": None, **describe_host()}

    def build(self, bundle: Path, folder: Path) -> dict[str, Any]:
        if importlib.util.find_spec(MODULES["tensorrt-rtx"]) is None:
            return {"engines": "no TensorRT-RTX is installed, which builds without a GPU"}
        return _build(bundle, flavour="tensorrt-rtx", ahead=AHEAD, cache=str(folder / "engines"))

    @contextmanager
    def opened(self, bundle: Path, backend: str, precision: str, **options: int) -> Iterator[Target]:
        started = time.perf_counter()
        found = read_bundle(bundle)
        device = SimulatedDevice(found.manifest.classes, memory_limit=options.get("memory_limit", 1 << 40))
        graphs = {
            each: OnnxRuntimeGraphs(onnxruntime, found, device, precision=each)
            for each in found.precisions
            if each in (precision, "fp32")
        }
        road = DeviceRoad(
            found,
            device,
            graphs,
            name=backend,
            provider="ONNX Runtime on the CPU",
            precision=precision,
            asked="simulated",
            tile=options.get("tile"),
        )

        def put(picture: Pixels) -> SimulatedArray:
            stream = device.stream()
            array = stream.array(picture.shape, picture.dtype)
            stream.upload(picture, array)
            stream.synchronise()
            return SimulatedArray(array, device)

        self._devices.append(device)
        with Upscaler(found, road, threads=1, memory_limit=1) as up:
            yield Target(
                f"{backend} {precision}", up, time.perf_counter() - started, put, lambda array: array.get()
            )
        self._devices.remove(device)

    def engine_machine(self, flavour: Flavour) -> EngineMachine:
        version = probe_tensorrt(MODULES[flavour])
        if isinstance(version, Unavailable):
            raise BackendError(version.reason)
        return EngineMachine(flavour, version.version, machine_platform(), AHEAD, "")

    def memory_used(self) -> int:
        return sum(device.allocated for device in self._devices)

    def bandwidth(self) -> float:
        source = np.zeros(16 << 20, np.uint8)
        started = time.perf_counter()
        source.copy()
        return 2 * source.nbytes / (time.perf_counter() - started)

    def synchronise(self) -> None:
        pass

    def others(self, picture: Pixels) -> Mapping[str, tuple[Any, Callable[[Any], Pixels], Any]]:
        return {}


def _build(bundle: Path, *, flavour: Flavour, ahead: str | None, cache: str | None) -> dict[str, Any]:
    request = parse_request(
        trt=flavour == "tensorrt",
        trt_rtx=flavour == "tensorrt-rtx",
        ahead=ahead,
        min_lr=None,
        opt_lr=None,
        max_lr=None,
        points=None,
        opt_level=None,
        workspace=None,
        hardware_compat=False,
        version_compat=False,
        engine_cache=cache,
        compare=False,
    )
    assert request is not None
    check_ready(request)
    done = run_request(read_bundle(bundle), request, None, as_json=True)
    # Where engines lie is this machine's business.
    return {name: value for name, value in done.items() if name != "engine_folder"}
