"""Pages of a libvips image that has been opened and not decoded, as the arrays that the upscaler takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.pictures.colour import SAMPLES, grey_or_rgb
from pcsr.runtime.pictures.metadata import carried, resolution
from pcsr.runtime.pictures.picture import Beside, Picture
from pcsr.runtime.pictures.rows import read_rows

__all__ = ["LazyPages"]


class LazyPages:
    """Pages of a lazy image, one below the other."""

    def __init__(
        self,
        image: Any,
        form: str,
        path: Path,
        pages: range,
        *,
        notes: Sequence[str] = (),
        metadata: Mapping[str, bytes | str] | None = None,
        holds: object = None,
    ) -> None:
        """Take an image as loaded.

        Args:
            image: of libvips.
            form: of the file.
            path: of the file, for errors.
            pages: numbers of those that are in the image, from 0.
            notes: of what is known of it.
            metadata: that libvips did not find.
            holds: what libvips needs as long as it reads the image.

        Raises:
            PictureError: samples or channels that mean nothing here.
        """
        import pyvips

        self._holds = holds
        self._form, self._pages, self._h = form, pages, image.height // len(pages)
        image, self._grey_alpha, converted = grey_or_rgb(image, path)
        self._image, self._notes = image, (*notes, *converted)
        self._region = pyvips.Region.new(image)
        self._metadata = {**carried(image), **(metadata or {})}

    def has(self, number: int) -> bool:
        """Whether a page is in the image; it can be decoded once, and after those before it."""
        return number in self._pages

    def page(self, number: int) -> Picture:
        """Decode a page.

        Raises:
            pyvips.Error: the file is damaged there.
        """
        pixels = np.empty(self.shape, dtype=self.dtype)
        self.read(self._pages.index(number) * self._h, pixels)
        beside = self.beside()
        return Picture(
            _upright(pixels, self._turn), **{each.name: getattr(beside, each.name) for each in fields(Beside)}
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a page as it lies in the file."""
        h, w, bands = self._h, self._image.width, self._image.bands
        return (h, w, bands) if bands > 1 else (h, w)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the samples."""
        return np.dtype(SAMPLES[self._image.format])

    @property
    def streams(self) -> bool:
        """Whether rows come one after another as they lie in the picture, and need no look at others."""
        image = self._image
        together = any(
            image.get_typeof(name) and image.get(name) for name in ("interlaced", "jpeg-multiscan")
        )
        return len(self._pages) == 1 and self._turn == 1 and image.bands in (1, 3) and not together

    def read(self, top: int, out: NDArray[Any]) -> None:
        """Decode rows of the image from one on; never rows above those decoded before.

        Raises:
            pyvips.Error: the file is damaged there.
        """
        read_rows(self._region, top, out, self.dtype)
        if 8 < self._bits < 16:
            # libvips puts them into the upper bits: the lower ones repeat those, so that white is white.
            out |= out >> np.uint16(self._bits)

    def beside(self) -> Beside:
        """What lies beside the pixels of each page."""
        across, down = resolution(self._image, self._form)
        return Beside(
            format=self._form,
            metadata=self._metadata,
            resolution=(down, across) if self._turn in (5, 6, 7, 8) else (across, down),
            bits=self._bits,
            grey_alpha=self._grey_alpha,
            notes=self._notes,
        )

    @property
    def _bits(self) -> int:
        if self._form in ("avif", "heif") and self._image.get_typeof("bits-per-sample"):
            return int(self._image.get("bits-per-sample"))
        return 8 * self.dtype.itemsize

    @property
    def _turn(self) -> int:
        return int(self._image.get("orientation")) if self._image.get_typeof("orientation") else 1


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply an EXIF orientation (EXIF 2.3, tag 0x0112: 1 upright, 2 to 8 mirrored and turned)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
