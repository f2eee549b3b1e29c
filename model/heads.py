"""The per-pixel networks: LIIF-style multilayer perceptrons for the classifier and every upsampler."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

__all__ = ["GEOMETRY", "MLP"]

GEOMETRY = 4
"""Inputs after the C features: rel_y, rel_x, cell_y, cell_x."""


class MLP(nn.Module):
    """Linear layers with ReLU between them and nothing after the last.

    `layers` has the linear layers at even indices, as in the authors' checkpoints. The input of a head is
    [feature (C), rel_y, rel_x, cell_y, cell_x], in this order.

    Args:
        inputs: channels of a row that comes in (C + 4 for the heads of a PCSR network).
        hidden: width of each hidden layer; empty for a single linear layer.
        outputs: 3 for an upsampler, M for the classifier.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise([inputs, *hidden, outputs]):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """The linear layers from input to output."""
        return tuple(layer for layer in self.layers if isinstance(layer, nn.Linear))

    def forward(self, rows: Tensor) -> Tensor:
        """(n, inputs) float32 to (n, outputs) float32."""
        outputs: Tensor = self.layers(rows)
        return outputs
