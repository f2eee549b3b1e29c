"""The test vectors of docs/routing.md: small files with which another implementation of the routing is checked.

    python scripts/routing_vectors.py tests/data/routing

Writes a bundle of a tiny network with random weights, and beside it what the runtime makes of it at every step.
What the files hold is said in tests/data/routing/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray

from pcsr.export.pipeline import export_bundle
from pcsr.model.checkpoint import save_checkpoint
from pcsr.model.network import Network, NetworkSpec, build
from pcsr.runtime import Upscaler
from pcsr.runtime.backends.onnxruntime import open_model
from pcsr.runtime.bundle import Bundle, head_weights, read_bundle
from pcsr.runtime.compose import base
from pcsr.runtime.console import exit_on_error
from pcsr.runtime.cost import normalised_costs
from pcsr.runtime.decision import (
    Thresholds,
    adaptive_thresholds,
    budget_thresholds,
    classes_by_thresholds,
    cost_steps,
    difficulty,
    threshold_by_k,
)
from pcsr.runtime.geometry import axis, output_size
from pcsr.runtime.terms import Terms, terms
from pcsr.runtime.tiling import Region

Arrays = dict[str, NDArray[Any]]

SEED = 20
SPEC = NetworkSpec(
    "fsrcnn",
    8,
    ((5,), (8, 8)),
    (4,),
    mean=(0.4, 0.5, 0.45),
    std=(0.9, 1.0, 1.1),
    options=(("s", 4), ("m", 1)),
)

# One pixel; ties at scale 1.5, short and long (194 to 291 has one that only fused arithmetic decides as PyTorch
# does); no magnification; scales without ties.
AXES = ((1, 1), (1, 8), (4, 6), (5, 20), (7, 7), (9, 22), (13, 48), (194, 291))

# Rounds to 22x28: an axis of 9 at 2.5 is 22.5, which goes to the even neighbour.
SIZE, SCALE = (9, 11), 2.5
KS = (-25.0, -0.5, 0.0, 0.25, 1.0)
# The two before the last meet values that are tied: once all of them stay light, once all go heavy.
BUDGETS = (0.0, 0.1, 0.25, 0.5, 0.675, 0.725, 1.0)
# Of three upsamplers, per pixel.
THREE_COSTS = (1_000, 4_000, 20_000)
# Values that are tied go to class 1 at 0.25 and to class 2 at 0.33.
THREE_BUDGETS = (0.0, 0.1, 0.25, 0.33, 0.5, 0.7, 1.0)
# An output pixel whose whole way is written down.
EXAMPLE = (5, 7)


def tiny_network(picture: NDArray[np.uint8]) -> Network:
    """Random weights, scaled so that features and geometry both matter and both classes win somewhere."""
    torch.manual_seed(SEED)
    network = build(SPEC)
    classifier = network.classifier
    assert classifier is not None
    with torch.no_grad():
        lr = torch.from_numpy(picture / np.float32(255)).permute(2, 0, 1)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (SPEC.mean, SPEC.std))
        features = network.backbone(((lr - mean) / std)[None])[0].flatten(1).T
        for head in (classifier, *network.heads):
            head.linears[0].weight[:, : SPEC.width] /= features.std()
            head.linears[-1].weight *= 0.1
        geometry = torch.cat(
            [torch.rand(len(features), 2) * 2 - 1, torch.full((len(features), 2), 0.8)], dim=1
        )
        logits = classifier(torch.cat([features, geometry], dim=1))
        last = classifier.linears[-1]
        spread = logits.std(dim=0)
        last.weight /= spread[:, None]
        last.bias.copy_((last.bias - logits.mean(dim=0)) / spread)
    return network


def write_bundle(folder: Path, picture: NDArray[np.uint8]) -> Bundle:
    """The tiny network's bundle, fp32 graphs only."""
    with TemporaryDirectory() as temporary:
        checkpoint = Path(temporary) / "tiny.safetensors"
        save_checkpoint(tiny_network(picture), checkpoint)
        target = Path(temporary) / "bundle"
        export_bundle(checkpoint, target, precisions=("fp32",))
        bundle = read_bundle(target)
        manifest = bundle.manifest
        for path in (
            "manifest.json",
            *(entry.path for entry in (manifest.weights, manifest.sample, *manifest.graphs["fp32"].values())),
        ):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes((target / path).read_bytes())
    return read_bundle(folder)


def short(values: Iterable[np.float32]) -> list[float]:
    """The shortest decimals that read back, as double and then as float, as the same float32."""
    decimals = [float(str(value)) for value in values]
    assert all(np.float32(decimal) == value for decimal, value in zip(decimals, values, strict=True))
    return decimals


def geometry() -> list[dict[str, Any]]:
    """Every axis, all of it."""
    found = []
    for lr, hr in AXES:
        one = axis(lr, hr)
        found.append(
            {
                "lr": lr,
                "hr": hr,
                "nearest": one.nearest.tolist(),
                "relative": short(one.relative),
                "cell": short([one.cell])[0],
                "low": one.low.tolist(),
                "high": one.high.tolist(),
                "weight": short(one.weight),
            }
        )
    return found


def decisions(bundle: Bundle) -> dict[str, Any]:
    """Thresholds on a short list of probabilities with ties; None where no pixel is heavy."""
    values = np.random.default_rng(SEED).beta(0.6, 1.4, 40).astype(np.float32)
    values[5:10] = values[5]
    costs = normalised_costs(bundle.manifest.cost, SCALE)

    def rule(threshold: np.float32, **asked: float) -> dict[str, Any]:
        heavy = (values >= threshold).astype(int).tolist()
        return {
            **asked,
            "threshold": short([threshold])[0] if np.isfinite(threshold) else None,
            "classes": heavy,
        }

    return {
        "probability": short(values),
        "scale": SCALE,
        "costs": short(costs),
        "k": [rule(threshold_by_k(k, costs), k=k) for k in KS],
        "adaptive": rule(*adaptive_thresholds(values, 2)),
        "budget": [rule(*budget_thresholds(values, budget, steps=(1,)), budget=budget) for budget in BUDGETS],
    }


def three_class_decisions() -> dict[str, Any]:
    """The same among three classes; thresholds that no pixel is to reach are None."""
    probability = np.random.default_rng(SEED).dirichlet((0.4, 0.3, 0.3), 40).astype(np.float32)
    probability[5:10] = probability[5]
    values = difficulty(probability.T[None])[0]

    def rule(thresholds: Thresholds, **asked: float) -> dict[str, Any]:
        return {
            **asked,
            "thresholds": [short([each])[0] if np.isfinite(each) else None for each in thresholds],
            "classes": classes_by_thresholds(values, thresholds).tolist(),
        }

    steps = cost_steps(THREE_COSTS)
    return {
        "probability": [short(each) for each in probability],
        "difficulty": short(values),
        "upsamplers": THREE_COSTS,
        "adaptive": rule(adaptive_thresholds(values, 3)),
        "budget": [
            rule(budget_thresholds(values, budget, steps=steps), budget=budget) for budget in THREE_BUDGETS
        ],
    }


def heads(bundle: Bundle, picture: NDArray[np.uint8]) -> tuple[dict[str, Arrays], dict[str, Terms]]:
    """Inputs and outputs of every graph on the picture, and the terms."""
    rows, columns = picture_axes()
    graphs = {
        name: open_model(bundle.read(entry), name) for name, entry in bundle.manifest.graphs["fp32"].items()
    }
    weights = bundle.weights()
    lr = np.ascontiguousarray((picture / np.float32(255)).transpose(2, 0, 1))[None]
    names = ("classifier", "upsampler_0", "upsampler_1")
    tables = dict(zip(names, graphs["backbone"]({"lr": lr}), strict=True))
    widths = dict(zip(names, bundle.manifest.table_channels, strict=True))
    first = {name: terms(head_weights(weights, name, widths[name]), rows, columns) for name in names}
    calls: dict[str, Arrays] = {
        "backbone": {"lr": lr, **{f"{name}_table": table for name, table in tables.items()}}
    }
    # Output rows 4 to 9 and columns 2 to 12: they lie within some rows of the table, not all of them.
    y, x = slice(4, 10), slice(2, 13)
    top, bottom = int(rows.nearest[y][0]), int(rows.nearest[y][-1]) + 1
    for name, output in (("classifier", "probability"), ("upsampler_0", "rgb")):
        feed = {
            "table": tables[name][top:bottom],
            "rows": rows.nearest[y] - np.int32(top),
            "columns": columns.nearest[x],
            "row_terms": first[name].rows[y, :, None],
            "column_terms": np.ascontiguousarray(first[name].columns[x].T)[None],
        }
        calls[name] = {**feed, output: graphs[name](feed)[0]}
    # A few scattered pixels, in no order.
    row, column = (np.array(v, dtype=np.int32) for v in ([0, 21, 5, 5, 13], [27, 0, 7, 8, 14]))
    feed = {
        "table": tables["upsampler_1"].reshape(-1, widths["upsampler_1"]),
        "pixel": rows.nearest[row] * np.int32(columns.lr) + columns.nearest[column],
        "row": row,
        "column": column,
        "row_terms": first["upsampler_1"].rows,
        "column_terms": first["upsampler_1"].columns,
    }
    calls["upsampler_1"] = {**feed, "rgb": graphs["upsampler_1"](feed)[0]}
    return calls, first


def picture_axes() -> tuple[Any, Any]:
    """Rows and columns of the picture at the scale of the vectors."""
    H, W = output_size(*SIZE, SCALE, None)
    return axis(SIZE[0], H), axis(SIZE[1], W)


def pictures(folder: Path, picture: NDArray[np.uint8]) -> Arrays:
    """The whole way of the picture, by several rules."""
    single = picture / np.float32(255)
    with Upscaler.open(folder, threads=1) as up:
        plain = up(single, scale=SCALE, k=0.0)
        adaptive = up(single, scale=SCALE, adaptive=True, refine=True)
        rounded = up(picture, scale=SCALE, adaptive=True, refine=True)
        tables = up._resources.backend.tables(
            np.ascontiguousarray(single.transpose(2, 0, 1)), Region(0, SIZE[0], 0, SIZE[1])
        )
        everything = Region(0, plain.class_map.shape[0], 0, plain.class_map.shape[1])
        place = up._resources.backend.place(*picture_axes())
        probability = up._resources.backend.probabilities(tables, place, everything)[:, 0]
    bilinear = base(picture, *picture_axes(), everything).transpose(0, 2, 1)
    assert plain.decision.thresholds is not None
    assert adaptive.decision.thresholds is not None
    thresholds = np.array([*plain.decision.thresholds, *adaptive.decision.thresholds], dtype=np.float32)
    return {
        "lr": picture,
        "probability": probability,
        "base": np.ascontiguousarray(bilinear),
        "thresholds": thresholds,
        "k0_classes": plain.class_map,
        "k0_image": plain.image,
        "adaptive_classes": adaptive.class_map,
        "adaptive_refined_image": adaptive.image,
        "adaptive_refined_image_8bit": rounded.image,
        "k0_cost": np.array(
            [plain.cost.flops, plain.cost.flops_all_heavy, plain.cost.macs, plain.cost.macs_all_heavy]
        ),
    }


def example(whole: Arrays, calls: dict[str, Arrays], first: dict[str, Terms]) -> dict[str, Any]:
    """One output pixel, step by step."""
    Y, X = EXAMPLE
    rows, columns = picture_axes()
    i, j = int(rows.nearest[Y]), int(columns.nearest[X])
    table = calls["backbone"]["classifier_table"][i, :, j]
    row, column = first["classifier"].rows[Y], first["classifier"].columns[X]
    return {
        "pixel": [Y, X],
        "nearest": [i, j],
        "relative": short([rows.relative[Y], columns.relative[X]]),
        "cell": short([rows.cell, columns.cell]),
        "classifier": {
            "table": short(table),
            "row_term": short(row),
            "column_term": short(column),
            "first": short(table + column + row),
        },
        "probability": short([whole["probability"][Y, X]])[0],
        "class_at_k0": int(whole["k0_classes"][Y, X]),
        # The dense block begins at row 4 and column 2; the pixel is the third of the sparse call.
        "residual_0": short(calls["upsampler_0"]["rgb"][Y - 4, :, X - 2]),
        "residual_1": short(calls["upsampler_1"]["rgb"][2]),
        "base": short(whole["base"][Y, X]),
        "image_at_k0": short(whole["k0_image"][Y, X]),
    }


def save(folder: Path, arrays: Arrays) -> None:
    """An .npy file, version 1, C order, little-endian, for each array."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in arrays.items():
        little = values.dtype.newbyteorder("<")
        np.save(folder / f"{name}.npy", np.ascontiguousarray(values, dtype=little), allow_pickle=False)


def write_json(path: Path, content: Sequence[Any] | dict[str, Any]) -> None:
    """A line for each entry of the outer level: readable, and small differences stay small."""
    if isinstance(content, dict):
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
        text = "{\n" + ",\n".join(lines) + "\n}\n"
    else:
        text = "[\n" + ",\n".join(json.dumps(value) for value in content) + "\n]\n"
    path.write_text(text, encoding="utf-8")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@exit_on_error()
def main(*, folder: Path) -> None:
    """Write all vectors into FOLDER."""
    h, w = SIZE
    # Across the cat's ear: flat fur on one side, an edge on the other.
    photograph: NDArray[np.uint8] = skimage.data.chelsea()  # type: ignore[no-untyped-call]
    picture = np.ascontiguousarray(photograph[70 : 70 + 4 * h : 4, 120 : 120 + 4 * w : 4])
    bundle = write_bundle(folder / "bundle", picture)
    calls, first = heads(bundle, picture)
    whole = pictures(folder / "bundle", picture)
    write_json(folder / "geometry.json", geometry())
    write_json(folder / "decision.json", decisions(bundle))
    write_json(folder / "decision_three_classes.json", three_class_decisions())
    write_json(folder / "example.json", example(whole, calls, first))
    for name, arrays in calls.items():
        save(folder / "graphs" / name, arrays)
    for name, each in first.items():
        save(folder / "terms" / name, {"rows": each.rows, "columns": each.columns})
    save(folder / "picture", whole)


if __name__ == "__main__":
    main()
