"""Reading a bundle: what its manifest may say, and files that are checked before they are used.

The format is specified in docs/bundle.md. A bundle comes from outside, so the manifest is validated against
the types below, every path must stay inside the bundle, and a file is used only if its size and sha256 are
those of the manifest.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import safetensors
import safetensors.numpy
from msgspec import Meta
from numpy.typing import NDArray

from pcsr.runtime.cost import CostTable
from pcsr.runtime.errors import BundleError

__all__ = [
    "MANIFEST",
    "Bundle",
    "FileEntry",
    "Manifest",
    "NetworkEntry",
    "Normalisation",
    "Precision",
    "parse_manifest",
    "read_bundle",
]

MANIFEST = "manifest.json"
# A manifest has a few kB; networks of this family have a few MB. Nothing larger is read.
MANIFEST_LIMIT = 1 << 20
FILE_LIMIT = 1 << 30
# Of an entry of the cost table: beyond all networks of this size, and sums over a picture stay exact.
COST_LIMIT = 1 << 32
# Characters of a foreign text that are shown in a message.
SHOWN = 160

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Small = Annotated[int, Meta(ge=1, le=4096)]
Precision = Literal["fp32", "fp16"]
Hidden = Annotated[tuple[Small, ...], Meta(max_length=16)]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the bundle: relative path with forward slashes, size in bytes, sha256."""

    path: Annotated[
        str, Meta(pattern="^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$", max_length=200)
    ]
    bytes: Annotated[int, Meta(ge=1, le=FILE_LIMIT)]
    sha256: Sha256


class NetworkEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The network: backbone by name, feature channels, hidden sizes of the per-pixel networks."""

    backbone: Annotated[str, Meta(min_length=1, max_length=64)]
    width: Small
    options: Annotated[dict[str, Small], Meta(max_length=16)]
    classifier: Hidden
    upsamplers: Annotated[tuple[Hidden, ...], Meta(min_length=2, max_length=16)]


class Normalisation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the first graph subtracts and divides by, per RGB channel; for information, the graphs do it."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of manifest.json, version 1."""

    format: Literal["pcsr-bundle"]
    version: Literal[1]
    network: NetworkEntry
    normalisation: Normalisation
    halo: Annotated[int, Meta(ge=0, le=1024)]
    """LR pixels that the backbone sees on each side of a pixel."""
    working_bytes: Annotated[int, Meta(ge=1, le=1 << 24)]
    """Largest sum of the backbone's live fp32 tensors, per LR pixel; what memory plans count with."""
    cost: CostTable
    weights: FileEntry
    sample: FileEntry
    graphs: Annotated[dict[Precision, dict[str, FileEntry]], Meta(min_length=1)]
    provenance: dict[str, str]
    """Where it comes from; its `checkpoint_sha256` says whether two bundles are of one network."""

    @property
    def table_channels(self) -> tuple[int, ...]:
        """Channels of every per-pixel network's table: classifier, then upsamplers."""
        outputs = 1 if self.classes == 2 else self.classes
        return tuple(
            hidden[0] if hidden else last
            for hidden, last in [
                (self.network.classifier, outputs),
                *((u, 3) for u in self.network.upsamplers),
            ]
        )

    @property
    def classes(self) -> int:
        """M, the number of upsamplers."""
        return len(self.network.upsamplers)


class Bundle:
    """A bundle on disk whose manifest has been read and found consistent.

    Attributes:
        path: the folder.
        manifest: its content.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions that have graphs here."""
        return tuple(self.manifest.graphs)

    def read(self, entry: FileEntry) -> bytes:
        """Content of a file, after its size and hash were found to be the manifest's.

        Raises:
            BundleError: the file is missing, lies outside the bundle, or was changed.
        """
        path = self.path / entry.path
        # Not Path.resolve, which raises on links that go in circles.
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.path)):
            raise BundleError(f"{path} leads out of the bundle; export the bundle anew")
        try:
            size = _regular_size(path)
            if size != entry.bytes:
                raise BundleError(
                    f"{path} has {size} bytes, the manifest says {entry.bytes}; export the bundle anew"
                )
            with path.open("rb") as file:
                content = file.read(entry.bytes + 1)
        except OSError as error:
            raise BundleError(
                f"cannot read {path}: {error.strerror or error}; export the bundle anew"
            ) from error
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise BundleError(
                f"{path} was changed or damaged (sha256 differs from the manifest); export the bundle anew"
            )
        return content

    def graphs(self, precision: str) -> Mapping[str, FileEntry]:
        """Graph files of a precision by name.

        Raises:
            BundleError: the bundle was exported without it.
        """
        graphs = self.manifest.graphs
        if precision not in graphs:
            raise BundleError(
                f"bundle {self.path} has no {precision} graphs, only {', '.join(graphs)}; "
                f"add them with: pcsr-export {shlex.quote(str(self.path))} --precision {precision}"
            )
        return graphs[precision]

    def weights(self) -> dict[str, NDArray[Any]]:
        """Weights of the rewritten network under the names of docs/bundle.md."""
        content = self.read(self.manifest.weights)
        try:
            return dict(safetensors.numpy.load(content))
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise BundleError(
                f"{self.path / self.manifest.weights.path} is no safetensors file: {error}"
            ) from error

    def sample(self) -> bytes:
        """The small picture (PNG) with which the export checked the graphs."""
        return self.read(self.manifest.sample)


def read_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read and validate the manifest of the bundle at a folder.

    Raises:
        BundleError: there is none, or its manifest is damaged, contradictory or of a version unknown here.
    """
    folder = Path(path)
    file = folder / MANIFEST
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise BundleError(f"bundle {folder} {what}; make one with: pcsr-export CHECKPOINT -o {folder}")
    try:
        if _regular_size(file) > MANIFEST_LIMIT:
            raise BundleError(
                f"{file} is larger than {MANIFEST_LIMIT} bytes, so it is no bundle's manifest; "
                "point to a folder made by pcsr-export"
            )
        with file.open("rb") as opened:
            content = opened.read(MANIFEST_LIMIT)
    except OSError as error:
        raise BundleError(
            f"{folder} is not a bundle ({file.name}: {error.strerror or error}); make one with: "
            f"pcsr-export CHECKPOINT -o BUNDLE"
        ) from error
    return Bundle(folder, parse_manifest(content, file))


def _regular_size(path: Path) -> int:
    """Size of a file; a pipe or a device, whose reading may never end, is an OSError."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return found.st_size


def _shown(foreign: object) -> str:
    """A text from outside for a message: shortened, and no control characters for the terminal."""
    text = str(foreign)
    return text[:SHOWN].encode("unicode_escape").decode() + ("…" if len(text) > SHOWN else "")


def parse_manifest(content: bytes, file: Path) -> Manifest:
    """Decode a manifest and check what its types cannot say.

    Args:
        content: of manifest.json.
        file: named in errors.

    Raises:
        BundleError: it is damaged, contradictory or of a version unknown here.
    """
    try:
        head: Any = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{file} is not JSON ({_shown(error)}); export the bundle anew") from error
    if not isinstance(head, dict) or head.get("format") != "pcsr-bundle":
        raise BundleError(
            f"{file} is not the manifest of a pcsr bundle; point to a folder made by pcsr-export"
        )
    if type(head.get("version")) is not int or head["version"] != 1:
        raise BundleError(
            f"{file} has version {_shown(head.get('version'))} and this pcsr reads version 1; "
            "upgrade pcsr, or export the bundle with this one"
        )
    try:
        manifest = msgspec.convert(head, Manifest)
    except msgspec.ValidationError as error:
        raise BundleError(f"{file} is damaged: {_shown(error)}; export the bundle anew") from error
    problem = _contradiction(manifest)
    if problem:
        raise BundleError(f"{file} contradicts itself: {problem}; export the bundle anew")
    return manifest


def _contradiction(manifest: Manifest) -> str | None:
    classes = manifest.classes
    expected = {"backbone", "classifier", *(f"upsampler_{j}" for j in range(classes))}
    for precision, graphs in manifest.graphs.items():
        if set(graphs) != expected:
            found, needed = _shown(sorted(graphs)), ", ".join(sorted(expected))
            return f"{precision} has the graphs {found}, {classes} classes need {needed}"
    for name, costs in (("flops", manifest.cost.flops), ("macs", manifest.cost.macs)):
        if len(costs.upsamplers) != classes:
            return f"cost.{name} lists {len(costs.upsamplers)} upsamplers, the network has {classes}"
        # A classifier of one linear layer is all table: nothing is left per output pixel.
        entries = (costs.backbone, costs.classifier + 1, *costs.upsamplers)
        if min(entries) < 1 or max(entries) > COST_LIMIT:
            return f"cost.{name} has an entry that no network has"
    scales = manifest.normalisation.std
    if not all(math.isfinite(v) for v in (*manifest.normalisation.mean, *scales)) or min(scales) <= 0:
        return "normalisation needs finite means and positive deviations"
    if not re.fullmatch("[0-9a-f]{64}", manifest.provenance.get("checkpoint_sha256", "")):
        return "provenance has no checkpoint_sha256"
    return None


def head_weights(
    weights: Mapping[str, NDArray[Any]], name: str, first: int
) -> dict[str, NDArray[np.float32]]:
    """The geometric part of one per-pixel network's first layer, checked for shape.

    Args:
        weights: of the bundle.
        name: "classifier" or "upsampler_<j>".
        first: outputs of that first layer.

    Raises:
        BundleError: a vector is missing or misshapen.
    """
    picked = {}
    for part in ("relative_y", "relative_x", "cell_y", "cell_x", "bias"):
        key = f"{name}.first.{part}"
        vector = weights.get(key)
        if (
            vector is None
            or vector.shape != (first,)
            or vector.dtype != np.float32
            or not np.isfinite(vector).all()
        ):
            raise BundleError(
                f"the bundle's weights lack {key} with {first} finite float32 values; export the bundle anew"
            )
        picked[part] = vector
    return picked
