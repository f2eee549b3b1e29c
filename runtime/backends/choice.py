"""Which backend runs: by name, or the fastest that works."""

from __future__ import annotations

import logging

from pcsr.runtime.backends.onnxruntime import open_onnxruntime
from pcsr.runtime.backends.protocol import Backend
from pcsr.runtime.bundle import Bundle
from pcsr.runtime.errors import OptionError

__all__ = ["BACKENDS", "open_backend"]

logger = logging.getLogger(__name__)

PRECISIONS = ("fp32", "fp16")

# Fastest first: "auto" takes the first.
BACKENDS = {"onnxruntime": open_onnxruntime}


def open_backend(bundle: Bundle, *, backend: str, device: str, precision: str, threads: int) -> Backend:
    """Open a bundle's graphs.

    Args:
        bundle: whose graphs to run.
        backend: a name, or "auto".
        device: "cpu", "cuda" or "cuda:<index>".
        precision: of the bundle, or "auto": the fastest the bundle has for this backend and device.
        threads: worker threads that will call the backend at once.

    Raises:
        OptionError: no such backend, device or precision.
        BackendError: it is not installed, or does not work here.
        BundleError: the bundle lacks the precision.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise OptionError(f"no backend is named {backend!r}; choose one of: auto, {', '.join(BACKENDS)}")
    if precision not in ("auto", *PRECISIONS):
        raise OptionError(
            f"no precision is named {precision!r}; choose one of: auto, {', '.join(PRECISIONS)}"
        )
    chosen = next(iter(BACKENDS)) if backend == "auto" else backend
    opened = BACKENDS[chosen](bundle, device=device, precision=precision, threads=threads)
    logger.info("running %s in %s by %s, %s", bundle.path, opened.precision, opened.name, opened.provider)
    return opened
