"""The networks of a run: where they start, how they come out of a state, and what the result says of itself."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pcsr.model.checkpoint import load_checkpoint
from pcsr.model.network import Network, NetworkSpec, build
from pcsr.runtime.errors import OptionError, TrainingError
from pcsr.training.config import Config
from pcsr.training.plan import PHASES
from pcsr.training.state import State

__all__ = ["fresh_networks", "network_of", "provenance"]

logger = logging.getLogger(__name__)


def fresh_networks(config: Config) -> dict[str, Tensor]:
    """Tensors of a run that has not begun: random weights from the seed, or those of `init`.

    Raises:
        OptionError: `init` holds another network than the configuration describes.
        CheckpointError: `init` cannot be read.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build(config.network.spec())
    if config.init is not None:
        _take_over(network, Path(config.init))
    weights = network.state_dict()
    return {f"{kind}/{name}": value.clone() for kind in ("raw", "average") for name, value in weights.items()}


def network_of(spec: NetworkSpec, tensors: Mapping[str, Tensor], kind: str) -> Network:
    """A network of a state: "raw" as it is trained, or "average".

    Raises:
        TrainingError: the state holds another network.
    """
    network = build(spec)
    weights = {
        name.removeprefix(f"{kind}/"): value for name, value in tensors.items() if name.startswith(f"{kind}/")
    }
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise TrainingError("the state holds another network than the configuration describes") from error
    return network


def provenance(state: State) -> dict[str, str]:
    """What the network was made with: the same for the same run, however often it was interrupted."""
    plan = [
        {
            "phase": PHASES[stretch.phase],
            "steps": stretch.steps,
            "rate": stretch.rate,
            "warmup": stretch.warmup,
        }
        for stretch in state.plan
    ]
    history = [{key: event[key] for key in sorted(event) if key != "time"} for event in state.history]
    return {
        "configuration": json.dumps(state.config, sort_keys=True),
        "data_sha256": state.data,
        "seed": str(state.config["seed"]),
        "plan": json.dumps(plan),
        "history": json.dumps(history),
    }


def _take_over(network: Network, path: Path) -> None:
    """Weights of a checkpoint into a network: all of it, or backbone and heavy upsampler of a heavy-only one."""
    found = load_checkpoint(path, complete=False)
    wanted, have = network.spec, found.spec
    same = (wanted.backbone, wanted.width, wanted.options, wanted.mean, wanted.std) == (
        have.backbone,
        have.width,
        have.options,
        have.mean,
        have.std,
    )
    if not same or wanted.upsamplers[-1] != have.upsamplers[-1]:
        raise OptionError(f"{path} holds {have.to_json()}, the configuration says {wanted.to_json()}")
    network.backbone.load_state_dict(found.backbone.state_dict())
    network.heads[-1].load_state_dict(found.heads[-1].state_dict())
    if found.classifier is None:
        return
    if (wanted.upsamplers, wanted.classifier) != (have.upsamplers, have.classifier):
        logger.info("%s has other light upsamplers or another classifier: these start anew", path)
        return
    network.load_state_dict(found.state_dict())
