"""Folders through the command: each picture becomes what the library makes of it, and none stops the others."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from pcsr.runtime import Upscaler
from pcsr.runtime.files import FileWork
from pcsr.runtime.folder.run import ENCODERS
from pcsr.runtime.pictures import PictureWriter, read_picture, write_picture

Command = Callable[..., Result]
Photo = Callable[..., Any]
RunOf = Callable[..., Any]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def mixed(tmp_path: Path, photo: Photo) -> Path:
    """A tree with a picture of most formats, and things that are none."""
    folder = tmp_path / "in"
    for path in ("deep/er", ".git"):
        (folder / path).mkdir(parents=True)
    write_picture(folder / "a.png", photo(number=0))
    write_picture(folder / "deep/b.JPG", photo(number=1))
    write_picture(folder / "deep/er/c.tif", photo(number=2).astype(np.uint16) * 257)
    write_picture(folder / "deep/d.webp", np.dstack([photo(number=3), photo(number=4)[..., 0]]))
    write_picture(folder / "e.avif", photo(number=5))
    Image.fromarray(photo(number=6)[..., 0]).save(folder / "deep/f.gif")
    Image.fromarray(photo(number=7)).save(folder / "g.bmp")
    write_picture(folder / ".hidden.png", photo())
    write_picture(folder / ".git/picture.png", photo())
    (folder / "deep/notes.txt").write_text("no picture")
    return folder


def test_a_tree_keeps_its_names_and_every_picture_is_what_the_library_makes_of_it(
    mixed: Path, tmp_path: Path, upscale: Command, upscaler: Upscaler
) -> None:
    out = tmp_path / "out"
    done = upscale(mixed, "-o", out)
    assert done.exit_code == 0, done.stderr
    made = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    names = {"a.png": "a.png", "b.JPG": "deep/b.JPG", "c.tif": "deep/er/c.tif", "d.webp": "deep/d.webp"}
    names |= {"e.avif": "e.avif", "f.gif": "deep/f.png", "g.bmp": "g.png"}
    assert made == set(names.values())

    for source, name in names.items():
        (path,) = mixed.rglob(source)
        picture = read_picture(path)
        expected = tmp_path / f"expected{Path(name).suffix}"
        write_picture(expected, upscaler(picture.pixels, scale=2).image, like=picture)
        np.testing.assert_array_equal(read_picture(out / name).pixels, read_picture(expected).pixels, name)


def test_results_go_to_stdout_and_everything_else_to_stderr(
    mixed: Path, tmp_path: Path, upscale: Command
) -> None:
    done = upscale(mixed, "-o", tmp_path / "out")
    lines = done.stdout.splitlines()
    assert len(lines) == 7
    assert sum(line.startswith(f"{tmp_path}/out/deep/b.JPG 62x48 light ") for line in lines) == 1
    assert "written as PNG, as their own formats are not written: 1 .bmp, 1 .gif" in done.stderr
    assert "7 pictures to upscale" in done.stderr
    assert "7 pictures: 7 done; " in done.stderr
    assert "passed over in folders: 2 hidden, 1 not a picture" in done.stderr
    assert "error" not in done.stderr


def test_json_is_one_object_a_picture_failed_ones_too(mixed: Path, tmp_path: Path, upscale: Command) -> None:
    (mixed / "a.png").write_text("no picture")
    done = upscale(mixed, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 1
    found = {Path(each["input"]).name: each for each in map(json.loads, done.stdout.splitlines())}
    assert set(found) == {"a.png", "b.JPG", "c.tif", "d.webp", "e.avif", "f.gif", "g.bmp"}
    assert set(found["a.png"]) == {"input", "output", "error"}
    assert "convert it to one of these first" in found["a.png"]["error"]
    assert all(each["size"] == "62x48" for name, each in found.items() if name != "a.png")


# --- one bad picture


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def too_large(path: Path) -> None:
    write_picture(path, np.zeros((40, 40), np.uint8))


def transparent(path: Path) -> None:
    # By its content it is a PNG, by its name the output is a JPEG.
    write_picture(path.with_suffix(".png"), np.zeros((9, 9, 4), np.uint8))
    path.with_suffix(".png").rename(path)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncated, "damaged"),
    "text": (lambda path: path.write_text("no picture at all, but a text"), "is no PNG"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "dangling": (lambda path: (path.unlink(), path.symlink_to("none")), "No such file"),
    "too large": (too_large, "the limit is 1000"),
    "transparent": (transparent, "transparency"),
}


@pytest.mark.parametrize(("spoil", "reason"), BAD.values(), ids=BAD)
def test_a_bad_picture_fails_with_its_reason_and_the_rest_is_done(
    tmp_path: Path, photo: Photo, upscale: Command, spoil: Callable[[Path], object], reason: str
) -> None:
    sources = [tmp_path / f"{name}.jpg" for name in "abc"]
    for source in sources:
        write_picture(source, photo())
    spoil(sources[1])
    done = upscale(*sources, "-o", tmp_path / "out", "--max-pixels", 1000)
    assert done.exit_code == 1
    assert names(tmp_path / "out") == ["a.jpg", "c.jpg"]
    assert len(done.stdout.splitlines()) == 2
    assert "3 pictures: 2 done, 1 failed" in done.stderr
    summary = [line for line in done.stderr.splitlines() if line.startswith(f"error: failed: {sources[1]}: ")]
    assert len(summary) == 1
    assert reason in summary[0]


def test_a_picture_without_permission_fails_and_the_rest_is_done(
    nobodys: Path, photo: Photo, run_of: RunOf
) -> None:
    (nobodys / "in").mkdir()
    for name in ("a.png", "b.png"):
        write_picture(nobodys / "in" / name, photo())
    (nobodys / "in/a.png").chmod(0)
    run, heard = run_of(nobodys / "in", nobodys / "out")
    run.run()
    assert "Permission denied" in str(heard.of("a.png").error)
    assert run.counts == {"done": 1, "failed": 1, "skipped": 0, "not tried": 0}


def test_what_nobody_foresaw_is_told_as_such_and_the_rest_is_done(
    folder_of: Callable[..., Path], tmp_path: Path, upscale: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FileWork.decode

    def decode(work: FileWork) -> None:
        if work.request.source.name == "01.png":
            raise ZeroDivisionError("nobody thought of it")
        real(work)

    monkeypatch.setattr(FileWork, "decode", decode)
    done = upscale(folder_of(3), "-o", tmp_path / "out", "--verbose")
    assert done.exit_code == 1
    assert names(tmp_path / "out") == ["00.png", "02.png"]
    assert "01.png: unforeseen ZeroDivisionError: nobody thought of it" in done.stderr
    assert "in decode\n" in done.stderr
    # pyvips logs while it formats what it logs: with two handlers, threads would wait for one another.
    assert not logging.getLogger("pyvips").isEnabledFor(logging.DEBUG)


# --- one after another, and at once


def test_one_is_read_one_computed_and_one_encoded_at_once(
    folder_of: Callable[..., Path], tmp_path: Path, run_of: RunOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder_of(3)
    decoded, computing = threading.Event(), threading.Event()
    met: list[bool] = []
    decode, compute, encode = FileWork.decode, FileWork.compute, PictureWriter._encode

    def slow_encode(writer: PictureWriter, file: Any) -> None:
        if writer._path.name == "00.png":
            met.append(computing.wait(20) and decoded.wait(20))
        encode(writer, file)

    def slow_compute(work: FileWork, progress: Any) -> None:
        if work.request.source.name == "01.png":
            computing.set()
            met.append(decoded.wait(20))
        compute(work, progress)

    def told_decode(work: FileWork) -> None:
        decode(work)
        if work.request.source.name == "02.png":
            decoded.set()

    monkeypatch.setattr(FileWork, "decode", told_decode)
    monkeypatch.setattr(FileWork, "compute", slow_compute)
    monkeypatch.setattr(PictureWriter, "_encode", slow_encode)
    run, _ = run_of(source, tmp_path / "out")
    run.run()
    assert met == [True, True]
    assert run.counts["done"] == 3


def test_what_is_held_is_bounded_while_encoders_stand_still(
    folder_of: Callable[..., Path], tmp_path: Path, run_of: RunOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder_of(12)
    go, decoded, encoding = threading.Event(), [], []
    decode, encode = FileWork.decode, PictureWriter._encode

    def told_decode(work: FileWork) -> None:
        decoded.append(work.request.source.name)
        decode(work)

    def still_encode(writer: PictureWriter, file: Any) -> None:
        encoding.append(writer._path.name)
        go.wait(20)
        encode(writer, file)

    monkeypatch.setattr(FileWork, "decode", told_decode)
    monkeypatch.setattr(PictureWriter, "_encode", still_encode)
    run, _ = run_of(source, tmp_path / "out")
    running = threading.Thread(target=run.run)
    running.start()
    # Two wait for encoders; three were decoded: one whose turn to be computed it is, one in the queue, one before it.
    until = time.monotonic() + 20
    while len(set(decoded)) < ENCODERS + 3 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.3)
    held = len(set(decoded)), len(encoding)
    go.set()
    running.join()
    assert held == (ENCODERS + 3, ENCODERS)
    assert run.counts["done"] == 12


def test_threads_and_descriptors_are_as_many_after_fifty_pictures_with_failures(
    folder_of: Callable[..., Path], tmp_path: Path, run_of: RunOf
) -> None:
    source = folder_of(50)
    for number in range(0, 50, 5):
        truncated(source / f"{number:02}.png")

    def held() -> tuple[int, int]:
        # The upscaler's own workers come as they are needed, and stay.
        ours = [each for each in threading.enumerate() if each.name.startswith("pcsr-")]
        return len(ours), len(names(Path("/proc/self/fd")))

    def once(name: str) -> None:
        run, _ = run_of(source, tmp_path / name)
        run.run()
        assert (run.counts["done"], run.counts["failed"]) == (40, 10)

    once("first")
    before = held()
    once("second")
    assert held() == before


# --- class maps and overlays


def test_class_maps_and_overlays_lie_in_their_folders_under_the_names_of_the_outputs(
    tmp_path: Path, photo: Photo, upscale: Command, upscaler: Upscaler
) -> None:
    source = tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    write_picture(source / "a.png", photo())
    write_picture(source / "deep/b.jpg", photo(number=1))
    folders = {name: tmp_path / name for name in ("out", "maps", "tints")}
    done = upscale(
        source, "-o", folders["out"], "--class-map", folders["maps"], "--overlay", folders["tints"], "-s", 3
    )
    assert done.exit_code == 0, done.stderr
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == {
        "in/a.png", "in/deep/b.jpg", "out/a.png", "out/deep/b.jpg",
        "maps/a.png", "maps/deep/b.png", "tints/a.png", "tints/deep/b.jpg",
    }  # fmt: skip
    expected = upscaler(photo(), scale=3)
    np.testing.assert_array_equal(read_picture(folders["maps"] / "a.png").pixels, expected.class_map * 255)
    assert read_picture(folders["tints"] / "deep/b.jpg").pixels.shape == (72, 93, 3)
