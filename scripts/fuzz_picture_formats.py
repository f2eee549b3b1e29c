"""Damage to pictures where their formats put meaning, with checksums and lengths made right again.

A damaged byte in a PNG is found by a checksum before any decoder sees it; this gets past that. A format that has
pieces is taken apart, one piece is damaged, and the whole is put together again.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random

from fuzz_bytes import damage_bytes, extreme

Pieces = list[tuple[bytes, bytes]]
"""Tag and content of each piece, in order."""

PNG = b"\x89PNG\r\n\x1a\n"


def damage_picture(content: bytes, random: Random, *, others: Sequence[bytes]) -> tuple[bytes, str]:
    """Damage a picture, half of the time by its format's parts where the format is known here.

    Args:
        content: an intact picture.
        random: decides.
        others: further pictures, to splice with.
    """
    by_parts = _by_parts(content)
    if by_parts is None or random.randrange(2) == 0:
        return damage_bytes(content, random, others=others)
    damaged, said = by_parts(content, random)
    if random.randrange(4) == 3:
        damaged, more = damage_bytes(damaged, random, most=1)
        said = f"{said}, {more}"
    return damaged, said


def _by_parts(content: bytes) -> Callable[[bytes, Random], tuple[bytes, str]] | None:
    if content.startswith(PNG):
        return _damage_png
    if content.startswith(b"RIFF"):
        return lambda content, random: _damage_pieces(content, random, split_riff, join_riff)
    if content.startswith(b"\xff\xd8"):
        return lambda content, random: _damage_pieces(content, random, split_jpeg, join_jpeg)
    if content[:2] in (b"II", b"MM"):
        return _damage_tiff
    return None


def _damage_pieces(
    content: bytes, random: Random, split: Callable[[bytes], Pieces], join: Callable[[Pieces], bytes]
) -> tuple[bytes, str]:
    """Damage one piece, or the order of pieces."""
    pieces = split(content)
    at = random.randrange(len(pieces))
    tag, piece = pieces[at]
    name = f"piece {at} ({tag.hex()})"
    match random.randrange(10):
        case 0:
            del pieces[at]
            said = f"{name} removed"
        case 1:
            pieces.insert(random.randrange(len(pieces)), (tag, piece))
            said = f"{name} doubled"
        case 2:
            other = random.randrange(len(pieces))
            pieces[at], pieces[other] = pieces[other], pieces[at]
            said = f"{name} swapped with piece {other}"
        case 3:
            damaged, said = damage_bytes(tag, random, most=1)
            pieces[at] = (damaged + tag)[: len(tag)], piece
            said = f"tag of {name}: {said}"
        case _:
            damaged, said = damage_bytes(piece, random, most=2)
            pieces[at] = tag, damaged
            said = f"{name}: {said}"
    return join(pieces), said


# PNG: length, tag, content, checksum.


def split_png(content: bytes) -> Pieces:
    """Chunks of an intact PNG."""
    pieces, at = [], len(PNG)
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        pieces.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return pieces


def join_png(pieces: Pieces) -> bytes:
    """A PNG whose checksums are right."""
    chunks = (
        struct.pack(">I", len(piece)) + tag + piece + struct.pack(">I", zlib.crc32(tag + piece))
        for tag, piece in pieces
    )
    return PNG + b"".join(chunks)


def _damage_png(content: bytes, random: Random) -> tuple[bytes, str]:
    match random.randrange(4):
        case 0:
            return _damage_header(content, random)
        case 1:
            return _damage_inflated(content, random)
        case _:
            return _damage_pieces(content, random, split_png, join_png)


def _damage_header(content: bytes, random: Random) -> tuple[bytes, str]:
    """One field of IHDR: width, height, depth, colour, compression, filter, interlace."""
    (tag, header), *rest = split_png(content)
    field = random.randrange(7)
    start, size = ((0, 4), (4, 4), (8, 1), (9, 1), (10, 1), (11, 1), (12, 1))[field]
    old = int.from_bytes(header[start : start + size], "big")
    if size == 1:
        new = (0, 1, 2, 3, 4, 6, 8, 16, 255)[random.randrange(9)]
    else:
        near = (old + 1, old - 1, old * 2, old // 2, 1 << 16, 3000)
        choice = random.randrange(len(near) + 1)
        new = near[choice] if choice < len(near) else int.from_bytes(extreme(random, 4), "big")
    header = header[:start] + new.to_bytes(size, "big") + header[start + size :]
    return join_png([(tag, header), *rest]), f"IHDR field {field} from {old} to {new}"


def _damage_inflated(content: bytes, random: Random) -> tuple[bytes, str]:
    """What a deflated chunk holds, deflated again: the pixels, or the colour profile."""
    pieces = split_png(content)
    profile = next((at for at, (tag, _) in enumerate(pieces) if tag == b"iCCP"), None)
    if profile is not None and random.randrange(2) == 1:
        name, _, packed = pieces[profile][1].partition(b"\0")
        damaged, said = damage_bytes(zlib.decompress(packed[1:]), random)
        pieces[profile] = b"iCCP", name + b"\0\0" + zlib.compress(damaged)
        return join_png(pieces), f"colour profile: {said}"
    first = next(at for at, (tag, _) in enumerate(pieces) if tag == b"IDAT")
    packed = b"".join(piece for tag, piece in pieces if tag == b"IDAT")
    damaged, said = damage_bytes(zlib.decompress(packed), random)
    pieces = [piece for piece in pieces if piece[0] != b"IDAT"]
    pieces.insert(first, (b"IDAT", zlib.compress(damaged)))
    return join_png(pieces), f"inflated pixels: {said}"


# RIFF, as in WebP: tag, length, content, padded to an even length.


def split_riff(content: bytes) -> Pieces:
    """Chunks of an intact WebP; those within a chunk of an animation stay in it."""
    pieces, at = [], 12
    while at + 8 <= len(content):
        (length,) = struct.unpack_from("<I", content, at + 4)
        pieces.append((content[at : at + 4], content[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return pieces


def join_riff(pieces: Pieces) -> bytes:
    """A WebP whose lengths are right."""
    body = b"".join(
        tag + struct.pack("<I", len(piece)) + piece + bytes(len(piece) % 2) for tag, piece in pieces
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


# JPEG: marker, length, content; what follows the start of scan is one piece without a length.

ENTROPY = b""


def split_jpeg(content: bytes) -> Pieces:
    """Segments of an intact JPEG up to its first scan, and the rest as a piece without a tag."""
    pieces, at = [], 2
    while True:
        tag, (length,) = content[at : at + 2], struct.unpack_from(">H", content, at + 2)
        pieces.append((tag, content[at + 4 : at + 2 + length]))
        at += 2 + length
        if tag == b"\xff\xda":
            return [*pieces, (ENTROPY, content[at:])]


def join_jpeg(pieces: Pieces) -> bytes:
    """A JPEG whose lengths are right."""
    parts = [b"\xff\xd8"]
    for tag, piece in pieces:
        if tag == ENTROPY:
            parts.append(piece)
        else:
            parts.append(tag + struct.pack(">H", min(len(piece) + 2, 0xFFFF)) + piece[:0xFFFD])
    return b"".join(parts)


# TIFF: directories of entries with tag, type, count and value, anywhere in the file.


def _damage_tiff(content: bytes, random: Random) -> tuple[bytes, str]:
    """A field of one to three entries of the first directory, or where the next directory is."""
    order = "<" if content[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", content, 2)[0] == 43
    (start,) = struct.unpack_from(f"{order}Q" if big else f"{order}I", content, 8 if big else 4)
    (count,) = struct.unpack_from(f"{order}Q" if big else f"{order}H", content, start)
    entries, size, number = start + (8 if big else 2), 20 if big else 12, 8 if big else 4
    damaged, said = bytearray(content), []
    for _ in range(random.randrange(3) + 1):
        entry = random.randrange(count + 1)
        at = entries + size * entry
        if entry == count:
            # Back to the first directory, which goes in circles, or to nowhere.
            value = start.to_bytes(number, "little" if order == "<" else "big")
            value = value if random.randrange(2) else extreme(random, number)
            damaged[at : at + number] = value
            said.append(f"next directory at {value.hex()}")
            continue
        field = random.randrange(4)
        offset, width = ((0, 2), (2, 2), (4, number), (4 + number, number))[field]
        if random.randrange(2):
            value = extreme(random, width)
        else:
            value = struct.pack(f"{order}H", random.randrange(20)).ljust(width, b"\0")
        tag = struct.unpack_from(f"{order}H", content, at)[0]
        damaged[at + offset : at + offset + width] = value
        said.append(f"{('tag', 'type', 'count', 'value')[field]} of tag {tag} set to {value.hex()}")
    return bytes(damaged), ", ".join(said)
