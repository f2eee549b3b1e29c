"""A few small photographs, a small network, and one calibration of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import skimage.data

from pcsr.calibration.run import Request, calibrate
from pcsr.export.int8.cache import Calibration, write_calibration
from pcsr.export.pipeline import export_bundle
from pcsr.model.checkpoint import save_checkpoint
from pcsr.model.network import Network
from pcsr.runtime.bundle import Bundle, read_bundle
from pcsr.runtime.pictures import write_picture


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photographs, wide enough for what a CARN sees at scale 2."""
    folder = tmp_path_factory.mktemp("photos")
    write_picture(folder / "astronaut.png", skimage.data.astronaut()[20:140, 150:260])
    write_picture(folder / "chelsea.png", skimage.data.chelsea()[60:160, 100:210])
    write_picture(folder / "coffee.png", skimage.data.coffee()[100:200, 200:320])
    return folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, random_network: Callable[..., Network]) -> Bundle:
    """A small CARN with random weights that sends pixels to both classes."""
    folder = tmp_path_factory.mktemp("carn")
    network = random_network(backbone="carn", width=40, upsamplers=((6, 6), (40, 40)))
    save_checkpoint(network, folder / "random.safetensors")
    return export_bundle(folder / "random.safetensors", folder / "bundle", precisions=["fp32"]).bundle


@pytest.fixture(scope="session")
def request_for(photos: Path) -> Request:
    """A calibration that takes seconds; its cache is nowhere yet."""
    return Request(data=photos, cache=Path("nowhere"), scales=(2.0,), pictures=3, allow_drop=10.0)


@pytest.fixture(scope="session")
def calibrated(
    bundle: Bundle, request_for: Request, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Calibration]:
    """The cache of one calibration, and what it says."""
    cache = tmp_path_factory.mktemp("calibrated") / "cache.json"
    found = calibrate(bundle, dataclasses.replace(request_for, cache=cache))
    write_calibration(cache, found)
    return cache, found


@pytest.fixture(scope="session")
def int8_bundle(
    bundle: Bundle, calibrated: tuple[Path, Calibration], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """The same network with int8 graphs."""
    target = tmp_path_factory.mktemp("int8") / "bundle"
    export_bundle(bundle.path, target, precisions=["fp32", "int8"], calibration=calibrated[0])
    return read_bundle(target)
