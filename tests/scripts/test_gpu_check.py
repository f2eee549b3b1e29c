"""`scripts/gpu_check.py`: all of it runs without a GPU, in small; what fails is told and stops nothing else."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_check
import gpu_check_setup
import gpu_check_timings
import numpy as np
import pytest
from gpu_check_targets import Simulated, Target, photo
from rich.console import Console

from pcsr.runtime.shipped import shipped_bundle

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = [sys.executable, "scripts/gpu_check.py", "--dry-run"]
CHECKPOINT = ROOT / "training" / "networks" / "carn.safetensors"


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        **options,
    )


def test_a_dry_run_passes_every_check(shared: Path, tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    arguments: list[str | Path] = [
        "-c",
        CHECKPOINT,
        "--reference",
        shared / "reference",
        "--build",
        "--markdown",
    ]
    done = run(*arguments, "--output", output, "--work", tmp_path / "work")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    assert found["simulated"] is True
    assert found["goals"] == []
    assert "goal" not in done.stdout
    assert "NOTHING HERE WAS" in done.stdout
    assert "| k = 0 |" in done.stdout
    statuses = {(result["check"], result["target"]): result["status"] for result in found["results"]}
    every = {
        (check, f"simulated {precision}")
        for check in (*gpu_check.PROOFS, *gpu_check.TIMINGS)
        for precision in ("fp16", "fp32")
        if precision == "fp16" or check not in gpu_check.PEERS
    }
    assert statuses.keys() == every | {("build", "carn")}
    skipped = {key for key, status in statuses.items() if status != "passed"}
    assert skipped == {
        ("golden", "simulated fp16"),
        ("facts", "simulated fp16"),
        ("nan", "simulated fp32"),
        ("int8", "simulated fp32"),
    }
    # The dense network's graph was built into an engine, which nothing here can run.
    peers = next(r["figures"]["x4 to 8K"] for r in found["results"] if r["check"] == "peers-8k")
    assert "was built" in peers["dense, TensorRT fp16"]["error"]
    assert len(peers) == 8
    assert all("ms" in each for name, each in peers.items() if name != "dense, TensorRT fp16")


def test_without_anything_given_the_rest_is_checked_all_the_same(tmp_path: Path) -> None:
    done = run("--only", "golden", "--only", "drop", "--only", "rules", "--work", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no --reference folder" in done.stdout
    assert "no checkpoint" in done.stdout
    assert done.stdout.count("passed  rules") == 2


def test_a_dry_run_is_no_result_of_a_gpu(tmp_path: Path) -> None:
    done = run("--output", "docs/results/gpu.json", "--work", tmp_path)
    assert done.returncode == 2
    assert "a dry run is none" in done.stderr
    assert not (ROOT / "docs" / "results" / "gpu.json").exists()


def test_without_cupy_or_a_gpu_it_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/gpu_check.py", "--work", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "--dry-run" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Runs the given proofs instead of all, and gives what the file says."""

    def run_them(*, minutes: float = 8.0, clock: Callable[[], float] = time.monotonic, **proofs: Any) -> Any:
        monkeypatch.setattr(gpu_check, "PROOFS", proofs)
        monkeypatch.setattr(gpu_check, "TIMINGS", {})
        setup = gpu_check_setup.Setup(
            Simulated(), shipped_bundle("fsrcnn"), None, None, None, None, tmp_path, True
        )
        report = gpu_check.Report(tmp_path / "found.json", {"simulated": True}, Console(quiet=True))
        gpu_check.run_all(setup, report, only=(), minutes=minutes, clock=clock)
        return json.loads((tmp_path / "found.json").read_text())["results"]

    return run_them


def test_what_fails_stops_no_other(checks: Callable[..., list[dict[str, Any]]]) -> None:
    def broken(setup: Any, target: Target) -> dict[str, Any]:
        raise ZeroDivisionError("by zero\nin two lines")

    def not_so(setup: Any, target: Target) -> dict[str, Any]:
        gpu_check_setup.prove(False, "two is not three")
        return {}

    def fine(setup: Any, target: Target) -> dict[str, Any]:
        return {"psnr": np.inf, "count": np.int64(3)}

    found = checks(broken=broken, not_so=not_so, fine=fine)
    assert [(each["check"], each["status"]) for each in found[::2]] == [
        ("broken", "failed"),
        ("not_so", "failed"),
        ("fine", "passed"),
    ]
    assert found[0]["message"] == "ZeroDivisionError: by zero"
    assert "test_gpu_check" in "".join(found[0]["trace"])
    assert found[2]["message"] == "two is not three"
    assert found[4]["figures"] == {"psnr": None, "count": 3}


def test_when_the_time_is_over_the_rest_is_skipped(checks: Callable[..., list[dict[str, Any]]]) -> None:
    now = 0.0

    def slow(setup: Any, target: Target) -> dict[str, Any]:
        nonlocal now
        now += 40
        return {}

    found = checks(minutes=1.0, clock=lambda: now, first=slow, second=slow)
    assert [each["status"] for each in found] == ["passed", "skipped", "skipped", "skipped"]
    assert found[1]["message"] == "no time left"


def test_killed_in_the_middle_the_file_is_whole(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    process = subprocess.Popen(
        [*COMMAND, "--output", output, "--work", tmp_path / "work"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if output.exists() and len(json.loads(output.read_text())["results"]) >= 3:
                break
            time.sleep(0.02)
        assert process.poll() is None, "it ended before it could be killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(json.loads(output.read_text())["results"]) >= 3


def test_a_figure_that_is_too_far_is_told() -> None:
    near = {"psnr": 60.0, "agreement": 99.95, "largest": 0.1}
    gpu_check_setup.prove_near(near, True, "fp16")
    with pytest.raises(gpu_check_setup.NotProven, match=r"fp32: 60\.0 dB"):
        gpu_check_setup.prove_near(near, False, "fp32")
    with pytest.raises(gpu_check_setup.NotProven, match=r"97\.00 %"):
        gpu_check_setup.prove_near({**near, "agreement": 97.0}, True, "fp16")


def test_goals_are_said_beside_what_was_measured() -> None:
    timed = {
        "pcsr, 20 % heavy": {"ms": [1.0, 20.0, 30.0]},
        gpu_check_timings.ORACLE: {"ms": [1.0, 300.0, 400.0]},
        gpu_check_timings.DENSE_TENSORRT: {"error": "no TensorRT"},
    }
    lines = gpu_check_timings.goals(
        [{"check": "peers-8k", "target": "tensorrt fp16", "figures": {"x4 to 8K": timed}}]
    )
    assert len(lines) == 2
    assert "20.0 ms at 20 % heavy; the goal is 40 ms" in lines[0]
    assert "15.00 x faster than oracle" in lines[1]


def test_photographs_are_of_any_size_and_differ() -> None:
    assert photo(1080, 1920).shape == (1080, 1920, 3)
    assert photo(7, 5, seed=4).shape == (7, 5, 3)
    assert not np.array_equal(photo(40, 40, seed=0), photo(40, 40, seed=1))
    assert photo(9, 9, dtype="float32").max() <= 1
    # Mirrored at its edge, so there is no seam.
    wide = photo(300, 902)
    np.testing.assert_array_equal(wide[:, 450], wide[:, 451])


def test_pytorch_without_the_gpu_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Simulated()
    monkeypatch.setattr(Simulated, "simulated", False)
    monkeypatch.setattr(gpu_check_timings, "_dense_tensorrt", lambda *_: lambda: None)
    setup = gpu_check_setup.Setup(
        machine, shipped_bundle("carn"), CHECKPOINT, None, None, None, tmp_path, True
    )
    with machine.opened(setup.bundle, "simulated", "fp32") as target:
        found = gpu_check_timings.peers(setup, target, case=0)["x4 to 1080p"]
    for name, each in found.items():
        assert ("PyTorch" in name) == ("sees no GPU" in each.get("error", "")), name
    assert "ms" in found["pcsr, k = 0"]
