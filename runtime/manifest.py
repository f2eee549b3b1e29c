"""What manifest.json of a bundle may say: its types, and what types cannot say.

The format is specified in docs/bundle.md; docs/bundle.schema.json is made from the types below.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from pcsr.runtime.cost import CostTable
from pcsr.runtime.errors import BundleError

__all__ = [
    "FORMS",
    "FileEntry",
    "Form",
    "Manifest",
    "NetworkEntry",
    "Normalisation",
    "Precision",
    "parse_manifest",
]

# A file of these networks has a few MB. Nothing larger is read.
FILE_LIMIT = 1 << 30
# Of an entry of the cost table: beyond all networks of this size, and sums over a picture stay exact.
COST_LIMIT = 1 << 32
# Characters of a foreign text that are shown in a message.
SHOWN = 160

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Small = Annotated[int, Meta(ge=1, le=4096)]
Precision = Literal["fp32", "fp16", "int8"]
Form = Literal["fp32", "fp16", "int8", "int8-trt8", "int8-cpu", "int8-vnni"]
# What each precision has graphs in. INT8 needs a form of its own for every kind of engine: TensorRT from 10 on,
# TensorRT 8.6, ONNX Runtime on processors without and with VNNI instructions.
FORMS: dict[Precision, tuple[Form, ...]] = {
    "fp32": ("fp32",),
    "fp16": ("fp16",),
    "int8": ("int8", "int8-trt8", "int8-cpu", "int8-vnni"),
}
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


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
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
    graphs: Annotated[dict[Form, dict[str, FileEntry]], Meta(min_length=1)]
    """By form and name. A precision has all of its forms or none."""
    calibration: FileEntry | None = None
    """The calibration cache that int8 graphs were made from; there with them alone."""
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
        raise BundleError(
            f"{file} is not JSON ({_shown(error)}); export the bundle anew with --force"
        ) from error
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
        raise BundleError(
            f"{file} is damaged: {_shown(error)}; export the bundle anew with --force"
        ) from error
    problem = _contradiction(manifest)
    if problem:
        raise BundleError(f"{file} contradicts itself: {problem}; export the bundle anew with --force")
    return manifest


def _contradiction(manifest: Manifest) -> str | None:
    classes = manifest.classes
    expected = {"backbone", "classifier", *(f"upsampler_{j}" for j in range(classes))}
    for form, graphs in manifest.graphs.items():
        if set(graphs) != expected:
            found, needed = _shown(sorted(graphs)), ", ".join(sorted(expected))
            return f"{form} has the graphs {found}, {classes} classes need {needed}"
    for precision, forms in FORMS.items():
        missing = [form for form in forms if form not in manifest.graphs]
        if 0 < len(missing) < len(forms):
            return f"{precision} lacks its form {missing[0]}"
    if (manifest.calibration is not None) != ("int8" in manifest.graphs):
        return "int8 graphs and a calibration go together, and one of them is missing"
    for name, costs in (("flops", manifest.cost.flops), ("macs", manifest.cost.macs)):
        if len(costs.upsamplers) != classes:
            return f"cost.{name} lists {len(costs.upsamplers)} upsamplers, the network has {classes}"
        # A network of one linear layer is all table: no multiply-accumulate is left per output pixel.
        each = (costs.classifier, *costs.upsamplers)
        least = 1 if name == "flops" else 0
        if costs.backbone < 1 or min(each) < least or max(costs.backbone, *each) > COST_LIMIT:
            return f"cost.{name} has an entry that no network has"
    scales = manifest.normalisation.std
    if not all(math.isfinite(v) for v in (*manifest.normalisation.mean, *scales)) or min(scales) <= 0:
        return "normalisation needs finite means and positive deviations"
    if not re.fullmatch("[0-9a-f]{64}", manifest.provenance.get("checkpoint_sha256", "")):
        return "provenance has no checkpoint_sha256"
    return None


def _shown(foreign: object) -> str:
    """A text from outside for a message: shortened, and no control characters for the terminal."""
    text = str(foreign)
    return text[:SHOWN].encode("unicode_escape").decode() + ("…" if len(text) > SHOWN else "")
