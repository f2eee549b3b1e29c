"""TIFF whose colours lie apart, where libvips does not read it: each colour is read as a grey picture.

libvips refuses such tiles, and takes strips of grey and alpha for one another. But one colour's tiles or strips are
those of a grey picture: for each colour libvips is given the same file with another directory, which names only them.
It stands behind the end of the file, and nothing is copied.
"""

from __future__ import annotations

import math
import os
from typing import Any

from pcsr.runtime.pictures import tiff
from pcsr.runtime.pictures.tiff import Directory, ReadAt, Value

__all__ = ["PlanesError", "SeparatePlanes"]

WIDTH, LENGTH, BITS, PHOTOMETRIC, SAMPLES, PLANAR = 256, 257, 258, 262, 277, 284
STRIP_OFFSETS, ROWS, STRIP_BYTES = 273, 278, 279
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
EXTRA_SAMPLES, SAMPLE_FORMAT = 338, 339
# Of the whole picture's colours, and not of one: responses, ranges, inks, references.
OF_COLOURS = {280, 281, 291, 301, 332, 333, 334, 336, EXTRA_SAMPLES, 340, 341, 529, 530, 531, 532}
SHORT, SEPARATE, ASSOCIATED = 3, 2, 1
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK = 0, 1, 2, 5
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, CMYK: 4}
# libvips' names of grey and RGB by the samples.
KINDS = {"uchar": ("b-w", "srgb"), "ushort": ("grey16", "rgb16")}


class PlanesError(Exception):
    """The planes cannot be made sense of."""


class SeparatePlanes:
    """The colours of one page, each as a file of its own. It is to be held as long as an image made of it."""

    def __init__(self, read: ReadAt, size: int, directory: Directory) -> None:
        """Take a page.

        Args:
            read: of the file.
            size: bytes of the file.
            directory: of the page.
        """
        self._read, self._size, self._directory = read, size, directory
        self._sources: list[Any] = []

    @staticmethod
    def needed(directory: Directory) -> bool:
        """Whether a page is of the kinds that this is for."""
        if directory.number(SAMPLES, 1) == 1 or directory.number(PLANAR, 1) != SEPARATE:
            return False
        return TILE_WIDTH in directory.entries or COLOURS.get(directory.number(PHOTOMETRIC, RGB)) == 1

    def image(self, **options: Any) -> Any:
        """The lazy libvips image, its colours side by side.

        Args:
            options: of libvips' loader.

        Raises:
            PlanesError: the directory contradicts itself or has colours that are not taken here.
            pyvips.Error: a plane is damaged.
        """
        import pyvips

        directory = self._directory
        samples, photometric = directory.number(SAMPLES, 1), directory.number(PHOTOMETRIC, BLACK_IS_ZERO)
        if photometric not in COLOURS or not COLOURS[photometric] <= samples <= 5:
            raise PlanesError(f"{samples} samples of kind {photometric} in separate planes")
        planes = [
            pyvips.Image.tiffload_source(self._source(self._plane(number)), **options)
            for number in range(samples)
        ]
        image = planes[0].bandjoin(planes[1:])
        grey, rgb = KINDS.get(image.format, ("b-w", "scrgb"))
        kind = "cmyk" if photometric == CMYK else rgb if photometric == RGB else grey
        image = image.copy(interpretation=kind)
        if directory.number(EXTRA_SAMPLES) == ASSOCIATED and samples == COLOURS[photometric] + 1:
            divided = image.unpremultiply(max_alpha={"uchar": 255, "ushort": 65535}.get(image.format, 1))
            image = (divided if image.format == "float" else divided.rint()).cast(image.format)
            image = image.copy(interpretation=kind)
        return image

    def _plane(self, number: int) -> bytes:
        """What stands behind the file, from an even offset: a directory of one colour."""
        directory = self._directory
        layout, samples = directory.layout, directory.number(SAMPLES, 1)
        tiled = TILE_WIDTH in directory.entries
        w, h = directory.number(WIDTH), directory.number(LENGTH)
        across = math.ceil(w / (directory.number(TILE_WIDTH) or 1)) if tiled else 1
        parts = across * math.ceil(h / (directory.number(TILE_LENGTH if tiled else ROWS, h) or 1))
        values = {
            tag: self._part(tag, number, samples) for tag in (BITS, SAMPLE_FORMAT) if tag in directory.entries
        }
        for tag in (TILE_OFFSETS, TILE_BYTES) if tiled else (STRIP_OFFSETS, STRIP_BYTES):
            if (found := directory.value(tag)) is None or found.count != samples * parts:
                raise PlanesError(f"{samples} planes of {parts} parts are promised and not listed")
            values[tag] = _slice(found, number * parts, parts)
        white_is_zero = number == 0 and directory.number(PHOTOMETRIC, BLACK_IS_ZERO) == WHITE_IS_ZERO
        for tag, short in ((SAMPLES, 1), (PHOTOMETRIC, WHITE_IS_ZERO if white_is_zero else BLACK_IS_ZERO)):
            values[tag] = Value(SHORT, 1, short.to_bytes(2, "little" if layout.order == "<" else "big"))
        left_out = OF_COLOURS | {PLANAR} | set(values)
        entries = {tag: entry for tag, entry in directory.entries.items() if tag not in left_out}
        return tiff.packed(values, self._start, layout=layout, entries=entries)

    def _part(self, tag: int, number: int, samples: int) -> Value:
        found = self._directory.value(tag)
        if found is None or found.count not in (1, samples):
            raise PlanesError(f"tag {tag} does not tell of {samples} samples")
        return _slice(found, number if found.count > 1 else 0, 1)

    @property
    def _start(self) -> int:
        return self._size + self._size % 2

    def _source(self, behind: bytes) -> Any:
        import pyvips

        layout = self._directory.layout
        if not layout.big and self._start + len(behind) >= 1 << 32:
            raise PlanesError("separate planes in 4 GiB")
        file = _Patched(self._read, self._size, behind, layout.first, layout.word.pack(self._start))
        source = pyvips.SourceCustom()
        source.on_read(file.read)
        source.on_seek(file.seek)
        self._sources.append(source)
        return source


class _Patched:
    """A file with other bytes at one place and more at its end, as libvips reads one."""

    def __init__(self, read: ReadAt, size: int, behind: bytes, place: int, patch: bytes) -> None:
        self._original, self._size = read, size
        self._behind = b"\0" * (size % 2) + behind
        self._place, self._patch = place, patch
        self._at = 0

    def read(self, length: int) -> bytes:
        at = self._at
        if at >= self._size:
            part = self._behind[at - self._size : at - self._size + length]
        else:
            try:
                part = self._original(at, min(length, self._size - at))
            except OSError:
                # There is nobody to raise it to: libvips calls. To it the file ends here, which is damage.
                return b""
            first, last = max(self._place, at), min(self._place + len(self._patch), at + len(part))
            if first < last:
                patch = self._patch[first - self._place : last - self._place]
                part = part[: first - at] + patch + part[last - at :]
        self._at += len(part)
        return part

    def seek(self, offset: int, whence: int) -> int:
        end = self._size + len(self._behind)
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: end}[whence])
        return self._at


def _slice(value: Value, first: int, count: int) -> Value:
    size = len(value.content) // value.count
    return Value(value.kind, count, value.content[first * size : (first + count) * size])
