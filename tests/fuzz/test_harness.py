"""The fuzz harness sees what it is there to see, and goes on after it."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import fuzz
import pytest
from click.testing import CliRunner
from fuzz_case import Case, Link, Place, lay
from fuzz_picture_formats import (
    damage_picture,
    join_jpeg,
    join_png,
    join_riff,
    split_jpeg,
    split_png,
    split_riff,
)
from fuzz_targets import FILES, TARGETS, make_case, picture_sources
from fuzz_watch import Watch

SCRIPTS = Path(fuzz.__file__).parent

# A worker whose targets do what they must not.
BAD = f"""
import sys
sys.path.insert(0, {str(SCRIPTS)!r})
import os, signal, tempfile, time
from fuzz_worker import promise, serve
from pcsr.runtime.errors import BundleError

def remember(path, out):
    tempfile.NamedTemporaryFile(delete=False).close()

def refuse(path, out):
    raise BundleError("refused")

serve({{
    "traceback": lambda path, out: [][0],
    "signal": lambda path, out: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda path, out: os._exit(5),
    "hang": lambda path, out: time.sleep(60),
    "memory": lambda path, out: bytes(bytearray(b"x" * (150 << 20)))[:1],
    "much memory": lambda path, out: (bytearray(b"x" * (400 << 20)), time.sleep(60)),
    "leftovers": lambda path, out: (out / "new").write_text("x"),
    "temporary": remember,
    "changed": lambda path, out: path.write_text("changed"),
    "beside": lambda path, out: path.with_name("beside").write_text("x"),
    "promise": lambda path, out: promise(False, "not kept"),
    "refuse": refuse,
    "calibration": lambda path, out: os.kill(os.getpid(), signal.SIGSEGV),
    "good": lambda path, out: None,
}})
"""


@pytest.fixture(scope="module")
def bad_worker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("worker") / "bad.py"
    path.write_text(BAD)
    return path


@pytest.mark.parametrize(
    ("target", "verdict", "words"),
    [
        ("traceback", "traceback", "IndexError"),
        ("signal", "signal", "lambda"),
        ("exit", "exit", ""),
        ("hang", "hang", "did not end within 1 s"),
        ("memory", "memory", "grew by 1"),
        ("much memory", "memory", "was stopped"),
        ("leftovers", "leftovers", "out/new"),
        ("temporary", "leftovers", "tmp/tmp"),
        ("changed", "leftovers", "file"),
        ("beside", "leftovers", "beside"),
        ("promise", "promise", "not kept"),
    ],
)
def test_what_must_not_happen_is_a_finding_and_the_next_case_runs(
    bad_worker: Path, target: str, verdict: str, words: str
) -> None:
    with Watch(worker=[bad_worker], growth=100 << 20) as watch:
        assert watch.run(Case("good", {"file": b"x"}, "file", "")).verdict == "accepted"
        # The first case of a target has more time, for its imports.
        watch._seconds = 1
        watch._warm.add(target)
        found = watch.run(Case(target, {"file": b"x"}, "file", ""))
        assert (found.verdict, found.is_finding) == (verdict, True)
        assert words in found.detail
        for _ in range(2):
            assert watch.run(Case("good", {"file": b"x"}, "file", "")).verdict == "accepted"


def test_an_error_of_the_family_is_no_finding(bad_worker: Path) -> None:
    with Watch(worker=[bad_worker]) as watch:
        found = watch.run(Case("refuse", {"file": b"x"}, "file", ""))
    assert (found.verdict, found.kind, found.is_finding) == ("refused", "BundleError", False)


@pytest.mark.parametrize("target", TARGETS)
def test_a_seed_makes_the_same_case_again(target: str) -> None:
    first, second, other = (make_case(target, Random(seed)) for seed in (3, 3, 4))
    assert first == second
    assert first != other


@pytest.mark.parametrize("target", ["bundle", "manifest", "checkpoint", "calibration"])
def test_undamaged_files_are_accepted(target: str, watch: Watch) -> None:
    for name, content in FILES[target]().items():
        entries = content if isinstance(content, dict) else {name: content}
        outcome = watch.run(Case(target, entries, "bundle" if isinstance(content, dict) else name, name))
        assert (name, outcome.verdict, outcome.detail) == (name, "accepted", "")


# Samples of 64 bits, and Lab as Pillow writes it: kinds that libvips does not decode.
NOT_TAKEN = {"double.tif", "lab.tif"}


def test_undamaged_pictures_are_accepted(watch: Watch) -> None:
    outcomes = {
        name: watch.run(Case("picture", {name: content}, name, name))
        for name, content in picture_sources().items()
    }
    refused = {name: outcome.detail for name, outcome in outcomes.items() if outcome.verdict != "accepted"}
    assert set(refused) <= NOT_TAKEN, refused


def test_a_picture_taken_apart_and_put_together_is_the_same() -> None:
    parts = {".png": (split_png, join_png), ".webp": (split_riff, join_riff), ".jpg": (split_jpeg, join_jpeg)}
    for name, content in picture_sources().items():
        if Path(name).suffix in parts:
            split, join = parts[Path(name).suffix]
            assert join(split(content)) == content, name


def test_damage_by_parts_leaves_the_checksums_of_a_png_right() -> None:
    content, right = picture_sources()["metadata.png"], 0
    for seed in range(200):
        damaged, said = damage_picture(content, Random(seed), others=[])
        if (
            damaged == content
            or "," in said
            or not said.startswith(("IHDR", "inflated", "colour profile", "piece"))
        ):
            continue
        assert join_png(split_png(damaged)) == damaged, said
        right += 1
    assert right > 20


def test_a_case_lies_on_disk_as_it_says(tmp_path: Path) -> None:
    entries = {"b/file": b"x", "b/pipe": Place.PIPE, "b/folder": Place.FOLDER, "b/link": Link("file")}
    root = lay(Case("bundle", entries, "b", ""), tmp_path)
    assert (root / "file").read_bytes() == (root / "link").read_bytes() == b"x"
    assert (root / "pipe").is_fifo()
    assert (root / "folder").is_dir()


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(fuzz.main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_run_that_finds_nothing_ends_with_0_and_counts_its_cases() -> None:
    status, out, _ = run("--target", "manifest", "--cases", 12, "--json")
    report = json.loads(out)
    tally = report["targets"]["manifest"]
    assert (status, report["findings"], tally["cases"], tally["found"]) == (0, [], 12, 0)
    assert tally["accepted"] + sum(tally["refused"].values()) == 12


def test_a_finding_ends_with_3_and_its_input_is_kept_and_done_again(
    bad_worker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "Watch", lambda: Watch(worker=[bad_worker]))
    status, out, err = run("--target", "calibration", "--cases", 5, "--keep", tmp_path / "kept", "--json")
    (finding,) = json.loads(out)["findings"]
    assert (status, finding["verdict"], finding["kind"], finding["count"]) == (3, "signal", "SIGSEGV", 5)
    assert len(list((tmp_path / "kept").iterdir())) == fuzz.ALIKE
    assert finding["replay"] in err
    kept = Path(finding["replay"].split("--replay ")[1])
    again = make_case("calibration", Random(finding["seed"]))
    assert kept.read_bytes() == again.entries[again.root]
    assert run("--target", "calibration", "--replay", kept)[0] == 3
    monkeypatch.undo()
    status, out, _ = run("--target", "calibration", "--replay", kept)
    assert status == 0
    assert out.startswith(("refused CalibrationError", "accepted"))


def test_a_replay_without_its_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, _, err = run("--replay", tmp_path / "file")
    assert (status, "--replay needs --target" in err) == (2, True)
