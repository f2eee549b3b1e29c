"""What a run tells while it goes on: JSON lines, TensorBoard, and how good the network is on whole pictures."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.model.network import Network
from pcsr.model.reference import upscale
from pcsr.runtime import bicubic
from pcsr.runtime.errors import OptionError, PictureError, TrainingError
from pcsr.training.pictures import load_pool
from pcsr.validation.metrics import psnr, shave_for

__all__ = ["LOG", "Log", "Validation"]

logger = logging.getLogger(__name__)

LOG = "log.jsonl"


class Log:
    """`log.jsonl` of a run, and TensorBoard's files where asked for.

    Args:
        folder: of the run.
        tensorboard: write TensorBoard's files too, to `tensorboard/` below it.

    Raises:
        OptionError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, *, tensorboard: bool = False) -> None:
        self._path = folder / LOG
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ModuleNotFoundError as error:
                raise OptionError(
                    "--tensorboard needs it installed; run: pip install 'pcsr[train]'"
                ) from error
            self._board = SummaryWriter(str(folder / "tensorboard"))

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Add a line: what kind of event, at which step of the run, with which values.

        Raises:
            TrainingError: it cannot be written.
        """
        line = {"event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "step": step}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line | dict(values)) + "\n")
        except OSError as error:
            raise TrainingError(
                f"cannot write {self._path} ({error.strerror or error}); make room there and use --resume"
            ) from error
        if self._board is not None:
            for key, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{event}/{key}", value, step)


class Validation:
    """Whole pictures that a run is measured on, held in memory.

    Args:
        folder: a few small pictures.
        scales: magnifications to measure at.

    Raises:
        OptionError: the folder has no picture that can be used.
    """

    def __init__(self, folder: Path, *, scales: tuple[float, ...]) -> None:
        pool = load_pool(folder, side=32, memory=1 << 30)
        self._pairs = [(scale, [_pair(picture, scale) for picture in pool.pictures]) for scale in scales]

    def measure(self, network: Network, *, decided: bool) -> dict[str, float]:
        """Mean RGB PSNR in dB per scale: everything heavy, and k = 0.

        Args:
            network: in eval mode, on any device.
            decided: its classifier has been trained; without, only everything heavy is measured.

        Returns:
            "heavy_x2", "k0_x2" in dB and "share_x2", the part of the pixels sent to the heaviest class.
        """
        found = {}
        for scale, pairs in self._pairs:
            name = f"x{scale:g}"
            heaviest = network.spec.classes - 1
            heavy, routed, shares = [], [], []
            for lr, truth in pairs:
                size = truth.shape[:2]
                ours = upscale(network, lr, size=size, force_class=heaviest if heaviest else None)
                heavy.append(psnr(ours.image, truth, shave=shave_for(scale)))
                if decided:
                    ours = upscale(network, lr, size=size)
                    routed.append(psnr(ours.image, truth, shave=shave_for(scale)))
                    shares.append(float(np.mean(ours.class_map == heaviest)))
            found[f"heavy_{name}"] = float(np.mean(heavy))
            if decided:
                found[f"k0_{name}"] = float(np.mean(routed))
                found[f"share_{name}"] = float(np.mean(shares))
        return found


def _pair(truth: NDArray[np.uint8], scale: float) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """LR and what it should become, cropped so that both sizes fit."""
    h, w = (int(side / scale) for side in truth.shape[:2])
    if min(h, w) < 2 * shave_for(scale):
        raise PictureError(f"a validation picture of {truth.shape[1]}x{truth.shape[0]} pixels is too small")
    truth = truth[: round(h * scale), : round(w * scale)]
    return bicubic.resize(truth, size=(h, w)), truth
