"""Comparing engines with ONNX Runtime: what runs here is ONNX Runtime on both sides, through Polygraphy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pcsr.export.tensorrt.cache import build_engines
from pcsr.export.tensorrt.command import judge
from pcsr.export.tensorrt.compare import compare_engines, compare_runners, graph_runner, sample_feeds
from pcsr.export.tensorrt.plan import wanted_engines
from pcsr.export.tensorrt.profiles import Sizes, graph_profiles
from pcsr.export.tensorrt.request import parse_request
from pcsr.runtime.backends.profiles import Limits, limits
from pcsr.runtime.bundle import Bundle, read_bundle
from pcsr.runtime.errors import BackendError, CheckError
from pcsr.runtime.probe import Unavailable, probe_gpu


@pytest.fixture(params=["two classes", "three classes"])
def bundle(request: pytest.FixtureRequest, small_bundle: Path, three_class_bundle: Path) -> Bundle:
    return read_bundle(small_bundle if request.param == "two classes" else three_class_bundle)


def limit(bundle: Bundle, sizes: Sizes) -> Limits:
    return limits(graph_profiles(bundle.manifest, sizes))


@pytest.mark.parametrize(
    "sizes", [Sizes(), Sizes((8, 8), (40, 40), (64, 64), 5000)], ids=["default", "small"]
)
def test_the_sample_is_fed_within_the_profiles(bundle: Bundle, sizes: Sizes) -> None:
    profiles = graph_profiles(bundle.manifest, sizes)
    feeds = sample_feeds(bundle, "fp16", limits(profiles))
    assert set(feeds) == set(bundle.graphs("fp16"))
    for graph, feed in feeds.items():
        assert set(feed) == set(profiles[graph][0])
        assert any(all(p[name].holds(array.shape) for name, array in feed.items()) for p in profiles[graph])
    # A real picture, and every pixel of a class on its own network.
    assert np.ptp(feeds["backbone"]["lr"]) > 0.3
    assert len(feeds["upsampler_1"]["pixel"]) > 50


def test_the_same_graph_gives_no_difference(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    feeds = sample_feeds(bundle, "fp32", limit(bundle, Sizes()))
    for graph, entry in bundle.graphs("fp32").items():
        runners = [graph_runner(bundle.read(entry)) for _ in range(2)]
        errors = compare_runners(runners, feeds[graph], graph=graph, precision="fp32")
        outputs = bundle.manifest.classes + 1 if graph == "backbone" else 1
        assert len(errors) == outputs
        assert all(error.passed and error.largest == error.mean == 0 for error in errors)
        judge(errors)
    # Standard output is for results: Polygraphy is kept from it.
    assert capfd.readouterr().out == ""


def test_a_graph_that_differs_fails_by_its_output(small_bundle: Path) -> None:
    bundle = read_bundle(small_bundle)
    content = bundle.read(bundle.graphs("fp32")["upsampler_1"])
    model = onnx.load_from_string(content)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("layer2.bias"):
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(1e-3), tensor.name)
            )
    feed = sample_feeds(bundle, "fp32", limit(bundle, Sizes()))["upsampler_1"]
    runners = [graph_runner(content), graph_runner(model.SerializeToString())]
    (error,) = compare_runners(runners, feed, graph="upsampler_1", precision="fp32")
    assert not error.passed
    assert error.output == "rgb"
    assert error.largest == pytest.approx(1e-3, rel=0.02)
    assert error.mean == pytest.approx(1e-3, rel=0.02)
    with pytest.raises(CheckError, match="1 outputs .* most of all rgb of fp32 graph upsampler_1: by 0.001"):
        judge([error])


def test_a_runner_that_fails_is_one_error(small_bundle: Path) -> None:
    bundle = read_bundle(small_bundle)
    feed = {"lr": np.zeros((1, 3, 8, 8), np.float32)}
    runners = [graph_runner(b"no graph"), graph_runner(bundle.read(bundle.graphs("fp32")["backbone"]))]
    with pytest.raises(
        BackendError, match="graph backbone in fp32 cannot be run by onnxruntime and onnxruntime"
    ):
        compare_runners(runners, feed, graph="backbone", precision="fp32")


def test_an_engine_without_a_gpu_is_one_error(small_bundle: Path, tmp_path: Path) -> None:
    """As far as it goes here: the plan is read and checked, and Polygraphy finds no GPU to run it."""
    if not isinstance(probe_gpu(), Unavailable):
        pytest.skip("there is a GPU")
    bundle = read_bundle(small_bundle)
    request = parse_request(
        trt=False, trt_rtx=True, ahead="8.9", min_lr=None, opt_lr=None, max_lr=None, points=None, opt_level=None,
        workspace=None, hardware_compat=False, version_compat=False, engine_cache=None, compare=False,
    )  # fmt: skip
    assert request is not None
    wanted = wanted_engines(bundle, request, "tensorrt-rtx", ["fp16"])
    built = build_engines(bundle, wanted, tmp_path)
    engines = {outcome.engine.identity.graph: outcome.engine for outcome in built}
    with pytest.raises(
        BackendError, match="graph backbone in fp16 cannot be run by onnxruntime and tensorrt-rtx"
    ):
        compare_engines(bundle, "fp16", engines)
    engines["backbone"].path.write_bytes(b"changed")
    with pytest.raises(BackendError, match="build it anew"):
        compare_engines(bundle, "fp16", engines)
