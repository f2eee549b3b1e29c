"""`pcsr-upscale` as a user runs it: start, imports, decoding, upscaling, encoding, end; time and memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import skimage.data
from bench_record import ProcessRun

from pcsr.runtime.console import format_size
from pcsr.runtime.errors import CheckError
from pcsr.runtime.pictures import write_picture

__all__ = ["time_process"]

PROGRAM = Path(sys.executable).parent / "pcsr-upscale"
SCALE = 4
LAUNCH = Path(__file__).resolve().parent / "bench_launch.py"


def time_process(bundle: Path, runs: int) -> ProcessRun:
    """Run it so many times, after one that does not count, on a photograph of 512x512, PNG to PNG.

    Raises:
        CheckError: the command is not installed, or failed.
    """
    if not PROGRAM.exists():
        raise CheckError(f"{PROGRAM} does not exist; install pcsr into this environment")
    photograph = np.ascontiguousarray(skimage.data.astronaut())
    options = ["-s", str(SCALE), "--adaptive", "--force"]
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.png", Path(folder) / "out.png"
        write_picture(source, photograph)
        command = [str(PROGRAM), str(source), "-o", str(target), "-b", str(bundle), *options]
        found = [_run(command, Path(folder) / "said") for _ in range(runs + 1)][1:]
    return ProcessRun(
        command=f"pcsr-upscale in.png -o out.png -b BUNDLE {' '.join(options)}",
        lr=format_size(photograph.shape[:2]),
        scale=SCALE,
        seconds=tuple(seconds for seconds, _ in found),
        peak_mib=tuple(peak for _, peak in found),
    )


def _run(command: list[str], said: Path) -> tuple[float, float]:
    """Wall seconds, and MiB of the largest resident size."""
    launched = subprocess.run(
        [sys.executable, str(LAUNCH), str(said), *command], stdout=subprocess.PIPE, text=True, check=False
    )
    if launched.returncode:
        raise CheckError(f"pcsr-upscale failed: {said.read_text().strip()[-400:]}")
    seconds, peak = launched.stdout.split()
    return float(seconds), int(peak) / 2**20
