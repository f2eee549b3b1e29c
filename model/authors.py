"""The authors' `.pth` files: reading one without trusting it, and what its configuration means to us.

Layout (torch.save of nested dictionaries): {"model": {"name", "args", "sd"}, "optimizer", "lr_scheduler",
"iter"}; "name" is pcsr-phase0, pcsr-phase1, or a backbone's name for a dense network.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcsr.model.network import BACKBONES, NetworkSpec
from pcsr.runtime.errors import CheckpointError

__all__ = ["authors_spec", "backbone_arguments", "load_authors"]

# A checkpoint of a network at this toolkit's parameter limit, with both of Adam's moments, stays below.
MAX_INFLATED_BYTES = 1 << 30
# The authors' pickles have 50 to 200 kB; the records of the tensors lie beside them.
MAX_PICKLE_BYTES = 4 << 20
MAX_MEMBERS = 10_000
# Deflate cannot expand further than about 1032 to 1; a header that says more lies.
MAX_DEFLATE_RATIO = 1040

# All that a pickle of tensors needs to name. PyTorch's own list for weights_only is longer and has entries
# that take memory on request (bytearray).
_ALLOWED_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(
        f"torch {kind}Storage"
        for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char")
    ),
    *(f"torch {kind}Storage" for kind in ("Byte", "Bool")),
}

_PHASES = {
    "pcsr-phase0": ("encoder_spec", "heavy_sampler_spec"),
    "pcsr-phase1": ("encoder_spec", "light_sampler_spec", "heavy_sampler_spec", "classifier_spec"),
}


def load_authors(path: Path) -> tuple[str, Mapping[str, Any], dict[str, Tensor]]:
    """Read name, arguments and state dictionary of the model in one of the authors' files.

    Returns:
        The model's name, its configuration, and its tensors on the CPU as they are stored.

    Raises:
        CheckpointError: the file is not PyTorch's zip form, damaged, larger than the limits of this file,
            asks for anything but tensors in plain containers, or has another layout.
    """
    content = _read_zip(path)
    try:
        top = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch lets anything out that a malformed pickle provokes
        # What PyTorch says about a pickle it refuses includes the advice to load it unsafely.
        refused = isinstance(error, pickle.UnpicklingError)
        reason = "its pickle is malformed" if refused else str(error).strip().partition("\n")[0][:200]
        raise CheckpointError(f"{path} is damaged: PyTorch cannot load it ({reason})") from error
    model = top.get("model") if isinstance(top, dict) else None
    if not isinstance(model, dict) or not {"name", "args", "sd"} <= set(model):
        raise CheckpointError(
            f"{path} has no model with name, args and sd, the layout of the PCSR authors' checkpoints; "
            "a bare state dictionary does not say which network it belongs to"
        )
    name, args, tensors = model["name"], model["args"], model["sd"]
    if not isinstance(name, str) or not isinstance(args, dict) or not isinstance(tensors, dict):
        raise CheckpointError(f"{path}: the model's name, args or sd has the wrong type; the file is damaged")
    for key, tensor in tensors.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise CheckpointError(f"{path}: entry {str(key)[:80]!r} of the model's sd is not a plain tensor")
    return name, args, dict(tensors)


def authors_spec(name: str, args: Mapping[str, Any]) -> NetworkSpec:
    """Translate the authors' configuration of a PCSR network.

    The normalisation is not in the file: it follows from the backbone (`AUTHORS_MEAN`).

    Raises:
        CheckpointError: a dense network, an unknown name, or a configuration that PCSR does not know.
        OptionError: sizes out of the limits of `NetworkSpec`.
    """
    if name in BACKBONES:
        raise CheckpointError(
            f"this is the dense {name} network, not PCSR; give the authors' {name}-pcsr checkpoint"
        )
    if name not in _PHASES:
        raise CheckpointError(f"unknown model {name[:80]!r}; known are {' and '.join(_PHASES)}")
    parts = _PHASES[name]
    if set(args) != set(parts):
        raise CheckpointError(
            f"{name} is made of {', '.join(parts)}, the file has {', '.join(sorted(map(str, args)))[:200]}; "
            "its phase and its parts contradict each other"
        )
    encoder, encoder_args = _part(args, "encoder_spec", None)
    if encoder not in BACKBONES:
        raise CheckpointError(f"unknown backbone {encoder[:80]!r}; known are {', '.join(BACKBONES)}")
    if encoder_args.get("no_upsampling") is not True:
        raise CheckpointError("encoder_spec lacks no_upsampling: true, so its network is not a PCSR backbone")
    width, options = backbone_arguments(encoder, encoder_args)
    phase0 = name == "pcsr-phase0"
    samplers = ("heavy_sampler_spec",) if phase0 else ("light_sampler_spec", "heavy_sampler_spec")
    return NetworkSpec(
        backbone=encoder,
        width=width,
        options=options,
        upsamplers=tuple(_mlp_hidden(args, sampler) for sampler in samplers),
        classifier=None if phase0 else _mlp_hidden(args, "classifier_spec"),
        mean=BACKBONES[encoder].AUTHORS_MEAN,
    )


def backbone_arguments(backbone: str, args: Mapping[str, Any]) -> tuple[int, tuple[tuple[str, int], ...]]:
    """Width and options of a backbone from the authors' arguments.

    Raises:
        CheckpointError: an argument that the backbone does not know, or pictures without three channels.
    """
    kind = BACKBONES[backbone]
    ours: dict[str, int] = {"width": kind.AUTHORS_WIDTH}
    for key, value in args.items():
        if key in kind.AUTHORS_ARGS:
            ours[kind.AUTHORS_ARGS[key]] = value
        elif key in ("in_nc", "out_nc", "input_channels"):
            if type(value) is not int or value != 3:
                raise CheckpointError(f"{key} of the backbone is not 3; only RGB pictures are supported")
        elif key not in ("scale", "upscale", "no_upsampling"):  # the tail's business, and there is none here
            raise CheckpointError(f"backbone {backbone} has no argument {str(key)[:80]!r}")
    return ours.pop("width"), tuple(ours.items())


def _part(args: Mapping[str, Any], key: str, name: str | None) -> tuple[str, Mapping[str, Any]]:
    """Name and arguments of a nested {"name", "args"}; the name must be `name`, if one is given."""
    part = args.get(key)
    if (
        not isinstance(part, dict)
        or not isinstance(part.get("name"), str)
        or not isinstance(part.get("args"), dict)
    ):
        raise CheckpointError(f"{key} must have a name and args; the file is damaged or from another program")
    if name is not None and part["name"] != name:
        raise CheckpointError(f"{key} is {part['name'][:80]!r}; PCSR has {name!r} there")
    return part["name"], part["args"]


def _mlp_hidden(args: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Hidden sizes of a sampler or the classifier."""
    _, sampler = _part(args, key, "liif-sampler")
    _, mlp = _part(sampler, "imnet_spec", "mlp")
    hidden = mlp.get("hidden_list")
    if (
        not isinstance(hidden, list)
        or set(mlp) - {"hidden_list", "residual"}
        or mlp.get("residual", False) is not False
    ):
        raise CheckpointError(f"{key} must be a plain MLP with a hidden_list and no residual connection")
    return tuple(hidden)


def _read_zip(path: Path) -> io.BytesIO:
    """Read a zip file of PyTorch's and return one with the same members, uncompressed, that hides nothing.

    Repacking costs a copy, and settles that what was examined is what PyTorch reads: two zip readers can
    disagree about a malicious file.
    """
    try:
        if not path.is_file():
            raise CheckpointError(
                f"{path} is {'not a file' if path.exists() else 'missing'}; give a checkpoint file"
            )
        size = path.stat().st_size
        with path.open("rb") as file:
            magic = file.read(4)
            if magic != b"PK\x03\x04":
                raise CheckpointError(f"{path} {_not_zip(magic)}")
            with zipfile.ZipFile(file) as archive:
                _check_members(path, archive.infolist(), size)
                return _repack(path, archive)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged or truncated ({error}); copy or save it again") from error


def _not_zip(magic: bytes) -> str:
    if not magic:
        return "is empty; give a checkpoint file"
    if magic[:1] == b"\x80":
        return (
            "is a bare pickle (PyTorch before 1.6, or not PyTorch), which cannot be read safely; load it "
            "where you trust it and write it with torch.save of a newer PyTorch"
        )
    return "is neither a .pth checkpoint (a zip file) nor .safetensors"


def _check_members(path: Path, members: list[zipfile.ZipInfo], size: int) -> None:
    """Hold what the zip's directory says against the bytes that are there, before anything is inflated."""
    if len(members) > MAX_MEMBERS:
        raise CheckpointError(f"{path} has {len(members)} members; the limit is {MAX_MEMBERS}")
    inflated = sum(member.file_size for member in members)
    if inflated > MAX_INFLATED_BYTES:
        raise CheckpointError(f"{path} would inflate to {inflated} bytes; the limit is {MAX_INFLATED_BYTES}")
    if sum(member.compress_size for member in members) > size:
        raise CheckpointError(
            f"{path} has members larger than the file or lying over each other; it is no checkpoint"
        )
    names = set()
    for member in members:
        stored = member.compress_type == zipfile.ZIP_STORED
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
            raise CheckpointError(
                f"{path}: {member.filename[:80]!r} is encrypted or compressed in a foreign way"
            )
        if member.file_size > member.compress_size * (1 if stored else MAX_DEFLATE_RATIO):
            raise CheckpointError(f"{path}: {member.filename[:80]!r} claims more bytes than it can hold")
        if member.filename in names:
            raise CheckpointError(f"{path} has {member.filename[:80]!r} twice; it is no checkpoint")
        names.add(member.filename)
        if member.filename.endswith(".pkl") and member.file_size > MAX_PICKLE_BYTES:
            raise CheckpointError(
                f"{path}: {member.filename[:80]!r} has {member.file_size} bytes; "
                f"the limit is {MAX_PICKLE_BYTES}"
            )


def _repack(path: Path, archive: zipfile.ZipFile) -> io.BytesIO:
    content = io.BytesIO()
    found = False
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as copy:
        for member in archive.infolist():
            record = archive.read(member)
            if member.filename.endswith("/data.pkl"):
                _check_pickle(path, record)
                found = True
            copy.writestr(member.filename, record)
    if not found:
        raise CheckpointError(
            f"{path} is a zip file without data.pkl, so not from torch.save; give a checkpoint"
        )
    content.seek(0)
    return content


def _check_pickle(path: Path, record: bytes) -> None:
    """Refuse a pickle that names anything but tensors and plain containers; nothing of it is executed."""
    for opcode, argument, _ in pickletools.genops(record):
        if opcode.name == "GLOBAL" and argument in _ALLOWED_GLOBALS:
            continue
        if opcode.name in (
            "GLOBAL",
            "INST",
            "STACK_GLOBAL",
            "OBJ",
            "NEWOBJ",
            "NEWOBJ_EX",
            "EXT1",
            "EXT2",
            "EXT4",
        ):
            what = str(argument).replace(" ", ".")[:80] if argument else "a Python object"
            raise CheckpointError(
                f"{path} asks for {what}, which no checkpoint of weights needs; nothing of it was executed. "
                "Do not load it elsewhere unless you trust its source"
            )
