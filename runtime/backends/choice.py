"""Which backend runs: by name, or the fastest that works.

Each is imported when it is opened: what it needs takes a good part of the time that a command takes to start.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pcsr.runtime.backends.device_names import parse_device
from pcsr.runtime.backends.protocol import Backend, DeviceBackend
from pcsr.runtime.bundle import Bundle
from pcsr.runtime.errors import BackendError, NotInstalledError, OptionError
from pcsr.runtime.manifest import FORMS

__all__ = ["BACKENDS", "ON_DEVICE", "Wanted", "open_backend"]

logger = logging.getLogger(__name__)

PRECISIONS = tuple(FORMS)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a backend is opened for.

    Attributes:
        device: "cpu", "cuda" or "cuda:<index>".
        precision: of the bundle, or "auto": the fastest the bundle has for this backend and device.
        threads: worker threads that will call a host backend at once.
        memory_limit: bytes of a device's memory for all pictures under way, or of the host's for one; None: the
            backend's own limit.
        tile: largest side of tiles in input pixels; None: by memory.
        engine_cache: the only folder of engines, where one is named.
    """

    device: str
    precision: str
    threads: int
    memory_limit: int | None = None
    tile: int | None = None
    engine_cache: str | os.PathLike[str] | None = None


def _open_tensorrt(bundle: Bundle, wanted: Wanted) -> DeviceBackend:
    from pcsr.runtime.backends.tensorrt import open_tensorrt

    return open_tensorrt(
        bundle,
        device=wanted.device,
        precision=wanted.precision,
        memory_limit=wanted.memory_limit,
        tile=wanted.tile,
        engine_cache=wanted.engine_cache,
    )


def _open_native(bundle: Bundle, wanted: Wanted) -> Backend:
    from pcsr.runtime.native import open_native

    if parse_device(wanted.device)[0] != "cpu":
        raise BackendError("the native kernels compute on the processor alone; ask for the device cpu")
    return open_native(
        bundle, precision=wanted.precision, threads=wanted.threads, memory_limit=wanted.memory_limit
    )


def _open_native_if_faster(bundle: Bundle, wanted: Wanted) -> Backend:
    from pcsr.runtime.native import open_library

    if not open_library().worthwhile:
        raise NotInstalledError("there are native kernels for x86-64 processors with AVX2 alone")
    return _open_native(bundle, wanted)


def _open_onnxruntime(bundle: Bundle, wanted: Wanted) -> Backend | DeviceBackend:
    from pcsr.runtime.backends.onnxruntime import open_onnxruntime

    return open_onnxruntime(
        bundle,
        device=wanted.device,
        precision=wanted.precision,
        threads=wanted.threads,
        memory_limit=wanted.memory_limit,
        tile=wanted.tile,
    )


# Fastest first.
BACKENDS: Mapping[str, Callable[[Bundle, Wanted], Backend | DeviceBackend]] = {
    "tensorrt": _open_tensorrt,
    "native": _open_native,
    "onnxruntime": _open_onnxruntime,
}
# "auto" takes the first that works.
ON_DEVICE: Mapping[str, tuple[str, ...]] = {
    "cuda": ("tensorrt", "onnxruntime"),
    "cpu": ("native", "onnxruntime"),
}


def open_backend(bundle: Bundle, wanted: Wanted, *, backend: str) -> Backend | DeviceBackend:
    """Open a bundle's graphs.

    Args:
        bundle: whose graphs to run.
        wanted: where and how.
        backend: a name, or "auto". What "auto" leaves out, and why, is logged: as a warning if it is installed.

    Raises:
        OptionError: no such backend, device or precision.
        BackendError: it is not installed, or does not work here.
        BundleError: the bundle lacks the precision.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise OptionError(f"no backend is named {backend!r}; choose one of: auto, {', '.join(BACKENDS)}")
    if wanted.precision not in ("auto", *PRECISIONS):
        raise OptionError(
            f"no precision is named {wanted.precision!r}; choose one of: auto, {', '.join(PRECISIONS)}"
        )
    kind, _ = parse_device(wanted.device)
    fitting = [backend] if backend != "auto" else _fitting(bundle, kind, wanted.precision)
    if wanted.engine_cache is not None and "tensorrt" not in fitting:
        raise OptionError("an engine cache is for TensorRT alone; leave it away, or ask for a cuda device")
    *others, last = fitting
    opened = next((found for name in others if (found := _try(bundle, wanted, name)) is not None), None)
    opened = opened or BACKENDS[last](bundle, wanted)
    logger.info("running %s in %s by %s, %s", bundle.path, opened.precision, opened.name, opened.provider)
    return opened


def _fitting(bundle: Bundle, kind: str, precision: str) -> list[str]:
    """What "auto" tries."""
    names = list(ON_DEVICE[kind])
    # It has one precision, and would refuse a bundle without.
    if precision not in ("auto", "fp32") or "fp32" not in bundle.precisions:
        names = [name for name in names if name != "native"]
    return names


def _try(bundle: Bundle, wanted: Wanted, name: str) -> Backend | DeviceBackend | None:
    try:
        return (_open_native_if_faster if name == "native" else BACKENDS[name])(bundle, wanted)
    except BackendError as error:
        # Who has installed it counts on it; who has not may not want it.
        level = logging.INFO if isinstance(error, NotInstalledError) else logging.WARNING
        logger.log(level, "not running by %s: %s", name, error)
        return None
