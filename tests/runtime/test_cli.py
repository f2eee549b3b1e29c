from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from click.testing import CliRunner, Result

from pcsr.runtime import Upscaler
from pcsr.runtime.cli import main
from pcsr.runtime.pictures import read_picture, write_picture

PHOTO = skimage.data.coffee()[150:190, 200:253]
COMMAND = Path(sys.executable).with_name("pcsr-upscale")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A 53x40 photograph in a folder of its own."""
    path = tmp_path / "photo.png"
    write_picture(path, PHOTO)
    return path


def upscale(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The installed command, as a process."""
    command = [COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=cwd)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- nothing was tried: status 2, one line, nothing written


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-o", "out.bmp"], ".png"),
        (["-o", "out"], ".png"),
        (["-o", "none/out.png"], "not a folder"),
        (["-o", "photo.png"], "the input"),
        (["-o", "photo.png", "--force"], "the input"),
        (["-o", "link.png", "--force"], "the input"),
        (["-o", "there.png"], "--force"),
        (["-o", "there.png/", "--force"], "there.png"),
        (["-o", "out.png", "--class-map", "map.jpg"], "PNG"),
        (["-o", "out.png", "--class-map", "there.png"], "--force"),
        (["-o", "out.png", "--class-map", "out.png"], "another name"),
        (["-o", "out.png", "--class-map", "./map.png", "--overlay", "map.png"], "another name"),
        (["-o", "out.png", "--overlay", "photo.png", "--force"], "the input"),
        (["-o", "out.png", "--size", "3840"], "WIDTHxHEIGHT"),
        (["-o", "out.png", "--size", "3840,2160"], "WIDTHxHEIGHT"),
        (["-o", "out.png", "--size", "64x64", "-s", "2"], "exactly one"),
        (["-o", "out.png", "-s", "0.5"], "1 or more"),
        (["-o", "out.png", "-s", "nan"], "finite"),
        (["-o", "out.png", "--k", "1", "--adaptive"], "at most one"),
        (["-o", "out.png", "--budget", "0.5", "--adaptive"], "at most one"),
        (["-o", "out.png", "--budget", "1.5"], "between 0"),
        (["-o", "out.png", "--memory-limit", "lots"], "512MiB"),
        (["-o", "out.png", "--threads", "0"], "threads"),
        (["-o", "out.png", "--tile", "8"], "tile"),
        (["-o", "out.png", "--precision", "fp64"], "fp16"),
        (["-o", "out.png", "--frobnicate"], "frobnicate"),
        (["-o", "out.png", "-b", "carn", "--engine-cache", "folder"], "for TensorRT alone"),
        (["-o", "out.png"], "bundle"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_call_that_makes_no_sense_is_refused_before_anything_is_tried(
    photo: Path, monkeypatch: pytest.MonkeyPatch, options: Sequence[str], reason: str
) -> None:
    folder = photo.parent
    monkeypatch.chdir(folder)
    Path("there.png").write_bytes(b"precious")
    Path("folder.png").mkdir()
    Path("link.png").symlink_to("photo.png")
    before = photo.read_bytes()
    result = upscale("photo.png", "-b", "no-bundle", *options)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert reason in result.stderr
    assert "Traceback" not in result.stderr
    assert photo.read_bytes() == before
    assert Path("there.png").read_bytes() == b"precious"
    assert files(folder) == ["folder.png", "link.png", "photo.png", "there.png"]


# --- the command, end to end


def test_the_command_does_what_the_library_does(photo: Path, small_bundle: Path) -> None:
    out = photo.with_name("out.png")
    done = run(photo, "-b", small_bundle, "-o", out, "-s", "2.5", "--threads", "1")
    with Upscaler.open(small_bundle, threads=1) as upscaler:
        expected = upscaler(PHOTO, scale=2.5)

    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(read_picture(out).pixels, expected.image)
    light, heavy = (f"{100 * share:.2f} %" for share in expected.shares)
    assert done.stdout.startswith(f"{out} 132x100 light {light} heavy {heavy} ")
    assert len(done.stdout.splitlines()) == 1
    assert files(photo.parent) == ["out.png", "photo.png"]


def test_json_is_one_object_with_all_there_is_to_know(photo: Path, small_bundle: Path) -> None:
    out = photo.with_name("out.png")
    done = run(photo, "-b", small_bundle, "-o", out, "--size", "120x90", "--budget", "0.25", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)

    assert set(report) == {
        "input", "output", "size", "scale", "decision", "shares", "cost", "milliseconds",
        "tile", "backend", "provider", "precision", "threads", "notes",
    }  # fmt: skip
    assert (report["input"], report["output"]) == (str(photo), str(out))
    assert (report["size"], report["scale"], report["tile"]) == ("120x90", None, "53x40")
    assert (report["decision"]["kind"], report["decision"]["value"]) == ("budget", 0.25)
    (threshold,) = report["decision"]["thresholds"]
    assert 0 < threshold < 1
    assert sum(report["shares"]) == pytest.approx(1)
    assert report["shares"][1] == pytest.approx(0.25, abs=0.01)
    assert 0 < report["cost"]["macs"] < report["cost"]["macs_all_heavy"]
    assert report["milliseconds"]["total"] > 0
    with Upscaler.open(small_bundle) as upscaler:
        assert (report["backend"], report["provider"]) == (upscaler.backend, upscaler.provider)
    assert read_picture(out).pixels.shape == (90, 120, 3)


@pytest.mark.parametrize("budget", ["0", "1"])
def test_json_stays_json_at_both_ends_of_the_dial(photo: Path, small_bundle: Path, budget: str) -> None:
    result = upscale(
        photo, "-b", small_bundle, "-o", photo.with_name("out.png"), "-s", 1, "--budget", budget, "--json"
    )
    assert result.exit_code == 0, result.stderr

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    report = json.loads(result.stdout, parse_constant=refuse)
    assert report["shares"] == [1 - float(budget), float(budget)]
    assert (report["decision"]["thresholds"] == [None]) == (budget == "0")


@pytest.mark.parametrize("rule", [("--adaptive",), ("--budget", "0.3"), ("--budget", "0"), ("--k", "0")])
def test_three_classes_are_reported_by_number(
    photo: Path, three_class_bundle: Path, rule: tuple[str, ...]
) -> None:
    out = photo.with_name("out.png")
    asked = (photo, "-b", three_class_bundle, "-o", out, "-s", 2, *rule)
    line = upscale(*asked)
    assert line.exit_code == 0, line.stderr
    result = upscale(*asked, "--json", "--force")
    report = json.loads(result.stdout)
    numbered = " ".join(f"class {j} {100 * share:.2f} %" for j, share in enumerate(report["shares"]))
    assert line.stdout.startswith(f"{out} 106x80 {numbered} ")
    thresholds = report["decision"]["thresholds"]
    if rule[0] == "--k":
        assert thresholds is None
    elif rule[1:] == ("0",):
        assert (thresholds, report["shares"]) == ([None, None], [1, 0, 0])
    else:
        assert thresholds == sorted(thresholds)
        assert report["shares"][1] > 0


def test_the_default_scale_is_four_and_the_log_says_so(photo: Path, small_bundle: Path) -> None:
    result = upscale(photo, "-b", small_bundle, "-o", photo.with_name("out.png"))
    assert result.exit_code == 0, result.stderr
    assert " 212x160 " in result.stdout
    assert "upscaling by 4" in result.stderr


def test_a_picture_alone_is_enough(photo: Path) -> None:
    done = run("photo.png", cwd=photo.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("photo_x4.png 212x160 ")
    assert "using carn, which ships with pcsr" in done.stderr
    assert "upscaling by 4" in done.stderr
    assert "writing photo_x4.png" in done.stderr
    with Upscaler.open("carn") as upscaler:
        expected = upscaler(PHOTO, scale=4)
    np.testing.assert_array_equal(read_picture(photo.with_name("photo_x4.png")).pixels, expected.image)

    photo.with_name("photo_x4.png").write_bytes(b"precious")
    again = run("photo.png", cwd=photo.parent)
    assert_failed(again, status=2, reason="photo_x4.png exists; give --force")
    assert photo.with_name("photo_x4.png").read_bytes() == b"precious"
    assert files(photo.parent) == ["photo.png", "photo_x4.png"]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("photo.JPG", ["-s", "2.5"], "photo_x2.5.JPG"),
        ("a.b.webp", ["--size", "64x60"], "a.b_64x60.webp"),
        ("photo.gif", ["-s", "3.0"], "photo_x3.png"),
        ("photo", ["-s", "1", "--format", "tiff"], "photo_x1.tif"),
    ],
)
def test_the_default_output_lies_beside_the_input(
    photo: Path, small_bundle: Path, name: str, options: list[str], expected: str
) -> None:
    photo.rename(photo.with_name(name))
    result = upscale(photo.with_name(name), "-b", small_bundle, *options)
    assert result.exit_code == 0, result.stderr
    assert files(photo.parent) == sorted([name, expected])


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_what_is_no_name_of_a_file_is_refused(name: str) -> None:
    result = upscale(name)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].endswith("which is no file; name a picture")


def test_a_bundle_is_found_by_name(photo: Path) -> None:
    result = upscale(photo, "-b", "fsrcnn", "-o", photo.with_name("out.png"))
    assert result.exit_code == 0, result.stderr
    assert "ships with pcsr" not in result.stderr
    with Upscaler.open("fsrcnn") as upscaler:
        expected = upscaler(PHOTO, scale=4)
    np.testing.assert_array_equal(read_picture(photo.with_name("out.png")).pixels, expected.image)


def test_class_map_and_overlay_are_written_beside_the_picture(photo: Path, small_bundle: Path) -> None:
    folder = photo.parent
    result = upscale(
        photo, "-b", small_bundle, "-o", folder / "out.jpg", "-s", 2, "--adaptive", "--json",
        "--class-map", folder / "map.png", "--overlay", folder / "tints.webp",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    heavy = read_picture(folder / "map.png").pixels == 255

    assert heavy.mean() == pytest.approx(json.loads(result.stdout)["shares"][1])
    assert read_picture(folder / "tints.webp").pixels.shape == (80, 106, 3)
    assert files(folder) == ["map.png", "out.jpg", "photo.png", "tints.webp"]


def test_sixteen_bits_alpha_and_profile_come_out_as_they_went_in(tmp_path: Path, small_bundle: Path) -> None:
    pixels = np.dstack([PHOTO, PHOTO[..., :1]]).astype(np.uint16) * 257
    write_picture(tmp_path / "in.png", pixels)
    result = upscale(tmp_path / "in.png", "-b", small_bundle, "-o", tmp_path / "out.tif", "-s", "1.5")
    assert result.exit_code == 0, result.stderr
    back = read_picture(tmp_path / "out.tif")

    assert back.pixels.shape == (60, 80, 4)
    assert back.pixels.dtype == np.uint16
    assert len(np.unique(back.pixels)) > 256


def test_force_replaces_what_was_there(photo: Path, small_bundle: Path) -> None:
    out = photo.with_name("out.png")
    out.write_bytes(b"old")
    assert upscale(photo, "-b", small_bundle, "-o", out, "-s", 2).exit_code == 2
    assert out.read_bytes() == b"old"
    assert upscale(photo, "-b", small_bundle, "-o", out, "-s", 2, "--force").exit_code == 0
    assert read_picture(out).pixels.shape == (80, 106, 3)


def test_a_damaged_picture_fails_and_leaves_nothing(photo: Path, small_bundle: Path) -> None:
    photo.write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    done = run(photo, "-b", small_bundle, "-o", photo.with_name("out.png"))
    assert_failed(done, status=1, reason="damaged")
    assert files(photo.parent) == ["photo.png"]


@pytest.mark.parametrize(
    ("name", "options", "status", "reason"),
    [
        ("missing.png", ["-s", "2"], 1, "missing.png"),
        ("photo.png", ["-s", "2", "--memory-limit", "1000"], 1, "memory limit"),
        ("photo.png", ["--size", "20x20"], 2, "20x20"),
        ("photo.png", ["--device", "tpu"], 2, "tpu"),
    ],
)
def test_what_cannot_be_done_fails_with_its_status_and_leaves_nothing(
    photo: Path, small_bundle: Path, *, name: str, options: Sequence[str], status: int, reason: str
) -> None:
    done = run(photo.with_name(name), "-b", small_bundle, "-o", photo.with_name("out.png"), *options)
    assert_failed(done, status=status, reason=reason)
    assert files(photo.parent) == ["photo.png"]


def assert_failed(done: subprocess.CompletedProcess[str], *, status: int, reason: str) -> None:
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert reason in last
    assert "Traceback" not in done.stderr


def test_a_format_that_cannot_hold_the_output_fails_before_the_work(photo: Path, small_bundle: Path) -> None:
    write_picture(photo, np.dstack([PHOTO, PHOTO[..., 0]]))
    result = upscale(photo, "-b", small_bundle, "-o", photo.with_name("out.jpg"))
    assert result.exit_code == 1
    assert "transparency" in result.stderr
    assert files(photo.parent) == ["photo.png"]


def test_a_published_checkpoint_reaches_its_published_quality(
    tmp_path: Path, carn_bundle: Path, shared: Path
) -> None:
    official = shared / "reference" / "official"
    out = tmp_path / "out.png"
    done = run(official / "LRx4.png", "-b", carn_bundle, "-o", out, "-s", "4", "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    truth, made = (read_picture(path).pixels[4:-4, 4:-4].astype(float) for path in (official / "HR.png", out))

    # The authors' own program on the same 8-bit input: 29.4689 dB, 28.615 % heavy.
    assert 10 * np.log10(255**2 / np.mean((made - truth) ** 2)) == pytest.approx(29.4689, abs=0.002)
    assert "heavy 28.61 %" in done.stdout


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_soon_and_leaves_nothing(
    tmp_path: Path, small_bundle: Path, number: signal.Signals, status: int
) -> None:
    source = tmp_path / "large.png"
    write_picture(source, np.tile(PHOTO, (20, 20, 1)))
    command = [COMMAND, source, "-b", small_bundle, "-o", tmp_path / "out.png", "-s", "4", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        # This line stands in the log when the picture has been read and the work begins.
        line = next(line for line in process.stderr if "large.png" in line)
        time.sleep(0.1)
        process.send_signal(number)
        sent = time.monotonic()
        rest = process.stderr.read()
        process.wait(timeout=60)

    assert "1060x800 to 4240x3200" in line
    assert process.returncode == status, rest
    assert "Traceback" not in rest
    assert time.monotonic() - sent < 20
    assert files(tmp_path) == ["large.png"]


def test_a_name_in_any_script_is_read_and_written_under_a_plain_locale(
    tmp_path: Path, small_bundle: Path
) -> None:
    source, out = tmp_path / "写真 ä.png", tmp_path / "große 写真.png"
    write_picture(source, PHOTO)
    command = [COMMAND, source, "-b", small_bundle, "-o", out, "-s", "1"]
    plain = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=plain, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert read_picture(out).pixels.shape == PHOTO.shape


def test_help_needs_neither_a_bundle_nor_a_backend() -> None:
    program = """
import sys
from click.testing import CliRunner
from pcsr.runtime.cli import main
result = CliRunner().invoke(main, ["--help"])
assert result.exit_code == 0 and "--memory-limit" in result.output
print(sorted({"onnxruntime", "pyvips", "rich", "torch", "onnx"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
