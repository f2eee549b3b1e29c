"""Checks of everything NVIDIA: driver, CUDA libraries, CuPy, the kinds of TensorRT and the engines' folder."""

from __future__ import annotations

import importlib.machinery
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pcsr.runtime.backends.engine_search import default_cache
from pcsr.runtime.doctor.report import Check, Status
from pcsr.runtime.errors import BackendError
from pcsr.runtime.trial import Trial

__all__ = [
    "FLAVOURS",
    "Flavour",
    "check_cuda_libraries",
    "check_cupy",
    "check_driver",
    "check_engine_cache",
    "check_tensorrt",
    "find_module",
    "install_gpu",
]

# What the extra `gpu` is built for.
NEWEST_CUDA = 13

KERNEL_DRIVER = Path("/proc/driver/nvidia/version")
PCI_DEVICES = Path("/sys/bus/pci/devices")
NVIDIA, DISPLAY_CLASS = "0x10de", "0x03"

INSTALL_DRIVER = (
    "install NVIDIA's driver on the host (Debian: apt-get install nvidia-driver), and start a container with: "
    "docker run --gpus all"
)
PASS_DRIVER = (
    "start the container with the driver in it: "
    "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility"
)
# Of cuInit, where there is more to say than "reinstall the driver".
INIT_TODO = {
    "CUDA_ERROR_STUB_LIBRARY": "take the stub folder of the CUDA toolkit out of LD_LIBRARY_PATH",
    "CUDA_ERROR_NO_DEVICE": f"unset CUDA_VISIBLE_DEVICES if it is empty or wrong, else {PASS_DRIVER}",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "reboot: the driver's library and its kernel module are of two versions",
    "CUDA_ERROR_SYSTEM_NOT_READY": "start the fabric manager: systemctl start nvidia-fabricmanager",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "take CUDA's compat folder out of LD_LIBRARY_PATH",
    "CUDA_ERROR_UNKNOWN": "load the driver's memory module: nvidia-modprobe -u -c 0",
}


def check_driver(trial: Trial) -> Check:
    """The NVIDIA driver: its kernel module, its library, its devices."""
    kernel, cards = _kernel_driver(), _cards_on_the_bus()
    facts = {**trial.facts, "kernel_driver": kernel, "cards_on_the_bus": cards}
    if not trial.ok:
        todo = "reboot or reinstall the driver; its messages: dmesg | grep -i nvrm"
        return Check("driver", "NVIDIA", "driver", "broken", trial.failure, todo, facts, trial.noise)
    if not facts["loaded"]:
        if kernel:
            summary = f"kernel module {kernel} is loaded, but not its library: {facts['error']}"
            return Check("driver", "NVIDIA", "driver", "broken", summary, PASS_DRIVER, facts)
        where = f"{cards} NVIDIA GPU(s) on the PCI bus" if cards else "no NVIDIA GPU on the PCI bus"
        summary = f"no driver ({facts['error']}); {where}"
        todo = INSTALL_DRIVER if cards else f"only for NVIDIA GPUs: {INSTALL_DRIVER}"
        return Check("driver", "NVIDIA", "driver", "missing", summary, todo, facts)
    version = f"{kernel or 'version unknown'}, CUDA {facts.get('cuda', 'unknown')}"
    if facts["status"]:
        name = facts["error"]
        todo = INIT_TODO.get(name, "reinstall the driver, and reboot")
        return Check("driver", "NVIDIA", "driver", "broken", f"{version}; cuInit says {name}", todo, facts)
    if not facts["devices"]:
        return Check("driver", "NVIDIA", "driver", "broken", f"{version}; no device", PASS_DRIVER, facts)
    devices = [
        f"cuda:{index} {device['name']} ({device['compute_capability']}, {device['memory_bytes'] / 2**30:.1f} GiB)"
        for index, device in enumerate(facts["devices"])
    ]
    return Check("driver", "NVIDIA", "driver", "ok", f"{version}; {', '.join(devices)}", facts=facts)


def install_gpu(driver: Check) -> str:
    """The command that installs ONNX Runtime, CuPy and the CUDA libraries of both, for the driver's CUDA."""
    # A driver runs what is built for its CUDA or an older one.
    major = str(driver.facts.get("cuda") or "").partition(".")[0]
    old = major.isdecimal() and int(major) < NEWEST_CUDA
    return f"pip install 'pcsr[{'gpu-cuda12' if old else 'gpu'}]'"


def _kernel_driver() -> str | None:
    try:
        text = KERNEL_DRIVER.read_text(errors="replace")
    except OSError:
        return None
    match = re.search(r"Kernel Module(?: for \S+)?\s+([\d.]+)", text)
    return match[1] if match else "of unknown version"


def _cards_on_the_bus() -> int:
    """NVIDIA's graphics devices, whether or not there is a driver for them."""
    cards = 0
    for folder in PCI_DEVICES.glob("*"):
        try:
            vendor, kind = ((folder / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        cards += vendor == NVIDIA and kind.startswith(DISPLAY_CLASS)
    return cards


def check_cuda_libraries(trial: Trial, *, driver: Check) -> Check:
    """CUDA's runtime libraries, wherever they were found."""
    install = install_gpu(driver)
    libraries: Mapping[str, Sequence[Mapping[str, str]]] = trial.value.get("libraries", {})
    facts = {"libraries": libraries}
    if not trial.ok:
        return Check("cuda_libraries", "NVIDIA", "CUDA", "broken", trial.failure, install, facts, trial.noise)
    loaded = {
        name: [entry["version"] for entry in entries if not entry["error"]]
        for name, entries in libraries.items()
    }
    errors = [entry["error"] for entries in libraries.values() for entry in entries if entry["error"]]
    absent = [name for name, versions in loaded.items() if not versions]
    parts = [f"{name} {' and '.join(versions)}" for name, versions in loaded.items() if versions]
    summary = ", ".join(parts) or "no library of CUDA's runtime found"
    if errors:
        summary += f"; {'; '.join(errors)}"
        return Check("cuda_libraries", "NVIDIA", "CUDA", "broken", summary, install, facts)
    if not absent:
        return Check("cuda_libraries", "NVIDIA", "CUDA", "ok", summary, facts=facts)
    if parts:
        summary += f"; not found: {', '.join(absent)}"
    todo = install if driver.works else f"only for NVIDIA GPUs: {install}"
    return Check("cuda_libraries", "NVIDIA", "CUDA", "missing", summary, todo, facts)


def check_cupy(trial: Trial | None, *, driver: Check, distributions: Sequence[str]) -> Check:
    """CuPy: one wheel of it, and that a kernel compiles and runs.

    Args:
        trial: None where it is not installed.
        driver: as checked.
        distributions: that bring a module of its name.
    """
    install = install_gpu(driver)
    if trial is None:
        todo = install if driver.works else f"only for NVIDIA GPUs: {install}"
        return Check("cupy", "NVIDIA", "CuPy", "missing", "not installed", todo)
    facts = {**trial.facts, "distributions": list(distributions)}
    if len(distributions) > 1:
        summary = f"{' and '.join(distributions)} are both installed and overwrite one another"
        todo = f"pip uninstall -y {' '.join(distributions)} && {install}"
        return Check("cupy", "NVIDIA", "CuPy", "broken", summary, todo, facts, trial.noise)
    if not trial.ok:
        todo = install if driver.works else f"see the driver, then: {install}"
        return Check("cupy", "NVIDIA", "CuPy", "broken", trial.failure, todo, facts, trial.noise)
    if not driver.works:
        summary = f"{facts['version']}; there is no driver to run a kernel"
        return Check("cupy", "NVIDIA", "CuPy", "warning", summary, "see the driver", facts)
    summary = f"{facts['version']}, CUDA {facts['cuda'] // 1000}.{facts['cuda'] % 1000 // 10}; a kernel ran"
    return Check("cupy", "NVIDIA", "CuPy", "ok", summary, facts=facts)


@dataclass(frozen=True, slots=True)
class Flavour:
    """A kind of TensorRT.

    Attributes:
        key: of its check.
        title: for people.
        modules: names under which it may be imported; the first that is there is.
        builds: whether it has a builder.
        stands_alone: whether a Runtime may be created where there is no driver (tried for TensorRT-RTX 1.7;
            8.6 and the lean ones crash, the others were never tried).
        install: the command; empty for what nobody needs who has not got it.
    """

    key: str
    title: str
    modules: tuple[str, ...]
    builds: bool
    stands_alone: bool
    install: str


FLAVOURS = (
    Flavour(
        "tensorrt", "TensorRT", ("tensorrt", "tensorrt_bindings"), True, False, "pip install 'pcsr[trt]'"
    ),
    Flavour("tensorrt_lean", "TensorRT lean", ("tensorrt_lean", "tensorrt_lean_bindings"), False, False, ""),
    Flavour(
        "tensorrt_rtx",
        "TensorRT-RTX",
        ("tensorrt_rtx", "tensorrt_rtx_bindings"),
        True,
        True,
        "pip install 'pcsr[trt-rtx]'",
    ),
)


def find_module(names: Sequence[str]) -> str | None:
    """The first of the names that a new process could import; what this one has loaded under a name is no answer."""
    return next((name for name in names if importlib.machinery.PathFinder.find_spec(name) is not None), None)


def check_tensorrt(flavour: Flavour, trial: Trial | None, *, driver: bool) -> Check:
    """One kind of TensorRT: that its Builder and its Runtime can be created.

    Args:
        flavour: which.
        trial: None where it is not installed.
        driver: whether there is a driver that works.
    """
    key, title = flavour.key, flavour.title
    if trial is None:
        todo = flavour.install and (flavour.install if driver else f"only for NVIDIA GPUs: {flavour.install}")
        return Check(key, "TensorRT", title, "missing", "not installed", todo)
    facts = trial.facts
    version = facts.get("version", "of unknown version")
    without = "" if driver else ", without a driver"
    if not trial.ok:
        summary = f"{version}: {trial.failure}{without}"
        todo = _another(flavour) if driver else f"see the driver; if it goes on with one: {_another(flavour)}"
        return Check(key, "TensorRT", title, "broken", summary, todo, facts, trial.noise)
    parts = [("Builder", facts.get("builder"), facts.get("builder_error"))] if flavour.builds else []
    parts.append(("Runtime", facts.get("runtime"), facts.get("runtime_error")))
    failed = [f"no {name} ({error})" for name, made, error in parts if made is False]
    absent = [name for name, made, _ in parts if made is None and (name == "Builder" or driver)]
    failed += [f"the module has no {name}" for name in absent]
    works = [name for name, made, _ in parts if made]
    said = "; ".join([f"{' and '.join(works)} can be created"] * bool(works) + failed)
    if driver:
        status: Status = "broken" if failed else "ok"
        todo, output = (_another(flavour), trial.noise) if failed else ("", "")
        return Check(key, "TensorRT", title, status, f"{version}; {said}", todo, facts, output)
    summary = "; ".join(part for part in (version, said, "there is no driver to run engines") if part)
    return Check(key, "TensorRT", title, "warning", summary, "see the driver", facts)


def _another(flavour: Flavour) -> str:
    command = f": {flavour.install}" if flavour.install else ""
    return f"reinstall it, or take another version{command}"


def check_engine_cache(named: Path | None = None) -> Check:
    """The folder of engines: the one that was named, or that of bundles that cannot be written to."""
    try:
        folder = default_cache() if named is None else named
    except BackendError as error:
        return Check("engine_cache", "TensorRT", "engine cache", "missing", str(error))
    plans = list(_sizes(folder))
    facts = {"folder": str(folder), "writable": _writable(folder), "engines": len(plans), "bytes": sum(plans)}
    held = f"{len(plans)} engines, {sum(plans) / 2**20:.1f} MiB" if plans else "no engines yet"
    if not facts["writable"]:
        todo = f"give write permission on {folder}, or name a folder with --engine-cache"
        summary = f"{folder} cannot be written to; {held}"
        return Check("engine_cache", "TensorRT", "engine cache", "warning", summary, todo, facts)
    return Check("engine_cache", "TensorRT", "engine cache", "ok", f"{folder}; {held}", facts=facts)


def _sizes(folder: Path) -> Iterator[int]:
    for plan in folder.glob("*.plan"):
        try:
            yield plan.stat().st_size
        except OSError:  # removed meanwhile
            continue


def _writable(folder: Path) -> bool:
    """Whether files can be put into the folder, which need not exist yet."""
    # Not Path.exists, which raises where it may not look.
    there = next((place for place in (folder, *folder.parents) if os.access(place, os.F_OK)), Path())
    return os.access(there, os.W_OK | os.X_OK)
