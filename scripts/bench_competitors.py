"""What a competitor is: a name, and a call that upscales one picture from 8-bit pixels to 8-bit pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.errors import OptionError
from pcsr.validation.results import Rule

__all__ = [
    "BASELINES",
    "COMPETITORS",
    "Competitor",
    "Output",
    "Setting",
    "check_names",
    "parse_rule",
    "to_levels",
]

BASELINES = ("dense-onnxruntime", "dense-openvino", "dense-pytorch", "oracle")
"""Whose times the others are divided by."""

COMPETITORS = {
    "oracle": "the published inference in PyTorch, k = 0",
    "dense-onnxruntime": "the dense x4 network in ONNX Runtime",
    "dense-openvino": "the dense x4 network in OpenVINO, float32",
    "dense-pytorch": "the dense x4 network in PyTorch, in the faster of its memory layouts",
    "bicubic": "bicubic in libvips",
    "native": "the runtime by native kernels, by every rule",
    "onnxruntime": "the runtime by ONNX Runtime, by every rule",
    "int8": "the runtime by ONNX Runtime in INT8, by every rule (needs --calibration)",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What a cell asks of its competitors.

    Attributes:
        lr: (h, w, 3) uint8.
        scale: real magnification.
        threads: that a competitor may use.
    """

    lr: NDArray[np.uint8]
    scale: float
    threads: int

    @property
    def output_pixels(self) -> int:
        """H * W."""
        h, w = self.lr.shape[:2]
        return round(self.scale * h) * round(self.scale * w)


@dataclass(frozen=True, slots=True)
class Output:
    """What one call gave.

    Attributes:
        image: (H, W, 3) uint8.
        macs: multiply-accumulates that were needed; None where nothing is multiplied by weights.
        class_map: (H, W) uint8.
        shares: of the pixels in each class.
        milliseconds: by stage.
        stage_macs: by stage, of those that multiply.
    """

    image: NDArray[np.uint8]
    macs: int | None = None
    class_map: NDArray[np.uint8] | None = None
    shares: tuple[float, ...] | None = None
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    stage_macs: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Competitor:
    """One row of the table.

    Attributes:
        name: like "native" or "dense-openvino".
        ran: library, version, precision.
        run: upscales the setting's picture.
        rule: how it decides, if it does.
    """

    name: str
    ran: str
    run: Callable[[], Output]
    rule: Rule | None = None


def check_names(names: tuple[str, ...]) -> None:
    """OptionError for a competitor that there is not."""
    for name in names:
        if name not in COMPETITORS:
            raise OptionError(f"no competitor is named {name!r}; there are {', '.join(COMPETITORS)}")


def parse_rule(text: str) -> Rule:
    """A rule written k=0, adaptive or budget=0.2.

    Raises:
        OptionError: another text.
    """
    kind, equals, value = text.strip().partition("=")
    try:
        if kind == "adaptive" and not equals:
            return Rule("adaptive")
        if kind == "k":
            return Rule("k", float(value))
        if kind == "budget":
            return Rule("budget", float(value))
    except ValueError:
        pass
    raise OptionError(f"{text!r} is no rule; write k=0, adaptive or budget=0.2")


def to_levels(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """8-bit pixels of (H, W, 3) values from 0 to 1, as the runtime rounds: half to even."""
    scaled = image * np.float32(255)
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 255, out=scaled)
    return scaled.astype(np.uint8)
