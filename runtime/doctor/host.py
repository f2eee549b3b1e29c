"""Checks of the machine and of Python packages that need no child process: files and metadata are read."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from pcsr.runtime.doctor.report import Check, Status, pcsr_version
from pcsr.runtime.machine import total_memory, usable_cores
from pcsr.runtime.trial import Trial

__all__ = ["check_host", "check_libvips", "check_native", "installed"]

# What each means, and the processor flag of /proc/cpuinfo that says so.
INSTRUCTIONS = {
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "AVX-512 VNNI": "avx512_vnni",
    "AVX VNNI": "avx_vnni",
    "AVX-512 BF16": "avx512_bf16",
    "AMX BF16": "amx_bf16",
    "AMX INT8": "amx_int8",
    "NEON": "asimd",
    "dot product": "asimddp",
    "I8MM": "i8mm",
    "BF16": "bf16",
    "SVE": "sve",
}
# Those that change what is loaded, what is seen or how many threads run.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "CUDA_HOME",
    "CUDA_PATH",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "PYTHONPATH",
    "OMP_NUM_THREADS",
    "VIPS_CONCURRENCY",
    "PCSR_NATIVE_ISA",
)
# Python, ONNX Runtime, libvips and a network take 300 MB before the first pixel.
LITTLE_MEMORY = 1 << 30
CPUINFO = Path("/proc/cpuinfo")
CONTAINER_MARKS = {"docker": Path("/.dockerenv"), "podman": Path("/run/.containerenv")}


def check_host() -> Iterator[Check]:
    """Operating system, processor, cores, memory, environment; Python, the base packages, those of the export."""
    yield _system()
    yield _processor()
    yield _cores()
    yield _memory()
    yield _environment()
    yield _python()
    yield _packages()
    yield _export()


def installed(name: str) -> str | None:
    """Version of a distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(name) or None
    except (importlib.metadata.PackageNotFoundError, KeyError):  # KeyError: half of it was removed
        return None


def _system() -> Check:
    libc = " ".join(platform.libc_ver())
    container = next((name for name, mark in CONTAINER_MARKS.items() if mark.exists()), None)
    if container is None and "KUBERNETES_SERVICE_HOST" in os.environ:
        container = "kubernetes"
    facts = {"platform": platform.platform(), "libc": libc, "container": container}
    summary = f"{facts['platform']}{f', in a {container} container' if container else ''}"
    return Check("system", "Machine", "system", "ok", summary, facts=facts)


def _processor() -> Check:
    lines = CPUINFO.read_text(errors="replace").splitlines() if CPUINFO.exists() else []
    fields = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    model = fields.get("model name") or platform.processor() or platform.machine()
    flags = set(fields.get("flags", fields.get("features", "")).split())
    found = [name for name, flag in INSTRUCTIONS.items() if flag in flags]
    facts = {"model": model, "machine": platform.machine(), "instructions": found}
    summary = f"{model} ({platform.machine()}): {', '.join(found) or 'instruction sets unknown'}"
    if platform.machine().lower() in ("x86_64", "amd64") and flags and "avx2" not in flags:
        summary += "; without AVX2 the networks run slowly"
        return Check("processor", "Machine", "processor", "warning", summary, facts=facts)
    return Check("processor", "Machine", "processor", "ok", summary, facts=facts)


def _cores() -> Check:
    affinity = getattr(os, "sched_getaffinity", None)
    facts = {
        "usable": usable_cores(),
        "affinity": len(affinity(0)) if affinity else None,
        "machine": os.cpu_count(),
    }
    summary = f"{facts['usable']} usable by affinity and cgroup, of {facts['machine']}"
    return Check("cores", "Machine", "cores", "ok", summary, facts=facts)


def _memory() -> Check:
    usable, machine = total_memory(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts = {"usable_bytes": usable, "machine_bytes": machine}
    limited = f", limited by the cgroup, of {_gib(machine)}" if usable < machine else ""
    summary = f"{_gib(usable)}{limited}"
    if usable < LITTLE_MEMORY:
        todo = f"give the container {_gib(LITTLE_MEMORY)} or more (docker run --memory 1g)"
        return Check("memory", "Machine", "memory", "warning", summary, todo, facts)
    return Check("memory", "Machine", "memory", "ok", summary, facts=facts)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _environment() -> Check:
    found = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    summary = " ".join(f"{name}={value}" for name, value in found.items()) or "no variable set that matters"
    return Check("environment", "Machine", "environment", "ok", summary, facts=found)


def _python() -> Check:
    facts = {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "pcsr": pcsr_version(),
    }
    summary = f"{facts['implementation']} {facts['version']} ({facts['executable']}), pcsr {facts['pcsr']}"
    return Check("python", "Python", "Python", "ok", summary, facts=facts)


def _packages() -> Check:
    found: dict[str, str | None] = {}
    wrong, wanted = [], []
    for name, least in _requirements():
        found[name] = version = installed(name)
        if version is None:
            wrong.append(f"{name} is not installed")
            wanted.append(f"'{name}>={least}'")
        elif _numbers(version) < _numbers(least):
            wrong.append(f"{name} {version} is older than {least}")
            wanted.append(f"'{name}>={least}'")
    if wrong:
        todo = f"pip install {' '.join(wanted)}"
        return Check("packages", "Python", "packages", "broken", "; ".join(wrong), todo, found)
    summary = ", ".join(f"{name} {version}" for name, version in found.items())
    if not found:
        todo = "install it with pip, from its checkout: pip install '.[cpu]'"
        return Check("packages", "Python", "packages", "warning", "pcsr runs without being installed", todo)
    return Check("packages", "Python", "packages", "ok", summary, facts=found)


def _requirements() -> Iterator[tuple[str, str]]:
    """Name and least version of what the base install needs."""
    if installed("pcsr") is None:
        return
    for line in importlib.metadata.requires("pcsr") or []:
        match = re.fullmatch(r"([\w.-]+)(?:\[[\w,-]*\])?\s*>=\s*([\d.]+)", line)
        if match:
            yield match[1], match[2]


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]


def _export() -> Check:
    found = {name: installed(name) for name in ("torch", "onnx")}
    parts = [f"{name} {version or 'is not installed'}" for name, version in found.items()]
    missing = None in found.values()
    todo = "only to make bundles from checkpoints: pip install 'pcsr[export,cpu]'" if missing else ""
    status: Status = "missing" if missing else "ok"
    return Check("export", "Python", "export", status, ", ".join(parts), todo, found)


def check_libvips(trial: Trial) -> Check:
    """The picture library: that it loads, and that it writes and reads the four formats."""
    facts = trial.facts
    reinstall = "pip uninstall -y pyvips pyvips-binary && pip install 'pyvips[binary]>=3.0'"
    if not trial.ok:
        return Check("libvips", "Python", "libvips", "broken", trial.failure, reinstall, facts, trial.noise)
    bad = [f"{form} ({why})" for form, why in facts["formats"].items() if why]
    version = f"{facts['libvips']}, {'API' if facts['api_mode'] else 'ABI'} mode"
    if bad:
        summary = f"{version}; cannot write and read {', '.join(bad)}"
        return Check("libvips", "Python", "libvips", "broken", summary, reinstall, facts, trial.noise)
    summary = f"{version}; {', '.join(facts['formats'])}"
    return Check("libvips", "Python", "libvips", "ok", summary, facts=facts)


def check_native(trial: Trial) -> Check:
    """The native kernels: whether they are there, and for which instructions of this processor."""
    facts = trial.facts
    if trial.ok:
        summary = f"{facts['instruction_set']}; this processor runs {', '.join(facts['instruction_sets'])}"
        return Check("native", "Python", "native kernels", "ok", summary, facts=facts)
    todo = "pip install pcsr from its sources, with gcc or clang there; until then ONNX Runtime computes on the CPU"
    if trial.reason.startswith("NotInstalledError"):
        return Check(
            "native", "Python", "native kernels", "missing", "not built by this install", todo, facts
        )
    return Check("native", "Python", "native kernels", "broken", trial.failure, todo, facts, trial.noise)
