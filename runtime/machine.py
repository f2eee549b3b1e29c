"""What this process may use of the machine: cores by affinity and cgroup, memory by cgroup and size."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["multiplies_int8", "total_memory", "usable_cores"]

CPUINFO = Path("/proc/cpuinfo")
CGROUP = Path("/sys/fs/cgroup")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _own_cgroups() -> list[Path]:
    """Folders of the cgroups (version 2) that bind this process, innermost first."""
    name = next(
        (line[3:] for line in _read(Path("/proc/self/cgroup")).splitlines() if line.startswith("0::")), "/"
    )
    inner = CGROUP / name.lstrip("/")
    return [folder for folder in (inner, *inner.parents) if folder.is_relative_to(CGROUP)]


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the cgroup's CPU quota rounded up."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quotas = [_read(folder / "cpu.max").split() for folder in _own_cgroups()]
    quotas.append([_read(CGROUP / "cpu/cpu.cfs_quota_us"), _read(CGROUP / "cpu/cpu.cfs_period_us")])
    for quota in quotas:
        if len(quota) == 2 and all(part.isdigit() for part in quota) and int(quota[1]) > 0:
            cores = min(cores, -(-int(quota[0]) // int(quota[1])))
    return max(cores, 1)


def multiplies_int8() -> bool:
    """Whether the processor adds products of 8-bit integers in 32 bits, as far as Linux tells.

    Without VNNI, x86 processors add them in pairs in 16 bits, which saturates unless weights have 7 bits.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return bool({"avx512_vnni", "avx_vnni"} & set(_read(CPUINFO).split()))


def total_memory() -> int:
    """Bytes of memory this process can ever have: the machine's, or its cgroup's limit.

    The total and not what happens to be free, so that the same call gives the same tiles.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [_read(folder / "memory.max") for folder in _own_cgroups()]
    limits.append(_read(CGROUP / "memory/memory.limit_in_bytes"))
    return min([total, *(int(limit) for limit in limits if limit.isdigit())])
