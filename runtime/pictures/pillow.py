"""What libvips does not read here: BMP and animated PNG; through Pillow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.pictures.metadata import UNKNOWN_RESOLUTION

__all__ = ["PillowFile"]

# Pillow's modes, as what they are decoded to.
MODES = {"1": "L", "L": "L", "P": "RGB", "PA": "RGBA", "LA": "RGBA", "RGB": "RGB", "RGBA": "RGBA"}


class PillowFile:
    """A picture file that Pillow has opened; only its header is decoded.

    Attributes:
        size: (h, w).
        pages: frames.
        loop: how often an animation is to run; 0: for ever.
        resolution: pixels per millimetre.
        profile: the ICC profile.
    """

    def __init__(self, form: str, file: BinaryIO) -> None:
        """Open a "bmp" or "png".

        Raises:
            Whatever Pillow raises: OSError, ValueError, SyntaxError, struct.error and more.
        """
        # By its class: Image.open() would try other formats too, and judge sizes by a limit of its own.
        self._image = _opener(form)(file)
        self.size = (self._image.height, self._image.width)
        # A PNG may hold a picture for readers that know no animation, which is no frame of it.
        self._first = 1 if self._image.info.get("default_image") else 0
        self.pages = getattr(self._image, "n_frames", 1) - self._first
        self.loop = int(self._image.info.get("loop", 0))
        dpi = self._image.info.get("dpi")
        self.resolution = (float(dpi[0]) / 25.4, float(dpi[1]) / 25.4) if dpi else UNKNOWN_RESOLUTION
        profile = self._image.info.get("icc_profile")
        self.profile = profile if isinstance(profile, bytes) else None

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """Each frame, (h, w), (h, w, 3) or (h, w, 4).

        Raises:
            ValueError: samples that are not 8-bit.
            Whatever else Pillow raises.
        """
        for number in range(self.pages):
            if self.pages > 1:
                self._image.seek(self._first + number)
            mode = MODES.get(self._image.mode)
            if mode is None:
                raise ValueError(f"samples of kind {self._image.mode}")
            if mode == "RGB" and "transparency" in self._image.info:
                mode = "RGBA"
            frame = self._image if self._image.mode == mode else self._image.convert(mode)
            yield np.asarray(frame)


def _opener(form: str) -> Callable[[BinaryIO], Any]:
    if form == "bmp":
        from PIL.BmpImagePlugin import BmpImageFile

        return BmpImageFile
    from PIL.PngImagePlugin import PngImageFile

    return PngImageFile
