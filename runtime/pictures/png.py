"""Chunks of a PNG, where libvips and Pillow say less or only after an error of their own, or write other ones."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import BinaryIO

__all__ = [
    "ReadAt",
    "bit_depth",
    "chunk",
    "frame_delays",
    "header_size",
    "is_animated",
    "odd_gamma",
    "put_behind_header",
    "text_bytes",
    "xmp_chunk",
]

ReadAt = Callable[[int, int], bytes]
"""So many bytes (second) of a file at an offset (first); fewer at its end."""

# Signature and header.
HEADER_BYTES = 8 + 12 + 13
SRGB_GAMMA = 0.45455
# What is looked through of a file that is made of nothing but empty chunks.
MAX_CHUNKS = 1 << 20


def header_size(read: ReadAt) -> tuple[int, int] | None:
    """(h, w) as the header has it; None where there is no header."""
    head = read(8, 16)
    if len(head) < 16 or head[4:8] != b"IHDR":
        return None
    return int.from_bytes(head[12:16], "big"), int.from_bytes(head[8:12], "big")


def bit_depth(read: ReadAt) -> int:
    """Bits of a sample."""
    return (read(24, 1) or b"\0")[0]


def is_animated(read: ReadAt) -> bool:
    """Whether there are frames; libvips reads one picture then and says nothing."""
    # The animation's control chunk stands before the pixels.
    return any(kind == b"acTL" for kind, _, _ in _before_pixels(read))


def odd_gamma(read: ReadAt) -> float | None:
    """The gamma of the samples, where it is far from sRGB's and nothing better is told; no other file can say it."""
    gamma = None
    for kind, at, _ in _before_pixels(read):
        if kind in (b"iCCP", b"sRGB", b"cICP"):
            return None
        if kind == b"gAMA":
            gamma = int.from_bytes(read(at, 4), "big") / 100_000
    return gamma if gamma is not None and abs(gamma - SRGB_GAMMA) > 0.05 else None


def text_bytes(read: ReadAt, limit: int) -> int:
    """Bytes that text before the pixels has when it is unpacked; counted as far as to a limit."""
    total = 0
    for kind, at, length in _before_pixels(read):
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            continue
        data = read(at, min(length, limit))
        total += len(data)
        # Behind the keyword: how it is packed; of international text, languages as well.
        packed = data.partition(b"\0")[2][1:]
        if kind == b"iTXt":
            packed = data.partition(b"\0")[2][2:].partition(b"\0")[2].partition(b"\0")[2]
        if kind != b"tEXt":
            total += _unpacked_bytes(packed, limit - total)
        if total >= limit:
            break
    return total


def _unpacked_bytes(packed: bytes, limit: int) -> int:
    total, unpacking = 0, zlib.decompressobj()
    # What is not packed, or damaged, unpacks to nothing.
    with suppress(zlib.error):
        while packed and total < limit:
            total += len(unpacking.decompress(packed, 1 << 20))
            packed = unpacking.unconsumed_tail
    return total


def frame_delays(read: ReadAt) -> list[int]:
    """Milliseconds that each frame of an animation is shown (fcTL chunks)."""
    fractions = [read(at + 20, 4) for kind, at, _ in _chunks(read) if kind == b"fcTL"]
    parts = [(int.from_bytes(each[:2], "big"), int.from_bytes(each[2:], "big") or 100) for each in fractions]
    return [round(1000 * numerator / denominator) for numerator, denominator in parts]


def _before_pixels(read: ReadAt) -> Iterator[tuple[bytes, int, int]]:
    return itertools.takewhile(lambda each: each[0] != b"IDAT", _chunks(read))


def _chunks(read: ReadAt) -> Iterator[tuple[bytes, int, int]]:
    """Kind of each chunk, where its data begin and how many bytes they are to have, as far as the file goes."""
    at = 8
    for _ in range(MAX_CHUNKS):
        head = read(at, 8)
        if len(head) < 8:
            return
        length = int.from_bytes(head[:4], "big")
        yield head[4:], at + 8, length
        at += 12 + length


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk with its length and checksum."""
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return b"".join((len(data).to_bytes(4, "big"), kind, data, checksum.to_bytes(4, "big")))


def xmp_chunk(packet: bytes) -> bytes:
    """XMP as its specification wants it in a PNG (part 3, section 1.1.5): as international text, not compressed."""
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)


def put_behind_header(file: BinaryIO, chunks: bytes) -> None:
    """Bring the header and further chunks in front of a PNG that was written as far behind the beginning of its file.

    Args:
        file: open to be read and written.
        chunks: that come behind the header; the PNG begins at an offset of as many bytes.

    Raises:
        OSError: the file cannot be read or written.
    """
    file.seek(len(chunks))
    header = file.read(HEADER_BYTES)
    file.seek(0)
    file.write(header + chunks)
    file.flush()
