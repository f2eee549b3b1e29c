"""Disks that are full or read-only, what killed runs leave, and every name that a file can have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from pcsr.runtime import Upscaler
from pcsr.runtime.errors import DiskError
from pcsr.runtime.files import FileWork
from pcsr.runtime.folder.journal import JOURNAL
from pcsr.runtime.pictures import read_picture, write_picture

Command = Callable[..., Result]
Photo = Callable[..., Any]
FolderOf = Callable[..., Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A function that mounts a small disk on a new folder, or changes it."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        how = "remount," if place.is_mount() else ""
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"{how}{options}", "tmpfs", place],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.decode().strip()}")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", "-l", place], check=True)


def assert_whole(source: Path, out: Path, upscaler: Upscaler) -> int:
    """Every picture in the output folder is complete and nothing else is there; how many there are."""
    files = [path for path in out.iterdir() if path.name != JOURNAL]
    for path in files:
        expected = upscaler(read_picture(source / path.name).pixels, scale=2)
        np.testing.assert_array_equal(read_picture(path).pixels, expected.image)
    return len(files)


@pytest.mark.parametrize("options", [[], ["--resume"]])
def test_a_full_disk_stops_the_run_and_with_room_it_goes_on(
    folder_of: FolderOf,
    disk: Callable[..., Path],
    upscale: Command,
    upscaler: Upscaler,
    options: list[str],
) -> None:
    source, out = folder_of(20, h=60, w=60), disk("size=200k")
    done = upscale(source, "-o", out, *options)
    assert done.exit_code == 1
    finished = assert_whole(source, out, upscaler)
    assert 0 < finished < 17
    assert f"20 pictures: {finished} done, " in done.stderr
    assert " not tried" in done.stderr
    assert "stopped, because no other picture could be written either: cannot write" in done.stderr
    assert len(done.stdout.splitlines()) == finished

    if options:
        disk("size=20m")
        again = upscale(source, "-o", out, *options)
        assert again.exit_code == 0, again.stderr
        assert f"{20 - finished} done, {finished} done before" in again.stderr
        assert assert_whole(source, out, upscaler) == 20


def test_a_read_only_output_folder_is_refused_before_anything_is_read(
    folder_of: FolderOf, disk: Callable[..., Path], upscale: Command
) -> None:
    source, out = folder_of(2), disk("ro,size=1m")
    done = upscale(source, "-o", out)
    assert done.exit_code == 2
    assert f"{out} cannot be written to" in done.stderr


def test_a_disk_that_becomes_read_only_stops_the_run(
    folder_of: FolderOf, disk: Callable[..., Path], run_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = folder_of(8), disk("size=1m")
    run, _ = run_of(source, out)
    compute = FileWork.compute

    def late(work: FileWork, progress: Any) -> None:
        if work.request.source.name == "03.png":
            # Busy as long as another picture is being written.
            while subprocess.run(
                ["mount", "-o", "remount,ro", out], capture_output=True, check=False
            ).returncode:
                pass
        compute(work, progress)

    monkeypatch.setattr(FileWork, "compute", late)
    run.run()
    assert isinstance(run.stopped, DiskError)
    assert "Read-only file system" in str(run.stopped)
    assert run.counts["done"] == 3
    assert run.counts["not tried"] >= 2
    assert sorted(path.name for path in out.iterdir()) == ["00.png", "01.png", "02.png"]


def test_a_subfolder_that_cannot_be_made_fails_its_pictures_and_the_rest_is_done(
    nobodys: Path, photo: Photo, run_of: Any
) -> None:
    for name in ("a.png", "deep/b.png", "z.png"):
        (nobodys / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_picture(nobodys / "in" / name, photo())
    out = nobodys / "out"
    out.mkdir()
    run, heard = run_of(nobodys / "in", out)
    # After the plan was made: somebody puts a file there.
    (out / "deep").write_bytes(b"precious")
    run.run()
    assert f"cannot make the folder {out}/deep: " in str(heard.of("deep/b.png").error)
    assert (run.counts["done"], run.counts["failed"]) == (2, 1)
    assert (out / "deep").read_bytes() == b"precious"


def test_a_subfolder_that_loses_its_permission_fails_its_pictures_and_the_rest_is_done(
    nobodys: Path, photo: Photo, run_of: Any
) -> None:
    for name in ("a.png", "deep/b.png", "z.png"):
        (nobodys / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_picture(nobodys / "in" / name, photo())
    (nobodys / "out/deep").mkdir(parents=True)
    run, heard = run_of(nobodys / "in", nobodys / "out")
    (nobodys / "out/deep").chmod(0o500)
    run.run()
    assert "Permission denied; check folder, permission and space" in str(heard.of("deep/b.png").error)
    assert (run.counts["done"], run.counts["failed"]) == (2, 1)


def test_a_folder_that_cannot_be_listed_can_be_written_to(nobodys: Path, photo: Photo, run_of: Any) -> None:
    (nobodys / "in").mkdir()
    write_picture(nobodys / "in/a.png", photo())
    (nobodys / "out").mkdir()
    run, _ = run_of(nobodys / "in", nobodys / "out")
    (nobodys / "out").chmod(0o300)
    run.run()
    assert run.counts["done"] == 1


# --- what killed runs leave

KILLED = """
import os, sys, time
from pcsr.runtime.pictures import PictureWriter
encode = PictureWriter._encode
def slow(writer, file):
    encode(writer, file)
    print("encoded", flush=True)
    time.sleep(60)
PictureWriter._encode = slow
from pcsr.runtime.cli import main
main()
"""


@contextmanager
def writing(source: Path, out: Path, bundle: Path) -> Iterator[subprocess.Popen[str]]:
    """Another run over a folder, that has encoded a file and does not put it in its place."""
    command = [sys.executable, "-c", KILLED, source, "-o", out, "-b", bundle, "-s", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "encoded\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("one", [False, True])
def test_what_a_killed_run_left_goes_with_the_next_and_what_a_living_one_writes_stays(
    folder_of: FolderOf, tmp_path: Path, upscale: Command, small_bundle: Path, *, one: bool
) -> None:
    source, out = folder_of(1), tmp_path / "out"
    (source / "deep").mkdir()
    (source / "00.png").rename(source / "deep/00.png")
    with writing(source, out, small_bundle) as killed:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    (left,) = (out / "deep").iterdir()
    with writing(source, out, small_bundle):
        # It has swept the other's; its own stays.
        (living,) = (out / "deep").iterdir()
        assert living != left
        left.write_bytes(b"half")
        made = (source / "deep/00.png", "-o", out / "deep/00.png") if one else (source, "-o", out)
        done = upscale(*made)
        assert done.exit_code == 0, done.stderr
        assert "removed 1 unfinished files" in done.stderr
        assert sorted(path.name for path in (out / "deep").iterdir()) == [living.name, "00.png"]


# --- names


def test_every_name_that_a_file_can_have_is_kept(
    tmp_path: Path, photo: Photo, upscale: Command, upscaler: Upscaler
) -> None:
    long = "w" * 251 + ".png"
    wide = "写" * 83 + "ab.png"
    raw = os.fsdecode(b"caf\xe9 \xff.png")
    odd = "a\nb\t'\"$*[x]? .png"
    assert len(os.fsencode(long)) == len(os.fsencode(wide)) == 255
    source, out = tmp_path / "in", tmp_path / "out"
    names = [long, wide, raw, odd, raw.replace(" ", "/")]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        write_picture(source / name, photo())
    for expected in ("5 pictures: 5 done", "5 pictures: 5 done before"):
        done = upscale(source, "-o", out, "--json", "--resume")
        assert done.exit_code == 0, done.stderr
        assert expected in done.stderr
        assert len(done.stdout.splitlines()) == 5
    for name in names:
        assert (out / name).is_file()


def test_a_name_that_would_be_too_long_with_its_new_ending_fails_alone(
    tmp_path: Path, photo: Photo, upscale: Command
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("w" * 251 + ".bmp", "a.png"):
        write_picture(tmp_path / "in" / "x.png", photo())
        (tmp_path / "in/x.png").rename(tmp_path / "in" / name)
    done = upscale(tmp_path / "in", "-o", tmp_path / "out", "--format", "jpeg")
    assert done.exit_code == 0, done.stderr
    done = upscale(tmp_path / "in", "-o", tmp_path / "out2", "--format", "avif")
    assert done.exit_code in (1, 2)
    assert "File name too long" in done.stderr


def test_links_within_are_taken_once_and_links_out_and_loops_are_passed_over(
    tmp_path: Path, photo: Photo, upscale: Command
) -> None:
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    write_picture(tmp_path / "outside.png", photo())
    write_picture(source / "a.png", photo())
    (source / "deep/to-a.png").symlink_to("../a.png")
    (source / "deep/out.png").symlink_to(tmp_path / "outside.png")
    (source / "deep/loop").symlink_to("..")
    (source / "deep/self.png").symlink_to("self.png")
    done = upscale(source, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    made = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    assert made == {"a.png", "deep/to-a.png"}
    assert not (tmp_path / "out/deep/to-a.png").is_symlink()
    assert "1 a link out of the folder, 1 a link to a folder, 1 no regular file" in done.stderr


def test_a_file_that_stands_in_the_way_of_the_journal_ends_the_run_before_its_pictures(
    folder_of: FolderOf, tmp_path: Path, upscale: Command
) -> None:
    source, out = folder_of(1), tmp_path / "out"
    (out / JOURNAL).mkdir(parents=True)
    done = upscale(source, "-o", out, "--resume")
    assert done.exit_code == 2
    assert not (out / "00.png").exists()
