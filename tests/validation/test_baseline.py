"""The gate: what passes, what fails, and which files are taken for a baseline."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pcsr.runtime.errors import OptionError
from pcsr.validation.baseline import (
    LIMIT,
    check_baseline,
    check_oracle,
    make_baseline,
    read_baseline,
    write_baseline,
)
from pcsr.validation.results import Comparison, Quality, SetComparison


def a_set(
    name: str = "Set5", *, psnr: float = 30.0, oracle: float | None = None, **changes: Any
) -> SetComparison:
    quality = Quality(psnr, psnr + 1, 0.9)
    beside = None if oracle is None else Quality(oracle, oracle + 1, 0.9)
    costs = {"flops": 1, "flops_all_heavy": 2, "macs": 1, "macs_all_heavy": 2, "milliseconds": 1.0}
    picture = Comparison(
        name="baby",
        size=(8, 12),
        truth_sha256="0" * 64,
        bicubic=quality,
        runtime=quality,
        oracle=beside,
        fidelity=None,
        shares=(0.5, 0.5),
        thresholds=(0.5,),
        **costs,  # type: ignore[arg-type]
    )
    one = SetComparison(
        set=name,
        scale=4.0,
        rule="k=0",
        pictures=(picture,),
        bicubic=quality,
        runtime=quality,
        oracle=beside,
        fidelity=None,
        shares=(0.5, 0.5),
        **costs,  # type: ignore[arg-type]
    )
    return replace(one, **changes)


def gate(then: list[SetComparison], now: list[SetComparison], max_drop: float = 0.01) -> Any:
    baseline = make_baseline(then, lr="float", refine=False, provenance={})
    return check_baseline(now, baseline, max_drop=max_drop)


@pytest.mark.parametrize("now", [30.0, 29.9901, 31.0])
def test_a_set_within_the_allowed_drop_passes(now: float) -> None:
    assert gate([a_set()], [a_set(psnr=now)]).failures == ()


def test_a_set_that_fell_further_fails_and_says_by_how_much() -> None:
    (failure,) = gate([a_set()], [a_set(psnr=29.98)]).failures
    assert "Set5 ×4 k=0" in failure
    assert "0.0200 dB" in failure


@pytest.mark.parametrize("change", [{"set": "Set14"}, {"scale": 2.0}, {"rule": "adaptive"}])
def test_what_the_baseline_has_and_was_not_run_fails(change: dict[str, Any]) -> None:
    verdict = gate([a_set(), a_set(**{"name": "Set5", **change})], [a_set()])
    assert len(verdict.failures) == 1
    assert "was not run" in verdict.failures[0]
    assert verdict.notes == ()


def test_what_the_baseline_lacks_is_said_and_passes() -> None:
    verdict = gate([a_set()], [a_set(), a_set("Set14", psnr=1.0)])
    assert verdict.failures == ()
    assert "Set14 ×4 k=0" in verdict.notes[0]


@pytest.mark.parametrize("change", [{"name": "bird"}, {"truth_sha256": "1" * 64}])
def test_other_pictures_fail_even_when_they_are_better(change: dict[str, Any]) -> None:
    other = a_set(psnr=40.0)
    other = replace(other, pictures=(replace(other.pictures[0], **change),))
    (failure,) = gate([a_set()], [other]).failures
    assert "other pictures" in failure


def test_perfect_pictures_must_stay_perfect(tmp_path: Path) -> None:
    perfect = a_set(psnr=math.inf)
    assert gate([perfect], [perfect]).failures == ()
    assert gate([a_set()], [perfect]).failures == ()
    assert len(gate([perfect], [a_set()]).failures) == 1
    write_baseline(tmp_path / "b.json", make_baseline([perfect], lr="float", refine=False, provenance={}))
    assert read_baseline(tmp_path / "b.json").entries[0].psnr is None


def test_not_a_number_fails_both_gates() -> None:
    assert len(gate([a_set()], [a_set(psnr=math.nan)]).failures) == 1
    assert len(check_oracle([a_set(psnr=math.nan, oracle=30.0)], max_drop=0.01).failures) == 1


def test_the_oracle_gate_is_the_difference_of_the_means() -> None:
    assert check_oracle([a_set(), a_set(oracle=30.009), a_set(oracle=20.0)], max_drop=0.01).failures == ()
    (failure,) = check_oracle([a_set(oracle=30.02)], max_drop=0.01).failures
    assert "0.0200 dB below the oracle" in failure


def test_a_baseline_comes_back_as_it_was_written(tmp_path: Path) -> None:
    baseline = make_baseline(
        [a_set(), a_set("Sæt", psnr=12.5)], lr="8bit", refine=True, provenance={"a": "b"}
    )
    write_baseline(tmp_path / "b.json", baseline)
    assert read_baseline(tmp_path / "b.json") == baseline
    assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_a_baseline_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    baseline = make_baseline([a_set()], lr="float", refine=False, provenance={})
    with pytest.raises(OptionError, match="cannot write"):
        write_baseline(tmp_path / "missing" / "b.json", baseline)


def written(tmp_path: Path, change: dict[str, Any]) -> Path:
    path = tmp_path / "b.json"
    write_baseline(path, make_baseline([a_set()], lr="float", refine=False, provenance={}))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return path


ENTRY = {"set": "a", "scale": 4.0, "rule": "k=0", "pictures": 1, "pictures_sha256": "0" * 64, "psnr": 30.0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "pcsr-bundle"}, "not a baseline"),
        ({"version": 2}, "version 2"),
        ({"version": None}, "not a baseline"),
        ({"surplus": 1}, "surplus"),
        ({"lr": "16bit"}, "16bit"),
        ({"entries": []}, "entries"),
        ({"entries": [ENTRY | {"psnr": 1e9}]}, "psnr"),
        ({"entries": [ENTRY | {"scale": 0.5}]}, "scale"),
        ({"entries": [ENTRY | {"pictures_sha256": "x"}]}, "pictures_sha256"),
        ({"entries": [ENTRY, ENTRY]}, "twice"),
    ],
)
def test_a_damaged_baseline_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        read_baseline(written(tmp_path, change))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": "pcsr-baseline"}']
)
def test_what_is_no_baseline_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b.json").write_bytes(content)
    with pytest.raises(OptionError, match="not a baseline"):
        read_baseline(tmp_path / "b.json")


def test_a_huge_file_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "b.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OptionError, match=f"larger than {LIMIT}"):
        read_baseline(tmp_path / "b.json")


def test_a_missing_baseline_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--save-baseline"):
        read_baseline(tmp_path / "b.json")
