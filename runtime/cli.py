"""`pcsr-upscale`: one picture file in, one upscaled picture file out."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pcsr.runtime.atomic import unwritable
from pcsr.runtime.class_maps import overlay, write_class_map
from pcsr.runtime.console import (
    exit_on_error,
    format_size,
    parse_bytes,
    parse_size,
    progress_line,
    start_logging,
)
from pcsr.runtime.errors import OptionError
from pcsr.runtime.geometry import output_size
from pcsr.runtime.options import Options, Result
from pcsr.runtime.pictures import check_writable, output_format, read_picture, write_picture
from pcsr.runtime.pictures.formats import SUFFIXES
from pcsr.runtime.shipped import DEFAULT, find_bundle, shipped_bundle, shipped_bundles

if TYPE_CHECKING:
    from pcsr.runtime.upscaler import Upscaler

__all__ = ["main"]

logger = logging.getLogger(__name__)

DEFAULT_SCALE = 4.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.option(
    "-b",
    "--bundle",
    help=f"One that ships ({', '.join(shipped_bundles())}), or a folder made by pcsr-export.  [default: {DEFAULT}]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="PNG, JPEG, TIFF or WebP, by its ending.  [default: beside INPUT, like INPUT_x4.png]",
)
@click.option("-s", "--scale", type=float, help="Magnification, 1 or more, like 2.5.  [default: 4]")
@click.option("--size", metavar="WIDTHxHEIGHT", help="Output size instead of a scale, like 3840x2160.")
@click.option("--k", type=float, help="Prefer quality (below 0) or speed (above 0).  [default: 0]")
@click.option("--adaptive", is_flag=True, help="Decide by the picture's own easy and hard pixels.")
@click.option("--budget", type=float, help="Share of the adjustable cost to spend, 0 to 1.")
@click.option("--refine", is_flag=True, help="Smooth light pixels that touch heavy ones.")
@click.option(
    "--backend",
    type=click.Choice(["auto", "onnxruntime", "tensorrt"]),
    default="auto",
    show_default=True,
    help="What computes.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:0.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "fp16", "int8"]),
    default="auto",
    show_default=True,
    help="auto: the fastest in the bundle that costs no quality; int8 is only used when named.",
)
@click.option(
    "--engine-cache",
    type=click.Path(path_type=Path),
    help="Folder of TensorRT engines.  [default: in the bundle, or the user's cache]",
)
@click.option("--threads", type=click.IntRange(min=1), help="Worker threads.  [default: usable cores]")
@click.option("--tile", type=click.IntRange(min=16), help="Side of the tiles in input pixels.")
@click.option("--memory-limit", metavar="BYTES", help="Like 512MiB, 1GiB or 2GB.  [default: half of all]")
@click.option(
    "--class-map", type=click.Path(path_type=Path), help="Also write each pixel's class, as grey PNG."
)
@click.option(
    "--overlay", "overlay_path", type=click.Path(path_type=Path), help="Also write classes as tints."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a line.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("-v", "--verbose", is_flag=True, help="Log details.")
@click.version_option(package_name="pcsr")
@exit_on_error()
def main(
    *,
    source: Path,
    bundle: str | None,
    output: Path | None,
    scale: float | None,
    size: str | None,
    k: float | None,
    adaptive: bool,
    budget: float | None,
    refine: bool,
    backend: str,
    device: str,
    precision: str,
    engine_cache: Path | None,
    threads: int | None,
    tile: int | None,
    memory_limit: str | None,
    class_map: Path | None,
    overlay_path: Path | None,
    as_json: bool,
    force: bool,
    verbose: bool,
) -> None:
    """Upscale the picture INPUT.

    Prints the output's name, size, share of pixels per class and seconds. Status: 0 done, 1 the picture
    failed, 2 nothing was tried, 130 interrupted.
    """
    start_logging(verbose=verbose)
    if scale is None and size is None:
        scale = DEFAULT_SCALE
        logger.info("no --scale or --size given: upscaling by %g", scale)
    options = Options(
        scale=scale,
        size=None if size is None else parse_size(size),
        k=k,
        adaptive=adaptive,
        budget=budget,
        refine=refine,
    )
    limit = None if memory_limit is None else parse_bytes(memory_limit)
    if output is None:
        output = default_output(source, options)
        logger.info("no --output given: writing %s", click.format_filename(output))
    targets = Targets(output=output, class_map=class_map, overlay=overlay_path)
    targets.check(source, force=force)
    folder = shipped_bundle() if bundle is None else find_bundle(bundle)
    if bundle is None:
        logger.info("no --bundle given: using %s, which ships with pcsr", DEFAULT)

    from pcsr.runtime.upscaler import Upscaler

    with Upscaler.open(
        folder,
        device=device,
        precision=precision,
        backend=backend,
        threads=threads,
        memory_limit=limit,
        tile=tile,
        engine_cache=engine_cache,
    ) as upscaler:
        started = time.perf_counter()
        result = upscale_file(upscaler, source, targets, options)
        seconds = time.perf_counter() - started
        if as_json:
            click.echo(json.dumps(report(result, source, output, options, threads=upscaler.threads)))
        else:
            click.echo(f"{click.format_filename(output)} {summary(result)} {seconds:.2f} s")


def default_output(source: Path, options: Options) -> Path:
    """Name beside the input that says what was done, in its format where that can be written, else PNG.

    Raises:
        OptionError: the input is no name of a file.
    """
    if not source.name:
        raise OptionError(f"INPUT is {str(source)!r}, which is no file; name a picture")
    if options.size is not None:
        what = format_size(options.size)
    else:
        assert options.scale is not None
        what = f"x{options.scale:.12g}"
    suffix = source.suffix if source.suffix.lower() in SUFFIXES else ".png"
    return source.with_name(f"{source.stem}_{what}{suffix}")


@dataclass(frozen=True, slots=True)
class Targets:
    """Files to be written for one picture."""

    output: Path
    class_map: Path | None = None
    overlay: Path | None = None

    def check(self, source: Path, *, force: bool) -> None:
        """Refuse, before any work, names that cannot or must not be written.

        Raises:
            OptionError: a name with no known format, in no folder, given twice, of the input, or of a file
                that exists and is not to be replaced.
        """
        try:
            self._check(source, force=force)
        except OSError as error:
            raise OptionError(
                f"cannot look up {error.filename}: {error.strerror}; check permissions"
            ) from error

    def _check(self, source: Path, *, force: bool) -> None:
        seen = {source.resolve(): "the input"}
        for what, path in self.named().items():
            form = output_format(path)
            if what == "--class-map" and form != "png":
                raise OptionError(f"{path}: a class map is written as PNG; end the name in .png")
            if problem := unwritable(path):
                raise OptionError(problem)
            place = path.resolve()
            if place in seen or (path.exists() and source.exists() and path.samefile(source)):
                raise OptionError(
                    f"{what} {path} is also {seen.get(place, 'the input')}; give it another name"
                )
            seen[place] = what
            if os.path.lexists(path) and not force:
                raise OptionError(f"{path} exists; give --force to replace it, or another name")

    def named(self) -> dict[str, Path]:
        """Those that were asked for, by option."""
        named = {"--output": self.output, "--class-map": self.class_map, "--overlay": self.overlay}
        return {what: path for what, path in named.items() if path is not None}


def upscale_file(upscaler: Upscaler, source: Path, targets: Targets, options: Options) -> Result:
    """Read, upscale and write one picture; the output comes last, so that it stands for all of them.

    Raises:
        PictureError: the picture cannot be read, or a file cannot be written or hold it.
        PcsrError: as the upscaler raises.
    """
    picture = read_picture(source)
    h, w = picture.pixels.shape[:2]
    size = output_size(h, w, options.scale, options.size)
    check_writable(targets.output, (*size, *picture.pixels.shape[2:]), picture.pixels.dtype)
    if targets.overlay is not None:
        check_writable(targets.overlay, (*size, 3), "uint8")
    logger.info("%s: %s to %s", click.format_filename(source), format_size((h, w)), format_size(size))
    with progress_line("upscaling") as show:
        result = upscaler(
            picture.pixels,
            scale=options.scale,
            size=options.size,
            k=options.k,
            adaptive=options.adaptive,
            budget=options.budget,
            refine=options.refine,
            progress=show,
        )
    classes = upscaler.bundle.manifest.classes
    # What is new beside an output that then fails goes again; a file that was replaced is not taken away.
    new = [path for path in (targets.class_map, targets.overlay) if path is not None and not path.exists()]
    try:
        if targets.class_map is not None:
            write_class_map(targets.class_map, result.class_map, classes)
        if targets.overlay is not None:
            write_picture(targets.overlay, overlay(result.image, result.class_map, classes))
        write_picture(targets.output, result.image, like=picture)
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise
    return result


def summary(result: Result) -> str:
    """Size and shares of a result, for people: `3840x2160 light 71.39 % heavy 28.61 %`."""
    several = [f"class {number}" for number in range(len(result.shares))]
    names = ["light", "heavy"] if len(several) == 2 else several
    shares = " ".join(f"{name} {100 * share:.2f} %" for name, share in zip(names, result.shares, strict=True))
    return f"{format_size(result.class_map.shape[:2])} {shares}"


def report(
    result: Result, source: Path, output: Path, options: Options, *, threads: int
) -> Mapping[str, object]:
    """What --json prints: sizes as WIDTHxHEIGHT, lightest class first, null where nothing applies."""
    decision, cost = result.decision, result.cost
    thresholds = None
    if decision.thresholds is not None:
        # One that no pixel is to reach is infinite, for which JSON has no number.
        thresholds = [each if math.isfinite(each) else None for each in decision.thresholds]
    return {
        "input": click.format_filename(source),
        "output": click.format_filename(output),
        "size": format_size(result.class_map.shape[:2]),
        "scale": options.scale,
        "decision": {
            "kind": decision.kind,
            "value": decision.value,
            "thresholds": thresholds,
        },
        "shares": list(result.shares),
        "cost": {
            "flops": cost.flops,
            "flops_all_heavy": cost.flops_all_heavy,
            "macs": cost.macs,
            "macs_all_heavy": cost.macs_all_heavy,
        },
        "milliseconds": {stage: round(spent, 3) for stage, spent in result.milliseconds.items()},
        "tile": format_size(result.tile),
        "backend": result.backend,
        "provider": result.provider,
        "precision": result.precision,
        "threads": threads,
    }
