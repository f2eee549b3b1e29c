"""The trained weights of a phase in one piece of memory: Adam, clipping and averaging in a handful of passes.

A network has a hundred small tensors; on a GPU their updates one by one would cost more than the network, and
on a CPU they would show.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

__all__ = ["FlatPhase", "update_scalars"]

BETAS = (0.9, 0.99)
EPSILON = 1e-8
EMA_RAMP = 10
"""Averages follow quickly at first, or they would remember the random start for thousands of steps."""


class FlatPhase:
    """Weights, gradient, both moments of Adam and the averages of what a phase trains.

    The modules' own tensors become views of this memory, and stay so.

    Args:
        raw: the modules as they are trained, by their names in the network.
        average: the same modules of the network that holds the averages.
        moments: Adam's from an earlier stretch, as `moments()` gave them; zero where there are none.
    """

    def __init__(
        self, raw: Mapping[str, nn.Module], average: Mapping[str, nn.Module], moments: Mapping[str, Tensor]
    ) -> None:
        parameters = _parameters(raw)
        self._value = _Flat(parameters)
        self._average = _Flat(_parameters(average))
        self._statistics = _Flat(_statistics(raw))
        self._average_statistics = _Flat(_statistics(average))
        self._gradient = _Flat({name: torch.zeros_like(value) for name, value in parameters.items()})
        for name, parameter in parameters.items():
            parameter.requires_grad_(True)
            parameter.grad = self._gradient.views[name]
        self._first, self._second = (
            _Flat(
                {
                    name: moments.get(f"{moment}/{name}", torch.zeros_like(value)).to(value.device).clone()
                    for name, value in parameters.items()
                }
            )
            for moment in ("first", "second")
        )

    def moments(self) -> dict[str, Tensor]:
        """Adam's moments as "first/" or "second/" and the parameter's name; views of the memory."""
        return {f"first/{name}": view for name, view in self._first.views.items()} | {
            f"second/{name}": view for name, view in self._second.views.items()
        }

    def forget_gradient(self) -> None:
        """Set the gradient to zero, where backward passes add to it."""
        self._gradient.whole.zero_()

    @torch.no_grad()
    def clip(self, largest: float) -> Tensor:
        """Scale the gradient down to a norm; returns the norm () that it had."""
        norm: Tensor = torch.linalg.vector_norm(self._gradient.whole)
        self._gradient.whole.mul_((largest / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def update(self, scalars: Tensor) -> None:
        """One step of Adam, and of the averages.

        Args:
            scalars: (4,) float32 on the training device, from `update_scalars`.
        """
        rate, correct_first, correct_second, pull = scalars.unbind()
        gradient, first, second = self._gradient.whole, self._first.whole, self._second.whole
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        denominator = (second / correct_second).sqrt_().add_(EPSILON)
        self._value.whole.sub_((first / denominator).mul_(rate / correct_first))
        self._average.whole.lerp_(self._value.whole, pull)
        if self._statistics.views:
            self._average_statistics.whole.lerp_(self._statistics.whole, pull)

    def is_finite(self) -> bool:
        """Whether every weight, statistic and average is a number."""
        flats = (self._value, self._statistics, self._average, self._second)
        return all(bool(torch.isfinite(flat.whole).all()) for flat in flats)


def update_scalars(*, rate: float, updates: int, ema: float) -> tuple[float, float, float, float]:
    """Learning rate, Adam's two bias corrections, and how far the averages move.

    Args:
        rate: learning rate.
        updates: those that the phase has had before this one.
        ema: decay of the averages.
    """
    count = updates + 1
    decay = min(ema, count / (EMA_RAMP + count))
    return rate, 1 - BETAS[0] ** count, 1 - BETAS[1] ** count, 1 - decay


class _Flat:
    """Tensors moved into one vector, of which they become views.

    Attributes:
        whole: the vector.
        views: the tensors in it, by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        values = [tensor.detach().reshape(-1) for tensor in tensors.values()]
        self.whole = torch.cat(values).clone() if values else torch.zeros(0)
        self.views: dict[str, Tensor] = {}
        start = 0
        for name, tensor in tensors.items():
            view = self.whole[start : start + tensor.numel()].view(tensor.shape)
            tensor.data = view
            self.views[name] = view
            start += tensor.numel()


def _parameters(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return _named((name, module.named_parameters()) for name, module in modules.items())


def _statistics(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Running means and variances; counters stay where they are."""
    buffers = _named((name, module.named_buffers()) for name, module in modules.items())
    return {name: buffer for name, buffer in buffers.items() if buffer.is_floating_point()}


def _named(modules: Iterable[tuple[str, Iterable[tuple[str, Tensor]]]]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for prefix, tensors in modules for name, tensor in tensors}
