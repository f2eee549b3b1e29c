"""Half precision, emulated, costs no more than the bound that the documentation states."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
MAX_DROP = 0.005


def measured(bundle: Path, data: Path, tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "half_precision.py"), str(bundle), "--data", str(data)]
    command += ["--report", str(tmp_path / "report.json"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_half_precision_costs_the_published_network_under_5_thousandths_of_a_decibel(
    shared: Path, carn_bundle: Path, tmp_path: Path
) -> None:
    ran = measured(carn_bundle, shared / "data" / "test" / "Set5", tmp_path, "--max-drop", str(MAX_DROP))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith("PASSED\n")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(row["set"], row["scale"], row["pictures"]) for row in report["sets"]] == [
        ("Set5", 4, 5),
        ("Set5", 2, 5),
    ]
    assert all(row["single"] - row["half"] <= MAX_DROP for row in report["sets"])
    assert report["largest"] < 65504


def test_a_larger_drop_than_allowed_fails_the_check(shared: Path, small_bundle: Path, tmp_path: Path) -> None:
    data = shared / "data" / "test" / "Set5"
    ran = measured(small_bundle, data, tmp_path, "--limit", "1", "-s", "4", "--max-drop", "-1")
    assert ran.returncode == 3
    assert "lost" in ran.stderr
