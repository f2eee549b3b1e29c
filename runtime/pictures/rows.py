"""Rows out of libvips as they are wanted, and into libvips as they come: nothing of a picture's size in between.

libvips pulls: a saver asks for the next rows when it is ready for them. What makes rows, pushes. `RowPipe` joins the
two by libvips' own way of reading what is still arriving, a stream: rows go through as a PNG that compresses nothing,
whose bytes are then taken for the samples that they are.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.pictures.png import chunk

__all__ = ["RowPipe", "read_rows", "vips_format"]

# Rows are fetched so many bytes at a time: enough for libvips to work in its own strides.
FETCH_BYTES = 4 << 20
# And handed on so many at a time: what is copied on the way stays in the cache.
PIECE_BYTES = 1 << 20


def vips_format(dtype: Any) -> str:
    """What libvips calls uint8, uint16 or float32 samples."""
    return {np.dtype(np.uint8): "uchar", np.dtype(np.uint16): "ushort"}.get(np.dtype(dtype), "float")


def read_rows(region: Any, top: int, out: NDArray[Any], band_format: Any) -> None:
    """Fill an array with rows of a libvips image, which may be sequential: rows only go forward then.

    Args:
        region: `pyvips.Region` of the image.
        top: first row.
        out: (rows, w) or (rows, w, bands), the whole width; converted from the image's samples.
        band_format: NumPy type of the image's samples.

    Raises:
        pyvips.Error: the file is damaged there.
    """
    h, w = out.shape[:2]
    bands = 1 if out.ndim == 2 else out.shape[2]
    step = max(1, FETCH_BYTES // (w * bands * np.dtype(band_format).itemsize))
    for start in range(0, h, step):
        rows = min(step, h - start)
        fetched = np.frombuffer(region.fetch(0, top + start, w, rows), dtype=band_format)
        out[start : start + rows] = fetched.reshape(rows, *out.shape[1:])


class RowPipe:
    """A libvips image whose rows are still being made. One thread puts, libvips takes in another."""

    def __init__(self, h: int, w: int, bands: int, dtype: Any, *, limit: int) -> None:
        """Make the pipe.

        Args:
            h: rows that will be put in all.
            w: columns.
            bands: samples of a pixel.
            dtype: uint8, uint16 or float32.
            limit: bytes of rows that may wait; `put` blocks while more do.
        """
        self._arrived = threading.Condition()
        self._waiting: deque[NDArray[np.uint8]] = deque()
        self._queued = 0
        self._limit = limit
        self._closed = False
        self._abandoned = False
        self._deflate = zlib.compressobj(0)
        pixel = bands * np.dtype(dtype).itemsize
        # Signature and header: grey, 8 bits, so wide that a row holds the bytes of w pixels.
        header = struct.pack(">IIBBBBB", w * pixel, h, 8, 0, 0, 0, 0)
        # Of the stream, for the thread that takes: what libvips has not fetched yet, and whether it is the last.
        self._ready, self._at = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header), 0
        self._ended = False
        self._pixel, self._samples = pixel, {"format": vips_format(dtype), "bands": bands}

    def image(self) -> Any:
        """The image, sequential; for the thread that takes, since it waits for the first rows."""
        import pyvips

        # Held as long as this pipe: libvips calls back into it and would end the process if it were gone.
        self._source = source = pyvips.SourceCustom()
        source.on_read(self._read)
        # "error": rows that never come must not become black ones.
        image = pyvips.Image.pngload_source(source, access="sequential", fail_on="error", unlimited=True)
        if self._pixel > 1:
            image = image.bandfold(factor=self._pixel)
        return image.copy(**self._samples)

    def put(self, rows: NDArray[Any]) -> None:
        """Add rows, (n, w) or (n, w, bands) of the promised type, which must not change until they were taken.

        Waits while as many bytes wait as may. After `abandon` nothing happens.
        """
        lines = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
        step = max(1, PIECE_BYTES // lines.shape[1])
        for top in range(0, len(lines), step):
            piece = lines[top : top + step]
            with self._arrived:
                # What is larger than the limit goes through alone.
                while self._queued and self._queued + piece.nbytes > self._limit and not self._abandoned:
                    self._arrived.wait()
                if self._abandoned:
                    return
                self._waiting.append(piece)
                self._queued += piece.nbytes
                self._arrived.notify_all()

    def close(self) -> None:
        """No more rows come; once is enough."""
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()

    def abandon(self) -> None:
        """Let go whoever waits: rows that are put vanish, and libvips is told of a stream that broke off."""
        with self._arrived:
            self._abandoned = True
            self._waiting.clear()
            self._arrived.notify_all()

    def _read(self, size: int) -> bytes:
        """Called by libvips for the next bytes, at most so many (4096, as it is); none: the stream has ended."""
        while self._at == len(self._ready) and not self._abandoned and not self._ended:
            with self._arrived:
                self._arrived.wait_for(lambda: self._waiting or self._closed or self._abandoned)
                piece = self._waiting.popleft() if self._waiting else None
                if piece is not None:
                    self._queued -= piece.nbytes
                self._arrived.notify_all()
            # Without the lock: who puts must not wait for this.
            self._ready, self._at = self._last() if piece is None else self._wrapped(piece), 0
        if self._abandoned:
            return b""
        start, self._at = self._at, min(self._at + size, len(self._ready))
        return self._ready[start : self._at]

    def _wrapped(self, lines: NDArray[np.uint8]) -> bytes:
        """Rows in the form of the stream; nothing as long as there is too little of them."""
        # Each row of a PNG begins with the number of its filter.
        filtered = np.zeros((len(lines), lines.shape[1] + 1), np.uint8)
        filtered[:, 1:] = lines
        data = self._deflate.compress(filtered.data)
        return chunk(b"IDAT", data) if data else b""

    def _last(self) -> bytes:
        self._ended = True
        return chunk(b"IDAT", self._deflate.flush()) + chunk(b"IEND", b"")
