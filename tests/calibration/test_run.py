"""Whole calibrations: the same every time, whole or absent, resumed, and refused where they do not belong."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pcsr.calibration import resume
from pcsr.calibration.cli import main
from pcsr.calibration.pictures import choose_pictures
from pcsr.calibration.report import summary, write_sensitivity
from pcsr.calibration.resume import progress_file
from pcsr.calibration.run import Request, calibrate, forget_progress, network_of
from pcsr.export.int8.cache import (
    Calibration,
    graph_scales,
    parse_calibration,
    read_calibration,
    write_calibration,
)
from pcsr.export.int8.placement import Scales
from pcsr.export.pipeline import export_bundle
from pcsr.runtime import Upscaler
from pcsr.runtime.bundle import Bundle, read_bundle
from pcsr.runtime.errors import CalibrationError, CheckError, OptionError
from pcsr.runtime.pictures import read_picture, write_picture
from pcsr.validation.metrics import psnr

Cached = tuple[Path, Calibration]


def test_the_cache_says_what_was_done(bundle: Bundle, calibrated: Cached) -> None:
    _, found = calibrated
    network = network_of(bundle)
    assert {picture.name for picture in found.pictures} == {"astronaut.png", "chelsea.png", "coffee.png"}
    assert [picture.use for picture in found.pictures].count("held out") == 1
    # With a limit of 10 dB every layer is taken.
    assert sum(map(len, found.layers.values())) == len(network.layers)
    assert {node for row in found.sensitivities for node in row.nodes} == {
        layer.node for layer in network.layers
    }
    # All but the classifier, which has a percent of the arithmetic.
    assert 0.9 < found.shares["2"] < 1
    assert found.effects["all layers"].drop < 1
    assert "classifier" not in found.graphs
    text = "\n".join(summary(found))
    assert "2 pictures observed, 1 held out, 0 skipped" in text
    assert f"{len(network.layers)} of {len(network.layers)} layers in INT8" in text


def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_bytes(
    bundle: Bundle, request_for: Request, calibrated: Cached, tmp_path: Path
) -> None:
    class StopError(Exception):
        pass

    request = dataclasses.replace(request_for, cache=tmp_path / "cache.json")
    seen: list[str] = []

    def stopping(at: int) -> Callable[[str, float], None]:
        calls = 0

        def show(what: str, share: float) -> None:
            nonlocal calls
            calls += 1
            seen.append(what)
            if calls == at:
                raise StopError

        return show

    for at in (2, 9, 30):
        with pytest.raises(StopError):
            calibrate(bundle, request, show=stopping(at))
        assert not request.cache.exists()
        assert progress_file(request.cache).exists()
    again: list[str] = []
    write_calibration(request.cache, calibrate(bundle, request, show=lambda what, share: again.append(what)))
    assert request.cache.read_bytes() == calibrated[0].read_bytes()
    # What was observed, and the layers that were measured, are not done again.
    assert "observing" not in again
    assert 0 < again.count("measuring layers") < len(calibrated[1].sensitivities)
    forget_progress(request.cache)
    assert list(tmp_path.iterdir()) == [request.cache]


def test_progress_of_other_settings_or_damaged_progress_is_not_used(
    bundle: Bundle, request_for: Request, tmp_path: Path
) -> None:
    request = dataclasses.replace(request_for, cache=tmp_path / "cache.json", pictures=2)
    calls: list[str] = []

    def first_observation(what: str, share: float) -> None:
        calls.append(what)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(bundle, request, show=first_observation)
    saved = progress_file(request.cache).read_bytes()
    for content in (saved[: len(saved) // 2], b"", saved.replace(b"observed", b"obzerved")):
        progress_file(request.cache).write_bytes(content)
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            calibrate(bundle, request, show=first_observation)
    progress_file(request.cache).write_bytes(saved)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        calibrate(bundle, dataclasses.replace(request, k=1.0), show=first_observation)
    # From the start: the first picture's observation was told and saved, and is done again for other settings.
    assert calls == ["observing", "comparing observers"]


def test_exporting_needs_no_pictures_and_gives_the_same_bytes(
    bundle: Bundle, int8_bundle: Bundle, calibrated: Cached, tmp_path: Path
) -> None:
    again = export_bundle(
        bundle.path, tmp_path / "again", precisions=["fp32", "int8"], calibration=calibrated[0]
    ).bundle
    assert again.manifest == int8_bundle.manifest
    assert again.calibration() == calibrated[0].read_bytes()
    assert again.precisions == ("fp32", "int8")
    # A bundle with int8 is a source of int8 by itself.
    copied = export_bundle(again.path, tmp_path / "copy", precisions=["int8"]).bundle
    assert copied.manifest.graphs["int8"] == again.manifest.graphs["int8"]
    assert copied.precisions == ("int8",)


def test_int8_runs_and_is_near_fp32(int8_bundle: Bundle, photos: Path) -> None:
    picture = read_picture(photos / "chelsea.png").pixels[:40, :50]
    with (
        Upscaler.open(int8_bundle.path, precision="fp32") as exact,
        Upscaler.open(int8_bundle.path, precision="int8") as rounded,
        Upscaler.open(int8_bundle.path) as unasked,
    ):
        assert (rounded.precision, unasked.precision) == ("int8", "fp32")
        results = [up(picture, scale=2) for up in (exact, rounded)]
    assert results[1].precision == "int8"
    assert 30 < psnr(results[0].image, results[1].image) < 80


def test_graphs_with_wrong_scales_are_not_written(
    bundle: Bundle, calibrated: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_small(calibration: Calibration, graph: str) -> Scales:
        right = graph_scales(calibration, graph)
        return dataclasses.replace(
            right, activations={tensor: largest / 64 for tensor, largest in right.activations.items()}
        )

    monkeypatch.setattr("pcsr.export.int8.forms.graph_scales", too_small)
    with pytest.raises(CheckError, match="int8 graph .* differs from fp32 by"):
        export_bundle(bundle.path, tmp_path / "new", precisions=["int8"], calibration=calibrated[0])
    assert not (tmp_path / "new").exists()


def test_another_calibration_replaces_the_int8_graphs_and_keeps_the_rest(
    bundle: Bundle, calibrated: Cached, int8_bundle: Bundle, tmp_path: Path
) -> None:
    target = tmp_path / "bundle"
    shutil.copytree(int8_bundle.path, target)
    content = json.loads(calibrated[0].read_text())
    content["layers"]["upsampler_0"] = []
    (tmp_path / "fewer.json").write_text(json.dumps(content))
    outcome = export_bundle(target, target, precisions=["fp32", "int8"], calibration=tmp_path / "fewer.json")
    assert (outcome.written, outcome.kept) == (("int8",), ("fp32",))
    before, after = int8_bundle.manifest.graphs, outcome.bundle.manifest.graphs
    assert after["fp32"] == before["fp32"]
    assert after["int8"]["backbone"].sha256 == before["int8"]["backbone"].sha256
    assert after["int8"]["upsampler_0"].sha256 != before["int8"]["upsampler_0"].sha256
    assert len(list(target.glob("calibration-*.json"))) == 1


def test_the_cache_of_another_network_is_refused_by_name(
    calibrated: Cached, random_network: Callable[..., Any], tmp_path: Path
) -> None:
    from pcsr.model.checkpoint import save_checkpoint

    save_checkpoint(random_network(), tmp_path / "other.safetensors")
    with pytest.raises(CalibrationError, match="calibrated on another backbone than that of the network"):
        export_bundle(
            tmp_path / "other.safetensors", tmp_path / "new", precisions=["int8"], calibration=calibrated[0]
        )
    assert not (tmp_path / "new").exists()


def changed(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    *parents, last = path.split("/")

    def change(content: dict[str, Any]) -> None:
        for name in parents:
            content = content[name]
        content[last] = value

    return change


TENSOR = "activations/upsampler_1/hidden1"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed("version", 2), "has version 2 and this pcsr reads version 1"),
        (changed("version", True), "has version True"),
        (changed("format", "other"), "is no calibration cache"),
        (changed("extra", 1), "unknown field"),
        (changed("graphs/backbone", "0" * 64), "calibrated on another backbone"),
        (changed(f"{TENSOR}/scale", -0.5), "has the scale -0.5"),
        (changed(f"{TENSOR}/scale", 0), "has the scale 0.0"),
        (changed(f"{TENSOR}/largest", -1), "saturates at -1"),
        (changed(f"{TENSOR}/low", 1e9), "has no finite range"),
        (changed("weights/upsampler_1/sum1", [-1.0] * 40), "not all positive"),
        (changed("weights/upsampler_1/sum1", [1.0] * 40), "has other weight scales for node sum1"),
        (changed("weights/upsampler_1/sum1", [1.0]), "lacks scales of graph upsampler_1"),
        (changed("layers/backbone", ["nothing"]), "are not nodes with weights"),
        (changed("layers/backbone", ["backbone.entry", "backbone.entry"]), "are not nodes with weights"),
        (changed("activations/upsampler_1", {}), "lacks scales of graph upsampler_1"),
        (changed("pictures", []), "is damaged"),
        (changed("layers", {"backbone": [], "upsampler_0": [], "upsampler_1": []}), "chooses no layer"),
    ],
)
def test_a_cache_that_is_wrong_is_refused(
    bundle: Bundle,
    calibrated: Cached,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    reason: str,
) -> None:
    content = json.loads(calibrated[0].read_text())
    change(content)
    (tmp_path / "cache.json").write_text(json.dumps(content))
    with pytest.raises(CalibrationError, match=reason):
        export_bundle(bundle.path, tmp_path / "new", precisions=["int8"], calibration=tmp_path / "cache.json")
    assert not (tmp_path / "new").exists()


def test_a_cache_cut_anywhere_is_refused(calibrated: Cached) -> None:
    content = calibrated[0].read_bytes()
    for end in (0, 1, len(content) // 3, len(content) - 3):
        with pytest.raises(CalibrationError, match="not whole JSON"):
            parse_calibration(content[:end], Path("cache.json"))


def test_a_cache_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"cannot read .*: No such file.*pcsr-calibrate BUNDLE"):
        read_calibration(tmp_path / "none.json")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
def test_a_cache_that_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless"):
        with pytest.raises(CalibrationError, match="cannot read .*not a regular file"):
            read_calibration(tmp_path / name)


# --- pictures ----------------------------------------------------------------------------------------------


def test_bad_pictures_are_named_and_left_out(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(photos, folder)
    (folder / "text.png").write_text("no picture")
    whole = (photos / "coffee.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    write_picture(folder / "small.png", np.zeros((20, 300, 3), dtype=np.uint8))
    shutil.copy(folder / "coffee.png", folder / "coffee again.png")
    said: list[str] = []
    chosen = choose_pictures(folder, count=10, seed=0, least=78, tell=said.append)
    assert sorted(name for name, _ in chosen.skipped) == ["cut.png", "small.png", "text.png"]
    assert len(said) == 3
    assert "300x20 pixels leave less than the network sees" in dict(chosen.skipped)["small.png"]
    # A file that is there twice counts once.
    assert len(chosen.calibration) + len(chosen.held_out) == 3


def test_the_choice_depends_on_seed_and_content_but_not_on_names(photos: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number, path in enumerate(sorted(photos.iterdir())):
        shutil.copy(path, renamed / f"{9 - number}.png")

    def hashes(folder: Path, seed: int) -> list[str]:
        chosen = choose_pictures(folder, count=2, seed=seed, least=78)
        return [picture.sha256 for picture in (*chosen.calibration, *chosen.held_out)]

    assert hashes(photos, 0) == hashes(renamed, 0)
    assert len({tuple(hashes(photos, seed)) for seed in range(20)}) > 1


def test_an_eighth_is_held_out(photos: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for number in range(17):
        write_picture(tmp_path / f"{number}.png", rng.integers(0, 255, (20, 20, 3), dtype=np.uint8))
    chosen = choose_pictures(tmp_path, count=16, seed=0, least=1)
    assert (len(chosen.calibration), len(chosen.held_out)) == (14, 2)


def test_the_only_picture_serves_for_both_and_that_is_said(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "coffee.png", tmp_path)
    said: list[str] = []
    chosen = choose_pictures(tmp_path, count=5, seed=0, least=78, tell=said.append)
    assert chosen.calibration == chosen.held_out
    assert "is the only picture" in said[0]


def test_a_folder_of_nothing_usable_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="has no pictures"):
        choose_pictures(tmp_path, count=5, seed=0, least=78)
    with pytest.raises(OptionError, match="cannot look into"):
        choose_pictures(tmp_path / "missing", count=5, seed=0, least=78)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(OptionError, match=r"none of the 1 pictures .* can be used \(text.png"):
        choose_pictures(tmp_path, count=5, seed=0, least=78)


def test_the_hardest_piece_of_a_large_picture_is_taken(tmp_path: Path) -> None:
    pixels = np.full((500, 900, 3), 128, dtype=np.uint8)
    pixels[40:60, 800:820] = np.random.default_rng(1).integers(0, 255, (20, 20, 3))
    write_picture(tmp_path / "one.png", pixels)
    picture = choose_pictures(tmp_path, count=1, seed=0, least=1, tell=lambda line: None).calibration[0]
    piece = picture.truth()
    assert piece.shape == (384, 384, 3)
    assert piece.std() > 1
    hard = picture.hardened(2)
    assert hard.shape == (192, 192, 3)
    assert np.ptp(hard) > np.ptp(picture.pair(2)[0])


def test_one_constant_picture_is_calibrated_without_a_division_by_zero(
    bundle: Bundle, request_for: Request, tmp_path: Path
) -> None:
    # So all of it is of one class, and the other upsampler sees nothing.
    write_picture(tmp_path / "grey.png", np.full((80, 80, 3), 77, dtype=np.uint8))
    cache = tmp_path / "cache.json"
    found = calibrate(bundle, dataclasses.replace(request_for, data=tmp_path, cache=cache, observer="minmax"))
    write_calibration(cache, found)
    scales = [r.scale for tensors in found.activations.values() for r in tensors.values()]
    assert min(scales) >= 2**-14


# --- the command -------------------------------------------------------------------------------------------


def invoke(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def test_the_command_writes_cache_and_sensitivities(
    bundle: Bundle, calibrated: Cached, photos: Path, tmp_path: Path
) -> None:
    options = ["--data", photos, "-s", "2", "--pictures", "3", "--allow-drop", "10"]
    status, said = invoke(
        bundle.path, *options, "-o", tmp_path / "c.json", "--sensitivity", tmp_path / "layers.md"
    )
    assert status == 0, said
    assert (tmp_path / "c.json").read_bytes() == calibrated[0].read_bytes()
    assert f"--calibration {tmp_path / 'c.json'}" in said
    table = (tmp_path / "layers.md").read_text().splitlines()
    rows = json.loads((tmp_path / "layers.json").read_text())
    assert len(table) - 2 == len(rows) == len(calibrated[1].sensitivities)
    assert (tmp_path / "layers.svg").read_text().startswith("<?xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "c.json", "layers.json", "layers.md", "layers.svg",
    ]  # fmt: skip
    # Nothing is replaced unasked, and that is found before the work.
    status, said = invoke(bundle.path, *options, "-o", tmp_path / "c.json")
    assert (status, "exists; give --force" in said) == (2, True)


def test_the_plot_of_the_same_table_is_the_same_file(calibrated: Cached, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_sensitivity(tmp_path / name, calibrated[1])
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_full_disk_is_one_error_and_nothing_half_written(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(resume, "write_whole", full)
    status, said = invoke(bundle.path, "--data", photos, "-o", tmp_path / "c.json", "-s", "2")
    assert status == 1
    assert "No space left on device; make room there" in said
    assert "c.json" in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_a_cache_that_appeared_meanwhile_is_not_replaced(
    bundle: Bundle, calibrated: Cached, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_was_faster(opened: Bundle, request: Request, **options: object) -> Calibration:
        request.cache.write_text("of another run")
        return calibrated[1]

    monkeypatch.setattr("pcsr.calibration.run.calibrate", other_was_faster)
    status, said = invoke(bundle.path, "--data", photos, "-o", tmp_path / "c.json")
    assert (status, "exists; give --force" in said) == (2, True)
    assert (tmp_path / "c.json").read_text() == "of another run"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["-s", "two"], "'two' are no scales"),
        (["-s", "0.5"], "between 1 and 64"),
        (["-s", "2,2"], "given twice"),
        (["--allow-drop", "-1"], "allow_drop is -1"),
        (["--k", "nan"], "k is nan"),
        (["--observer", "percentile", "--percentile", "3"], "between 50 and 100"),
        (["-o", "missing/c.json"], "is not a folder"),
        (["-o", ""], "is empty"),
    ],
)
def test_a_slip_ends_with_status_2_before_any_work(
    bundle: Bundle, photos: Path, tmp_path: Path, options: list[str], reason: str
) -> None:
    given = [bundle.path, "--data", photos, "-o", tmp_path / "c.json", *options]
    status, said = invoke(*given)
    assert status == 2
    assert reason in said
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_plot_is_refused_before_the_work(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, said = invoke(
        bundle.path, "--data", photos, "-o", tmp_path / "c.json", "--sensitivity", tmp_path / "s"
    )
    assert (status, "pip install 'pcsr[calibrate]'" in said) == (2, True)
    assert read_bundle(bundle.path).precisions == ("fp32",)


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_leaves_a_whole_cache_or_none(
    bundle: Bundle, calibrated: Cached, photos: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache.json"
    command = [
        str(Path(sys.executable).parent / "pcsr-calibrate"), str(bundle.path), "--data", str(photos),
        "-o", str(cache), "-s", "2", "--pictures", "3", "--allow-drop", "10", "--threads", "1",
    ]  # fmt: skip
    chance = random.Random(5)
    for _ in range(4):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            process.wait(timeout=chance.uniform(2.5, 9))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if cache.exists():
            # It came to its end, or so far that nothing is left to do.
            read_calibration(cache)
            break
    if not cache.exists():
        subprocess.run(command, check=True, capture_output=True)
    assert cache.read_bytes() == calibrated[0].read_bytes()
    left = {path.name for path in tmp_path.iterdir()} - {"cache.json", progress_file(cache).name}
    # Of a file that was being written: a name that says so, and that no reader takes for one.
    assert all(name.endswith(".partial") for name in left)
