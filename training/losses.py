"""What is minimised in each phase, with the first layer of every per-pixel network hoisted to the LR pixels.

A head's first linear layer splits into a part that sees only the feature of the nearest LR pixel, computed
once for each of them (its table), and a part that sees only the position.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pcsr.model.heads import GEOMETRY, MLP
from pcsr.training.config import DecisionError
from pcsr.training.patches import Batch

__all__ = ["backbone_loss", "decision_loss", "feature_rows", "run_head"]

L1_WEIGHT, BALANCE_WEIGHT = 1000.0, 3.0
"""Weights of both terms of phase 1 (the authors' code; paper, section 3.2)."""


def feature_rows(features: Tensor) -> Tensor:
    """(B, C, h, w) features as (B * h * w, C) rows, free of charge where they lie channels last."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def run_head(head: MLP, rows: Tensor, batch: Batch) -> Tensor:
    """A per-pixel network on the sampled HR pixels.

    Args:
        head: of C + 4 inputs.
        rows: (B * h * w, C) features.
        batch: which rows, and where on them.

    Returns:
        (B * n, outputs) float32.
    """
    first, *rest = head.linears
    C = first.in_features - GEOMETRY
    table = functional.linear(rows, first.weight[:, :C])
    # The cell is the same for every pixel and both axes: it is part of the bias.
    bias = first.bias + batch.cell * first.weight[:, C + 2 :].sum(dim=1)
    x = functional.embedding(batch.rows, table)
    x = x + functional.linear(batch.relative, first.weight[:, C : C + 2], bias)
    for linear in rest[:-1]:
        x = linear(torch.relu(x))
    if not rest:
        return x.float()
    # What adds up to a colour or a probability stays in float32: it costs nothing at three outputs.
    with torch.autocast(rows.device.type, enabled=False):
        last: Tensor = rest[-1](torch.relu(x).float())
    return last


def backbone_loss(prediction: Tensor, batch: Batch) -> Tensor:
    """Phase 0: mean absolute error of the heavy upsampler's colours."""
    return functional.l1_loss(prediction, batch.target)


def decision_loss(
    predictions: list[Tensor], logits: Tensor, batch: Batch, *, error: DecisionError = "mixture"
) -> Tensor:
    """Phase 1: an error of the colours, and equal use of the classes.

    1000 * error + 3 * sum_j |sum p_j - T| / T with T = n / M. With two classes both terms of the sum are the
    same, and the authors count one.

    Args:
        predictions: (n, 3) of each class, lightest first.
        logits: (n, M).
        batch: the truth.
        error: "mixture", the mean absolute error of sum_j p_j y_j, the authors' form; or "expected", the mean
            over p of each class's own absolute error. The latter is never smaller, and the same where the
            classes err to the same side; it leaves no class the chance to make up for another's error.
    """
    probability = logits.float().softmax(dim=1)
    classes = probability.shape[1]
    if error == "mixture":
        mixture = sum(
            (probability[:, j, None] * prediction for j, prediction in enumerate(predictions)),
            start=torch.zeros_like(batch.target),
        )
        distance = functional.l1_loss(mixture, batch.target)
    else:
        errors = [(prediction - batch.target).abs().mean(dim=1) for prediction in predictions]
        own = torch.stack(errors, dim=1)
        distance = (probability * own).sum(dim=1).mean()
    wanted = probability.shape[0] / classes
    used = probability.sum(dim=0)
    unequal = (used[1:] if classes == 2 else used).sub(wanted).abs().sum() / wanted
    return L1_WEIGHT * distance + BALANCE_WEIGHT * unequal
