"""`pcsr-export`: a checkpoint to a bundle, further precisions or engines to a bundle, or what a bundle holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pcsr.export.tensorrt.request import engine_options, parse_request
from pcsr.runtime.bundle import Bundle, read_bundle
from pcsr.runtime.console import exit_on_error, start_logging
from pcsr.runtime.errors import CheckError, OptionError
from pcsr.runtime.shipped import find_bundle, shipped_bundles

__all__ = ["main"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", metavar="INPUT")
@click.option("-o", "--output", metavar="BUNDLE", help="Folder to write the bundle to.")
@click.option(
    "--onnx", is_flag=True, help="Write ONNX graphs. Always done; the option may be given to say so."
)
@click.option(
    "--precision",
    help="Precisions the bundle shall have, and engines are built for.  "
    "[default: fp32,fp16, and int8 where INPUT or --calibration has it; engines: the bundle's]",
)
@click.option(
    "--calibration", metavar="CACHE.json", help="Cache from pcsr-calibrate; asks for int8 beside the default."
)
@click.option(
    "--force", is_flag=True, help="Replace a bundle that is damaged or of another checkpoint, wholly."
)
@engine_options
@click.option("--inspect", is_flag=True, help="Only show what the bundle INPUT holds.")
@click.option(
    "--lint",
    is_flag=True,
    help="Only say which layers of the ONNX file INPUT will run in INT8; with --for tensorrt or onnxruntime.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option("-v", "--verbose", is_flag=True, help="Log details.")
@exit_on_error()
def main(
    source: str,
    output: str | None,
    onnx: bool,
    precision: str | None,
    calibration: str | None,
    force: bool,
    inspect: bool,
    lint: bool,
    as_json: bool,
    verbose: bool,
    **engine_choices: Any,
) -> None:
    """Turn a trained PCSR network into a bundle that runs without PyTorch.

    INPUT is a checkpoint (the authors' .pth, or .safetensors), an existing bundle, or the name of one that
    ships with pcsr. Every graph is compared with PyTorch in ONNX Runtime before anything is written. Onto an
    existing bundle, the same checkpoint adds what is missing and keeps the rest. With --trt or --trt-rtx the
    bundle's graphs are then built into engines; those that fit are kept.

    Status: 0 done or nothing to do, 2 nothing was tried, 3 a check failed or a quantised layer will not run in
    INT8 (--lint), 130 interrupted.
    """
    start_logging(verbose=verbose)
    # Empty is what a shell makes of a variable that is not set; a path would take it for this folder.
    if not source or output == "":
        raise OptionError("INPUT or -o is empty; name a checkpoint or bundle, and the bundle to write")
    if lint:
        others = {name: value for name, value in engine_choices.items() if name != "ahead"}
        if any((output, precision, calibration, force, inspect, *others.values())):
            raise OptionError(
                "--lint only judges the ONNX file INPUT; leave other options than --for and --json away"
            )
        _lint(Path(source), engine_choices["ahead"], as_json)
        return
    request = parse_request(**engine_choices)
    if inspect:
        if output is not None or request is not None or calibration is not None:
            raise OptionError(
                "--inspect only shows what INPUT holds; leave -o and --calibration away, and options of engines"
            )
        _show(read_bundle(find_bundle(source)), as_json)
        return
    # A name that is no shipped bundle's may still be a checkpoint's.
    shipped = source in shipped_bundles()
    place = find_bundle(source) if shipped else Path(source)
    wanted = None if precision is None else [name.strip() for name in precision.split(",") if name.strip()]
    if request is not None:
        # Before an export that takes long: what is missing for the engines would be missing after it.
        _engine_command().check_ready(request)
    if calibration == "":
        raise OptionError("--calibration is empty; name a cache that pcsr-calibrate wrote")
    report: dict[str, Any] = {}
    asked = output or force or calibration is not None
    if request is None or asked or not place.is_dir() or _lacks(place, wanted, shipped):
        if output is None:
            if not Path(source).is_dir():
                raise OptionError(f"name the bundle to write: pcsr-export {source} -o BUNDLE")
            output = source
        report = _export(
            place, Path(output), wanted, None if calibration is None else Path(calibration), force
        )
        place = Path(output)
        if not as_json:
            _say(report, output)
    if request is not None:
        engines = _engine_command().run_request(read_bundle(place), request, wanted, as_json=as_json)
        report |= {"bundle": str(place), **engines}
    if as_json:
        click.echo(json.dumps(report))


def _kept(kept: list[str]) -> str:
    return f", kept {', '.join(kept)}" if kept else ""


def _say(outcome: Mapping[str, Any], output: str) -> None:
    if not outcome["written"]:
        click.echo(f"{output}: nothing to do, it has {', '.join(outcome['kept'])}")
        return
    click.echo(f"{output}: wrote {', '.join(outcome['written'])}" + _kept(outcome["kept"]))
    for name, error in outcome["errors"].items():
        by = f"difference from {outcome['compared_with']} {error:.2g} of"
        int8 = name.startswith("int8")
        click.echo(
            f"  {name}: root mean square {by} its own" if int8 else f"  {name}: largest {by} the value range"
        )
    if outcome["largest_half"]:
        value, tensor = outcome["largest_half"]
        click.echo(f"  fp16 (emulated): largest magnitude {value:.4g} of 65504, in {tensor}")


def _lacks(place: Path, wanted: Sequence[str] | None, shipped: bool) -> bool:
    """Whether a bundle of the user's own lacks a precision: that one is exported first."""
    return not shipped and not set(wanted or ()) <= set(read_bundle(place).precisions)


def _engine_command() -> ModuleType:
    try:
        from pcsr.export.tensorrt import command
    except ModuleNotFoundError as error:
        raise OptionError(
            f"engines need {error.name}; run: pip install 'pcsr[trt]' for TensorRT, or 'pcsr[trt-rtx]'"
        ) from error
    return command


def _export(
    source: Path, output: Path, wanted: Sequence[str] | None, calibration: Path | None, force: bool
) -> dict[str, Any]:
    try:
        from pcsr.export.pipeline import DEFAULT_PRECISIONS, export_bundle
    except ModuleNotFoundError as error:
        raise OptionError(f"exporting needs {error.name}; run: pip install 'pcsr[export,cpu]'") from error
    if wanted is None:
        has_int8 = source.is_dir() and "int8" in read_bundle(source).precisions
        wanted = (*DEFAULT_PRECISIONS, "int8") if calibration is not None or has_int8 else DEFAULT_PRECISIONS
    outcome = export_bundle(source, output, precisions=wanted, calibration=calibration, force=force)
    return {
        "bundle": str(output),
        "written": list(outcome.written),
        "kept": list(outcome.kept),
        "errors": dict(outcome.errors),
        "compared_with": outcome.compared_with,
        "largest_half": list(outcome.largest_half) if outcome.largest_half else None,
    }


def _lint(file: Path, target: str | None, as_json: bool) -> None:
    try:
        from pcsr.export.int8.lint import TARGETS, lint, read_model
    except ModuleNotFoundError as error:
        raise OptionError(f"--lint needs {error.name}; run: pip install 'pcsr[export,cpu]'") from error
    chosen = next((name for name in TARGETS if name == (target or "tensorrt")), None)
    if chosen is None:
        raise OptionError(f"--lint judges for {' or '.join(TARGETS)}, not for {target!r}")
    findings = lint(read_model(file), chosen)
    wrong = [finding for finding in findings if finding.quantised and not finding.int8]
    if as_json:
        click.echo(json.dumps({"for": chosen, "layers": [dataclasses.asdict(each) for each in findings]}))
    else:
        for finding in findings:
            mark = "INT8" if finding.int8 else "NOT FUSED" if finding.quantised else "float"
            text = f"{mark:9} {finding.operator} {finding.node}"
            click.echo("".join(c if c.isprintable() else "�" for c in ": ".join([text, *finding.reasons])))
        integer = sum(finding.int8 for finding in findings)
        click.echo(
            f"{file}: for {chosen}, {integer} of {len(findings)} layers will run in INT8, "
            f"{len(wrong)} are quantised in vain, {len(findings) - integer - len(wrong)} are floating point"
        )
    if wrong:
        raise CheckError(
            f"{len(wrong)} quantised layers of {file} will not run in INT8, {wrong[0].node} first"
        )


def _show(bundle: Bundle, as_json: bool) -> None:
    manifest = bundle.manifest
    graphs = [entry for files in manifest.graphs.values() for entry in files.values()]
    entries = [manifest.weights, manifest.sample, *graphs]
    entries += [manifest.calibration] if manifest.calibration else []
    for entry in entries:
        bundle.read(entry)
    if as_json:
        click.echo(msgspec.json.encode(manifest).decode())
        return
    network = manifest.network
    facts = Table(show_header=False, box=None)

    def fact(name: str, value: str) -> None:
        # What comes from a bundle is neither markup nor commands to the terminal.
        facts.add_row(*(Text("".join(c if c.isprintable() else "�" for c in text)) for text in (name, value)))

    fact("network", f"{network.backbone}, {network.width} channels, sees {manifest.halo} pixels around")
    for j, hidden in enumerate(network.upsamplers):
        fact(f"class {j}", f"hidden layers {', '.join(map(str, hidden)) or 'none'}")
    fact("classifier", f"hidden layers {', '.join(map(str, network.classifier)) or 'none'}")
    for key, value in manifest.provenance.items():
        fact(key, value)
    costs = Table(
        "cost per pixel", "backbone (LR)", "classifier", *(f"class {j}" for j in range(manifest.classes))
    )
    for name, cost in (("FLOPs as published", manifest.cost.flops), ("MACs as run", manifest.cost.macs)):
        costs.add_row(name, *(f"{value:,}" for value in (cost.backbone, cost.classifier, *cost.upsamplers)))
    files = Table("file", "bytes", "sha256")
    for entry in entries:
        files.add_row(entry.path, f"{entry.bytes:,}", entry.sha256[:12])
    console = Console()
    for part in (facts, costs, files):
        console.print(part)
    console.print("every file is as the manifest says")
