"""Row and column terms: the geometric part of a per-pixel network's first layer.

The first layer is linear in [feature, r_y, r_x, c_y, c_x], so its sum splits into a table over input pixels
(made by the backbone graph), a term per output row and a term per output column:

    first(Y, X) = table[i(Y), j(X)] + (w_ry r(Y) + w_cy c_y + bias) + (w_rx r(X) + w_cx c_x)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.geometry import Axis

__all__ = ["Terms", "terms"]

Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms of one per-pixel network: `rows` (H, C), bias included, and `columns` (W, C), float32."""

    rows: Float
    columns: Float


def terms(first: Mapping[str, Float], rows: Axis, columns: Axis) -> Terms:
    """Row and column terms of one per-pixel network.

    Args:
        first: vectors of C values: relative_y, relative_x, cell_y, cell_x, bias.
        rows: vertical geometry.
        columns: horizontal geometry.
    """
    constant = first["cell_y"] * rows.cell + first["bias"]
    return Terms(
        rows=rows.relative[:, None] * first["relative_y"] + constant,
        columns=columns.relative[:, None] * first["relative_x"] + first["cell_x"] * columns.cell,
    )
