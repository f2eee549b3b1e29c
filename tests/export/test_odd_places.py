"""Odd sources and targets: what a user gives by a slip, and bundles that somebody else made."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from pcsr.export import pipeline, sources
from pcsr.export.pipeline import Outcome, export_bundle
from pcsr.model.network import Network
from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.errors import BackendError, BundleError, CheckError, CheckpointError, OptionError
from pcsr.runtime.pictures import write_picture


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by relative name, hidden ones too, lock files apart."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def copy(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "copy")


def run(source: Path, target: Path, **options: object) -> Outcome:
    return export_bundle(source, target, **options)


def test_a_source_that_is_none_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(CheckpointError, match=r"missing\.pth is missing"):
        run(tmp_path / "missing.pth", tmp_path / "bundle")
    with pytest.raises(CheckpointError, match=r"text\.pth"):
        run(tmp_path / "text.pth", tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"folder is not a bundle \(manifest.json"):
        run(tmp_path / "folder", tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "text.pth"]


def test_the_checkpoint_itself_is_no_target(checkpoint: Path) -> None:
    before = checkpoint.read_bytes()
    with pytest.raises(BundleError, match="exists and is no bundle"):
        run(checkpoint, checkpoint, force=True)
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize("way", ["link", "link to the parent", "dots", "slash"])
def test_a_bundle_reached_by_another_way_is_the_same_bundle(
    single: Path, both: Path, tmp_path: Path, way: str
) -> None:
    bundle = copy(single, tmp_path)
    (tmp_path / "link").symlink_to("copy")
    (tmp_path / "parent").symlink_to(".")
    ways = {
        "link": tmp_path / "link",
        "link to the parent": tmp_path / "parent" / "copy",
        "dots": bundle / ".." / "copy",
        "slash": Path(f"{bundle}/"),
    }
    run(bundle, ways[way])
    assert tree(bundle) == tree(both)
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".copy.lock", "copy", "link", "parent"]


def test_the_folder_one_stands_in_is_filled_not_replaced(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, both: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    inode = here.stat().st_ino
    monkeypatch.chdir(here)
    run(checkpoint, Path())
    assert tree(here) == tree(both)
    # A rename would have left the shell in a folder that is gone, and fails on a mounted one.
    assert here.stat().st_ino == inode


def test_parents_that_are_missing_are_made(checkpoint: Path, both: Path, tmp_path: Path) -> None:
    run(checkpoint, tmp_path / "a" / "b" / "bundle")
    assert tree(tmp_path / "a" / "b" / "bundle") == tree(both)


@pytest.mark.parametrize("precisions", [[], ["int4"], ["fp32", "FP16"], [""]])
def test_an_unknown_precision_is_refused(checkpoint: Path, tmp_path: Path, precisions: list[str]) -> None:
    with pytest.raises(OptionError, match="is unknown; choose from fp32, fp16"):
        run(checkpoint, tmp_path / "bundle", precisions=precisions)


def test_without_onnxruntime_the_error_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"pip install 'pcsr\[export,cpu\]'"):
        run(checkpoint, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


# --- a bundle from outside as the source


def test_a_bundle_whose_graphs_are_not_its_weights_is_refused(
    both: Path, single: Path, tmp_path: Path
) -> None:
    """Further graphs come from the weights; that they fit the graphs that are there is checked, not believed."""
    bundle = read_bundle(copy(single, tmp_path))
    weights = {name: values * np.float32(1.5) for name, values in bundle.weights().items()}
    source = sources.from_bundle(bundle)
    wrong = dataclasses.replace(source, weights=weights)
    with pytest.raises(CheckError, match=r"fp16 graph \w+, tensor \w+, .* differs from the fp32 graphs of "):
        pipeline._build(wrong, ["fp16"])


@pytest.mark.parametrize(
    ("field", "value"),
    [("backbone", "vgg"), ("options", {}), ("options", {"m": 9, "s": 12})],
    ids=["backbone", "no options", "layers"],
)
def test_a_bundle_whose_network_is_not_its_weights_is_refused(
    single: Path, tmp_path: Path, field: str, value: object
) -> None:
    bundle = copy(single, tmp_path)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["network"][field] = value
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    before = tree(bundle)
    with pytest.raises(
        BundleError, match="weights do not fit its network, .*export it anew from its checkpoint"
    ):
        export_bundle(bundle, bundle)
    assert tree(bundle) == before


@pytest.mark.parametrize("sample", ["text", "tiny", "grey", "sixteen bits", "huge"])
def test_a_sample_that_is_no_sample_is_refused(single: Path, tmp_path: Path, sample: str) -> None:
    pixels = {
        "tiny": np.zeros((1, 1, 3), np.uint8),
        "grey": np.zeros((64, 64), np.uint8),
        "sixteen bits": np.zeros((64, 64, 3), np.uint16),
        "huge": np.zeros((64, 5000, 3), np.uint8),
    }
    path = tmp_path / "sample.png"
    if sample == "text":
        path.write_text("no picture")
    else:
        write_picture(path, pixels[sample])
    source = dataclasses.replace(sources.from_bundle(read_bundle(single)), sample=path.read_bytes())
    with pytest.raises(BundleError, match="the bundle's sample is .*export the bundle anew"):
        source.pixels()


def test_every_weight_is_in_the_specification(network: Network) -> None:
    """docs/bundle.md names them with letters for numbers, as in backbone.block<b>.unit.conv<i>.weight."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "bundle.md").read_text()
    named = {re.sub(r"<\w+>", "#", name) for name in re.findall(r"`((?:backbone|<head>)\.[\w.<>]+)`", text)}
    weights = {
        re.sub(r"(?<=\D)\d+", "#", re.sub(r"^(classifier|upsampler_\d+)\.", "#.", name))
        for name in sources.rewrite(network)
    }
    assert weights <= named
