"""What runs in the child processes of an examination: each function tries one thing and reports what it saw.

Before a step that may crash its name is reported, so that the parent knows where the child ended. Nothing is
caught that the parent should see: an exception is the finding.
"""

from __future__ import annotations

import ctypes
import site
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pcsr.runtime.nvidia import Report, driver, path_of_library, tensorrt

__all__ = [
    "LIBRARIES",
    "cuda_libraries",
    "cupy",
    "driver",
    "libvips",
    "native",
    "onnxruntime",
    "provider",
    "tensorrt",
    "upscaler",
]

# Sonames of CUDA 11, 12 and 13.
LIBRARIES = {
    "cudart": ("libcudart.so.11.0", "libcudart.so.12", "libcudart.so.13"),
    "cublasLt": ("libcublasLt.so.11", "libcublasLt.so.12", "libcublasLt.so.13"),
    "cublas": ("libcublas.so.11", "libcublas.so.12", "libcublas.so.13"),
    "cudnn": ("libcudnn.so.8", "libcudnn.so.9"),
    "cufft": ("libcufft.so.10", "libcufft.so.11", "libcufft.so.12"),
    "curand": ("libcurand.so.10",),
    "nvrtc": ("libnvrtc.so.11.2", "libnvrtc.so.12", "libnvrtc.so.13"),
}
TOOLKITS = ("usr/local/cuda*/lib64", "usr/local/cuda*/targets/*/lib", "opt/cuda/lib64")

# One shape for every free dimension of the graph that is tried.
SIDE = 4
# Of an upscaled picture, averaged back, from the picture: garbage is far off, any network is near.
CLOSE_ENOUGH = 16


def libvips(report: Report) -> None:
    """Write and read a small picture in every format."""
    report(step="import pyvips")
    import pyvips

    from pcsr.runtime.pictures.formats import FORMATS

    report(libvips=".".join(str(pyvips.version(part)) for part in range(3)), api_mode=pyvips.API_mode)
    image = pyvips.Image.black(8, 8, bands=3).copy(interpretation="srgb")
    formats = {}
    for name, form in FORMATS.items():
        report(step=name)
        try:
            content = getattr(image, f"{form.saver}save_buffer")(**form.options)
            read = getattr(pyvips.Image, f"{form.saver}load_buffer")(content)
            formats[name] = "" if (read.width, read.avg()) == (8, 0) else "the picture came back changed"
        except (pyvips.Error, AttributeError) as error:
            formats[name] = " ".join(str(error).split())
    report(formats=formats)


def native(report: Report) -> None:
    """Load the native kernels and ask what they can use."""
    report(step="loading the native kernels")
    from pcsr.runtime.native import open_library

    library = open_library()
    report(instruction_set=library.instruction_set, instruction_sets=list(library.instruction_sets))


def cuda_libraries(report: Report) -> None:
    """Load every CUDA library that the loader, a wheel or a toolkit has."""
    found = {}
    for name, sonames in LIBRARIES.items():
        found[name] = [entry for soname in sonames if (entry := _load(soname, report)) is not None]
        report(libraries=found)


def _load(soname: str, report: Report) -> dict[str, Any] | None:
    """How loading a library went, by its name and then by each file of that name; None where there is none."""
    failed = None
    for place in (soname, *_files(soname)):
        report(step=f"loading {place}")
        try:
            library = ctypes.CDLL(place)
        except OSError as error:
            # A bare name that is nowhere is no finding; one whose own libraries are missing names those.
            if place != soname or not str(error).startswith(f"{soname}:"):
                failed = {"soname": soname, "path": place, "version": "", "error": str(error)}
            continue
        path = path_of_library(soname) if place == soname else place
        return {"soname": soname, "path": path, "version": _version(library, soname), "error": ""}
    return failed


def _files(soname: str) -> Iterator[str]:
    folders = {
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        site.getusersitepackages(),
        *sys.path,
    }
    wheels = sorted(path for folder in folders for path in Path(folder, "nvidia").glob("*/lib"))
    toolkits = sorted(path for pattern in TOOLKITS for path in Path("/").glob(pattern))
    for folder in (*wheels, *toolkits):
        file = Path(folder, soname)
        if file.is_file():
            yield str(file)


def _version(library: ctypes.CDLL, soname: str) -> str:
    """What the library says of itself, or what its soname says."""
    number, minor = ctypes.c_int(), ctypes.c_int()
    if soname.startswith("libcudnn."):
        # 90100 is 9.1.0, 8902 is 8.9.2.
        encoded = int(library.cudnnGetVersion())
        unit = 10_000 if encoded >= 90_000 else 1000
        return f"{encoded // unit}.{encoded % unit // 100}.{encoded % 100}"
    if soname.startswith("libcudart.") and library.cudaRuntimeGetVersion(ctypes.byref(number)) == 0:
        return f"{number.value // 1000}.{number.value % 1000 // 10}"
    if (
        soname.startswith("libnvrtc.")
        and library.nvrtcVersion(ctypes.byref(number), ctypes.byref(minor)) == 0
    ):
        return f"{number.value}.{minor.value}"
    return soname.partition(".so.")[2]


def onnxruntime(report: Report) -> None:
    """Import ONNX Runtime and ask what it lists."""
    report(step="import onnxruntime")
    import onnxruntime as ort

    report(
        version=str(ort.__version__),
        path=str(Path(ort.__file__).parent),
        providers=list(map(str, ort.get_available_providers())),
    )


def provider(report: Report, name: str) -> None:
    """Open a session of a small graph on one execution provider, run it, and see who ran it."""
    import numpy as np

    from pcsr.runtime.bundle import read_bundle
    from pcsr.runtime.shipped import shipped_bundle

    bundle = read_bundle(shipped_bundle())
    graph = bundle.read(bundle.graphs("fp32")["classifier"])
    report(step="import onnxruntime")
    import onnxruntime as ort

    if name != "CPUExecutionProvider" and hasattr(ort, "preload_dlls"):
        # CUDA and cuDNN from the package index are found only when loaded first.
        report(step="loading CUDA libraries")
        ort.preload_dlls()
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # get_providers names a provider that took no node, too; newer versions tell who took each.
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    report(step="opening a session")
    session = ort.InferenceSession(graph, options, providers=[name])
    report(got=list(map(str, session.get_providers())), nodes=_nodes(session), step="running")
    feed = {}
    for wanted in session.get_inputs():
        shape = [side if isinstance(side, int) else SIDE for side in wanted.shape]
        feed[wanted.name] = np.zeros(shape, np.int32 if "int32" in wanted.type else np.float32)
    started = time.perf_counter()
    (probability,) = session.run(None, feed)
    seconds = time.perf_counter() - started
    report(ran=bool(((probability >= 0) & (probability <= 1)).all()), seconds=round(seconds, 4))


def _nodes(session: Any) -> dict[str, int] | None:
    """Nodes that each provider took, None where this ONNX Runtime does not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    taken: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        taken[part.ep_name] = taken.get(part.ep_name, 0) + len(part.get_nodes())
    return taken


def cupy(report: Report, *, run: bool) -> None:
    """Import CuPy, and compile and run a kernel.

    Args:
        report: what is seen.
        run: whether there is a driver to run it.
    """
    report(step="import cupy")
    import cupy as cp

    report(version=str(cp.__version__))
    if not run:
        return
    report(cuda=int(cp.cuda.runtime.runtimeGetVersion()), step="compiling and running a kernel")
    square = cp.ElementwiseKernel("float32 x", "float32 y", "y = x * x", "pcsr_doctor_square")
    total = float(square(cp.arange(4, dtype=cp.float32)).sum())
    if total != 14:
        raise ArithmeticError(f"0² + 1² + 2² + 3² gave {total:g}")
    report(ran=True)


def upscaler(report: Report, bundle: str, backend: str, device: str, engine_cache: str | None = None) -> None:
    """Upscale a bundle's sample picture by 2 and see that it is still that picture."""
    import numpy as np

    from pcsr.runtime.pictures import read_picture
    from pcsr.runtime.shipped import shipped_bundle
    from pcsr.runtime.upscaler import Upscaler

    report(step="opening")
    started = time.perf_counter()
    with Upscaler.open(
        shipped_bundle(bundle), backend=backend, device=device, engine_cache=engine_cache
    ) as up:
        opened = time.perf_counter()
        report(
            precision=up.precision,
            provider=up.provider,
            threads=up.threads,
            open_seconds=round(opened - started, 3),
            step="upscaling",
        )
        sample = read_picture(up.bundle.path / up.bundle.manifest.sample.path).pixels
        began = time.perf_counter()
        result = up(sample, scale=2)
        seconds = time.perf_counter() - began
    h, w = sample.shape[:2]
    back = result.image.reshape(h, 2, w, 2, -1).mean(axis=(1, 3))
    off = float(np.abs(back - sample.astype(np.float32)).mean())
    report(seconds=round(seconds, 3), pixels=result.class_map.size, off=round(off, 2))
    if not off <= CLOSE_ENOUGH:
        raise ArithmeticError(f"the result is not the picture: {off:.1f} of 255 away from it on average")
