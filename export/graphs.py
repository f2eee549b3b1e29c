"""Rewritten weights to ONNX graphs.

Four kinds of graph, all of any height, width, scale and number of pixels, none with NonZero, Scatter or
GridSample: routing belongs to the runtime.

backbone              lr → a table for each per-pixel network
classifier            table, row and column terms → probabilities, on every pixel of a block
upsampler_0           the same → residual colours: the lightest class is cheaper computed everywhere
upsampler_1 …         table and index lists → residual colours of the pixels routed there
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from pcsr.export.backbone_graphs import backbone_graph
from pcsr.export.head_graphs import dense_head, sparse_head
from pcsr.runtime.manifest import NetworkEntry, Normalisation

__all__ = ["build_graphs"]

Weights = Mapping[str, NDArray[np.float32]]


def build_graphs(
    network: NetworkEntry, normalisation: Normalisation, weights: Weights, *, half: bool
) -> dict[str, onnx.ModelProto]:
    """All graphs of a bundle in one precision.

    Args:
        network: sizes.
        normalisation: of the input.
        weights: by the names of docs/bundle.md.
        half: float16 layers instead of float32.
    """
    graphs = {
        "backbone": backbone_graph(network, normalisation, weights, half),
        "classifier": dense_head("classifier", weights, half, classes=len(network.upsamplers)),
        "upsampler_0": dense_head("upsampler_0", weights, half, classes=None),
    }
    for j in range(1, len(network.upsamplers)):
        graphs[f"upsampler_{j}"] = sparse_head(f"upsampler_{j}", weights, half)
    return graphs
