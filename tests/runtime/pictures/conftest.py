"""A decoder of PNG that shares nothing with the ones in use: Pillow reads colours of 16 bits as if they had 8."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

BANDS = {0: 1, 2: 3, 4: 2, 6: 4}


@pytest.fixture(scope="session")
def decode_png() -> Callable[[Path], list[NDArray[Any]]]:
    """A function that gives the pictures of a PNG of 8 or 16 bits a sample, not interlaced, without a palette."""
    return _frames


def _frames(path: Path) -> list[NDArray[Any]]:
    """One picture; of an animation, each of its frames, complete and laid over one another as they say."""
    chunks = list(_chunks(path.read_bytes()))
    header = next(data for kind, data in chunks if kind == b"IHDR")
    w, h, depth, colours, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    assert depth in (8, 16)
    assert not interlaced
    control, rows, frames = b"", b"", []
    canvas = np.zeros((h, w, BANDS[colours]), np.uint16 if depth == 16 else np.uint8)
    for kind, data in [*chunks, (b"fcTL", b"")]:
        if kind == b"IDAT" and (control or not any(each == b"acTL" for each, _ in chunks)):
            rows += data
        elif kind == b"fdAT":
            rows += data[4:]
        elif kind == b"fcTL":
            if rows:
                canvas = _laid_over(canvas, control, rows)
                frames.append(canvas)
            control, rows = data, b""
    return [frame if frame.shape[2] > 1 else frame[..., 0] for frame in frames]


def _laid_over(canvas: NDArray[Any], control: bytes, rows: bytes) -> NDArray[Any]:
    if not control:
        return _unfiltered(rows, canvas.shape, canvas.dtype)
    w, h, x, y = struct.unpack_from(">IIII", control, 4)
    disposal, blending = control[24:26]
    assert disposal == 0
    part = _unfiltered(rows, (h, w, canvas.shape[2]), canvas.dtype)
    canvas = canvas.copy()
    below = canvas[y : y + h, x : x + w]
    if blending:
        # Only what needs no arithmetic: a pixel is seen through wholly or not at all.
        assert canvas.shape[2] == 4
        assert set(np.unique(part[..., 3])) <= {0, 255}
        part = np.where(part[..., 3:] == 0, below, part)
    canvas[y : y + h, x : x + w] = part
    return canvas


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    at, chunks = 8, []
    while at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def _unfiltered(compressed: bytes, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Rows as far as they go, zeros for the others (PNG specification, section 9)."""
    h, w, bands = shape
    pixel = bands * np.dtype(dtype).itemsize
    data = zlib.decompressobj().decompress(compressed)
    lines = np.zeros((h + 1, (w + 1) * pixel), np.uint8)
    for y in range(min(h, len(data) // (w * pixel + 1))):
        kind, *values = data[y * (w * pixel + 1) : (y + 1) * (w * pixel + 1)]
        above, line = lines[y].tolist(), [0] * pixel
        for at, value in enumerate(values, pixel):
            a, b, c = line[at - pixel], above[at], above[at - pixel]
            line.append((value + _predicted(kind, a, b, c)) & 255)
        lines[y + 1] = line
    rows = lines[1:, pixel:].tobytes()
    return np.frombuffer(rows, np.dtype(dtype).newbyteorder(">")).reshape(shape).astype(dtype)


def _predicted(kind: int, left: int, above: int, corner: int) -> int:
    if kind == 4:
        guess = left + above - corner
        return min((left, above, corner), key=lambda each: abs(guess - each))
    return (0, left, above, (left + above) // 2)[kind]
