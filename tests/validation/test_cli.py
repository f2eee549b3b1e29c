"""pcsr-validate from its command line: last line, status, report; and the regression job on top of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from click.testing import CliRunner, Result

from pcsr.runtime.pictures import write_picture
from pcsr.validation.cli import main

ROOT = Path(__file__).resolve().parents[2]
NOTHING = "REPORTED: nothing was gated (give -c or --baseline)"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of small photographs."""
    folder = tmp_path_factory.mktemp("photos")
    for name, picture in (("one", skimage.data.astronaut()), ("two", skimage.data.chelsea())):
        (folder / name).mkdir()
        write_picture(folder / name / "crop.png", picture[60:121, 100:170])
    write_picture(folder / "two" / "other.png", skimage.data.coffee()[200:248, 200:248])
    return folder


@pytest.fixture(scope="module")
def checkpoint(small_bundle: Path) -> Path:
    """What the small bundle was exported from."""
    return small_bundle.parent / "random.safetensors"


def validate(*arguments: object, fp32: bool = True) -> Result:
    words = [str(argument) for argument in arguments] + (["--precision", "fp32"] if fp32 else [])
    return CliRunner().invoke(main, [*words, "--threads", "1"], catch_exceptions=False)


def last(result: Result) -> str:
    return result.stdout.splitlines()[-1]


def test_without_a_gate_it_reports_and_says_so(small_bundle: Path, photos: Path) -> None:
    result = validate(small_bundle, "--data", photos, "--limit", 1)
    assert (result.exit_code, last(result)) == (0, NOTHING)
    assert "one ×4 k=0" in result.stdout
    assert "light / heavy %" in result.stdout
    assert "oracle" not in result.stdout.replace("Between runtime and oracle", "")
    assert "[2/2] two/crop ×4" in result.stderr


def test_a_shipped_bundle_is_found_by_name_and_passes_against_its_network(photos: Path) -> None:
    network = ROOT / "training" / "networks" / "fsrcnn.safetensors"
    result = validate("fsrcnn", "-c", network, "--data", photos / "one", "-s", 3)
    assert (result.exit_code, last(result)) == (0, "PASSED"), result.stderr


def test_the_runtime_passes_against_its_own_checkpoint(
    small_bundle: Path, checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    columns = ("--k", 0, "--k", -1, "--adaptive", "--budget", 0.3)
    result = validate(
        small_bundle,
        "-c",
        checkpoint,
        "--data",
        photos,
        "-s",
        "2.5,4",
        *columns,
        "--report",
        tmp_path / "r.json",
    )
    assert (result.exit_code, last(result)) == (0, "PASSED")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["verdict"] == "PASSED"
    assert [(one["set"], one["scale"], one["rule"]) for one in report["sets"]] == [
        (group, scale, rule)
        for group in ("one", "two")
        for scale in (2.5, 4.0)
        for rule in ("k=0", "k=-1", "adaptive", "budget=0.3")
    ]
    assert [len(one["pictures"]) for one in report["sets"]] == [1] * 8 + [2] * 8
    for one in report["sets"]:
        assert one["fidelity"]["psnr"] > 80
        assert one["fidelity"]["agreement"] > 99.9
        assert abs(one["oracle"]["psnr"] - one["runtime"]["psnr"]) < 0.01
        assert sum(one["shares"]) == pytest.approx(1)
        assert 0 < one["flops"] <= one["flops_all_heavy"]
    assert report["notes"] == []
    assert report["ran"]["precision"] == "fp32"
    assert report["settings"]["scales"] == [2.5, 4.0]
    assert {"python", "numpy", "torch"} <= set(report["versions"])
    assert report["machine"]["processor"]


def test_three_classes_pass_by_every_rule(three_class_bundle: Path, photos: Path, tmp_path: Path) -> None:
    checkpoint, report = three_class_bundle.parent / "random.safetensors", tmp_path / "r.json"
    rules = ("--k", 0, "--adaptive", "--budget", 0, "--budget", 0.1, "--budget", 0.4, "--budget", 1)
    result = validate(
        three_class_bundle, "-c", checkpoint, "--data", photos / "two", "-s", 2, *rules, "--report", report
    )
    assert (result.exit_code, last(result)) == (0, "PASSED")
    assert "class 0 / 1 / 2 %" in result.stdout
    assert "light / heavy %" not in result.stdout
    found = json.loads(report.read_text())["sets"]
    for one in found:
        assert one["fidelity"]["agreement"] > 99.9
        assert sum(one["shares"]) == pytest.approx(1)
    assert found[0]["pictures"][0]["thresholds"] is None
    assert [len(one["pictures"][0]["thresholds"]) for one in found[1:]] == [2] * 5
    assert found[2]["pictures"][0]["thresholds"] == [None, None]
    flops = [one["flops"] for one in found[2:]]
    shares = [(each - flops[0]) / (flops[-1] - flops[0]) for each in flops]
    assert shares == pytest.approx([0, 0.1, 0.4, 1], abs=1e-3)


@pytest.mark.parametrize("option", [("--refine",), ("--lr", "8bit")])
def test_runtime_and_oracle_agree_under_every_option(
    small_bundle: Path, checkpoint: Path, photos: Path, option: tuple[str, ...]
) -> None:
    result = validate(small_bundle, "-c", checkpoint, "--data", photos / "two", "-s", 2, *option)
    assert (result.exit_code, last(result)) == (0, "PASSED")


def test_another_networks_checkpoint_is_no_proof_and_is_refused(
    small_bundle: Path, photos: Path, tmp_path: Path, random_network: Any
) -> None:
    from pcsr.model.checkpoint import save_checkpoint

    # A worse network: by its dB alone the bundle would pass.
    network = random_network()
    for head in network.upsamplers:
        head.linears[-1].weight.data.mul_(3.0)
    save_checkpoint(network, tmp_path / "other.safetensors")
    result = validate(small_bundle, "-c", tmp_path / "other.safetensors", "--data", photos / "one")
    assert result.exit_code == 2
    assert "was made from another checkpoint than" in result.stderr
    assert "PASSED" not in result.stdout


def test_a_saved_baseline_passes_and_a_better_one_fails(
    small_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.json"
    assert validate(small_bundle, "--data", photos, "--save-baseline", kept).exit_code == 0
    result = validate(small_bundle, "--data", photos, "--baseline", kept, "--adaptive", "--k", 0)
    assert (result.exit_code, last(result)) == (0, "PASSED")
    assert "note: one ×4 adaptive is not in the baseline: not gated" in result.stdout

    better = json.loads(kept.read_text())
    better["entries"][0]["psnr"] += 0.5
    (tmp_path / "better.json").write_text(json.dumps(better))
    again = tmp_path / "again.json"
    result = validate(
        small_bundle, "--data", photos, "--baseline", tmp_path / "better.json", "--save-baseline", again
    )
    assert result.exit_code == 3
    assert last(result).startswith("FAILED: one ×4 k=0 fell by 0.5000 dB from the baseline")
    assert not again.exists()
    lenient = validate(
        small_bundle, "--data", photos, "--baseline", tmp_path / "better.json", "--max-drop", 0.6
    )
    assert (lenient.exit_code, last(lenient)) == (0, "PASSED")


def test_a_set_missing_from_the_run_fails(small_bundle: Path, photos: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    validate(small_bundle, "--data", photos, "--save-baseline", kept)
    result = validate(small_bundle, "--data", photos / "one", "--baseline", kept)
    assert result.exit_code == 3
    assert last(result) == "FAILED: two ×4 k=0 is in the baseline and was not run"


def test_a_picture_that_cannot_be_read_is_status_1(small_bundle: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(photos / "two", folder)
    (folder / "other.png").write_bytes((folder / "other.png").read_bytes()[:900])
    result = validate(small_bundle, "--data", folder, "--save-baseline", tmp_path / "kept.json")
    assert result.exit_code == 1
    assert last(result).startswith("FAILED: broken/other ×4 could not be compared: ")
    assert not (tmp_path / "kept.json").exists()
    assert "all 1" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("--data", "{photos}", "-s", "two"),
        ("--data", "{photos}", "-s", "4,4"),
        ("--data", "{photos}", "-s", "0.5"),
        ("--data", "{photos}", "--budget", "2"),
        ("--data", "{photos}", "--k", "0", "--k", "-0"),
        ("--data", "{photos}", "--max-drop", "nan"),
        ("--data", "{photos}", "--lr", "16bit"),
        ("--data", "{photos}", "--backend", "abacus"),
        ("--data", "{photos}", "-c", "{photos}/missing.pth"),
        ("--data", "{photos}", "--baseline", "{photos}/missing.json"),
        ("--data", "{photos}", "--report", "{photos}/missing/r.json"),
        ("--data", "{photos}/missing"),
        (),
    ],
)
def test_nothing_is_tried_when_it_makes_no_sense(
    small_bundle: Path, photos: Path, arguments: tuple[str, ...]
) -> None:
    result = validate(small_bundle, *(word.format(photos=photos) for word in arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].lower().startswith("error")


def test_a_missing_bundle_is_status_2(photos: Path, tmp_path: Path) -> None:
    result = validate(tmp_path / "none", "--data", photos)
    assert result.exit_code == 2
    assert "pcsr-export" in result.stderr


def test_a_baseline_for_other_settings_is_refused(small_bundle: Path, photos: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    validate(small_bundle, "--data", photos / "one", "--save-baseline", kept, "--lr", "8bit")
    result = validate(small_bundle, "--data", photos / "one", "--baseline", kept)
    assert result.exit_code == 2
    assert "--lr 8bit" in result.stderr


def test_without_torch_the_truth_is_still_compared_and_the_oracle_names_the_extra(
    small_bundle: Path, checkpoint: Path, photos: Path
) -> None:
    program = "import sys; sys.modules['torch'] = None; from pcsr.validation.cli import main; main()"
    command = [sys.executable, "-c", program, str(small_bundle), "--data", str(photos / "one")]
    plain = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (plain.returncode, plain.stdout.splitlines()[-1]) == (0, NOTHING)
    gated = subprocess.run([*command, "-c", checkpoint], capture_output=True, text=True, check=False)
    assert gated.returncode == 2
    assert "pip install 'pcsr[export]'" in gated.stderr


def test_an_interrupt_is_status_130(small_bundle: Path, photos: Path) -> None:
    program = "from pcsr.validation.cli import main; main()"
    command = [sys.executable, "-c", program, str(small_bundle), "--data", str(photos)]
    scales = ",".join(f"{1 + number / 100:g}" for number in range(1, 300))
    with subprocess.Popen(
        [*command, "-s", scales], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stderr is not None
        while b"[1/" not in running.stderr.readline():
            assert running.poll() is None
        os.kill(running.pid, signal.SIGINT)
        out, _ = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, b"")


def regression(*arguments: object) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "accuracy_regression.py", *map(str, arguments), "--threads", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, done.stdout.splitlines()


def test_the_regression_job_gates_each_bundle_by_its_own_baseline(
    small_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    baselines = tmp_path / "baselines"
    baselines.mkdir()
    bundles = [tmp_path / "first", tmp_path / "second"]
    for bundle in bundles:
        shutil.copytree(small_bundle, bundle)
    common = ("--data", photos / "one", "--baselines", baselines)

    status, lines = regression(*bundles, *common)
    assert status == 3
    assert lines[-1] == "FAILED: first, second"
    assert regression(*bundles, *common, "--update")[0] == 0
    status, lines = regression(*bundles, *common)
    assert (status, lines[-3:]) == (0, ["first: PASSED", "second: PASSED", "PASSED"])

    better = json.loads((baselines / "second.json").read_text())
    better["entries"][1]["psnr"] += 1
    (baselines / "second.json").write_text(json.dumps(better))
    status, lines = regression(*bundles, *common)
    assert status == 3
    assert lines[-3] == "first: PASSED"
    assert lines[-2].startswith("second: FAILED: one ×4 adaptive fell by 1.0000 dB")
    assert lines[-1] == "FAILED: second"


def test_the_regression_job_gates_three_classes(
    three_class_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    common = (three_class_bundle, "--data", photos / "one", "--baselines", tmp_path, "--budget", 0.3)
    assert regression(*common, "--update")[0] == 0
    status, lines = regression(*common)
    assert (status, lines[-2:]) == (0, ["bundle: PASSED", "PASSED"])
    kept = json.loads((tmp_path / "bundle.json").read_text())
    assert [entry["rule"] for entry in kept["entries"]] == ["k=0", "adaptive", "budget=0.3"]


def test_the_official_network_has_the_published_numbers(
    carn_bundle: Path, shared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "official"
    folder.mkdir()
    shutil.copy(shared / "reference" / "official" / "HR.png", folder)
    report = tmp_path / "r.json"
    result = validate(carn_bundle, "--data", folder, "--k", 0, "--adaptive", "--report", report)
    assert result.exit_code == 0
    k0, adaptive = json.loads(report.read_text())["sets"]
    assert k0["bicubic"]["psnr"] == pytest.approx(27.0842, abs=1e-4)
    assert k0["runtime"]["psnr"] == pytest.approx(29.4894, abs=2e-4)
    assert adaptive["runtime"]["psnr"] == pytest.approx(29.4767, abs=2e-4)
    assert 100 * adaptive["shares"][1] == pytest.approx(14.467, abs=0.002)
    assert adaptive["flops"] / 1e9 == pytest.approx(74.033, abs=0.002)
