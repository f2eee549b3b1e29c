"""A TensorRT engine on disk: what it was built for, and its plan.

An engine is two files, `<graph>-<precision>-<key>.plan` and the same with `.json`, which says what the plan was
built for and its hash. docs/bundle.md specifies both. Engines are a cache: whatever is wrong with one, the answer
is to build it anew.
"""

from __future__ import annotations

import errno
import hashlib
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pcsr.runtime.errors import BackendError
from pcsr.runtime.manifest import FILE_LIMIT, Precision, Sha256

__all__ = [
    "EXTRAS",
    "MODULES",
    "OPTIONS",
    "Description",
    "Engine",
    "Flavour",
    "Identity",
    "Profile",
    "Range",
    "Tuning",
    "read_engine",
]

Flavour = Literal["tensorrt", "tensorrt-rtx"]
# What is imported, which of the extras has it, and the option of pcsr-export that builds for it.
MODULES: Mapping[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
EXTRAS: Mapping[Flavour, str] = {"tensorrt": "trt", "tensorrt-rtx": "trt-rtx"}
OPTIONS: Mapping[Flavour, str] = {"tensorrt": "--trt", "tensorrt-rtx": "--trt-rtx"}

# A description has a few kB. Nothing larger is read.
DESCRIPTION_LIMIT = 1 << 16

# Printable, since messages show it.
Text = Annotated[str, Meta(pattern=r"^[ -~]{1,128}\Z")]
Side = Annotated[int, Meta(ge=1, lt=1 << 31)]
Shape = Annotated[tuple[Side, ...], Meta(min_length=1, max_length=8)]
Capability = Annotated[str, Meta(pattern=r"^[1-9][0-9]?\.[0-9]$")]


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shapes of an input: the smallest and largest that an engine takes, and the one it is fastest at."""

    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        if not len(self.min) == len(self.opt) == len(self.max) or not all(
            low <= best <= high for low, best, high in zip(self.min, self.opt, self.max, strict=True)
        ):
            raise ValueError("min, opt and max of a range do not ascend")

    def holds(self, shape: Sequence[int]) -> bool:
        """Whether an input of this shape lies within."""
        return len(shape) == len(self.min) and all(
            low <= side <= high for low, side, high in zip(self.min, shape, self.max, strict=True)
        )


Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}\Z")]
Profile = Annotated[dict[Name, Range], Meta(min_length=1, max_length=16)]
"""Ranges of all inputs of a graph by name."""


class Tuning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the builder was told beside the shapes; None leaves it to TensorRT."""

    opt_level: Annotated[int, Meta(ge=0, le=5)] | None = None
    workspace: Annotated[int, Meta(ge=1, le=1 << 62)] | None = None
    hardware_compat: bool = False
    version_compat: bool = False


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an engine was built from and for. Fields stand in the order in which they are compared.

    Attributes:
        graph: its name in the bundle.
        precision: of the graph.
        graph_sha256: of the ONNX file.
        flavour: which TensorRT.
        version: of it.
        platform: operating system and processor, like "linux-x86_64".
        compute_capabilities: of the GPUs it was built for; one, but for engines made ahead of time.
        gpu: name of the GPU it was built on; empty for TensorRT-RTX, which finishes its kernels where it runs.
        profiles: optimisation profiles, in the engine's order.
        tuning: the builder's options.
    """

    format: Literal["pcsr-engine"] = "pcsr-engine"
    format_version: Literal[1] = 1
    graph: Name
    precision: Precision
    graph_sha256: Sha256
    flavour: Flavour
    version: Text
    platform: Text
    compute_capabilities: Annotated[tuple[Capability, ...], Meta(min_length=1, max_length=16)]
    gpu: Annotated[str, Meta(pattern=r"^[ -~]{0,256}\Z")]
    profiles: Annotated[tuple[Profile, ...], Meta(min_length=1, max_length=8)]
    tuning: Tuning

    @property
    def stem(self) -> str:
        """File name without its ending: graph, precision and the first 12 digits of the identity's sha256."""
        canonical = msgspec.json.encode(self, order="sorted")
        return f"{self.graph}-{self.precision}-{hashlib.sha256(canonical).hexdigest()[:12]}"


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON file: the identity, and size and hash of the plan."""

    identity: Identity
    bytes: Annotated[int, Meta(ge=1, le=FILE_LIMIT)]
    sha256: Sha256


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine whose description has been read; its plan is checked when it is read.

    Attributes:
        path: of the plan.
        description: what the file beside it says.
    """

    path: Path
    description: Description

    @property
    def identity(self) -> Identity:
        """What it was built for."""
        return self.description.identity

    def read(self) -> bytes:
        """The plan, after its size and hash were found to be right.

        Raises:
            BackendError: it is missing, cut short or changed.
        """
        plan = _content(self.path, self.description.bytes)
        if len(plan) != self.description.bytes:
            raise BackendError(
                f"{self.path} has {len(plan)} bytes and should have {self.description.bytes}; build it anew"
            )
        if hashlib.sha256(plan).hexdigest() != self.description.sha256:
            raise BackendError(f"{self.path} was changed or damaged (its sha256 differs); build it anew")
        return plan


def read_engine(description: Path) -> Engine:
    """Read what an engine was built for.

    Args:
        description: the JSON file.

    Raises:
        BackendError: it is missing, damaged, or not named like what it says.
    """
    content = _content(description, DESCRIPTION_LIMIT)
    if len(content) > DESCRIPTION_LIMIT:
        raise BackendError(
            f"{description} is larger than {DESCRIPTION_LIMIT} bytes, so it describes no engine"
        )
    try:
        decoded = msgspec.json.decode(content, type=Description)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # Of a text from outside, no control characters for the terminal.
        reason = f"{error!s:.160}".encode("unicode_escape").decode()
        raise BackendError(f"{description} is damaged ({reason}); build the engine anew") from error
    if decoded.identity.stem != description.stem:
        raise BackendError(
            f"{description} was changed (its name is not its content's); build the engine anew"
        )
    return Engine(description.with_suffix(".plan"), decoded)


def _content(path: Path, limit: int) -> bytes:
    """At most one byte more than the limit; a pipe or a device, whose reading may never end, is refused."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise BackendError(f"cannot read {path}: {error.strerror or error}; build the engine anew") from error
