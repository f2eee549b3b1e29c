"""The whole road on one photograph: upscale, validate, and a table and a picture of what came out.

Runs the installed commands as a user would; run by `make demo`, or by `make demo CHECKPOINT=path` for a
network of one's own, which is exported first.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import skimage.data
import torch
from rich.console import Console
from rich.table import Table

from pcsr.model.checkpoint import load_checkpoint
from pcsr.model.reference import upscale
from pcsr.runtime import Upscaler
from pcsr.runtime.bicubic import resize
from pcsr.runtime.console import exit_on_error
from pcsr.runtime.machine import usable_cores
from pcsr.runtime.pictures import read_picture, write_picture
from pcsr.runtime.shipped import DEFAULT
from pcsr.validation.metrics import psnr

SCALE = 4
BIN = Path(sys.executable).parent
# What the shipped bundle was exported from.
NETWORK = Path(__file__).resolve().parent.parent / "training" / "networks" / f"{DEFAULT}.safetensors"
# Output rows and columns that the picture of the demo shows, twice as large, side by side.
CROP = slice(190, 340), slice(290, 440)


def run(*command: str | Path) -> None:
    """Show a command, run it, and stop with its status if it failed."""
    shown = [str(part) for part in command]
    print(f"\n$ {' '.join(shown)}", flush=True)
    status = subprocess.run([BIN / shown[0], *shown[1:]], check=False).returncode
    if status:
        sys.exit(status)


@click.command()
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="A PCSR checkpoint (.pth or .safetensors) to export and use instead of the bundle that ships.",
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
@exit_on_error()
def main(checkpoint: Path | None, output: Path) -> None:
    """Upscale a photograph by 4, and prove the result against PyTorch."""
    # Rachel Michetti's photograph, which scikit-image ships under CC0.
    truth = skimage.data.coffee()
    lr = np.rint(np.clip(resize(truth, scale=1 / SCALE), 0, 1) * 255).astype(np.uint8)
    (output / "truth").mkdir(parents=True, exist_ok=True)
    write_picture(output / "truth" / "coffee.png", truth)
    write_picture(output / "lr.png", lr)
    bundle = DEFAULT
    if checkpoint is not None:
        bundle = str(output / "bundle")
        run("pcsr-export", checkpoint, "-o", bundle, "--onnx", "--force")
    checkpoint = checkpoint or NETWORK
    run(
        "pcsr-upscale", output / "lr.png", "-b", bundle, "-o", output / "upscaled.png", "--scale", str(SCALE),
        "--class-map", output / "classes.png", "--overlay", output / "overlay.png", "--force",
    )  # fmt: skip
    run(
        "pcsr-validate", bundle, "-c", checkpoint, "--data", output / "truth", "--scale", str(SCALE),
        "--lr", "8bit", "--k", "0", "--adaptive",
    )  # fmt: skip
    print()
    Console().print(compare(checkpoint, bundle, lr, truth))
    write_picture(output / "side-by-side.jpg", side_by_side(output, lr))
    for name, what in (
        ("side-by-side.jpg", "the input, bicubic, upscaled, and where the computation went"),
        ("lr.png", "the input"),
        ("upscaled.png", "upscaled"),
        ("overlay.png", "where the computation went"),
        ("truth/coffee.png", "the truth"),
    ):
        print(f"{output / name}: {what}")


def side_by_side(output: Path, lr: np.ndarray) -> np.ndarray:
    """One detail of the input, of its bicubic magnification, of the upscaled picture and of its overlay."""
    bicubic = np.rint(np.clip(resize(lr, scale=SCALE), 0, 1) * 255).astype(np.uint8)
    upscaled, overlay = (read_picture(output / name).pixels for name in ("upscaled.png", "overlay.png"))
    panels = [nearest(lr, SCALE), bicubic, upscaled, overlay]
    gap = np.full((2 * (CROP[0].stop - CROP[0].start), 8, 3), 255, np.uint8)
    spaced = [part for panel in panels for part in (gap, nearest(panel[CROP], 2))]
    return np.hstack(spaced[1:])


def nearest(picture: np.ndarray, factor: int) -> np.ndarray:
    """Each pixel as a square."""
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def compare(checkpoint: Path, bundle: str, lr: np.ndarray, truth: np.ndarray) -> Table:
    """Bicubic, PyTorch and the runtime on the same 8-bit input; costs by the paper's count and as run."""
    titles = ("", "PSNR dB", "light / heavy %", "GFLOPs, of all-heavy", "GMACs, of all-heavy", "seconds")
    table = Table(*titles)

    def row(name: str, image: np.ndarray, cells: list[str], seconds: float) -> None:
        table.add_row(name, f"{psnr(image, truth, shave=SCALE):.3f}", *cells, f"{seconds:.3f}")

    started = time.perf_counter()
    bicubic = resize(lr, size=truth.shape[:2])
    row("bicubic", bicubic, ["", "", ""], time.perf_counter() - started)

    network = load_checkpoint(checkpoint)
    torch.set_num_threads(usable_cores())
    upscale(network, lr[:32, :32], scale=SCALE)
    with Upscaler.open(bundle) as up:
        up.warmup(lr.shape[:2], scale=SCALE)
        for rule, options in (("k = 0", {"k": 0.0}), ("adaptive", {"adaptive": True})):
            started = time.perf_counter()
            reference = upscale(network, lr, scale=SCALE, **options)
            seconds = time.perf_counter() - started
            result = up(lr, scale=SCALE, **options)
            cost = result.cost
            flops = f"{reference.flops / 1e9:.2f}, {reference.flops / cost.flops_all_heavy:.0%}"
            shares = np.bincount(reference.class_map.reshape(-1), minlength=2) / reference.class_map.size
            row(f"PyTorch, {rule}", reference.image, [_shares(shares), flops, ""], seconds)
            flops = f"{cost.flops / 1e9:.2f}, {cost.flops / cost.flops_all_heavy:.0%}"
            macs = f"{cost.macs / 1e9:.2f}, {cost.macs / cost.macs_all_heavy:.0%}"
            row(
                f"runtime, {rule}",
                result.image,
                [_shares(result.shares), flops, macs],
                result.milliseconds["total"] / 1e3,
            )
    return table


def _shares(shares: np.ndarray | tuple[float, ...]) -> str:
    return " / ".join(f"{100 * share:.1f}" for share in shares)


if __name__ == "__main__":
    main()
