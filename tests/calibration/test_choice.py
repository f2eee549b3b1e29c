"""Layers are chosen by what they cost together, not by what they cost alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pcsr.calibration.choice import by_sensitivity, choose_layers
from pcsr.export.int8.cache import Effect, Sensitivity


def effect(drop: float) -> Effect:
    return Effect(drops={"2": drop - 1, "4": drop}, worst=drop, noise=drop, agreement=100.0)


def row(name: str, cost: float, share: float) -> Sensitivity:
    return Sensitivity(graph="backbone", nodes=(name,), output=name, macs=1, share=share, effect=effect(cost))


ROWS = [
    row("a", 0.01, 0.1),
    row("b", 0.05, 0.1),
    row("c", 0.02, 0.4),
    row("d", 0.012, 0.1),
    row("e", 9.0, 0.01),
]


def added(some: Sequence[Sensitivity]) -> Effect:
    return effect(sum(one.effect.noise for one in some))


def names(rows: Sequence[Sensitivity]) -> str:
    return "".join(one.output for one in rows)


def test_the_order_is_noise_for_the_arithmetic() -> None:
    assert names(by_sensitivity(ROWS)) == "cadbe"


@pytest.mark.parametrize(
    ("limit", "chosen"), [(0.0, ""), (0.02, "c"), (0.03, "ca"), (0.0421, "cad"), (0.05, "cad"), (20, "cadbe")]
)
def test_as_many_as_the_limit_allows(limit: float, chosen: str) -> None:
    taken, found = choose_layers(ROWS, added, limit=limit)
    assert names(taken) == chosen
    assert (found is None) == (not chosen)
    assert found is None or found.drop <= limit


def test_after_one_that_does_not_fit_later_ones_still_may() -> None:
    rows = [row("a", 0.01, 0.1), row("b", 0.2, 0.9), row("c", 0.01, 0.01)]
    assert names(choose_layers(rows, added, limit=0.05)[0]) == "ac"


def test_what_layers_cost_together_decides() -> None:
    def worse_together(some: Sequence[Sensitivity]) -> Effect:
        return effect(0.0 if len(some) < 3 else 1.0)

    assert len(choose_layers(ROWS, worse_together, limit=0.5)[0]) == 2


def test_a_gain_at_one_scale_does_not_make_up_for_a_loss_at_another() -> None:
    assert effect(0.3).drop == 0.3
