"""Which layers run in INT8: the most arithmetic whose loss stays within a limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pcsr.export.int8.cache import Effect, Sensitivity

__all__ = ["by_sensitivity", "choose_layers"]


def by_sensitivity(rows: Sequence[Sensitivity]) -> list[Sensitivity]:
    """Layers in the order in which they are taken: the least noise for the arithmetic first.

    Noise, not PSNR: of one layer it is far above what a few pictures can tell from chance, and adds up.
    """
    return sorted(rows, key=lambda row: (row.effect.noise / max(row.share, 1e-12), row.graph, row.output))


def choose_layers(
    rows: Sequence[Sensitivity],
    effect: Callable[[Sequence[Sensitivity]], Effect],
    *,
    limit: float,
) -> tuple[list[Sensitivity], Effect | None]:
    """Take as much as stays within the limit together.

    First the longest run in the order of `by_sensitivity`, found by halving; then each of the rest, in that order,
    where it still fits. Every candidate is measured as a whole, not summed up from its layers.

    Args:
        rows: what each layer costs alone.
        effect: measures some of them together.
        limit: of `Effect.drop`, in dB.

    Returns:
        The layers and what they cost together; none and None where not even one is within the limit.
    """
    order = by_sensitivity(rows)
    taken, found = _longest_run(order, effect, limit)
    for row in order[len(taken) + 1 :]:
        measured = effect([*taken, row])
        if measured.drop <= limit:
            taken, found = [*taken, row], measured
    return taken, found


def _longest_run(
    order: Sequence[Sensitivity], effect: Callable[[Sequence[Sensitivity]], Effect], limit: float
) -> tuple[list[Sensitivity], Effect | None]:
    within, found, beyond = 0, None, len(order) + 1
    # All of them first: where that is allowed, nothing needs a search.
    number = len(order)
    while within + 1 < beyond:
        measured = effect(order[:number])
        if measured.drop <= limit:
            within, found = number, measured
        else:
            beyond = number
        number = (within + beyond) // 2
    return list(order[:within]), found
