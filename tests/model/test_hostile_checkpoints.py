"""Checkpoints that lie, are broken, or mean harm: refused with a reason, and nothing of them executed."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pcsr.model import authors
from pcsr.model.checkpoint import load_checkpoint, save_checkpoint
from pcsr.model.network import Network, NetworkSpec, build
from pcsr.runtime.errors import CheckpointError

AuthorsFile = Callable[[Callable[[dict[str, Any]], object]], Path]


def nothing(model: dict[str, Any]) -> None:
    """Leave the file as it is."""


def repacked(path: Path, change: Callable[[str, bytes], bytes], *, method: int = zipfile.ZIP_STORED) -> Path:
    """The same zip with its records changed and their checksums right."""
    content = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(content, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    path.write_bytes(content.getvalue())
    return path


def edited(path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A .safetensors file with its header edited."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return path


@pytest.fixture
def ours(tmp_path: Path, small_network: Network) -> Path:
    path = tmp_path / "network.safetensors"
    save_checkpoint(small_network, path)
    return path


def test_a_path_without_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing; give a checkpoint file"):
        load_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="not a file"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n0000", "neither a .pth checkpoint"),
        (b"PK\x03\x04 and no more of it", "damaged or truncated"),
        (pickle.dumps({"model": 1}), "bare pickle"),
    ],
)
def test_foreign_content_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "x.pth")


def test_the_legacy_pickle_form_is_refused(tmp_path: Path, authors_content: dict[str, Any]) -> None:
    torch.save(authors_content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"bare pickle .*write it with torch\.save"):
        load_checkpoint(tmp_path / "old.pth")


class Caller:
    """Pickles as a call that leaves a trace."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_calls_something_is_refused_and_not_run(
    tmp_path: Path, authors_content: dict[str, Any], protocol: int
) -> None:
    trace = tmp_path / "trace"
    authors_content["optimizer"] = Caller(open, str(trace), "w")
    torch.save(authors_content, tmp_path / "x.pth", pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match="no checkpoint of weights needs; nothing of it was executed"):
        load_checkpoint(tmp_path / "x.pth")
    assert not trace.exists()


def test_memory_asked_for_by_a_pickle_is_not_given(tmp_path: Path, authors_content: dict[str, Any]) -> None:
    # PyTorch's own weights_only allows bytearray(n): n bytes of memory for a few bytes of file.
    authors_content["optimizer"] = Caller(bytearray, 1 << 38)
    torch.save(authors_content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"asks for .*bytearray"):
        load_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("number", [b"numel", b"size"])
def test_a_tensor_larger_than_its_record_is_refused(tmp_path: Path, number: bytes) -> None:
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(4)}, path)
    enormous = b"J" + (1 << 30).to_bytes(4, "little")
    find, replace = {
        b"numel": (b"cpuq\x06K\x04t", b"cpuq\x06" + enormous + b"t"),
        b"size": (b"K\x00K\x04\x85", b"K\x00" + enormous + b"\x85"),
    }[number]

    def enlarge(name: str, record: bytes) -> bytes:
        assert find in record or not name.endswith("data.pkl")
        return record.replace(find, replace)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="PyTorch cannot load it"):
        load_checkpoint(repacked(path, enlarge))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB, of 4 GB


def test_a_truncated_file_is_refused(authors_file: AuthorsFile, ours: Path) -> None:
    for path in (authors_file(nothing), ours):
        content = path.read_bytes()
        for part in (0.001, 0.1, 0.5, 0.9, 0.999):
            path.write_bytes(content[: int(len(content) * part)])
            with pytest.raises(CheckpointError, match=path.name):
                load_checkpoint(path)


def test_a_zip_that_inflates_beyond_the_limit_is_refused_unread(
    authors_file: AuthorsFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repacked(
        authors_file(nothing),
        lambda name, record: bytes(1 << 20) if name.endswith("/data/0") else record,
        method=zipfile.ZIP_DEFLATED,
    )
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(authors, "MAX_INFLATED_BYTES", 1 << 20)
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    with pytest.raises(CheckpointError, match=r"would inflate to .* the limit is 1048576"):
        load_checkpoint(path)


def test_a_zip_that_claims_more_than_it_can_hold_is_refused(authors_file: AuthorsFile) -> None:
    path = authors_file(nothing)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")  # the first entry of the directory: its inflated size is at 24
    content[entry + 24 : entry + 28] = (1 << 28).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="claims more bytes than it can hold"):
        load_checkpoint(path)


def test_a_zip_with_a_name_twice_is_refused(authors_file: AuthorsFile) -> None:
    path = authors_file(nothing)
    with zipfile.ZipFile(path, "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(name, b"\x80\x02}.")
    with pytest.raises(CheckpointError, match="twice"):
        load_checkpoint(path)


def test_an_oversized_pickle_is_refused(authors_file: AuthorsFile) -> None:
    def pad(name: str, record: bytes) -> bytes:
        return record + bytes(authors.MAX_PICKLE_BYTES) if name.endswith("data.pkl") else record

    with pytest.raises(CheckpointError, match="the limit is 4194304"):
        load_checkpoint(repacked(authors_file(nothing), pad))


def test_a_zip_from_elsewhere_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("holiday/photo.txt", "sun")
    with pytest.raises(CheckpointError, match=r"without data\.pkl"):
        load_checkpoint(tmp_path / "x.zip")


def first(model: dict[str, Any]) -> str:
    return next(iter(model["sd"]))


def replace_first(model: dict[str, Any], change: Callable[[torch.Tensor], object]) -> None:
    name = first(model)
    model["sd"][name] = change(model["sd"][name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("sd"), "no model with name, args and sd"),
        (lambda m: m.update(sd=[1]), "wrong type"),
        (lambda m: m.update(name=7), "wrong type"),
        (lambda m: m["sd"].pop(first(m)), "lacks 1 of the network's"),
        (lambda m: m["sd"].clear(), "lacks 26 of the network's 26"),
        (lambda m: m["sd"].update(surplus=torch.ones(1)), "surplus 1 of the network's .* 'surplus'"),
        (lambda m: m["sd"].update({"backbone.x": torch.ones(1)}), "surplus"),
        (lambda m: replace_first(m, lambda t: t[:4]), r"has the shape \(4, .*the network needs \(8,"),
        (lambda m: replace_first(m, lambda t: t.to(torch.int32)), "floating-point type"),
        (lambda m: replace_first(m, lambda t: t.fill_(float("nan"))), "NaN or infinity"),
        (lambda m: replace_first(m, lambda t: t.double() * 1e300), "NaN or infinity"),
        (lambda m: replace_first(m, lambda t: "text"), "not a plain tensor"),
        (lambda m: m.update(name="pcsr-phase7"), "unknown model 'pcsr-phase7'"),
        (lambda m: m.update(name="carn"), "dense carn network, not PCSR; give .*carn-pcsr"),
        (lambda m: m.update(name="pcsr-phase0"), "its phase and its parts contradict"),
        (lambda m: m["args"].pop("classifier_spec"), "its phase and its parts contradict"),
        (lambda m: m["args"]["encoder_spec"].update(name="vgg"), "unknown backbone 'vgg'"),
        (lambda m: m["args"]["encoder_spec"].update(args=None), "encoder_spec must have a name and args"),
        (lambda m: m["args"]["encoder_spec"]["args"].update(d=10**9), "width is 1000000000"),
        (lambda m: m["args"]["encoder_spec"]["args"].update(d=10**30), "width is int"),
        (lambda m: m["args"]["encoder_spec"]["args"].update(d=10**5000), "its pickle is malformed"),
        (lambda m: m["args"]["encoder_spec"]["args"].update(d=-1), "width is -1"),
        (lambda m: m["args"]["encoder_spec"]["args"].update(d=torch.ones(3)), "width is Tensor"),
        (lambda m: m["args"]["encoder_spec"]["args"].update(out_nc=1), "out_nc .*only RGB"),
        (lambda m: m["args"]["encoder_spec"]["args"].update(depth=1), "no argument 'depth'"),
        (lambda m: m["args"]["encoder_spec"]["args"].update(no_upsampling=False), "no_upsampling"),
        (lambda m: m["args"]["classifier_spec"].update(name="conv"), "classifier_spec is 'conv'"),
        (
            lambda m: m["args"]["classifier_spec"]["args"]["imnet_spec"]["args"].update(residual=True),
            "no residual connection",
        ),
        (
            lambda m: m["args"]["heavy_sampler_spec"]["args"]["imnet_spec"]["args"].update(
                hidden_list=[4096] * 16
            ),
            "parameters; the limit is",
        ),
    ],
)
def test_an_authors_file_with_a_flaw_is_refused(
    authors_file: AuthorsFile, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = authors_file(change)
    with pytest.raises(CheckpointError, match=f"{path}.*{message}"):
        load_checkpoint(path)


def test_a_bare_state_dictionary_is_refused(tmp_path: Path, small_network: Network) -> None:
    torch.save(small_network.state_dict(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="a bare state dictionary does not say"):
        load_checkpoint(tmp_path / "x.pth")


def test_a_tensor_that_repeats_one_number_takes_no_more_than_its_network(
    authors_file: AuthorsFile,
) -> None:
    with pytest.raises(CheckpointError, match="has the shape"):
        load_checkpoint(authors_file(lambda m: replace_first(m, lambda t: torch.ones(1).expand(1 << 40))))


def test_a_negative_variance_is_refused(tmp_path: Path) -> None:
    network = build(NetworkSpec("carn", 8, ((4,), (4,)), ()))
    network.get_buffer("backbone.c1.1.running_var")[0] = -1
    save_checkpoint(network, tmp_path / "x")
    with pytest.raises(CheckpointError, match="negative variance"):
        load_checkpoint(tmp_path / "x")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda h: h.pop("__metadata__"), 'no "pcsr" entry'),
        (lambda h: h["__metadata__"].update(pcsr="{}"), "exactly the keys"),
        (lambda h: h["__metadata__"].update(pcsr=h["__metadata__"]["pcsr"].replace("8", "9")), "needs"),
        (
            lambda h: h["__metadata__"].update(
                pcsr='{"backbone": "srresnet", "classifier": [], "mean": [0, 0, 0], "options": {"nb": 256}, '
                '"std": [1, 1, 1], "upsamplers": [[], []], "width": 1024}'
            ),
            "parameters; the limit is",
        ),
        (lambda h: h["classifier.layers.0.bias"].update(dtype="I32"), "has the type I32"),
        (lambda h: h["classifier.layers.0.bias"].update(shape=[5, 1]), "has the shape"),
        (lambda h: h["classifier.layers.0.bias"].update(shape=[1 << 60]), "damaged"),
        (lambda h: h.update(surplus=h.pop("classifier.layers.0.bias")), "lacks 1"),
    ],
)
def test_a_safetensors_file_with_a_flaw_is_refused(
    ours: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=f"{ours}.*{message}"):
        load_checkpoint(edited(ours, edit))


def test_a_safetensors_header_larger_than_the_limit_is_refused_unread(ours: Path) -> None:
    content = ours.read_bytes()
    ours.write_bytes((50 << 20).to_bytes(8, "little") + content[8:])
    with pytest.raises(CheckpointError, match="header of 52428800 bytes"):
        load_checkpoint(ours)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="is no PCSR checkpoint"):
        load_checkpoint(tmp_path / "x")


def test_the_dense_network_is_recognised(official: Path) -> None:
    with pytest.raises(CheckpointError, match="dense carn network, not PCSR"):
        load_checkpoint(official / "carn-x4.pth")


# pickletools and PyTorch warn about some malformed strings before they refuse them.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["pth", "pickle", "safetensors"])
def test_random_damage_is_refused_or_harmless(authors_file: AuthorsFile, ours: Path, kind: str) -> None:
    source = ours if kind == "safetensors" else authors_file(nothing)
    content = source.read_bytes()
    generator = random.Random(kind)

    def damaged(record: bytes) -> bytes:
        changed = bytearray(record)
        for _ in range(generator.choice((1, 1, 3))):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        return bytes(changed)

    for _ in range(300):
        if kind == "pickle":
            source.write_bytes(content)
            repacked(source, lambda name, record: damaged(record) if name.endswith("data.pkl") else record)
        else:
            source.write_bytes(damaged(content[:1500]) + content[1500:])
        # Nothing but CheckpointError may come out; damage to what is not read, or to a weight, is no error.
        with contextlib.suppress(CheckpointError):
            network = load_checkpoint(source)
            assert all(torch.isfinite(tensor).all() for tensor in network.state_dict().values())
