"""Checkpoints that are as they should be."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from pcsr.model.checkpoint import checkpoint_sha256, load_checkpoint, save_checkpoint
from pcsr.model.network import Network, NetworkSpec, build
from pcsr.runtime.errors import CheckpointError, OptionError

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "golden"

AuthorsFile = Callable[[Callable[[dict[str, Any]], object]], Path]


def assert_same(network: Network, other: Network) -> None:
    assert network.spec == other.spec
    ours, theirs = network.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_published_checkpoints_load_with_their_specs(official: Path) -> None:
    carn = load_checkpoint(official / "carn-pcsr.pth")
    assert carn.spec == NetworkSpec(
        "carn", 52, ((20,) * 3, (74,) * 4), (10, 10), mean=(0.4488, 0.4371, 0.4040), options=(("groups", 4),)
    )
    assert carn.halo == 19
    fsrcnn = load_checkpoint(official / "fsrcnn-pcsr.pth")
    assert fsrcnn.spec == NetworkSpec("fsrcnn", 48, ((10,) * 3, (58,) * 4), ())
    assert not carn.training


def test_a_deflated_checkpoint_loads() -> None:
    path = GOLDEN / "srresnet-pcsr-random.pth"
    with zipfile.ZipFile(path) as archive:
        assert any(member.compress_type == zipfile.ZIP_DEFLATED for member in archive.infolist())
    assert load_checkpoint(path).spec == NetworkSpec("srresnet", 58, ((40,) * 3, (170,) * 4), (20, 20))


def test_the_authors_form_gives_the_network_that_was_saved(
    small_network: Network, authors_file: AuthorsFile
) -> None:
    assert_same(load_checkpoint(authors_file(lambda model: None)), small_network)


def test_a_heavy_only_checkpoint_is_refused_where_a_complete_one_is_needed() -> None:
    path = GOLDEN / "carn-pcsr-phase0-random.pth"
    with pytest.raises(CheckpointError, match=r"phase 0.*give the checkpoint of phase 1"):
        load_checkpoint(path)
    network = load_checkpoint(path, complete=False)
    assert network.classifier is None
    assert network.spec.upsamplers == ((74,) * 4,)


def test_safetensors_bring_back_the_same_network(tmp_path: Path) -> None:
    specs = [
        NetworkSpec("carn", 8, ((4,), (6, 6), (9,)), (5,), mean=(0.4, 0.3, 0.2), std=(0.9, 1.0, 1.1)),
        NetworkSpec("srresnet", 4, ((4,),), None, options=(("nb", 2),)),
    ]
    for index, spec in enumerate(specs):
        network = build(spec)
        save_checkpoint(network, tmp_path / f"{index}.safetensors")
        assert_same(load_checkpoint(tmp_path / f"{index}.safetensors", complete=False), network)
    with pytest.raises(CheckpointError, match="phase 0"):
        load_checkpoint(tmp_path / "1.safetensors")


def test_the_content_decides_and_not_the_name(small_network: Network, tmp_path: Path) -> None:
    save_checkpoint(small_network, tmp_path / "misnamed.pth")
    assert_same(load_checkpoint(tmp_path / "misnamed.pth"), small_network)


def test_the_same_network_gives_the_same_bytes(small_network: Network, tmp_path: Path) -> None:
    metadata = {"licence": "CC0-1.0", "trained": "elsewhere", "more": "é"}
    hashes = set()
    for index in range(8):
        save_checkpoint(small_network, tmp_path / f"{index}", metadata=metadata)
        hashes.add(checkpoint_sha256(tmp_path / f"{index}"))
    assert len(hashes) == 1
    with safetensors.safe_open(tmp_path / "0", framework="pt") as file:
        assert file.metadata() == metadata | {"pcsr": small_network.spec.to_json()}


def test_saving_leaves_nothing_but_the_file_and_replaces_what_was_there(
    small_network: Network, tmp_path: Path
) -> None:
    path = tmp_path / "network.safetensors"
    path.write_text("before")
    save_checkpoint(small_network, path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    load_checkpoint(path)


def test_a_failed_save_leaves_the_old_file_alone(
    small_network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "network.safetensors"
    path.write_text("before")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(CheckpointError, match=r"cannot write .*No space left"):
        save_checkpoint(small_network, path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "before"


def test_saving_into_a_missing_folder_says_so(small_network: Network, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot write .*No such file"):
        save_checkpoint(small_network, tmp_path / "missing" / "network.safetensors")


def test_metadata_cannot_replace_the_spec(small_network: Network, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match='"pcsr" belongs to the network spec'):
        save_checkpoint(small_network, tmp_path / "x", metadata={"pcsr": "{}"})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_become_float32(
    small_network: Network, authors_file: AuthorsFile, tmp_path: Path, dtype: torch.dtype
) -> None:
    expected = {name: tensor.to(dtype).float() for name, tensor in small_network.state_dict().items()}

    def convert(model: dict[str, Any]) -> None:
        model["sd"] = {name: tensor.to(dtype) for name, tensor in model["sd"].items()}

    ours = tmp_path / "ours.safetensors"
    save_checkpoint(small_network.to(dtype), ours)
    for path in (authors_file(convert), ours):
        loaded = load_checkpoint(path).state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert checkpoint_sha256(tmp_path / "empty").startswith("e3b0c44298fc1c149afbf4c8996fb924")
    with pytest.raises(CheckpointError, match="cannot read"):
        checkpoint_sha256(tmp_path / "missing")


def test_the_sha256_of_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="cannot read .*not a regular file"):
        checkpoint_sha256(tmp_path / "pipe")
