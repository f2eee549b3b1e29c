"""The export as a whole: what it writes, what it keeps, when it refuses."""

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import skimage.data
import torch

from pcsr.export import pipeline, sources
from pcsr.export.pipeline import Outcome, export_bundle
from pcsr.model.checkpoint import checkpoint_sha256, save_checkpoint
from pcsr.model.network import Network
from pcsr.model.reference import upscale
from pcsr.runtime import Upscaler
from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.errors import BackendError, BundleError, CheckError, CheckpointError, OptionError

Make = Callable[..., Network]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by relative name, hidden ones too, lock files apart."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def both(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with both precisions."""
    return export_bundle(checkpoint, tmp_path_factory.mktemp("both") / "bundle").bundle.path


@pytest.fixture(scope="module")
def single(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with fp32 only."""
    target = tmp_path_factory.mktemp("single") / "bundle"
    return export_bundle(checkpoint, target, precisions=["fp32"]).bundle.path


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Records each precision that is built: True for half."""
    calls: list[bool] = []
    build = pipeline.build_graphs

    def recorded(*arguments: object, half: bool) -> dict[str, onnx.ModelProto]:
        calls.append(half)
        return build(*arguments, half=half)

    monkeypatch.setattr(pipeline, "build_graphs", recorded)
    return calls


def copy(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "copy")


# --- a new bundle


def test_every_form_of_network_runs_as_pytorch_says(network: Network, tmp_path: Path) -> None:
    save_checkpoint(network, tmp_path / "checkpoint.safetensors")
    outcome = export_bundle(tmp_path / "checkpoint.safetensors", tmp_path / "bundle")
    assert outcome.written == ("fp32", "fp16")
    assert outcome.errors["fp32"] < 5e-6
    assert outcome.errors["fp16"] < 1e-2
    photo = skimage.data.coffee()[100:120, 200:231].astype(np.float32) / np.float32(255)
    with Upscaler.open(tmp_path / "bundle", threads=1) as up:
        result = up(photo, scale=2.5)
    expected = upscale(network, photo, scale=2.5)
    same = result.class_map == expected.class_map
    assert same.mean() > 0.999
    assert np.abs(result.image - expected.image)[same].max() < 2e-5


def test_the_same_checkpoint_gives_the_same_bytes(checkpoint: Path, both: Path, tmp_path: Path) -> None:
    again = export_bundle(checkpoint, tmp_path / "elsewhere" / "another name")
    assert tree(again.bundle.path) == tree(both)
    again = export_bundle(checkpoint, tmp_path / "one by one", precisions=["fp16"])
    again = export_bundle(checkpoint, tmp_path / "one by one", precisions=["fp32"])
    assert tree(again.bundle.path) == tree(both)


def test_the_number_of_threads_changes_no_byte(checkpoint: Path, both: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert tree(export_bundle(checkpoint, tmp_path / "bundle").bundle.path) == tree(both)
    finally:
        torch.set_num_threads(before)


def test_the_provenance_says_from_what_and_with_what(checkpoint: Path, both: Path) -> None:
    provenance = read_bundle(both).manifest.provenance
    assert provenance["checkpoint_sha256"] == checkpoint_sha256(checkpoint)
    assert set(provenance) == {"checkpoint_sha256", "pcsr", "torch", "onnx", "numpy"}
    assert provenance["torch"] == torch.__version__


def test_a_date_is_recorded_only_when_given(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, both: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    bundle = export_bundle(checkpoint, tmp_path / "dated").bundle
    assert bundle.manifest.provenance["source_date_epoch"] == "1700000000"
    without = {name: content for name, content in tree(both).items() if name != "manifest.json"}
    assert without.items() < tree(bundle.path).items()


@pytest.mark.parametrize("epoch", ["yesterday", "", "-5", "1.5"])
def test_a_date_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, tmp_path: Path, epoch: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    with pytest.raises(OptionError, match="SOURCE_DATE_EPOCH"):
        export_bundle(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_manifest_says_what_the_network_is(make: Make, tmp_path: Path) -> None:
    network = make("carn with two groups")
    save_checkpoint(network, tmp_path / "checkpoint.safetensors")
    manifest = export_bundle(tmp_path / "checkpoint.safetensors", tmp_path / "bundle").bundle.manifest
    assert manifest.network.options == {"groups": 2}
    assert (manifest.network.width, manifest.network.upsamplers) == (34, ((5,), (9,)))
    assert (manifest.halo, manifest.classes, manifest.table_channels) == (19, 2, (4, 5, 9))
    assert manifest.cost.flops.upsamplers == tuple(2 * n for n in (38 * 5 + 5 * 3, 38 * 9 + 9 * 3))
    assert manifest.cost.macs.upsamplers == (15, 27)


# --- an existing bundle


def test_a_second_export_has_nothing_to_do(
    checkpoint: Path, both: Path, tmp_path: Path, built: list[bool]
) -> None:
    target = copy(both, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    for source in (checkpoint, target):
        outcome = export_bundle(source, target)
        assert (outcome.written, outcome.kept, outcome.errors) == ((), ("fp32", "fp16"), {})
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == times
    assert built == []


def test_nothing_to_do_still_sweeps(checkpoint: Path, both: Path, tmp_path: Path) -> None:
    target = copy(both, tmp_path)
    (target / "graphs" / "fp32" / "backbone-0123456789ab.onnx").write_bytes(b"of a killed export")
    export_bundle(checkpoint, target)
    assert tree(target) == tree(both)


@pytest.mark.parametrize("from_itself", [False, True])
def test_a_precision_is_added_and_the_rest_kept_byte_for_byte(
    checkpoint: Path, single: Path, both: Path, tmp_path: Path, built: list[bool], *, from_itself: bool
) -> None:
    target = copy(single, tmp_path)
    times = {path: path.stat().st_mtime_ns for path in target.rglob("*.onnx")}
    outcome = export_bundle(target if from_itself else checkpoint, target)
    assert (outcome.written, outcome.kept) == (("fp16",), ("fp32",))
    assert 0 < outcome.errors["fp16"] < 1e-2
    assert outcome.largest_half is not None
    assert tree(target) == tree(both)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert built == [True]


def test_float32_is_added_to_a_bundle_that_has_only_half(
    checkpoint: Path, both: Path, tmp_path: Path
) -> None:
    target = tmp_path / "bundle"
    export_bundle(checkpoint, target, precisions=["fp16"])
    outcome = export_bundle(target, target)
    assert outcome.written == ("fp32",)
    # Compared with half precision, so no nearer than that.
    assert 0 < outcome.errors["fp32"] < 1e-2
    assert tree(target) == tree(both)


def test_a_bundle_is_copied_without_building(
    both: Path, single: Path, tmp_path: Path, built: list[bool]
) -> None:
    outcome = export_bundle(both, tmp_path / "bundle")
    assert (outcome.written, outcome.errors, outcome.largest_half) == (("fp32", "fp16"), {}, None)
    assert tree(tmp_path / "bundle") == tree(both)
    export_bundle(both, tmp_path / "small", precisions=["fp32"])
    assert tree(tmp_path / "small") == tree(single)
    assert built == []


def test_a_bundle_that_lacks_half_gives_one_that_has_both(
    single: Path, both: Path, tmp_path: Path, built: list[bool]
) -> None:
    export_bundle(single, tmp_path / "bundle")
    assert tree(tmp_path / "bundle") == tree(both)
    assert built == [True]


def test_one_bundle_has_one_set_of_weights_whatever_the_tools(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, single: Path, both: Path, tmp_path: Path
) -> None:
    """Versions of NumPy or PyTorch that round a weight otherwise must not mix two roundings in a bundle."""
    rewrite = sources.rewrite

    def rounded_otherwise(network: Network) -> dict[str, np.ndarray]:
        return {name: np.nextafter(values, np.float32(9)) for name, values in rewrite(network).items()}

    monkeypatch.setattr(sources, "rewrite", rounded_otherwise)
    target = copy(single, tmp_path)
    export_bundle(checkpoint, target)
    assert tree(target) == tree(both)
    other = export_bundle(checkpoint, tmp_path / "other").bundle
    assert tree(other.path) != tree(both)
    # Graphs of the other rounding are not copied into this bundle either.
    target = shutil.copytree(single, tmp_path / "third")
    export_bundle(other.path, target)
    assert tree(target) == tree(both)


def test_another_checkpoint_needs_force_and_replaces_everything(
    checkpoint: Path, other_checkpoint: Path, both: Path, tmp_path: Path
) -> None:
    target = copy(both, tmp_path)
    for source in (other_checkpoint, export_bundle(other_checkpoint, tmp_path / "other").bundle.path):
        with pytest.raises(
            BundleError, match="was made from another checkpoint; give --force to replace all"
        ):
            export_bundle(source, target)
        assert tree(target) == tree(both)
    outcome = export_bundle(other_checkpoint, target, force=True, precisions=["fp32"])
    assert (outcome.written, outcome.kept) == (("fp32",), ())
    assert tree(target) == tree(
        export_bundle(other_checkpoint, tmp_path / "b", precisions=["fp32"]).bundle.path
    )


@pytest.mark.parametrize("damage", ["graph", "weights", "sample", "manifest", "version"])
def test_a_damaged_bundle_needs_force_and_is_made_anew(
    checkpoint: Path, both: Path, tmp_path: Path, damage: str
) -> None:
    target = copy(both, tmp_path)
    manifest = read_bundle(target).manifest
    match damage:
        case "graph":
            (target / manifest.graphs["fp16"]["classifier"].path).unlink()
        case "weights":
            (target / manifest.weights.path).write_bytes(b"x")
        case "sample":
            (target / manifest.sample.path).write_bytes(b"x")
        case "manifest":
            content = (target / "manifest.json").read_bytes()
            (target / "manifest.json").write_bytes(content[: len(content) // 2])
        case "version":
            content = (target / "manifest.json").read_text()
            (target / "manifest.json").write_text(content.replace('"version": 1', '"version": 2'))
    before = tree(target)
    with pytest.raises(BundleError, match="is damaged .*; give --force to replace all of it"):
        export_bundle(checkpoint, target)
    with pytest.raises(BundleError, match="export the bundle"):
        export_bundle(target, target, precisions=["fp32"], force=True)
    assert tree(target) == before
    export_bundle(checkpoint, target, force=True)
    assert tree(target) == tree(both)


# --- odd sources and targets


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


@pytest.mark.parametrize("precisions", [[], ["int8"], ["fp32", "FP16"], [""]])
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


@pytest.mark.parametrize("sample", ["text", "tiny", "grey", "sixteen bits", "huge"])
def test_a_sample_that_is_no_sample_is_refused(single: Path, tmp_path: Path, sample: str) -> None:
    from pcsr.runtime.pictures import write_picture

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


def test_every_weight_is_in_the_specification(network: Network, tmp_path: Path) -> None:
    """docs/bundle.md names them with numbers as letters: backbone.block<b>.unit.conv<i>.weight."""
    import re

    text = (Path(__file__).resolve().parents[2] / "docs" / "bundle.md").read_text()
    named = {re.sub(r"<\w+>", "#", name) for name in re.findall(r"`((?:backbone|<head>)\.[\w.<>]+)`", text)}
    weights = {
        re.sub(r"(?<=\D)\d+", "#", re.sub(r"^(classifier|upsampler_\d+)\.", "#.", name))
        for name in sources.rewrite(network)
    }
    assert weights <= named
    assert json.loads(json.dumps(sorted(named)))
