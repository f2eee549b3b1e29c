"""Processor, memory, packages: what needs no child process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from pcsr.runtime.doctor import Check, host


def checks_of_host() -> Mapping[str, Check]:
    return {check.key: check for check in host.check_host()}


@pytest.mark.parametrize(
    ("content", "architecture", "status", "instructions"),
    [
        ("model name\t: Old\nflags\t\t: sse sse2 avx\n", "x86_64", "warning", []),
        (
            "flags\t\t: avx2 avx512f avx512_vnni amx_int8\n",
            "x86_64",
            "ok",
            ["AVX2", "AVX-512", "AVX-512 VNNI", "AMX INT8"],
        ),
        (
            "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n",
            "aarch64",
            "ok",
            ["NEON", "dot product", "I8MM"],
        ),
        ("", "x86_64", "ok", []),
    ],
)
def test_instruction_sets_are_read_from_the_processors_flags(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str,
    architecture: str,
    status: str,
    instructions: list[str],
) -> None:
    (tmp_path / "cpuinfo").write_text(content)
    monkeypatch.setattr(host, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(host.platform, "machine", lambda: architecture)
    check = checks_of_host()["processor"]
    assert (check.status, check.facts["instructions"]) == (status, instructions)


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "total_memory", lambda: 1 << 29)
    check = checks_of_host()["memory"]
    assert check.status == "warning"
    assert "0.5 GiB, limited by the cgroup" in check.summary


def test_a_package_that_is_absent_or_too_old_is_broken_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions = {"numpy": "1.26.4", "msgspec": None}
    real = host.installed
    monkeypatch.setattr(host, "installed", lambda name: versions[name] if name in versions else real(name))
    check = checks_of_host()["packages"]
    assert (check.status, check.todo) == ("broken", "pip install 'numpy>=2.0' 'msgspec>=0.19'")
    assert check.summary == "numpy 1.26.4 is older than 2.0; msgspec is not installed"
