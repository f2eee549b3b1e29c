"""Files appear whole or not at all, nothing is overwritten unasked, and only what is dead is swept."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pcsr.runtime.atomic import sweep_partial, whole_file, whole_output, write_whole

LEFT = ".photo.png.0123abcd.partial"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- whole_output


def test_a_file_appears_with_all_its_content_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    with whole_output(path, replace=False) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert names(tmp_path) == ["photo.png"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("replace", [False, True])
def test_a_block_that_fails_changes_nothing(
    tmp_path: Path, error: type[BaseException], *, replace: bool
) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(b"old")

    def fail() -> None:
        with whole_output(path, replace=replace) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["photo.png"]


def test_with_replace_the_new_file_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(b"old")
    with whole_output(path, replace=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["photo.png"]


def no_links(*arguments: object, **options: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture(params=["hard links", "no hard links"])
def both_kinds_of_file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What exFAT and some network file systems answer; none of them can be mounted in a test."""
    if request.param == "no hard links":
        monkeypatch.setattr(os, "link", no_links)


@pytest.mark.usefixtures("both_kinds_of_file_system")
def test_without_replace_a_new_file_is_put_in_place(tmp_path: Path) -> None:
    with whole_output(tmp_path / "photo.png", replace=False) as file:
        file.write(b"whole")
    assert names(tmp_path) == ["photo.png"]
    assert (tmp_path / "photo.png").stat().st_nlink == 1


@pytest.mark.usefixtures("both_kinds_of_file_system")
@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_without_replace_what_appears_meanwhile_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo.png"

    def write() -> None:
        with whole_output(path, replace=False) as file:
            file.write(b"ours")
            if kind == "file":
                path.write_bytes(b"theirs")
            else:
                path.symlink_to("nowhere")

    with pytest.raises(FileExistsError) as caught:
        write()
    assert caught.value.filename == str(path)
    assert names(tmp_path) == ["photo.png"]
    assert path.is_symlink() if kind == "dangling link" else path.read_bytes() == b"theirs"


def test_another_failure_to_link_is_no_reason_to_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    with (
        pytest.raises(OSError, match="No space"),
        whole_output(tmp_path / "photo.png", replace=False) as file,
    ):
        file.write(b"whole")
    assert names(tmp_path) == []


@pytest.mark.parametrize("replace", [False, True])
def test_before_sees_all_of_the_file_and_nothing_in_its_place(tmp_path: Path, *, replace: bool) -> None:
    path = tmp_path / "photo.png"
    seen: list[tuple[bytes, int, bool]] = []

    def look(file: BinaryIO) -> None:
        file.seek(0)
        seen.append((file.read(), os.fstat(file.fileno()).st_mtime_ns, path.exists()))

    with whole_output(path, replace=replace, before=look) as file:
        file.write(b"whole")
    assert seen == [(b"whole", path.stat().st_mtime_ns, False)]


def test_a_file_is_on_the_disk_before_it_is_told_of_or_put_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real = os.fsync

    def sync(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append(f"sync {'folder' if folder else 'file'}, {names(tmp_path)[-1]}")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    with whole_output(tmp_path / "photo.png", replace=False, before=lambda file: steps.append("before")) as f:
        f.write(b"whole")
        (temporary,) = names(tmp_path)
    assert steps == [f"sync file, {temporary}", "before", "sync folder, photo.png"]


def test_what_before_raises_keeps_the_file_from_its_place(tmp_path: Path) -> None:
    def refuse(file: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, "the journal's disk is full")

    with (
        pytest.raises(OSError, match="journal's disk"),
        whole_output(tmp_path / "photo.png", replace=True, before=refuse) as file,
    ):
        file.write(b"whole")
    assert names(tmp_path) == []


def test_a_disk_that_is_full_when_the_rest_is_written_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    def write() -> None:
        with (
            whole_output(tmp_path / "photo.png", replace=True) as file,
            Path("/dev/full").open("wb", buffering=0) as full,
        ):
            os.dup2(full.fileno(), file.fileno())
            file.write(b"in the buffer until the end")

    with pytest.raises(OSError, match="No space left"):
        write()
    assert names(tmp_path) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)], ids=oct)
@pytest.mark.parametrize("replace", [False, True])
def test_files_get_the_permissions_that_new_files_have(
    tmp_path: Path, *, umask: int, mode: int, replace: bool
) -> None:
    before = os.umask(umask)
    try:
        with whole_output(tmp_path / "photo.png", replace=replace) as file:
            file.write(b"whole")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "photo.png").stat().st_mode) == mode


@given(
    name=st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1)
    .filter(lambda name: name not in (".", ".."))
    .filter(lambda name: len(os.fsencode(name)) <= 255)
)
@example(name="\N{GRINNING FACE}" * 63)
@example(name="\udcff" * 255)
@example(name="a" * 251 + ".png")
@example(name=".png")
@example(name="two\nlines.png")
@hypothesis_settings(deadline=None, max_examples=50)
def test_every_name_that_a_file_can_have_can_be_written_and_swept(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = tmp_path_factory.mktemp("names")
    write_whole(folder / name, b"whole")
    assert names(folder) == [name]
    # And what is left of it is known as ours.
    with whole_output(folder / name, replace=True):
        (temporary,) = set(names(folder)) - {name}
    (folder / temporary).write_bytes(b"left")
    assert sweep_partial(folder) == 1
    assert names(folder) == [name]


# --- sweep_partial


def test_what_is_left_is_swept_and_counted(tmp_path: Path) -> None:
    others = [LEFT, ".b.jpg.00000000.partial", ".写真.webp.ffffffff.partial"]
    for name in others:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "photo.png").write_bytes(b"whole")
    assert sweep_partial(tmp_path) == 3
    assert names(tmp_path) == ["photo.png"]


@pytest.mark.parametrize(
    "name",
    [
        "photo.png",
        "photo.png.0123abcd.partial",
        ".photo.png.partial",
        ".photo.png.0123ABCD.partial",
        ".photo.png.0123abc.partial",
        ".photo.png.0123abcde.partial",
        ".photo.png.0123abcd.partial2",
        f".{'a' * 41}.0123abcd.partial",
        "..0123abcd.partial",
        ".photo.png.0123abcd.partial\n",
    ],
)
def test_a_name_that_is_not_exactly_ours_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"precious")
    assert sweep_partial(tmp_path) == 0
    assert names(tmp_path) == [name]


def test_only_regular_files_are_swept(tmp_path: Path) -> None:
    folder = tmp_path / "swept"
    folder.mkdir()
    (tmp_path / "precious").write_bytes(b"precious")
    (folder / ".a.0123abcd.partial").symlink_to(tmp_path / "precious")
    (folder / ".b.0123abcd.partial").mkdir()
    os.mkfifo(folder / ".c.0123abcd.partial")
    (folder / "sub").mkdir()
    (folder / "sub" / LEFT).write_bytes(b"not asked for")
    before = names(folder)
    assert sweep_partial(folder) == 0
    assert names(folder) == before
    assert (folder / "sub" / LEFT).exists()
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_what_a_thread_of_this_process_writes_is_not_swept(tmp_path: Path) -> None:
    with whole_output(tmp_path / "photo.png", replace=False) as file:
        file.write(b"whole")
        assert sweep_partial(tmp_path) == 0
    assert (tmp_path / "photo.png").read_bytes() == b"whole"


def test_what_others_write_by_its_path_is_not_swept(tmp_path: Path) -> None:
    with whole_file(tmp_path / "photo.png") as temporary:
        temporary.write_bytes(b"whole")
        assert sweep_partial(tmp_path) == 0
    assert (tmp_path / "photo.png").read_bytes() == b"whole"


WRITER = """
import sys, time
from pathlib import Path
from pcsr.runtime.atomic import whole_output

with whole_output(Path(sys.argv[1]), replace=False) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
    file.write(b", whole")
"""


@contextmanager
def writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes a file until its input is closed."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_file_is_swept_when_its_writer_is_killed_and_not_before(tmp_path: Path) -> None:
    with writer(tmp_path / "killed.png") as killed, writer(tmp_path / "living.png") as living:
        assert sweep_partial(tmp_path) == 0
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert sweep_partial(tmp_path) == 1
        living.communicate()
        assert living.returncode == 0
    assert names(tmp_path) == ["living.png"]
    assert (tmp_path / "living.png").read_bytes() == b"half, whole"


def test_a_file_that_is_swept_before_its_writer_has_the_lock_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock
    swept: list[int] = []

    def late(descriptor: int, how: int) -> None:
        if how == fcntl.LOCK_EX and not swept:
            monkeypatch.setattr(fcntl, "flock", real)
            swept.append(sweep_partial(tmp_path))
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    write_whole(tmp_path / "photo.png", b"whole")
    assert swept == [1]
    assert (tmp_path / "photo.png").read_bytes() == b"whole"


def test_writers_and_sweepers_side_by_side_lose_nothing(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from pcsr.runtime.atomic import sweep_partial
print("sweeping", flush=True)
while True:
    sweep_partial(Path(sys.argv[1]))
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sweeper:
        assert sweeper.stdout is not None
        sweeper.stdout.readline()
        ends = time.monotonic() + 2
        count = 0
        while time.monotonic() < ends:
            write_whole(tmp_path / f"{count}.png", b"whole")
            count += 1
        assert sweeper.poll() is None
        sweeper.kill()
    assert len(names(tmp_path)) == count > 10


def test_without_locks_files_are_written_and_none_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    (tmp_path / LEFT).write_bytes(b"half")
    write_whole(tmp_path / "photo.png", b"whole")
    assert sweep_partial(tmp_path) == 0
    assert names(tmp_path) == sorted([LEFT, "photo.png"])


# --- whole_file


def test_a_file_written_by_its_path_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    with whole_file(path) as temporary:
        # Callers count on a name that is free, and in the same folder.
        assert temporary.parent == tmp_path
        with temporary.open("xb") as file:
            file.write(b"old")

    def fail() -> None:
        with whole_file(path) as temporary:
            temporary.write_bytes(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["photo.png"]
