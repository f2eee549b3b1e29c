"""What a bundle is made from: a checkpoint, or another bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
import safetensors.numpy
from numpy.typing import NDArray

from pcsr.export.backbone_graphs import backbone_graph
from pcsr.export.bundle import DEFAULT_PRECISIONS, provenance
from pcsr.export.check import Case, Outputs, graph_outputs, network_outputs, working_bytes
from pcsr.export.graphs import build_graphs
from pcsr.export.rewrites import rewrite
from pcsr.model.checkpoint import checkpoint_sha256, load_checkpoint
from pcsr.model.cost import network_cost
from pcsr.model.network import Network
from pcsr.runtime.backends.graphs import Run
from pcsr.runtime.backends.onnxruntime import open_model
from pcsr.runtime.bundle import Bundle
from pcsr.runtime.cost import CostTable, PixelCosts
from pcsr.runtime.errors import BundleError
from pcsr.runtime.manifest import Form, NetworkEntry, Normalisation, Precision

__all__ = ["Source", "from_bundle", "from_checkpoint", "open_graphs"]

# The smallest sample that the cases can be cut from, and the largest that is decoded.
SAMPLE_SIDES = (64, 4096)


@dataclass(frozen=True, slots=True)
class Source:
    """What graphs are built from, and what they are compared with.

    Attributes:
        fields: of the manifest, without what is said about files.
        weights: of the rewritten network, by the names of docs/bundle.md.
        weights_file: the same as the content of network.safetensors.
        sample: content of the sample picture.
        graphs: that the source has already, by form and name.
        calibration: content of the cache that its int8 graphs were made from.
        expected: gives what the graphs must give.
        expected_by: what `expected` computes with, for messages.
        exactness: precision of `expected`.
    """

    fields: Mapping[str, Any]
    weights: Mapping[str, NDArray[np.float32]]
    weights_file: bytes
    sample: bytes
    graphs: Mapping[Form, Mapping[str, bytes]]
    expected: Callable[[Sequence[Case]], list[Outputs]]
    expected_by: str
    exactness: Precision
    calibration: bytes | None = None

    @property
    def checkpoint_sha256(self) -> str:
        """Of the checkpoint that all of it comes from."""
        digest: str = self.fields["provenance"]["checkpoint_sha256"]
        return digest

    def onto(self, existing: Bundle) -> Source:
        """The same source, with what a bundle from the same checkpoint has already taken from there.

        Other versions of the tools may round a weight otherwise: one bundle is made from one set of weights.
        """
        its = from_bundle(existing)
        same = self.weights_file == its.weights_file
        return dataclasses.replace(
            self,
            fields=its.fields,
            weights=its.weights,
            weights_file=its.weights_file,
            sample=its.sample,
            graphs={**(self.graphs if same else {}), **its.graphs},
            calibration=its.calibration or (self.calibration if same else None),
        )

    def pixels(self) -> NDArray[np.uint8]:
        """The sample picture, (h, w, 3).

        Raises:
            BundleError: it is not what an export puts into a bundle.
        """
        low, high = SAMPLE_SIDES
        try:
            image = pyvips.Image.new_from_buffer(self.sample, "")
            shape = (image.height, image.width, image.bands)
            if (
                not low <= min(shape[:2]) <= max(shape[:2]) <= high
                or shape[2] != 3
                or image.format != "uchar"
            ):
                raise BundleError(
                    f"the bundle's sample is {shape[1]}x{shape[0]} with {shape[2]} channels, the checks need "
                    f"8-bit RGB with sides from {low} to {high}; export the bundle anew"
                )
            pixels: NDArray[np.uint8] = image.numpy()
        except pyvips.Error as error:
            raise BundleError(
                f"the bundle's sample is no picture ({error.message}); export the bundle anew"
            ) from error
        return pixels


def from_checkpoint(path: Path) -> Source:
    """Rewrite the network of a checkpoint; its graphs are compared with PyTorch.

    Raises:
        CheckpointError: it is no usable checkpoint.
        CheckError: a rewrite changes the network.
        OptionError: `SOURCE_DATE_EPOCH` is no whole number.
    """
    network = load_checkpoint(path)
    record = provenance(checkpoint_sha256(path))
    weights = rewrite(network)
    entry, normalisation = network_entry(network), Normalisation(mean=network.spec.mean, std=network.spec.std)
    return Source(
        fields={
            "network": entry,
            "normalisation": normalisation,
            "halo": network.halo,
            "working_bytes": working_bytes(backbone_graph(entry, normalisation, weights, half=False)),
            "cost": cost_table(network),
            "provenance": record,
        },
        weights=weights,
        weights_file=safetensors.numpy.save(weights),
        sample=resources.files("pcsr.export").joinpath("sample.png").read_bytes(),
        graphs={},
        expected=lambda cases: [network_outputs(network, case) for case in cases],
        expected_by="PyTorch",
        exactness="fp32",
    )


def from_bundle(bundle: Bundle) -> Source:
    """A bundle has the rewritten weights; further graphs are compared with its most exact ones.

    Raises:
        BundleError: a file of it is damaged.
    """
    manifest = bundle.manifest
    weights = bundle.weights()
    graphs = {
        form: {name: bundle.read(entry) for name, entry in files.items()}
        for form, files in manifest.graphs.items()
    }
    exactness: Precision = next((p for p in DEFAULT_PRECISIONS if p in graphs), "fp32")

    def expected(cases: Sequence[Case]) -> list[Outputs]:
        exact = graphs.get(exactness)
        if exact is None:
            built = build_graphs(manifest.network, manifest.normalisation, weights, half=False)
            exact = {name: model.SerializeToString() for name, model in built.items()}
        runs = open_graphs(exact, exactness)
        return [graph_outputs(runs, weights, case) for case in cases]

    names = ("network", "normalisation", "halo", "working_bytes", "cost", "provenance")
    return Source(
        fields={name: getattr(manifest, name) for name in names},
        weights=weights,
        weights_file=bundle.read(manifest.weights),
        sample=bundle.sample(),
        graphs=graphs,
        expected=expected,
        expected_by=f"the {exactness} graphs of {bundle.path}",
        exactness=exactness,
        calibration=None if manifest.calibration is None else bundle.calibration(),
    )


def open_graphs(graphs: Mapping[str, bytes], precision: str) -> dict[str, Run]:
    """Graphs ready to run on the CPU."""
    return {name: open_model(content, f"{precision} graph {name}") for name, content in graphs.items()}


def network_entry(network: Network) -> NetworkEntry:
    """The network's sizes as the manifest says them."""
    spec = network.spec
    assert spec.classifier is not None
    return NetworkEntry(
        backbone=spec.backbone,
        width=spec.width,
        options=dict(spec.options),
        classifier=spec.classifier,
        upsamplers=spec.upsamplers,
    )


def cost_table(network: Network) -> CostTable:
    """The network's costs as the manifest says them."""
    cost = network_cost(network)
    flops, macs = (
        PixelCosts(backbone=unit.backbone, classifier=unit.classifier, upsamplers=unit.upsamplers)
        for unit in (cost.published, cost.hoisted_macs)
    )
    return CostTable(flops=flops, macs=macs)
