"""The project's one benchmark: every competitor on the same picture, in one process, in turn.

Machines are noisy, so what counts is the ratio of times measured side by side: each round runs every
competitor once, and the table gives the median and quartiles of the ratios, round by round.

    python scripts/bench.py CHECKPOINT --dense DENSE_CHECKPOINT --picture PICTURE
    python scripts/bench.py CHECKPOINT --folder 50
"""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import onnxruntime
import skimage.data
import torch
from bench_folder import SIDE, busy_shares, make_folder
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pcsr.export.pipeline import export_bundle
from pcsr.model.checkpoint import load_checkpoint
from pcsr.model.dense import DenseNetwork, load_dense
from pcsr.model.reference import upscale
from pcsr.runtime import Options, Upscaler
from pcsr.runtime.atomic import write_whole
from pcsr.runtime.console import exit_on_error, format_size, parse_size
from pcsr.runtime.machine import usable_cores
from pcsr.runtime.pictures import read_picture

SCALE = 4
VECTOR_UNITS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
ORACLE, DENSE = "oracle, PyTorch, k = 0", "dense x4, ONNX Runtime"

Competitor = Callable[[], object]


def dense_graph(network: DenseNetwork) -> bytes:
    """The dense x4 network as PyTorch's own exporter writes it: lr (1, 3, h, w) to hr, in the network's precision."""
    model = io.BytesIO()
    example = torch.rand(1, 3, 32, 40).to(next(network.parameters()).dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            model,
            dynamo=False,
            opset_version=17,
            input_names=["lr"],
            output_names=["hr"],
            dynamic_axes={"lr": {2: "h", 3: "w"}, "hr": {2: "H", 3: "W"}},
        )
    return model.getvalue()


def dense_in_onnxruntime(checkpoint: Path, lr: NDArray[Any], threads: int) -> Competitor:
    """The dense x4 network in ONNX Runtime, uint8 in and out like ours."""
    network = load_dense(checkpoint)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(dense_graph(network), options, providers=["CPUExecutionProvider"])
    mean = np.array(network.spec.mean, dtype=np.float32).reshape(1, 3, 1, 1)

    def run() -> NDArray[np.uint8]:
        planar = np.ascontiguousarray(lr.transpose(2, 0, 1))[None].astype(np.float32) / 255 - mean
        hr = session.run(None, {"lr": planar})[0] + mean
        return np.rint(np.clip(hr[0] * 255, 0, 255)).astype(np.uint8).transpose(1, 2, 0)

    return run


def in_turn(competitors: dict[str, Competitor], rounds: int) -> dict[str, list[float]]:
    """Seconds of each competitor in each round, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in competitors}
    for number in range(rounds + 1):
        for name, run in competitors.items():
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def environment(threads: int) -> dict[str, Any]:
    """What a reader needs to place the numbers."""
    cpu = {}
    if Path("/proc/cpuinfo").exists():
        lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
        cpu = {key.strip(): value.strip() for key, _, value in lines}
    flags = cpu.get("flags", "").split()
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "processor": cpu.get("model name", platform.processor()),
        "vendor": cpu.get("vendor_id", ""),
        "vector units": [
            f for f in ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16") if f in flags
        ],
        "cores": usable_cores(),
        "threads": threads,
        "load before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("pcsr", "numpy", "onnxruntime", "torch")},
        "commit": git.stdout.strip(),
    }


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return float(low), float(middle), float(high)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--dense", type=click.Path(path_type=Path), help="The dense x4 network's checkpoint (.pth).")
@click.option("--picture", type=click.Path(path_type=Path), help="Input picture.  [default: a cat, 420x276]")
@click.option("--size", metavar="WIDTHxHEIGHT", help="Crop the input to this size.")
@click.option("--backend", default="auto", show_default=True, help="What runs fp32.")
@click.option("--rounds", type=click.IntRange(3), default=7, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=usable_cores(), show_default=True)
@click.option("--oracle/--no-oracle", default=True, help="Time the published inference too; it is slow.")
@click.option("--calibration", type=click.Path(path_type=Path), help="Cache: int8 is timed too.")
@click.option("--folder", type=click.IntRange(2), help="Instead: how busy computing is, of so many pictures.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write everything to this file.")
@exit_on_error()
def main(
    checkpoint: Path,
    dense: Path | None,
    picture: Path | None,
    size: str | None,
    backend: str,
    rounds: int,
    threads: int,
    oracle: bool,
    calibration: Path | None,
    folder: int | None,
    report: Path | None,
) -> None:
    """Time the runtime beside the published inference and the dense network."""
    environ = environment(threads)
    if folder is not None:
        _time_folder(checkpoint, folder, threads, report, environ)
        return
    torch.set_num_threads(threads)
    lr = read_picture(picture).pixels if picture else skimage.data.chelsea()[:276, :420]
    if size:
        height, width = parse_size(size)
        lr = lr[:height, :width]
    lr = np.ascontiguousarray(lr)
    with TemporaryDirectory() as made:
        bundle = Path(made) / "bundle"
        wanted = ("fp32",) if calibration is None else ("fp32", "int8")
        export_bundle(checkpoint, bundle, precisions=wanted, calibration=calibration)
        with ExitStack() as opened:
            up = opened.enter_context(Upscaler.open(bundle, backend=backend, threads=threads))
            competitors: dict[str, Competitor] = {}
            if dense:
                competitors[DENSE] = dense_in_onnxruntime(dense, lr, threads)
            if oracle:
                network = load_checkpoint(checkpoint)
                competitors[ORACLE] = lambda: upscale(network, lr, scale=SCALE)
            results: dict[str, Any] = {}

            def ours(name: str, by: Upscaler = up, **options: Any) -> None:
                def run() -> None:
                    results[name] = by(lr, scale=SCALE, **options)

                competitors[name] = run

            ours("k = 0", k=0.0)
            if calibration is not None:
                integer = opened.enter_context(Upscaler.open(bundle, precision="int8", threads=threads))
                ours("k = 0, int8", integer, k=0.0)
            ours("adaptive", adaptive=True)
            ours("all light", budget=0.0)
            ours("all heavy", budget=1.0)
            seconds = in_turn(competitors, rounds)
            ran = f"{up.backend}, {up.provider}, {up.precision}"
    baselines = [name for name in (DENSE, ORACLE) if name in seconds]
    table = Table(
        "", "ms, median", *(f"of {name.partition(',')[0]} [quartiles]" for name in baselines), "heavy %"
    )
    record: dict[str, Any] = {
        "environment": environ,
        "lr": format_size(lr.shape[:2]),
        "scale": SCALE,
        "backend": ran,
    }
    record["seconds"] = seconds
    for name, times in seconds.items():
        ratios = {b: quartiles([a / c for a, c in zip(times, seconds[b], strict=True)]) for b in baselines}
        record.setdefault("ratios", {})[name] = ratios
        cells = [f"{middle:.3f} [{low:.3f}, {high:.3f}]" for low, middle, high in ratios.values()]
        share = f"{100 * results[name].shares[-1]:.1f}" if name in results else ""
        table.add_row(name, f"{1000 * quartiles(times)[1]:.0f}", *cells, share)
    stages = Table("ms by stage", *next(iter(results.values())).milliseconds)
    for name, result in results.items():
        record.setdefault("milliseconds", {})[name] = dict(result.milliseconds)
        stages.add_row(name, *(f"{value:.0f}" for value in result.milliseconds.values()))
    console = Console()
    console.print(f"{environ['processor']}, {threads} threads, LR {record['lr']} x{SCALE}, {ran}")
    console.print(table)
    console.print(stages)
    if report:
        write_whole(report, json.dumps(record, indent=2).encode() + b"\n")


def _time_folder(
    checkpoint: Path, count: int, threads: int, report: Path | None, environ: dict[str, Any]
) -> None:
    """Folders of PNG and of JPEG, each upscaled by 4."""
    record: dict[str, Any] = {"environment": environ, "scale": SCALE, "folders": {}}
    table = Table("pictures 512x512", "s", "megapixels/s")
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
                found = busy_shares(up, inputs, outputs, Options(scale=SCALE))
                record["folders"][suffix] = found
                if not table.rows:
                    for step in found["shares"]:
                        table.add_column(f"{step}, %")
                pixels = count * (SCALE * SIDE) ** 2
                shares = [f"{100 * share:.1f}" for share in found["shares"].values()]
                speed = f"{pixels / found['seconds'] / 1e6:.2f}"
                table.add_row(f"{count} {suffix[1:]}", f"{found['seconds']:.1f}", speed, *shares)
    Console().print(table)
    if report:
        write_whole(report, json.dumps(record, indent=2).encode() + b"\n")


if __name__ == "__main__":
    main()
