"""Whatever strangers send is read or refused: no other error, no signal, no hang, no leftovers, little memory.

`scripts/fuzz.py` does the same by the thousand. A test that fails says what was damaged, and how.
"""

from __future__ import annotations

from random import Random

import pytest
from fuzz import seeded
from fuzz_case import Case
from fuzz_targets import make_case, sources
from fuzz_watch import Outcome, Watch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

# About as many as take the same time.
FEW = {"picture": 130, "bundle": 50, "manifest": 50, "checkpoint": 30, "calibration": 40}
MANY = {"picture": 2500, "bundle": 800, "manifest": 800, "checkpoint": 500, "calibration": 800}


def refused_or_harmless(case: Case, watch: Watch) -> Outcome:
    outcome = watch.run(case)
    assert not outcome.is_finding, f"{outcome.verdict} after: {case.origin}\n{outcome.detail}"
    return outcome


@pytest.mark.parametrize("target", FEW)
def test_damage_is_refused_or_harmless(target: str, watch: Watch) -> None:
    # A search of its own, so that a finding is cut down to the least damage that still is one.
    @settings(
        max_examples=FEW[target],
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.large_base_example,
        ],
    )
    @given(source=st.sampled_from(sources(target)), decides=st.randoms(use_true_random=False))
    def holds(source: str, decides: Random) -> None:
        refused_or_harmless(make_case(target, decides, source=source), watch)

    holds()


@pytest.mark.slow
@pytest.mark.parametrize("target", MANY)
def test_much_damage_is_refused_or_harmless(target: str, watch: Watch) -> None:
    for _, decides in seeded(target, 1, MANY[target]):
        refused_or_harmless(make_case(target, decides), watch)
