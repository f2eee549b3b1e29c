"""`pcsr-upscale` as a user runs it: start, imports, decoding, upscaling, encoding, end; time and memory."""

from __future__ import annotations

import os
import platform
import sys
import time
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
# Of ru_maxrss: kilobytes, except on macOS.
UNIT = 1 if platform.system() == "Darwin" else 1024


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
    writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    into = [(os.POSIX_SPAWN_OPEN, 1, str(said), writing, 0o600), (os.POSIX_SPAWN_DUP2, 1, 2)]
    started = time.perf_counter()
    process = os.posix_spawn(command[0], command, os.environ, file_actions=into)
    _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - started
    if status:
        raise CheckError(f"pcsr-upscale failed: {said.read_text().strip()[-400:]}")
    return seconds, usage.ru_maxrss * UNIT / 2**20
