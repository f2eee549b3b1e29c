"""What an examination finds, and whether it is enough for what was asked for."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pcsr.runtime.shipped import DEFAULT

__all__ = ["REQUIREMENTS", "Check", "Group", "Report", "Status", "pcsr_version"]

Status = Literal["ok", "warning", "missing", "broken"]
Group = Literal["Machine", "Python", "ONNX Runtime", "NVIDIA", "TensorRT", "Upscaler"]

# Of the JSON object, in docs/doctor.md; raised when a key changes its meaning or goes.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        key: its stable name, like "onnxruntime.cuda".
        group: heading under which it is shown.
        title: its name for people.
        status: "missing" is not there, "broken" is there and does not work, "warning" works with a reservation.
        summary: what was found, in one line.
        todo: what to do about it, with the command; empty if nothing.
        facts: the same for programs: numbers, versions, paths.
        output: the end of what a failed trial wrote.
    """

    key: str
    group: Group
    title: str
    status: Status
    summary: str
    todo: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    output: str = ""

    @property
    def works(self) -> bool:
        """Whether it can be relied on."""
        return self.status in ("ok", "warning")


# For each thing that can be required: of each row, one check must work.
REQUIREMENTS: Mapping[str, Sequence[Sequence[str]]] = {
    "cpu": (
        ("packages",),
        ("libvips",),
        (f"upscaler.{DEFAULT}.onnxruntime.cpu", f"upscaler.{DEFAULT}.native.cpu"),
    ),
    "onnxruntime": (("onnxruntime",), ("onnxruntime.cpu",)),
    "cuda": (("driver",), ("onnxruntime.cuda",), (f"upscaler.{DEFAULT}.onnxruntime.cuda",)),
    "tensorrt": (("driver",), ("tensorrt", "tensorrt_lean", "tensorrt_rtx")),
}


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, in the order in which they are shown.

    Attributes:
        checks: by key.
        seconds: that the examination took.
    """

    checks: Mapping[str, Check]
    seconds: float

    def failing(self, requirement: str) -> Check | None:
        """The first check that keeps a requirement from being met; None if it is met.

        Args:
            requirement: a key of `REQUIREMENTS`.
        """
        for row in REQUIREMENTS[requirement]:
            checks = [self.checks[key] for key in row]
            if not any(check.works for check in checks):
                # Of several that would do, one that is there says more than one that is not.
                return next((check for check in checks if check.status == "broken"), checks[0])
        return None

    def as_json(self, required: Sequence[str]) -> dict[str, Any]:
        """The object that `pcsr-doctor --json` prints; docs/doctor.md has its keys.

        Args:
            required: what decides over "ok".
        """
        works = {requirement: self.failing(requirement) is None for requirement in REQUIREMENTS}
        return {
            "format": FORMAT,
            "pcsr": pcsr_version(),
            "ok": all(works[requirement] for requirement in required),
            "required": list(required),
            "works": works,
            "seconds": round(self.seconds, 3),
            "checks": {
                key: {
                    "group": check.group,
                    "title": check.title,
                    "status": check.status,
                    "summary": check.summary,
                    "todo": check.todo,
                    "facts": dict(check.facts),
                    "output": check.output,
                }
                for key, check in self.checks.items()
            },
        }


def pcsr_version() -> str:
    """Version of the installed toolkit; "unknown" where it runs without having been installed."""
    try:
        return importlib.metadata.version("pcsr")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
