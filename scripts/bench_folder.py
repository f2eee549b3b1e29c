"""How busy computing is kept in a run over a folder: reading and encoding go on beside it, on the same cores.

python scripts/bench.py CHECKPOINT --folder 50
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import skimage.data
from bench_machine import begin, ended
from bench_tables import Section
from numpy.typing import NDArray

from pcsr.export.pipeline import export_bundle
from pcsr.runtime import Options, Upscaler
from pcsr.runtime.atomic import write_whole
from pcsr.runtime.bicubic import resize
from pcsr.runtime.errors import CheckError
from pcsr.runtime.files import FileRequest
from pcsr.runtime.folder.plan import Job, plan_jobs
from pcsr.runtime.folder.run import Outcome, Run
from pcsr.runtime.pictures import write_picture

__all__ = ["busy_shares", "make_folder", "time_folders"]

SCALE, SIDE = 4, 512
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def make_folder(folder: Path, count: int, suffix: str) -> None:
    """So many photographs of 512x512, no two alike."""
    for number in range(count):
        photograph = getattr(skimage.data, PHOTOGRAPHS[number % len(PHOTOGRAPHS)])()
        moved = np.roll(photograph, 17 * number, axis=1)[:, :: 1 if number % 2 else -1]
        write_picture(folder / f"{number:03}{suffix}", _square(moved))


def _square(photograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
    side = min(photograph.shape[:2])
    resized = resize(np.ascontiguousarray(photograph[:side, :side]), size=(SIDE, SIDE))
    square: NDArray[np.uint8] = np.rint(np.clip(resized, 0, 1) * 255).astype(np.uint8)
    return square


def busy_shares(upscaler: Upscaler, folder: Path, output: Path, options: Options) -> dict[str, Any]:
    """Upscale a folder; shares of the wall time that each step took, in whatever thread.

    Raises:
        CheckError: a picture failed.
    """
    plan = plan_jobs(
        [folder],
        output=output,
        suffix_text="",
        form=None,
        class_map=None,
        overlay=None,
        force=False,
        resume=False,
    )
    steps = {
        "reading": 0.0,
        "computing": 0.0,
        "handing rows to the encoder": 0.0,
        "encoding after that": 0.0,
    }

    class Adding:
        def working(self, job: Job, share: float) -> None:
            """Nothing to add."""

        def done(self, outcome: Outcome) -> None:
            if outcome.result is None:
                raise CheckError(f"{outcome.job.source}: {outcome.error}")
            spent = outcome.result.milliseconds
            waited = sum(page.milliseconds.get("delivery", 0.0) for page in outcome.result.pages)
            for step, milliseconds in zip(
                steps, (spent["read"], spent["compute"] - waited, waited, spent["encode"]), strict=True
            ):
                steps[step] += milliseconds / 1000

    request = FileRequest(source=plan.jobs[0].source, target=plan.jobs[0].target, options=options)
    started = time.perf_counter()
    Run(upscaler=upscaler, plan=plan, request=request, listener=Adding()).run()
    wall = time.perf_counter() - started
    return {
        "pictures": len(plan.jobs),
        "seconds": wall,
        "shares": {step: seconds / wall for step, seconds in steps.items()},
    }


def time_folders(checkpoint: Path, count: int, threads: int, report: Path | None) -> Section:
    """Upscale folders of so many PNG and JPEG pictures by 4.

    Args:
        checkpoint: of the network.
        count: pictures in a folder.
        threads: of the upscaler.
        report: file for the numbers, as JSON.
    """
    environment = begin((threads,))
    folders: dict[str, dict[str, Any]] = {}
    with TemporaryDirectory() as made:
        bundle = Path(made) / "bundle"
        export_bundle(checkpoint, bundle, precisions=("fp32",))
        with Upscaler.open(bundle, threads=threads) as up:
            up.warmup((SIDE, SIDE), scale=SCALE)
            for suffix in (".png", ".jpg"):
                inputs, outputs = Path(made) / f"in{suffix}", Path(made) / f"out{suffix}"
                inputs.mkdir()
                outputs.mkdir()
                make_folder(inputs, count, suffix)
                folders[suffix] = busy_shares(up, inputs, outputs, Options(scale=SCALE))
    if report is not None:
        told = {
            "environment": msgspec.to_builtins(ended(environment)),
            "threads": threads,
            "scale": SCALE,
            "folders": folders,
        }
        write_whole(report, msgspec.json.format(msgspec.json.encode(told)) + b"\n")
    pixels = count * (SCALE * SIDE) ** 2
    rows = [
        (
            f"{count} {suffix[1:]}",
            f"{found['seconds']:.1f}",
            f"{pixels / found['seconds'] / 1e6:.2f}",
            *(f"{100 * share:.1f}" for share in found["shares"].values()),
        )
        for suffix, found in folders.items()
    ]
    steps = (f"{step}, %" for step in next(iter(folders.values()))["shares"])
    return Section(
        f"Folders of {SIDE}x{SIDE}, ×{SCALE}, threads: {threads}",
        ("pictures", "s", "megapixels/s", *steps),
        tuple(rows),
    )
