"""TIFF's own directories, for what libvips neither tells of them nor writes into them.

TIFF 6.0, section 2, and the BigTIFF design: a directory is a list of tags, each with a type, a count and a value that
stands in the entry where it fits and elsewhere in the file where it does not.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

__all__ = ["Directory", "Layout", "ReadAt", "Value", "directories", "layout", "packed"]

ReadAt = Callable[[int, int], bytes]
"""So many bytes (second) of a file at an offset (first); fewer at its end."""

# Letter of `struct` for the parts of a value by its type, and how many parts a value has.
PARTS = {
    1: ("B", 1),
    2: ("B", 1),
    3: ("H", 1),
    4: ("I", 1),
    5: ("I", 2),
    6: ("B", 1),
    7: ("B", 1),
    8: ("H", 1),
    9: ("I", 1),
    10: ("I", 2),
    11: ("I", 1),
    12: ("Q", 1),
    13: ("I", 1),
    16: ("Q", 1),
    17: ("Q", 1),
    18: ("Q", 1),
}
UNSIGNED = {1, 3, 4, 13, 16, 18}
# No file that means something has more, and what one claims is not to be believed: directories may overlap, so that a
# short file has millions of entries.
MAX_TAGS, MAX_VALUE_BYTES, MAX_DIRECTORIES, MAX_ENTRIES = 4096, 1 << 20, 65536, 1 << 20


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file's numbers are written.

    Attributes:
        order: of their bytes, "<" or ">".
        big: whether offsets have 64 bits (BigTIFF).
    """

    order: str
    big: bool = False

    @property
    def length(self) -> struct.Struct:
        """Of a directory: the number of its entries."""
        return struct.Struct(self.order + ("Q" if self.big else "H"))

    @property
    def word(self) -> struct.Struct:
        """Of an offset or a count; a value of at most as many bytes stands in its entry."""
        return struct.Struct(self.order + ("Q" if self.big else "I"))

    @property
    def entry_bytes(self) -> int:
        """Of an entry: tag, type, count and value."""
        return 4 + 2 * self.word.size

    @property
    def first(self) -> int:
        """Where the offset of the first directory stands."""
        return 8 if self.big else 4

    @property
    def header(self) -> bytes:
        """What a file begins with, up to the offset of its first directory."""
        mark = b"II" if self.order == "<" else b"MM"
        return mark + struct.pack(
            self.order + ("HHH" if self.big else "H"), *((43, 8, 0) if self.big else (42,))
        )


@dataclass(frozen=True, slots=True)
class Value:
    """Of a tag: TIFF's number of its type, how many there are, and their bytes in the order of the file."""

    kind: int
    count: int
    content: bytes

    def reordered(self, before: str, after: str) -> Value:
        """The same in another order of bytes; what is opaque stays."""
        letter, parts = PARTS[self.kind]
        if before == after or letter == "B":
            return self
        form = f"{self.count * parts}{letter}"
        return Value(
            self.kind, self.count, struct.pack(after + form, *struct.unpack(before + form, self.content))
        )


class Directory:
    """One directory.

    Attributes:
        layout: of its file.
        offset: of the directory.
        entries: bytes of each entry by its tag, as they are.
        following: offset of the next directory; 0: none.
    """

    def __init__(self, read: ReadAt, layout: Layout, offset: int) -> None:
        """Read the entries, and no values; none where nothing makes sense."""
        self.layout, self.offset, self._read = layout, offset, read
        self.entries: dict[int, bytes] = {}
        self.following = 0
        length, word, size = layout.length, layout.word, layout.entry_bytes
        head = read(offset, length.size)
        if len(head) < length.size:
            return
        count = length.unpack(head)[0]
        if count > MAX_TAGS:
            return
        body = read(offset + length.size, count * size + word.size)
        for at in range(0, min(count * size, len(body) - size + 1), size):
            self.entries.setdefault(struct.unpack_from(layout.order + "H", body, at)[0], body[at : at + size])
        if len(body) == count * size + word.size:
            self.following = word.unpack_from(body, count * size)[0]

    def value(self, tag: int) -> Value | None:
        """Of a tag; None where there is none or it cannot be read."""
        entry = self.entries.get(tag)
        if entry is None:
            return None
        word = self.layout.word
        kind = struct.unpack_from(self.layout.order + "H", entry, 2)[0]
        count = word.unpack_from(entry, 4)[0]
        letter, parts = PARTS.get(kind, ("B", 0))
        size = struct.calcsize(letter) * parts * count
        if not size or size > MAX_VALUE_BYTES:
            return None
        field = entry[4 + word.size :]
        content = field[:size] if size <= word.size else self._read(word.unpack(field)[0], size)
        return Value(kind, count, content) if len(content) == size else None

    def number(self, tag: int, default: int = 0) -> int:
        """The first value of a tag as an unsigned integer; the default where there is none."""
        found = self.value(tag)
        if found is None or found.kind not in UNSIGNED:
            return default
        number: int = struct.unpack_from(self.layout.order + PARTS[found.kind][0], found.content)[0]
        return number


def layout(read: ReadAt) -> Layout | None:
    """Of a file; None: it is no TIFF."""
    head = read(0, 4)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 4:
        return None
    version = struct.unpack_from(order + "H", head, 2)[0]
    return Layout(order, big=version == 43) if version in (42, 43) else None


def directories(read: ReadAt) -> Iterator[Directory]:
    """The directories of a TIFF file one after another, as far as they can be made sense of."""
    found = layout(read)
    if found is None:
        return
    pointer = read(found.first, found.word.size)
    offset = found.word.unpack(pointer)[0] if len(pointer) == found.word.size else 0
    seen: set[int] = set()
    entries = 0
    while offset and offset not in seen and len(seen) < MAX_DIRECTORIES and entries < MAX_ENTRIES:
        seen.add(offset)
        directory = Directory(read, found, offset)
        yield directory
        entries += len(directory.entries)
        offset = directory.following


def packed(
    values: Mapping[int, Value],
    at: int,
    *,
    layout: Layout,
    entries: Mapping[int, bytes] | None = None,
    following: int = 0,
) -> bytes:
    """A directory with the values that do not fit into its entries behind it.

    Args:
        values: by tag, in the layout's order of bytes.
        at: offset that it is going to have; even.
        layout: of the file.
        entries: of another directory in the same file, taken as they are.
        following: offset of the next directory.
    """
    word = layout.word
    lines = dict(entries or {})
    behind = at + layout.length.size + (len(lines) + len(values)) * layout.entry_bytes + word.size
    rest = bytearray()
    for tag, value in values.items():
        content = value.content
        if len(content) > word.size:
            place = word.pack(behind + len(rest))
            # Offsets are even.
            rest += content + b"\0" * (len(content) % 2)
            content = place
        head = struct.pack(layout.order + "HH", tag, value.kind) + word.pack(value.count)
        lines[tag] = head + content.ljust(word.size, b"\0")
    head = layout.length.pack(len(lines))
    return head + b"".join(lines[tag] for tag in sorted(lines)) + word.pack(following) + rest
