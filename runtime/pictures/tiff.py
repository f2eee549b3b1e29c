"""TIFF's own directories, for what libvips does not tell of them.

TIFF 6.0, section 2, and the BigTIFF design: a directory is a list of tags, each with a type, a count and a value that
stands in the entry where it fits and elsewhere in the file where it does not.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["Directory", "Tag", "directories"]

# Bytes of one value by its type.
TYPE_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
UNSIGNED = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
# No directory that means something has more, and what a file claims is not to be believed.
MAX_TAGS, MAX_VALUE_BYTES, MAX_DIRECTORIES = 4096, 1 << 20, 65536


@dataclass(frozen=True, slots=True)
class Tag:
    """One entry: TIFF's number of its type, how many values, and their bytes."""

    kind: int
    count: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Directory:
    """One directory's tags by number, and the byte order of their values, "<" or ">"."""

    order: str
    tags: dict[int, Tag]

    def number(self, tag: int, default: int = 0) -> int:
        """The first value of a tag as an unsigned integer; the default where there is none."""
        found = self.tags.get(tag)
        if found is None or found.kind not in UNSIGNED or not found.count:
            return default
        value: int = struct.unpack_from(self.order + UNSIGNED[found.kind], found.value)[0]
        return value


ReadAt = Callable[[int, int], bytes]


def directories(read: ReadAt, *, start: int | None = None) -> Iterator[Directory]:
    """The directories of a TIFF file, as far as they can be made sense of; tags that cannot are left out.

    Args:
        read: so many bytes (second) at an offset (first); fewer at the end of the file.
        start: offset of a directory to begin with (that of EXIF, say); None: the file's first.
    """
    head = read(0, 16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return
    big = struct.unpack_from(order + "H", head, 2)[0] == 43
    if big and len(head) < 16:
        return
    offset = (
        start
        if start is not None
        else struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)[0]
    )
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) < MAX_DIRECTORIES:
        seen.add(offset)
        directory, offset = _directory(read, order, offset, big=big)
        yield directory


def _directory(read: ReadAt, order: str, offset: int, *, big: bool) -> tuple[Directory, int]:
    length, entry_bytes, word = ("Q", 20, "Q") if big else ("H", 12, "I")
    head = read(offset, struct.calcsize(length))
    if len(head) < struct.calcsize(length):
        return Directory(order, {}), 0
    count = struct.unpack(order + length, head)[0]
    if count > MAX_TAGS:
        return Directory(order, {}), 0
    first = offset + len(head)
    body = read(first, count * entry_bytes + struct.calcsize(word))
    tags = {}
    for number in range(min(count, len(body) // entry_bytes)):
        at = number * entry_bytes
        tag, kind = struct.unpack_from(order + "HH", body, at)
        values = struct.unpack_from(order + word, body, at + 4)[0]
        size = TYPE_BYTES.get(kind, 0) * values
        if not size or size > MAX_VALUE_BYTES:
            continue
        inline = body[at + 4 + struct.calcsize(word) : at + entry_bytes]
        value = inline[:size] if size <= len(inline) else read(struct.unpack(order + word, inline)[0], size)
        if len(value) == size:
            tags[tag] = Tag(kind, values, value)
    rest = body[count * entry_bytes :]
    following = struct.unpack(order + word, rest)[0] if len(rest) == struct.calcsize(word) else 0
    return Directory(order, tags), following
