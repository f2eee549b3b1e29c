"""Pages of a libvips image that has been opened and not decoded, as the arrays that the upscaler takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.pictures.colour import SAMPLES, grey_or_rgb
from pcsr.runtime.pictures.metadata import carried, resolution
from pcsr.runtime.pictures.picture import Picture
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
        image, samples = self._image, SAMPLES[self._image.format]
        shape = (self._h, image.width, image.bands) if image.bands > 1 else (self._h, image.width)
        pixels = np.empty(shape, dtype=samples)
        read_rows(self._region, self._pages.index(number) * self._h, pixels, samples)
        bits = 8 * pixels.itemsize
        if self._form in ("avif", "heif") and image.get_typeof("bits-per-sample"):
            bits = int(image.get("bits-per-sample"))
            if 8 < bits < 16:
                # libvips puts them into the upper bits: the lower ones repeat those, so that white is white.
                pixels |= pixels >> np.uint16(bits)
        turn = image.get("orientation") if image.get_typeof("orientation") else 1
        across, down = resolution(image, self._form)
        return Picture(
            _upright(pixels, turn),
            self._form,
            metadata=self._metadata,
            resolution=(down, across) if turn in (5, 6, 7, 8) else (across, down),
            bits=bits,
            grey_alpha=self._grey_alpha,
            notes=self._notes,
        )


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply an EXIF orientation (EXIF 2.3, tag 0x0112: 1 upright, 2 to 8 mirrored and turned)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
