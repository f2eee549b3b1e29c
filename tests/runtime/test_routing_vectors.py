"""The vectors of docs/routing.md are what the runtime does, and what the script beside them writes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcsr.runtime import Upscaler
from pcsr.runtime.backends.onnxruntime import open_model
from pcsr.runtime.bundle import Bundle, head_weights, read_bundle
from pcsr.runtime.cost import normalised_costs
from pcsr.runtime.decision import (
    adaptive_thresholds,
    budget_thresholds,
    classes_by_thresholds,
    cost_steps,
    difficulty,
    threshold_by_k,
)
from pcsr.runtime.geometry import axis
from pcsr.runtime.terms import terms

ROOT = Path(__file__).resolve().parent.parent.parent
VECTORS = ROOT / "tests" / "data" / "routing"
SCALE = 2.5
GRAPHS = {
    "backbone": ("lr",),
    "classifier": ("table", "rows", "columns", "row_terms", "column_terms"),
    "upsampler_0": ("table", "rows", "columns", "row_terms", "column_terms"),
    "upsampler_1": ("table", "pixel", "row", "column", "row_terms", "column_terms"),
}
# Processors and versions of ONNX Runtime sum in other orders.
TOLERANCE = 2e-5


def read(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text())


def array(*path: str) -> np.ndarray:
    return np.load(VECTORS.joinpath(*path).with_suffix(".npy"), allow_pickle=False)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return read_bundle(VECTORS / "bundle")


@pytest.mark.parametrize("expected", read("geometry"), ids=lambda one: f"{one['lr']}-{one['hr']}")
def test_geometry_is_the_vectors_bit_for_bit(expected: dict[str, Any]) -> None:
    got = axis(expected["lr"], expected["hr"])
    for name in ("nearest", "low", "high"):
        assert getattr(got, name).tolist() == expected[name]
    for name in ("relative", "weight"):
        np.testing.assert_array_equal(getattr(got, name), np.array(expected[name], dtype=np.float32))
    assert got.cell == np.float32(expected["cell"])


@pytest.mark.parametrize("head", ["classifier", "upsampler_0", "upsampler_1"])
def test_terms_are_the_vectors(bundle: Bundle, head: str) -> None:
    rows, columns = array("terms", head, "rows"), array("terms", head, "columns")
    got = terms(head_weights(bundle.weights(), head, rows.shape[1]), axis(9, 22), axis(11, 28))
    np.testing.assert_allclose(got.rows, rows, rtol=0, atol=1e-6)
    np.testing.assert_allclose(got.columns, columns, rtol=0, atol=1e-6)


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_give_the_vectors(bundle: Bundle, graph: str) -> None:
    run = open_model(bundle.read(bundle.graphs("fp32")[graph]), graph)
    got = run({name: array("graphs", graph, name) for name in GRAPHS[graph]})
    outputs = {
        "backbone": ("classifier_table", "upsampler_0_table", "upsampler_1_table"),
        "classifier": ("probability",),
    }.get(graph, ("rgb",))
    for values, name in zip(got, outputs, strict=True):
        np.testing.assert_allclose(values, array("graphs", graph, name), rtol=0, atol=TOLERANCE)


def test_decisions_are_the_vectors(bundle: Bundle) -> None:
    expected = read("decision")
    values = np.array(expected["probability"], dtype=np.float32)
    costs = normalised_costs(bundle.manifest.cost, expected["scale"])
    assert [np.float32(cost) for cost in expected["costs"]] == list(costs)
    found = [(one, threshold_by_k(one["k"], costs)) for one in expected["k"]]
    found += [(one, *budget_thresholds(values, one["budget"], steps=(1,))) for one in expected["budget"]]
    found += [(expected["adaptive"], *adaptive_thresholds(values, 2))]
    for one, threshold in found:
        assert threshold == (np.inf if one["threshold"] is None else np.float32(one["threshold"]))
        assert (values >= threshold).astype(int).tolist() == one["classes"]


def test_decisions_among_three_classes_are_the_vectors() -> None:
    expected = read("decision_three_classes")
    values = difficulty(np.array(expected["probability"], dtype=np.float32).T[None])[0]
    np.testing.assert_array_equal(values, np.array(expected["difficulty"], dtype=np.float32))
    steps = cost_steps(expected["upsamplers"])
    found = [(one, budget_thresholds(values, one["budget"], steps=steps)) for one in expected["budget"]]
    found += [(expected["adaptive"], adaptive_thresholds(values, 3))]
    for one, thresholds in found:
        assert list(thresholds) == [np.inf if t is None else np.float32(t) for t in one["thresholds"]]
        assert classes_by_thresholds(values, thresholds).tolist() == one["classes"]


def test_the_whole_way_of_a_picture_is_the_vectors() -> None:
    lr, probability = array("picture", "lr"), array("picture", "probability")
    thresholds = array("picture", "thresholds")
    # No probability lies so near to a threshold that rounding could move it.
    assert np.abs(probability[..., None] - thresholds).min() > 1e-4
    with Upscaler.open(VECTORS / "bundle", threads=1) as up:
        single = lr / np.float32(255)
        plain = up(single, scale=SCALE, k=0.0)
        refined = up(single, scale=SCALE, adaptive=True, refine=True)
        rounded = up(lr, scale=SCALE, adaptive=True, refine=True)
    np.testing.assert_array_equal(plain.class_map, array("picture", "k0_classes"))
    np.testing.assert_allclose(plain.image, array("picture", "k0_image"), rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(refined.class_map, array("picture", "adaptive_classes"))
    expected = array("picture", "adaptive_refined_image")
    np.testing.assert_allclose(refined.image, expected, rtol=0, atol=TOLERANCE)
    assert refined.decision.thresholds == pytest.approx((float(thresholds[1]),), abs=1e-5)
    levels = array("picture", "adaptive_refined_image_8bit")
    assert np.abs(rounded.image.astype(int) - levels).max() <= 1
    assert np.mean(rounded.image != levels) <= 0.01
    cost = plain.cost
    assert [cost.flops, cost.flops_all_heavy, cost.macs, cost.macs_all_heavy] == array(
        "picture", "k0_cost"
    ).tolist()


def test_the_script_writes_the_vectors_anew(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "routing_vectors.py"
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True)
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.npy")}
    assert written == {path.relative_to(VECTORS) for path in VECTORS.rglob("*.npy")}
    for path in written - {Path("picture/adaptive_refined_image_8bit.npy")}:
        np.testing.assert_allclose(
            np.load(tmp_path / path), np.load(VECTORS / path), rtol=0, atol=TOLERANCE, err_msg=str(path)
        )
    for name in ("geometry.json", "decision.json", "decision_three_classes.json"):
        assert (tmp_path / name).read_text() == (VECTORS / name).read_text()
