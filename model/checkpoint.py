"""Checkpoints in and out: the authors' nested `.pth` files and our `.safetensors`, both taken as hostile.

A file is examined before it is believed. What a `.pth` asks Python to call is read from its pickle without
running it, and every size is held against the bytes that are really there; only then does PyTorch load it,
with `weights_only=True`. Tensors are compared with a network that has shapes but no memory.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pcsr.model.authors import authors_spec, load_authors
from pcsr.model.network import Network, NetworkSpec, skeleton
from pcsr.runtime.errors import CheckpointError, OptionError

__all__ = ["checkpoint_sha256", "fill", "load_checkpoint", "save_checkpoint"]

SPEC_KEY = "pcsr"
"""Metadata key of a `.safetensors` checkpoint that holds the network spec as JSON."""

# Our header is a few kilobytes; the safetensors library would take 100 MB.
MAX_HEADER_BYTES = 4 << 20

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SAFETENSORS_DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}


def load_checkpoint(path: str | os.PathLike[str], *, complete: bool = True) -> Network:
    """Load a PCSR network from the authors' `.pth` or our `.safetensors`; the content decides, not the name.

    Args:
        path: the file.
        complete: refuse a heavy-only (phase 0) network, which has nothing to route.

    Returns:
        The network in eval mode, weights in float32 (float16, bfloat16 and float64 are converted).

    Raises:
        CheckpointError: the file cannot be read, cannot be trusted, is damaged, or holds no such network.
    """
    path = Path(path)
    if _is_safetensors(path):
        network = _load_safetensors(path)
    else:
        name, args, tensors = load_authors(path)
        try:
            spec = authors_spec(name, args)
            network = skeleton(spec)
        except (CheckpointError, OptionError) as error:
            raise CheckpointError(f"{path}: {error}") from error
        fill(network, {_our_name(key, spec.classes - 1): tensor for key, tensor in tensors.items()}, path)
    if complete and network.classifier is None:
        raise CheckpointError(
            f"{path} is a heavy-only (phase 0) network without a classifier; give the checkpoint of phase 1, "
            "which has one"
        )
    return network


def save_checkpoint(
    network: Network, path: str | os.PathLike[str], *, metadata: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write a network as `.safetensors` with its spec in the metadata; the file appears whole or not at all.

    Args:
        network: what to write, in the precision it has.
        path: the file; an existing one is replaced.
        metadata: more text to keep beside the spec (provenance, licence); not under the key "pcsr".

    Raises:
        OptionError: `metadata` uses the key of the spec.
        CheckpointError: the file cannot be written.
    """
    path = Path(path)
    if SPEC_KEY in metadata:
        raise OptionError(f'metadata key "{SPEC_KEY}" belongs to the network spec; choose another')
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    content = _ordered(safetensors.torch.save(tensors, {**metadata, SPEC_KEY: network.spec.to_json()}))
    # In the same folder, so that the rename stays within one file system.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error


def checkpoint_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the file's bytes, in hexadecimal.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = Path(path)
    try:
        # A pipe would be waited for, and a device may never end.
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "not a regular file")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give a network without memory the tensors of a file, after checking that they are exactly its own.

    Args:
        network: built on PyTorch's meta device; it holds the tensors afterwards.
        tensors: by the network's parameter names.
        path: named in errors.

    Raises:
        CheckpointError: a tensor is missing, surplus, misshapen, of a wrong type, or not finite.
    """
    expected: dict[str, Tensor] = network.state_dict()
    _check_names(set(expected), set(tensors), path)
    ready = {}
    for name, shape_only in expected.items():
        _check_kind(name, (tuple(tensors[name].shape), tensors[name].dtype), shape_only, path)
        tensor = tensors[name].detach().to(shape_only.dtype, copy=True, memory_format=torch.contiguous_format)
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinity; the checkpoint is damaged")
        if name.endswith("running_var") and (tensor < 0).any():
            raise CheckpointError(f"{path}: {name} holds a negative variance; the checkpoint is damaged")
        ready[name] = tensor
    network.load_state_dict(ready, strict=True, assign=True)


def _check_names(expected: set[str], found: set[str], path: Path) -> None:
    for problem, names in (("lacks", expected - found), ("has surplus", found - expected)):
        if names:
            raise CheckpointError(
                f"{path} {problem} {len(names)} of the network's {len(expected)} tensors, first "
                f"{min(names)[:120]!r}; the weights do not belong to the network the file describes"
            )


def _check_kind(name: str, kind: tuple[tuple[int, ...], torch.dtype], expected: Tensor, path: Path) -> None:
    shape, dtype = kind
    if shape != tuple(expected.shape):
        raise CheckpointError(
            f"{path}: {name} has the shape {shape}, the network needs {tuple(expected.shape)}"
        )
    if dtype not in (_FLOATS if expected.dtype.is_floating_point else (expected.dtype,)):
        wanted = "a floating-point type" if expected.dtype.is_floating_point else str(expected.dtype)
        raise CheckpointError(f"{path}: {name} has the type {dtype}, the network needs {wanted}")


def _our_name(authors_name: str, heaviest: int) -> str:
    """The authors' parameter names differ from ours in their prefixes only; `heaviest` is the last class."""
    for theirs, ours in (
        ("encoder.", "backbone."),
        ("light_sampler.imnet.", "upsamplers.0."),
        ("heavy_sampler.imnet.", f"upsamplers.{heaviest}."),
        ("classifier.imnet.", "classifier."),
    ):
        if authors_name.startswith(theirs):
            return ours + authors_name.removeprefix(theirs)
    return authors_name


def _is_safetensors(path: Path) -> bool:
    """Whether the file starts as one: the header's length in 8 bytes, then a JSON object."""
    try:
        if not path.is_file():
            raise CheckpointError(
                f"{path} is {'not a file' if path.exists() else 'missing'}; give a checkpoint file"
            )
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _load_safetensors(path: Path) -> Network:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(f"{path} has a header of {length} bytes; the limit is {MAX_HEADER_BYTES}")
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if SPEC_KEY not in metadata:
                raise CheckpointError(
                    f'{path} has no "{SPEC_KEY}" entry in its metadata, so it is no PCSR checkpoint; '
                    "give one that save_checkpoint wrote"
                )
            try:
                network = skeleton(NetworkSpec.from_json(metadata[SPEC_KEY]))
            except (CheckpointError, OptionError) as error:
                raise CheckpointError(f"{path}: {error}") from error
            expected = network.state_dict()
            _check_names(set(expected), set(file.keys()), path)
            for name in expected:  # before any tensor is read
                entry = file.get_slice(name)
                dtype = _SAFETENSORS_DTYPES.get(entry.get_dtype())
                if dtype is None:
                    raise CheckpointError(f"{path}: {name} has the type {entry.get_dtype()}; weights are F32")
                _check_kind(name, (tuple(entry.get_shape()), dtype), expected[name], path)
            fill(network, {name: file.get_tensor(name) for name in expected}, path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged or truncated ({error}); copy or save it again") from error
    return network


def _ordered(content: bytes) -> bytes:
    """Sort the keys of the header: the library writes metadata in random order."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors stay aligned
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
