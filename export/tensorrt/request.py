"""What `pcsr-export --trt` and `--trt-rtx` ask for: options that mean something together, or an error."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from pcsr.export.tensorrt.profiles import POINTS, Sizes
from pcsr.runtime.backends.engines import Flavour, Tuning
from pcsr.runtime.console import format_size, parse_bytes, parse_size
from pcsr.runtime.errors import OptionError

__all__ = ["Request", "engine_options", "parse_request"]

DEFAULT = Sizes()

OPTIONS = (
    click.option("--trt", is_flag=True, help="Build TensorRT engines for the GPU of this machine."),
    click.option(
        "--trt-rtx", is_flag=True, help="Build TensorRT-RTX engines: for this GPU, or with --for without any."
    ),
    click.option(
        "--for",
        "ahead",
        metavar="LIST",
        help="Compute capabilities to build TensorRT-RTX engines for, like 8.6,8.9,12.0.",
    ),
    click.option(
        "--min-lr",
        metavar="WxH",
        help=f"Smaller inputs run in a profile of their own.  [default: {format_size(DEFAULT.min_lr)}]",
    ),
    click.option(
        "--opt-lr",
        metavar="WxH",
        help=f"Input that engines are fastest at.  [default: {format_size(DEFAULT.opt_lr)}]",
    ),
    click.option(
        "--max-lr",
        metavar="WxH",
        help=f"Largest input that is not tiled; takes memory.  [default: {format_size(DEFAULT.max_lr)}]",
    ),
    click.option(
        "--points", type=int, help=f"Output pixels computed at once; take memory.  [default: {POINTS}]"
    ),
    click.option(
        "--opt-level", type=click.IntRange(0, 5), help="How long the builder searches.  [default: TensorRT's]"
    ),
    click.option(
        "--workspace", metavar="BYTES", help="Scratch memory for engines, like 2GiB.  [default: TensorRT's]"
    ),
    click.option(
        "--hardware-compat", is_flag=True, help="One engine for all GPUs since Ampere. TensorRT only."
    ),
    click.option(
        "--version-compat", is_flag=True, help="Engines that later versions load too. TensorRT only."
    ),
    click.option(
        "--engine-cache",
        metavar="FOLDER",
        help="Where engines lie.  [default: in the bundle, or the user's cache folder]",
    ),
    click.option("--compare", is_flag=True, help="Run every graph in ONNX Runtime and TensorRT and compare."),
)


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be done with engines.

    Attributes:
        flavours: whose engines.
        build: build those that are missing.
        compare: compare them with ONNX Runtime.
        ahead: compute capabilities to build for without such a GPU; empty: for the GPU of this machine.
        sizes: of pictures and calls.
        tuning: of the builder.
        engine_cache: folder, where one is named.
    """

    flavours: tuple[Flavour, ...]
    build: bool
    compare: bool
    ahead: tuple[str, ...]
    sizes: Sizes
    tuning: Tuning
    engine_cache: str | None


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of engines to a command, which passes them on to `parse_request`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def parse_request(
    *,
    trt: bool,
    trt_rtx: bool,
    ahead: str | None,
    min_lr: str | None,
    opt_lr: str | None,
    max_lr: str | None,
    points: int | None,
    opt_level: int | None,
    workspace: str | None,
    hardware_compat: bool,
    version_compat: bool,
    engine_cache: str | None,
    compare: bool,
) -> Request | None:
    """None if nothing is asked of engines.

    Raises:
        OptionError: an option has no meaning, or would have no effect.
    """
    shapes = {"--min-lr": min_lr, "--opt-lr": opt_lr, "--max-lr": max_lr, "--points": points}
    others = {"--workspace": workspace}
    full_only = {"--opt-level": opt_level, "--hardware-compat": hardware_compat or None}
    full_only |= {"--version-compat": version_compat or None}
    build = trt or trt_rtx
    for name, value in (shapes | others | full_only | {"--for": ahead}).items():
        if value is not None and not build:
            raise OptionError(f"{name} has an effect only where engines are built; add --trt or --trt-rtx")
    if engine_cache is not None and not (build or compare):
        raise OptionError("--engine-cache has an effect only with --trt, --trt-rtx or --compare")
    if engine_cache == "":
        raise OptionError("--engine-cache is empty; name a folder")
    if ahead is not None and not trt_rtx:
        raise OptionError(
            "--for has an effect only with --trt-rtx: TensorRT builds for the GPU that it runs on and for no other"
        )
    for name, value in full_only.items():
        if value is not None and not trt:
            raise OptionError(f"{name} has no effect with --trt-rtx: {WITHOUT_EFFECT[name]}; leave it away")
    if not (build or compare):
        return None
    flavours: list[Flavour] = ["tensorrt"] if trt or not trt_rtx else []
    if trt_rtx:
        flavours.append("tensorrt-rtx")
    if compare and len(flavours) > 1:
        raise OptionError("--compare runs one TensorRT at a time; give --trt or --trt-rtx, not both")
    return Request(
        flavours=tuple(flavours),
        build=build,
        compare=compare,
        ahead=_capabilities(ahead),
        sizes=Sizes(
            min_lr=parse_size(min_lr) if min_lr is not None else DEFAULT.min_lr,
            opt_lr=parse_size(opt_lr) if opt_lr is not None else DEFAULT.opt_lr,
            max_lr=parse_size(max_lr) if max_lr is not None else DEFAULT.max_lr,
            points=POINTS if points is None else points,
        ),
        tuning=Tuning(
            opt_level=opt_level,
            workspace=None if workspace is None else parse_bytes(workspace),
            hardware_compat=hardware_compat,
            version_compat=version_compat,
        ),
        engine_cache=engine_cache,
    )


# Why TensorRT-RTX is refused an option; docs/gpu.md says how each was found.
WITHOUT_EFFECT = {
    "--opt-level": "it builds the same plan at every level",
    "--hardware-compat": "--for names the GPUs that an engine is for",
    "--version-compat": "it needs a lean runtime, which TensorRT-RTX does not ship",
}


def _capabilities(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not re.fullmatch(r"[1-9][0-9]?\.[0-9]", part)]
    if wrong:
        raise OptionError(f"--for is {text!r}; write compute capabilities like 8.6,8.9,12.0")
    return tuple(sorted(set(parts), key=lambda part: [int(number) for number in part.split(".")]))
