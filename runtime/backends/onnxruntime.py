"""The portable backend: ONNX Runtime, on the CPU, or on a GPU with all routing there (`pcsr.runtime.device`).

On the CPU the backbone runs on all threads of its session (`sessions`); the per-pixel networks run single-threaded
sessions, called from the upscaler's workers on blocks that stay in cache. That is faster than ONNX Runtime's
own parallelism for such small layers, and makes the bytes independent of the number of threads.
"""

from __future__ import annotations

import importlib.metadata
from types import ModuleType

from pcsr.runtime.backends.device_names import parse_device
from pcsr.runtime.backends.graphs import GraphBackend, Run
from pcsr.runtime.backends.protocol import Backend, DeviceBackend
from pcsr.runtime.backends.sessions import Graph, SizedBackbone
from pcsr.runtime.bundle import Bundle
from pcsr.runtime.errors import BackendError
from pcsr.runtime.machine import multiplies_int8

__all__ = ["open_model", "open_onnxruntime"]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# Those that add feature maps up, which is what a session for one size gains by.
SUMMING_BACKBONES = ("carn", "srresnet")
# Measured (docs/performance.md): smaller blocks cost turns of the workers, larger ones memory.
CPU_BLOCK, CPU_CHUNK = 1 << 15, 1 << 12


def open_onnxruntime(
    bundle: Bundle,
    *,
    device: str,
    precision: str,
    threads: int,
    memory_limit: int | None = None,
    tile: int | None = None,
) -> Backend | DeviceBackend:
    """Open a bundle's graphs in ONNX Runtime; arguments and errors as for `open_backend`."""
    kind, index = parse_device(device)
    if precision == "auto":
        precision = _fastest(bundle, kind)
    bundle.graphs(precision)
    if precision == "int8" and kind != "cpu":
        raise BackendError(
            "ONNX Runtime runs int8 on cpu alone: on a GPU it would compute in floating point between roundings; "
            "use the backend tensorrt there, or fp16"
        )
    if kind == "cpu":
        return _open_on_cpu(bundle, precision, threads)
    ort = _import(PROVIDERS[kind])
    # Imported here: CuPy loads hundreds of megabytes of libraries.
    from pcsr.runtime.device.cupy_device import CupyDevice
    from pcsr.runtime.device.onnxruntime import OnnxRuntimeGraphs
    from pcsr.runtime.device.road import DeviceRoad

    on = CupyDevice(index, classes=bundle.manifest.classes, memory_limit=memory_limit)
    used = [precision, *(p for p in ("fp32",) if precision == "fp16" and p in bundle.precisions)]
    return DeviceRoad(
        bundle,
        on,
        {each: OnnxRuntimeGraphs(ort, bundle, on, precision=each) for each in used},
        name="onnxruntime",
        provider=PROVIDERS[kind],
        precision=precision,
        asked=device,
        tile=tile,
    )


def _open_on_cpu(bundle: Bundle, precision: str, threads: int) -> GraphBackend:
    provider = PROVIDERS["cpu"]
    form = precision
    if precision == "int8":
        form = "int8-vnni" if multiplies_int8() else "int8-cpu"
    files, ort = bundle.graphs(form), _import(provider)

    def open_graph(name: str) -> Run:
        graph = Graph(ort, bundle.read(files[name]), f"graph {name} ({bundle.path / files[name].path})")
        if name != "backbone":
            return graph.open(threads=1)
        if precision == "fp32" and bundle.manifest.network.backbone in SUMMING_BACKBONES:
            return SizedBackbone(graph, threads)
        return graph.open(threads)

    return GraphBackend(
        bundle,
        {name: open_graph(name) for name in files},
        name="onnxruntime",
        provider=provider,
        precision=precision,
        device="cpu",
        block=CPU_BLOCK,
        chunk=CPU_CHUNK,
    )


def open_model(model: bytes, where: str, *, threads: int = 1) -> Run:
    """Open one graph on the CPU.

    Args:
        model: serialised ONNX.
        where: what to call it in an error.
        threads: of its session.

    Raises:
        BackendError: ONNX Runtime is missing or refuses the graph; so does the returned callable where it fails.
    """
    return Graph(_import(PROVIDERS["cpu"]), model, where).open(threads)


def _fastest(bundle: Bundle, kind: str) -> str:
    # Processors have no half-precision kernels in ONNX Runtime: fp16 graphs run there between casts. What int8 gains
    # depends on the processor and costs quality, so it is never chosen unasked where there is another.
    preferred = ("fp32", "fp16", "int8") if kind == "cpu" else ("fp16", "fp32")
    return next((precision for precision in preferred if precision in bundle.precisions), preferred[0])


def _import(provider: str) -> ModuleType:
    """ONNX Runtime, if it is installed once and has the provider.

    Raises:
        BackendError: missing, installed twice, or without the provider.
    """
    distributions = ("onnxruntime", "onnxruntime-gpu")
    installed = [name for name in distributions if any(importlib.metadata.distributions(name=name))]
    if len(installed) == 2:
        raise BackendError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite one another; "
            "run: pip uninstall onnxruntime onnxruntime-gpu, then install the one you need"
        )
    extra = "cpu" if provider == PROVIDERS["cpu"] else "gpu"
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"ONNX Runtime cannot be imported ({error}); run: pip install 'pcsr[{extra}]'"
        ) from error
    if extra == "gpu" and hasattr(onnxruntime, "preload_dlls"):
        # CUDA and cuDNN from the package index are found only when loaded first.
        onnxruntime.preload_dlls()
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise BackendError(
            f"this ONNX Runtime ({', '.join(installed)} {onnxruntime.__version__}) has no {provider}, only "
            f"{', '.join(available)}; run: pip uninstall {' '.join(installed)}, then: pip install 'pcsr[{extra}]'"
        )
    module: ModuleType = onnxruntime
    return module
