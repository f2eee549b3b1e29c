"""What one asks of the upscaler and what one gets: plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.errors import OptionError

__all__ = ["Account", "Cost", "Decision", "Options", "Progress", "PutRows", "Result"]

Picture = NDArray[Any]
"""(h, w), (h, w, 1), (h, w, 3) or (h, w, 4); uint8, uint16 or float32 (0 to 1 nominal)."""

Progress = Callable[[float], object]
"""Called with the share of the work done, from 0.0 to 1.0; returning False cancels the call."""

PutRows = Callable[[NDArray[Any], NDArray[np.uint8]], object]
"""Called with the next rows of the upscaled picture, (rows, W) or (rows, W, channels), and of the class map,
(rows, W), from top to bottom. The arrays are the caller's. They are views of a row of tiles: all of it stays as long
as one of them."""

DecisionKind = Literal["k", "adaptive", "budget"]


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for one picture: a size and a rule that spends the computation.

    Attributes:
        scale: real magnification, 1 or more; the output is `round(scale * h)` by `round(scale * w)` pixels.
        size: output (H, W) instead of a scale, no smaller than the picture on either axis.
        k: probabilities are divided by cost to the power of k (paper, section 3.3); higher is cheaper.
        adaptive: the paper's adaptive decision making: the pixels' difficulties (expected classes; with two
            classes the probability of being heavy) are parted into as many clusters as there are classes.
        budget: share of the adjustable cost to spend, 0 (all pixels light) to 1 (all in the heaviest class);
            the most difficult pixels get it. More than two classes must ascend in cost.
        refine: average light pixels that have a heavy neighbour over their 3x3 neighbourhood.
    """

    scale: float | None = None
    size: tuple[int, int] | None = None
    k: float | None = None
    adaptive: bool = False
    budget: float | None = None
    refine: bool = False

    def __post_init__(self) -> None:
        for name in ("scale", "k", "budget"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
                raise OptionError(f"{name} is {value!r}; it must be a number")
        if self.size is not None and not (
            isinstance(self.size, Sequence) and all(isinstance(side, Integral) for side in self.size)
        ):
            raise OptionError(f"size is {self.size!r}; it must be two whole numbers of pixels, (H, W)")
        if (self.scale is None) == (self.size is None):
            raise OptionError("give exactly one of scale (like 4 or 2.5) and size (of the output, in pixels)")
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale >= 1):
            raise OptionError(f"scale is {self.scale}; it must be a finite number, 1 or more")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise OptionError(f"size is {self.size}; it must be two positive whole numbers, (H, W)")
        if (self.k is not None) + bool(self.adaptive) + (self.budget is not None) > 1:
            raise OptionError("k, adaptive and budget are three ways to decide; give at most one")
        if self.k is not None and not math.isfinite(self.k):
            raise OptionError(f"k is {self.k}; it must be a finite number")
        if self.budget is not None and not 0 <= self.budget <= 1:
            raise OptionError(f"budget is {self.budget}; it must lie between 0 (all light) and 1 (all heavy)")

    @property
    def kind(self) -> DecisionKind:
        """The rule that decides; k = 0 when none was named."""
        if self.adaptive:
            return "adaptive"
        return "k" if self.budget is None else "budget"


@dataclass(frozen=True, slots=True)
class Decision:
    """How the classes of one picture were decided.

    Attributes:
        kind: the rule.
        value: the k or budget asked for; None for adaptive.
        thresholds: M - 1 float32 values, ascending, infinite where no pixel is to reach them: a pixel's class is
            the number of them that are no greater than its difficulty, which with two classes is its probability
            of being heavy. More than two classes under k: None, the class is an argmax.
    """

    kind: DecisionKind
    value: float | None
    thresholds: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Cost:
    """What one picture cost, beside what it would have cost with every pixel in the heaviest class.

    Attributes:
        flops: by the paper's convention (facts in docs/routing.md): two per multiply-accumulate of the network
            as published, classifier included.
        flops_all_heavy: the same, every pixel in the heaviest class.
        macs: multiply-accumulates of the rewritten network that really ran, tile halos and padding apart.
        macs_all_heavy: the same, every pixel in the heaviest class.
    """

    flops: int
    flops_all_heavy: int
    macs: int
    macs_all_heavy: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """How an upscaled picture came about.

    Attributes:
        shares: share of the pixels in each class, lightest first; sums to 1.
        decision: rule and thresholds.
        cost: of this picture.
        milliseconds: wall time per stage, in order of the road, and "total". Stages that run on several
            threads at once are counted in thread time divided by how many may work. Where rows are handed out and
            graphs compute, blocks go on while rows are delivered: all stages together may then take more than the
            total.
        tile: LR size (h, w) of a full tile; the picture's own size when it was not tiled.
        backend: what ran, like "onnxruntime".
        provider: the execution provider that ran, like "CPUExecutionProvider".
        precision: "fp32", "fp16" or "int8".
        redone_tiles: tiles done again in fp32, because fp16 or int8 gave values that are not finite.
    """

    shares: tuple[float, ...]
    decision: Decision
    cost: Cost
    milliseconds: Mapping[str, float]
    tile: tuple[int, int]
    backend: str
    provider: str
    precision: str
    redone_tiles: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(Account):
    """An upscaled picture and how it came about; see `Account`.

    Attributes:
        image: same dtype and channels as the picture; (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        class_map: (H, W) uint8, the class that each pixel was sent to; 0 is the lightest.
    """

    image: NDArray[Any]
    class_map: NDArray[np.uint8]

    def account(self) -> Account:
        """Without the pixels."""
        return Account(**{each.name: getattr(self, each.name) for each in fields(Account)})
