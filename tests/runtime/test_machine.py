"""Cores and memory are those this process may use, not those of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pcsr.runtime import machine


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup tree of two levels, the process in the inner one, wherever this machine has put it."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "_own_cgroups", lambda: [inner, inner.parent, tmp_path])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    return inner


def test_affinity_bounds_the_cores(cgroup: Path) -> None:
    assert machine.usable_cores() == 8


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("250000 100000", 3), ("50000 100000", 1), ("1600000 100000", 8)]
)
def test_a_quota_bounds_the_cores_rounded_up(cgroup: Path, quota: str, cores: int) -> None:
    (cgroup / "cpu.max").write_text(quota + "\n")
    assert machine.usable_cores() == cores


def test_the_tightest_cgroup_above_counts(cgroup: Path) -> None:
    (cgroup / "cpu.max").write_text("max 100000")
    (cgroup.parent / "cpu.max").write_text("200000 100000")
    assert machine.usable_cores() == 2
    (cgroup.parent / "memory.max").write_text(str(1 << 28))
    (cgroup / "memory.max").write_text("max")
    assert machine.total_memory() == 1 << 28


def test_memory_without_a_limit_is_the_machines(cgroup: Path) -> None:
    assert machine.total_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_real_tree_of_this_machine_can_be_read() -> None:
    assert machine.usable_cores() >= 1
    assert machine.total_memory() >= 1 << 26


@pytest.mark.parametrize(
    ("system", "flags", "exact"),
    [
        ("x86_64", "flags : avx2 avx512f avx512_vnni", True),
        ("x86_64", "flags : avx2 avx_vnni", True),
        ("x86_64", "flags : avx2 avx512f", False),
        ("AMD64", None, False),
        ("aarch64", "Features : asimd", True),
    ],
)
def test_whether_products_of_bytes_are_added_exactly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str, flags: str | None, exact: bool
) -> None:
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine.platform, "machine", lambda: system)
    assert machine.multiplies_int8() is exact
