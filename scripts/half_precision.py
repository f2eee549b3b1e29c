"""What half precision costs in PSNR, emulated: the fp16 graphs of a bundle beside its fp32 graphs.

    python scripts/half_precision.py BUNDLE --data FOLDER --set Set5 --set Set14 --set Kodak24

Every float16 tensor is computed in float32 and rounded (`pcsr.export.half`), since a processor may compute
float16 graphs in float32 and so prove nothing. LR pictures are the truth's MATLAB-style bicubic, unrounded; the
decision is k = 0, without refinement; PSNR is RGB, rounded, shaved by the scale.

Status: 0 within --max-drop, 2 usage, 3 a set fell by more, or a float16 tensor overflows.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import click
import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from pcsr.export.half import EmulatedHalf, emulated_backend
from pcsr.runtime import Upscaler
from pcsr.runtime.atomic import write_whole
from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.console import exit_on_error
from pcsr.runtime.errors import CheckError, OptionError
from pcsr.runtime.machine import total_memory
from pcsr.validation.cli import parse_scales
from pcsr.validation.metrics import agreement, psnr, shave_for
from pcsr.validation.sets import PictureSet, find_sets, make_pair, read_truth


class SetDrop(msgspec.Struct, frozen=True):
    """One set at one scale.

    `single` and `half` are mean PSNR in dB; `worst` the largest drop of a picture; `same_class` the percentage
    of pixels sent to the same class.
    """

    set: str
    scale: float
    pictures: int
    single: float
    half: float
    worst: float
    same_class: float

    @property
    def drop(self) -> float:
        """By how much half precision is worse, in dB; negative where it happens to be better."""
        return self.single - self.half


class Report(msgspec.Struct, frozen=True):
    """All sets; the largest magnitude of any float16 tensor and the tensor's name; versions."""

    bundle: str
    emulated: bool
    largest: float
    largest_tensor: str
    sets: tuple[SetDrop, ...]
    versions: dict[str, str]


Tell = Callable[[str], None]


def measure_set(
    single: Upscaler, half: Upscaler, pictures: PictureSet, *, scale: float, tell: Tell
) -> SetDrop:
    """Upscale a set in both precisions and compare each with the truth."""
    rows = []
    for path in pictures.paths:
        tell(f"{pictures.name}/{path.name} ×{scale:g}")
        lr, truth = make_pair(read_truth(path), scale=scale)
        size = truth.shape[:2]
        results = [up(lr, size=(size[0], size[1]), k=0.0) for up in (single, half)]
        shave = shave_for(scale)
        in_single, in_half = (psnr(result.image, truth, shave=shave) for result in results)
        rows.append((in_single, in_half, agreement(results[0].class_map, results[1].class_map)))
    columns = np.array(rows)
    mean = columns.mean(axis=0)
    worst = float((columns[:, 0] - columns[:, 1]).max())
    return SetDrop(pictures.name, scale, len(rows), float(mean[0]), float(mean[1]), worst, float(mean[2]))


def measure(
    bundle: Path, sets: tuple[PictureSet, ...], *, scales: tuple[float, ...], threads: int, tell: Tell
) -> Report:
    """Measure all sets at all scales.

    Raises:
        BundleError: the bundle lacks one of the two precisions.
        CheckError: a float16 tensor overflows.
    """
    opened = read_bundle(bundle)
    backend, graphs = emulated_backend(opened)
    half = Upscaler(opened, backend, threads=1, memory_limit=total_memory() // 2)
    with half, Upscaler.open(bundle, precision="fp32", threads=threads) as single:
        drops = tuple(
            measure_set(single, half, pictures, scale=scale, tell=tell)
            for scale in scales
            for pictures in sets
        )
    largest, tensor = largest_of(graphs)
    versions = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "onnxruntime", "torch")},
    }
    return Report(bundle.resolve().name, True, largest, tensor, drops, versions)


def largest_of(graphs: dict[str, EmulatedHalf]) -> tuple[float, str]:
    """Largest magnitude that any float16 tensor took, and which."""
    return max((graph.largest[0], f"{name}: {graph.largest[1]}") for name, graph in graphs.items())


def print_report(report: Report) -> None:
    """A row for each set and scale."""
    table = Table(title=f"{report.bundle}: fp16 (emulated) beside fp32, k = 0")
    table.add_column("set")
    for name in ("scale", "pictures", "fp32 dB", "fp16 dB", "drop dB", "worst picture dB", "same class %"):
        table.add_column(name, justify="right")
    for row in report.sets:
        decibels = (f"{value:.4f}" for value in (row.single, row.half, row.drop, row.worst))
        table.add_row(row.set, f"{row.scale:g}", f"{row.pictures}", *decibels, f"{row.same_class:.3f}")
    # Wide enough for the table whatever the terminal: nothing is abbreviated in a log.
    console = Console(width=120)
    console.print(table)
    console.print(f"largest float16 magnitude {report.largest:.4g} (limit 65504), {report.largest_tensor}")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Folder of pictures, or of sets."
)
@click.option("--set", "names", multiple=True, help="Only the sets of this name; several times.")
@click.option("-s", "--scale", "scales", default="4,2", show_default=True, help="Scales, like 4,2.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N pictures of each set.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--max-drop", type=float, default=0.005, show_default=True, help="dB a set may lose.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the numbers here, as JSON.")
@exit_on_error()
def main(
    *,
    bundle: Path,
    data: Path,
    names: tuple[str, ...],
    scales: str,
    limit: int | None,
    threads: int,
    max_drop: float,
    report: Path | None,
) -> None:
    """Measure what the fp16 graphs of BUNDLE lose against its fp32 graphs."""
    torch.set_num_threads(threads)
    sets = find_sets(data, limit=limit)
    missing = set(names) - {found.name for found in sets}
    if missing:
        raise OptionError(f"{data} has no set named {', '.join(sorted(missing))}; see what folders it has")
    chosen = tuple(found for found in sets if found.name in names or not names)
    measured = measure(
        bundle,
        chosen,
        scales=parse_scales(scales),
        threads=threads,
        tell=lambda line: click.echo(line, err=True),
    )
    print_report(measured)
    if report is not None:
        write_whole(report, msgspec.json.format(msgspec.json.encode(measured)) + b"\n")
    for row in measured.sets:
        if not row.drop <= max_drop:
            raise CheckError(
                f"{row.set} ×{row.scale:g} lost {row.drop:.4f} dB in half precision, allowed is {max_drop:g}; "
                "export with --precision fp32"
            )
    click.echo("PASSED")


if __name__ == "__main__":
    main()
