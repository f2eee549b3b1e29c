"""What a run would be, without running it: sizes, cost, memory, and hours at the speed measured here."""

from __future__ import annotations

import resource

import torch

from pcsr.model.cost import network_cost
from pcsr.model.network import build
from pcsr.training.config import Config
from pcsr.training.measure import seconds_per_step
from pcsr.training.pictures import Pool
from pcsr.training.plan import PHASES
from pcsr.training.steps import trained_modules

__all__ = ["describe"]


def describe(config: Config, pool: Pool, *, device: torch.device, precision: torch.dtype) -> list[str]:
    """Lines for people to read.

    A few steps of both phases are run on throw-away networks, so the memory and the hours are measured.
    """
    network = build(config.network.spec())
    cost = network_cost(network)
    sides = [config.data.hr_side(scale) for scale in config.data.scales]
    lines = [
        f"data: {len(pool.names)} pictures, {pool.pixels / 1e6:.1f} megapixels, {len(pool.skipped)} skipped, "
        f"sha256 {pool.sha256[:12]}",
        f"patches: {config.data.patch} LR pixels, {sides[0]} to {sides[1]} HR pixels a side",
        f"network: {config.network.backbone}, {config.network.width} channels, "
        f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters",
        f"multiply-accumulates: {cost.macs.backbone:,} per LR pixel; per HR pixel classifier "
        f"{cost.macs.classifier:,}, classes {', '.join(f'{macs:,}' for macs in cost.macs.upsamplers)}",
    ]
    seconds = seconds_per_step(config, pool, device=device, precision=precision)
    hours = 0.0
    for phase, name in enumerate(PHASES):
        settings = config.phases[phase]
        trained = sum(
            parameter.numel()
            for module in trained_modules(network, phase).values()
            for parameter in module.parameters()
        )
        batch = settings.gpu_batch if device.type == "cuda" else settings.batch
        line = (
            f"phase {phase} ({name}): {trained:,} parameters trained, {batch} patches of {settings.pixels} "
            f"HR pixels, {1000 * seconds[phase]:.0f} ms a step"
        )
        if settings.steps is not None:
            hours += settings.steps * seconds[phase] / 3600
            line += f", {settings.steps:,} steps"
        lines.append(line)
    if device.type == "cuda":
        memory, where = torch.cuda.max_memory_allocated(device), "on the GPU"
    else:
        # Linux counts in KiB.
        memory, where = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10, "in all"
    lines.append(f"memory: {memory / (1 << 30):.2f} GiB {where} at most, measured")
    lines.append(
        f"time: {hours if config.hours is None else config.hours:.3g} hours on {device.type}, "
        f"{str(precision).removeprefix('torch.')}"
    )
    return lines
