"""From a request to identities: which engines this machine, or those asked for, need."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from pcsr.export.tensorrt.profiles import Sizes, graph_profiles
from pcsr.export.tensorrt.request import Request
from pcsr.runtime.backends.engine_search import Machine, engine_form, machine_platform
from pcsr.runtime.backends.engines import EXTRAS, MODULES, Flavour, Identity, Tuning
from pcsr.runtime.bundle import Bundle
from pcsr.runtime.errors import BackendError
from pcsr.runtime.manifest import Precision
from pcsr.runtime.probe import Gpu, Unavailable, probe_gpu, probe_tensorrt

__all__ = ["check_installed", "check_memory", "require_gpu", "this_machine", "wanted_engines"]


def wanted_engines(
    bundle: Bundle, request: Request, flavour: Flavour, precisions: Sequence[Precision]
) -> list[Identity]:
    """Identities of the engines that a request asks for.

    Raises:
        BackendError: this TensorRT is not installed or does not work here, or there is no GPU and one is needed.
        BundleError: the bundle lacks a precision.
        OptionError: the sizes leave some picture outside.
    """
    request.sizes.check(bundle.manifest)
    for precision in precisions:
        bundle.graphs(precision)
    check_installed(flavour)
    ahead = request.ahead if flavour == "tensorrt-rtx" else ()
    gpu = None if ahead else require_gpu(flavour)
    version = _version(flavour)
    if gpu is not None:
        check_memory(bundle, request.sizes, precisions, gpu)
    files = {precision: bundle.graphs(engine_form(precision, version)) for precision in precisions}
    rtx, tuning = flavour == "tensorrt-rtx", request.tuning
    profiles = graph_profiles(bundle.manifest, request.sizes)
    return [
        Identity(
            graph=graph,
            precision=precision,
            graph_sha256=entry.sha256,
            flavour=flavour,
            version=version,
            platform=machine_platform(),
            compute_capabilities=ahead if gpu is None else (gpu.compute_capability,),
            gpu="" if rtx or gpu is None else gpu.name,
            profiles=profiles[graph],
            # Of two flavours asked for at once, each gets the options that are its own.
            tuning=Tuning(workspace=tuning.workspace) if rtx else tuning,
        )
        for precision, graphs in files.items()
        for graph, entry in graphs.items()
    ]


def this_machine(flavour: Flavour) -> Machine:
    """What engines must fit to run here.

    Raises:
        BackendError: this TensorRT is not installed or does not work here, or there is no GPU.
    """
    check_installed(flavour)
    gpu = require_gpu(flavour)
    return Machine(
        flavour=flavour,
        version=_version(flavour),
        platform=machine_platform(),
        compute_capability=gpu.compute_capability,
        gpu="" if flavour == "tensorrt-rtx" else gpu.name,
    )


def check_installed(flavour: Flavour) -> None:
    """Refuse a TensorRT that is not there.

    Raises:
        BackendError: with the command that installs it.
    """
    if importlib.util.find_spec(MODULES[flavour]) is None:
        raise BackendError(f"{flavour} is not installed; run: pip install 'pcsr[{EXTRAS[flavour]}]'")


def require_gpu(flavour: Flavour) -> Gpu:
    """The GPU of this machine.

    Raises:
        BackendError: there is none; says how to do without.
    """
    gpu = probe_gpu()
    if isinstance(gpu, Unavailable):
        raise BackendError(
            f"{flavour} needs a GPU here: {gpu.reason}; on a machine without one, engines can be built ahead of time "
            "with --trt-rtx --for 8.6,8.9,12.0"
        )
    return gpu


def _version(flavour: Flavour) -> str:
    found = probe_tensorrt(MODULES[flavour])
    if isinstance(found, Unavailable):
        raise BackendError(f"{flavour} does not work here: {found.reason}; run: pcsr-doctor")
    return found.version


def check_memory(bundle: Bundle, sizes: Sizes, precisions: Sequence[Precision], gpu: Gpu) -> None:
    """Refuse what a GPU cannot hold before minutes are spent on it.

    Raises:
        BackendError: the largest window alone is too large; says which option to lower.
    """
    h, w = sizes.max_lr
    needed = h * w * bundle.manifest.working_bytes // (1 if "fp32" in precisions else 2)
    if needed > gpu.memory:
        raise BackendError(
            f"a window of {w}x{h} needs about {needed >> 20} MiB and {gpu.name} has {gpu.memory >> 20} MiB; "
            "ask for a smaller --max-lr: larger pictures are tiled"
        )
