"""The oracle against the authors' program, case by case."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcsr.model.checkpoint import load_checkpoint
from pcsr.model.cost import network_cost, normalised_cost_list
from pcsr.model.network import Network
from pcsr.model.reference import upscale

IN_REPOSITORY = Path(__file__).resolve().parent.parent / "data" / "golden"

# Names only: what the cases are stands in the manifests, which not every clone has.
RANDOM_CASES = [case["name"] for case in json.loads((IN_REPOSITORY / "manifest.json").read_text())["cases"]]
OFFICIAL_CASES = [
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
]


@functools.cache
def network_of(path: Path) -> Network:
    return load_checkpoint(path, complete=False)


def check_case(name: str, folder: Path, checkpoints: Path) -> None:
    case: dict[str, Any] = next(
        case for case in json.loads((folder / "manifest.json").read_text())["cases"] if case["name"] == name
    )
    network = network_of(checkpoints / case["checkpoint"])
    options: dict[str, Any] = {"scale": case["scale"]}
    if case["hr_size_arg"]:
        options = {"size": tuple(case["hr_size_arg"])}
    if case["phase"] == 1:
        rule = {"adaptive": True} if case["adaptive"] else {"k": case["k"]}
        options |= rule | {"refine": case["refinement"]}
    if case["pixel_batch_size"]:
        options["pixel_batch"] = case["pixel_batch_size"]
    with np.load(folder / case["file"]) as golden:
        result = upscale(network, golden["lr"], **options)

        assert np.abs(result.image - golden["sr"]).max() <= 1e-4
        assert result.flops == pytest.approx(case["flops"], rel=1e-6)
        if case["phase"] == 1:
            assert result.probability is not None
            assert np.abs(result.probability - golden["prob"]).max() <= 1e-4
            assert (result.class_map != golden["flag"]).sum() <= case["ambiguous"]
            costs = normalised_cost_list(network_cost(network), case["scale_key"])
            assert costs == pytest.approx(case["cost_list"], rel=1e-6)
        if case["phase"] == 1 and case["adaptive"]:
            assert result.thresholds == pytest.approx((case["adm"]["threshold_prob"],), abs=1e-6)


@pytest.mark.parametrize("name", RANDOM_CASES)
def test_oracle_equals_the_authors_program_with_random_weights(name: str) -> None:
    check_case(name, IN_REPOSITORY, IN_REPOSITORY)


@pytest.mark.parametrize("name", OFFICIAL_CASES)
def test_oracle_equals_the_authors_program_with_published_weights(name: str, shared: Path) -> None:
    reference = shared / "reference"
    check_case(name, reference / "golden", reference / "official")


def test_no_golden_case_is_left_out(shared: Path) -> None:
    listed = json.loads((shared / "reference" / "golden" / "manifest.json").read_text())["cases"]
    assert sorted(case["name"] for case in listed) == sorted(RANDOM_CASES + OFFICIAL_CASES)
    assert len(listed) == 31
