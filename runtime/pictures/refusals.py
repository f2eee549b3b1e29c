"""Why a picture file was not read, in the words of those who have to do something about it."""

from __future__ import annotations

import re
from pathlib import Path

from pcsr.runtime.errors import PictureError
from pcsr.runtime.pictures.formats import INPUT_LABELS

__all__ = ["damaged", "reason", "unreadable"]

# What decoders say of files that are intact, and what is said instead.
RARE = {
    r"HEVC": "is compressed with HEVC, which the libvips that comes with pyvips does not decode; install libvips with "
    "libheif and libde265 on the system, or convert the file to JPEG, PNG or AVIF",
    r"data precision (\d+)": "is a JPEG of \\1 bits, which is not decoded here; convert it to PNG or TIFF of 16 bits",
    r"SOF type 0x(\w+)": "is a JPEG of a rare kind (SOF type 0x\\1), which is not decoded here; convert it to PNG",
}


def unreadable(path: Path, error: OSError) -> PictureError:
    """The system does not give the file's bytes."""
    return PictureError(f"cannot read {path}: {error.strerror or error}; check name and permission")


def damaged(path: Path, form: str, error: Exception, *, salvaging: bool) -> PictureError:
    """A decoder does not get through the file.

    Args:
        path: of the file.
        form: of `INPUT_LABELS`.
        error: of the decoder.
        salvaging: what decodes was wanted already, or cannot be had.
    """
    why = reason(error)
    for pattern, instead in RARE.items():
        if found := re.search(pattern, why):
            return PictureError(f"{path} {found.expand(instead)}")
    remedy = "" if salvaging else ", take what decodes with --salvage"
    return PictureError(
        f"{path} cannot be decoded as {INPUT_LABELS[form]}{why}; it is damaged, cut short or of a rare kind, so get an "
        f"intact copy{remedy} or convert it"
    )


def reason(error: Exception) -> str:
    """What a decoder said last, in parentheses; nothing if it said nothing."""
    # libvips keeps what it has to say for all threads in one place: another may have taken it.
    detail = getattr(error, "detail", None) if hasattr(error, "detail") else str(error)
    lines = [line.strip() for line in (detail or "").splitlines() if line.strip()]
    # libvips tells the same as often as it came up, and of our own buffer that it could not be loaded.
    told = [line for line in dict.fromkeys(lines) if not line.endswith(": load error")]
    return f" ({'; '.join(told[-2:])})" if told else ""
