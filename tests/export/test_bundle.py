"""Writing a bundle: what it was or what it is to become, at every moment and after every failure."""

import errno
import os
import stat
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import filelock
import pytest

from pcsr.export import bundle as writer
from pcsr.export import locks
from pcsr.export.bundle import Contents, commit, locked, sweep, target_state
from pcsr.export.pipeline import export_bundle
from pcsr.runtime.bundle import Bundle, read_bundle
from pcsr.runtime.errors import BundleError

Forked = Callable[..., BaseProcess]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by relative name, hidden ones too, lock files apart."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def contents(bundle: Bundle, **changes: object) -> Contents:
    """What the export would write to get this bundle."""
    manifest = bundle.manifest
    names = ("network", "normalisation", "halo", "working_bytes", "cost", "provenance")
    parts = {
        "fields": {name: getattr(manifest, name) for name in names},
        "weights": bundle.read(manifest.weights),
        "sample": bundle.sample(),
        "graphs": {p: {n: bundle.read(e) for n, e in g.items()} for p, g in manifest.graphs.items()},
        "kept": {},
    }
    return Contents(**(parts | changes))


@pytest.fixture(scope="module")
def one(small_bundle: Path) -> Contents:
    return contents(read_bundle(small_bundle))


@pytest.fixture(scope="module")
def other(three_class_bundle: Path) -> Contents:
    return contents(read_bundle(three_class_bundle))


@pytest.fixture(params=["absent", "empty", "bundle"])
def target(request: pytest.FixtureRequest, tmp_path: Path, other: Contents) -> Path:
    """Each kind of place that a bundle may be written to."""
    path = tmp_path / "bundle"
    match request.param:
        case "empty":
            path.mkdir()
        case "bundle":
            commit(path, other, replace=False)
    assert target_state(path) == request.param
    return path


def test_names_are_the_hashes_of_contents(tmp_path: Path, one: Contents, small_bundle: Path) -> None:
    bundle = commit(tmp_path / "bundle", one, replace=False)
    assert tree(tmp_path) == {f"bundle/{name}": content for name, content in tree(small_bundle).items()}
    manifest = bundle.manifest
    entries = [manifest.weights, manifest.sample, *(e for g in manifest.graphs.values() for e in g.values())]
    assert all(entry.sha256[:12] in entry.path for entry in entries)
    assert {"manifest.json", *(entry.path for entry in entries)} == set(tree(small_bundle))


def test_a_replaced_bundle_keeps_nothing_of_ours_and_everything_of_others(
    tmp_path: Path, one: Contents, other: Contents
) -> None:
    path = tmp_path / "bundle"
    commit(path, one, replace=False)
    others = {"README.txt": b"notes", "graphs/notes.txt": b"more", ".foo.partial": b"theirs"}
    for name, content in others.items():
        (path / name).write_bytes(content)
    (path / "engines" / "gpu").mkdir(parents=True)
    (path / "engines" / "gpu" / "backbone.plan").write_bytes(b"of the old graphs")
    commit(path, other, replace=True)
    fresh = commit(tmp_path / "fresh", other, replace=False)
    assert tree(path) == tree(fresh.path) | others


def test_engines_stay_when_graphs_stay(tmp_path: Path, one: Contents) -> None:
    path = tmp_path / "bundle"
    commit(path, one, replace=False)
    (path / "engines").mkdir()
    (path / "engines" / "plan").write_bytes(b"built here")
    commit(path, one, replace=False)
    assert (path / "engines" / "plan").read_bytes() == b"built here"


# --- failures


def writes(monkeypatch: pytest.MonkeyPatch, *, fail_at: int | str, error: BaseException) -> list[Path]:
    """Let the n-th file that is written fail, or that of a name; gives the list of those written."""
    written: list[Path] = []
    write_whole = writer.write_whole

    def failing(path: Path, content: bytes) -> None:
        if fail_at in (len(written), path.name):
            raise error
        written.append(path)
        write_whole(path, content)

    monkeypatch.setattr(writer, "write_whole", failing)
    return written


@pytest.mark.parametrize("fail_at", [*range(9), "manifest.json"])
def test_a_full_disk_leaves_what_was_there(
    monkeypatch: pytest.MonkeyPatch, target: Path, one: Contents, fail_at: int | str
) -> None:
    before, state = tree(target.parent), target_state(target)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    writes(monkeypatch, fail_at=fail_at, error=full)
    with pytest.raises(
        BundleError, match="cannot write bundle .*No space left on device; it is what it was before"
    ):
        commit(target, one, replace=True)
    assert tree(target.parent) == before
    assert target_state(target) == state


@pytest.mark.parametrize("fail_at", [0, 4, 8, "manifest.json"])
def test_ctrl_c_leaves_what_was_there(
    monkeypatch: pytest.MonkeyPatch, target: Path, one: Contents, fail_at: int | str
) -> None:
    before = tree(target.parent)
    writes(monkeypatch, fail_at=fail_at, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        commit(target, one, replace=True)
    assert tree(target.parent) == before


def test_the_manifest_is_written_last(monkeypatch: pytest.MonkeyPatch, target: Path, one: Contents) -> None:
    written = writes(monkeypatch, fail_at="nothing", error=AssertionError())
    commit(target, one, replace=True)
    assert [path.name for path in written].index("manifest.json") == len(written) - 1 >= 9


def test_a_real_write_that_stops_halfway_leaves_what_was_there(
    target: Path, checkpoint: Path, forked: Forked
) -> None:
    """The system lets no file of the process grow beyond 6000 bytes."""
    before = tree(target.parent)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))"
    process = forked(checkpoint, "-o", target, "--force", first=limit)
    process.join(60)
    assert process.exitcode == 2
    assert tree(target.parent) == before


def test_what_the_reader_would_refuse_is_not_written(target: Path, one: Contents) -> None:
    before = tree(target.parent)
    with pytest.raises(BundleError, match="contradicts itself"):
        commit(target, Contents(one.fields, one.weights, one.sample, {"fp32": {}}, {}), replace=True)
    assert tree(target.parent) == before


# --- what a killed export leaves


def test_left_overs_are_swept_and_nothing_else(target: Path, one: Contents) -> None:
    commit(target, one, replace=True)
    clean = tree(target.parent)
    left = (
        "bundle/network-0123456789ab.safetensors",
        "bundle/sample-0123456789ab.png",
        "bundle/graphs/fp32/backbone-0123456789ab.onnx",
        "bundle/graphs/int8/upsampler_1-0123456789ab.onnx",
        "bundle/graphs/fp32/.backbone-0123456789ab.onnx.0a1b2c3d.partial",
        "bundle/.manifest.json.0a1b2c3d.partial",
        ".bundle.partial/graphs/fp32/backbone-0123456789ab.onnx",
    )
    others = (
        "bundle/network.safetensors",
        "bundle/graphs/fp32/mine.onnx",
        "bundle/engines/.x.partial",
        "note",
    )
    for name in (*left, *others):
        (target.parent / name).parent.mkdir(parents=True, exist_ok=True)
        (target.parent / name).write_bytes(b"x")
    sweep(target)
    assert tree(target.parent) == clean | dict.fromkeys(others, b"x")
    assert not (target / "graphs" / "int8").exists()


def test_a_folder_with_left_overs_only_is_as_good_as_empty(tmp_path: Path, one: Contents) -> None:
    path = tmp_path / "bundle"
    (path / "graphs" / "fp32").mkdir(parents=True)
    (path / "graphs" / "fp32" / "backbone-0123456789ab.onnx").write_bytes(b"half")
    assert target_state(path) == "empty"
    commit(path, one, replace=False)
    assert not (path / "graphs" / "fp32" / "backbone-0123456789ab.onnx").exists()


def test_a_damaged_manifest_costs_no_file(tmp_path: Path, one: Contents) -> None:
    bundle = commit(tmp_path / "bundle", one, replace=False)
    (bundle.path / "manifest.json").write_text('{"format": "pcsr-bundle"')
    before = tree(tmp_path)
    assert target_state(bundle.path) == "bundle"
    sweep(bundle.path)
    assert tree(tmp_path) == before


# --- foreign places


def _file(path: Path) -> None:
    path.write_bytes(b"precious")


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "precious.txt").write_bytes(b"precious")


def _hidden(path: Path) -> None:
    path.mkdir()
    (path / ".gitkeep").touch()


def _other_manifest(path: Path) -> None:
    path.mkdir()
    (path / "manifest.json").write_text('{"name": "an app", "icons": []}')


def _subfolder(path: Path) -> None:
    (path / "data").mkdir(parents=True)


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _circle(path: Path) -> None:
    path.symlink_to(path.name)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _link_to_folder(path: Path) -> None:
    _folder(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _linked_left_over(path: Path) -> None:
    _folder(path.with_name("elsewhere"))
    path.mkdir()
    (path / "graphs").symlink_to("../elsewhere")


@pytest.mark.parametrize(
    "place",
    [
        _file, _folder, _hidden, _other_manifest, _subfolder, _dangling, _circle, _pipe, _link_to_folder,
        _linked_left_over,
    ],
)  # fmt: skip
def test_a_place_that_is_no_bundle_is_never_touched(
    tmp_path: Path, checkpoint: Path, one: Contents, place: Callable[[Path], None]
) -> None:
    target = tmp_path / "place"
    place(target)
    before, kinds = tree_of_kinds(tmp_path), target_state(target)
    assert kinds == "foreign"
    with pytest.raises(BundleError, match="exists and is no bundle; it was left untouched"):
        export_bundle(checkpoint, target, force=True)
    with pytest.raises(BundleError, match="exists and is no bundle; it was left untouched"):
        commit(target, one, replace=True)
    assert tree_of_kinds(tmp_path) == before


def tree_of_kinds(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Kind and content of everything below a folder."""
    return {
        path.relative_to(folder).as_posix(): (
            stat.S_IFMT(path.lstat().st_mode),
            path.read_bytes() if path.is_file() else b"",
        )
        for path in folder.rglob("*")
    }


def test_a_link_inside_the_bundle_leads_nothing_out(tmp_path: Path, one: Contents, other: Contents) -> None:
    bundle = commit(tmp_path / "bundle", one, replace=False)
    (bundle.path / "graphs").rename(tmp_path / "elsewhere")
    (bundle.path / "graphs").symlink_to("../elsewhere")
    before = tree(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="leads out of the bundle"):
        commit(bundle.path, other, replace=True)
    assert tree(tmp_path / "elsewhere") == before


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="needs a folder that not even root can write to")
def test_a_parent_that_cannot_be_written_to_is_an_error(checkpoint: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot write to /sys: .*; choose another place with -o"):
        export_bundle(checkpoint, Path("/sys/bundle"))


def test_a_parent_that_is_a_file_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=r"cannot (write to|look at) .*; choose another place with -o"):
        export_bundle(checkpoint, tmp_path / "file" / "bundle")


def test_a_name_too_long_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="File name too long"):
        export_bundle(checkpoint, tmp_path / ("x" * 254))
    assert list(tmp_path.iterdir()) == []


# --- the lock


def test_an_export_waits_for_another_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(writer, "LOCK_SECONDS", 0.1)
    caplog.set_level("INFO", logger="pcsr")
    with (
        filelock.FileLock(tmp_path / ".bundle.lock"),
        pytest.raises(BundleError, match="another export has held .* wait for it or end it"),
        locked(tmp_path / "bundle"),
    ):
        pytest.fail("entered while another held the lock")
    assert "waiting for another export" in caplog.text
    with locked(tmp_path / "bundle"):
        assert (tmp_path / ".bundle.lock").exists()


def test_an_error_inside_the_lock_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="inner"), locked(tmp_path / "bundle"):
        raise PermissionError("inner")


@pytest.mark.parametrize("precisions", [("fp32,fp16", "fp32,fp16"), ("fp32", "fp16")], ids="|".join)
def test_two_exports_at_once_both_end_well(
    checkpoint: Path, tmp_path: Path, forked: Forked, precisions: tuple[str, str]
) -> None:
    target = tmp_path / "bundle"
    exports = [forked(checkpoint, "-o", target, "--precision", wanted) for wanted in precisions]
    for process in exports:
        process.join(60)
    assert [process.exitcode for process in exports] == [0, 0]
    alone = export_bundle(checkpoint, tmp_path / "alone").bundle
    assert tree(target) == tree(alone.path)
