"""Writing bundles: content-named files first, the manifest renamed into place last.

A new bundle is put together beside its place and renamed as a folder; an existing one gets further files,
then its new manifest, then loses what no manifest names any more. Killed at any moment the target is what it
was or what it was to become, and the next export sweeps what is left over.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from pcsr.export.locks import held
from pcsr.runtime.atomic import sync_folder, write_whole
from pcsr.runtime.bundle import MANIFEST, Bundle, read_bundle
from pcsr.runtime.errors import BundleError, OptionError
from pcsr.runtime.manifest import FORMS, FileEntry, Form, Manifest, Precision, parse_manifest

__all__ = [
    "DEFAULT_PRECISIONS",
    "PRECISIONS",
    "Contents",
    "commit",
    "locked",
    "provenance",
    "sweep",
    "target_state",
]

PRECISIONS: tuple[Precision, ...] = tuple(FORMS)
# Those that need nothing but the checkpoint.
DEFAULT_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")

# How long to wait for another export into the same bundle before giving up.
LOCK_SECONDS = 600

# Only files of these names are ever swept.
OURS = re.compile(
    r"network-[0-9a-f]{12}\.safetensors|sample-[0-9a-f]{12}\.png|calibration-[0-9a-f]{12}\.json"
    r"|graphs/[a-z0-9-]+/[a-z0-9_]+-[0-9a-f]{12}\.onnx"
    r"|(graphs/[a-z0-9-]+/)?\.[^/]+\.[0-9a-f]{8}\.partial"
)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a bundle will hold: the manifest's fields beside its file entries, and the files' bytes.

    Attributes:
        fields: of `Manifest`, without format, version, weights, sample, graphs and calibration.
        weights: content of network.safetensors.
        sample: content of the sample picture.
        graphs: content of the graphs by form and name.
        kept: graphs of an existing bundle that stay as they are.
        calibration: content of the calibration cache, where there are int8 graphs.
    """

    fields: Mapping[str, Any]
    weights: bytes
    sample: bytes
    graphs: Mapping[Form, Mapping[str, bytes]]
    kept: Mapping[Form, Mapping[str, FileEntry]]
    calibration: bytes | None = None


def target_state(path: Path) -> Literal["absent", "empty", "bundle", "foreign"]:
    """What lies where a bundle is to be written.

    "empty" is a folder with nothing in it but what a killed export may have left. "bundle" may be a damaged
    one: its manifest says that it is ours. Everything else is "foreign", a link that leads nowhere too.

    Raises:
        BundleError: the system does not let us look.
    """
    try:
        if not path.exists():
            return "foreign" if path.is_symlink() else "absent"
        if not path.is_dir():
            return "foreign"
        if _claims_to_be_bundle(path / MANIFEST):
            return "bundle"
        return "empty" if all(_is_left_over(path, entry) for entry in path.rglob("*")) else "foreign"
    except OSError as error:
        raise BundleError(
            f"cannot look at {path}: {error.strerror or error}; choose another place with -o"
        ) from error


def _claims_to_be_bundle(manifest: Path) -> bool:
    if not manifest.is_file():
        return False
    with manifest.open("rb") as file:
        return b'"pcsr-bundle"' in file.read(4096)


def _is_left_over(folder: Path, entry: Path) -> bool:
    name = entry.relative_to(folder).as_posix()
    if entry.is_symlink():
        return False
    return name.split("/")[0] == "graphs" if entry.is_dir() else OURS.fullmatch(name) is not None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the bundle at `path` against other exports; the lock's file, `.<name>.lock` beside it, stays.

    Raises:
        BundleError: another export holds it for too long, or its folder cannot be written to.
    """
    with held(
        path.with_name(f".{path.name}.lock"),
        place=path,
        who="another export",
        seconds=LOCK_SECONDS,
        error=BundleError,
        elsewhere="choose another place with -o",
    ):
        yield


def commit(path: Path, contents: Contents, *, replace: bool) -> Bundle:
    """Write a bundle; call with the lock held.

    Args:
        path: the bundle's folder; absent, empty or a bundle.
        contents: what it will hold.
        replace: nothing of an existing bundle is kept, its engines neither.

    Raises:
        BundleError: the target is something else, or writing failed (disk full, permissions).
    """
    state = target_state(path)
    if state == "foreign":
        raise BundleError(
            f"{path} exists and is no bundle; it was left untouched, choose another place with -o"
        )
    staging = _staging(path)
    try:
        if state == "absent":
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            _write(staging, contents)
            # Onto a folder that was filled meanwhile this fails.
            staging.rename(path)
            sync_folder(path.parent)
        else:
            _write(path, contents)
        if replace:
            shutil.rmtree(path / "engines", ignore_errors=True)
    except OSError as error:
        raise BundleError(
            f"cannot write bundle {path}: {error.strerror or error}; it is what it was before"
        ) from error
    finally:
        sweep(path)
    return read_bundle(path)


def _staging(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _write(folder: Path, contents: Contents) -> None:
    """Write all files, the manifest last."""

    def put(stem: str, suffix: str, content: bytes) -> FileEntry:
        digest = hashlib.sha256(content).hexdigest()
        entry = FileEntry(path=f"{stem}-{digest[:12]}{suffix}", bytes=len(content), sha256=digest)
        place = folder / entry.path
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.parent.resolve().is_relative_to(folder.resolve()):
            raise BundleError(
                f"{place.parent} leads out of the bundle; remove the link, or choose another place"
            )
        if not place.is_file() or place.read_bytes() != content:
            write_whole(place, content)
        return entry

    graphs = {form: dict(files) for form, files in contents.kept.items()}
    for form, files in contents.graphs.items():
        graphs[form] = {
            name: put(f"graphs/{form}/{name}", ".onnx", content) for name, content in files.items()
        }
    calibration = contents.calibration
    sync_folder(folder / "graphs")
    manifest = Manifest(
        format="pcsr-bundle",
        version=1,
        **contents.fields,
        weights=put("network", ".safetensors", contents.weights),
        sample=put("sample", ".png", contents.sample),
        graphs={form: graphs[form] for forms in FORMS.values() for form in forms if form in graphs},
        calibration=None if calibration is None else put("calibration", ".json", calibration),
    )
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    # What the reader would refuse is not written.
    parse_manifest(content, folder / MANIFEST)
    write_whole(folder / MANIFEST, content)


def sweep(path: Path) -> None:
    """Remove what killed or failed exports left in a bundle and beside it; call with the lock held.

    What cannot be removed stays until the next export: it harms nobody.
    """
    shutil.rmtree(_staging(path), ignore_errors=True)
    if target_state(path) not in ("empty", "bundle"):
        return
    named: set[str] = set()
    if (path / MANIFEST).exists():
        try:
            manifest = read_bundle(path).manifest
        except BundleError:
            # Nobody knows which files a damaged manifest means.
            return
        named = {manifest.weights.path, manifest.sample.path}
        named |= {manifest.calibration.path} if manifest.calibration else set()
        named |= {entry.path for files in manifest.graphs.values() for entry in files.values()}
    for entry in sorted(path.rglob("*"), reverse=True):
        relative = entry.relative_to(path).as_posix()
        with suppress(OSError):
            if entry.is_dir() and not entry.is_symlink():
                if relative.split("/")[0] == "graphs" and not any(entry.iterdir()):
                    entry.rmdir()
            elif relative not in named and OURS.fullmatch(relative):
                entry.unlink(missing_ok=True)


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
