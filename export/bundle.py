"""Writing bundles: content-named files first, the manifest renamed into place last.

A new bundle is put together beside its place and renamed as a folder; an existing one gets further files, then
its new manifest, then loses what no manifest names any more. Killed at any moment the target is what it was or
what it was to become, and the next export sweeps what is left over.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import filelock
import msgspec

from pcsr.runtime.atomic import sync_folder, write_whole
from pcsr.runtime.bundle import MANIFEST, Bundle, FileEntry, Manifest, read_bundle
from pcsr.runtime.errors import BundleError, OptionError

__all__ = ["Contents", "commit", "locked", "provenance", "target_state"]

# How long to wait for another export into the same bundle before giving up.
LOCK_SECONDS = 600

# Only files of these names are ever swept.
OURS = re.compile(
    r"(network-[0-9a-f]{12}\.safetensors|sample-[0-9a-f]{12}\.png|graphs/[a-z0-9]+/[a-z0-9_]+-[0-9a-f]{12}\.onnx"
    r"|(.*/)?\.[^/]+\.partial)"
)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a bundle will hold: the manifest's fields beside its file entries, and the files' bytes.

    Attributes:
        fields: of `Manifest`, without format, version, weights, sample and graphs.
        weights: content of network.safetensors.
        sample: content of the sample picture.
        graphs: content of the graphs by precision and name.
        kept: graphs of an existing bundle that stay as they are.
    """

    fields: Mapping[str, object]
    weights: bytes
    sample: bytes
    graphs: Mapping[str, Mapping[str, bytes]]
    kept: Mapping[str, Mapping[str, FileEntry]]


def target_state(path: Path) -> Literal["absent", "bundle", "foreign"]:
    """What lies where a bundle is to be written; an empty folder counts as absent."""
    if path.is_symlink() and not path.exists():
        return "foreign"
    if not path.exists():
        return "absent"
    if not path.is_dir():
        return "foreign"
    if not any(path.iterdir()):
        return "absent"
    try:
        read_bundle(path)
    except BundleError:
        # A damaged manifest of ours may be replaced; anything else is somebody's folder.
        return "bundle" if _claims_to_be_bundle(path / MANIFEST) else "foreign"
    return "bundle"


def _claims_to_be_bundle(manifest: Path) -> bool:
    try:
        return b'"pcsr-bundle"' in manifest.read_bytes()[:4096]
    except OSError:
        return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the bundle at `path` against other exports.

    Raises:
        BundleError: another export holds it for too long, or its folder cannot be written to.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(lock, timeout=LOCK_SECONDS):
            yield
    except filelock.Timeout as error:
        raise BundleError(
            f"another export has held {path} for {LOCK_SECONDS} s (lock {lock}); wait for it or end it"
        ) from error
    except PermissionError as error:
        raise BundleError(f"cannot write to {path.parent}: {error.strerror}; choose another place with -o") from error


def commit(path: Path, contents: Contents, *, replace: bool) -> Bundle:
    """Write a bundle; call with the lock held.

    Args:
        path: the bundle's folder, absent or a bundle.
        contents: what it will hold.
        replace: nothing of an existing bundle is kept.

    Raises:
        BundleError: the target is something else, or writing failed (disk full, permissions).
    """
    state = target_state(path)
    if state == "foreign":
        raise BundleError(f"{path} exists and is no bundle; it was left untouched, choose another place with -o")
    staging = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        if state == "absent":
            staging.mkdir(parents=True)
            manifest = _write_files(staging, contents)
            write_whole(staging / MANIFEST, manifest)
            # Onto an empty folder a rename succeeds, onto one that was filled meanwhile it fails.
            staging.rename(path)
            sync_folder(path.parent)
        else:
            manifest = _write_files(path, contents)
            write_whole(path / MANIFEST, manifest)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise BundleError(f"cannot write bundle {path}: {error.strerror or error}; it is what it was before") from error
    bundle = read_bundle(path)
    _sweep(bundle, everything=replace)
    return bundle


def _write_files(folder: Path, contents: Contents) -> bytes:
    """Write all files but the manifest, and give the manifest's bytes."""

    def put(stem: str, suffix: str, content: bytes) -> FileEntry:
        digest = hashlib.sha256(content).hexdigest()
        entry = FileEntry(path=f"{stem}-{digest[:12]}{suffix}", bytes=len(content), sha256=digest)
        place = folder / entry.path
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.is_file() or place.read_bytes() != content:
            write_whole(place, content)
        return entry

    graphs: dict[str, dict[str, FileEntry]] = {precision: dict(files) for precision, files in contents.kept.items()}
    for precision, files in contents.graphs.items():
        graphs[precision] = {
            name: put(f"graphs/{precision}/{name}", ".onnx", content) for name, content in files.items()
        }
    manifest = msgspec.convert(
        {
            "format": "pcsr-bundle",
            "version": 1,
            **contents.fields,
            "weights": put("network", ".safetensors", contents.weights),
            "sample": put("sample", ".png", contents.sample),
            "graphs": {precision: graphs[precision] for precision in ("fp32", "fp16") if precision in graphs},
        },
        Manifest,
        from_attributes=True,
    )
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def _sweep(bundle: Bundle, *, everything: bool) -> None:
    """Remove files of ours that the manifest does not name; with `everything`, engines of the old graphs too."""
    manifest = bundle.manifest
    named = {MANIFEST, manifest.weights.path, manifest.sample.path}
    named |= {entry.path for files in manifest.graphs.values() for entry in files.values()}
    if everything:
        shutil.rmtree(bundle.path / "engines", ignore_errors=True)
    for file in sorted(bundle.path.rglob("*"), reverse=True):
        relative = file.relative_to(bundle.path).as_posix()
        if file.is_file() and relative not in named and OURS.fullmatch(relative):
            file.unlink(missing_ok=True)
        elif relative.startswith("graphs") and file.is_dir() and not any(file.iterdir()):
            file.rmdir()


def provenance(checkpoint_sha256: str) -> dict[str, str]:
    """Where a bundle comes from: checkpoint and tool versions; a date only by `SOURCE_DATE_EPOCH`.

    Raises:
        OptionError: `SOURCE_DATE_EPOCH` is no whole number.
    """
    record = {"checkpoint_sha256": checkpoint_sha256}
    record |= {name: importlib.metadata.version(name) for name in ("pcsr", "torch", "onnx", "numpy")}
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is not None:
        if not epoch.isdecimal():
            raise OptionError(f"SOURCE_DATE_EPOCH is {epoch!r}; it must be seconds since 1970")
        record["source_date_epoch"] = epoch
    return record
