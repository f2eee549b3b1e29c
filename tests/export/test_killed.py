"""SIGKILL at random moments: the target is what it was or what it was to become, and a second run finishes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from pcsr.export.bundle import target_state
from pcsr.export.pipeline import export_bundle
from pcsr.runtime.bundle import read_bundle

Forked = Callable[..., BaseProcess]
COMMAND = Path(sys.executable).with_name("pcsr-export")
# Longer than writing a small bundle takes.
WRITING_SECONDS = 0.03


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by relative name, hidden ones too, lock files apart."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def old(other_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that is to be replaced."""
    return export_bundle(other_checkpoint, tmp_path_factory.mktemp("old") / "bundle").bundle.path


@pytest.fixture(scope="module")
def new(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that is to be there in the end."""
    return export_bundle(checkpoint, tmp_path_factory.mktemp("new") / "bundle").bundle.path


def prepare(target: Path, state: str, old: Path) -> None:
    """Make the place as it is before the export."""
    shutil.rmtree(target.parent, ignore_errors=True)
    target.parent.mkdir()
    match state:
        case "empty":
            target.mkdir()
        case "bundle":
            shutil.copytree(old, target)


def assert_whole(target: Path, state: str, old: Path, new: Path) -> None:
    """What was there before, or the new bundle; every file of a bundle is what its manifest says."""
    found = target_state(target)
    if found != "bundle":
        assert found == state
        return
    bundle = read_bundle(target)
    manifest = bundle.manifest
    for entry in (
        manifest.weights,
        manifest.sample,
        *(e for g in manifest.graphs.values() for e in g.values()),
    ):
        bundle.read(entry)
    expected = [new / "manifest.json"] + ([old / "manifest.json"] if state == "bundle" else [])
    assert (target / "manifest.json").read_bytes() in [path.read_bytes() for path in expected]


def await_file(path: Path, process: BaseProcess) -> None:
    """Until the file is there or the process has ended."""
    while not path.exists() and process.is_alive():
        time.sleep(0.0005)


def await_writing(target: Path, process: BaseProcess) -> None:
    """Until the process writes its first file."""
    before = set(target.parent.rglob("*"))
    while process.is_alive() and not any(
        path.suffix != ".lock" for path in set(target.parent.rglob("*")) - before
    ):
        time.sleep(0.0005)


@pytest.mark.parametrize("state", ["absent", "empty", "bundle"])
def test_killed_at_random_moments_nothing_is_half_written_and_the_command_finishes(
    tmp_path: Path, forked: Forked, checkpoint: Path, old: Path, new: Path, state: str
) -> None:
    target, started = tmp_path / "place" / "bundle", tmp_path / "started"
    arguments = (checkpoint, "-o", target, "--force")
    say = f"import pathlib; pathlib.Path({str(started)!r}).touch()"

    def finish() -> float:
        """Run the command to its end; how long it took."""
        started.unlink(missing_ok=True)
        process = forked(*arguments, first=say)
        await_file(started, process)
        begin = time.monotonic()
        process.join(60)
        assert process.exitcode == 0
        assert tree(target.parent) == {f"bundle/{name}": content for name, content in tree(new).items()}
        return time.monotonic() - begin

    prepare(target, state, old)
    duration = finish()
    for where in ("anywhere", "writing"):
        prepare(target, state, old)
        started.unlink()
        process = forked(*arguments, first=say)
        await_file(started, process)
        if where == "writing":
            await_writing(target, process)
        time.sleep(random.uniform(0, duration if where == "anywhere" else WRITING_SECONDS))
        process.kill()
        process.join(60)
        assert_whole(target, state, old, new)
        finish()


@pytest.mark.slow
def test_the_command_killed_at_25_moments_finishes_when_run_again(
    tmp_path: Path, checkpoint: Path, old: Path, new: Path
) -> None:
    target = tmp_path / "place" / "bundle"
    command = [COMMAND, checkpoint, "-o", target, "--force"]
    prepare(target, "absent", old)
    begin = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    duration = time.monotonic() - begin
    for attempt in range(25):
        state = ("absent", "empty", "bundle")[attempt % 3]
        prepare(target, state, old)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            # Half of them where checking ends and writing begins.
            time.sleep(random.uniform(0.6 * duration if attempt % 2 else 0, 1.02 * duration))
            process.send_signal(signal.SIGKILL)
        assert_whole(target, state, old, new)
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert tree(target.parent) == {f"bundle/{name}": content for name, content in tree(new).items()}


def test_ctrl_c_ends_with_its_status_and_leaves_nothing(
    tmp_path: Path, forked: Forked, checkpoint: Path
) -> None:
    target, started = tmp_path / "place" / "bundle", tmp_path / "started"
    target.parent.mkdir()
    # The signal comes where the graphs are checked, which is where most of the time goes.
    first = (
        "import pathlib, time; from pcsr.export import pipeline\n"
        "build = pipeline.build_graphs\n"
        "def slow(*arguments, **options):\n"
        f"    pathlib.Path({str(started)!r}).touch(); time.sleep(30)\n"
        "pipeline.build_graphs = slow"
    )
    process = forked(checkpoint, "-o", target, first=first)
    await_file(started, process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(20)
    assert process.exitcode == 130
    assert tree(target.parent) == {}
    assert not target.exists()
