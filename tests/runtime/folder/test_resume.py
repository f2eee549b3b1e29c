"""With --resume, what is done is not done again, what changed is, and what is not ours is left."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from pcsr.runtime.folder.journal import JOURNAL, Journal
from pcsr.runtime.pictures import PictureWriter, read_picture, write_picture

Command = Callable[..., Result]
Photo = Callable[..., Any]
FolderOf = Callable[..., Path]
COMMAND = Path(sys.executable).with_name("pcsr-upscale")


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != JOURNAL}


def lines(folder: Path) -> list[str]:
    return sorted(json.loads(line)["output"] for line in (folder / JOURNAL).read_text().splitlines())


@pytest.fixture
def done(folder_of: FolderOf, tmp_path: Path, upscale: Command) -> Path:
    """An output folder in which a run over three pictures has finished."""
    first = upscale(folder_of(3), "-o", tmp_path / "out", "--resume")
    assert first.exit_code == 0, first.stderr
    return tmp_path / "out"


def test_what_is_done_is_passed_over_and_not_touched(done: Path, upscale: Command) -> None:
    before = times(done)
    again = upscale(done.with_name("in"), "-o", done, "--resume")
    assert again.exit_code == 0, again.stderr
    assert again.stdout == ""
    assert "3 pictures: 3 done before" in again.stderr
    assert times(done) == before
    assert lines(done) == ["00.png", "01.png", "02.png"]


def test_what_is_done_is_passed_over_with_force_too(done: Path, upscale: Command) -> None:
    before = times(done)
    assert "3 done before" in upscale(done.with_name("in"), "-o", done, "--resume", "--force").stderr
    assert times(done) == before


def test_json_says_what_was_done_before(done: Path, upscale: Command) -> None:
    again = upscale(done.with_name("in"), "-o", done, "--resume", "--json")
    found = [json.loads(line) for line in again.stdout.splitlines()]
    assert [Path(each["output"]).name for each in found] == ["00.png", "01.png", "02.png"]
    assert all(each["skipped"] == "done before" for each in found)


def test_an_input_that_changed_is_made_anew(done: Path, upscale: Command, photo: Photo) -> None:
    before = times(done)
    write_picture(done.with_name("in") / "01.png", photo(number=40))
    again = upscale(done.with_name("in"), "-o", done, "--resume")
    assert again.exit_code == 0, again.stderr
    assert "3 pictures: 1 done, 2 done before" in again.stderr
    assert "01.png: made anew, since the input, the bundle or options changed" in again.stderr
    assert {name for name, time in times(done).items() if time != before[name]} == {"01.png"}


@pytest.mark.parametrize("options", [["-s", "3"], ["--budget", "0"], ["--compression", "0"], ["--refine"]])
def test_other_options_make_everything_anew(done: Path, upscale: Command, options: list[str]) -> None:
    again = upscale(done.with_name("in"), "-o", done, "--resume", *options)
    assert again.exit_code == 0, again.stderr
    assert "3 pictures: 3 done" in again.stderr
    assert again.stderr.count("made anew") == 3
    assert lines(done) == ["00.png", "00.png", "01.png", "01.png", "02.png", "02.png"]


def test_naming_the_rule_that_holds_anyway_changes_nothing(done: Path, upscale: Command) -> None:
    assert "3 done before" in upscale(done.with_name("in"), "-o", done, "--resume", "--k", "0").stderr


def test_a_class_map_that_is_wanted_now_is_made_with_its_picture(done: Path, upscale: Command) -> None:
    maps = done.with_name("maps")
    again = upscale(done.with_name("in"), "-o", done, "--resume", "--class-map", maps)
    assert again.exit_code == 0, again.stderr
    assert sorted(times(maps)) == ["00.png", "01.png", "02.png"]
    before = times(maps)
    assert (
        "3 done before" in upscale(done.with_name("in"), "-o", done, "--resume", "--class-map", maps).stderr
    )
    assert times(maps) == before


def test_an_output_that_was_removed_is_made_again(done: Path, upscale: Command) -> None:
    old = (done / "01.png").read_bytes()
    (done / "01.png").unlink()
    again = upscale(done.with_name("in"), "-o", done, "--resume")
    assert "3 pictures: 1 done, 2 done before" in again.stderr
    assert (done / "01.png").read_bytes() == old


def test_what_is_not_ours_fails_and_is_left_until_force_is_given(done: Path, upscale: Command) -> None:
    (done / "01.png").write_bytes(b"precious")
    again = upscale(done.with_name("in"), "-o", done, "--resume")
    assert again.exit_code == 1
    assert "3 pictures: 1 failed, 2 done before" in again.stderr
    assert f"{done}/01.png exists and is not from this journal, or was changed; give --force" in again.stderr
    assert (done / "01.png").read_bytes() == b"precious"

    forced = upscale(done.with_name("in"), "-o", done, "--resume", "--force")
    assert forced.exit_code == 0, forced.stderr
    assert "3 pictures: 1 done, 2 done before" in forced.stderr
    assert read_picture(done / "01.png").pixels.shape == (48, 62, 3)


def test_a_journal_that_ends_in_half_a_line_goes_on(done: Path, upscale: Command) -> None:
    content = (done / JOURNAL).read_bytes()
    (done / JOURNAL).write_bytes(content[:-20])
    (done / "02.png").unlink()
    again = upscale(done.with_name("in"), "-o", done, "--resume")
    assert again.exit_code == 0, again.stderr
    assert "ends in half a line" in again.stderr
    assert "3 pictures: 1 done, 2 done before" in again.stderr
    assert lines(done) == ["00.png", "01.png", "02.png"]


def test_one_picture_can_be_resumed_too(tmp_path: Path, photo: Photo, upscale: Command) -> None:
    write_picture(tmp_path / "a.png", photo())
    for expected in ("1 pictures: 1 done", "1 pictures: 1 done before"):
        again = upscale(tmp_path / "a.png", "-o", f"{tmp_path}/out/", "--resume")
        assert again.exit_code == 0, again.stderr
        assert expected in again.stderr


def test_resuming_needs_an_output_folder(tmp_path: Path, photo: Photo, upscale: Command) -> None:
    write_picture(tmp_path / "a.png", photo())
    refused = upscale(tmp_path / "a.png", "-o", tmp_path / "b.png", "--resume")
    assert refused.exit_code == 2
    assert "name a folder with -o" in refused.stderr


# --- two runs on one folder


def test_a_second_run_with_a_journal_is_refused_while_the_first_goes_on(
    folder_of: FolderOf, tmp_path: Path, upscale: Command, small_bundle: Path
) -> None:
    source, out = folder_of(2), tmp_path / "out"
    out.mkdir()
    with Journal.open(out):
        command = [COMMAND, source, "-o", out, "-b", small_bundle, "-s", "2", "--resume"]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 2
    assert second.stderr.splitlines()[-1].startswith(f"error: another run is at work in {out}")
    assert sorted(path.name for path in out.iterdir()) == [JOURNAL]
    assert upscale(source, "-o", out, "--resume").exit_code == 0


def test_of_two_runs_without_a_journal_the_later_leaves_what_the_earlier_wrote(
    folder_of: FolderOf, tmp_path: Path, run_of: Any, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = folder_of(3), tmp_path / "out"
    run, heard = run_of(source, out)
    encode, once = PictureWriter._encode, threading.Lock()
    files: dict[str, bytes] = {}

    def overtaken(writer: PictureWriter, file: Any) -> None:
        # While the first files of this run are being written, the other run does all of them.
        with once:
            if not files:
                command = [COMMAND, source, "-o", out, "-b", small_bundle, "-s", "2", "--compression", "0"]
                subprocess.run(command, check=True, capture_output=True, timeout=60)
                files.update({path.name: path.read_bytes() for path in out.glob("*.png")})
        encode(writer, file)

    monkeypatch.setattr(PictureWriter, "_encode", overtaken)
    run.run()
    assert sorted(files) == ["00.png", "01.png", "02.png"]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files
    assert run.counts["failed"] == 3
    for name in files:
        assert f"{name} appeared meanwhile and was left as it is; give --force" in str(heard.of(name).error)
