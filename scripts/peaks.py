"""What this processor can do at best: float32 multiply-adds in registers, and copying memory.

    python scripts/peaks.py --threads 2 --json

Ceilings to hold times against. Takes a C++ compiler (`CXX`, or that of Python, which builds the kernels too) and about
a second, which should be a quiet one.

Status: 0, 2 usage, 3 nothing could be measured.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import click

SOURCE = Path(__file__).parent / "peaks.cpp"
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-pthread"]
# The best instructions of the processor; elsewhere what the compiler takes for granted.
X86_FLAGS = ["-march=native"]


@dataclass(frozen=True)
class Peaks:
    """Ceilings, of all threads together.

    Attributes:
        gflops: float32 operations in registers, 10⁹ a second; a multiply-add is two.
        copy_gb_per_s: bytes read and written while 256 MiB are copied, 10⁹ a second.
        instruction_set: whose multiply-adds: "avx512", "avx2" or, elsewhere, "baseline".
        threads: that worked at the same time.
    """

    gflops: float
    copy_gb_per_s: float
    instruction_set: str
    threads: int


def compiler() -> list[str]:
    """The command of the C++ compiler that setup.py uses."""
    return shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")


def measure_peaks(threads: int) -> Peaks | None:
    """Compile a small program and let it measure, for about a second.

    Args:
        threads: that work at the same time, 1 or more.

    Returns:
        None where it cannot be compiled or run: why is a line on stderr.
    """
    flags = FLAGS + (X86_FLAGS if platform.machine().lower() in ("x86_64", "amd64") else [])
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peaks"
        try:
            _run([*compiler(), *flags, str(SOURCE), "-o", str(program)])
            instruction_set, gflops, copy = _run([str(program), str(threads)]).split()
        except OSError as error:
            print(f"peaks are not measured: {error}", file=sys.stderr)
            return None
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip().splitlines()
            reason = said[0] if said else f"status {error.returncode}"
            print(f"peaks are not measured: {Path(error.cmd[0]).name}: {reason}", file=sys.stderr)
            return None
    return Peaks(float(gflops), float(copy), instruction_set, threads)


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@click.command()
@click.option("--threads", type=click.IntRange(min=1), default=os.cpu_count() or 1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def main(*, threads: int, as_json: bool) -> None:
    """Measure the peaks of this processor."""
    peaks = measure_peaks(threads)
    if peaks is None:
        sys.exit(3)
    if as_json:
        click.echo(json.dumps(asdict(peaks)))
        return
    click.echo(
        f"{peaks.gflops:.0f} GFLOP/s in float32 ({peaks.instruction_set}), {peaks.copy_gb_per_s:.1f} GB/s copied "
        f"(read + write), threads: {peaks.threads}"
    )


if __name__ == "__main__":
    main()
