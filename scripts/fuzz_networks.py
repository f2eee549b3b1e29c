"""Damage to what holds a network: zip archives of pickles, safetensors, ONNX graphs; with the checksums right again."""

from __future__ import annotations

import io
import json
import pickletools
import zipfile
from random import Random
from typing import Any

import onnx
from fuzz_bytes import damage_bytes, extreme
from fuzz_json import damage_json
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

# Of pickles, the ones that build, call, and refer to what was there before.
OPCODES = bytes(ord(opcode.code) for opcode in pickletools.opcodes)
# Operators that a graph may have been made of, or that ask for memory or time by a number.
OPERATORS = (
    "Conv",
    "Gemm",
    "MatMul",
    "Reshape",
    "Gather",
    "Transpose",
    "Expand",
    "Tile",
    "Range",
    "ConstantOfShape",
    "Resize",
    "Pad",
    "Loop",
    "DequantizeLinear",
    "NoSuchOperator",
)
NUMBERS = (0, 1, -1, 2, 3, 7, 16, 255, 65536, 2**31 - 1, -(2**31), 2**32 - 1, 2**62, -(2**63))


def damage_zip(content: bytes, random: Random) -> tuple[bytes, str]:
    """Damage a member of an archive and zip it again; most of the time the pickle, which is read first.

    Args:
        content: an intact archive.
        random: decides.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    pickle = next(at for at, (name, _) in enumerate(members) if name.endswith("data.pkl"))
    at = pickle if random.randrange(4) else random.randrange(len(members))
    name, record = members[at]
    match random.randrange(12):
        case 0:
            del members[at]
            said = f"{name} removed"
        case 1:
            path = ("../x", "/x", name.upper(), "", name + "\0", "data.pkl/data.pkl")[random.randrange(6)]
            members[at] = path, record
            said = f"{name} called {path!r}"
        case 2:
            other = random.randrange(len(members))
            members[at] = name, members[other][1]
            said = f"{name} with the content of {members[other][0]}"
        case 3 | 4 | 5 | 6 if at == pickle:
            damaged, what = _damage_pickle(record, random)
            members[at] = name, damaged
            said = f"{name}: {what}"
        case _:
            damaged, what = damage_bytes(record, random)
            members[at] = name, damaged
            said = f"{name}: {what}"
    packed = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if random.randrange(4) == 3 else zipfile.ZIP_STORED
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, record in members:
            archive.writestr(zipfile.ZipInfo(name or "_"), record)
    return packed.getvalue(), said


def _damage_pickle(record: bytes, random: Random) -> tuple[bytes, str]:
    """One to three opcodes replaced, removed, doubled or with another argument."""
    places = [place or 0 for _, _, place in pickletools.genops(record)]
    damaged, said = bytearray(record), []
    for _ in range(random.randrange(3) + 1):
        number = random.randrange(len(places) - 1)
        start, end = places[number], places[number + 1]
        match random.randrange(5):
            case 0:
                code = OPCODES[random.randrange(len(OPCODES))]
                damaged[start] = code
                said.append(f"opcode {number} is {bytes([code])!r}")
            case 1:
                # Same length, so that the places stay right: NONE and POP leave the stack as it was.
                damaged[start:end] = (b"N0" * (end - start))[: end - start]
                said.append(f"opcode {number} does nothing")
            case 2:
                other = random.randrange(len(places) - 1)
                piece = record[places[other] : places[other + 1]]
                damaged[start:end] = piece.ljust(end - start, b"0")[: end - start]
                said.append(f"opcode {number} is opcode {other}")
            case 3 if end - start > 1:
                damaged[start + 1 : end] = extreme(random, end - start - 1)
                said.append(f"argument of opcode {number} is {damaged[start + 1 : end].hex()}")
            case _:
                at = start + random.randrange(end - start)
                damaged[at] ^= 1 << random.randrange(8)
                said.append(f"a bit of opcode {number} flipped")
    return bytes(damaged), ", ".join(said)


def damage_safetensors(content: bytes, random: Random) -> tuple[bytes, str]:
    """Damage the header's length, its JSON, or the JSON within its metadata; or bytes.

    Args:
        content: an intact file.
        random: decides.
    """
    length = int.from_bytes(content[:8], "little")
    header, tensors = content[8 : 8 + length], content[8 + length :]
    metadata = json.loads(header).get("__metadata__", {}).get("pcsr")
    match random.randrange(6):
        case 0:
            value = (length + 1, length - 1, 0, len(content), 1 << 62, 100_000_001)[random.randrange(6)]
            return value.to_bytes(8, "little") + content[8:], f"header of {value} bytes"
        case 1:
            return damage_bytes(content, random)
        case 2 | 3 if metadata is not None:
            changed, said = damage_json(metadata.encode(), random)
            whole = json.loads(header)
            whole["__metadata__"]["pcsr"] = changed.decode("latin-1")
            header, said = json.dumps(whole).encode(), f"metadata: {said}"
        case _:
            header, said = damage_json(header, random)
            said = f"header: {said}"
    return len(header).to_bytes(8, "little") + header + tensors, said


def damage_onnx(content: bytes, random: Random) -> tuple[bytes, str]:
    """Damage a graph: a field of its structure most of the time, else bytes.

    Args:
        content: an intact graph.
        random: decides.
    """
    if random.randrange(4) == 0:
        return damage_bytes(content, random)
    model = onnx.ModelProto.FromString(content)
    said = [_damage_message(model.graph, random) for _ in range(random.randrange(2) + 1)]
    return model.SerializeToString(), ", ".join(said)


def _damage_message(top: Message, random: Random) -> str:
    """Change one field somewhere below a message."""
    message, path = top, list[str]()
    while True:
        fields = message.ListFields()
        if not fields:
            return f"{'.'.join(path)} is empty already"
        field, value = fields[random.randrange(len(fields))]
        path.append(field.name)
        repeated = not isinstance(value, Message | str | bytes | int | float)
        if repeated:
            at = random.randrange(len(value))
            path[-1] += f"[{at}]"
            # Now and then the list itself is damaged.
            if random.randrange(6) == 5:
                return _damage_list(message, field.name, at, random) + f" {'.'.join(path)}"
            if isinstance(value[at], Message):
                message = value[at]
                continue
            value[at] = _other(value[at], value, field, random)
            return f"{'.'.join(path)} is {str(value[at])[:40]!r}"
        if isinstance(value, Message):
            message = value
            continue
        setattr(message, field.name, _other(value, (), field, random))
        return f"{'.'.join(path)} is {str(getattr(message, field.name))[:40]!r}"


def _damage_list(message: Message, name: str, at: int, random: Random) -> str:
    values = getattr(message, name)
    match random.randrange(3):
        case 0:
            del values[at]
            return "removed"
        case 1 if isinstance(values[at], Message):
            values.add().CopyFrom(values[at])
            return "doubled"
        case _:
            kept = [values[other] for other in range(len(values)) if other != at]
            moved = [*kept, values[at]] if random.randrange(2) else [values[at], *kept]
            copies = [
                type(v).FromString(v.SerializeToString()) if isinstance(v, Message) else v for v in moved
            ]
            del values[:]
            values.extend(copies)
            return "moved"


def _other(value: Any, siblings: Any, field: FieldDescriptor, random: Random) -> Any:
    """Another value of the same type, which protobuf can hold."""
    if isinstance(value, bytes):
        return damage_bytes(value, random, most=1)[0]
    if isinstance(value, str):
        if field.name == "op_type":
            return OPERATORS[random.randrange(len(OPERATORS))]
        near = ("", "x", value + "x", *(s for s in siblings if s != value))
        return near[random.randrange(len(near))]
    if isinstance(value, float):
        return (0.0, -1.0, 1e38, float("nan"), float("inf"), -value)[random.randrange(6)]
    if field.enum_type is not None:
        numbers = [known.number for known in field.enum_type.values]
        return numbers[random.randrange(len(numbers))]
    number = (value + 1, value - 1, value * 2, *NUMBERS)[random.randrange(3 + len(NUMBERS))]
    if field.name in ("data_type", "elem_type"):
        # Numbers of types end at about 25.
        return number % 30
    bits = 31 if field.cpp_type == FieldDescriptor.CPPTYPE_INT32 else 63
    return max(min(number, 2**bits - 1), -(2**bits))
