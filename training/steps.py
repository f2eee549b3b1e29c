"""One step of either phase, on a CPU as it comes, on a GPU recorded once as a CUDA graph and replayed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor, nn

from pcsr.model.network import Network
from pcsr.training.config import DecisionError
from pcsr.training.flat import FlatPhase
from pcsr.training.losses import backbone_loss, decision_loss, feature_rows, run_head
from pcsr.training.patches import Batch

__all__ = ["PhaseStep", "trained_modules"]

logger = logging.getLogger(__name__)

WARM_STEPS = 3
"""Steps before a graph is recorded, so that libraries have chosen their algorithms."""


def trained_modules(network: Network, phase: int) -> Mapping[str, nn.Module]:
    """What a phase trains, by its name in the network."""
    heads = {f"upsamplers.{j}": head for j, head in enumerate(network.heads)}
    heavy = f"upsamplers.{len(heads) - 1}"
    if phase == 0:
        return {"backbone": network.backbone, heavy: heads[heavy]}
    assert network.classifier is not None
    light = {name: head for name, head in heads.items() if name != heavy}
    return light | {"classifier": network.classifier}


class PhaseStep:
    """Forward, backward and update of a phase.

    Args:
        phase: 0 or 1.
        raw: the network that is trained.
        average: the network of averaged weights; its backbone and heavy upsampler serve phase 1, in eval
            mode (batch norm too) and without gradients.
        moments: Adam's, from an earlier stretch of this phase.
        precision: of the network's passes.
        clip: largest norm of the gradient.
        error: what phase 1 minimises.
    """

    def __init__(
        self,
        phase: int,
        raw: Network,
        average: Network,
        *,
        moments: Mapping[str, Tensor],
        precision: torch.dtype,
        clip: float,
        error: DecisionError = "mixture",
    ) -> None:
        self._phase, self._raw, self._average = phase, raw, average
        self._precision, self._clip, self._error = precision, clip, error
        for network in (raw, average):
            network.eval()
            network.requires_grad_(False)
        modules = trained_modules(raw, phase)
        self.flat = FlatPhase(modules, trained_modules(average, phase), moments)
        for module in modules.values():
            module.train()
        self._device = next(raw.parameters()).device
        self._replayed = _Replayed(self, self._device) if self._device.type == "cuda" else None

    def __call__(self, batch: Batch, scalars: tuple[float, float, float, float]) -> tuple[Tensor, Tensor]:
        """Train on a batch.

        Args:
            batch: on the training device.
            scalars: from `update_scalars`.

        Returns:
            () loss and () norm of the gradient, on the training device. On a CPU nothing is updated where
            one of them is not finite.
        """
        numbers = torch.tensor(scalars, dtype=torch.float32)
        if self._replayed is None:
            return self.train(batch, numbers)
        return self._replayed(batch, numbers)

    def train(self, batch: Batch, scalars: Tensor) -> tuple[Tensor, Tensor]:
        """The same, as it comes: `scalars` is (4,) float32 on the training device."""
        self.flat.forget_gradient()
        loss = self._loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self.flat.clip(self._clip)
        # On a GPU looking would stop it every step: there the trainer looks now and then.
        if self._device.type == "cuda" or bool(torch.isfinite(loss) & torch.isfinite(norm)):
            self.flat.update(scalars)
        return loss.detach(), norm

    def _loss(self, batch: Batch) -> Tensor:
        cast = self._precision != torch.float32
        # Cast weights live as long as the pass; a recorded graph must not find those of an earlier one.
        keep = self._device.type == "cpu"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=cast, cache_enabled=keep):
            if self._phase == 0:
                rows = feature_rows(self._raw.backbone(batch.lr))
                prediction = run_head(self._raw.heads[-1], rows, batch)
            else:
                with torch.no_grad():
                    rows = feature_rows(self._average.backbone(batch.lr))
                    heavy = run_head(self._average.heads[-1], rows, batch)
                lighter = [run_head(head, rows, batch) for head in self._raw.heads[:-1]]
                assert self._raw.classifier is not None
                logits = run_head(self._raw.classifier, rows, batch)
        if self._phase == 0:
            return backbone_loss(prediction, batch)
        return decision_loss([*lighter, heavy], logits, batch, error=self._error)


class _Replayed:
    """Steps on a GPU: the first few as they come, then one is recorded and replayed.

    Where it cannot be recorded, steps go on as they come, and the log says so.
    """

    def __init__(self, step: PhaseStep, device: torch.device) -> None:
        self._step, self._device = step, device
        self._recorded: _Recorded | None = None
        self._warm, self._recordable = 0, True

    def __call__(self, batch: Batch, scalars: Tensor) -> tuple[Tensor, Tensor]:
        # Streams and graphs are made on the current device, which need not be that of the tensors.
        with torch.cuda.device(self._device):
            scalars = scalars.pin_memory().to(self._device, non_blocking=True)
            if self._warm < WARM_STEPS:
                self._warm += 1
                return self._beside(batch, scalars)
            if self._recorded is None and self._recordable:
                self._record(batch, scalars)
            if self._recorded is None:
                return self._step.train(batch, scalars)
            return self._recorded.replay(batch, scalars)

    def _beside(self, batch: Batch, scalars: Tensor) -> tuple[Tensor, Tensor]:
        """On a stream of its own, as PyTorch asks for before anything is recorded."""
        here = torch.cuda.current_stream(self._device)
        side: torch.cuda.Stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(here)
        with torch.cuda.stream(side):
            found = self._step.train(batch, scalars)
        here.wait_stream(side)
        return found

    def _record(self, batch: Batch, scalars: Tensor) -> None:
        try:
            self._recorded = _Recorded(self._step, batch, scalars)
        except RuntimeError as error:
            self._recordable = False
            reason = str(error).strip().partition("\n")[0]
            logger.warning(
                "a step cannot be recorded as a CUDA graph (%s): steps take longer without", reason
            )


class _Recorded:
    """A whole step as a CUDA graph with inputs of its own, into which each batch is copied."""

    def __init__(self, step: PhaseStep, batch: Batch, scalars: Tensor) -> None:
        self._batch = Batch(*(getattr(batch, field.name).clone() for field in fields(Batch)))
        self._scalars = scalars.clone()
        self._graph = torch.cuda.CUDAGraph()
        # Recording runs nothing: the first replay is the first step on these inputs.
        with torch.cuda.graph(self._graph):
            self._loss, self._norm = step.train(self._batch, self._scalars)

    def replay(self, batch: Batch, scalars: Tensor) -> tuple[Tensor, Tensor]:
        for field in fields(Batch):
            getattr(self._batch, field.name).copy_(getattr(batch, field.name), non_blocking=True)
        self._scalars.copy_(scalars, non_blocking=True)
        self._graph.replay()
        return self._loss, self._norm
