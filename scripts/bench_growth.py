"""How time grows with the picture, and shrinks with threads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from bench_record import Cell, Growth, Row, Speedup, median_ms, ratios

__all__ = ["growth", "speedups"]


def growth(cells: Sequence[Cell]) -> tuple[Growth, ...]:
    """A line through the medians of every competitor that has several sizes at one scale and number of threads."""
    series: dict[tuple[str, float, int], list[tuple[int, float]]] = {}
    for cell in cells:
        for row in cell.rows:
            points = series.setdefault((row.name, cell.scale, cell.threads), [])
            points.append((cell.output_pixels, median_ms(row)))
    return tuple(_line(*key, sorted(points)) for key, points in series.items() if len(points) > 1)


def _line(name: str, scale: float, threads: int, points: Sequence[tuple[int, float]]) -> Growth:
    pixels, milliseconds = np.array(points).T
    # Divided by the time: a millisecond off in one of ten counts as much as ten in one of a hundred.
    slope, fixed = np.polyfit(pixels, milliseconds, 1, w=1 / milliseconds)
    each = milliseconds / pixels
    return Growth(
        name=name,
        scale=scale,
        threads=threads,
        ns_per_pixel=float(1e6 * slope),
        fixed_ms=float(fixed),
        largest_to_predicted=float(each[-1] / each[0]),
    )


def speedups(cells: Sequence[Cell]) -> tuple[Speedup, ...]:
    """The fewest threads' time over the most threads', of every competitor, size and scale that has both."""
    found = []
    for least in cells:
        most = max(
            (cell for cell in cells if (cell.lr, cell.scale) == (least.lr, least.scale)),
            key=lambda cell: cell.threads,
        )
        fewest = min(cell.threads for cell in cells if (cell.lr, cell.scale) == (least.lr, least.scale))
        if least.threads != fewest or most.threads == fewest:
            continue
        rows: dict[str, Row] = {row.name: row for row in most.rows}
        found += [
            Speedup(
                name=row.name,
                lr=least.lr,
                scale=least.scale,
                threads=(fewest, most.threads),
                times=ratios(row.seconds, rows[row.name].seconds),
            )
            for row in least.rows
            if row.name in rows
        ]
    return tuple(found)
