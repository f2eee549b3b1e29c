"""EXIF in TIFF files, which libvips neither reads nor writes; in the others it does, as a block that is a small TIFF.

EXIF 2.32, section 4.6: the first directory describes the picture and points to two others, of the exposure (EXIF) and
of the place (GPS). A TIFF has the same directories as part of its own.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from pcsr.runtime.pictures import tiff
from pcsr.runtime.pictures.tiff import Directory, Layout, Value

__all__ = [
    "Exif",
    "add_to_tiff",
    "exif_block",
    "exif_of_block",
    "exif_of_directory",
    "resolution_of_block",
    "shortened",
]

PREFIX = b"Exif\0\0"
# ImageDescription, Make, Model, Software, DateTime, Artist, HostComputer, Rating and its percentage, Copyright, and
# XPTitle to XPSubject, which Windows writes. All else in a TIFF's first directory says how its pixels are stored.
DESCRIPTIVE = (
    *(0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x4749, 0x8298),
    *range(0x9C9B, 0x9CA0),
)
DESCRIPTION = 0x010E
# Descriptions that programs for science write for themselves: they tell the size of the picture, which is another now.
OF_PROGRAMS = (b'{"shape"', b"ImageJ=", b"<?xml", b"<OME")
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
MILLIMETRES = {2: 25.4, 3: 10.0}
EXIF_POINTER, GPS_POINTER, INTEROPERABILITY_POINTER = 0x8769, 0x8825, 0xA005
WIDTH, HEIGHT = 0xA002, 0xA003
# TIFF's numbers of types, of which EXIF uses the first twelve.
LONG, RATIONAL, LAST_OF_EXIF, LONG8 = 4, 5, 12, 16
# A large note of a camera's maker has a few hundred kilobytes. Values may overlap, so that a short file has gigabytes.
MAX_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Exif:
    """What EXIF says of a picture.

    Attributes:
        order: of the bytes of numbers, "<" or ">". A maker's note, which is opaque here, often relies on it.
        picture: values that describe the picture, by tag.
        exposure: of the EXIF directory.
        place: of the GPS directory.
        lost: how many values could not be read.
    """

    order: str = "<"
    picture: Mapping[int, Value] = field(default_factory=dict)
    exposure: Mapping[int, Value] = field(default_factory=dict)
    place: Mapping[int, Value] = field(default_factory=dict)
    lost: int = 0

    def __bool__(self) -> bool:
        return bool(self.picture or self.exposure or self.place)


def exif_of_block(block: bytes) -> Exif:
    """Of a block as other formats have it, with or without its prefix; the thumbnail and orientation are left out.

    Nothing in a block is trusted: what cannot be read is left out and counted.
    """
    read = _reader(block)
    first = next(tiff.directories(read), None)
    if first is None or not first.entries:
        return Exif(lost=1)
    return exif_of_directory(read, first)


def resolution_of_block(block: bytes) -> tuple[float, float] | None:
    """Horizontal and vertical, in pixels per millimetre; None where it is not told."""
    first = next(tiff.directories(_reader(block)), None)
    if first is None:
        return None
    found = []
    for tag in (X_RESOLUTION, Y_RESOLUTION):
        value = first.value(tag)
        if value is None or value.kind != RATIONAL:
            return None
        numerator, denominator = struct.unpack_from(first.layout.order + "II", value.content)
        # As for what a unit says, no value that cannot be meant.
        if not 0 < numerator <= 1_000_000 * denominator:
            return None
        found.append(numerator / denominator / MILLIMETRES.get(first.number(RESOLUTION_UNIT, 2), 25.4))
    return found[0], found[1]


def _reader(block: bytes) -> tiff.ReadAt:
    content = block.removeprefix(PREFIX)
    # A value may stand at an offset that no slice takes.
    return lambda at, length: content[at : at + length] if at < len(content) else b""


def exif_of_directory(read: tiff.ReadAt, directory: Directory) -> Exif:
    """Of a directory of a TIFF file."""
    layout = directory.layout
    budget = _Budget(MAX_BYTES)
    picture = budget.values(directory, [tag for tag in DESCRIPTIVE if tag in directory.entries])
    description = picture.get(DESCRIPTION)
    if description is not None and description.content.startswith(OF_PROGRAMS):
        del picture[DESCRIPTION]
    parts: list[dict[int, Value]] = []
    for pointer in (EXIF_POINTER, GPS_POINTER):
        part: dict[int, Value] = {}
        if pointer in directory.entries:
            found = Directory(read, layout, directory.number(pointer))
            budget.lost += not found.entries
            part = budget.values(found, [tag for tag in found.entries if tag != INTEROPERABILITY_POINTER])
        parts.append(part)
    return Exif(layout.order, picture, parts[0], parts[1], budget.lost)


class _Budget:
    """Bytes of values that may still be taken."""

    def __init__(self, left: int) -> None:
        self._left, self.lost = left, 0

    def values(self, directory: Directory, tags: Iterable[int]) -> dict[int, Value]:
        taken = {}
        for tag in tags:
            value = directory.value(tag) if self._left > 0 else None
            if value is None or value.kind > LAST_OF_EXIF:
                self.lost += 1
                continue
            self._left -= len(value.content)
            taken[tag] = value
        return taken


def exif_block(exif: Exif) -> bytes:
    """The block that other formats have."""
    layout = Layout(exif.order)
    # Behind the header, which ends with the offset of the first directory.
    start = layout.first + layout.word.size
    directories = _directories(exif, start, layout)
    first = start + sum(map(len, directories[:-1]))
    return PREFIX + layout.header + layout.word.pack(first) + b"".join(directories)


def shortened(exif: Exif, limit: int) -> Exif:
    """Without its longest values, so that a block of at most so many bytes holds the others."""
    parts = (exif.picture, exif.exposure, exif.place)
    sizes = sorted(
        (Layout(exif.order).entry_bytes + len(value.content) + 1, at, tag)
        for at, part in enumerate(parts)
        for tag, value in part.items()
    )
    # More than the header and three directories without entries need.
    total, kept = 100, set()
    for size, at, tag in sizes:
        total += size
        if total <= limit:
            kept.add((at, tag))
    picture, exposure, place = (
        {tag: value for tag, value in part.items() if (at, tag) in kept} for at, part in enumerate(parts)
    )
    return Exif(exif.order, picture, exposure, place, exif.lost)


def add_to_tiff(file: BinaryIO, exif: Exif, size: tuple[int, int]) -> bool:
    """Put EXIF into the first directory of a TIFF that libvips has written; no tag that is there is changed.

    Args:
        file: open to be read and written.
        exif: what is added.
        size: (H, W) of the picture, which takes the place of the one that EXIF tells.

    Returns:
        Whether there was room: offsets of a TIFF that is no BigTIFF end at 4 GiB.

    Raises:
        OSError: the file cannot be read or written.
    """

    def read(at: int, length: int) -> bytes:
        file.seek(at)
        return file.read(length)

    first = next(tiff.directories(read))
    layout = first.layout
    exposure = dict(exif.exposure)
    for tag, pixels in ((WIDTH, size[1]), (HEIGHT, size[0])):
        if tag in exposure:
            exposure[tag] = Value(LONG, 1, Layout(exif.order).word.pack(pixels))
    picture = {tag: value for tag, value in exif.picture.items() if tag not in first.entries}
    end = file.seek(0, os.SEEK_END)
    start = end + end % 2
    directories = _directories(Exif(exif.order, picture, exposure, exif.place), start, layout, onto=first)
    content = b"".join(directories)
    if not layout.big and start + len(content) >= 1 << 32:
        return False
    file.write(b"\0" * (end % 2) + content)
    file.seek(layout.first)
    file.write(layout.word.pack(start + len(content) - len(directories[-1])))
    file.flush()
    return True


def _directories(exif: Exif, start: int, layout: Layout, *, onto: Directory | None = None) -> list[bytes]:
    """The EXIF and GPS directories where there are some, and last the first one, which points to them.

    Args:
        exif: their values.
        start: offset from where they stand one after another.
        layout: of the file.
        onto: a first directory that is there already.
    """
    made = []
    first = _reordered(exif.picture, exif.order, layout.order)
    for pointer, values in ((EXIF_POINTER, exif.exposure), (GPS_POINTER, exif.place)):
        if values:
            kind = LONG if start < 1 << 32 else LONG8
            word = Layout(layout.order, big=kind == LONG8).word
            first[pointer] = Value(kind, 1, word.pack(start))
            made.append(tiff.packed(_reordered(values, exif.order, layout.order), start, layout=layout))
            start += len(made[-1])
    entries, following = (onto.entries, onto.following) if onto is not None else ({}, 0)
    return [*made, tiff.packed(first, start, layout=layout, entries=entries, following=following)]


def _reordered(values: Mapping[int, Value], before: str, after: str) -> dict[int, Value]:
    return {tag: value.reordered(before, after) for tag, value in values.items()}
