"""Memory is bounded by the limit, not by the picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data

from pcsr.runtime.bicubic import resize
from pcsr.runtime.pictures import write_picture


@pytest.mark.slow
@pytest.mark.parametrize("rule", [["--k", "0"], ["--adaptive", "--refine"]])
def test_full_hd_to_8k_stays_below_one_and_a_half_gibibytes(
    carn_bundle: Path, tmp_path: Path, rule: list[str]
) -> None:
    photo = resize(skimage.data.coffee()[20:358], size=(1080, 1920))
    write_picture(tmp_path / "hd.png", np.rint(np.clip(photo, 0, 1) * 255).astype(np.uint8))
    command = [
        Path(sys.executable).parent / "pcsr-upscale",
        tmp_path / "hd.png",
        "-b",
        carn_bundle,
        "-s",
        "4",
        *rule,
    ]
    command += ["-o", tmp_path / "8k.jpg", "--memory-limit", "1GiB", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        report = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert report["size"] == "7680x4320"
    # Linux counts kibibytes.
    assert usage.ru_maxrss / 1024 / 1024 < 1.5
