"""docs/routing.md is enough: its words put into plain loops, without our runtime, give the picture.

Nothing here imports the project. What an engineer would write in C++ from the document, this writes in Python,
one scalar at a time, with ONNX Runtime for the graphs and the bundle's files for the rest.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.numpy

VECTORS = Path(__file__).resolve().parent.parent / "data" / "routing"
BUNDLE = VECTORS / "bundle"
F = np.float32
TOLERANCE = 2e-5


class Axis:
    """Section 2 of the document."""

    def __init__(self, lr: int, hr: int) -> None:
        self.lr, self.hr = lr, hr
        self.cell = F(2 / hr) * F(lr)
        self.nearest, self.relative, self.low, self.high, self.weight = [], [], [], [], []
        for i in range(hr):
            c = self.centre(i, hr)
            edge = F(c + F(1))
            t = F(F(float(edge) * lr - 1.0) * F(0.5))
            nearest = min(max(self.round_half_even(float(t)), 0), lr - 1)
            self.nearest.append(nearest)
            self.relative.append(F(F(c - self.centre(nearest, lr)) * F(lr)))
            u = min(max(t, F(0)), F(lr - 1))
            low = math.floor(u)
            self.low.append(low)
            self.high.append(min(low + 1, lr - 1))
            self.weight.append(F(u - F(low)))

    @staticmethod
    def centre(i: int, n: int) -> np.float32:
        return F(F(-1 + 1 / n) + F(F(2 / n) * F(i)))

    @staticmethod
    def round_half_even(t: float) -> int:
        below = math.floor(t)
        if t - below == 0.5:
            return below if below % 2 == 0 else below + 1
        return math.floor(t + 0.5)


class Reader:
    """The bundle's files, by the names of its manifest."""

    def __init__(self) -> None:
        self.manifest = json.loads((BUNDLE / "manifest.json").read_text())
        self.weights = safetensors.numpy.load_file(BUNDLE / self.manifest["weights"]["path"])
        self.graphs = {
            name: onnxruntime.InferenceSession(
                str(BUNDLE / entry["path"]), providers=["CPUExecutionProvider"]
            )
            for name, entry in self.manifest["graphs"]["fp32"].items()
        }

    def run(self, graph: str, **feed: np.ndarray) -> list[np.ndarray]:
        return self.graphs[graph].run(None, feed)

    def terms(self, head: str, rows: Axis, columns: Axis) -> tuple[np.ndarray, np.ndarray]:
        """Section 4: (H, C) and (W, C)."""
        w_y, w_x, w_cy, w_cx, bias = (
            self.weights[f"{head}.first.{part}"]
            for part in ("relative_y", "relative_x", "cell_y", "cell_x", "bias")
        )
        of_rows = [r * w_y + (rows.cell * w_cy + bias) for r in rows.relative]
        of_columns = [r * w_x + columns.cell * w_cx for r in columns.relative]
        return np.array(of_rows, dtype=F), np.array(of_columns, dtype=F)


class Upscaled:
    """Sections 3 to 6 for the whole picture at once: probabilities, and both residuals of every pixel."""

    def __init__(self, reader: Reader, lr: np.ndarray, H: int, W: int) -> None:
        self.rows, self.columns = Axis(lr.shape[0], H), Axis(lr.shape[1], W)
        planar = np.ascontiguousarray(lr.transpose(2, 0, 1))[None]
        classifier, light, heavy = reader.run("backbone", lr=planar)
        nearest = {
            "rows": np.array(self.rows.nearest, dtype=np.int32),
            "columns": np.array(self.columns.nearest, dtype=np.int32),
        }

        def dense(head: str, table: np.ndarray) -> np.ndarray:
            of_rows, of_columns = reader.terms(head, self.rows, self.columns)
            terms = {"row_terms": of_rows[:, :, None], "column_terms": of_columns.T[None].copy()}
            return reader.run(head, table=table, **nearest, **terms)[0]

        self.probability = dense("classifier", classifier)[:, 0]
        self.light = dense("upsampler_0", light).transpose(0, 2, 1)
        of_rows, of_columns = reader.terms("upsampler_1", self.rows, self.columns)
        row, column = (index.reshape(-1).astype(np.int32) for index in np.indices((H, W)))
        self.heavy = reader.run(
            "upsampler_1",
            table=heavy.reshape(-1, heavy.shape[2]),
            pixel=nearest["rows"][row] * np.int32(lr.shape[1]) + nearest["columns"][column],
            row=row,
            column=column,
            row_terms=of_rows,
            column_terms=of_columns,
        )[0].reshape(H, W, 3)
        self.base = np.array([[self._bilinear(lr, Y, X) for X in range(W)] for Y in range(H)])

    def _bilinear(self, lr: np.ndarray, Y: int, X: int) -> np.ndarray:
        """Section 6."""
        r, c = self.rows, self.columns
        across = [
            lr[i, c.low[X]] * (F(1) - c.weight[X]) + lr[i, c.high[X]] * c.weight[X]
            for i in (r.low[Y], r.high[Y])
        ]
        return across[0] * (F(1) - r.weight[Y]) + across[1] * r.weight[Y]

    def image(self, classes: np.ndarray, *, refine: bool) -> np.ndarray:
        """Section 6: base and residual, then the mean of 3x3 for light pixels beside a heavy one."""
        colour = self.base + np.where(classes[..., None] == 1, self.heavy, self.light)
        refined = colour.copy()
        H, W = classes.shape
        for Y in range(1, H - 1) if refine else ():
            for X in range(1, W - 1):
                if classes[Y, X] == 0 and classes[Y - 1 : Y + 2, X - 1 : X + 2].any():
                    refined[Y, X] = colour[Y - 1 : Y + 2, X - 1 : X + 2].mean(axis=(0, 1))
        return refined


def rounded_up(threshold: float) -> np.float32:
    nearest = F(threshold)
    return nearest if float(nearest) >= threshold else np.nextafter(nearest, F(np.inf))


def difficulty(p: list[float]) -> np.float32:
    """Section 5: the expected class from M probabilities, rounded at every step."""
    d = F(p[1])
    for j in range(2, len(p)):
        d = F(d + F(F(j) * F(p[j])))
    return d


def means(d: np.ndarray, M: int) -> list[np.float32]:
    """Section 5: the thresholds of the adaptive decision, in double."""
    values = d.astype(np.float64).reshape(-1)
    lowest, span = values.min(), values.max() - values.min()
    x = (values - lowest) / span
    c = [0.0, x.mean()] if M == 2 else [j / (M - 1) for j in range(M)]
    for _ in range(19):
        t = [(c[j - 1] + c[j]) / 2 for j in range(1, M)]
        clusters = [[] for _ in range(M)]
        for value in x:
            clusters[sum(value >= each for each in t)].append(value)
        new = [sum(clusters[j]) / len(clusters[j]) if clusters[j] else c[j] for j in range(M)]
        moved = sum((new[j] - c[j]) ** 2 for j in range(M))
        c = new
        if moved <= 1e-4:
            break
    return [rounded_up(lowest + each * span) for each in t]


def budget(d: np.ndarray, b: float, u: list[int]) -> list[np.float32]:
    """Section 5: the thresholds of a budget."""
    M, N = len(u), len(d)
    steps = [1] if M == 2 else [u[j] - u[j - 1] for j in range(1, M)]

    dearest, part = [max(steps[: j + 1]) for j in range(M - 1)], 0.0
    for i in range(M - 1):
        left = b * sum(steps) - sum(steps[:i])
        part = left / sum(steps[j] / dearest[j] for j in range(i, M - 1))
        if part <= dearest[i]:
            break
    thresholds, descending = [], sorted(d, reverse=True)
    for j in range(M - 1):
        count = round(min(part / dearest[j], 1) * N)
        if not count:
            thresholds.append(F(np.inf))
            continue
        value = descending[count - 1]
        too_many, too_few = int((d >= value).sum()) - count, count - int((d > value).sum())
        thresholds.append(value if too_many <= too_few else np.nextafter(value, F(np.inf)))
    return thresholds


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader()


@pytest.fixture(scope="module")
def upscaled(reader: Reader) -> Upscaled:
    H, W = (round(side * 2.5) for side in array("lr").shape[:2])
    return Upscaled(reader, array("lr") / F(255), H, W)


def array(name: str) -> Any:
    return np.load(VECTORS / "picture" / f"{name}.npy")


def test_axes_by_hand_are_the_vectors() -> None:
    for expected in json.loads((VECTORS / "geometry.json").read_text()):
        got = Axis(expected["lr"], expected["hr"])
        assert (got.nearest, got.low, got.high) == (expected["nearest"], expected["low"], expected["high"])
        assert got.relative == [F(value) for value in expected["relative"]]
        assert got.weight == [F(value) for value in expected["weight"]]
        assert got.cell == F(expected["cell"])


def test_probabilities_by_hand_are_the_vectors(upscaled: Upscaled) -> None:
    np.testing.assert_allclose(upscaled.probability, array("probability"), rtol=0, atol=TOLERANCE)


def test_k_and_picture_by_hand_are_the_vectors(upscaled: Upscaled) -> None:
    classes = (upscaled.probability > 0.5).astype(np.uint8)
    np.testing.assert_array_equal(classes, array("k0_classes"))
    image = upscaled.image(classes, refine=False)
    np.testing.assert_allclose(image, array("k0_image"), rtol=0, atol=TOLERANCE)


def test_adaptive_refinement_and_rounding_by_hand_are_the_vectors(upscaled: Upscaled) -> None:
    (threshold,) = means(upscaled.probability, 2)
    classes = (upscaled.probability >= threshold).astype(np.uint8)
    np.testing.assert_array_equal(classes, array("adaptive_classes"))
    image = upscaled.image(classes, refine=True)
    np.testing.assert_allclose(image, array("adaptive_refined_image"), rtol=0, atol=TOLERANCE)
    levels = np.clip(np.rint(image * F(255)), 0, 255)
    assert np.abs(levels - array("adaptive_refined_image_8bit")).max() <= 1


def test_budgets_by_hand_are_the_vectors() -> None:
    expected = json.loads((VECTORS / "decision.json").read_text())
    d = np.array(expected["probability"], dtype=F)
    for one in expected["budget"]:
        (threshold,) = budget(d, one["budget"], [0, 1])
        assert threshold == (np.inf if one["threshold"] is None else F(one["threshold"]))
        assert [int(x >= threshold) for x in d] == one["classes"]


def test_decisions_among_three_classes_by_hand_are_the_vectors() -> None:
    expected = json.loads((VECTORS / "decision_three_classes.json").read_text())
    d = np.array([difficulty(p) for p in expected["probability"]])
    assert d.tolist() == [F(value) for value in expected["difficulty"]]
    found = [(one, budget(d, one["budget"], expected["upsamplers"])) for one in expected["budget"]]
    found += [(expected["adaptive"], means(d, 3))]
    for one, thresholds in found:
        assert thresholds == [np.inf if t is None else F(t) for t in one["thresholds"]]
        assert [sum(x >= t for t in thresholds) for x in d] == one["classes"]


def test_costs_by_hand_are_the_vectors(reader: Reader) -> None:
    classes = array("k0_classes")
    heavy, pixels = int(classes.sum()), classes.size
    found = []
    for unit in ("flops", "macs"):
        cost = reader.manifest["cost"][unit]
        fixed = 9 * 11 * cost["backbone"] + pixels * cost["classifier"]
        light_cost, heavy_cost = cost["upsamplers"]
        found += [fixed + (pixels - heavy) * light_cost + heavy * heavy_cost, fixed + pixels * heavy_cost]
    assert found == array("k0_cost").tolist()


def test_the_worked_example_is_the_vectors(reader: Reader, upscaled: Upscaled) -> None:
    expected = json.loads((VECTORS / "example.json").read_text())
    Y, X = expected["pixel"]
    assert expected["nearest"] == [upscaled.rows.nearest[Y], upscaled.columns.nearest[X]]
    first = expected["classifier"]
    w1, b1 = (reader.weights[f"classifier.layer1.{part}"] for part in ("weight", "bias"))
    summed = [
        t + c + r for t, c, r in zip(first["table"], first["column_term"], first["row_term"], strict=True)
    ]
    assert summed == pytest.approx(first["first"], abs=1e-6)
    logit = float(sum(w * max(s, 0.0) for w, s in zip(w1[0], summed, strict=True)) + b1[0])
    assert 1 / (1 + math.exp(-logit)) == pytest.approx(expected["probability"], abs=1e-5)
    assert expected["class_at_k0"] == int(expected["probability"] > 0.5)
    total = np.add(expected["base"], expected[f"residual_{expected['class_at_k0']}"])
    assert total == pytest.approx(expected["image_at_k0"], abs=1e-6)
