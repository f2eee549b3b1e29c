"""PCSR in PyTorch: networks, checkpoints, the published inference as the oracle, and what things cost.

`load_checkpoint(path)` gives a `Network`; `upscale(network, picture, scale=4)` runs the published inference
on it, plainly and slowly: it is what everything else is measured against. `network_cost` counts the work by
the paper's convention and in true multiply-accumulates.
"""

from pcsr.model.checkpoint import checkpoint_sha256, load_checkpoint, save_checkpoint
from pcsr.model.cost import NetworkCost, network_cost
from pcsr.model.dense import DenseNetwork, load_dense, upscale_dense
from pcsr.model.network import BACKBONES, Network, NetworkSpec, build
from pcsr.model.reference import Reference, upscale

__all__ = [
    "BACKBONES",
    "DenseNetwork",
    "Network",
    "NetworkCost",
    "NetworkSpec",
    "Reference",
    "build",
    "checkpoint_sha256",
    "load_checkpoint",
    "load_dense",
    "network_cost",
    "save_checkpoint",
    "upscale",
    "upscale_dense",
]
