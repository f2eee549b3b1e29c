"""Networks and files that the tests of the model share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pcsr.model.network import Network, NetworkSpec, build

AUTHORS_PREFIXES = {
    "backbone.": "encoder.",
    "upsamplers.0.": "light_sampler.imnet.",
    "upsamplers.1.": "heavy_sampler.imnet.",
    "classifier.": "classifier.imnet.",
}


@pytest.fixture
def small_network() -> Network:
    """A complete network of a few hundred weights."""
    torch.manual_seed(0)
    return build(NetworkSpec("fsrcnn", 8, ((4,), (6, 6)), (5,), options=(("s", 4), ("m", 1))))


@pytest.fixture
def authors_content(small_network: Network) -> dict[str, Any]:
    """The small network as the authors' program would have saved it."""

    def sampler(hidden: tuple[int, ...]) -> dict[str, Any]:
        return {
            "name": "liif-sampler",
            "args": {"imnet_spec": {"name": "mlp", "args": {"hidden_list": list(hidden)}}},
        }

    spec = small_network.spec
    assert spec.classifier is not None
    tensors = {}
    for name, tensor in small_network.state_dict().items():
        ours = next(prefix for prefix in AUTHORS_PREFIXES if name.startswith(prefix))
        tensors[AUTHORS_PREFIXES[ours] + name.removeprefix(ours)] = tensor
    args = {
        "encoder_spec": {"name": "fsrcnn", "args": {"d": 8, "s": 4, "m": 1, "no_upsampling": True}},
        "light_sampler_spec": sampler(spec.upsamplers[0]),
        "heavy_sampler_spec": sampler(spec.upsamplers[1]),
        "classifier_spec": sampler(spec.classifier),
    }
    return {"model": {"name": "pcsr-phase1", "args": args, "sd": tensors}, "optimizer": {}, "iter": 500_000}


@pytest.fixture
def authors_file(
    tmp_path: Path, authors_content: dict[str, Any]
) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Save the small network in the authors' form after a change to its `model` dictionary."""

    def save(change: Callable[[dict[str, Any]], object]) -> Path:
        change(authors_content["model"])
        path = tmp_path / "changed.pth"
        torch.save(authors_content, path)
        return path

    return save


@pytest.fixture(scope="session")
def official(shared: Path) -> Path:
    """The authors' checkpoints and sample pictures."""
    return shared / "reference" / "official"
