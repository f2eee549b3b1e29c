"""Picture files through the command and `Upscaler.upscale_file`: pages, sizes, encodings, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from click.testing import CliRunner, Result
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from pcsr.runtime import Upscaler
from pcsr.runtime.cli import main
from pcsr.runtime.errors import CancelledError, OptionError, PictureError
from pcsr.runtime.pictures import Encoding, PictureWriter, open_picture, read_picture, write_picture

Command = Callable[..., Result]
PHOTO = skimage.data.coffee()


@pytest.fixture(scope="module")
def upscaler(small_bundle: Path) -> Iterator[Upscaler]:
    with Upscaler.open(small_bundle, threads=1) as opened:
        yield opened


@pytest.fixture
def upscale(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command in a folder of its own, twice the size."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Result:
        return CliRunner().invoke(main, [*words, "-b", str(small_bundle), "-s", "2", "--threads", "1"])

    return call


def cut(number: int = 0, h: int = 20, w: int = 27) -> Any:
    return PHOTO[30 * number :, 50 * number :][:h, :w]


def names() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def pages_of(path: Path) -> list[Any]:
    with open_picture(path) as file:
        return [picture.pixels for picture in file.pages()]


def animated(path: Path, count: int = 3, **options: Any) -> list[Any]:
    """A file of several pictures; what a decoder makes of each."""
    frames = [Image.fromarray(cut(number)) for number in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    return pages_of(path)


# --- several pictures in one file


SEVERAL = {
    "in.tif": {},
    "in.webp": {"lossless": True, "duration": [40, 80, 120], "loop": 3},
    "in.gif": {"duration": [40, 80, 120], "loop": 0},
}


@pytest.mark.parametrize("source", SEVERAL)
@pytest.mark.parametrize("target", ["out.tif", "out.webp"])
def test_all_pages_are_upscaled_each_as_it_would_be_alone(
    upscale: Command, upscaler: Upscaler, source: str, target: str
) -> None:
    pages = animated(Path(source), **SEVERAL[source])
    lossless = ["--lossless"] if target == "out.webp" else []
    done = upscale(source, "-o", target, "--json", *lossless)
    assert done.exit_code == 0, done.stderr
    made = pages_of(Path(target))
    assert len(made) == len(pages) == 3
    for page, result in zip(pages, made, strict=True):
        # Animations come with an alpha channel where the format may have one.
        np.testing.assert_array_equal(result[..., :3], upscaler(page, scale=2).image[..., :3])
        assert (result[..., 3:] == 255).all()
    told = json.loads(done.stdout)
    assert len(told["pages"]) == 3
    assert np.mean([page["shares"] for page in told["pages"]], axis=0) == pytest.approx(told["shares"])


def test_an_animation_keeps_its_timing(upscale: Command) -> None:
    animated(Path("in.gif"), duration=[40, 80, 120], loop=2)
    assert upscale("in.gif", "-o", "out.webp").exit_code == 0
    with open_picture("in.gif") as before, open_picture("out.webp") as after:
        assert after.header.animation["delay"] == before.header.animation["delay"] == [40, 80, 120]
        assert after.header.animation["loop"] == before.header.animation["loop"]


@pytest.mark.parametrize("source", SEVERAL)
def test_one_page_can_be_picked(upscale: Command, upscaler: Upscaler, source: str) -> None:
    pages = animated(Path(source), **SEVERAL[source])
    done = upscale(source, "-o", "out.png", "--page", "2")
    assert done.exit_code == 0, done.stderr
    np.testing.assert_array_equal(read_picture("out.png").pixels, upscaler(pages[1], scale=2).image)


@pytest.mark.parametrize("target", ["out.png", "out.jpg"])
def test_a_format_for_one_picture_is_refused_several_before_any_is_decoded(
    upscale: Command, target: str
) -> None:
    animated(Path("in.tif"))
    done = upscale("in.tif", "-o", target)
    assert done.exit_code == 1
    assert "in.tif has 3 pages and " in done.stderr
    assert "write TIFF or WebP, or pick one with --page" in done.stderr
    assert names() == ["in.tif"]


def test_a_page_that_is_not_there_is_refused(upscale: Command) -> None:
    animated(Path("in.tif"))
    done = upscale("in.tif", "-o", "out.tif", "--page", "4")
    assert done.exit_code == 2
    assert "in.tif has 3 pages and 4 was asked for" in done.stderr
    assert names() == ["in.tif"]


def test_pages_of_different_sizes_do_not_go_into_one_file(upscale: Command) -> None:
    frames = [Image.fromarray(cut(h=20)), Image.fromarray(cut(h=24))]
    frames[0].save("in.tif", save_all=True, append_images=frames[1:])
    done = upscale("in.tif", "-o", "out.tif")
    assert done.exit_code == 1
    assert "page 2 has another size or kind than the first" in done.stderr
    assert names() == ["in.tif"]
    assert upscale("in.tif", "-o", "out.tif", "--page", "2").exit_code == 0
    assert read_picture("out.tif").pixels.shape == (48, 54, 3)


# --- damage, format, quality


def test_of_a_damaged_picture_what_decodes_is_taken_when_that_is_asked_for(upscale: Command) -> None:
    Image.fromarray(cut(h=120, w=90)).save("whole.jpg", quality=95)
    content = Path("whole.jpg").read_bytes()
    Path("in.jpg").write_bytes(content[: len(content) // 2])
    refused = upscale("in.jpg", "-o", "out.png")
    assert refused.exit_code == 1
    assert "damaged" in refused.stderr
    taken = upscale("in.jpg", "-o", "out.png", "--salvage", "--json")
    assert taken.exit_code == 0, taken.stderr
    assert any("took what decodes" in note for note in json.loads(taken.stdout)["notes"])
    assert "warning: in.jpg is damaged" in taken.stderr
    top = read_picture("out.png").pixels[:40].astype(float)
    assert upscale("whole.jpg", "-o", "whole.png").exit_code == 0
    assert np.abs(top - read_picture("whole.png").pixels[:40]).mean() < 1


def test_the_format_that_is_named_is_written_whatever_the_input_was(upscale: Command) -> None:
    Path("in").mkdir()
    write_picture("in/a.png", cut())
    write_picture("in/b.jpg", cut())
    done = upscale("in", "-o", "out", "--format", "webp")
    assert done.exit_code == 0, done.stderr
    for name in ("out/a.webp", "out/b.webp"):
        with open_picture(name) as file:
            assert file.header.format == "webp"


@pytest.mark.parametrize(
    ("target", "larger", "smaller"),
    [
        ("jpg", ["--quality", "95"], ["--quality", "30"]),
        ("webp", ["--lossless"], ["--quality", "30"]),
        ("avif", ["--lossless"], ["--quality", "30"]),
        ("png", ["--compression", "0"], ["--compression", "9"]),
        ("tif", ["--compression", "none"], ["--compression", "deflate"]),
    ],
)
def test_quality_and_compression_act(
    upscale: Command, target: str, larger: list[str], smaller: list[str]
) -> None:
    write_picture("in.png", cut(h=60, w=80))
    for name, options in (("large", larger), ("small", smaller)):
        done = upscale("in.png", "-o", f"{name}.{target}", *options)
        assert done.exit_code == 0, done.stderr
    assert Path(f"small.{target}").stat().st_size < 0.8 * Path(f"large.{target}").stat().st_size


@pytest.mark.parametrize("target", ["webp", "avif"])
def test_lossless_loses_nothing(upscale: Command, upscaler: Upscaler, target: str) -> None:
    write_picture("in.png", cut())
    assert upscale("in.png", "-o", f"out.{target}", "--lossless").exit_code == 0
    expected = upscaler(cut(), scale=2).image
    np.testing.assert_array_equal(read_picture(f"out.{target}").pixels, expected)


@pytest.mark.parametrize(
    ("target", "options", "reason"),
    [
        ("png", ["--quality", "90"], "quality has no effect on PNG"),
        ("tif", ["--quality", "90"], "quality has no effect on TIFF"),
        ("jpg", ["--lossless"], "lossless has no effect on JPEG"),
        ("jpg", ["--compression", "4"], "JPEG has no compression '4'"),
        ("png", ["--compression", "lzw"], "PNG has no compression 'lzw'"),
        ("tif", ["--compression", "9"], "TIFF has no compression '9'"),
        ("webp", ["--lossless", "--quality", "90"], "contradict"),
        ("jpg", ["--quality", "0"], "from 1 to 100"),
        ("jpg", ["--quality", "101"], "from 1 to 100"),
        ("png", ["--compression", "best"], "must be one of"),
        ("png", ["--format", "jpeg"], "ends like PNG and JPEG is asked for"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    upscale: Command, target: str, options: list[str], reason: str
) -> None:
    write_picture("in.bmp.png", cut())
    Path("in.bmp.png").rename("in.bmp")
    done = upscale("in.bmp", "-o", f"out.{target}", *options)
    assert done.exit_code == 2
    assert reason in done.stderr
    assert names() == ["in.bmp"]


# --- sizes


@hypothesis_settings(deadline=None, max_examples=25)
@given(
    h=st.integers(1, 40),
    w=st.integers(1, 40),
    scale=st.sampled_from([1.0, 1.3, 1.5, 2.0, 2.5, 3.0, 3.7, 4.0, 5.1]),
    target=st.sampled_from(["out.png", "out.jpg", "out.tif", "out.webp"]),
)
@example(h=1, w=1, scale=1.0, target="out.jpg")
@example(h=1, w=1, scale=4.0, target="out.webp")
@example(h=1, w=600, scale=2.5, target="out.png")
@example(h=600, w=1, scale=1.3, target="out.tif")
@example(h=37, w=53, scale=3.7, target="out.jpg")
def test_the_size_of_the_output_is_the_scale_times_that_of_the_input_rounded(
    upscaler: Upscaler, tmp_path_factory: pytest.TempPathFactory, h: int, w: int, scale: float, target: str
) -> None:
    folder = tmp_path_factory.mktemp("sizes")
    pixels = np.resize(PHOTO, (h, w, 3)) if h > 400 else PHOTO[:h, :w]
    write_picture(folder / "in.png", pixels)
    result = upscaler.upscale_file(folder / "in.png", folder / target, scale=scale)
    size = (round(scale * h), round(scale * w))
    assert result.size == size
    with Image.open(folder / target) as made:
        assert made.size == size[::-1]


# --- from Python


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    write_picture(tmp_path / "in.png", cut())
    return tmp_path / "in.png"


def test_a_file_is_what_a_call_gives_and_the_result_says_how_it_came_about(
    photo: Path, upscaler: Upscaler
) -> None:
    out, heard = photo.with_name("out.png"), []
    result = upscaler.upscale_file(
        photo, out, scale=3, budget=0.5, class_map=photo.with_name("map.png"), progress=heard.append
    )
    expected = upscaler(cut(), scale=3, budget=0.5)
    np.testing.assert_array_equal(read_picture(out).pixels, expected.image)
    np.testing.assert_array_equal(
        read_picture(photo.with_name("map.png")).pixels, expected.class_map * np.uint8(255)
    )
    assert (result.target, result.size, result.shares) == (out, (60, 81), expected.shares)
    assert heard == sorted(heard)
    assert heard[-1] == 1


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "exists": ({"target": "there.png"}, OptionError, "there.png exists; give --force"),
    "is the source": ({"target": "in.png", "force": True}, OptionError, "is also the input"),
    "is a link to the source": ({"target": "link.png", "force": True}, OptionError, "is also the input"),
    "no folder": ({"target": "none/out.png"}, OptionError, "is not a folder"),
    "no format": ({"target": "out.bmp"}, OptionError, "names no format"),
    "map exists": ({"class_map": "there.png"}, OptionError, "there.png exists"),
    "map is the target": ({"class_map": "out.png"}, OptionError, "another name"),
    "map is no PNG": ({"class_map": "map.jpg"}, OptionError, "a class map is written as PNG"),
    "page": ({"page": 0}, OptionError, "page is 0"),
    "no such page": ({"page": 2}, OptionError, "has 1 pages and 2 was asked for"),
    "too large": ({"max_pixels": 100}, PictureError, "the limit is 100"),
    "missing": ({"source": "none.png"}, PictureError, "none.png"),
    "no size": ({"scale": None}, OptionError, "exactly one of scale"),
    "other ending": ({"encoding": Encoding(form="tiff")}, OptionError, "ends like PNG and TIFF is asked for"),
}


@pytest.mark.parametrize(("options", "error", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_the_command_refuses_is_refused_here_too_and_nothing_is_written(
    photo: Path,
    upscaler: Upscaler,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    error: type[Exception],
    reason: str,
) -> None:
    monkeypatch.chdir(photo.parent)
    Path("there.png").write_bytes(b"precious")
    Path("link.png").symlink_to("in.png")
    before = photo.read_bytes()
    asked = {"source": "in.png", "target": "out.png", "scale": 2} | options
    with pytest.raises(error, match=reason):
        upscaler.upscale_file(asked.pop("source"), asked.pop("target"), **asked)
    assert names() == ["in.png", "link.png", "there.png"]
    assert (photo.read_bytes(), Path("there.png").read_bytes()) == (before, b"precious")


def test_a_callback_that_says_no_ends_it_and_nothing_is_left(photo: Path, upscaler: Upscaler) -> None:
    for answer in (False, np.False_):
        with pytest.raises(CancelledError):
            upscaler.upscale_file(
                photo, photo.with_name("out.png"), scale=2, progress=lambda _, said=answer: said
            )
    assert list(photo.parent.iterdir()) == [photo]


def test_a_class_map_goes_again_when_its_picture_cannot_take_its_place(
    photo: Path, upscaler: Upscaler
) -> None:
    out, class_map = photo.with_name("out.png"), photo.with_name("map.png")

    def appear(_: float) -> None:
        out.write_bytes(b"precious")

    with pytest.raises(PictureError, match=r"out.png appeared meanwhile"):
        upscaler.upscale_file(photo, out, scale=2, class_map=class_map, progress=appear)
    assert out.read_bytes() == b"precious"
    assert sorted(path.name for path in photo.parent.iterdir()) == ["in.png", "out.png"]


def test_what_appears_in_the_place_of_a_class_map_stays(
    photo: Path, upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_map, finish = photo.with_name("map.png"), PictureWriter.finish

    def late(writer: PictureWriter) -> None:
        # After the last look and before the file takes its name.
        if writer._path == class_map:
            class_map.write_bytes(b"precious")
        finish(writer)

    monkeypatch.setattr(PictureWriter, "finish", late)
    with pytest.raises(PictureError, match=r"map.png appeared"):
        upscaler.upscale_file(photo, photo.with_name("out.png"), scale=2, class_map=class_map)
    assert class_map.read_bytes() == b"precious"
    assert sorted(path.name for path in photo.parent.iterdir()) == ["in.png", "map.png"]


def test_a_class_map_that_was_replaced_is_not_taken_away(photo: Path, upscaler: Upscaler) -> None:
    out, class_map = photo.with_name("out.png"), photo.with_name("map.png")
    class_map.write_bytes(b"old")

    def in_the_way(_: float) -> None:
        out.mkdir(exist_ok=True)

    with pytest.raises(PictureError, match="cannot write"):
        upscaler.upscale_file(photo, out, scale=2, class_map=class_map, progress=in_the_way, force=True)
    assert read_picture(class_map).pixels.shape == (40, 54)
