"""`pcsr-upscale`: picture files in, upscaled picture files out; one, or folders of them."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from pcsr.runtime.command import make_output, upscale_many, upscale_one
from pcsr.runtime.console import exit_on_error, format_size, parse_bytes, parse_size, start_logging
from pcsr.runtime.errors import OptionError
from pcsr.runtime.files import FileRequest
from pcsr.runtime.folder.plan import plan_jobs
from pcsr.runtime.heap import keep_little
from pcsr.runtime.options import Options
from pcsr.runtime.pictures import MAX_PIXELS, Encoding, output_format
from pcsr.runtime.pictures.formats import FORMATS
from pcsr.runtime.report import name_of
from pcsr.runtime.shipped import DEFAULT, find_bundle, shipped_bundle, shipped_bundles

__all__ = ["main"]

logger = logging.getLogger(__name__)

DEFAULT_SCALE = 4.0
# As endings have it.
ALIASES = {"jpg": "jpeg", "tif": "tiff"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option(
    "-b",
    "--bundle",
    help=f"One that ships ({', '.join(shipped_bundles())}), or a folder made by pcsr-export.  [default: {DEFAULT}]",
)
@click.option(
    "-o",
    "--output",
    help="A file, its ending tells the format; or a folder.  [default: beside INPUT, like INPUT_x4.png]",
)
@click.option("-s", "--scale", type=float, help="Magnification, 1 or more, like 2.5.  [default: 4]")
@click.option("--size", metavar="WIDTHxHEIGHT", help="Output size instead of a scale, like 3840x2160.")
@click.option("--k", type=float, help="Prefer quality (below 0) or speed (above 0).  [default: 0]")
@click.option("--adaptive", is_flag=True, help="Decide by the picture's own easy and hard pixels.")
@click.option("--budget", type=float, help="Share of the adjustable cost to spend, 0 to 1.")
@click.option("--refine", is_flag=True, help="Smooth light pixels that touch heavy ones.")
@click.option(
    "--format",
    "form",
    type=click.Choice([*FORMATS, *ALIASES], case_sensitive=False),
    callback=lambda _, __, value: ALIASES.get(value, value),
    help="Of the output.  [default: by its name, or that of the input where it can be written, else png]",
)
@click.option("--quality", type=int, help="Of JPEG, WebP and AVIF, 1 to 100.  [default: 95]")
@click.option(
    "--compression",
    help="Of PNG 0 (fast) to 9 (small), of TIFF none, lzw or deflate.  [default: 3, deflate]",
)
@click.option("--lossless", is_flag=True, help="WebP and AVIF lose nothing.")
@click.option("--page", type=click.IntRange(min=1), help="Only this one of a file with several, 1 the first.")
@click.option("--salvage", is_flag=True, help="Take what decodes of damaged pictures.")
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=MAX_PIXELS,
    show_default=True,
    help="Refuse larger inputs before memory is taken.",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "native", "onnxruntime", "tensorrt"]),
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
@click.option("--tile", type=click.IntRange(min=16), help="Side of the tiles in input pixels, at most.")
@click.option("--memory-limit", metavar="BYTES", help="Like 512MiB, 1GiB or 2GB.  [default: half of all]")
@click.option(
    "--class-map",
    type=click.Path(path_type=Path),
    help="Also write each pixel's class, as grey PNG; with several inputs, a folder.",
)
@click.option(
    "--overlay",
    "overlay_path",
    type=click.Path(path_type=Path),
    help="Also write classes as tints; with several inputs, a folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a picture instead of a line.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option(
    "--resume", is_flag=True, help="Keep a journal in the output folder, and leave what it has done."
)
@click.option("-v", "--verbose", is_flag=True, help="Log details.")
@click.version_option(package_name="pcsr")
@exit_on_error(second_at_once=True)
def main(
    *,
    inputs: tuple[str, ...],
    bundle: str | None,
    output: str | None,
    scale: float | None,
    size: str | None,
    k: float | None,
    adaptive: bool,
    budget: float | None,
    refine: bool,
    form: str | None,
    quality: int | None,
    compression: str | None,
    lossless: bool,
    page: int | None,
    salvage: bool,
    max_pixels: int,
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
    resume: bool,
    verbose: bool,
) -> None:
    """Upscale pictures: files, folders with all below them, or patterns like 'scans/*.tif'.

    Prints for each the output's name, size, share of pixels per class and seconds. Status: 0 done, 1 a picture
    failed, 2 nothing was tried, 130 interrupted.
    """
    start_logging(verbose=verbose)
    keep_little()
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
    encoding = Encoding(form=form, quality=quality, compression=compression, lossless=lossless)
    limit = None if memory_limit is None else parse_bytes(memory_limit)
    plan = plan_jobs(
        inputs,
        output=output,
        suffix_text=_what_was_done(options),
        form=form,
        class_map=class_map,
        overlay=overlay_path,
        force=force,
        resume=resume,
    )
    if output is None and plan.one:
        logger.info("no --output given: writing %s", name_of(plan.jobs[0].target))
    if resume and plan.root is None:
        raise OptionError("--resume keeps a journal in the output folder; name a folder with -o")
    encoding.check({form or output_format(job.target) for job in plan.jobs})
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
        request = FileRequest(
            source=plan.jobs[0].source,
            target=plan.jobs[0].target,
            options=options,
            encoding=encoding,
            page=page,
            max_pixels=max_pixels,
            salvage=salvage,
            class_map=plan.jobs[0].class_map,
            overlay=plan.jobs[0].overlay,
            replace=force,
        )
        if plan.one and not resume:
            if plan.root is not None:
                make_output(plan.root)
            upscale_one(upscaler, request, as_json=as_json)
        else:
            upscale_many(upscaler, plan, request, as_json=as_json, force=force, resume=resume)


def _what_was_done(options: Options) -> str:
    """For names beside the input."""
    if options.size is not None:
        return format_size(options.size)
    assert options.scale is not None
    return f"x{options.scale:.12g}"
