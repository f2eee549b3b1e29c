"""What INT8 costs: every observer, full and mixed, on test sets, in the forms for TensorRT and for this processor.

    python scripts/int8_table.py BUNDLE --calibrate FOLDER --data SETS -s 4 --report FILE.json

BUNDLE is calibrated on FOLDER once for each observer and once with "auto", which also chooses layers within
--allow-drop; "full" has every layer in INT8. Graphs of the form for TensorRT (8.6's, which is float32 around the same
integers) run in ONNX Runtime as a reference for what an engine computes; those for the processor as users run them. LR
pictures are the truth's MATLAB-style bicubic, unrounded; the decision is k = 0, without refinement; PSNR is RGB,
rounded, shaved by the scale.

Status: 0 the chosen layers are within --allow-drop on the mean of the sets at every scale, 2 usage, 3 they are not.
"""

from __future__ import annotations

import dataclasses
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import click
import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from pcsr.calibration.collect import opened
from pcsr.calibration.evaluation import int8_share
from pcsr.calibration.run import Request, calibrate, network_of
from pcsr.export.graphs import build_graphs
from pcsr.export.int8.cache import Calibration, read_calibration
from pcsr.export.int8.forms import int8_forms
from pcsr.export.pipeline import serialise
from pcsr.runtime.atomic import write_whole
from pcsr.runtime.backends.onnxruntime import open_model
from pcsr.runtime.bundle import Bundle, read_bundle
from pcsr.runtime.console import exit_on_error
from pcsr.runtime.errors import CheckError, OptionError
from pcsr.runtime.machine import multiplies_int8
from pcsr.runtime.manifest import Form
from pcsr.runtime.shipped import find_bundle
from pcsr.runtime.upscaler import Upscaler
from pcsr.validation.cli import parse_scales
from pcsr.validation.metrics import agreement, psnr, shave_for
from pcsr.validation.sets import PictureSet, find_sets, make_pair, read_truth

OBSERVERS = (
    ("minmax", 99.99),
    ("percentile", 99.9),
    ("percentile", 99.99),
    ("entropy", 99.99),
    ("mse", 99.99),
)


class Row(msgspec.Struct, frozen=True):
    """One variant on one set at one scale; dB, percentages, and seconds of the set as ratio to fp32's."""

    variant: str
    form: str
    set: str
    scale: float
    pictures: int
    single: float
    drop: float
    worst: float
    same_class: float
    share: float
    time: float


class Report(msgspec.Struct, frozen=True):
    """All rows, and what made them."""

    bundle: str
    allow_drop: float
    observers: dict[str, str]
    rows: tuple[Row, ...]
    machine: dict[str, str]


Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A calibration with all of its layers in INT8, or those that it chose."""

    name: str
    calibration: Calibration


def variants(bundle: Bundle, settings: Request, *, every: bool, tell: Tell) -> list[Variant]:
    """Calibrate once for each observer; the chosen layers are those of that observer's own sensitivities."""
    found = []
    asked = [*OBSERVERS, ("auto", 99.99)] if every else [("auto", 99.99)]
    for observer, percentile in asked:
        name = f"{observer} {percentile:g}" if observer == "percentile" else observer
        tell(f"calibrating: {name}")
        with tempfile.TemporaryDirectory() as scratch:
            request = dataclasses.replace(
                settings, observer=observer, percentile=percentile, cache=Path(scratch) / "cache.json"
            )
            calibration = calibrate(bundle, request)
        found += full_and_mixed(name, calibration)
    return found


def full_and_mixed(name: str, calibration: Calibration) -> list[Variant]:
    """A calibration with all layers, and with those that it chose."""
    full = msgspec.structs.replace(
        calibration, layers={graph: tuple(nodes) for graph, nodes in calibration.weights.items()}
    )
    return [Variant(f"{name}, full", full), Variant(f"{name}, mixed", calibration)]


def open_variant(bundle: Bundle, variant: Variant, form: Form, threads: int) -> Upscaler:
    """An upscaler on the graphs of one form."""
    network = network_of(bundle)
    manifest = bundle.manifest
    half = build_graphs(manifest.network, manifest.normalisation, bundle.weights(), half=True)
    models = int8_forms(network.models, half, network.layers, variant.calibration)[form]
    runs = {
        name: open_model(serialise(model), name, threads=threads if name == "backbone" else 1)
        for name, model in models.items()
    }
    return opened(bundle, runs, precision="int8", threads=threads)


def measure_set(
    bundle: Bundle,
    ups: dict[tuple[str, str], Upscaler],
    single: Upscaler,
    chosen: dict[str, Calibration],
    pictures: PictureSet,
    *,
    scale: float,
    tell: Tell,
) -> list[Row]:
    """Upscale a set with every variant, picture by picture."""
    network = network_of(bundle)
    results: dict[tuple[str, str], list[tuple[float, ...]]] = {key: [] for key in ups}
    qualities, seconds, shares = [], 0.0, []
    for path in pictures.paths:
        tell(f"{pictures.name}/{path.name} ×{scale:g}")
        lr, truth = make_pair(read_truth(path), scale=scale)
        size, shave = (truth.shape[0], truth.shape[1]), shave_for(scale)
        started = time.perf_counter()
        exact = single(lr, size=size, k=0.0)
        seconds += time.perf_counter() - started
        quality = psnr(exact.image, truth, shave=shave)
        qualities.append(quality)
        shares.append(exact.shares)
        for key, up in ups.items():
            started = time.perf_counter()
            result = up(lr, size=size, k=0.0)
            spent = time.perf_counter() - started
            drop = quality - psnr(result.image, truth, shave=shave)
            results[key].append((drop, agreement(result.class_map, exact.class_map), spent))
    routed = [float(share) for share in np.mean(shares, axis=0)]
    rows = []
    for (name, form), each in results.items():
        columns = np.array(each)
        layers = chosen[name].layers
        its = [layer for layer in network.layers if layer.node in layers[layer.graph]]
        rows.append(
            Row(
                variant=name,
                form=form,
                set=pictures.name,
                scale=scale,
                pictures=len(each),
                single=float(np.mean(qualities)),
                drop=float(columns[:, 0].mean()),
                worst=float(columns[:, 0].max()),
                same_class=float(columns[:, 1].mean()),
                share=100 * int8_share(bundle, its, scale, routed),
                time=float(columns[:, 2].sum() / seconds),
            )
        )
    return rows


def print_report(report: Report) -> None:
    """A row for each variant, form and scale, over all sets together, and one for each set."""
    table = Table(title=f"{report.bundle}: int8 beside fp32, k = 0")
    for name in ("variant", "form", "set"):
        table.add_column(name)
    for name in ("scale", "pictures", "fp32 dB", "drop dB", "worst dB", "same class %", "MACs %", "time"):
        table.add_column(name, justify="right")
    for row in report.rows:
        table.add_row(
            row.variant, row.form, row.set, f"{row.scale:g}", f"{row.pictures}", f"{row.single:.3f}",
            f"{row.drop:.4f}", f"{row.worst:.4f}", f"{row.same_class:.2f}", f"{row.share:.1f}", f"{row.time:.2f}",
        )  # fmt: skip
    Console(width=150).print(table)


def mean_rows(rows: Sequence[Row]) -> list[Row]:
    """Means over the sets, each set counting once."""
    found = []
    for variant, form, scale in dict.fromkeys((row.variant, row.form, row.scale) for row in rows):
        its = [row for row in rows if (row.variant, row.form, row.scale) == (variant, form, scale)]

        def mean(field: str, its: Sequence[Row] = its) -> float:
            return float(np.mean([getattr(row, field) for row in its]))

        found.append(
            Row(
                variant=variant,
                form=form,
                set="mean of the sets",
                scale=scale,
                pictures=sum(row.pictures for row in its),
                single=mean("single"),
                drop=mean("drop"),
                worst=max(row.worst for row in its),
                same_class=mean("same_class"),
                share=mean("share"),
                time=mean("time"),
            )
        )
    return found


@click.command()
@click.argument("bundle")
@click.option("--calibrate", "folder", type=click.Path(path_type=Path), help="Pictures to calibrate on.")
@click.option("--cache", type=click.Path(path_type=Path), help="A calibration that is there, instead.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of test sets.")
@click.option("--set", "names", multiple=True, help="Only the sets of this name; several times.")
@click.option("-s", "--scale", "scales", default="4", show_default=True, help="To calibrate and to test at.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N pictures of each set.")
@click.option("--pictures", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--every-observer", is_flag=True, help="Not only auto.")
@click.option("--allow-drop", type=float, default=0.03, show_default=True, help="dB of the mean.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--report", type=click.Path(path_type=Path), help="Write the numbers here, as JSON.")
@exit_on_error()
def main(
    *,
    bundle: str,
    folder: Path | None,
    cache: Path | None,
    data: Path,
    names: tuple[str, ...],
    scales: str,
    limit: int | None,
    pictures: int,
    every_observer: bool,
    allow_drop: float,
    threads: int,
    report: Path | None,
) -> None:
    """Calibrate BUNDLE and measure what its INT8 graphs lose against fp32."""

    def tell(line: str) -> None:
        click.echo(line, err=True)

    source = read_bundle(find_bundle(bundle))
    tested = parse_scales(scales)
    if (folder is None) == (cache is None):
        raise OptionError("give either --calibrate, with pictures, or --cache, with what they gave")
    if cache is not None:
        compared = full_and_mixed("auto", read_calibration(cache))
    else:
        assert folder is not None
        settings = Request(
            data=folder,
            cache=Path(),
            scales=tested,
            pictures=pictures,
            allow_drop=allow_drop,
            threads=threads,
        )
        compared = variants(source, settings, every=every_observer, tell=tell)
    on_processor: Form = "int8-vnni" if multiplies_int8() else "int8-cpu"
    forms: tuple[Form, ...] = ("int8-trt8", on_processor)
    ups = {
        (variant.name, form): open_variant(source, variant, form, threads)
        for variant in compared
        for form in forms
    }
    exact = network_of(source).models
    single = opened(
        source,
        {n: open_model(serialise(m), n, threads=threads if n == "backbone" else 1) for n, m in exact.items()},
        precision="fp32",
        threads=threads,
    )
    chosen = {variant.name: variant.calibration for variant in compared}
    rows: list[Row] = []
    for pictures_of in find_sets(data, limit=limit):
        if names and pictures_of.name not in names:
            continue
        for scale in tested:
            rows += measure_set(source, ups, single, chosen, pictures_of, scale=scale, tell=tell)
    found = Report(
        bundle=source.path.resolve().name,
        allow_drop=allow_drop,
        observers={
            graph: f"{each.observer} {each.percentile or ''}".strip()
            for graph, each in compared[-1].calibration.settings.observers.items()
        },
        rows=(*mean_rows(rows), *rows),
        machine={
            "python": platform.python_version(),
            "vnni": str(multiplies_int8()),
            **{name: version(name) for name in ("numpy", "onnx", "onnxruntime")},
        },
    )
    print_report(found)
    if report is not None:
        write_whole(report, msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    for row in mean_rows(rows):
        if row.variant == "auto, mixed" and row.form == "int8-trt8" and not row.drop <= allow_drop:
            raise CheckError(
                f"×{row.scale:g} lost {row.drop:.4f} dB in INT8 on the mean of the sets, allowed is {allow_drop:g}; "
                "calibrate with more --pictures or a lower --allow-drop"
            )
    click.echo("PASSED")


if __name__ == "__main__":
    main()
