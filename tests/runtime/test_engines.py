"""Engine files are a cache and come from outside: read with suspicion, chosen by what they say they fit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pcsr.runtime import shipped_bundle
from pcsr.runtime.backends.engine_search import (
    Machine,
    build_folder,
    default_cache,
    engine_folders,
    find_engines,
    machine_platform,
)
from pcsr.runtime.backends.engines import Description, Identity, Range, Tuning, read_engine
from pcsr.runtime.bundle import Bundle, read_bundle
from pcsr.runtime.errors import BackendError

PLAN = b"not a plan, but nobody deserialises it before it was checked"
FULL = Machine("tensorrt", "10.16.1.11", "linux-x86_64", "9.0", "NVIDIA H100")
RTX = Machine("tensorrt-rtx", "1.7.1.116", "linux-x86_64", "8.9", "")
SHAPE = Range(min=(1,), opt=(2,), max=(3,))


def identity(bundle: Bundle, graph: str, machine: Machine, **changes: Any) -> Identity:
    """An engine of a graph that fits a machine."""
    fits = Identity(
        graph=graph,
        precision="fp16",
        graph_sha256=bundle.graphs("fp16")[graph].sha256,
        flavour=machine.flavour,
        version=machine.version,
        platform=machine.platform,
        compute_capabilities=(machine.compute_capability,),
        gpu=machine.gpu,
        profiles=({"lr": SHAPE},),
        tuning=Tuning(),
    )
    return msgspec.structs.replace(fits, **changes)


def write(folder: Path, what: Identity, plan: bytes = PLAN) -> Path:
    folder.mkdir(exist_ok=True)
    described = Description(identity=what, bytes=len(plan), sha256=hashlib.sha256(plan).hexdigest())
    (folder / f"{what.stem}.plan").write_bytes(plan)
    (folder / f"{what.stem}.json").write_bytes(msgspec.json.encode(described))
    return folder / f"{what.stem}.json"


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Bundle:
    return read_bundle(shutil.copytree(small_bundle, tmp_path / "bundle"))


@pytest.fixture
def fill(bundle: Bundle) -> Callable[..., None]:
    """A function that writes an engine of every graph into the bundle's folder."""

    def write_all(machine: Machine = FULL, folder: str = "engines", **changes: Any) -> None:
        for graph in bundle.graphs("fp16"):
            write(bundle.path / folder, identity(bundle, graph, machine, **changes))

    return write_all


# --- files


def test_an_engine_is_read_as_it_was_written(bundle: Bundle, tmp_path: Path) -> None:
    what = identity(bundle, "backbone", FULL)
    engine = read_engine(write(tmp_path / "engines", what))
    assert engine.identity == what
    assert engine.read() == PLAN
    assert engine.path.name == f"backbone-fp16-{what.stem[-12:]}.plan"


def test_the_name_is_the_hash_of_everything_that_is_said(bundle: Bundle) -> None:
    what = identity(bundle, "backbone", FULL)
    others = {
        "precision": "fp32",
        "graph_sha256": "0" * 64,
        "flavour": "tensorrt-rtx",
        "version": "10.17",
        "platform": "linux-aarch64",
        "compute_capabilities": ("9.0", "10.0"),
        "gpu": "NVIDIA H200",
        "profiles": ({"lr": Range(min=(1,), opt=(2,), max=(4,))},),
        "tuning": Tuning(opt_level=3),
        "graph": "classifier",
    }
    fields = set(Identity.__struct_fields__) - {"format", "format_version"}
    assert fields == set(others)
    stems = {msgspec.structs.replace(what, **{name: value}).stem for name, value in others.items()}
    assert len(stems | {what.stem}) == len(others) + 1
    # Another program finds the same name: canonical JSON, keys sorted, no spaces.
    canonical = json.dumps(msgspec.to_builtins(what), sort_keys=True, separators=(",", ":"))
    assert what.stem.endswith(hashlib.sha256(canonical.encode()).hexdigest()[:12])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda plan: plan[:-1], "has 59 bytes and should have 60"),
        (lambda plan: plan + b"!", "has 61 bytes and should have 60"),
        (lambda plan: plan[:-1] + b"!", "was changed or damaged"),
        (lambda plan: None, "cannot read .*No such file"),
    ],
    ids=["cut", "longer", "changed", "gone"],
)
def test_a_plan_that_is_not_the_described_one_is_refused(
    bundle: Bundle, tmp_path: Path, damage: Callable[[bytes], bytes | None], reason: str
) -> None:
    engine = read_engine(write(tmp_path / "engines", identity(bundle, "backbone", FULL)))
    content = damage(PLAN)
    if content is None:
        engine.path.unlink()
    else:
        engine.path.write_bytes(content)
    with pytest.raises(BackendError, match=f"{reason}.*anew"):
        engine.read()


@pytest.mark.parametrize("file", ["json", "plan"])
def test_a_pipe_is_not_waited_for(bundle: Bundle, tmp_path: Path, file: str) -> None:
    description = write(tmp_path / "engines", identity(bundle, "backbone", FULL))
    path = description.with_suffix(f".{file}")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BackendError, match="not a regular file"):
        read_engine(description).read()


def change(where: str, value: object) -> Callable[[dict[str, Any]], object]:
    def apply(content: dict[str, Any]) -> None:
        *path, last = where.split(".")
        for part in path:
            content = content[part]
        content[last] = value

    return apply


@pytest.mark.parametrize(
    "apply",
    [
        change("identity.format", "other"),
        change("identity.format_version", 2),
        change("identity.graph", "../../etc/passwd"),
        change("identity.precision", "int4"),
        change("identity.graph_sha256", "0"),
        change("identity.flavour", "tensorrt-lite"),
        change("identity.version", "10\x1b[2J"),
        change("identity.gpu", "x" * 300),
        change("identity.compute_capabilities", []),
        change("identity.compute_capabilities", ["sm_90"]),
        change("identity.profiles", []),
        change("identity.profiles", [{"lr": {"min": [2], "opt": [1], "max": [3]}}]),
        change("identity.profiles", [{"lr": {"min": [1], "opt": [1], "max": [3, 3]}}]),
        change("identity.profiles", [{"lr": {"min": [0], "opt": [1], "max": [3]}}]),
        change("identity.profiles", [{"lr": {"min": [1], "opt": [1], "max": [1 << 40]}}]),
        change("identity.profiles", [{"\x1b[2J": {"min": [1], "opt": [1], "max": [1]}}]),
        change("identity.tuning.opt_level", 9),
        change("identity.more", 1),
        change("bytes", 0),
        change("bytes", 1 << 40),
        change("sha256", "F" * 64),
        change("\x1b[2J", 1),
    ],
)
def test_a_description_that_breaks_a_rule_is_refused(
    bundle: Bundle, tmp_path: Path, apply: Callable[[dict[str, Any]], object]
) -> None:
    description = write(tmp_path / "engines", identity(bundle, "backbone", FULL))
    content = json.loads(description.read_text())
    apply(content)
    description.write_text(json.dumps(content))
    with pytest.raises(BackendError, match=r"is damaged \(.*build the engine anew") as caught:
        read_engine(description)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"[" * 60_000, "is damaged"),
        (b" " * (1 << 16) + b"{}", "is larger than 65536 bytes"),
    ],
)
def test_what_is_no_description_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "backbone-fp16-000000000000.json").write_bytes(content)
    with pytest.raises(BackendError, match=reason):
        read_engine(tmp_path / "backbone-fp16-000000000000.json")


def test_a_description_under_another_name_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    description = write(tmp_path / "engines", identity(bundle, "backbone", FULL))
    renamed = description.rename(description.with_name("backbone-fp16-000000000000.json"))
    with pytest.raises(BackendError, match="its name is not its content's"):
        read_engine(renamed)


# --- the choice


@pytest.mark.parametrize("machine", [FULL, RTX], ids=["tensorrt", "tensorrt-rtx"])
def test_engines_that_fit_are_found(bundle: Bundle, fill: Callable[..., None], machine: Machine) -> None:
    fill(machine)
    found = find_engines(bundle, "fp16", machine, folders=[bundle.path / "engines"])
    assert set(found) == set(bundle.graphs("fp16"))
    assert all(engine.identity.graph == graph for graph, engine in found.items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"graph_sha256": "0" * 64, "gpu": "NVIDIA A10"}, r"another graph \(graph_sha256\)"),
        ({"flavour": "tensorrt-rtx", "gpu": "NVIDIA A10"}, r"of tensorrt-rtx, not of tensorrt \(flavour\)"),
        ({"version": "10.17"}, r"built by version 10.17, here is 10.16.1.11 \(version\)"),
        ({"platform": "linux-aarch64"}, r"for linux-aarch64, this is linux-x86_64 \(platform\)"),
        (
            {"compute_capabilities": ("8.6",)},
            r"capability 8.6, this GPU is NVIDIA H100 \(9.0\) \(compute_cap",
        ),
        ({"gpu": "NVIDIA H200"}, r"built on NVIDIA H200, this GPU is NVIDIA H100 \(9.0\) \(gpu\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_does_not_fit_is_refused_by_its_first_field_with_the_command(
    bundle: Bundle, fill: Callable[..., None], changes: dict[str, Any], words: str
) -> None:
    fill(**changes)
    with pytest.raises(BackendError, match=words) as caught:
        find_engines(bundle, "fp16", FULL, folders=[bundle.path / "engines"])
    assert "no engine of fp16 graph backbone fits: " in str(caught.value)
    assert str(caught.value).endswith(f"pcsr-export {bundle.path} --trt --precision fp16")


def test_the_nearest_engine_is_the_one_that_is_named(bundle: Bundle, fill: Callable[..., None]) -> None:
    fill(version="10.15")
    fill(gpu="NVIDIA H200")
    fill(flavour="tensorrt-rtx")
    with pytest.raises(BackendError, match="built on NVIDIA H200"):
        find_engines(bundle, "fp16", FULL, folders=[bundle.path / "engines"])


def test_no_engine_at_all_names_the_folders_and_the_command(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BackendError) as caught:
        find_engines(bundle, "fp16", RTX, folders=[bundle.path / "engines", tmp_path / "cache"])
    assert f"there is none in {bundle.path / 'engines'} nor {tmp_path / 'cache'}" in str(caught.value)
    assert str(caught.value).endswith(f"pcsr-export {bundle.path} --trt-rtx --precision fp16")
    with pytest.raises(BackendError, match=f"--engine-cache {tmp_path / 'cache'}$"):
        find_engines(bundle, "fp16", RTX, folders=[tmp_path / "cache"])


def test_a_damaged_engine_is_named_before_foreign_ones(bundle: Bundle, fill: Callable[..., None]) -> None:
    fill()
    fill(gpu="NVIDIA H200")
    for plan in (bundle.path / "engines").glob("classifier-*.plan"):
        plan.write_bytes(PLAN[:-1] + b"!")
    with pytest.raises(BackendError, match=r"classifier fits: .*classifier.*was changed or damaged.*--trt"):
        find_engines(bundle, "fp16", FULL, folders=[bundle.path / "engines"])


def test_a_damaged_engine_does_not_hide_a_whole_one(bundle: Bundle, fill: Callable[..., None]) -> None:
    fill(folder="cache")
    shutil.copytree(bundle.path / "cache", bundle.path / "engines")
    for plan in (bundle.path / "engines").glob("*.plan"):
        plan.write_bytes(b"")
    found = find_engines(bundle, "fp16", FULL, folders=[bundle.path / "engines", bundle.path / "cache"])
    assert {engine.path.parent.name for engine in found.values()} == {"cache"}


def test_an_engine_for_all_gpus_fits_others_but_one_of_its_own_is_preferred(
    bundle: Bundle, fill: Callable[..., None]
) -> None:
    folders = [bundle.path / "engines"]
    everywhere = Tuning(hardware_compat=True)
    fill(gpu="NVIDIA A10", compute_capabilities=("8.6",), tuning=everywhere)
    assert find_engines(bundle, "fp16", FULL, folders=folders)["backbone"].identity.gpu == "NVIDIA A10"
    old = Machine("tensorrt", FULL.version, FULL.platform, "7.5", "Tesla T4")
    with pytest.raises(BackendError, match="compute_capabilities"):
        find_engines(bundle, "fp16", old, folders=folders)
    fill()
    assert find_engines(bundle, "fp16", FULL, folders=folders)["backbone"].identity.gpu == "NVIDIA H100"


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        ("10.3.0", "10.16.1", True),
        ("10.16.1", "10.3.0", False),
        ("8.6.1", "10.16.1", True),
        ("10.16.1", "11.4.0", True),
        ("8.6.1", "11.4.0", False),
    ],
)
def test_version_compatible_engines_fit_later_versions(
    bundle: Bundle, fill: Callable[..., None], built: str, here: str, fits: bool
) -> None:
    machine = Machine("tensorrt", here, FULL.platform, FULL.compute_capability, FULL.gpu)
    folders = [bundle.path / "engines"]
    fill(version=built)
    with pytest.raises(BackendError, match="version"):
        find_engines(bundle, "fp16", machine, folders=folders)
    fill(version=built, tuning=Tuning(version_compat=True))
    if fits:
        assert find_engines(bundle, "fp16", machine, folders=folders)
    else:
        with pytest.raises(BackendError, match="version"):
            find_engines(bundle, "fp16", machine, folders=folders)


def test_engines_made_for_fewer_gpus_are_preferred(bundle: Bundle, fill: Callable[..., None]) -> None:
    fill(RTX, compute_capabilities=("8.6", "8.9", "12.0"))
    fill(RTX, compute_capabilities=("8.9",))
    found = find_engines(bundle, "fp16", RTX, folders=[bundle.path / "engines"])
    assert found["backbone"].identity.compute_capabilities == ("8.9",)


# --- folders


def test_engines_lie_in_the_bundle_or_in_the_users_cache(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own, users = bundle.path / "engines", default_cache()
    assert users.name == "engines"
    assert engine_folders(bundle) == (own, users)
    assert build_folder(bundle) == own
    assert engine_folders(bundle, tmp_path) == (tmp_path,)
    assert build_folder(bundle, tmp_path) == tmp_path
    # What is installed is not changed, even where it could be.
    assert build_folder(read_bundle(shipped_bundle())) == users
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert build_folder(bundle) == users


def test_the_platform_is_that_of_plans() -> None:
    assert machine_platform().partition("-")[0] in ("linux", "windows", "darwin")
