"""INT8 against fp32 in ONNX Runtime on this processor, layer by layer and as wholes.

    python scripts/int8_speed.py BUNDLE [--threads 2] [--report FILE.json]

BUNDLE has int8 graphs. Each kind of layer of its backbone and its upsamplers is timed alone: six in a row with ReLU
between, in fp32 and as ONNX Runtime fuses it in INT8, in turn. Then the backbone and the heavy upsampler as wholes.
Status: 0, 2 usage.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import click
import msgspec
import numpy as np
import onnx
from bench_machine import begin
from bench_record import Environment
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from pcsr.calibration.run import network_of
from pcsr.export.int8.layers import Layer, channels_read, initializers, layers_of
from pcsr.export.int8.placement import Scales, weight_scales
from pcsr.export.int8.processor import WEIGHT_LIMITS, pays, processor_form
from pcsr.export.pipeline import serialise
from pcsr.runtime.atomic import write_whole
from pcsr.runtime.backends.graphs import Run
from pcsr.runtime.backends.onnxruntime import open_model
from pcsr.runtime.bundle import Bundle, read_bundle
from pcsr.runtime.console import exit_on_error, format_size, parse_size
from pcsr.runtime.machine import multiplies_int8, usable_cores
from pcsr.runtime.manifest import Form
from pcsr.runtime.shipped import find_bundle

ROW = 6
"""Layers in a row: the conversions at both ends are shared by as many."""
POINTS = 4096

Feed = Mapping[str, NDArray[np.generic]]


class Timed(msgspec.Struct, frozen=True):
    """Median milliseconds of one layer, or of a whole graph; how many there are, and whether the form may fuse it."""

    name: str
    count: int
    single: float
    int8: float
    fused: bool

    @property
    def ratio(self) -> float:
        """How many times faster INT8 is."""
        return self.single / self.int8


class Report(msgspec.Struct, frozen=True):
    """All of it, and where."""

    bundle: str
    form: str
    threads: int
    lr: str
    layers: tuple[Timed, ...]
    wholes: tuple[Timed, ...]
    environment: Environment
    versions: dict[str, str]


def chain(layer: Layer, weight: NDArray[np.float32]) -> tuple[onnx.ModelProto, int]:
    """Layers like this one in a row, as an fp32 graph, and the channels of its input."""
    rows = weight.T if layer.operator == "Gemm" else weight
    outputs, inputs = len(rows), rows.shape[1] * layer.groups
    nodes, constants, x = [], [], "x"
    for i in range(ROW):
        # Only square layers fit one another; others are made square by their larger side.
        size = max(outputs, inputs)
        shape = (size, size) if layer.operator == "Gemm" else (size, size // layer.groups, *weight.shape[2:])
        values = np.random.default_rng(i).normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        constants += [
            numpy_helper.from_array(values.astype(np.float32), f"w{i}"),
            numpy_helper.from_array(np.zeros(size, dtype=np.float32), f"b{i}"),
        ]
        attributes = {}
        if layer.operator == "Conv":
            kernel = weight.shape[2]
            attributes = {"kernel_shape": [kernel, kernel], "pads": [kernel // 2] * 4, "group": layer.groups}
        nodes += [
            helper.make_node(layer.operator, [x, f"w{i}", f"b{i}"], [f"c{i}"], f"c{i}", **attributes),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"r{i}"),
        ]
        x = f"r{i}"
    nodes.append(helper.make_node("Identity", [x], ["y"], "y"))
    size = max(outputs, inputs)
    shape_in = ["n", size] if layer.operator == "Gemm" else [1, size, "h", "w"]
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape_in) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", io[:1], io[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), size


def integer(model: onnx.ModelProto, limit: int) -> onnx.ModelProto:
    """The chain as ONNX Runtime fuses it, whatever `pays` thinks of it."""
    values = initializers(model)
    layers = layers_of({"chain": model}, values)
    tensors = ["x", *(f"r{i}" for i in range(ROW))]
    scales = Scales(
        dict.fromkeys(tensors, 4.0),
        dict.fromkeys(tensors, 0.0),
        {layer.node: weight_scales(values[layer.weight], layer.axis) for layer in layers},
    )
    return processor_form(model, layers, scales, limit=limit, always=True)


def in_turn(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, one after another in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * float(np.median(times)) for name, times in seconds.items()}


def kinds(layers: tuple[Layer, ...], values: Mapping[str, Mapping[str, NDArray[np.float32]]]) -> Counter[str]:
    """Layers by what tells their cost."""
    return Counter(kind(layer, values[layer.graph][layer.weight]) for layer in layers)


def kind(layer: Layer, weight: NDArray[np.float32]) -> str:
    rows = weight.T if layer.operator == "Gemm" else weight
    size = f"{rows.shape[1] * layer.groups}→{len(rows)}"
    if layer.operator != "Conv":
        return f"linear {size}"
    groups = f", {layer.groups} groups" if layer.groups > 1 else ""
    return f"convolution {weight.shape[2]}×{weight.shape[3]}, {size}{groups}"


def measure(bundle: Bundle, lr: tuple[int, int], *, threads: int, rounds: int) -> Report:
    """Time all of it.

    Raises:
        BundleError: the bundle has no int8 graphs.
    """
    form: Form = "int8-vnni" if multiplies_int8() else "int8-cpu"
    files = bundle.graphs(form)
    network = network_of(bundle)
    values = {graph: initializers(model) for graph, model in network.models.items()}
    counted = kinds(network.layers, values)
    seen: dict[str, Timed] = {}
    rng = np.random.default_rng(1)
    for layer in network.layers:
        weight = values[layer.graph][layer.weight]
        name = kind(layer, weight)
        if name in seen or layer.operator == "MatMul":
            continue
        model, size = chain(layer, weight)
        shape = (POINTS, size) if layer.operator == "Gemm" else (1, size, *lr)
        feed = {"x": rng.random(shape, dtype=np.float32)}
        used = 1 if layer.operator == "Gemm" else threads
        runs = {
            which: runner(open_model(serialise(graph), which, threads=used), feed)
            for which, graph in (("fp32", model), ("int8", integer(model, WEIGHT_LIMITS[form])))
        }
        found = in_turn(runs, rounds)
        square = size == channels_read(layer, weight) == weight.shape[layer.axis]
        label = name if square else f"{name}, timed as {size}→{size}"
        seen[name] = Timed(
            label, counted[name], found["fp32"] / ROW, found["int8"] / ROW, pays(layer, weight)
        )
    wholes = []
    for graph, feed, used in (
        ("backbone", {"lr": rng.random((1, 3, *lr), dtype=np.float32)}, threads),
        (f"upsampler_{bundle.manifest.classes - 1}", head_feed(bundle), 1),
    ):
        runs = {
            "fp32": runner(open_model(serialise(network.models[graph]), graph, threads=used), feed),
            "int8": runner(open_model(bundle.read(files[graph]), graph, threads=used), feed),
        }
        found = in_turn(runs, rounds)
        wholes.append(Timed(graph, 1, found["fp32"], found["int8"], True))
    return Report(
        bundle=bundle.path.resolve().name,
        form=form,
        threads=threads,
        lr=format_size(lr),
        layers=tuple(seen.values()),
        wholes=tuple(wholes),
        environment=begin((threads,)),
        versions={name: version(name) for name in ("numpy", "onnx", "onnxruntime")},
    )


def head_feed(bundle: Bundle) -> Feed:
    """A chunk of pixels as the runtime gives it to the heaviest upsampler."""
    channels = bundle.manifest.table_channels[-1]
    rng = np.random.default_rng(2)
    return {
        "table": rng.normal(size=(2000, channels)).astype(np.float32),
        "pixel": rng.integers(0, 2000, POINTS).astype(np.int32),
        "row": rng.integers(0, 128, POINTS).astype(np.int32),
        "column": rng.integers(0, 128, POINTS).astype(np.int32),
        "row_terms": rng.normal(size=(128, channels)).astype(np.float32),
        "column_terms": rng.normal(size=(128, channels)).astype(np.float32),
    }


def runner(run: Run, feed: Feed) -> Callable[[], object]:
    """Runs a graph on the same input each time."""
    return lambda: run(feed)


@click.command()
@click.argument("bundle")
@click.option("--lr", default="420x276", show_default=True, help="Input of the convolutions.")
@click.option("--threads", type=click.IntRange(min=1), help="Of the backbone.  [default: usable cores]")
@click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True)
@click.option("--report", type=click.Path(path_type=Path), help="Write the numbers here, as JSON.")
@exit_on_error()
def main(*, bundle: str, lr: str, threads: int | None, rounds: int, report: Path | None) -> None:
    """Time the layers of BUNDLE in INT8 and in fp32."""
    used = usable_cores() if threads is None else threads
    found = measure(read_bundle(find_bundle(bundle)), parse_size(lr), threads=used, rounds=rounds)
    table = Table(
        title=f"{found.bundle}, {found.form}, {used} threads, LR {found.lr}; {POINTS} pixels a head"
    )
    for name in ("layer", "count", "fp32 ms", "int8 ms", "times faster", "may be fused"):
        table.add_column(name, justify="left" if name == "layer" else "right")
    for row in (*found.layers, *found.wholes):
        table.add_row(
            row.name, f"{row.count}", f"{row.single:.3f}", f"{row.int8:.3f}", f"{row.ratio:.2f}",
            "yes" if row.fused else "no",
        )  # fmt: skip
    Console(width=120).print(table)
    if report is not None:
        write_whole(report, msgspec.json.format(msgspec.json.encode(found)) + b"\n")


if __name__ == "__main__":
    main()
