"""What reaches a layer is observed, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from pcsr.calibration.collect import Collector
from pcsr.calibration.run import network_of
from pcsr.runtime import Upscaler
from pcsr.runtime.bundle import Bundle
from pcsr.runtime.errors import CheckError
from pcsr.runtime.pictures import read_picture


@pytest.fixture(scope="module")
def lr(photos: Path) -> np.ndarray:
    return read_picture(photos / "coffee.png").pixels[:30, :41].astype(np.float32) / 255


@pytest.mark.parametrize("k", [-2.0, 0.0, 2.0])
def test_upsamplers_see_the_pixels_routed_to_them_and_the_backbone_the_whole_picture(
    bundle: Bundle, lr: np.ndarray, k: float
) -> None:
    network = network_of(bundle)
    collector = Collector(bundle, network.models, network.layers)
    collector.add(lr, scale=2.3, k=k, name="coffee")
    with Upscaler.open(bundle.path, threads=1) as up:
        routed = np.bincount(up(lr, scale=2.3, k=k).class_map.ravel(), minlength=2)
    seen = {
        graph: {histogram.values for histogram in tensors.values()}
        for graph, tensors in collector.histograms.items()
        if tensors
    }
    assert seen == {
        "backbone": {lr.shape[0] * lr.shape[1]},
        "upsampler_0": {routed[0]},
        "upsampler_1": {routed[1]},
    }


def test_what_is_observed_is_what_the_layers_read(bundle: Bundle, lr: np.ndarray) -> None:
    """The first layer reads the normalised picture, which is known without any network."""
    network = network_of(bundle)
    collector = Collector(bundle, network.models, network.layers)
    collector.add(lr, scale=2, k=0, name="coffee")
    entry = next(layer for layer in network.layers if layer.node == "backbone.entry")
    found = collector.histograms["backbone"][entry.input]
    expected = lr - np.array(bundle.manifest.normalisation.mean, dtype=np.float32)
    assert (found.low, found.high) == (pytest.approx(expected.min()), pytest.approx(expected.max()))
    assert found.means == pytest.approx(expected.mean(axis=(0, 1)), abs=1e-6)


def test_the_collection_does_not_depend_on_threads(bundle: Bundle, lr: np.ndarray) -> None:
    network = network_of(bundle)
    states = []
    for threads in (1, 2):
        collector = Collector(bundle, network.models, network.layers, threads=threads)
        collector.add(lr, scale=3, k=0, name="coffee")
        states.append({t: h.state() for t, h in collector.histograms["upsampler_1"].items()})
    assert states[0] == states[1]


def test_a_value_that_is_not_finite_names_picture_and_tensor(bundle: Bundle, lr: np.ndarray) -> None:
    network = network_of(bundle)
    # Finite, but sums of its products are not.
    (entry,) = (t for t in network.models["backbone"].graph.initializer if t.name == "backbone.entry.weight")
    entry.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry) * np.float32(1e20), entry.name))
    broken = lr * np.float32(1e20)
    with pytest.raises(CheckError, match=r"picture odd\.png at scale 2: tensor .* of graph backbone"):
        Collector(bundle, network.models, network.layers).add(broken, scale=2, k=0, name="odd.png")
