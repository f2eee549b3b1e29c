"""A bundle comes from outside: whatever its manifest and files say, a reader refuses it by name or uses it."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import safetensors.numpy

from pcsr.runtime import Upscaler
from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.errors import BundleError
from pcsr.runtime.manifest import FILE_LIMIT

ROOT = Path(__file__).resolve().parents[2]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json.loads((ROOT / "docs" / "bundle.schema.json").read_text())


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(small_bundle, tmp_path / "bundle")


def manifest_of(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "manifest.json").read_text())


def refusal(bundle: Path) -> str:
    """The message with which reading the manifest is refused: one line that says where and what to do."""
    with pytest.raises(BundleError) as caught:
        read_bundle(bundle)
    message = str(caught.value)
    assert message.startswith(str(bundle / "manifest.json"))
    assert re.search("export the bundle|made by pcsr-export|make one with", message)
    assert len(message) < 500 + len(str(bundle))
    assert message.isprintable()
    return message


def put(*path: str | int, value: Any) -> Change:
    """A change that sets one entry of the manifest."""

    def change(manifest: dict[str, Any]) -> None:
        place: Any = manifest
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def drop(*path: str) -> Change:
    """A change that removes one entry of the manifest."""

    def change(manifest: dict[str, Any]) -> None:
        place: Any = manifest
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


FIELDS = (
    "format", "version", "network", "normalisation", "halo", "working_bytes", "cost", "weights", "sample",
    "graphs", "provenance",
)  # fmt: skip
PATHS = ("../outside", "/etc/passwd", "a/../../outside", "a\\b", "", "a//b", ".hidden", "a/./b", "x" * 201, 7)

# What both the reader and the JSON schema refuse: change, words of the message.
REFUSED_BY_TYPE: list[tuple[Change, str]] = [
    *((drop(field), "missing|pcsr bundle|version None") for field in FIELDS),
    *((put(field, value=None), "null|pcsr bundle|version None") for field in FIELDS),
    (put("format", value="other-bundle"), "not the manifest of a pcsr bundle"),
    (put("version", value=2), "version 2 and this pcsr reads version 1; upgrade"),
    (put("version", value="1"), "version 1"),
    (put("surprise", value=1), "unknown field `surprise`"),
    (put("network", "surprise", value=1), "unknown field `surprise`"),
    (put("weights", "surprise", value=1), "unknown field `surprise`"),
    (put("bell\x07" + "x" * 10_000, value=1), r"unknown field `bell\\x07xxx.*…"),
    *((put("weights", "path", value=path), r"\$.weights.path") for path in PATHS),
    (put("graphs", "fp32", "backbone", "path", value="../outside"), "regex|pattern|path"),
    *((put("sample", "bytes", value=size), r"\$.sample.bytes") for size in (0, -1, 1.5, "12", FILE_LIMIT + 1)),
    (put("sample", "sha256", value="0" * 63), r"\$.sample.sha256"),
    (put("sample", "sha256", value="A" * 64), r"\$.sample.sha256"),
    (put("halo", value=-1), r"\$.halo"),
    (put("halo", value=10**9), r"\$.halo"),
    (put("halo", value=10**40), r"\$.halo"),
    (put("working_bytes", value=0), r"\$.working_bytes"),
    (put("working_bytes", value=1 << 40), r"\$.working_bytes"),
    (put("network", "width", value=0), r"\$.network.width"),
    (put("network", "width", value=10**30), r"\$.network.width"),
    (put("network", "backbone", value=""), r"\$.network.backbone"),
    (put("network", "backbone", value="x" * 65), r"\$.network.backbone"),
    (put("network", "options", value={"m": "4"}), r"\$.network.options"),
    (put("network", "options", value={f"o{i}": 1 for i in range(17)}), r"\$.network.options"),
    (put("network", "classifier", value=[8] * 17), r"\$.network.classifier"),
    (put("network", "classifier", value=[0]), r"\$.network.classifier"),
    (put("network", "upsamplers", value=[[6]]), r"\$.network.upsamplers"),
    (put("network", "upsamplers", value=[[6]] * 17), r"\$.network.upsamplers"),
    (put("network", "upsamplers", 0, value=[5000]), r"\$.network.upsamplers"),
    (put("normalisation", "mean", value=[0.5, 0.5]), r"\$.normalisation.mean"),
    (put("normalisation", "mean", value=[0.5, 0.5, "x"]), r"\$.normalisation.mean"),
    (put("cost", "flops", "backbone", value="many"), r"\$.cost.flops.backbone"),
    (put("graphs", value={}), r"\$.graphs"),
    (put("graphs", "fp32", value=[]), r"\$.graphs"),
    (put("provenance", "pcsr", value=1), r"\$.provenance"),
]  # fmt: skip

# What types cannot say: the reader refuses it, a schema lets it pass.
REFUSED_BY_MEANING: list[tuple[Change, str]] = [
    (put("version", value=1.0), "version 1.0"),
    (put("graphs", "int4", value={}), "Invalid enum value"),
    (drop("graphs", "fp32", "upsampler_1"), r"fp32 has the graphs .*2 classes need"),
    (drop("graphs", "fp16", "backbone"), r"fp16 has the graphs .*2 classes need"),
    (lambda m: m["graphs"]["fp32"].update(extra=m["sample"]), "fp32 has the graphs"),
    (lambda m: m["network"]["upsamplers"].append([8]), "3 classes need"),
    (put("cost", "flops", "upsamplers", value=[1]), "cost.flops lists 1 upsamplers, the network has 2"),
    (put("cost", "macs", "upsamplers", value=[1, 2, 3]), "cost.macs lists 3 upsamplers, the network has 2"),
    (put("cost", "macs", "backbone", value=0), "cost.macs has an entry that no network has"),
    (put("cost", "flops", "upsamplers", 1, value=-5), "cost.flops has an entry that no network has"),
    (put("cost", "flops", "backbone", value=10**400), "cost.flops has an entry|damaged"),
    (put("normalisation", "std", value=[1.0, 0.0, 1.0]), "positive deviations"),
    (put("normalisation", "std", value=[1.0, -1.0, 1.0]), "positive deviations"),
    (drop("provenance", "checkpoint_sha256"), "no checkpoint_sha256"),
    (put("provenance", "checkpoint_sha256", value="unknown"), "no checkpoint_sha256"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED_BY_TYPE)
def test_a_broken_field_is_refused_by_reader_and_schema(
    bundle: Path, schema: dict[str, Any], change: Change, words: str
) -> None:
    manifest = manifest_of(bundle)
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert re.search(words, refusal(bundle))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, schema)


@pytest.mark.parametrize(("change", "words"), REFUSED_BY_MEANING)
def test_a_contradiction_is_refused_though_every_type_is_right(
    bundle: Path, change: Change, words: str
) -> None:
    manifest = manifest_of(bundle)
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert re.search(words, refusal(bundle))


@pytest.mark.parametrize("fixture", ["small_bundle", "three_class_bundle"])
def test_a_real_manifest_is_what_the_schema_says(
    request: pytest.FixtureRequest, schema: dict[str, Any], fixture: str
) -> None:
    path = request.getfixturevalue(fixture)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(manifest_of(path), schema)
    assert read_bundle(path).manifest.classes == len(manifest_of(path)["network"]["upsamplers"])


def test_the_committed_schema_is_what_the_reader_validates_with() -> None:
    """Write it anew with: python scripts/bundle_schema.py > docs/bundle.schema.json"""
    script = [sys.executable, ROOT / "scripts" / "bundle_schema.py"]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert printed == (ROOT / "docs" / "bundle.schema.json").read_text()


def test_the_specification_names_every_field(schema: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "bundle.md").read_text()
    fields = {name for definition in schema["$defs"].values() for name in definition["properties"]}
    assert not {name for name in fields if f"`{name}`" not in text}


# --- the manifest as a file


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b"[]", "not the manifest of a pcsr bundle"),
        (b"null", "not the manifest of a pcsr bundle"),
        (b'{"format": "pcsr-bundle"}', "version None"),
    ],
    ids=lambda value: value[:12] if isinstance(value, bytes) else None,
)
def test_a_file_that_is_no_manifest_is_refused(bundle: Path, content: bytes, words: str) -> None:
    (bundle / "manifest.json").write_bytes(content)
    assert words in refusal(bundle)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(bundle: Path, number: str) -> None:
    manifest = manifest_of(bundle)
    manifest["normalisation"]["mean"][0] = "HERE"
    text = json.dumps(manifest).replace('"HERE"', number)
    (bundle / "manifest.json").write_text(text)
    refusal(bundle)


def test_a_manifest_of_two_megabytes_is_refused_unread(bundle: Path) -> None:
    with (bundle / "manifest.json").open("ab") as file:
        file.write(b" " * (2 << 20))
    assert "larger than" in refusal(bundle)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
def test_a_manifest_that_never_ends_is_refused(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").symlink_to("/dev/zero")
    with pytest.raises(BundleError, match="not a regular file"):
        read_bundle(bundle)
    (bundle / "manifest.json").unlink()
    os.mkfifo(bundle / "manifest.json")
    with pytest.raises(BundleError, match="not a regular file"):
        read_bundle(bundle)


def test_what_is_no_bundle_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=r"none does not exist; make one with: pcsr-export CHECKPOINT -o"):
        read_bundle(tmp_path / "none")
    with pytest.raises(BundleError, match=r"file is not a folder; make one with: pcsr-export CHECKPOINT -o"):
        read_bundle(tmp_path / "file")
    with pytest.raises(BundleError, match=r"is not a bundle \(manifest.json: No such file"):
        read_bundle(tmp_path)


def test_a_missing_precision_names_the_command_that_adds_it(bundle: Path) -> None:
    manifest = manifest_of(bundle)
    del manifest["graphs"]["fp16"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="has no fp16 graphs, only fp32") as caught:
        read_bundle(bundle).graphs("fp16")
    command = shlex.split(str(caught.value).partition("add them with: ")[2])
    assert command == ["pcsr-export", str(bundle), "--precision", "fp16"]


# --- the files that it names


def weights_file(bundle: Path) -> Path:
    return bundle / manifest_of(bundle)["weights"]["path"]


def damage(bundle: Path, how: str) -> None:
    file = weights_file(bundle)
    content = file.read_bytes()
    match how:
        case "missing":
            file.unlink()
        case "longer":
            file.write_bytes(content + b"\0")
        case "shorter":
            file.write_bytes(content[:-1])
        case "flipped":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "linked out":
            file.unlink()
            (bundle.parent / "elsewhere").write_bytes(content)
            file.symlink_to("../elsewhere")
        case "linked to itself":
            file.unlink()
            file.symlink_to(file.name)
        case "a folder":
            file.unlink()
            file.mkdir()
        case "a pipe":
            file.unlink()
            os.mkfifo(file)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "cannot read .*No such file"),
        ("longer", "bytes, the manifest says"),
        ("shorter", "bytes, the manifest says"),
        ("flipped", "sha256 differs from the manifest"),
        ("linked out", "leads out of the bundle"),
        ("linked to itself", "cannot read .*Too many levels"),
        ("a folder", "cannot read .*not a regular file"),
        ("a pipe", "cannot read .*not a regular file"),
    ],
)
def test_a_file_that_is_not_what_the_manifest_says_is_refused(bundle: Path, how: str, words: str) -> None:
    damage(bundle, how)
    with pytest.raises(BundleError, match=words) as caught:
        read_bundle(bundle).weights()
    assert str(weights_file(bundle)) in str(caught.value)
    assert "export the bundle anew" in str(caught.value)


def test_a_file_linked_within_the_bundle_is_fine(bundle: Path) -> None:
    file = weights_file(bundle)
    file.rename(bundle / "moved")
    file.symlink_to("moved")
    assert read_bundle(bundle).weights()


@pytest.mark.parametrize("graph", ["backbone", "classifier", "upsampler_0", "upsampler_1"])
def test_a_changed_graph_is_refused_before_it_runs(bundle: Path, graph: str) -> None:
    file = bundle / manifest_of(bundle)["graphs"]["fp32"][graph]["path"]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    with pytest.raises(BundleError, match=f"{graph}-.*was changed or damaged"):
        Upscaler.open(bundle, backend="onnxruntime")


def replace_weights(bundle: Path, content: bytes) -> None:
    """As somebody would who writes a whole bundle: the manifest agrees with the file."""
    manifest = manifest_of(bundle)
    weights_file(bundle).write_bytes(content)
    manifest["weights"] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


BF16 = b'{"x":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'


@pytest.mark.parametrize(
    "broken",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:4],
        lambda content: (1 << 60).to_bytes(8, "little") + content[8:],
        lambda content: b"\x80\x02K\x01." * 10,
        lambda content: len(BF16).to_bytes(8, "little") + BF16 + b"\0\0",
    ],
    ids=["half", "four bytes", "header of an exabyte", "pickle", "unknown type"],
)
def test_weights_that_are_no_safetensors_are_refused(bundle: Path, broken: Callable[[bytes], bytes]) -> None:
    replace_weights(bundle, broken(weights_file(bundle).read_bytes()))
    with pytest.raises(BundleError, match=r"network-.* is no safetensors file"):
        read_bundle(bundle).weights()


@pytest.mark.parametrize("head", ["classifier", "upsampler_0", "upsampler_1"])
@pytest.mark.parametrize("how", ["missing", "longer", "matrix", "float64", "NaN"])
def test_first_layers_that_do_not_fit_are_refused(bundle: Path, head: str, how: str) -> None:
    weights = read_bundle(bundle).weights()
    name = f"{head}.first.cell_x"
    vector = weights.pop(name)
    changed = {
        "longer": np.append(vector, np.float32(0)),
        "matrix": vector[None],
        "float64": vector.astype(np.float64),
        "NaN": np.full_like(vector, np.nan),
    }
    if how in changed:
        weights[name] = changed[how]
    replace_weights(bundle, safetensors.numpy.save(weights))
    with pytest.raises(BundleError, match=f"lack {name} with {len(vector)} finite float32 values"):
        Upscaler.open(bundle)
