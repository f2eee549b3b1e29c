"""The fastest backend on NVIDIA GPUs: engines of TensorRT or TensorRT-RTX, routing on the device.

Everything that can be missing is looked at before anything is loaded, in a child process where a library could take
this one down; see `pcsr.runtime.probe`.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Sequence
from functools import cache

from pcsr.runtime.backends.device_names import parse_device
from pcsr.runtime.backends.engine_search import Machine, engine_folders, find_engines, machine_platform
from pcsr.runtime.backends.engines import EXTRAS, MODULES, Engine, Flavour
from pcsr.runtime.backends.protocol import DeviceBackend
from pcsr.runtime.bundle import Bundle
from pcsr.runtime.errors import BackendError, NotInstalledError, OptionError
from pcsr.runtime.manifest import Precision
from pcsr.runtime.probe import Gpu, Unavailable, probe_gpu, probe_tensorrt

__all__ = ["open_tensorrt"]

logger = logging.getLogger(__name__)

NAMES: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
# Those that "auto" may take, fastest first; int8 costs quality, and is taken only when named.
AUTO: Sequence[Precision] = ("fp16", "fp32")
PRECISIONS: Sequence[Precision] = (*AUTO, "int8")


def open_tensorrt(
    bundle: Bundle,
    *,
    device: str,
    precision: str,
    memory_limit: int | None,
    tile: int | None,
    engine_cache: str | os.PathLike[str] | None,
) -> DeviceBackend:
    """Open a bundle's engines.

    Args:
        bundle: theirs.
        device: "cuda" or "cuda:<index>".
        precision: "fp32", "fp16", "int8" or "auto": of the first two, the faster that has engines.
        memory_limit: bytes of the device's memory for all pictures under way; None: three quarters of it.
        tile: largest side of tiles in input pixels.
        engine_cache: the only folder of engines, where one is named.

    Raises:
        OptionError: the device is no GPU.
        BackendError: no GPU, no TensorRT, no CuPy, or no engine that fits; says what to run.
        BundleError: the bundle lacks the precision.
    """
    kind, number = parse_device(device)
    if kind != "cuda":
        raise OptionError(f"the backend tensorrt runs on cuda or cuda:<index>, not on {device}")
    gpu = _gpu(number)
    if isinstance(gpu, Unavailable):
        raise BackendError(f"TensorRT needs an NVIDIA GPU: {gpu.reason}; pcsr-doctor says more")
    flavour, chosen, engines, machine = _find(bundle, gpu, precision, engine_cache)
    # Imported last: CuPy and TensorRT load a gigabyte of libraries.
    from pcsr.runtime.device.arrays import Graphs
    from pcsr.runtime.device.cupy_device import CupyDevice
    from pcsr.runtime.device.engine import EngineGraphs
    from pcsr.runtime.device.road import DeviceRoad

    module = importlib.import_module(MODULES[flavour])
    on = CupyDevice(number, classes=bundle.manifest.classes, memory_limit=memory_limit)
    graphs: dict[str, Graphs] = {chosen: EngineGraphs(module, on, engines[chosen], precision=chosen)}
    if chosen != "fp32" and "fp32" in engines:
        exact = EngineGraphs(module, on, engines["fp32"], precision="fp32")
        if exact.limits == graphs[chosen].limits:
            graphs["fp32"] = exact
        else:
            logger.warning(
                "fp32 engines take other shapes than the %s ones, so no tile can be redone in them", chosen
            )
    # Version 8 lets one context at a time have a profile; later ones share.
    lanes = {"lanes": 1} if machine.version.startswith("8.") else {}
    return DeviceRoad(
        bundle,
        on,
        graphs,
        name="tensorrt",
        provider=f"{NAMES[flavour]} {machine.version}",
        precision=chosen,
        asked=device,
        tile=tile,
        **lanes,
    )


def _find(
    bundle: Bundle, gpu: Gpu, precision: str, engine_cache: str | os.PathLike[str] | None
) -> tuple[Flavour, Precision, dict[Precision, dict[str, Engine]], Machine]:
    """The first flavour and precision that have engines, and all engines of that flavour."""
    asked = AUTO if precision == "auto" else (precision,)
    wanted = [p for p in PRECISIONS if p in bundle.precisions and p in asked]
    if not wanted:
        bundle.graphs(AUTO[0] if precision == "auto" else precision)
    installed = [flavour for flavour in MODULES if _is_installed(flavour)]
    if not installed:
        extras = " or ".join(f"pip install 'pcsr[{EXTRAS[flavour]}]'" for flavour in MODULES)
        raise NotInstalledError(f"neither TensorRT nor TensorRT-RTX is installed; run: {extras}")
    folders = engine_folders(bundle, engine_cache)
    problems = []
    for flavour in installed:
        version = _version(MODULES[flavour])
        if isinstance(version, Unavailable):
            problems.append(f"{NAMES[flavour]}: {version.reason}")
            continue
        machine = Machine(flavour, version, machine_platform(), gpu.compute_capability, gpu.name)
        found: dict[Precision, dict[str, Engine]] = {}
        for each in PRECISIONS:
            if each not in bundle.precisions:
                continue
            try:
                found[each] = find_engines(bundle, each, machine, folders=folders)
            except BackendError as error:
                if each in wanted:
                    problems.append(str(error))
        chosen = next((each for each in wanted if each in found), None)
        if chosen is not None:
            return flavour, chosen, found, machine
    raise BackendError("; ".join(problems))


def _is_installed(flavour: Flavour) -> bool:
    return importlib.util.find_spec(MODULES[flavour]) is not None


@cache
def _gpu(index: int) -> Gpu | Unavailable:
    return probe_gpu(index)


@cache
def _version(module: str) -> str | Unavailable:
    found = probe_tensorrt(module)
    return found if isinstance(found, Unavailable) else found.version
