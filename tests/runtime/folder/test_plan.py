"""A plan takes what is meant, and everything that must not be written is refused before the first picture is read."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pcsr.runtime.errors import OptionError
from pcsr.runtime.folder.journal import JOURNAL
from pcsr.runtime.folder.plan import Plan, plan_jobs


def make(*paths: str) -> None:
    """Files in the current folder, none of them read by a plan."""
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def plan(*inputs: str, **options: Any) -> Plan:
    asked: dict[str, Any] = {
        "output": None, "suffix_text": "x4", "form": None, "class_map": None, "overlay": None,
        "force": False, "resume": False,
    }  # fmt: skip
    for name in ("class_map", "overlay"):
        if name in options:
            options[name] = Path(options[name])
    return plan_jobs(inputs, **asked | options)


def targets(made: Plan) -> dict[str, str]:
    return {str(job.source): str(job.target) for job in made.jobs}


def refused(*inputs: str, **options: Any) -> str:
    with pytest.raises(OptionError) as caught:
        plan(*inputs, **options)
    return str(caught.value)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def as_nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a folder of a user whom permissions hold back, also when the tests are run by root."""
    if os.geteuid() != 0:
        yield
        return
    nobody = 65534
    folder = tempfile.mkdtemp()
    os.chown(folder, nobody, nobody)
    monkeypatch.chdir(folder)
    os.setresuid(nobody, nobody, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        shutil.rmtree(folder)


# --- which files are inputs


def test_a_folder_is_taken_with_all_its_pictures_in_alphabetical_order() -> None:
    make("in/b.png", "in/a/z.JPG", "in/a/c/d.webp", "in/a.heic", "in/B.tif")
    made = plan("in", output="out")
    assert [job.name for job in made.jobs] == ["B.tif", "a.heic", "a/c/d.webp", "a/z.JPG", "b.png"]
    assert [str(job.source) for job in made.jobs] == [f"in/{job.name}" for job in made.jobs]
    assert (made.root, made.one) == (Path("out"), False)
    assert not Path("out").exists()


def test_inputs_keep_the_order_they_were_given_in() -> None:
    make("b/2.png", "b/1.png", "a/3.png", "4.png")
    made = plan("4.png", "b", "a", output="out")
    assert [job.name for job in made.jobs] == ["4.png", "1.png", "2.png", "3.png"]


def test_what_is_no_picture_is_passed_over_and_counted() -> None:
    make("in/a.png", "in/notes.txt", "in/none", "in/.hidden.png", "in/.git/b.png", f"in/{JOURNAL}", "out.png")
    os.mkfifo("in/pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("in/socket.png")
    Path("in/to-folder").symlink_to(Path.cwd())
    Path("in/out.png").symlink_to("../out.png")
    Path("in/dangling.png").symlink_to("nowhere.png")
    Path("in/circle.png").symlink_to("circle.png")
    Path("in/inside.png").symlink_to("a.png")
    made = plan("in", output="out")
    assert [job.name for job in made.jobs] == ["a.png", "inside.png"]
    assert made.skipped == {
        "hidden": 2,
        "not a picture": 2,
        "no regular file": 4,
        "a link to a folder": 1,
        "a link out of the folder": 1,
    }


def test_a_link_that_is_named_is_followed() -> None:
    make("real/a.png", "other/b.dat")
    Path("link").symlink_to("real")
    Path("link.png").symlink_to("other/b.dat")
    assert targets(plan("link", "link.png", output="out")) == {
        "link/a.png": "out/a.png",
        "link.png": "out/link.png",
    }


def test_a_file_that_is_named_is_taken_whatever_its_ending() -> None:
    make("photo", "raw.dat", ".hidden.png")
    assert targets(plan("photo", "raw.dat", ".hidden.png", "missing.gif", output="out")) == {
        "photo": "out/photo.png",
        "raw.dat": "out/raw.png",
        ".hidden.png": "out/.hidden.png",
        "missing.gif": "out/missing.png",
    }


def test_what_is_named_twice_is_taken_once(caplog: pytest.LogCaptureFixture) -> None:
    make("in/a.png", "in/sub/b.png", "c.png")
    with caplog.at_level(logging.INFO):
        made = plan(
            "c.png", "./in/../c.png", "in", "in/sub", "in/a.png", str(Path("in").absolute()), output="out"
        )
    assert [job.name for job in made.jobs] == ["c.png", "a.png", "sub/b.png"]
    assert "named twice and taken once: ./in/../c.png and 3 more" in caplog.text


def test_one_file_given_twice_is_one_file() -> None:
    make("a.png")
    made = plan("a.png", "./a.png", output="out.png")
    assert targets(made) == {"a.png": "out.png"}
    assert made.one


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("in/*.jpg", ["in/a.jpg", "in/b.jpg"]),
        ("in/?.jpg", ["in/a.jpg", "in/b.jpg"]),
        ("in/[!a].jpg", ["in/b.jpg"]),
        ("in/*", ["in/a.jpg", "in/b.jpg", "in/sub/c.jpg", "in/sub/deep/d.jpg"]),
        ("in/*/*.jpg", ["in/sub/c.jpg"]),
        ("in/*/deep", ["in/sub/deep/d.jpg"]),
        ("in/**/*.jpg", ["in/a.jpg", "in/b.jpg", "in/sub/c.jpg", "in/sub/deep/d.jpg"]),
        ("in/**/deep/*", ["in/sub/deep/d.jpg"]),
        ("**/**/c.jpg", ["in/sub/c.jpg"]),
        ("in/**", ["in/a.jpg", "in/b.jpg", "in/sub/c.jpg", "in/sub/deep/d.jpg"]),
        ("in/sub/../*.jpg", ["in/sub/../a.jpg", "in/sub/../b.jpg"]),
        ("in/.*.jpg", ["in/.e.jpg"]),
        ("in/.sub*/*", ["in/.sub/f.jpg"]),
    ],
)
def test_a_pattern_stands_for_what_it_matches(pattern: str, found: list[str]) -> None:
    make(
        "in/b.jpg",
        "in/a.jpg",
        "in/sub/c.jpg",
        "in/sub/deep/d.jpg",
        "in/.e.jpg",
        "in/.sub/f.jpg",
        "in/notes.txt",
    )
    assert [str(job.source) for job in plan(pattern, output="out").jobs] == found
    absolute = plan(f"{Path.cwd()}/{pattern}", output="out")
    assert [str(job.source) for job in absolute.jobs] == [f"{Path.cwd()}/{path}" for path in found]


def test_a_name_that_exists_is_no_pattern() -> None:
    make("photo[1].png", "photo1.png", "all*/a.png", "all2/b.png")
    assert targets(plan("photo[1].png", "all*", output="out")) == {
        "photo[1].png": "out/photo[1].png",
        "all*/a.png": "out/a.png",
    }


def test_a_pattern_finds_nothing_through_links() -> None:
    make("elsewhere/a.png", "in/b.png")
    Path("in/link").symlink_to("../elsewhere")
    Path("in/link.png").symlink_to("../elsewhere/a.png")
    made = plan("in/*", "in/*/*", "in/**/a.png", "in/b.png", output="out")
    assert [job.name for job in made.jobs] == ["b.png"]
    assert made.skipped == {"a link to a folder": 2, "a link out of the folder": 1}


def test_a_pattern_without_matches_is_told_and_the_rest_is_done(caplog: pytest.LogCaptureFixture) -> None:
    make("a.png")
    assert len(plan("a.png", "none/*.png", output="out").jobs) == 1
    assert "nothing matches none/*.png" in caplog.text


@pytest.mark.parametrize("inputs", [(), ("none*",), ("empty",), ("texts",), ("texts/*",)])
def test_nothing_to_do_is_an_error_that_says_where_there_is_nothing(inputs: Sequence[str]) -> None:
    Path("empty").mkdir()
    make("texts/notes.txt", "texts/more.txt")
    message = refused(*inputs, output="out")
    assert "nothing to do" in message
    assert all(each in message for each in inputs)
    if inputs in (("texts",), ("texts/*",)):
        assert "2 not a picture" in message


@pytest.mark.usefixtures("as_nobody")
def test_a_folder_within_that_cannot_be_read_is_told_and_the_rest_is_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    make("in/a.png", "in/closed/b.png", "in/z/c.png")
    Path("in/closed").chmod(0)
    made = plan("in", output="out")
    Path("in/closed").chmod(0o700)
    assert [job.name for job in made.jobs] == ["a.png", "z/c.png"]
    assert made.skipped == {"unreadable folder": 1}
    assert "cannot look into in/closed: Permission denied" in caplog.text


@pytest.mark.usefixtures("as_nobody")
def test_an_input_folder_that_cannot_be_read_is_an_error() -> None:
    make("in/a.png")
    Path("in").chmod(0)
    message = refused("in", output="out")
    Path("in").chmod(0o700)
    assert "cannot look into in: Permission denied" in message


def test_a_tree_deeper_than_python_can_call_is_walked(here: Path) -> None:
    depth = 1900
    folder = here / "in"
    folder.mkdir()
    try:
        os.chdir(folder)
        for _ in range(depth):
            Path("d").mkdir()
            os.chdir("d")
        make("a.png")
        os.chdir(here)
        for pattern in ("in", "in/**/a.png"):
            (job,) = plan(pattern, output="out").jobs
            assert str(job.source) == "in/" + "d/" * depth + "a.png"
    finally:
        os.chdir(here)
        # The runner's own removal calls itself for each folder.
        folder.rename(here / "gone")
        while (here / "gone" / "d").exists():
            (here / "gone" / "d").rename(here / "next")
            shutil.rmtree(here / "gone")
            (here / "next").rename(here / "gone")


# --- which files are outputs


@pytest.mark.parametrize(
    ("name", "form", "target"),
    [
        ("a.png", None, "a.png"),
        ("a.JPEG", None, "a.JPEG"),
        ("a.jfif", "jpeg", "a.jfif"),
        ("a.jpeg", "webp", "a.webp"),
        ("a.TIFF", "tiff", "a.TIFF"),
        ("a.png", "jpeg", "a.jpg"),
        ("a.heic", None, "a.png"),
        ("a.gif", "avif", "a.avif"),
        ("a.b.bmp", None, "a.b.png"),
        ("a.png.jpg", "png", "a.png.png"),
    ],
)
def test_an_ending_changes_where_the_format_does(name: str, form: str | None, target: str) -> None:
    make(f"in/sub/{name}")
    (job,) = plan("in", output="out", form=form).jobs
    assert str(job.target) == f"out/sub/{target}"


@pytest.mark.parametrize(
    ("name", "text", "form", "target"),
    [
        ("photo.JPG", "x2.5", None, "photo_x2.5.JPG"),
        ("a.b.webp", "64x60", None, "a.b_64x60.webp"),
        ("photo.gif", "x4", None, "photo_x4.png"),
        ("photo", "x3", None, "photo_x3.png"),
        ("photo.jpg", "x4", "webp", "photo_x4.webp"),
    ],
)
def test_without_an_output_it_lies_beside_the_input(
    name: str, text: str, form: str | None, target: str
) -> None:
    make(f"in/{name}", "other/b.png")
    made = plan(f"in/{name}", suffix_text=text, form=form)
    assert targets(made) == {f"in/{name}": f"in/{target}"}
    assert (made.root, made.one) == (None, True)
    several = plan(f"in/{name}", "other/b.png", suffix_text=text, form=form)
    assert str(several.jobs[0].target) == f"in/{target}"
    assert (several.root, several.one) == (None, False)
    assert [job.name for job in several.jobs] == [f"in/{name}", "other/b.png"]


def test_one_file_is_written_to_the_file_that_is_named() -> None:
    make("in.png")
    made = plan("in.png", output="out.jpg", class_map="map.png", overlay="tints.webp")
    (job,) = made.jobs
    assert (job.target, job.class_map, job.overlay) == (Path("out.jpg"), Path("map.png"), Path("tints.webp"))
    assert (made.root, made.one) == (None, True)


@pytest.mark.parametrize("output", ["there", "there/", "new/", Path("there")])
def test_one_file_is_written_into_the_folder_that_is_named(output: str | Path) -> None:
    make("in/a.png")
    Path("there").mkdir()
    made = plan("in/a.png", output=output, class_map="map.png")
    (job,) = made.jobs
    assert (job.target, job.class_map) == (Path(output) / "a.png", Path("map.png"))
    assert (made.root, made.one) == (Path(output), True)


def test_a_pattern_or_folder_with_one_picture_is_a_folder_run() -> None:
    make("in/a.png")
    for each in ("in", "in/*.png"):
        made = plan(each, output="out", class_map="maps")
        (job,) = made.jobs
        assert (job.target, job.class_map) == (Path("out/a.png"), Path("maps/a.png"))
        assert not made.one


def test_class_maps_and_overlays_have_the_names_of_the_outputs() -> None:
    make("in/a.heic", "in/sub/b.JPG", "in/c.PNG")
    made = plan("in", output="out", class_map="maps", overlay="tints")
    assert [(str(job.target), str(job.class_map), str(job.overlay)) for job in made.jobs] == [
        ("out/a.png", "maps/a.png", "tints/a.png"),
        ("out/c.PNG", "maps/c.PNG", "tints/c.PNG"),
        ("out/sub/b.JPG", "maps/sub/b.png", "tints/sub/b.JPG"),
    ]


def test_beside_their_inputs_outputs_have_class_maps_of_their_names() -> None:
    make("in/a.jpg", "b.jpg")
    made = plan("in/a.jpg", "b.jpg", class_map="maps", overlay="tints")
    assert [(str(job.class_map), str(job.overlay)) for job in made.jobs] == [
        ("maps/a_x4.png", "tints/a_x4.jpg"),
        ("maps/b_x4.png", "tints/b_x4.jpg"),
    ]


def test_how_many_become_png_is_told(caplog: pytest.LogCaptureFixture) -> None:
    make("in/a.heic", "in/b.HEIC", "in/c.gif", "in/d.jpg")
    with caplog.at_level(logging.INFO):
        plan("in", output="out")
    assert "written as PNG, as their own formats are not written: 1 .gif, 2 .heic" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        plan("in", output="out", form="webp")
    assert caplog.text == ""


# --- what is refused for one file


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"output": "out.bmp"}, "names no format to write"),
        ({"output": "out"}, "names no format to write"),
        ({"output": "out.jpg", "form": "png"}, "ends like JPEG and PNG is asked for"),
        ({"output": "none/out.png"}, "none is not a folder; make it first"),
        ({"output": "photo.png"}, "--output photo.png is also the input; give it another name"),
        ({"output": "photo.png", "force": True}, "is also the input"),
        ({"output": "link.png", "force": True}, "is also the input"),
        ({"output": "hard.png", "force": True}, "is also the input"),
        ({"output": "there.png"}, "there.png exists; give --force to replace it, or another name"),
        ({"output": "out.png", "class_map": "map.jpg"}, "map.jpg: a class map is written as PNG"),
        ({"output": "out.png", "class_map": "map"}, "names no format to write"),
        ({"output": "out.png", "class_map": "there.png"}, "there.png exists; give --force"),
        ({"output": "out.png", "class_map": "folder.png", "force": True}, "is a folder; name a file"),
        ({"output": "out.png", "class_map": "out.png"}, "--class-map out.png is also --output"),
        ({"output": "out.png", "class_map": "./map.png", "overlay": "map.png"}, "is also --class-map"),
        ({"output": "out.png", "overlay": "photo.png", "force": True}, "is also the input"),
        ({"output": "there.png/"}, "must be a folder and"),
        ({"output": "."}, "--output photo.png is also the input"),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_files_for_one_picture_that_make_no_sense_are_refused(options: dict[str, Any], reason: str) -> None:
    make("photo.png", "there.png")
    Path("folder.png").mkdir()
    Path("link.png").symlink_to("photo.png")
    Path("hard.png").hardlink_to("photo.png")
    assert reason in refused("photo.png", **options)


def test_a_named_output_needs_no_ending_where_the_format_is_named() -> None:
    make("photo.jpg")
    assert targets(plan("photo.jpg", output="out", form="webp")) == {"photo.jpg": "out"}
    assert targets(plan("photo.jpg", output="out.dat", form="webp")) == {"photo.jpg": "out.dat"}


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_what_is_no_name_of_a_file_is_refused_without_an_output_folder(name: str) -> None:
    assert refused(name).endswith("which is no file; name a picture")


@pytest.mark.parametrize("inputs", [("in",), ("a.png", "in"), ("*",)])
def test_a_folder_needs_an_output_folder(inputs: Sequence[str]) -> None:
    make("in/a.png", "a.png")
    message = refused(*inputs)
    assert "name an output folder with -o" in message
    assert "'in'" in message


# --- what is refused for several


@pytest.mark.parametrize(
    ("files", "inputs", "options", "both"),
    [
        (["a/x.png", "b/x.png"], ["a", "b"], {}, ["a/x.png", "b/x.png"]),
        (["a/x.png", "b/x.png"], ["a/x.png", "b/x.png"], {}, ["a/x.png", "b/x.png"]),
        (["a/x.png", "a/x.heic"], ["a"], {}, ["a/x.png", "a/x.heic"]),
        (["a/x.png", "a/x.jpg"], ["a"], {"form": "webp"}, ["a/x.png", "a/x.jpg"]),
        (["a/x.tif", "a/x.jpg"], ["a"], {"class_map": "maps"}, ["a/x.tif", "a/x.jpg"]),
        (["a/x.png"], ["a"], {"class_map": "out"}, ["--output", "--class-map"]),
        (["a/x.png"], ["a"], {"class_map": "maps", "overlay": "maps"}, ["--class-map", "--overlay"]),
        (["a/x.png", "a/s/x.png"], ["a"], {"class_map": "out/s"}, ["a/x.png", "a/s/x.png"]),
        (["a/x.png/y.png", "x.png"], ["a", "x.png"], {}, ["a/x.png/y.png", "x.png"]),
    ],
)
def test_two_files_to_one_place_are_refused_by_name(
    files: list[str], inputs: list[str], options: dict[str, Any], both: list[str]
) -> None:
    make(*files)
    message = refused(*inputs, output="out", force=True, **options)
    assert all(each in message for each in both)


def test_outputs_that_meet_through_a_link_in_the_output_folder_are_refused() -> None:
    make("in/a/x.png", "in/b/x.png")
    Path("out/b").mkdir(parents=True)
    Path("out/a").symlink_to("b")
    message = refused("in", output="out")
    assert "in/a/x.png" in message
    assert "in/b/x.png" in message


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_an_input_is_not_written_over_through_another_name(link: Callable[[Path, Path], None]) -> None:
    make("in/x.png", "in/y.png")
    Path("out").mkdir()
    link(Path("out/x.png"), Path("in/x.png").absolute())
    assert "in/x.png would be written to out/x.png, which is the input in/x.png" in refused(
        "in", output="out", force=True
    )


def test_a_file_is_not_written_over_another_input() -> None:
    make("out/a.png", "a.png", "b.png")
    message = refused("b.png", "a.png", "out/a.png", output="out", force=True)
    assert "a.png would be written to out/a.png, which is the input out/a.png" in message


def test_outputs_of_an_earlier_run_beside_inputs_are_not_written_over() -> None:
    make("a.jpg", "a_x4.jpg")
    message = refused("*.jpg", force=True)
    assert "a.jpg would be written to a_x4.jpg, which is the input a_x4.jpg" in message


@pytest.mark.parametrize("option", ["output", "class_map", "overlay"])
@pytest.mark.parametrize("folder", ["in", "in/out", "link/out", "in/../in/new/out", "into-in"])
def test_a_folder_to_write_to_is_not_in_a_folder_to_read_from(option: str, folder: str) -> None:
    make("in/a.png")
    Path("link").symlink_to("in")
    Path("into-in").symlink_to("in")
    message = refused("in", **{"output": "out", option: folder})
    assert f"--{option.replace('_', '-')} {folder}" in message
    assert "the input folder in" in message


def test_folders_that_only_begin_alike_are_no_trouble() -> None:
    make("in/a.png")
    assert len(plan("in", output="in-4", class_map="in.maps").jobs) == 1


@pytest.mark.parametrize(
    ("count", "named"), [(1, "out/a.png exists"), (3, "3 files exist"), (5, "5 files exist")]
)
def test_what_exists_is_not_replaced_unasked(count: int, named: str) -> None:
    files = ["a.png", "b.png", "c.png", "d.png", "e.png"]
    make(*(f"in/{name}" for name in files), *(f"out/{name}" for name in files[:count]))
    message = refused("in", output="out")
    assert named in message
    assert "--force" in message
    assert all((f"out/{name}" in message) == (name in files[: min(count, 3)]) for name in files)
    assert "--resume" in message
    for how in ({"force": True}, {"resume": True}):
        assert len(plan("in", output="out", **how).jobs) == 5


def test_a_dangling_link_in_place_of_an_output_exists() -> None:
    make("in/a.png")
    Path("out").mkdir()
    Path("out/a.png").symlink_to("nowhere")
    assert "out/a.png exists" in refused("in", output="out")


def test_a_class_map_that_exists_is_not_replaced_unasked() -> None:
    make("in/a.jpg", "maps/a.png")
    assert "maps/a.png exists" in refused("in", output="out", class_map="maps")


def test_a_folder_in_place_of_an_output_is_refused() -> None:
    make("in/a.png", "in/b.png", "out/a.png/precious")
    assert "out/a.png is a folder" in refused("in", output="out", force=True)


@pytest.mark.parametrize("option", ["output", "class_map", "overlay"])
@pytest.mark.parametrize("folder", ["there", "there/", "there/sub", "dangling"])
def test_a_file_is_no_folder_to_write_to(option: str, folder: str) -> None:
    make("in/a.png", "in/b.png", "there")
    Path("dangling").symlink_to("nowhere")
    assert "must be a folder" in refused("in", **{"output": "out", option: folder})
    assert "must be a folder" in refused("in/a.png", "in/b.png", **{"output": "out", option: folder})


def test_a_file_in_place_of_a_folder_in_the_output_folder_is_refused() -> None:
    make("in/sub/deep/a.png", "out/sub")
    assert "out/sub/deep must be a folder and is not" in refused("in", output="out", force=True)


@pytest.mark.parametrize("option", ["output", "class_map", "overlay"])
@pytest.mark.parametrize("leads", ["../elsewhere", "../none"])
def test_outputs_do_not_leave_their_folder_through_a_link(option: str, leads: str) -> None:
    make("in/sub/deep/a.png")
    Path("elsewhere").mkdir()
    Path("to").mkdir()
    Path("to/sub").symlink_to(leads)
    message = refused("in", force=True, **{"output": "out", option: "to"})
    assert "to/sub/deep leads out of to through a link" in message


def test_an_output_folder_may_be_a_link_itself_and_have_links_within() -> None:
    make("in/sub/a.png")
    Path("real/other").mkdir(parents=True)
    Path("real/sub").symlink_to("other")
    Path("out").symlink_to("real")
    assert targets(plan("in", output="out")) == {"in/sub/a.png": "out/sub/a.png"}


@pytest.mark.usefixtures("as_nobody")
@pytest.mark.parametrize(("closed", "output"), [("out", "out"), ("out", "out/new"), ("out/sub", "out")])
def test_a_folder_that_cannot_be_written_to_is_refused(closed: str, output: str) -> None:
    make("in/sub/a.png")
    Path(closed).mkdir(parents=True)
    Path(closed).chmod(0o500)
    assert f"{closed} cannot be written to" in refused("in", output=output)


@pytest.mark.usefixtures("as_nobody")
def test_a_place_that_cannot_be_looked_up_is_refused() -> None:
    make("photo.png", "closed/a.png")
    Path("closed").chmod(0)
    message = refused("photo.png", output="closed/out.png")
    Path("closed").chmod(0o700)
    assert "closed" in message
    assert "permissions" in message


def test_a_file_that_is_missing_is_left_for_its_turn() -> None:
    make("a.png")
    assert targets(plan("a.png", "missing.png", "none/b.png")) == {
        "a.png": "a_x4.png",
        "missing.png": "missing_x4.png",
        "none/b.png": "none/b_x4.png",
    }
    assert targets(plan("missing.png", output="out.png")) == {"missing.png": "out.png"}


def test_names_that_are_not_unicode_are_names() -> None:
    name = os.fsdecode(b"caf\xe9.png")
    make(f"in/{name}")
    (job,) = plan("in", output="out").jobs
    assert (job.name, job.target) == (name, Path("out") / name)


# --- what holds for all


PARTS = st.sampled_from(["a", "b", "a.png", "b.PNG", "a.jpg", "b.heic", ".h.png", "c.txt", "写.webp"])
TREES = st.lists(st.lists(PARTS, min_size=1, max_size=3).map("/".join), max_size=8, unique=True)


@given(
    tree=TREES,
    inputs=st.lists(PARTS | st.sampled_from([".", "*", "a/b", "**/*.png", "[ab]*", "missing"]), max_size=3),
    output=st.sampled_from([None, "../out", "../out/", "../out.png"]),
    form=st.sampled_from([None, "png", "jpeg"]),
    also=st.sampled_from([{}, {"class_map": "../maps"}, {"class_map": "../m.png", "overlay": "../o.png"}]),
)
@hypothesis_settings(deadline=None, max_examples=200)
def test_no_plan_writes_two_files_to_one_place_or_one_over_an_input(
    tmp_path_factory: pytest.TempPathFactory,
    tree: list[str],
    inputs: list[str],
    output: str | None,
    form: str | None,
    also: dict[str, str],
) -> None:
    top = tmp_path_factory.mktemp("law") / "top"
    top.mkdir()
    os.chdir(top)
    for path in tree:
        assume(not any(parent.is_file() for parent in Path(path).parents) and not Path(path).is_dir())
        make(path)
    try:
        made = plan(*inputs, output=output, form=form, **also)
    except OptionError:
        return
    files = [
        path for job in made.jobs for path in (job.target, job.class_map, job.overlay) if path is not None
    ]
    places = [os.path.realpath(path) for path in files]
    assert len(set(places)) == len(files)
    assert not set(places) & {os.path.realpath(job.source) for job in made.jobs}
    assert not any(path.exists() for path in files)
    assert len({job.name for job in made.jobs}) == len(made.jobs)
    assert len({os.path.realpath(job.source) for job in made.jobs}) == len(made.jobs)


@pytest.mark.slow
def test_a_hundred_thousand_files_take_seconds() -> None:
    for number in range(500):
        folder = Path(f"in/{number // 20}/{number}")
        folder.mkdir(parents=True)
        for each in range(200):
            (folder / f"{each}.jpg").touch()
    started = time.process_time()
    assert len(plan("in", output="out").jobs) == 100_000
    assert time.process_time() - started < 30
