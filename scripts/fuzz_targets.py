"""The targets of the fuzz harness: what cases are made from, and how. A case follows from its seed alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from fuzz_bytes import damage_bytes
from fuzz_case import Case, Entry, Link, Place
from fuzz_json import damage_json
from fuzz_networks import damage_onnx, damage_safetensors, damage_zip
from fuzz_picture_formats import damage_picture
from fuzz_pictures import picture_corpus

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = "bundle/manifest.json"
# What may lie where a file is expected, and is none.
ODD: Mapping[str, Entry] = {
    "a folder": Place.FOLDER,
    "a pipe": Place.PIPE,
    "empty": b"",
    "a link to nothing": Link("nothing"),
    "a link to its own folder": Link("."),
    "a link to a folder above": Link("../.."),
    "a link to an endless device": Link("/dev/zero"),
    "a link to an absolute file": Link("/etc/hostname"),
}
# One case in so many of a single file has one of these in its place.
RARELY = 50

Bundle = dict[str, Entry]


def make_case(
    target: str, random: Random, *, source: str | None = None, extra: Mapping[str, bytes] = {}
) -> Case:
    """Make one case.

    Args:
        target: a key of `TARGETS`.
        random: decides.
        source: what to damage, of `sources(target)`; None: the random one decides.
        extra: further pictures.
    """
    return TARGETS[target](random, source, extra)


def sources(target: str) -> list[str]:
    """Names of what the cases of a target are made from."""
    return list(FILES[target]())


@cache
def picture_sources() -> Mapping[str, bytes]:
    """The corpus, made once."""
    return picture_corpus()


def _picture(random: Random, source: str | None, extra: Mapping[str, bytes]) -> Case:
    known = {**picture_sources(), **extra}
    name = source or list(known)[random.randrange(len(known))]
    if random.randrange(RARELY * 10) == RARELY:
        return _odd("picture", name, random)
    alike = [
        content
        for other, content in known.items()
        if other != name and Path(other).suffix == Path(name).suffix
    ]
    damaged, said = damage_picture(known[name], random, others=alike)
    return Case("picture", {Path(name).name: damaged}, Path(name).name, f"{name}: {said}")


def _odd(target: str, name: str, random: Random) -> Case:
    kind = list(ODD)[random.randrange(len(ODD))]
    return Case(target, {name: ODD[kind]}, name, f"{name} is {kind}")


@cache
def checkpoints() -> Mapping[str, bytes]:
    """Checkpoints of every form: the authors' with and without a decision, and ours."""
    golden = ROOT / "tests" / "data" / "golden"
    files = (
        golden / "carn-pcsr-phase0-random.pth",
        golden / "srresnet-pcsr-random.pth",
        ROOT / "training" / "networks" / "fsrcnn.safetensors",
    )
    return {file.name: file.read_bytes() for file in files}


def _checkpoint(random: Random, source: str | None, extra: Mapping[str, bytes]) -> Case:
    known = checkpoints()
    name = source or list(known)[random.randrange(len(known))]
    if random.randrange(RARELY) == RARELY - 1:
        return _odd("checkpoint", name, random)
    damage = damage_safetensors if name.endswith(".safetensors") else damage_zip
    damaged, said = (
        damage_bytes(known[name], random) if random.randrange(5) == 4 else damage(known[name], random)
    )
    return Case("checkpoint", {name: damaged}, name, f"{name}: {said}")


@cache
def caches() -> Mapping[str, bytes]:
    """Calibration caches."""
    file = ROOT / "training" / "networks" / "fsrcnn.calibration.json"
    return {file.name: file.read_bytes()}


def _calibration(random: Random, source: str | None, extra: Mapping[str, bytes]) -> Case:
    known = caches()
    name = source or list(known)[random.randrange(len(known))]
    if random.randrange(RARELY) == RARELY - 1:
        return _odd("calibration", name, random)
    damaged, said = damage_json(known[name], random)
    return Case("calibration", {name: damaged}, name, f"{name}: {said}")


@cache
def bundles() -> Mapping[str, Bundle]:
    """Small bundles, each with the graphs of one precision, by file."""
    shipped = ROOT / "runtime" / "bundles" / "fsrcnn"
    return {
        "fp32": _read_bundle(ROOT / "tests" / "data" / "routing" / "bundle", "fp32"),
        "fp16": _read_bundle(shipped, "fp16"),
        "int8": _read_bundle(shipped, "int8"),
    }


def _read_bundle(folder: Path, precision: str) -> Bundle:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["graphs"] = {
        form: files for form, files in manifest["graphs"].items() if form.startswith(precision)
    }
    if precision != "int8":
        manifest.pop("calibration", None)
    files: Bundle = {
        f"bundle/{entry['path']}": (folder / entry["path"]).read_bytes() for entry in _entries(manifest)
    }
    return {MANIFEST: json.dumps(manifest).encode(), **files}


def _entries(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Of all files that a manifest names."""
    single = [manifest[name] for name in ("weights", "sample", "calibration") if name in manifest]
    return [*single, *(entry for files in manifest["graphs"].values() for entry in files.values())]


def _manifest(random: Random, source: str | None, extra: Mapping[str, bytes]) -> Case:
    name = source or list(bundles())[random.randrange(len(bundles()))]
    entries = dict(bundles()[name])
    content = entries[MANIFEST]
    assert isinstance(content, bytes)
    entries[MANIFEST], said = damage_json(content, random)
    return Case("manifest", entries, "bundle", f"manifest of {name}: {said}")


def _bundle(random: Random, source: str | None, extra: Mapping[str, bytes]) -> Case:
    name = source or list(bundles())[random.randrange(len(bundles()))]
    entries = dict(bundles()[name])
    manifest = json.loads(_content(entries, MANIFEST))
    graphs = sorted({entry["path"] for files in manifest["graphs"].values() for entry in files.values()})
    match random.randrange(10):
        case 0 | 1:
            said = _damage_folder(entries, random)
        case 2:
            path = manifest["weights"]["path"]
            damaged, said = damage_safetensors(_content(entries, f"bundle/{path}"), random)
            said = f"{path}: {said}"
            _replace(entries, manifest, path, damaged)
        case 3:
            # One whole graph in another's place: everything is right with it but what it takes and gives.
            path, other = (graphs[random.randrange(len(graphs))] for _ in range(2))
            _replace(entries, manifest, path, _content(entries, f"bundle/{other}"))
            said = f"{path} with the content of {other}"
        case _:
            path = graphs[random.randrange(len(graphs))]
            damaged, said = damage_onnx(_content(entries, f"bundle/{path}"), random)
            said = f"{path}: {said}"
            _replace(entries, manifest, path, damaged)
    return Case("bundle", entries, "bundle", f"{name}: {said}")


def _content(entries: Bundle, name: str) -> bytes:
    content = entries[name]
    assert isinstance(content, bytes)
    return content


def _replace(entries: Bundle, manifest: dict[str, Any], path: str, content: bytes) -> None:
    """Give a file another content, and the manifest its size and hash: only what runs the file can find fault."""
    for entry in _entries(manifest):
        if entry["path"] == path:
            entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    entries[f"bundle/{path}"] = content
    entries[MANIFEST] = json.dumps(manifest).encode()


def _damage_folder(entries: Bundle, random: Random) -> str:
    """A file damaged, gone, or replaced by something that is none."""
    name = list(entries)[random.randrange(len(entries))]
    match random.randrange(4):
        case 0:
            damaged, said = damage_bytes(_content(entries, name), random)
            entries[name] = damaged
            return f"{name}: {said}"
        case 1:
            del entries[name]
            return f"{name} is missing"
        case _:
            kind = list(ODD)[random.randrange(len(ODD))]
            entries[name] = ODD[kind]
            return f"{name} is {kind}"


FILES: Mapping[str, Callable[[], Mapping[str, object]]] = {
    "picture": picture_sources,
    "bundle": bundles,
    "manifest": bundles,
    "checkpoint": checkpoints,
    "calibration": caches,
}
TARGETS: Mapping[str, Callable[[Random, str | None, Mapping[str, bytes]], Case]] = {
    "picture": _picture,
    "bundle": _bundle,
    "manifest": _manifest,
    "checkpoint": _checkpoint,
    "calibration": _calibration,
}
