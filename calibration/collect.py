"""Watching a network at work: the values that every layer reads, of the pixels that really reach it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from pcsr.calibration.observers import Histogram
from pcsr.export.int8.layers import Layer, observed_tensors
from pcsr.export.pipeline import serialise
from pcsr.runtime import Upscaler
from pcsr.runtime.backends.graphs import GraphBackend, Run
from pcsr.runtime.backends.onnxruntime import CPU_BLOCK, CPU_CHUNK, open_model
from pcsr.runtime.backends.protocol import Float, Tables
from pcsr.runtime.bundle import Bundle
from pcsr.runtime.errors import CheckError
from pcsr.runtime.machine import total_memory
from pcsr.runtime.tiling import Region

__all__ = ["Collector", "opened"]

Histograms = dict[str, dict[str, Histogram]]
"""By graph and tensor."""


def opened(bundle: Bundle, graphs: Mapping[str, Run], *, precision: str, threads: int) -> Upscaler:
    """An upscaler that runs these graphs on the CPU."""
    return Upscaler(
        bundle, _backend(GraphBackend, bundle, graphs, precision), threads=threads, memory_limit=_memory()
    )


def _backend(
    kind: Callable[..., GraphBackend], bundle: Bundle, graphs: Mapping[str, Run], precision: str
) -> GraphBackend:
    return kind(
        bundle,
        graphs,
        name="onnxruntime",
        provider="CPUExecutionProvider",
        precision=precision,
        device="cpu",
        block=CPU_BLOCK,
        chunk=CPU_CHUNK,
    )


def _memory() -> int:
    return total_memory() // 2


class Collector:
    """Upscales pictures in fp32 and fills a histogram for each tensor that is observed.

    Upsamplers are observed on the pixels routed to them, class 0 too, which runs on every pixel of a block; tensors of
    the backbone on whole pictures.
    """

    def __init__(
        self,
        bundle: Bundle,
        models: Mapping[str, onnx.ModelProto],
        layers: Sequence[Layer],
        *,
        histograms: Histograms | None = None,
        threads: int = 1,
    ) -> None:
        """Prepare the graphs.

        Args:
            bundle: theirs.
            models: its fp32 graphs by name.
            layers: whose inputs are to be observed.
            histograms: to go on with; None: new ones.
            threads: of the backbone.
        """
        self._bundle = bundle
        self._tensors = {
            graph: observed_tensors(model, [layer for layer in layers if layer.graph == graph])
            for graph, model in models.items()
        }
        self.histograms: Histograms = histograms or {
            graph: {tensor: Histogram() for tensor in tensors} for graph, tensors in self._tensors.items()
        }
        self._graphs = {
            graph: open_model(
                serialise(_showing(model, self._tensors[graph])),
                f"fp32 graph {graph}",
                threads=threads if graph == "backbone" else 1,
            )
            for graph, model in models.items()
        }

    def add(self, lr: NDArray[np.float32], *, scale: float, k: float, name: str) -> None:
        """Upscale one picture.

        Args:
            lr: (h, w, 3) float32 RGB.
            scale: magnification.
            k: of the decision that routes.
            name: of the picture, for errors.

        Raises:
            CheckError: a value is infinite or not a number; the histograms are of no use then.
        """
        # One worker: the order of the blocks, and so of the sums, is always the same.
        backend = _backend(_Watching, self._bundle, self._graphs, "fp32")
        assert isinstance(backend, _Watching)
        backend.watch(self._tensors, self.histograms)
        up = Upscaler(self._bundle, backend, threads=1, memory_limit=_memory())
        try:
            with up, np.errstate(over="ignore", invalid="ignore"):
                up(lr, scale=scale, k=k)
        except CheckError as error:
            raise CheckError(f"picture {name} at scale {scale:g}: {error}; calibrate without it") from error


def _showing(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """The graph with these tensors as further outputs."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(
        helper.make_empty_tensor_value_info(tensor) for tensor in _inner(model, tensors)
    )
    return shown


def _inner(model: onnx.ModelProto, tensors: Sequence[str]) -> list[str]:
    """Those that are no input of the graph, which one sees anyway."""
    inputs = {value.name for value in model.graph.input}
    return [tensor for tensor in tensors if tensor not in inputs]


class _Watching(GraphBackend):
    """Hands what graphs give on, and shows the histograms the tensors beside it."""

    def watch(self, tensors: Mapping[str, Sequence[str]], histograms: Histograms) -> None:
        self._light: NDArray[np.bool_] | None = None
        for graph, names in tensors.items():
            if names:
                self._graphs[graph] = self._watched(graph, self._graphs[graph], names, histograms[graph])

    def residuals(self, tables: Tables, place: Any, region: Region, classes: NDArray[np.uint8]) -> Float:
        self._light = classes == 0
        return super().residuals(tables, place, region, classes)

    def _watched(
        self, graph: str, run: Run, names: Sequence[str], histograms: Mapping[str, Histogram]
    ) -> Run:
        def watched(feed: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
            outputs = run(feed)
            inner = [name for name in names if name not in feed]
            given = len(outputs) - len(inner)
            values = {**feed, **dict(zip(inner, outputs[given:], strict=True))}
            for name in names:
                histograms[name].add(self._by_channel(graph, values[name]), f"{name} of graph {graph}")
            return outputs[:given]

        return watched

    def _by_channel(self, graph: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, C), of routed pixels alone."""
        if graph == "backbone":
            flat: NDArray[np.float32] = values[0].reshape(values.shape[1], -1)
            return flat.T
        if graph == "upsampler_0":
            assert self._light is not None
            routed: NDArray[np.float32] = np.moveaxis(values, 1, 2)[self._light]
            return routed
        return values
