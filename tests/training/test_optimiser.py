"""Updates on flat memory against PyTorch's own Adam, and the losses against their formulas."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pcsr.training.config import DecisionError
from pcsr.training.flat import FlatPhase, update_scalars
from pcsr.training.losses import backbone_loss, decision_loss
from pcsr.training.patches import Batch

ERRORS: tuple[DecisionError, ...] = ("mixture", "expected")


def batch_of(target: torch.Tensor) -> Batch:
    empty = torch.zeros(0)
    return Batch(lr=empty, rows=empty, relative=empty, cell=empty, target=target)


def test_flat_updates_are_those_of_pytorchs_adam_with_clipping() -> None:
    torch.manual_seed(0)
    # No bias before the batch norm: its gradient is nothing but rounding.
    ours = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1))
    theirs = copy.deepcopy(ours)
    average = copy.deepcopy(ours)
    flat = FlatPhase({"net": ours}, {"net": average}, {})
    adam = torch.optim.Adam(theirs.parameters(), betas=(0.9, 0.99))
    followed = {name: value.clone() for name, value in ours.state_dict().items()}
    for step in range(8):
        x = torch.randn(2, 3, 6, 6) * 10
        rate = 0.01 * (step + 1)
        flat.forget_gradient()
        ours(x).square().mean().backward()
        norm = flat.clip(0.5)
        scalars = update_scalars(rate=rate, updates=step, ema=0.9)
        flat.update(torch.tensor(scalars))
        adam.param_groups[0]["lr"] = rate
        adam.zero_grad()
        theirs(x).square().mean().backward()
        assert float(norm) == pytest.approx(
            float(nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)), rel=1e-5
        )
        adam.step()
        for name, value in ours.state_dict().items():
            if value.is_floating_point():
                followed[name].lerp_(value, scalars[3])
    for name, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value, atol=1e-6), name
        if value.is_floating_point():
            assert torch.allclose(average.state_dict()[name], followed[name], atol=1e-6), name


def test_moments_survive_a_new_start_of_the_phase() -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    flat = FlatPhase({"net": net}, {"net": copy.deepcopy(net)}, {})
    net(torch.ones(1, 3)).sum().backward()
    flat.update(torch.tensor(update_scalars(rate=0.1, updates=0, ema=0.9)))
    kept = {name: value.clone() for name, value in flat.moments().items()}
    assert set(kept) == {f"{kind}/net.{name}" for kind in ("first", "second") for name in ("weight", "bias")}
    again = FlatPhase({"net": net}, {"net": copy.deepcopy(net)}, kept)
    assert all(torch.equal(again.moments()[name], value) for name, value in kept.items())


def test_the_average_of_the_first_steps_does_not_remember_the_start() -> None:
    pulls = [update_scalars(rate=1, updates=updates, ema=0.999)[3] for updates in range(20_000)]
    memory = 1.0
    for pull in pulls[:1000]:
        memory *= 1 - pull
    assert memory < 1e-10
    assert pulls[-1] == pytest.approx(0.001)


def test_phase_0_is_the_mean_absolute_error() -> None:
    loss = backbone_loss(torch.tensor([[1.0, 2.0, 3.0]]), batch_of(torch.tensor([[0.0, 2.0, 5.0]])))
    assert float(loss) == pytest.approx(1.0)


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("error", ERRORS)
def test_phase_1_is_the_papers_loss_or_the_expected_one(classes: int, error: DecisionError) -> None:
    torch.manual_seed(classes)
    n = 40
    target, logits = torch.rand(n, 3), torch.randn(n, classes) * 3
    predictions = [torch.rand(n, 3) for _ in range(classes)]
    p = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    if error == "mixture":
        distance = (sum(p[:, j : j + 1] * predictions[j] for j in range(classes)) - target).abs().mean()
    else:
        distance = sum((p[:, j : j + 1] * (predictions[j] - target).abs()).mean() for j in range(classes))
    share = n / classes
    used = [1] if classes == 2 else range(classes)
    expected = 1000 * distance + 3 * sum((p[:, j].sum() - share).abs() / share for j in used)
    found = decision_loss(predictions, logits, batch_of(target), error=error)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_errors_that_cancel_count_only_in_the_expected_error() -> None:
    target, logits = torch.full((4, 3), 0.5), torch.zeros(4, 3)
    predictions = [target + 0.3, target - 0.3, target]
    found = [float(decision_loss(predictions, logits, batch_of(target), error=e)) for e in ERRORS]
    assert found == pytest.approx([0, 200], abs=1e-3)


@pytest.mark.parametrize("error", ERRORS)
def test_every_class_gets_gradient_from_phase_1(error: DecisionError) -> None:
    logits = torch.zeros(6, 3, requires_grad=True)
    predictions = [torch.rand(6, 3, requires_grad=True) for _ in range(3)]
    decision_loss(predictions, logits, batch_of(torch.rand(6, 3)), error=error).backward()
    assert all(prediction.grad is not None and prediction.grad.abs().sum() > 0 for prediction in predictions)
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0
