"""The export as a whole: what it writes, what it keeps, when it refuses."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import skimage.data
import torch

from pcsr.export import pipeline, sources
from pcsr.export.pipeline import export_bundle
from pcsr.model.checkpoint import checkpoint_sha256, save_checkpoint
from pcsr.model.network import Network
from pcsr.model.reference import upscale
from pcsr.runtime import Upscaler
from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.errors import BundleError, OptionError

Make = Callable[..., Network]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by relative name, hidden ones too, lock files apart."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


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
