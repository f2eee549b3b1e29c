"""`scripts/peaks.py`: plausible ceilings where there is a compiler, a reason where there is none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from peaks import Peaks, measure_peaks

from pcsr.runtime.native import open_library

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "peaks.py"
# Lanes of a vector: no processor does more than two vectors of multiply-adds a cycle, nor 8 GHz.
LANES = {"avx512": 16, "avx2": 8, "baseline": 4}


@pytest.fixture(scope="module")
def peaks() -> Peaks:
    """Those of one thread."""
    measured = measure_peaks(1)
    assert measured is not None
    return measured


def test_the_peak_is_that_of_the_best_instruction_set(peaks: Peaks) -> None:
    best = {"scalar": "baseline"}.get(
        open_library().instruction_sets[-1], open_library().instruction_sets[-1]
    )
    assert (peaks.instruction_set, peaks.threads) == (best, 1)


def test_peaks_are_those_of_a_processor(peaks: Peaks) -> None:
    # A compiler that does the sums beforehand, or adds them up in memory, would show.
    operations = 2 * LANES[peaks.instruction_set]
    assert 0.5 * operations < peaks.gflops < 4 * 8 * operations
    assert 0.5 < peaks.copy_gb_per_s < 2000


def test_without_a_compiler_there_is_no_peak_but_a_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    assert measure_peaks(1) is None
    said = capsys.readouterr().err
    assert said.startswith("peaks are not measured: ")
    assert "no-such-compiler" in said
    assert said.count("\n") == 1


def test_a_compiler_that_fails_is_a_reason_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "false")
    assert measure_peaks(1) is None
    assert capsys.readouterr().err == "peaks are not measured: false: status 1\n"


def test_the_command_prints_what_it_measured() -> None:
    ran = subprocess.run(
        [sys.executable, SCRIPT, "--threads", "2", "--json"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    printed = Peaks(**json.loads(ran.stdout))
    assert printed.threads == 2
    assert printed.gflops > 0
