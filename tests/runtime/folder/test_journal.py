"""The journal knows what is done after every kind of ending, and takes nothing for done, or for ours, that is not."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pcsr.runtime.atomic import whole_output
from pcsr.runtime.errors import OptionError
from pcsr.runtime.folder.entries import LINE_LIMIT, Content, Identity, content_of
from pcsr.runtime.folder.journal import JOURNAL, Journal

ROOT = Path(__file__).resolve().parents[3]


def sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def work(input_: bytes = b"input", bundle: bytes = b"bundle", **options: Any) -> Identity:
    return Identity(sha256(input_), sha256(bundle), {"scale": 4.0, "tile": None, **options})


def put(
    journal: Journal, path: Path, content: bytes, identity: Identity, *, also: dict[Path, bytes] | None = None
) -> None:
    """Write files as a run does: a line about all of them, then each in its place."""
    name = path.relative_to(journal.path.parent).as_posix()
    described: dict[Path, Content] = {}
    for other, text in (also or {}).items():
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(text)
        with other.open("rb") as opened:
            described[other] = content_of(opened)

    def record(file: BinaryIO) -> None:
        journal.record(name, content_of(file), identity, input_name="a.jpg", input_bytes=5, also=described)

    with whole_output(path, replace=True, before=record) as file:
        file.write(content)


def one_line(folder: Path, content: bytes = b"output", identity: Identity | None = None) -> Path:
    """A journal with one line, and its output."""
    path = folder / "a.png"
    with Journal.open(folder) as journal:
        put(journal, path, content, identity or work())
    return path


# --- what a run finds


def test_a_finished_output_is_done_in_this_run_and_the_next(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        assert journal.state("a.png", tmp_path / "a.png", work()) == "missing"
        put(journal, tmp_path / "a.png", b"output", work())
        assert journal.state("a.png", tmp_path / "a.png", work()) == "done"
    with Journal.open(tmp_path) as journal:
        assert journal.state("a.png", tmp_path / "a.png", work()) == "done"


@pytest.mark.parametrize(
    "other",
    [work(input_=b"other"), work(bundle=b"other"), work(scale=2.0), work(new=1), work(tile=False)],
    ids=["input", "bundle", "option", "more options", "null is not false"],
)
def test_other_work_is_done_anew(tmp_path: Path, other: Identity) -> None:
    path = one_line(tmp_path)
    with Journal.open(tmp_path) as journal:
        assert journal.state("a.png", path, other) == "redo"
        put(journal, path, b"other", other)
        assert journal.state("a.png", path, other) == "done"
        assert journal.state("a.png", path, work()) == "redo"


def test_the_order_of_options_does_not_matter(tmp_path: Path) -> None:
    path = one_line(tmp_path, identity=work(a=1, b={"c": 1, "d": 2}))
    with Journal.open(tmp_path) as journal:
        assert journal.state("a.png", path, work(b={"d": 2, "c": 1}, a=1)) == "done"


def touch(path: Path) -> None:
    os.utime(path, ns=(0, 0))


def test_a_copy_with_another_time_is_still_done(tmp_path: Path) -> None:
    path = one_line(tmp_path)
    touch(path)
    with Journal.open(tmp_path) as journal:
        assert journal.state("a.png", path, work()) == "done"


def same_size(path: Path) -> None:
    path.write_bytes(b"edited")
    touch(path)


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "change", [same_size, lambda path: path.write_bytes(b"longer than it was"), linked, a_folder, a_pipe]
)
def test_what_a_user_put_there_is_foreign(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = one_line(tmp_path)
    change(path)
    with Journal.open(tmp_path) as journal:
        assert journal.state("a.png", path, work()) == "foreign"


def test_a_file_without_a_line_is_foreign(tmp_path: Path) -> None:
    one_line(tmp_path)
    (tmp_path / "b.png").write_bytes(b"output")
    with Journal.open(tmp_path) as journal:
        assert journal.state("b.png", tmp_path / "b.png", work()) == "foreign"


def test_a_removed_output_is_missing(tmp_path: Path) -> None:
    one_line(tmp_path).unlink()
    with Journal.open(tmp_path) as journal:
        assert journal.state("a.png", tmp_path / "a.png", work()) == "missing"
        assert journal.state("a.png/b.png", tmp_path / "none" / "b.png", work()) == "missing"


def test_two_outputs_of_one_size_within_one_tick_are_told_apart(tmp_path: Path) -> None:
    path = one_line(tmp_path, b"first!")
    found = path.stat()
    with Journal.open(tmp_path) as journal:
        # As on a file system that has seconds only, killed before the second one was put in place.
        second = Content(bytes=6, mtime_ns=found.st_mtime_ns, sha256=sha256(b"second"))
        journal.record("a.png", second, work(scale=2.0), input_name="a.jpg", input_bytes=5)
        assert journal.state("a.png", path, work(scale=2.0)) == "redo"


# --- class maps and overlays


MAPS = work(class_map=True)


def with_map(folder: Path) -> tuple[Path, Path]:
    out, maps = folder / "out", folder / "maps"
    out.mkdir()
    with Journal.open(out) as journal:
        put(journal, out / "a.png", b"output", MAPS, also={maps / "a.png": b"map"})
    return out / "a.png", maps / "a.png"


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda output, map_: None, "done"),
        (lambda output, map_: map_.unlink(), "redo"),
        (lambda output, map_: output.unlink(), "redo"),
        (lambda output, map_: (output.unlink(), map_.unlink()), "missing"),
        (lambda output, map_: map_.write_bytes(b"theirs"), "foreign"),
        (lambda output, map_: (output.unlink(), map_.write_bytes(b"theirs")), "foreign"),
        (lambda output, map_: output.write_bytes(b"theirs"), "foreign"),
    ],
    ids=["as written", "no map", "no output", "neither", "other map", "other map, no output", "other output"],
)
def test_work_is_done_when_all_its_files_are(
    tmp_path: Path, change: Callable[[Path, Path], object], state: str
) -> None:
    output, map_ = with_map(tmp_path)
    change(output, map_)
    with Journal.open(output.parent) as journal:
        assert journal.state("a.png", output, MAPS, also=[map_]) == state


def test_a_class_map_asked_for_later_does_not_overwrite_what_is_there(tmp_path: Path) -> None:
    path = one_line(tmp_path)
    (tmp_path / "map.png").write_bytes(b"theirs")
    with Journal.open(tmp_path) as journal:
        assert journal.state("a.png", path, MAPS, also=[tmp_path / "map.png"]) == "foreign"
        (tmp_path / "map.png").unlink()
        assert journal.state("a.png", path, MAPS, also=[tmp_path / "map.png"]) == "redo"


# --- killed


KILLED = """
import os, signal, sys
from pathlib import Path
from pcsr.runtime.atomic import whole_output
from pcsr.runtime.folder.entries import Identity, content_of
from pcsr.runtime.folder.journal import Journal

folder = Path(sys.argv[1])

with Journal.open(folder) as journal:
    def record_and_die(file):
        identity = Identity("0" * 64, "1" * 64, {"new": True})
        journal.record("a.png", content_of(file), identity, input_name="a.jpg", input_bytes=5)
        os.kill(os.getpid(), signal.SIGKILL)

    with whole_output(folder / "a.png", replace=True, before=record_and_die) as file:
        file.write(b"new output")
"""


@pytest.mark.parametrize(("old", "state"), [(None, "missing"), (b"old output", "redo")])
def test_killed_between_the_line_and_the_rename_the_work_is_not_done(
    tmp_path: Path, old: bytes | None, state: str
) -> None:
    if old is not None:
        one_line(tmp_path, old)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    identity = Identity("0" * 64, "1" * 64, {"new": True})
    with Journal.open(tmp_path) as journal:
        assert len((tmp_path / JOURNAL).read_bytes().splitlines()) == (1 if old is None else 2)
        assert journal.state("a.png", tmp_path / "a.png", identity) == state


def test_two_runs_in_one_folder_are_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from pcsr.runtime.folder.journal import Journal
with Journal.open(Path(sys.argv[1])):
    print("open", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(OptionError, match="another run is at work"), Journal.open(tmp_path):
            pass
        other.kill()
        other.wait()
    with Journal.open(tmp_path) as journal:
        assert len(journal) == 0


# --- the file


def test_a_line_says_what_the_specification_says(tmp_path: Path) -> None:
    output, map_ = with_map(tmp_path)
    (line,) = (output.parent / JOURNAL).read_text(encoding="ascii").splitlines()
    assert json.loads(line) == {
        "version": 1,
        "output": "a.png",
        "bytes": 6,
        "mtime_ns": output.stat().st_mtime_ns,
        "sha256": sha256(b"output"),
        "input": {"name": "a.jpg", "bytes": 5, "sha256": sha256(b"input")},
        "bundle": sha256(b"bundle"),
        "options": {"scale": 4.0, "tile": None, "class_map": True},
        "also": [
            {
                "output": "../maps/a.png",
                "bytes": 3,
                "mtime_ns": map_.stat().st_mtime_ns,
                "sha256": sha256(b"map"),
            }
        ],
    }


def test_the_example_in_the_documentation_is_a_line(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "folders.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```json\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    read = json.loads(example)
    (tmp_path / JOURNAL).write_text(json.dumps(read) + "\n", encoding="ascii")
    identity = Identity(read["input"]["sha256"], read["bundle"], read["options"])
    assert sha256(b"") == read["sha256"]
    (tmp_path / read["output"]).parent.mkdir()
    (tmp_path / read["output"]).touch()
    with Journal.open(tmp_path) as journal:
        assert journal.state(read["output"], tmp_path / read["output"], identity) == "done"


@pytest.mark.parametrize(
    "name", ["写真 ä.png", os.fsdecode(b"caf\xe9.png"), 'a"\\b\n.png', "\0", "\N{GRINNING FACE}"]
)
def test_any_name_survives(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"output")
    with path.open("rb") as file, Journal.open(tmp_path) as journal:
        journal.record(name, content_of(file), work(), input_name=name, input_bytes=1)
    assert (tmp_path / JOURNAL).read_bytes().isascii()
    with Journal.open(tmp_path) as journal:
        assert journal.state(name, path, work()) == "done"


@pytest.fixture(scope="module")
def three_lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with three outputs of different work, two of them of one name, one after the other."""
    folder = tmp_path_factory.mktemp("three")
    with Journal.open(folder) as journal:
        put(journal, folder / "a.png", b"first", work(number=1))
        put(journal, folder / "b.png", b"second", work(number=2))
        put(journal, folder / "a.png", b"third", work(number=3))
    return folder


def known(journal: Journal, folder: Path) -> list[int]:
    """Which of the three lines a journal goes by."""
    found = []
    for number, (name, content) in enumerate(
        [("a.png", b"first"), ("b.png", b"second"), ("a.png", b"third")], start=1
    ):
        (folder / "file").write_bytes(content)
        if journal.state(name, folder / "file", work(number=number)) != "foreign":
            found.append(number)
    return found


@given(data=st.data())
@hypothesis_settings(deadline=None, max_examples=60)
def test_cut_off_anywhere_the_journal_keeps_its_whole_lines(
    three_lines: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = (three_lines / JOURNAL).read_bytes()
    ends = [match.end() for match in re.finditer(b"\n", whole)]
    near = st.sampled_from(
        [end + by for end in (0, *ends) for by in (-1, 0, 1) if 0 <= end + by <= len(whole)]
    )
    cut = data.draw(near | st.integers(0, len(whole)))
    garbage = data.draw(st.sampled_from([b"", b"\0" * 512, b"{" * 3000]))
    folder = tmp_path_factory.mktemp("cut")
    (folder / JOURNAL).write_bytes(whole[:cut] + garbage)
    kept = sum(end <= cut for end in ends)
    with Journal.open(folder) as journal:
        assert known(journal, folder) == [1, 2, 3][:kept]
        put(journal, folder / "new.png", b"new", work())
    assert (
        (folder / JOURNAL).read_bytes().startswith(whole[: ends[kept - 1] if kept else 0] + b'{"version":1')
    )
    with Journal.open(folder) as journal:
        assert known(journal, folder) == [1, 2, 3][:kept]
        assert journal.state("new.png", folder / "new.png", work()) == "done"


DAMAGED = {
    "not JSON": b"{",
    "blank": b"",
    "not an object": b"[1]",
    "no version": b'{"output":"a.png"}',
    "version of another type": b'{"version":true}',
    "lacks fields": b'{"version":1}',
    "not Unicode": b'{"version":1,"output":"\xff"}',
    "nested deep": b'{"version":1,"options":' + b"[" * 60_000,
    "too long": b'{"version":1,"x":"' + b"x" * LINE_LIMIT + b'"}',
    "a long number": b'{"version":' + b"1" * 5000 + b"}",
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_is_left_out_with_one_warning(
    three_lines: Path, tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = (three_lines / JOURNAL).read_bytes().splitlines()
    (tmp_path / JOURNAL).write_bytes(b"\n".join([first, line, second, line, third, b""]))
    with caplog.at_level(logging.WARNING), Journal.open(tmp_path) as journal:
        assert known(journal, tmp_path) == [1, 2, 3]
    (record,) = caplog.records
    assert "2 damaged lines, the first is line 2" in record.getMessage()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bytes", -1),
        ("bytes", 1.5),
        ("mtime_ns", "now"),
        ("sha256", "abc"),
        ("sha256", "A" * 64),
        ("bundle", None),
        ("input", {}),
        ("options", [1]),
        ("options", {"scale": float("nan")}),
        ("also", [{}]),
        ("output", 1),
    ],
)
def test_a_line_whose_fields_make_no_sense_is_damaged(tmp_path: Path, key: str, value: object) -> None:
    path = one_line(tmp_path)
    line = json.loads((tmp_path / JOURNAL).read_bytes())
    (tmp_path / JOURNAL).write_text(json.dumps({**line, key: value}) + "\n", encoding="ascii")
    with Journal.open(tmp_path) as journal:
        assert journal.state("a.png", path, work()) == "foreign"


def test_a_field_that_is_not_known_is_no_damage(tmp_path: Path) -> None:
    path = one_line(tmp_path)
    line = json.loads((tmp_path / JOURNAL).read_bytes())
    (tmp_path / JOURNAL).write_text(json.dumps({**line, "seconds": 1.5}) + "\n", encoding="ascii")
    with Journal.open(tmp_path) as journal:
        assert journal.state("a.png", path, work()) == "done"


def test_an_unknown_version_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(b'{"version":2,"what":"ever"}\n')
    with (
        pytest.raises(OptionError, match=r"line 1 of .*version 2, and this pcsr knows version 1"),
        Journal.open(tmp_path),
    ):
        pass
    assert (tmp_path / JOURNAL).read_bytes() == b'{"version":2,"what":"ever"}\n'


def link_to_file(path: Path) -> None:
    (path.parent / "precious").write_bytes(b"precious")
    path.symlink_to("precious")


@pytest.mark.parametrize(
    "make", [link_to_file, lambda path: path.symlink_to("nowhere"), os.mkfifo, Path.mkdir]
)
def test_what_is_no_file_is_no_journal(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / JOURNAL)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OptionError, match=JOURNAL), Journal.open(tmp_path):
        pass
    assert sorted(tmp_path.iterdir()) == before


def test_no_folder_is_an_option_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="No such file"), Journal.open(tmp_path / "none"):
        pass


# --- writing it


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def half(descriptor: int, text: bytes, offset: int) -> int:
        if offset in halves:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        halves.append(offset + real(descriptor, text[: len(text) // 2], offset))
        return halves[-1] - offset

    with Journal.open(tmp_path) as journal:
        put(journal, tmp_path / "a.png", b"a", work())
        whole = (tmp_path / JOURNAL).read_bytes()
        halves: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", half)
            with pytest.raises(OSError, match="No space"):
                put(journal, tmp_path / "b.png", b"b", work())
        assert len(halves) == 1
        assert (tmp_path / JOURNAL).read_bytes() == whole
        assert journal.state("b.png", tmp_path / "b.png", work()) == "missing"
        # When there is room again, the run goes on.
        put(journal, tmp_path / "c.png", b"c", work())
    with Journal.open(tmp_path) as journal:
        assert journal.state("a.png", tmp_path / "a.png", work()) == "done"
        assert journal.state("c.png", tmp_path / "c.png", work()) == "done"


def test_a_line_is_on_the_disk_before_record_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    real = os.fsync

    def sync(descriptor: int) -> None:
        real(descriptor)
        synced.append((tmp_path / JOURNAL).read_bytes())

    with Journal.open(tmp_path) as journal:
        monkeypatch.setattr(os, "fsync", sync)
        content = Content(bytes=1, mtime_ns=1, sha256="0" * 64)
        journal.record("a.png", content, work(), input_name="a.jpg", input_bytes=1)
    assert synced == [(tmp_path / JOURNAL).read_bytes()]
    assert synced[0].endswith(b"\n")


def test_threads_may_record_at_once(tmp_path: Path) -> None:
    start = threading.Barrier(8)

    def finish(number: int) -> None:
        start.wait()
        for each in range(5):
            name = f"{number}-{each}.png"
            put(journal, tmp_path / name, name.encode(), work(number=number))

    with Journal.open(tmp_path) as journal, ThreadPoolExecutor(8) as pool:
        list(pool.map(finish, range(8)))
    with Journal.open(tmp_path) as journal:
        assert len(journal) == 40
        for path in tmp_path.glob("*.png"):
            assert journal.state(path.name, path, work(number=int(path.name[0]))) == "done"


def test_names_too_long_for_a_line_are_refused_before_they_are_written(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        content = Content(bytes=1, mtime_ns=1, sha256="0" * 64)
        with pytest.raises(OSError, match="too long"):
            journal.record("a" * LINE_LIMIT, content, work(), input_name="a.jpg", input_bytes=1)
    assert (tmp_path / JOURNAL).read_bytes() == b""


def lines(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield (
            b'{"version":1,"output":"sub/%d.png","bytes":1,"mtime_ns":1,"sha256":"%064x","input":{"name":"%d.jpg",'
            b'"bytes":1,"sha256":"%064x"},"bundle":"%064x","options":{"scale":4.0,"size":null,"k":null,"tile":null}}\n'
            % (number, number, number, number, 0)
        )


@pytest.mark.slow
def test_a_hundred_thousand_lines_take_seconds_and_little_memory(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(b"".join(lines(100_000)))
    program = """
import resource, sys, time
from pathlib import Path
from pcsr.runtime.folder.journal import Journal
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
with Journal.open(Path(sys.argv[1])) as journal:
    assert len(journal) == 100_000
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - started)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    kibibytes, seconds = map(float, ran.stdout.split())
    assert kibibytes < 200 * 1024
    assert seconds < 30
