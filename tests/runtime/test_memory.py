"""Memory is bounded by the limit, not by the picture."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

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
    report, peak = run(command)
    assert report["size"] == "7680x4320"
    assert 100 << 20 < peak < 1.5 * (1 << 30)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["photo.jpg", "photo.png"])
def test_neither_input_nor_output_need_fit_into_the_limit(
    small_bundle: Path, tmp_path: Path, name: str
) -> None:
    # 51 MB in and 206 MB out beside some 130 MB of libraries.
    photo = skimage.data.coffee()
    write_picture(tmp_path / name, np.tile(photo, (10, 7, 1))[:4000, :4200])
    command = [Path(sys.executable).parent / "pcsr-upscale", tmp_path / name, "-b", small_bundle, "-s", "2"]
    command += ["-o", tmp_path / "out.png", "--memory-limit", "128MiB", "--json"]
    report, peak = run(command)
    assert report["size"] == "8400x8000"
    assert 100 << 20 < peak < 300 << 20


@pytest.mark.slow
def test_a_photograph_of_24_megapixels_takes_less_than_two_and_a_half_gibibytes(
    shared: Path, small_bundle: Path, tmp_path: Path
) -> None:
    photo = shared / "data" / "large" / "facade-5964x3976.jpg"
    command = [Path(sys.executable).parent / "pcsr-upscale", photo, "-b", small_bundle, "-s", "2"]
    report, peak = run([*command, "-o", tmp_path / "out.jpg", "--json"])
    assert report["size"] == "11928x7952"
    assert 100 << 20 < peak < 2.5 * (1 << 30)


def run(command: list[Path | str]) -> tuple[Any, int]:
    """Report of a command, and the bytes that it had resident at the most."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident_peak(process.pid))
        time.sleep(0.02)
    assert process.stdout is not None
    with process.stdout:
        report = json.loads(process.stdout.read())
    assert process.returncode == 0
    return report, peak


def resident_peak(pid: int) -> int:
    """Bytes that a process has had resident at the most, since it became this program.

    The system's accounting at its end would count the test runner's own memory too, which the process was for
    a moment before.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    peaks = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
    running = "pcsr-upscale" in Path(f"/proc/{pid}/cmdline").read_text()
    return 1024 * peaks[0] if peaks and running else 0
