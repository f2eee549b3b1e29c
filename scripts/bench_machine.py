"""Which machine a benchmark ran on: what a reader needs to place its numbers."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench_record import Environment, Peak, Processor
from msgspec import structs
from peaks import measure_peaks

from pcsr.runtime.machine import usable_cores

__all__ = ["VECTOR_UNITS", "begin", "commit", "ended", "machine_class", "processor"]

CPUINFO, CACHES = Path("/proc/cpuinfo"), Path("/sys/devices/system/cpu/cpu0/cache")
VECTOR_UNITS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
"""What tells one class of x86 processor from another, as Linux names them."""
PACKAGES = ("pcsr", "numpy", "onnxruntime", "openvino", "torch", "pyvips", "pyvips-binary")
ROOT = Path(__file__).resolve().parent.parent


def begin(threads: Sequence[int]) -> Environment:
    """Describe the machine and measure its peaks, before anything else keeps it busy."""
    load = os.getloadavg()[0]
    return Environment(
        processor=processor(),
        load=(load, load),
        python=platform.python_version(),
        versions=versions(),
        commit=commit(),
        date=time.strftime("%Y-%m-%d"),
        peaks=_peaks(threads),
    )


def ended(environment: Environment) -> Environment:
    """The same with the load at the end, and with peaks that are higher now: who disturbs only lowers them."""
    again = _peaks([int(count) for count in environment.peaks])
    peaks = {
        count: max(before, again.get(count, before), key=lambda peak: peak.gflops)
        for count, before in environment.peaks.items()
    }
    return structs.replace(environment, load=(environment.load[0], os.getloadavg()[0]), peaks=peaks)


def _peaks(threads: Sequence[int]) -> dict[str, Peak]:
    measured = {count: measure_peaks(count) for count in threads}
    return {
        str(count): Peak(
            gflops=peak.gflops, copy_gb_per_s=peak.copy_gb_per_s, instruction_set=peak.instruction_set
        )
        for count, peak in measured.items()
        if peak is not None
    }


def machine_class(processor: Processor) -> str:
    """Records of one class may be compared: vendor and vector units."""
    return f"{processor.vendor} {' '.join(processor.vector_units)}"


def processor() -> Processor:
    """The processor as the system describes it."""
    lines = (line.partition(":") for line in _read(CPUINFO).splitlines())
    told = {key.strip(): value.strip() for key, _, value in lines}
    flags = told.get("flags", told.get("Features", "")).split()
    return Processor(
        model=told.get("model name", platform.processor()),
        vendor=told.get("vendor_id", platform.machine()),
        vector_units=tuple(flag for flag in VECTOR_UNITS if flag in flags),
        flags=" ".join(sorted(flags)),
        caches=dict(sorted(_caches())),
        cores=usable_cores(),
    )


def versions() -> dict[str, str]:
    """Of the packages that compute, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of this checkout, with "+" where files that it tracks differ; empty without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        except OSError:
            return ""

    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


def _caches() -> list[tuple[str, str]]:
    suffixes = {"Data": "d", "Instruction": "i"}
    return [
        (
            f"L{_read(index / 'level')}{suffixes.get(_read(index / 'type'), '')}",
            _read(index / "size"),
        )
        for index in CACHES.glob("index*")
    ]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
