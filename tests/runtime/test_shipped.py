"""Bundles that ship with the runtime: found by name, whole, and what the repository's networks export to."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
import skimage.data

from pcsr.runtime import Upscaler, shipped_bundle, shipped_bundles
from pcsr.runtime.bundle import MANIFEST, read_bundle
from pcsr.runtime.errors import BundleError
from pcsr.runtime.shipped import find_bundle

ROOT = Path(__file__).resolve().parent.parent.parent
NETWORKS = ROOT / "training" / "networks"
PHOTO = skimage.data.coffee()[150:190, 200:253]


def test_the_default_ships() -> None:
    assert {"carn", "fsrcnn"} <= set(shipped_bundles())
    assert shipped_bundle() == shipped_bundle("carn")


@pytest.mark.parametrize("name", shipped_bundles())
def test_a_shipped_bundle_is_whole_and_runs_by_name(name: str) -> None:
    bundle = read_bundle(shipped_bundle(name))
    assert bundle.precisions == ("fp32", "fp16", "int8")
    bundle.calibration()
    for files in bundle.manifest.graphs.values():
        for entry in files.values():
            bundle.read(entry)
    bundle.sample()
    with Upscaler.open(name) as up:
        assert up.bundle.path == shipped_bundle(name)
        result = up(PHOTO, scale=4)
    assert result.image.shape == (160, 212, 3)
    # Every class is used on a photograph, and none for all of it.
    assert all(0 < share < 1 for share in result.shares)


@pytest.mark.parametrize("name", shipped_bundles())
def test_a_shipped_bundle_is_better_than_bilinear(name: str) -> None:
    """No bundle of random or broken weights gets through."""
    from pcsr.runtime.bicubic import resize
    from pcsr.validation.metrics import psnr

    truth = skimage.data.coffee()[:400, :600]
    lr = np.clip(resize(truth, scale=1 / 4), 0, 1).astype(np.float32)
    bicubic = psnr(np.clip(resize(lr, size=(400, 600)), 0, 1), truth, shave=4)
    with Upscaler.open(name) as up:
        ours = psnr(np.clip(up(lr, scale=4).image, 0, 1), truth, shave=4)
    assert ours > bicubic + 1


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_bundle: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_bundle("carn") == shipped_bundle("carn")
    assert find_bundle(Path("carn")) == Path("carn")
    assert find_bundle("./carn") == Path("./carn")
    # A folder that is no bundle is not what anybody means.
    Path("carn").mkdir()
    assert find_bundle("carn") == shipped_bundle("carn")
    shutil.copytree(small_bundle, "carn", dirs_exist_ok=True)
    with pytest.raises(BundleError, match=r"ships with pcsr; write \./carn"):
        find_bundle("carn")
    assert find_bundle("./carn") == Path("carn")
    Path("mine").mkdir()
    assert find_bundle("mine") == Path("mine")


def test_an_unknown_name_is_told_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        BundleError, match=r"no bundle named 'karn' ships with pcsr \(there are: carn, fsrcnn"
    ):
        find_bundle("karn")
    with pytest.raises(BundleError, match="only carn, fsrcnn"):
        shipped_bundle("karn")


@pytest.mark.parametrize("name", [path.stem for path in sorted(NETWORKS.glob("*.safetensors"))])
def test_a_shipped_bundle_is_what_its_network_exports_to(name: str, tmp_path: Path) -> None:
    """`make bundles` was run after the network was trained. Provenance has versions of tools, which may differ."""
    from pcsr.export.pipeline import export_bundle

    anew = export_bundle(
        NETWORKS / f"{name}.safetensors",
        tmp_path / name,
        precisions=["fp32", "fp16", "int8"],
        calibration=NETWORKS / f"{name}.calibration.json",
    ).bundle.manifest
    shipped = read_bundle(shipped_bundle(name)).manifest
    assert shipped.provenance["checkpoint_sha256"] == anew.provenance["checkpoint_sha256"]
    # Names of files are hashes of their content.
    assert msgspec.structs.replace(shipped, provenance={}) == msgspec.structs.replace(anew, provenance={})


def test_every_shipped_bundle_has_its_network_in_the_repository() -> None:
    assert set(shipped_bundles()) == {path.stem for path in NETWORKS.glob("*.safetensors")}


@pytest.mark.slow
def test_the_wheel_has_the_bundles(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for room in ("calibration", "model", "export", "runtime", "training", "validation"):
        shutil.copytree(ROOT / room, source / room)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source],
        check=True,
        timeout=300,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "installed")
    for name in shipped_bundles():
        bundle = read_bundle(tmp_path / "installed" / "pcsr" / "runtime" / "bundles" / name)
        entries = [entry for files in bundle.manifest.graphs.values() for entry in files.values()]
        for entry in (bundle.manifest.weights, bundle.manifest.sample, *entries):
            bundle.read(entry)
        bundle.calibration()
        files = {path for path in bundle.path.rglob("*") if path.is_file()}
        assert len(files) == len({entry.path for entry in entries}) + 4, (
            f"{name} has files in the wheel that its {MANIFEST} does not name"
        )
