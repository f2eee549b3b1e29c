"""The runtime against cases computed with the authors' program.

The cases made with random weights (srresnet) lie in the repository; the others need the reference material.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from rounded_means import adaptive_intervals, assert_thresholds_within

from pcsr.export.pipeline import export_bundle
from pcsr.runtime import Result, Upscaler
from pcsr.runtime.cost import normalised_costs, picture_cost

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "golden"

# The names, so that pytest can list the cases where the reference material is not at hand.
NAMES = [
    "carn_lrx4_24x33_x4_k0_ref",
    "carn_chelsea_17x40_x3_k0_noref",
    "carn_coffee_24x33_x2_k0.25_ref",
    "carn_astronaut_17x40_x1_k0_noref",
    "carn_lrx4_64x31_x1.5_k0_noref",
    "carn_coffee_15x21_x2.3_adm_noref",
    "carn_chelsea_13x19_x3.7_adm_ref",
    "carn_astronaut_9x13_x8_k0_ref",
    "carn_lrx4_48x48_x2_adm_noref_pbs1000",
    "carn_lrx4_96x96_x1.5_adm_ref",
    "carn_chelsea_24x33_x2_k1_ref",
    "carn_coffee_24x33_x2_k-0.5_noref",
    "carn_astronaut_17x31_to50x77_k0.25_ref",
    "carn_coffee_21x15_x2.5_k0_noref",
    "carn_lrx4_20x16_x2.5_k1_ref",
    "fsrcnn_lrx4_17x24_x4_adm_ref",
    "fsrcnn_chelsea_17x40_x3_k0_ref",
    "fsrcnn_coffee_24x33_x2_k0.25_noref",
    "fsrcnn_astronaut_31x17_x1_adm_noref",
    "fsrcnn_lrx4_33x24_x1.5_k1_ref",
    "fsrcnn_coffee_15x21_x2.3_k-0.5_ref",
    "fsrcnn_chelsea_13x19_x3.7_k0_noref",
    "fsrcnn_astronaut_8x11_x8_adm_noref",
    "fsrcnn_lrx4_48x48_x2_k0_ref_pbs777",
    "fsrcnn_coffee_10x14_to60x84_k0_ref",
    "srresnet_lrx4_24x33_x2_k0_ref",
    "srresnet_chelsea_17x20_x3_adm_noref",
    "srresnet_coffee_15x21_x2.3_k0.25_noref",
    "srresnet_astronaut_12x16_x4_adm_ref",
]

BACKENDS = ("native", "onnxruntime")

# The runtime sums in another order than the authors' program (first layers by tables, batch norms folded).
COLOUR_TOLERANCE = 2e-4
# Two-means starts from the mean and the minimum, which move with the rounding of every probability.
THRESHOLD_TOLERANCE = 1e-5
NEAR = 5e-5


@dataclass(frozen=True, slots=True)
class Golden:
    """One case: its entry in the manifest, and its arrays."""

    entry: dict[str, Any]
    lr: np.ndarray
    sr: np.ndarray
    classes: np.ndarray
    heavy: np.ndarray

    @property
    def options(self) -> dict[str, Any]:
        """How to ask the runtime for it."""
        size = self.entry["hr_size_arg"]
        asked = {"scale": self.entry["scale"]} if size is None else {"size": tuple(size)}
        rule = {"adaptive": True} if self.entry["adaptive"] else {"k": float(self.entry["k"])}
        return {**asked, **rule, "refine": self.entry["refinement"]}


OpenCase = Callable[[str, str, int | None], tuple[Golden, Upscaler]]


@pytest.fixture(scope="session")
def open_case(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[OpenCase]:
    """A function that gives a case by name and an upscaler of its checkpoint, by backend and tile size or none."""
    opened: dict[tuple[str, str, int | None], Upscaler] = {}

    def open_by_name(name: str, backend: str, tile: int | None) -> tuple[Golden, Upscaler]:
        if name.startswith("srresnet"):
            cases, checkpoint = GOLDEN, GOLDEN / "srresnet-pcsr-random.pth"
        else:
            reference = request.getfixturevalue("shared") / "reference"
            cases, checkpoint = (
                reference / "golden",
                reference / "official" / f"{name.split('_')[0]}-pcsr.pth",
            )
        entries = json.loads((cases / "manifest.json").read_text())["cases"]
        arrays = np.load(cases / f"{name}.npz")
        entry = next(entry for entry in entries if entry["name"] == name)
        key = checkpoint.name, backend, tile
        if key not in opened:
            bundle = tmp_path_factory.getbasetemp() / f"golden-{checkpoint.stem}"
            export_bundle(checkpoint, bundle, precisions=("fp32",))
            opened[key] = Upscaler.open(bundle, backend=backend, threads=2, tile=tile)
        return Golden(entry, arrays["lr"], arrays["sr"], arrays["flag"], arrays["prob"][..., 1]), opened[key]

    yield open_by_name
    for up in opened.values():
        up.close()


def upscaled(golden: Golden, up: Upscaler) -> Result:
    return up(golden.lr.astype(np.float32) / np.float32(255), **golden.options)


def assert_faithful(golden: Golden, result: Result, up: Upscaler) -> None:
    differs = result.class_map != golden.classes
    assert int(differs.sum()) <= golden.entry["ambiguous"]
    # A pixel sent elsewhere has another colour, and with refinement so have its neighbours.
    reach = (
        sliding_window_view(np.pad(differs, 1), (3, 3)).any((2, 3)) if golden.entry["refinement"] else differs
    )
    assert np.abs(result.image - golden.sr)[~reach].max() <= COLOUR_TOLERANCE
    cost = up.bundle.manifest.cost
    h, w = golden.lr.shape[:2]
    published = picture_cost(cost, h * w, np.bincount(golden.classes.flat, minlength=2).tolist())
    assert published.flops == pytest.approx(golden.entry["flops"], rel=1e-6)
    if not differs.any():
        assert result.cost == published


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_golden_cases_of_the_authors_program_are_reproduced(
    name: str, backend: str, open_case: OpenCase
) -> None:
    golden, up = open_case(name, backend, None)
    result = upscaled(golden, up)
    assert_faithful(golden, result, up)
    assert result.tile == golden.lr.shape[:2]
    costs = normalised_costs(up.bundle.manifest.cost, golden.entry["scale_key"])
    np.testing.assert_array_equal(np.array(costs), np.array(golden.entry["cost_list"], dtype=np.float32))
    if golden.entry["adaptive"]:
        thresholds = result.decision.thresholds
        assert thresholds is not None
        if backend == "onnxruntime":
            assert thresholds == pytest.approx(
                (golden.entry["adm"]["threshold_prob"],), abs=THRESHOLD_TOLERANCE
            )
        # Winograd's transforms round more: some pixels near a threshold go to the other cluster.
        within = adaptive_intervals(golden.heavy, 2, near=NEAR, drift=THRESHOLD_TOLERANCE)
        assert_thresholds_within(thresholds, within, THRESHOLD_TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES)
def test_golden_cases_are_reproduced_in_tiles(name: str, backend: str, open_case: OpenCase) -> None:
    golden, up = open_case(name, backend, 16)
    assert_faithful(golden, upscaled(golden, up), up)


def test_every_case_with_a_classifier_is_listed(shared: Path) -> None:
    entries = json.loads((shared / "reference" / "golden" / "manifest.json").read_text())["cases"]
    assert sorted(NAMES) == sorted(entry["name"] for entry in entries if entry["phase"] == 1)
    assert len(NAMES) == 29
