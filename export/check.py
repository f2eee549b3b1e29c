"""Graphs against PyTorch: every output of every graph, on a real picture, at several sizes and scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from pcsr.export.half import EmulatedHalf
from pcsr.model.network import Network
from pcsr.runtime.backends.graphs import Run
from pcsr.runtime.bundle import head_weights
from pcsr.runtime.errors import CheckError
from pcsr.runtime.geometry import Axis, axis, output_size
from pcsr.runtime.terms import terms

__all__ = [
    "TOLERANCES",
    "Case",
    "cases",
    "check_half",
    "check_int8",
    "check_precision",
    "graph_outputs",
    "network_outputs",
    "working_bytes",
]

Outputs = Mapping[tuple[str, str], NDArray[Any]]
"""Arrays by (graph, tensor)."""

# Largest error against PyTorch, as a share of the value range of the tensor. float32: sums in another order
# over some sixty layers; float16: eleven bits, over as many.
TOLERANCES = {"fp32": 2e-5, "fp16": 2e-2}
# Root mean square error of int8 as a share of the tensor's own root mean square. Networks that ship: 0.3 at most; with
# scales eight times too small 1 and more. Class 0 runs here on pixels, too, that would not be routed to it, and
# saturates there: 0.6 where all is right, 3.5 and more where it is not.
INT8_TOLERANCE, INT8_TOLERANCE_OF_CLASS_0 = 0.6, 1.5
# Less than a level of 8 bits is nothing to compare with.
INT8_FLOOR = 1 / 255

# Input (h, w) and scale: whole, non-integer and no magnification, odd sides, one a single row.
CASES = (((24, 40), 4.0), ((33, 17), 2.3), ((1, 9), 1.0))


@dataclass(frozen=True, slots=True)
class Case:
    """One picture to compare on: (h, w, 3) float32 in 0 to 1, and how it is enlarged."""

    picture: NDArray[np.float32]
    scale: float

    @property
    def axes(self) -> tuple[Axis, Axis]:
        """Rows and columns."""
        h, w = self.picture.shape[:2]
        H, W = output_size(h, w, self.scale, None)
        return axis(h, H), axis(w, W)

    def __str__(self) -> str:
        h, w = self.picture.shape[:2]
        return f"{w}x{h} at scale {self.scale:g}"


def cases(sample: NDArray[np.uint8]) -> list[Case]:
    """Pieces of the sample picture, (h, w, 3) uint8 with sides of at least 64, from different places."""
    pieces = [
        (sample[8 * number : 8 * number + h, 16 * number : 16 * number + w], scale)
        for number, ((h, w), scale) in enumerate(CASES)
    ]
    return [Case(piece.astype(np.float32) / np.float32(255), scale) for piece, scale in pieces]


def network_outputs(network: Network, case: Case) -> Outputs:
    """What PyTorch says that the graphs' outputs must be, computed by the modules as they were trained."""
    rows, columns = case.axes
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (network.spec.mean, network.spec.std))
    assert network.classifier is not None
    with torch.inference_mode():
        lr = (torch.from_numpy(case.picture).permute(2, 0, 1) - mean) / deviation
        features = network.backbone(lr[None])[0].permute(1, 2, 0)
        H, W = rows.hr, columns.hr
        geometry = torch.from_numpy(
            np.stack(
                [
                    np.broadcast_to(rows.relative[:, None], (H, W)),
                    np.broadcast_to(columns.relative[None, :], (H, W)),
                    np.full((H, W), rows.cell),
                    np.full((H, W), columns.cell),
                ],
                axis=-1,
            )
        )
        nearest = features[torch.from_numpy(rows.nearest).long()][:, torch.from_numpy(columns.nearest).long()]
        inputs = torch.cat([nearest, geometry], dim=-1)
        outputs: dict[tuple[str, str], NDArray[Any]] = {}
        probability = network.classifier(inputs).softmax(dim=-1)
        if network.spec.classes == 2:
            probability = probability[..., 1:]
        outputs["classifier", "probability"] = probability.permute(0, 2, 1).numpy()
        for j, upsampler in enumerate(network.upsamplers):
            rgb = upsampler(inputs) * deviation.view(3)
            outputs[f"upsampler_{j}", "rgb"] = (
                rgb.permute(0, 2, 1) if j == 0 else rgb.reshape(-1, 3)
            ).numpy()
    return outputs


def graph_outputs(graphs: Mapping[str, Run], weights: Mapping[str, NDArray[Any]], case: Case) -> Outputs:
    """What the graphs give, the per-pixel networks fed with the tables of the backbone graph."""
    rows, columns = case.axes
    lr = np.ascontiguousarray(case.picture.transpose(2, 0, 1))[None]
    heads = [name for name in graphs if name != "backbone"]
    outputs: dict[tuple[str, str], NDArray[Any]] = {}
    row, column = (index.reshape(-1).astype(np.int32) for index in np.indices((rows.hr, columns.hr)))
    for head, table in zip(heads, graphs["backbone"]({"lr": lr}), strict=True):
        dense = head in ("classifier", "upsampler_0")
        first = terms(head_weights(weights, head, table.shape[1 if dense else 2]), rows, columns)
        if dense:
            feed = {
                "table": table,
                "rows": rows.nearest,
                "columns": columns.nearest,
                "row_terms": first.rows[:, :, None],
                "column_terms": np.ascontiguousarray(first.columns.T)[None],
            }
        else:
            feed = {
                "table": table.reshape(-1, table.shape[2]),
                "pixel": rows.nearest[row] * np.int32(columns.lr) + columns.nearest[column],
                "row": row,
                "column": column,
                "row_terms": first.rows,
                "column_terms": first.columns,
            }
        outputs[head, "probability" if head == "classifier" else "rgb"] = graphs[head](feed)[0]
    return outputs


def check_precision(
    precision: str,
    case: Case,
    expected: Outputs,
    got: Outputs,
    *,
    tolerance: float | None = None,
    reference: str = "PyTorch",
) -> float:
    """Compare all outputs; the largest error as a share of its tensor's range.

    Args:
        precision: of the graphs.
        case: what they were run on.
        expected: what they must give.
        got: what they gave.
        tolerance: largest error allowed; None: the precision's.
        reference: who says what they must give.

    Raises:
        CheckError: one is beyond the tolerance; it names graph, tensor, error and tolerance.
    """
    worst = 0.0
    tolerance = TOLERANCES[precision] if tolerance is None else tolerance
    for (graph, tensor), values in expected.items():
        # Probabilities and colours have a natural range of 1; a residual's own range may be tiny.
        span = max(1.0, float(np.ptp(values)))
        error = float(np.abs(got[graph, tensor] - values).max()) / span
        if not error <= tolerance:
            raise CheckError(
                f"{precision} graph {graph}, tensor {tensor}, {case}: differs from {reference} by "
                f"{error:.3g} of its range, allowed is {tolerance:g}; nothing was written"
            )
        worst = max(worst, error)
    return worst


def check_int8(form: str, case: Case, expected: Outputs, got: Outputs) -> float:
    """Compare all outputs of int8 graphs; the largest root mean square error as a share of that of its tensor.

    What INT8 costs is judged in dB when calibrating; this catches a graph that is wrong.

    Raises:
        CheckError: one is beyond what is allowed.
    """
    worst = 0.0
    for (graph, tensor), values in expected.items():
        own = max(_root_mean_square(values), INT8_FLOOR)
        error = _root_mean_square(got[graph, tensor] - values) / own
        allowed = INT8_TOLERANCE_OF_CLASS_0 if graph == "upsampler_0" else INT8_TOLERANCE
        if not error <= allowed:
            raise CheckError(
                f"{form} graph {graph}, tensor {tensor}, {case}: differs from fp32 by {error:.3g} of its own root "
                f"mean square, allowed is {allowed:g}; nothing was written"
            )
        worst = max(worst, error)
    return worst


def _root_mean_square(values: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def check_half(
    models: Mapping[str, onnx.ModelProto],
    weights: Mapping[str, NDArray[Any]],
    case: Case,
    expected: Outputs,
    *,
    reference: str = "PyTorch",
) -> tuple[float, str]:
    """Run fp16 graphs under emulation; the largest magnitude of any float16 tensor, and its name.

    Raises:
        CheckError: a tensor overflows, or an output is beyond the tolerance.
    """
    graphs = {name: EmulatedHalf(model) for name, model in models.items()}
    check_precision("fp16", case, expected, graph_outputs(graphs, weights, case), reference=reference)
    return max((graph.largest[0], f"{name}: {graph.largest[1]}") for name, graph in graphs.items())


def working_bytes(backbone: onnx.ModelProto) -> int:
    """Largest sum of the graph's live tensors as float32, in bytes per input pixel.

    Every tensor of a backbone has the height and width of the picture, so its other dimensions count.
    """
    sizes = {
        value.name: 4 * int(np.prod([d.dim_value for d in value.type.tensor_type.shape.dim if d.dim_value]))
        for value in [*backbone.graph.value_info, *backbone.graph.input, *backbone.graph.output]
        if value.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
    }
    last_use = {name: i for i, node in enumerate(backbone.graph.node) for name in node.input}
    last_use |= {output.name: len(backbone.graph.node) for output in backbone.graph.output}
    live = {"lr": sizes["lr"]}
    peak = 0
    for i, node in enumerate(backbone.graph.node):
        live |= {name: sizes[name] for name in node.output}
        peak = max(peak, sum(live.values()))
        live = {name: size for name, size in live.items() if last_use.get(name, -1) > i}
    return peak
