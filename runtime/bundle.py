"""Reading a bundle: files that are checked before they are used.

The format is specified in docs/bundle.md. A bundle comes from outside, so its manifest is validated, every path
must stay inside the bundle, and a file is used only if its size and sha256 are those of the manifest.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from pcsr.runtime.errors import BundleError
from pcsr.runtime.manifest import FORMS, FileEntry, Manifest, parse_manifest

__all__ = ["MANIFEST", "Bundle", "FileEntry", "Manifest", "head_weights", "read_bundle"]

MANIFEST = "manifest.json"
# It has a few kB. Nothing larger is read.
MANIFEST_LIMIT = 1 << 20


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
        return tuple(precision for precision, forms in FORMS.items() if forms[0] in self.manifest.graphs)

    def read(self, entry: FileEntry) -> bytes:
        """Content of a file, after its size and hash were found to be the manifest's.

        Raises:
            BundleError: the file is missing, lies outside the bundle, or was changed.
        """
        path = self.path / entry.path
        # Not Path.resolve, which raises on links that go in circles.
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.path)):
            raise BundleError(f"{path} leads out of the bundle; export the bundle anew with --force")
        try:
            size = _regular_size(path)
            if size != entry.bytes:
                raise BundleError(
                    f"{path} has {size} bytes, the manifest says {entry.bytes}; export the bundle anew with --force"
                )
            with path.open("rb") as file:
                content = file.read(entry.bytes + 1)
        except PermissionError as error:
            raise BundleError(f"cannot read {path}: {error.strerror}; change its permissions") from error
        except OSError as error:
            raise BundleError(
                f"cannot read {path}: {error.strerror or error}; export the bundle anew with --force"
            ) from error
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise BundleError(
                f"{path} was changed or damaged (sha256 differs from the manifest); export the bundle anew with --force"
            )
        return content

    def graphs(self, form: str) -> Mapping[str, FileEntry]:
        """Graph files by name, of a precision, or of int8 in another form than that for TensorRT from 10 on.

        Raises:
            BundleError: the bundle was exported without it.
        """
        graphs = self.manifest.graphs
        found = next((files for name, files in graphs.items() if name == form), None)
        if found is None:
            precision = form.partition("-")[0]
            command = f"pcsr-export {shlex.quote(str(self.path))} --precision {precision}"
            if precision == "int8":
                command += " --calibration CACHE.json, with a cache from pcsr-calibrate"
            raise BundleError(
                f"bundle {self.path} has no {precision} graphs, only {', '.join(self.precisions)}; "
                f"add them with: {command}"
            )
        return found

    def calibration(self) -> bytes:
        """The calibration cache that the int8 graphs were made from.

        Raises:
            BundleError: the bundle has none, or it was damaged.
        """
        entry = self.manifest.calibration
        if entry is None:
            raise BundleError(f"bundle {self.path} has no calibration, as it has no int8 graphs")
        return self.read(entry)

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
        if folder.exists():
            raise BundleError(f"{folder} is not a folder; make one with: pcsr-export CHECKPOINT -o BUNDLE")
        raise BundleError(
            f"bundle {folder} does not exist; make one with: pcsr-export CHECKPOINT -o {folder}"
        )
    try:
        if _regular_size(file) > MANIFEST_LIMIT:
            raise BundleError(
                f"{file} is larger than {MANIFEST_LIMIT} bytes, so it is no bundle's manifest; "
                "point to a folder made by pcsr-export"
            )
        with file.open("rb") as opened:
            content = opened.read(MANIFEST_LIMIT)
    except PermissionError as error:
        raise BundleError(f"cannot read {file}: {error.strerror}; change its permissions") from error
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
                f"the bundle's weights lack {key} with {first} finite float32 values; "
                "export the bundle anew with --force"
            )
        picked[part] = vector
    return picked
