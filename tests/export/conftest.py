"""Small random networks of every form, and checkpoints of them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from torch import nn

from pcsr.export.pipeline import export_bundle
from pcsr.model.checkpoint import save_checkpoint
from pcsr.model.network import Network, NetworkSpec, build

SPECS = {
    "carn": NetworkSpec("carn", 20, ((6, 6), (16, 16)), (8,), mean=(0.45, 0.44, 0.4)),
    "carn with two groups": NetworkSpec("carn", 34, ((5,), (9,)), (4, 4), options=(("groups", 2),)),
    "fsrcnn": NetworkSpec("fsrcnn", 12, ((6, 6), (16, 16)), (8,), mean=(0.4, 0.5, 0.45)),
    "fsrcnn with two mappings": NetworkSpec("fsrcnn", 7, ((5,), (8,)), (3,), options=(("m", 2), ("s", 5))),
    "srresnet": NetworkSpec("srresnet", 10, ((6,), (12, 12)), (8,), options=(("nb", 2),)),
    "a deviation": NetworkSpec("fsrcnn", 12, ((6,), (12,)), (8,), std=(0.25, 0.5, 2.0)),
    "a deviation and a mean": NetworkSpec("srresnet", 8, ((6,), (12,)), (8,), (0.4,) * 3, (0.3, 0.2, 0.25)),
    "three classes": NetworkSpec("fsrcnn", 12, ((5,), (8, 8), (16, 16)), (8,)),
    "a linear classifier": NetworkSpec("fsrcnn", 12, ((6,), (12,)), ()),
    "a linear classifier of three": NetworkSpec("fsrcnn", 12, ((6,), (8,), (12,)), ()),
    "linear upsamplers": NetworkSpec("fsrcnn", 12, ((), ()), (8,), std=(0.5, 0.5, 0.5)),
}


def random_network(spec: NetworkSpec, *, seed: int = 1) -> Network:
    """Random weights; batch norms with statistics of their own, as after training."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = build(spec)
        for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(0, 0.2)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.1)
    return network


@pytest.fixture(params=SPECS)
def network(request: pytest.FixtureRequest) -> Network:
    """Each form of network in turn."""
    return random_network(SPECS[request.param])


@pytest.fixture(scope="session")
def make() -> Callable[..., Network]:
    """A function that makes the network of a name in `SPECS`."""
    return lambda name, seed=1: random_network(SPECS[name], seed=seed)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint."""
    path = tmp_path_factory.mktemp("checkpoint") / "one.safetensors"
    save_checkpoint(random_network(SPECS["fsrcnn"]), path)
    return path


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one, of another form."""
    path = tmp_path_factory.mktemp("checkpoint") / "other.safetensors"
    save_checkpoint(random_network(SPECS["three classes"], seed=2), path)
    return path


@pytest.fixture(scope="session")
def both(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with both precisions."""
    return export_bundle(checkpoint, tmp_path_factory.mktemp("both") / "bundle").bundle.path


@pytest.fixture(scope="session")
def single(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with fp32 only."""
    target = tmp_path_factory.mktemp("single") / "bundle"
    return export_bundle(checkpoint, target, precisions=["fp32"]).bundle.path


@pytest.fixture(scope="session")
def forked() -> Callable[..., BaseProcess]:
    """A function that starts `pcsr-export` in a process of its own, with everything imported already.

    A server that imports once forks the processes, so that a command of two seconds' imports starts at once.
    `first` is a statement to run before the command.
    """
    context = multiprocessing.get_context("forkserver")
    # The last two are imported on first use only.
    modules = ["pcsr.export.cli", "pcsr.export.pipeline", "onnxruntime", "torch._dynamo"]
    context.set_forkserver_preload(modules)

    def start(*arguments: object, first: str = "") -> BaseProcess:
        command = f"main({[str(argument) for argument in arguments]!r})"
        program = f"from pcsr.export.cli import main\n{first}\n{command}"
        process = context.Process(target=exec, args=(program, {}))
        process.start()
        return process

    return start
