"""The runtime as a competitor, by each backend and rule."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from bench_competitors import Competitor, Output, Setting

from pcsr.runtime import Result, Upscaler
from pcsr.runtime.cost import PixelCosts
from pcsr.validation.results import Rule

__all__ = ["PRECISIONS", "Ours", "stage_macs"]

PRECISIONS = {
    "native": ("native", "fp32"),
    "onnxruntime": ("onnxruntime", "fp32"),
    "int8": ("onnxruntime", "int8"),
}
"""Backend and precision of each competitor."""


class Ours:
    """Upscalers of one bundle, opened when first asked for."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle
        self._opened: dict[tuple[str, int], Upscaler] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def competitors(self, name: str, setting: Setting, rules: Sequence[Rule]) -> list[Competitor]:
        """One for each rule.

        Args:
            name: key of `PRECISIONS`.
            setting: what is asked.
            rules: how to decide.

        Raises:
            BackendError: the backend is not there, or does not work.
        """
        key = name, setting.threads
        if key not in self._opened:
            backend, precision = PRECISIONS[name]
            self._opened[key] = self._stack.enter_context(
                Upscaler.open(self._bundle, backend=backend, precision=precision, threads=setting.threads)
            )
        return [_competitor(name, self._opened[key], setting, rule) for rule in rules]


def _competitor(name: str, upscaler: Upscaler, setting: Setting, rule: Rule) -> Competitor:
    costs = upscaler.bundle.manifest.cost.macs
    h, w = setting.lr.shape[:2]

    def run() -> Output:
        result: Result = upscaler(setting.lr, scale=setting.scale, **rule.keywords)
        return Output(
            result.image,
            result.cost.macs,
            result.class_map,
            result.shares,
            result.milliseconds,
            stage_macs(costs, h * w, [round(share * result.class_map.size) for share in result.shares]),
        )

    return Competitor(name, f"{upscaler.backend}, {upscaler.provider}, {upscaler.precision}", run, rule)


def stage_macs(costs: PixelCosts, lr_pixels: int, hr_pixels_per_class: Sequence[int]) -> dict[str, int]:
    """Multiply-accumulates of each stage that has any; together those of `costs.total`."""
    heads = zip(hr_pixels_per_class, costs.upsamplers, strict=True)
    return {
        "backbone": lr_pixels * costs.backbone,
        "classifier": sum(hr_pixels_per_class) * costs.classifier,
        "upsamplers": sum(pixels * cost for pixels, cost in heads),
    }
