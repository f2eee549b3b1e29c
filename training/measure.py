"""How long steps take here, before a run is planned in hours or begun."""

from __future__ import annotations

import time

import numpy as np
import torch

from pcsr.model.network import build
from pcsr.training.config import Config
from pcsr.training.flat import update_scalars
from pcsr.training.patches import draw, prepare
from pcsr.training.pictures import Pool
from pcsr.training.steps import PhaseStep

__all__ = ["seconds_per_step", "steps_for_hours"]

WARM, TIMED = 4, 16


def seconds_per_step(
    config: Config, pool: Pool, *, device: torch.device, precision: torch.dtype
) -> tuple[float, float]:
    """Seconds of a step in phase 0 and phase 1, on throw-away networks, data included.

    The mean of the faster three quarters: what else the machine does for a moment is no property of the run.
    """
    found = []
    for phase in (0, 1):
        with torch.random.fork_rng(devices=[]):
            networks = [build(config.network.spec()).to(device) for _ in range(2)]
        settings = config.phases[phase]
        step = PhaseStep(phase, *networks, moments={}, precision=precision, clip=settings.clip)
        mean, std = (
            torch.tensor(triple, device=device).view(3, 1, 1)
            for triple in (config.network.mean, config.network.std)
        )
        batch_size = settings.gpu_batch if device.type == "cuda" else settings.batch
        times = []
        for index in range(WARM + TIMED):
            start = time.perf_counter()
            drawn = draw(
                pool, config.data, seed=config.seed, step=index, batch=batch_size, pixels=settings.pixels
            )
            batch = prepare(drawn, patch=config.data.patch, mean=mean, std=std)
            loss, _ = step(batch, update_scalars(rate=1e-4, updates=index, ema=settings.ema))
            float(loss)  # waits for a GPU
            times.append(time.perf_counter() - start)
        found.append(float(np.mean(sorted(times[WARM:])[: 3 * TIMED // 4])))
    return found[0], found[1]


def steps_for_hours(hours: float, share: float, seconds: tuple[float, float]) -> tuple[int, int]:
    """Steps of both phases that fit into a time.

    Args:
        hours: in all.
        share: of phase 1.
        seconds: per step of each phase.
    """
    total = 3600 * hours
    return max(1, round(total * (1 - share) / seconds[0])), max(1, round(total * share / seconds[1]))
