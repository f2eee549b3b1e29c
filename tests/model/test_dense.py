"""The dense networks for comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pcsr.model.dense import DenseNetwork, load_dense, upscale_dense
from pcsr.model.network import BACKBONES
from pcsr.runtime.errors import CheckpointError, OptionError

WIDTHS = {"carn": 8, "fsrcnn": 8, "srresnet": 4}


def authors_dense(name: str, path: Path, change: Callable[[dict[str, Any]], object]) -> DenseNetwork:
    """Save a random dense network as the authors' program would, after a change to its `model`."""
    network = DenseNetwork(name, WIDTHS[name]).eval()
    tensors = {key.partition(".")[2]: tensor for key, tensor in network.state_dict().items()}
    width = "d" if name == "fsrcnn" else "nf"
    scale = "scale" if name == "carn" else "upscale"
    args = {width: WIDTHS[name], scale: 4, "no_upsampling": False}
    model: dict[str, Any] = {"name": name, "args": args, "sd": tensors}
    change(model)
    torch.save({"model": model, "iter": 1}, path)
    return network


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_a_dense_checkpoint_gives_the_network_that_was_saved(name: str, tmp_path: Path) -> None:
    saved = authors_dense(name, tmp_path / "x.pth", lambda model: None)
    picture = np.random.default_rng(0).random((5, 7, 3), dtype=np.float32)
    result = upscale_dense(load_dense(tmp_path / "x.pth"), picture)
    assert (result.shape, result.dtype) == ((20, 28, 3), np.float32)
    np.testing.assert_array_equal(result, upscale_dense(saved, picture))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(name="pcsr-phase1"), "not a dense network"),
        (lambda m: m["args"].update(scale=2), "only x4"),
        (lambda m: m["args"].update(no_upsampling=True), "does not upsample"),
        (lambda m: m["args"].update(nf=10**6), "width is 1000000"),
        (lambda m: m["args"].update(group=3), "cannot be built"),
        (lambda m: m["sd"].pop("exit.bias"), "lacks 1"),
        (lambda m: m["sd"]["exit.bias"].fill_(float("inf")), "NaN or infinity"),
    ],
)
def test_a_dense_checkpoint_with_a_flaw_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    authors_dense("carn", tmp_path / "x.pth", change)
    with pytest.raises(CheckpointError, match=message):
        load_dense(tmp_path / "x.pth")


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(OptionError, match="it must be"):
        upscale_dense(DenseNetwork("fsrcnn", 8), np.zeros((4, 4), np.uint8))
