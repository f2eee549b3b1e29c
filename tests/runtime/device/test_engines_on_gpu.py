"""Whole pictures by engines: the road, CuPy's device and TensorRT's layer together, on stand-ins of both libraries."""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import gpu_check
import gpu_check_targets
import msgspec
import numpy as np
import pytest
import skimage.data
from click.testing import CliRunner
from fake_cupy import FakeCupy
from fake_tensorrt import FakeTensorrt
from gpu_check_setup import Setup
from rich.console import Console

from pcsr.export.tensorrt.profiles import Sizes, graph_profiles
from pcsr.runtime import Upscaler
from pcsr.runtime.backends import tensorrt as backend
from pcsr.runtime.backends.engine_search import machine_platform
from pcsr.runtime.backends.engines import Description, Engine, Identity, Tuning
from pcsr.runtime.bundle import Bundle, read_bundle
from pcsr.runtime.cli import main as upscale_command
from pcsr.runtime.device import cupy_device
from pcsr.runtime.device.cupy_device import CupyDevice
from pcsr.runtime.device.engine import EngineGraphs
from pcsr.runtime.device.road import DeviceRoad
from pcsr.runtime.pictures import read_picture, write_picture
from pcsr.runtime.probe import Gpu

PHOTO = skimage.data.chelsea()
# Small windows and calls, so that pictures of a test are cut in every way.
SMALL = Sizes(min_lr=(16, 16), opt_lr=(24, 24), max_lr=(40, 48), points=6144)
WIDE = Sizes()


def engines(
    bundle: Bundle, folder: Path, precision: Literal["fp32", "fp16"], sizes: Sizes
) -> dict[str, Engine]:
    """Files as `pcsr-export --trt` leaves them, whose plans are the graphs themselves."""
    sizes.check(bundle.manifest)
    profiles, found = graph_profiles(bundle.manifest, sizes), {}
    for graph, entry in bundle.graphs(precision).items():
        identity = Identity(
            graph=graph,
            precision=precision,
            graph_sha256=entry.sha256,
            flavour="tensorrt",
            version="10.16",
            platform=machine_platform(),
            compute_capabilities=("9.0",),
            gpu="GPU",
            profiles=profiles[graph],
            tuning=Tuning(),
        )
        plan, path = bundle.read(entry), folder / f"{identity.stem}.plan"
        path.write_bytes(plan)
        description = Description(identity, len(plan), hashlib.sha256(plan).hexdigest())
        path.with_suffix(".json").write_bytes(msgspec.json.encode(description))
        found[graph] = Engine(path, description)
    return found


@pytest.fixture
def open_engines(
    kernel_library: Callable[[int], ctypes.CDLL],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Callable[..., tuple[Upscaler, FakeTensorrt, FakeCupy]]]:
    """open_engines(bundle, precision, sizes) → upscaler, and the libraries that it runs on."""
    opened: list[Upscaler] = []

    def open_one(
        folder: Path, precision: Literal["fp32", "fp16"] = "fp32", sizes: Sizes = SMALL
    ) -> tuple[Upscaler, FakeTensorrt, FakeCupy]:
        bundle = read_bundle(folder)
        classes = bundle.manifest.classes
        cupy = FakeCupy(lambda: kernel_library(classes))
        monkeypatch.setattr(cupy_device, "_import", lambda: cupy)
        files = {each: engines(bundle, tmp_path, each, sizes) for each in ("fp32", "fp16")}
        library = FakeTensorrt(cupy, {f"{p} {g}": e for p, of in files.items() for g, e in of.items()})
        device = CupyDevice(0, classes=classes)
        graphs = {
            each: EngineGraphs(library, device, files[each], precision=each) for each in {precision, "fp32"}
        }
        road = DeviceRoad(
            bundle, device, graphs, name="tensorrt", provider="stand-in", precision=precision, asked="cuda"
        )
        opened.append(Upscaler(bundle, road, threads=1, memory_limit=1))
        return opened[-1], library, cupy

    yield open_one
    for up in opened:
        up.close()


def picture(h: int, w: int) -> np.ndarray:
    return np.ascontiguousarray(PHOTO[40 : 40 + h, 80 : 80 + w])


@pytest.mark.parametrize("rule", [{}, {"adaptive": True}, {"budget": 0.3, "refine": True}], ids=str)
@pytest.mark.parametrize(
    ("size", "scale"), [((33, 47), 2.5), ((90, 70), 3), ((1, 1), 4), ((5, 60), 1.7), ((17, 3), 8)]
)
def test_pictures_of_any_size_are_those_of_the_cpu_road(
    open_engines: Callable[..., tuple[Upscaler, FakeTensorrt, FakeCupy]],
    small_bundle: Path,
    rule: dict[str, Any],
    size: tuple[int, int],
    scale: float,
) -> None:
    up, library, _ = open_engines(small_bundle)
    lr = picture(*size)
    result = up(lr, scale=scale, **rule)
    with Upscaler.open(small_bundle, precision="fp32", threads=1) as cpu:
        expected = cpu(lr, scale=scale, **rule)
    assert (result.class_map != expected.class_map).mean() <= 1e-3
    assert np.quantile(np.abs(result.image.astype(int) - expected.image), 0.99) <= 1
    assert {graph for graph, _, _ in library.executed} >= {"backbone", "classifier", "upsampler_0"}
    # Below the smallest window of the main profile the small one is taken.
    profiles = {profile for graph, profile, _ in library.executed if graph == "backbone"}
    assert profiles == ({1} if min(size) < 16 else {0})


def test_three_classes_in_fp16(
    open_engines: Callable[..., tuple[Upscaler, FakeTensorrt, FakeCupy]], three_class_bundle: Path
) -> None:
    up, library, _ = open_engines(three_class_bundle, "fp16", WIDE)
    lr = picture(40, 30)
    result = up(lr, scale=3, budget=0.4)
    with Upscaler.open(three_class_bundle, precision="fp16", threads=1) as cpu:
        expected = cpu(lr, scale=3, budget=0.4)
    assert result.precision == "fp16"
    assert (result.class_map != expected.class_map).mean() <= 0.01
    assert "upsampler_2" in {graph for graph, _, _ in library.executed}


def test_a_window_that_comes_again_is_recorded_and_replayed_with_the_same_result(
    open_engines: Callable[..., tuple[Upscaler, FakeTensorrt, FakeCupy]], small_bundle: Path
) -> None:
    up, library, cupy = open_engines(small_bundle, "fp32", WIDE)
    pictures = [picture(20 + n % 2, 30) for n in range(10)]
    with Upscaler.open(small_bundle, precision="fp32", threads=1) as cpu:
        for number, lr in enumerate(pictures):
            result = up(lr[::-1].copy() if number > 6 else lr, scale=2)
            expected = cpu(lr[::-1].copy() if number > 6 else lr, scale=2)
            assert np.abs(result.image.astype(int) - expected.image).max() <= 1, number
    launches = [call for call in cupy.calls if call[0] == "graphLaunch"]
    # Both shapes are recorded when they come for the third time.
    assert len(launches) == 10 - 2 * 2
    assert sum(graph == "backbone" for graph, _, _ in library.executed) == 2 * (2 + 2)


def test_eight_threads_get_what_one_gets(
    open_engines: Callable[..., tuple[Upscaler, FakeTensorrt, FakeCupy]], small_bundle: Path
) -> None:
    up, library, _ = open_engines(small_bundle)
    pictures = [picture(12 + 9 * n, 50 - 7 * n) for n in range(5)]
    expected = [up(lr, scale=2, adaptive=True).image for lr in pictures]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: up(pictures[n % 5], scale=2, adaptive=True).image, range(40)))
    for number, image in enumerate(results):
        np.testing.assert_array_equal(image, expected[number % 5])
    # A context for each graph and lane, and those of recordings.
    assert library.contexts <= 4 * (4 + 4)


def test_what_overflows_in_fp16_is_redone_by_the_fp32_engines(
    open_engines: Callable[..., tuple[Upscaler, FakeTensorrt, FakeCupy]], small_bundle: Path
) -> None:
    up, _, _ = open_engines(small_bundle, "fp16")
    loud = picture(20, 24).astype(np.float32) * 1e4
    result = up(loud, scale=2)
    with Upscaler.open(small_bundle, precision="fp32", threads=1) as cpu:
        expected = cpu(loud, scale=2)
    assert result.redone_tiles >= 1
    np.testing.assert_allclose(result.image, expected.image, rtol=1e-4, atol=1e-1)


@pytest.fixture
def machine_with_engines(
    kernel_library: Callable[[int], ctypes.CDLL],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    small_bundle: Path,
) -> Path:
    """A folder of engines for a GPU that is there, as far as anybody here can tell."""
    bundle = read_bundle(small_bundle)
    cupy = FakeCupy(lambda: kernel_library(2))
    files = {each: engines(bundle, tmp_path, each, WIDE) for each in ("fp32", "fp16")}
    library = FakeTensorrt(cupy, {f"{p} {g}": e for p, of in files.items() for g, e in of.items()})
    monkeypatch.setattr(cupy_device, "_import", lambda: cupy)
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    monkeypatch.setattr(backend, "_gpu", lambda index: Gpu("GPU", "9.0", 1 << 36, "12.8"))
    monkeypatch.setattr(backend, "_is_installed", lambda flavour: flavour == "tensorrt")
    monkeypatch.setattr(backend, "_version", lambda module: "10.16")
    return tmp_path


@pytest.mark.parametrize("asked", ["tensorrt", "auto"])
@pytest.mark.parametrize(("precision", "runs"), [("auto", "fp16"), ("fp32", "fp32")])
def test_upscaler_open_finds_the_engines(
    machine_with_engines: Path, small_bundle: Path, asked: str, precision: str, runs: str
) -> None:
    lr = picture(30, 40)
    with Upscaler.open(
        small_bundle, device="cuda", backend=asked, precision=precision, engine_cache=machine_with_engines
    ) as up:
        result = up(lr, scale=3)
        assert (up.backend, up.precision, up.device, up.provider) == (
            "tensorrt",
            runs,
            "cuda",
            "TensorRT 10.16",
        )
    with Upscaler.open(small_bundle, precision="fp32", threads=1) as cpu:
        expected = cpu(lr, scale=3)
    assert (result.backend, result.precision) == ("tensorrt", runs)
    # In the other precision a pixel next to the threshold goes elsewhere.
    assert np.quantile(np.abs(result.image.astype(int) - expected.image), 0.98) <= 1


def test_the_command_upscales_a_file_by_them(
    machine_with_engines: Path, small_bundle: Path, tmp_path: Path
) -> None:
    lr, written = tmp_path / "photo.png", tmp_path / "large.png"
    write_picture(lr, picture(30, 40))
    arguments = [lr, "-b", small_bundle, "-o", written, "--device", "cuda", "--backend", "tensorrt"]
    arguments += ["--engine-cache", machine_with_engines, "--scale", "2", "--json"]
    done = CliRunner().invoke(upscale_command, [str(each) for each in arguments])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["backend"] == "tensorrt"
    assert read_picture(written).pixels.shape == (60, 80, 3)


def test_the_check_for_gpus_passes_on_a_machine_that_looks_like_one(
    kernel_library: Callable[[int], ctypes.CDLL],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    small_bundle: Path,
    machine_with_engines: Path,
) -> None:
    """`scripts/gpu_check.py` as on a GPU, in small: what it asks of CuPy and of upscalers."""
    monkeypatch.setitem(sys.modules, "cupy", cupy_device._import())
    monkeypatch.setattr(gpu_check_targets, "probe_gpu", lambda index: Gpu("GPU", "9.0", 1 << 36, "12.8"))
    monkeypatch.setattr(gpu_check_targets, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(gpu_check_targets.Cuda, "backends", (("tensorrt", "fp32"), ("tensorrt", "fp16")))
    machine = gpu_check_targets.Cuda("cuda:0", str(machine_with_engines))
    setup = Setup(machine, small_bundle, None, None, None, None, tmp_path, True)
    report = gpu_check.Report(None, {"simulated": False, **machine.describe()}, Console(quiet=True))
    only = (
        "open",
        "rules",
        "tiles",
        "arrays",
        "threads",
        "memory",
        "map",
        "leak",
        "sizes",
        "pictures",
        "stages",
    )
    gpu_check.run_all(setup, report, only=only, minutes=60, clock=time.monotonic)
    failed = [
        (each["check"], each["target"], each["message"], each["trace"])
        for each in report.results
        if each["status"] == "failed"
    ]
    assert not failed
    assert {each["check"] for each in report.results if each["status"] == "passed"} == set(only)
    found = {each["check"]: each["figures"] for each in report.results if each["target"] == "tensorrt fp32"}
    assert found["arrays"]["libraries"] == ["CuPy", "CuPy on a stream of the caller"]
    assert found["stages"]["bytes per second"] > 0
