"""What works on this machine, tried in a child process: a library that crashes takes only the child with it.

Some versions of TensorRT end the process when no driver is there, so nothing is believed before it was tried here.
"""

from __future__ import annotations

from dataclasses import dataclass

from pcsr.runtime.trial import Trial, run_trial

__all__ = ["Gpu", "TensorRT", "Unavailable", "probe_gpu", "probe_tensorrt"]

# A first import from a cold disk, and a CUDA context on a machine with many GPUs, take many seconds.
PROBE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Why something does not work here, as the end of a sentence."""

    reason: str


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as the driver describes it.

    Attributes:
        name: like "NVIDIA H100 80GB HBM3".
        compute_capability: like "9.0".
        memory: bytes, in all.
        cuda: the highest CUDA version that the driver supports, like "12.8".
    """

    name: str
    compute_capability: str
    memory: int
    cuda: str


@dataclass(frozen=True, slots=True)
class TensorRT:
    """A TensorRT that can build here.

    Attributes:
        version: like "10.16.1.11".
    """

    version: str


def probe_gpu(index: int = 0) -> Gpu | Unavailable:
    """What the driver says of a GPU, by its number among those that are visible."""
    trial = _ask("driver(report)")
    found = trial.value
    if not trial.ok:
        return Unavailable(f"asking the NVIDIA driver {trial.failure}")
    if not found["loaded"]:
        return Unavailable(f"there is no NVIDIA driver ({found['error']})")
    if found["status"]:
        return Unavailable(f"the NVIDIA driver does not start, its cuInit says {found['error']}")
    devices = found["devices"]
    if index >= len(devices):
        return Unavailable(
            f"there is no GPU {index}, only {len(devices)} in all (CUDA_VISIBLE_DEVICES may hide some)"
        )
    device = devices[index]
    return Gpu(device["name"], device["compute_capability"], device["memory_bytes"], found.get("cuda", ""))


def probe_tensorrt(module: str) -> TensorRT | Unavailable:
    """Whether a TensorRT can be imported and makes a builder.

    Args:
        module: its name, "tensorrt" or "tensorrt_rtx_bindings".
    """
    # A Runtime crashes without a driver in some versions, and nobody has asked for one yet.
    trial = _ask(f"tensorrt(report, {module!r}, runtime_always=False, driver=False)")
    found = trial.value
    name = f"{module} {found.get('version', '')}".strip()
    if trial.ending == "raised" and "version" not in found:
        return Unavailable(f"{module} cannot be imported: {trial.reason}")
    if not trial.ok:
        return Unavailable(f"{name} {trial.failure}")
    if "builder" not in found or not found["parser"]:
        return Unavailable(f"{name} is a runtime alone and cannot build")
    if not found["builder"]:
        return Unavailable(f"{name} makes no builder, as a rule because it finds no GPU or driver")
    return TensorRT(found["version"])


def _ask(call: str) -> Trial:
    return run_trial(f"from pcsr.runtime.nvidia import driver, tensorrt\n{call}\n", timeout=PROBE_SECONDS)
