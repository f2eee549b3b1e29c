"""The device and arithmetic to train in."""

from __future__ import annotations

from pathlib import Path

import torch

from pcsr.runtime.errors import BackendError, OptionError
from pcsr.training.config import Precision

__all__ = ["choose_device", "choose_precision"]


def choose_device(name: str) -> torch.device:
    """The device of a name: "auto" (a GPU where PyTorch sees one), "cpu", "cuda", "cuda:1".

    Raises:
        OptionError: no such name.
        BackendError: PyTorch does not see that device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"{name!r} is no device; say auto, cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"training runs on cpu and cuda, not on {device.type}")
    if device.type == "cuda" and (
        not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
    ):
        raise BackendError(f"PyTorch sees no device {name}; install its CUDA build, or say --device cpu")
    return device


def choose_precision(wanted: Precision, device: torch.device) -> torch.dtype:
    """The type of the network's passes; weights, sums of losses and updates are float32 all the same.

    bfloat16 without instructions for it is emulated: six times slower than float32 on the machine where it
    was measured. So "auto" takes it only where the hardware has it.
    """
    if wanted == "auto":
        native = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_has_bfloat16()
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def _cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself, as far as Linux tells."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
