"""What a run needs to go on exactly where it stopped, in one file that is there whole or not at all.

Tensors and, in the header, JSON (safetensors; nothing is unpickled). The state before the last is kept beside
it: a file that was damaged later costs minutes and not the run.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import safetensors.torch
from torch import Tensor

from pcsr.runtime.atomic import sync_folder, whole_file
from pcsr.runtime.errors import OptionError, TrainingError
from pcsr.training.plan import Stretch

__all__ = ["PREVIOUS", "STATE", "State", "read_state", "write_state"]

logger = logging.getLogger(__name__)

STATE, PREVIOUS = "state.safetensors", "state.previous.safetensors"
FORMAT = 1
KEY = "pcsr-training"
# Four copies of a network at the toolkit's limit of parameters.
MAX_STATE_BYTES = 2 << 30


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run stands, apart from its tensors.

    Attributes:
        config: as it was checked, as plain values.
        data: sha256 of the pictures.
        plan: all stretches, behind and ahead.
        at: the stretch that the run is in; their number after the last.
        done: steps of that stretch that are done.
        seconds: trained so far.
        history: what happened and when, oldest first.
        format: of this file.
    """

    config: dict[str, Any]
    data: str
    plan: tuple[Stretch, ...]
    at: int
    done: int
    seconds: float
    history: tuple[dict[str, Any], ...]
    format: int = FORMAT

    @property
    def finished(self) -> bool:
        """Whether every stretch is done."""
        return self.at >= len(self.plan)


def write_state(folder: Path, state: State, tensors: Mapping[str, Tensor]) -> None:
    """Write the state; the one before stays as the previous one.

    Raises:
        TrainingError: it cannot be written; the last one is as it was.
    """
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    header = {KEY: msgspec.json.encode(state).decode(), "digest": _digest(held)}
    path = folder / STATE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            temporary.write_bytes(safetensors.torch.save(held, header))
            if path.exists():
                _keep(path, folder / PREVIOUS)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "make room there" if full else "see to it"
        raise TrainingError(
            f"cannot write {path} ({error.strerror or error}); {advice} and go on with --resume "
            "from the last state, which is kept"
        ) from error


def read_state(folder: Path) -> tuple[State, dict[str, Tensor]]:
    """Read the last good state.

    Raises:
        OptionError: there is none.
        TrainingError: there is none that can be read.
    """
    path, previous = folder / STATE, folder / PREVIOUS
    if not path.exists() and not previous.exists():
        raise OptionError(f"{folder} has no {STATE} to resume; leave --resume away to start a run there")
    try:
        return _read(path)
    except TrainingError as error:
        if not previous.exists():
            raise
        logger.warning("%s; going on from %s", error, previous)
        return _read(previous)


def _read(path: Path) -> tuple[State, dict[str, Tensor]]:
    try:
        if path.stat().st_size > MAX_STATE_BYTES:
            raise TrainingError(f"{path} is larger than any state, {MAX_STATE_BYTES} bytes; it is damaged")
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        state = msgspec.json.decode(header[KEY], type=State)
        digest = header["digest"]
    except (OSError, KeyError, safetensors.SafetensorError, msgspec.MsgspecError) as error:
        raise TrainingError(f"{path} is no state of a training run, or damaged ({error})") from error
    if state.format != FORMAT:
        raise TrainingError(f"{path} has the format {state.format}; this version reads {FORMAT}")
    if not 0 <= state.at <= len(state.plan) or digest != _digest(tensors):
        raise TrainingError(f"{path} is damaged: its content is not what was written")
    return state, tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _keep(path: Path, previous: Path) -> None:
    """Give the file a second name, replacing the older one in one move."""
    link = previous.with_name(f".{previous.name}.partial")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # file systems without links: a moment without the newest, the previous is there
        path.replace(previous)
    else:
        link.replace(previous)
    sync_folder(path.parent)
