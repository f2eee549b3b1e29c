"""The kernels' own test programs under the sanitizers of addresses, undefined behaviour and threads."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_kernels_stay_within_their_buffers_give_memory_back_and_race_nowhere() -> None:
    assert shutil.which("make"), "make dev needs it too"
    # A library that is loaded before the sanitizer's would end the program.
    # The tests may run under make themselves, whose word on folders would come last.
    left_out = {"LD_PRELOAD", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    variables = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(
        ["make", "-j2", "sanitize"], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.endswith("all right\n")
