"""Steps on a GPU, as far as that goes without one: recorded once, replayed with each batch, or run as they come.

A stand-in of PyTorch's CUDA graphs records as the real ones do: nothing runs meanwhile, a replay reads and writes the
same memory. What it cannot show is CUDA.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pcsr.model.network import Network, NetworkSpec, build
from pcsr.training import steps
from pcsr.training.flat import update_scalars
from pcsr.training.patches import Batch, Draw, prepare
from pcsr.training.steps import WARM_STEPS, PhaseStep

SPEC = NetworkSpec("fsrcnn", 8, ((4,), (6, 6)), (3,))


def networks() -> tuple[Network, Network]:
    torch.manual_seed(3)
    raw, average = build(SPEC), build(SPEC)
    average.load_state_dict(raw.state_dict())
    return raw, average


def batches(count: int) -> list[Batch]:
    random = np.random.default_rng(0)
    mean, std = torch.full((3, 1, 1), 0.5), torch.ones(3, 1, 1)
    return [
        prepare(
            Draw(
                random.integers(0, 256, (2, side, side, 3), dtype=np.uint8),
                np.stack([random.choice(side * side, 40, replace=False) for _ in range(2)]),
            ),
            patch=12,
            mean=mean,
            std=std,
        )
        for side in random.integers(18, 40, count)
    ]


def run(step: PhaseStep, given: list[Batch]) -> list[tuple[float, float]]:
    found = []
    for number, batch in enumerate(given):
        loss, norm = step(batch, update_scalars(rate=1e-3, updates=number, ema=0.9))
        found.append((float(loss), float(norm)))
    return found


class StandIn:
    """Of what `steps` takes from `torch.cuda`."""

    def __init__(self, step: PhaseStep, monkeypatch: pytest.MonkeyPatch, *, recordable: bool) -> None:
        self.step, self.recordable, self.recorded = step, recordable, 0
        stream = type("Stream", (), {"__init__": lambda *_: None, "wait_stream": lambda *_: None})
        for name, value in {
            "device": lambda device: contextlib.nullcontext(),
            "Stream": stream,
            "current_stream": lambda device: stream(),
            "stream": lambda stream: contextlib.nullcontext(),
            "CUDAGraph": type("CUDAGraph", (), {"replay": lambda graph: graph.work()}),
            "graph": self.graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)

    def memory(self) -> list[torch.Tensor]:
        flat = self.step.flat
        return [
            each.whole for each in (flat._value, flat._average, flat._gradient, flat._first, flat._second)
        ]

    @contextlib.contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        if not self.recordable:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
        before, train, seen = [each.clone() for each in self.memory()], self.step.train, {}

        def watched(batch: Batch, scalars: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            seen.update(batch=batch, scalars=scalars)
            seen["outputs"] = train(batch, scalars)
            outputs: tuple[torch.Tensor, torch.Tensor] = seen["outputs"]
            return outputs

        self.step.train = watched  # type: ignore[method-assign]
        yield
        self.step.train = train  # type: ignore[method-assign]
        for each, value in zip(self.memory(), before, strict=True):
            each.copy_(value)
        self.recorded += 1

        def work() -> None:
            for place, value in zip(seen["outputs"], train(seen["batch"], seen["scalars"]), strict=True):
                place.copy_(value)

        graph.work = work


@pytest.mark.parametrize("phase", [0, 1])
@pytest.mark.parametrize("recordable", [True, False])
def test_steps_on_a_gpu_are_those_on_a_processor(
    phase: int, recordable: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = batches(WARM_STEPS + 5)
    options: dict[str, Any] = {"moments": {}, "precision": torch.float32, "clip": 1.0}
    plain, recorded = networks(), networks()
    expected = run(PhaseStep(phase, *plain, **options), given)
    step = PhaseStep(phase, *recorded, **options)
    stand_in = StandIn(step, monkeypatch, recordable=recordable)
    # As PhaseStep does where its networks are on a GPU.
    step._replayed = steps._Replayed(step, torch.device("cpu"))
    with caplog.at_level(logging.WARNING):
        found = run(step, given)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for ours, theirs in zip(recorded, plain, strict=True):
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-7)
    assert stand_in.recorded == recordable
    # Said once, in one line.
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == (not recordable)
    assert all("not permitted when stream is capturing)" in warning for warning in warnings)
