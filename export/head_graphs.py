"""Per-pixel networks to ONNX, from the sum of table, row and column terms to the last layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from pcsr.export.writer import GraphWriter

__all__ = ["dense_head", "sparse_head"]

Weights = Mapping[str, NDArray[np.float32]]


def _layers(weights: Weights, head: str) -> int:
    """Layers after the first."""
    return sum(1 for name in weights if name.startswith(f"{head}.layer") and name.endswith(".weight"))


def dense_head(head: str, weights: Weights, half: bool, *, classes: int | None) -> onnx.ModelProto:
    """A per-pixel network on every pixel of a block, channels between rows and columns.

    Args:
        head: its name.
        weights: all weights.
        half: float16 layers.
        classes: M for the classifier, which ends in probabilities; None for an upsampler.
    """
    g = GraphWriter(head, "a per-pixel network on every pixel of a block of rows and columns", half=half)
    channels = len(weights[f"{head}.first.table"])
    table = g.input("table", ("h", channels, "w"), "rows of the backbone's table", kind="narrow")
    rows = g.input("rows", ("rows",), "row of the table nearest to each output row", kind="index")
    columns = g.input(
        "columns", ("columns",), "column of the table nearest to each output column", kind="index"
    )
    row_terms = g.input("row_terms", ("rows", channels, 1), "row term of each output row")
    column_terms = g.input("column_terms", (1, channels, "columns"), "column term of each output column")
    # Columns first: that work is shared by all output rows of an input row.
    x = g.widen(g.node("Gather", [table, columns], "at_columns", axis=2))
    x = g.node("Add", [x, column_terms], "with_columns")
    x = g.node("Gather", [x, rows], "at_rows", axis=0)
    x = g.node("Add", [x, row_terms], "first")
    last = _layers(weights, head)
    for i in range(1, last + 1):
        x = g.narrow(g.node("Relu", [x], f"hidden{i}")) if i == 1 else g.node("Relu", [x], f"hidden{i}")
        weight = g.weight(f"{head}.layer{i}.weight", weights[f"{head}.layer{i}.weight"])
        bias = g.weight(f"{head}.layer{i}.bias", weights[f"{head}.layer{i}.bias"][:, None])
        x = g.node("Add", [g.node("MatMul", [weight, x], f"product{i}"), bias], f"sum{i}")
    if last:
        x = g.widen(x)
    if classes is None:
        g.node("Identity", [x], "rgb")
        g.output("rgb", ("rows", 3, "columns"), "residual colours, to be added to the bilinear base")
    elif classes == 2:
        g.node("Sigmoid", [x], "probability")
        g.output("probability", ("rows", 1, "columns"), "probability of the heavy class")
    else:
        g.node("Softmax", [x], "probability", axis=1)
        g.output("probability", ("rows", classes, "columns"), "probability of each class, lightest first")
    return g.model({"head": head})


def sparse_head(head: str, weights: Weights, half: bool) -> onnx.ModelProto:
    """A per-pixel network on listed pixels, one row each."""
    g = GraphWriter(head, "a per-pixel network on the pixels routed to it", half=half)
    channels = len(weights[f"{head}.first.table"])
    table = g.input(
        "table", ("p", channels), "the backbone's table, rows and columns flattened", kind="narrow"
    )
    pixel = g.input("pixel", ("n",), "index into the table of each pixel's nearest input pixel", kind="index")
    row = g.input("row", ("n",), "index into row_terms of each pixel", kind="index")
    column = g.input("column", ("n",), "index into column_terms of each pixel", kind="index")
    row_terms = g.input("row_terms", ("rows", channels), "row terms")
    column_terms = g.input("column_terms", ("columns", channels), "column terms")
    x = g.widen(g.node("Gather", [table, pixel], "at_pixels"))
    x = g.node("Add", [x, g.node("Gather", [row_terms, row], "at_rows")], "with_rows")
    x = g.node("Add", [x, g.node("Gather", [column_terms, column], "at_columns")], "first")
    last = _layers(weights, head)
    for i in range(1, last + 1):
        x = g.narrow(g.node("Relu", [x], f"hidden{i}")) if i == 1 else g.node("Relu", [x], f"hidden{i}")
        weight = g.weight(f"{head}.layer{i}.weight", weights[f"{head}.layer{i}.weight"].T)
        bias = g.weight(f"{head}.layer{i}.bias", weights[f"{head}.layer{i}.bias"])
        x = g.node("Gemm", [x, weight, bias], f"sum{i}")
    g.node("Identity", [g.widen(x) if last else x], "rgb")
    g.output("rgb", ("n", 3), "residual colour of each pixel, to be added to the bilinear base")
    return g.model({"head": head})
