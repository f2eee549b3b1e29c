"""Engines beside ONNX Runtime: every graph on a real picture, every output compared, through Polygraphy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.export.tensorrt.polygraphy_tools import set_up
from pcsr.runtime.backends.engine_search import engine_form
from pcsr.runtime.backends.engines import Engine
from pcsr.runtime.backends.graphs import GraphBackend, Run
from pcsr.runtime.backends.onnxruntime import open_model
from pcsr.runtime.backends.profiles import Limits, limits, plan_pieces
from pcsr.runtime.bundle import Bundle
from pcsr.runtime.errors import BackendError
from pcsr.runtime.geometry import axis, output_size
from pcsr.runtime.pictures import read_picture

__all__ = ["TOLERANCES", "OutputError", "compare_engines", "compare_runners", "engine_runner", "sample_feeds"]

# Largest difference as a share of an output's range, at least 1. Each side may be half of it away from PyTorch:
# that is what the export allows a graph.
# int8 rounds in another place where a value lies between two steps: a step of one layer, carried on by the rest.
TOLERANCES = {"fp32": 4e-5, "fp16": 4e-2, "int8": 2e-1}
SCALE = 2.5

Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class OutputError:
    """How far an output of a graph is from ONNX Runtime's.

    Attributes:
        precision: of the graph.
        graph: its name.
        output: its name.
        largest: difference, as a share of the output's range (at least 1).
        mean: the same of the mean difference.
        passed: the largest is within `TOLERANCES`.
    """

    precision: str
    graph: str
    output: str
    largest: float
    mean: float
    passed: bool


def compare_engines(bundle: Bundle, precision: str, engines: Mapping[str, Engine]) -> list[OutputError]:
    """Run every graph of a precision in ONNX Runtime on the CPU and as an engine.

    Args:
        bundle: whose graphs and sample.
        precision: of both.
        engines: by graph, of this machine.

    Raises:
        BackendError: Polygraphy or ONNX Runtime is missing, or an engine is damaged or does not run.
    """
    found = limits({graph: engine.identity.profiles for graph, engine in engines.items()})
    feeds = sample_feeds(bundle, precision, found)
    errors: list[OutputError] = []
    form = engine_form(precision, engines["backbone"].identity.version)
    for graph, entry in bundle.graphs(form).items():
        runners = [graph_runner(bundle.read(entry)), engine_runner(engines[graph])]
        errors += compare_runners(runners, feeds[graph], graph=graph, precision=precision)
    return errors


def sample_feeds(bundle: Bundle, precision: str, limit: Limits) -> dict[str, Feed]:
    """What the runtime gives every graph for a block of the bundle's sample, within what engines take."""
    feeds: dict[str, Feed] = {}

    def recording(graph: str) -> Run:
        entry = bundle.graphs(precision)[graph]
        run = open_model(bundle.read(entry), f"graph {graph} ({bundle.path / entry.path})")

        def record(feed: Feed) -> Sequence[NDArray[Any]]:
            feeds[graph] = {name: np.ascontiguousarray(array) for name, array in feed.items()}
            return run(feed)

        return record

    backend = GraphBackend(
        bundle,
        {graph: recording(graph) for graph in bundle.graphs(precision)},
        name="onnxruntime",
        provider="CPUExecutionProvider",
        precision=precision,
        device="cpu",
        block=limit.points,
        chunk=limit.points,
    )
    bundle.sample()
    picture = read_picture(bundle.path / bundle.manifest.sample.path).pixels
    lr = np.ascontiguousarray(picture.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
    _, h, w = lr.shape
    H, W = output_size(h, w, SCALE, None)
    rows, columns = axis(h, H), axis(w, W)
    piece = next(plan_pieces(rows, columns, limit, halo=bundle.manifest.halo))
    window, block = piece.tile.window, next(piece.blocks())
    place = backend.place(rows, columns)
    tables = backend.tables(lr[:, window.top : window.bottom, window.left : window.right], window)
    backend.probabilities(tables, place, block)
    # Every class gets pixels, all over the block.
    classes = np.arange(block.pixels).reshape(block.shape) % bundle.manifest.classes
    backend.residuals(tables, place, block, classes.astype(np.uint8))
    return feeds


def graph_runner(model: bytes) -> Any:
    """Polygraphy's runner of a graph in ONNX Runtime on the CPU."""
    set_up()
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    return OnnxrtRunner(SessionFromOnnx(model), name="onnxruntime")


def engine_runner(engine: Engine) -> Any:
    """Polygraphy's runner of an engine, its plan checked against its hash.

    Raises:
        BackendError: the plan is damaged, or Polygraphy is missing.
    """
    plan = engine.read()
    set_up(engine.identity.flavour)
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    return TrtRunner(EngineFromBytes(plan), name=engine.identity.flavour)


def compare_runners(runners: Sequence[Any], feed: Feed, *, graph: str, precision: str) -> list[OutputError]:
    """Run two runners on one feed and compare every output; the first is the reference.

    Raises:
        BackendError: one of them does not run.
    """
    set_up()
    from polygraphy.comparator import Comparator, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    try:
        with G_LOGGER.verbosity(G_LOGGER.ERROR):
            results = Comparator.run(list(runners), data_loader=[dict(feed)])
            reference = results[0][1][0]
            spans = {name: max(1.0, float(np.ptp(array))) for name, array in reference.items()}
            allowed = {name: TOLERANCES[precision] * span for name, span in spans.items()}
            compare = SimpleCompareFunc(atol=allowed, rtol=0.0, check_error_stat="max")
            judged = Comparator.compare_accuracy(results, compare_func=compare)
    except Exception as error:  # those of ONNX Runtime share no base but Exception
        names = " and ".join(runner.name for runner in runners)
        raise BackendError(f"graph {graph} in {precision} cannot be run by {names}: {error}") from error
    (outputs,) = next(iter(judged[0].values()))
    return [
        OutputError(
            precision=precision,
            graph=graph,
            output=name,
            largest=float(result.max_absdiff) / spans[name],
            mean=float(result.mean_absdiff) / spans[name],
            passed=bool(result),
        )
        for name, result in outputs.items()
    ]
