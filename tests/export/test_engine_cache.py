"""Engines as a cache, with engines that TensorRT-RTX really builds: kept, rebuilt, locked, never half there."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import psutil
import pytest
from onnx import TensorProto, helper

from pcsr.export import locks
from pcsr.export.pipeline import export_bundle
from pcsr.export.tensorrt import cache, worker
from pcsr.export.tensorrt.cache import LOCK, build_engines
from pcsr.export.tensorrt.plan import wanted_engines
from pcsr.export.tensorrt.profiles import Sizes
from pcsr.export.tensorrt.request import Request
from pcsr.export.tensorrt.worker import build_in_child
from pcsr.runtime import shipped_bundle
from pcsr.runtime.backends.engines import Identity, Range, Tuning, read_engine
from pcsr.runtime.bundle import Bundle, read_bundle
from pcsr.runtime.errors import BackendError

COMMAND = Path(sys.executable).with_name("pcsr-export")


def request(**changes: Any) -> Request:
    asked = Request(
        flavours=("tensorrt-rtx",),
        build=True,
        compare=False,
        ahead=("8.6", "8.9"),
        sizes=Sizes(),
        tuning=Tuning(),
        engine_cache=None,
    )
    return dataclasses.replace(asked, **changes)


def wanted(bundle: Bundle, **changes: Any) -> list[Identity]:
    """The classifier alone: the graph that builds fastest."""
    identities = wanted_engines(bundle, request(**changes), "tensorrt-rtx", ["fp16"])
    return [identity for identity in identities if identity.graph == "classifier"]


@pytest.fixture(scope="module")
def built(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the classifier's engine."""
    folder = tmp_path_factory.mktemp("built") / "engines"
    (outcome,) = build_engines(bundle := read_bundle(small_bundle), wanted(bundle), folder)
    assert outcome.reason == "there is none yet"
    return folder


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Bundle:
    return read_bundle(shutil.copytree(small_bundle, tmp_path / "bundle"))


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of the folder that a test may change."""
    return shutil.copytree(built, tmp_path / "engines")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOCK}


def test_what_fits_is_kept_byte_for_byte(bundle: Bundle, folder: Path) -> None:
    before = files(folder)
    (outcome,) = build_engines(bundle, wanted(bundle), folder)
    assert outcome.reason is None
    assert files(folder) == before
    assert len(before) == 2


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("plan", lambda content: content[:-1], "bytes and should have"),
        ("plan", lambda content: content[:-1] + b"!", "was changed or damaged"),
        ("plan", lambda content: None, "No such file"),
        ("json", lambda content: content[:-9], "is damaged"),
        ("json", lambda content: content.replace(b'"1.7', b'"1.8'), "was changed"),
    ],
    ids=["cut short", "changed", "gone", "description cut", "description changed"],
)
def test_a_damaged_engine_is_built_anew_and_the_damage_named(
    bundle: Bundle, folder: Path, file: str, damage: Callable[[bytes], bytes | None], reason: str
) -> None:
    (path,) = folder.glob(f"*.{file}")
    content = damage(path.read_bytes())
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    (outcome,) = build_engines(bundle, wanted(bundle), folder)
    assert outcome.reason is not None
    assert reason in outcome.reason
    assert len(read_engine(outcome.engine.path.with_suffix(".json")).read()) > 100_000
    assert len(files(folder)) == 2


def disguise(folder: Path, **changes: Any) -> Path:
    """Make of the engine that is there another one, as if built elsewhere."""
    (description,) = folder.glob("*.json")
    found = read_engine(description)
    identity = msgspec.structs.replace(found.identity, **changes)
    described = msgspec.structs.replace(found.description, identity=identity)
    found.path.rename(folder / f"{identity.stem}.plan")
    description.unlink()
    (folder / f"{identity.stem}.json").write_bytes(msgspec.json.encode(described))
    return folder / f"{identity.stem}.plan"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"graph_sha256": "0" * 64}, "has graph_sha256 000000000000"),
        ({"flavour": "tensorrt"}, "has flavour tensorrt, wanted is tensorrt-rtx"),
        ({"version": "1.6.0"}, "has version 1.6.0, wanted is 1.7.1.116"),
        ({"platform": "linux-aarch64"}, "has platform linux-aarch64"),
        ({"compute_capabilities": ("12.0",)}, "has compute_capabilities 12.0, wanted is 8.6, 8.9"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_foreign_engine_stays_beside_the_new_one_and_its_field_is_named(
    bundle: Bundle, folder: Path, changes: dict[str, Any], reason: str
) -> None:
    foreign = disguise(folder, **changes)
    (outcome,) = build_engines(bundle, wanted(bundle), folder)
    assert outcome.reason is not None
    assert outcome.reason.startswith(f"{foreign.name} {reason}")
    assert foreign.exists()
    assert outcome.engine.path.exists()


@pytest.mark.parametrize(
    "changes",
    [{"sizes": Sizes(points=1 << 14)}, {"tuning": Tuning(workspace=1 << 32)}],
    ids=["shapes", "options"],
)
def test_other_shapes_or_options_replace_the_old_engine(
    bundle: Bundle, folder: Path, changes: dict[str, Any]
) -> None:
    (outcome,) = build_engines(bundle, wanted(bundle, **changes), folder)
    assert outcome.reason is not None
    assert "has other profiles" in outcome.reason or "has tuning " in outcome.reason
    assert set(files(folder)) == {outcome.engine.path.name, outcome.engine.path.with_suffix(".json").name}


def test_an_engine_for_more_gpus_than_wanted_is_kept(bundle: Bundle, folder: Path) -> None:
    (outcome,) = build_engines(bundle, wanted(bundle, ahead=("8.9",)), folder)
    assert outcome.reason is None
    assert outcome.engine.identity.compute_capabilities == ("8.6", "8.9")


def test_what_killed_builders_left_is_swept_and_nothing_else(bundle: Bundle, folder: Path) -> None:
    (plan,) = folder.glob("*.plan")
    swept = [f".{plan.name}.0123abcd.partial", "backbone-fp32-0123456789ab.plan"]
    others = ["notes.txt", ".foo.partial", "backbone.plan", "other-fp32-0123456789ab.json"]
    for name in (*swept, *others):
        (folder / name).write_bytes(b"x")
    build_engines(bundle, wanted(bundle), folder)
    assert not any((folder / name).exists() for name in swept)
    assert all((folder / name).exists() for name in others)


def test_engines_of_graphs_that_a_bundle_has_no_more_go_from_its_own_folder_only(
    bundle: Bundle, folder: Path
) -> None:
    stale = disguise(folder, graph_sha256="0" * 64)
    own = shutil.copytree(folder, bundle.path / "engines")
    build_engines(bundle, [], own)
    assert files(own) == {}
    build_engines(bundle, [], folder)
    assert stale.exists()


def test_an_export_leaves_engines_and_what_a_builder_is_writing(single: Path, tmp_path: Path) -> None:
    target = shutil.copytree(single, tmp_path / "bundle")
    (target / "engines").mkdir()
    names = (LOCK, "backbone-fp32-0123456789ab.plan", ".backbone-fp32-0123456789ab.plan.0123abcd.partial")
    for name in names:
        (target / "engines" / name).write_bytes(b"x")
    export_bundle(target, target)
    assert {path.name for path in (target / "engines").iterdir()} == set(names)


# --- what can go wrong


def test_a_gpu_that_is_unknown_is_refused_and_nothing_is_left(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(
        BackendError, match=r"builds nothing for compute capability 9.0, only for 7.5, .*12.0"
    ):
        build_engines(bundle, wanted(bundle, ahead=("9.0",)), tmp_path / "engines")
    assert files(tmp_path / "engines") == {}


def test_too_little_workspace_says_which_option(tmp_path: Path) -> None:
    carn = read_bundle(shipped_bundle("carn"))
    identities = wanted_engines(carn, request(tuning=Tuning(workspace=1 << 20)), "tensorrt-rtx", ["fp16"])
    with pytest.raises(BackendError, match="cannot build graph upsampler_1: .*raise --workspace"):
        build_engines(carn, identities[-1:], tmp_path / "engines")


def test_another_builder_is_waited_for_but_not_for_ever(
    bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(cache, "LOCK_SECONDS", 0.2)
    # As another process holds it: this one's own lock would let it pass.
    program = (
        "import filelock, sys, time\n"
        "with filelock.FileLock(sys.argv[1]):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, folder / LOCK], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(BackendError, match=r"another builder has held .*engines for 0.2 s"):
            build_engines(bundle, wanted(bundle), folder)
        holder.kill()
    build_engines(bundle, wanted(bundle), folder)


def test_a_folder_that_cannot_be_made_says_what_to_do(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BackendError, match=r"cannot write to .*name another folder with --engine-cache"):
        build_engines(bundle, wanted(bundle), tmp_path / "file" / "engines")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"crashed \(signal 11\)"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "was killed, as a rule because memory ran out",
        ),
        ("raise SystemExit('a library is missing')", "failed: a library is missing"),
        ("pass", "failed: it said nothing"),
        ("import sys; sys.stderr.write('x\\n' * 500_000); sys.exit('the end')", "failed: the end"),
    ],
    ids=["crash", "memory", "error", "nothing", "many words"],
)
def test_a_builder_that_dies_is_one_clear_error(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    monkeypatch.setattr(worker, "COMMAND", program)
    with pytest.raises(BackendError, match=f"building graph classifier with tensorrt-rtx .*{reason}"):
        build_engines(bundle, wanted(bundle), tmp_path / "engines")
    assert files(tmp_path / "engines") == {}


def test_a_graph_that_is_not_supported_is_refused_by_its_node(bundle: Bundle, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"], name="first"),
        helper.make_node("NonZero", ["y"], ["z"], name="the_second"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    z = helper.make_tensor_value_info("z", TensorProto.INT64, [1, "m"])
    graph = helper.make_graph(nodes, "odd", [x], [z])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    odd = msgspec.structs.replace(wanted(bundle)[0], profiles=({"x": Range(min=(1,), opt=(2,), max=(9,))},))
    with pytest.raises(BackendError) as caught:
        build_in_child(model.SerializeToString(), odd, tmp_path / "plan")
    assert "does not take graph classifier: node the_second (NonZero): " in str(caught.value)
    assert str(caught.value).endswith("Polygraphy's report names the_second (NonZero)")
    assert not (tmp_path / "plan").exists()


def test_progress_rises_to_one(bundle: Bundle, tmp_path: Path) -> None:
    shares: list[float] = []
    (identity,) = wanted(bundle)
    model = bundle.read(bundle.graphs("fp16")["classifier"])
    build_in_child(model, identity, tmp_path / "plan", progress=shares.append)
    assert len(shares) > 20
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


# --- processes


def start(bundle: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [COMMAND, bundle, "--trt-rtx", "--for", "8.6,8.9,12.0", *arguments]
    return subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def builders(folder: Path) -> list[psutil.Process]:
    """Child processes that build into a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(folder) in part for part in process.cmdline()) and "worker" in process.cmdline()[3]:
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return found


def await_builder(folder: Path) -> None:
    end = time.monotonic() + 60
    while not builders(folder):
        assert time.monotonic() < end
        time.sleep(0.01)


def assert_whole(folder: Path, count: int) -> None:
    names = set(files(folder))
    assert len(names) == 2 * count
    for description in folder.glob("*.json"):
        read_engine(description).read()


@pytest.mark.slow
def test_two_builders_at_once_share_the_work(bundle: Bundle) -> None:
    both = [start(bundle.path, "--precision", "fp16") for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    first = sorted(out.splitlines()[0].partition(": ")[2] for out, _ in said)
    assert first == ["built 0 engines, kept 4", "built 4 engines, kept 0"]
    assert_whole(bundle.path / "engines", 4)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_builder_leaves_nothing(bundle: Bundle, number: int, status: int) -> None:
    process = start(bundle.path, "--precision", "fp32")
    folder = bundle.path / "engines"
    await_builder(folder)
    process.send_signal(number)
    out, said = process.communicate(timeout=30)
    assert process.returncode == status, said
    assert (out, said.splitlines()[-1]) == ("", "interrupted")
    # A child that was being started is not killed: it finds nobody there, and goes.
    end = time.monotonic() + 20
    while builders(folder):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert files(folder) == {}


@pytest.mark.slow
def test_a_killed_builder_is_tidied_up_after(bundle: Bundle) -> None:
    process = start(bundle.path, "--precision", "fp32")
    folder = bundle.path / "engines"
    await_builder(folder)
    process.kill()
    process.communicate(timeout=30)
    again = start(bundle.path, "--precision", "fp32")
    again.communicate(timeout=120)
    assert again.returncode == 0
    assert_whole(folder, 4)
    # The child of the killed one found nobody to answer to and ended too.
    psutil.wait_procs(builders(folder), timeout=30)
    assert_whole(folder, 4)
