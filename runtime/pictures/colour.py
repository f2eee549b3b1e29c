"""Any colours as the grey, RGB or RGBA that the upscaler takes, at their own bit depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pcsr.runtime.errors import PictureError
from pcsr.runtime.pictures.picture import ICC

__all__ = ["SAMPLES", "grey_or_rgb"]

SAMPLES = {"uchar": np.uint8, "ushort": np.uint16, "float": np.float32}
"""NumPy's types of libvips' samples that are taken."""

# libvips' names for grey and RGB, with or without alpha.
GREY = {"b-w", "grey16"}
GREY_OR_RGB = GREY | {"srgb", "rgb", "rgb16", "scrgb"}
LAB = {"lab", "labs", "labq"}


def grey_or_rgb(image: Any, path: Path) -> tuple[Any, bool, list[str]]:
    """A libvips image as grey, RGB or RGBA in one of `SAMPLES`; nothing is computed yet.

    CMYK goes through its own profile, or where it has none through a generic one, to sRGB; Lab to sRGB of 8 or
    16 bits; grey with alpha becomes RGBA.

    Args:
        image: as loaded.
        path: of its file, for errors.

    Returns:
        The image, whether it was grey with alpha, and notes on what was converted.

    Raises:
        PictureError: samples or channels that mean nothing here.
    """
    notes = []
    deep = image.format != "uchar"
    if image.interpretation == "cmyk":
        if image.bands > 4:
            # Transparency or a spot colour in the fifth channel: no profile knows of it.
            raise PictureError(f"{path} is CMYK with {image.bands} channels; convert it to RGB or RGBA first")
        whose = "its own profile" if image.get_typeof(ICC) else "a generic CMYK profile (it has none)"
        notes.append(f"is CMYK: converted to sRGB through {whose}")
        image = image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=16 if deep else 8)
    elif image.interpretation in LAB:
        # 8-bit Lab arrives as float too; only the header still knows.
        deep = not image.get_typeof("bits-per-sample") or image.get("bits-per-sample") > 8
        notes.append(f"is Lab: converted to {16 if deep else 8}-bit sRGB")
        image = image.colourspace("rgb16" if deep else "srgb")
    if image.format not in SAMPLES:
        raise PictureError(
            f"{path} has samples of type {image.format}; convert it to 8- or 16-bit or float samples first"
        )
    known = image.interpretation in GREY_OR_RGB or (image.interpretation == "multiband" and image.bands == 1)
    if image.interpretation in GREY and image.bands == 3:
        notes.append("has three channels of grey: taken as RGB")
    elif image.interpretation in GREY and image.bands > 3:
        # Nothing says that the fourth is transparency.
        known = False
    if not known or image.bands > 4:
        raise PictureError(
            f"{path} has {image.bands} channels of kind {image.interpretation}; "
            "convert it to grey, RGB or RGBA first"
        )
    grey_alpha = image.bands == 2
    if grey_alpha:
        grey, alpha = image.bandsplit()
        image = grey.bandjoin([grey, grey, alpha])
    return image, grey_alpha, notes
