"""The CUDA sources run on the CPU, block by block, and a device that ONNX Runtime's graphs run on."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from pcsr.runtime import Upscaler
from pcsr.runtime.backends.profiles import Limits
from pcsr.runtime.bundle import Bundle, read_bundle
from pcsr.runtime.device.arrays import DeviceArray, Session
from pcsr.runtime.device.kernels import KERNELS, THREADS, Parameter, source
from pcsr.runtime.device.onnxruntime import OnnxRuntimeGraphs
from pcsr.runtime.device.road import DeviceRoad
from pcsr.runtime.device.simulated import SimulatedDevice, SimulatedStream

HERE = Path(__file__).parent

Launch = Callable[..., None]
"""launch(name, elements, *arguments): arrays are flat NumPy arrays, scalars numbers."""


@pytest.fixture(scope="session")
def kernel_library(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], ctypes.CDLL]:
    """kernel_library(classes) → the sources compiled for a number of classes."""
    folder = tmp_path_factory.mktemp("kernels")
    compiled: dict[int, ctypes.CDLL] = {}

    def of(classes: int) -> ctypes.CDLL:
        if classes not in compiled:
            compiled[classes] = compile_kernels(folder, classes)
        return compiled[classes]

    return of


@pytest.fixture(scope="session")
def host_kernels(kernel_library: Callable[[int], ctypes.CDLL]) -> Callable[..., Launch]:
    """host_kernels(classes, backwards=False) → launch: the compiled sources for a number of classes."""

    def of(classes: int, *, backwards: bool = False) -> Launch:
        return launcher(kernel_library(classes), backwards=backwards)

    return of


def compile_kernels(folder: Path, classes: int) -> ctypes.CDLL:
    """A library with run_<kernel>(grid, block, backwards, arguments …) for every kernel."""
    wrappers = []
    for kernel in KERNELS.values():
        names = ", ".join(parameter.name for parameter in kernel.parameters)
        wrappers.append(
            f'extern "C" void run_{kernel.name}(unsigned grid, unsigned block, int backwards, {kernel.signature}) {{'
            f" shim::launch(grid, block, backwards != 0, [&] {{ {kernel.name}({names}); }}); }}"
        )
    program = folder / f"kernels-{classes}.cpp"
    program.write_text("\n".join(['#include "shim.hpp"', source(classes), *wrappers]), encoding="utf-8")
    library = folder / f"kernels-{classes}.so"
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-clobbered", "-Werror"]
    command = ["g++", *flags, "-shared", "-fPIC", f"-I{HERE}", str(program), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(library))


def launcher(library: ctypes.CDLL, *, backwards: bool = False) -> Launch:
    """Runs a kernel of a compiled library; blocks and threads in ascending order, or backwards."""

    def launch(name: str, elements: int, *arguments: Any) -> None:
        kernel = KERNELS[name]
        assert len(arguments) == len(kernel.parameters)
        values = [
            _argument(parameter, argument)
            for parameter, argument in zip(kernel.parameters, arguments, strict=True)
        ]
        head = (ctypes.c_uint(kernel.grid(elements)), ctypes.c_uint(THREADS), ctypes.c_int(backwards))
        getattr(library, f"run_{name}")(*head, *values)

    return launch


def _argument(parameter: Parameter, argument: Any) -> Any:
    if parameter.pointer:
        assert isinstance(argument, np.ndarray)
        assert argument.flags.c_contiguous
        dtype = np.dtype(parameter.dtype)
        assert argument.dtype == dtype, (parameter, argument.dtype)
        return ctypes.c_void_p(argument.ctypes.data)
    return np.ctypeslib.as_ctypes_type(parameter.dtype)(argument)


class CheckedGraphs(OnnxRuntimeGraphs):
    """ONNX Runtime's graphs within limits as engines have them. `spoil(graph, inputs, outputs)` may change what a
    graph gives."""

    def __init__(
        self,
        bundle: Bundle,
        device: SimulatedDevice,
        precision: str,
        limits: Limits,
        spoil: Callable[..., None] | None,
    ) -> None:
        super().__init__(onnxruntime, bundle, device, precision=precision, limits=limits)
        self.spoil = spoil

    def check(self, graph: str, shapes: Mapping[str, tuple[int, ...]], profile: int) -> None:
        """As an engine would: no shape outside of the profile."""
        if graph == "backbone":
            low, high = self.limits.windows[profile]
            h, w = shapes["lr"][2:]
            assert low[0] <= h <= high[0]
            assert low[1] <= w <= high[1]
        elif graph in ("classifier", "upsampler_0"):
            assert shapes["rows"][0] <= self.limits.block[0]
            assert shapes["columns"][0] <= self.limits.block[1]
            assert shapes["table"][0] <= self.limits.table[0]
            assert shapes["table"][2] <= self.limits.table[1]
        else:
            assert 1 <= shapes["pixel"][0] <= self.limits.points
            assert shapes["table"][0] <= self.limits.flat

    def session(self, stream: SimulatedStream) -> CheckedSession:
        return CheckedSession(self, super().session(stream), stream)


class CheckedSession:
    def __init__(self, graphs: CheckedGraphs, session: Session, stream: SimulatedStream) -> None:
        self._graphs, self._session, self._stream = graphs, session, stream

    def run(
        self,
        graph: str,
        inputs: Mapping[str, DeviceArray],
        outputs: Sequence[DeviceArray],
        *,
        profile: int = 0,
    ) -> None:
        self._graphs.check(graph, {name: array.shape for name, array in inputs.items()}, profile)
        self._session.run(graph, inputs, outputs, profile=profile)
        if (spoil := self._graphs.spoil) is None:
            return

        def work(*views: np.ndarray) -> None:
            spoil(graph, dict(zip(inputs, views, strict=False)), views[len(inputs) :])

        self._stream.call("spoil", work, *inputs.values(), *outputs)

    def release(self) -> None:
        self._session.release()


LIMITS = Limits(
    windows=(((1, 1), (400, 400)),), table=(400, 400), block=(600, 900), points=1 << 20, flat=1 << 20
)


@pytest.fixture
def open_simulated() -> Iterator[Callable[..., tuple[Upscaler, SimulatedDevice]]]:
    """open_simulated(bundle, precision=…, exact=…, limits=…, spoil=…, tile=…, **device) → upscaler, device."""
    opened: list[Upscaler] = []

    def open_on(
        folder: Path,
        *,
        precision: str = "fp32",
        exact: bool = False,
        limits: Limits = LIMITS,
        spoil: Callable[..., None] | None = None,
        tile: int | None = None,
        **device: Any,
    ) -> tuple[Upscaler, SimulatedDevice]:
        bundle = read_bundle(folder)
        simulated = SimulatedDevice(bundle.manifest.classes, **device)
        graphs = {precision: CheckedGraphs(bundle, simulated, precision, limits, spoil)}
        if exact:
            graphs["fp32"] = CheckedGraphs(bundle, simulated, "fp32", limits, None)
        road = DeviceRoad(
            bundle,
            simulated,
            graphs,
            name="simulated",
            provider="ONNX Runtime on the CPU",
            precision=precision,
            asked="simulated",
            tile=tile,
        )
        opened.append(Upscaler(bundle, road, threads=1, memory_limit=1))
        return opened[-1], simulated

    yield open_on
    for up in opened:
        up.close()
