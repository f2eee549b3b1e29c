"""What lies beside the pixels: colour profile, EXIF, XMP, IPTC, resolution; carried, and put right where it is stale.

An upscaled picture has other dimensions than the one that its metadata describe, stands upright, and its thumbnail
would show the old one.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, BinaryIO

from pcsr.runtime.pictures.exif import (
    Exif,
    add_to_tiff,
    exif_block,
    exif_of_block,
    exif_of_directory,
    resolution_of_block,
    shortened,
)
from pcsr.runtime.pictures.formats import Format
from pcsr.runtime.pictures.picture import ICC, Beside
from pcsr.runtime.pictures.png import xmp_chunk
from pcsr.runtime.pictures.tiff import Directory, ReadAt, Value

__all__ = [
    "UNKNOWN_RESOLUTION",
    "add_to_written_tiff",
    "carried",
    "found_in_tiff",
    "put_metadata",
    "resolution",
    "xmp_for_png",
]

EXIF, XMP, IPTC = "exif-data", "xmp-data", "iptc-data"
CARRIED = (ICC, EXIF, XMP, IPTC, "resolution-unit")
# The second directory of EXIF describes the thumbnail. libvips brings the dimensions in the third up to date; those
# in the first are TIFF's own, which other files have no use for.
EXIF_STALE = ("exif-ifd0-Orientation", "exif-ifd0-ImageWidth", "exif-ifd0-ImageLength", "exif-ifd1-")
LABELS = {ICC: "the colour profile", EXIF: "EXIF", XMP: "XMP", IPTC: "IPTC"}
# A segment of a JPEG has 65533 bytes with the mark of what is in it; longer ones libvips leaves out and says nothing.
# EXIF it leaves out of all files where it is longer, but for TIFF, into which it is not libvips that writes it.
LONGEST_EXIF = 65000
# Its header and an empty table of tags (ICC.1, section 7).
SHORTEST_ICC = 132
LONGEST_IN_JPEG = {XMP: 65500, IPTC: 65400}
# What libvips would leave out, cut, or write in a way of its own.
PUT_IN_OTHERWISE = {"tiff": (EXIF, IPTC), "png": (XMP,)}
# What is written in each format.
HELD = {
    "png": (ICC, EXIF, XMP),
    "jpeg": (ICC, EXIF, XMP, IPTC),
    "tiff": (ICC, EXIF, XMP, IPTC),
    "webp": (ICC, EXIF, XMP),
    "avif": (ICC, EXIF, XMP),
}


def carried(image: Any) -> dict[str, bytes | str]:
    """What goes from a loaded libvips image to the file that is written, under libvips' names."""
    found = {
        name: image.get(name)
        for name in _field_names(image)
        if (name in CARRIED or name.startswith("exif-")) and not name.startswith(EXIF_STALE)
    }
    block = found.get(IPTC)
    if isinstance(block, bytes):
        found.pop(IPTC)
        if records := _iptc_records(block):
            found[IPTC] = records
    return found


def _field_names(image: Any) -> list[str]:
    """Names of an image's metadata; pyvips' own list of them raises where a file has a name that is no UTF-8.

    PNG's keywords are Latin-1, for one, and damaged files have any bytes.
    """
    import pyvips

    listed = pyvips.vips_lib.vips_image_get_fields(image.pointer)
    names, at = [], 0
    while listed[at] != pyvips.ffi.NULL:
        name = pyvips.ffi.string(listed[at]).decode("utf-8", "replace")
        pyvips.glib_lib.g_free(listed[at])
        if "\ufffd" not in name:
            names.append(name)
        at += 1
    pyvips.glib_lib.g_free(listed)
    return names


# EXIF 2.32, section 4.6.4: what is to be taken where none is known, 72 pixels per inch.
UNKNOWN_RESOLUTION = (72 / 25.4, 72 / 25.4)


def resolution(image: Any, form: str) -> tuple[float, float]:
    """Of a loaded libvips image, horizontal and vertical, in pixels per millimetre."""
    if form in ("webp", "avif", "heif", "gif"):
        # These have it in EXIF if anywhere, where libvips looks for that of JPEG only.
        block = image.get(EXIF) if image.get_typeof(EXIF) else b""
        return resolution_of_block(block) or UNKNOWN_RESOLUTION
    if form == "tiff" and not image.get_typeof("resolution-unit") and image.xres == image.yres:
        return UNKNOWN_RESOLUTION
    return image.xres, image.yres


def put_metadata(image: Any, like: Beside, form: Format, size: tuple[int, int]) -> tuple[Any, list[str]]:
    """A libvips image with the metadata of another picture, and notes on what the format cannot hold.

    Args:
        image: about to be written.
        like: what it was made from.
        form: that it is written in.
        size: its (H, W); of one page.
    """
    import pyvips

    image = image.copy(xres=like.resolution[0], yres=like.resolution[1])
    # WebP and AVIF have no grey: it is written as RGB.
    space = b"GRAY" if image.bands < 3 and form.name not in ("webp", "avif") else b"RGB "
    notes = []
    for name, value in like.metadata.items():
        if name in LABELS and name not in HELD[form.name]:
            notes.append(f"{LABELS[name]} was left out: {form.label} files cannot hold it here")
            continue
        if name == ICC and isinstance(value, bytes) and form.name == "png":
            # Others take a profile that has more bytes than it says; libpng refuses the picture.
            value = value[: int.from_bytes(value[:4], "big")]  # noqa: PLW2901
            if len(value) < SHORTEST_ICC or len(value) != int.from_bytes(value[:4], "big"):
                notes.append("the colour profile of the input is cut short and was left out")
                continue
        if name == ICC and isinstance(value, bytes) and value[16:20] != space:
            # A profile of another kind of colour makes readers refuse the file or show it wrongly.
            notes.append(f"the colour profile of the input is for {value[16:20]!r} and was left out")
            continue
        if form.name == "jpeg" and len(value) > LONGEST_IN_JPEG.get(name, len(value)):
            notes.append(
                f"{LABELS[name]} was left out: its {len(value)} bytes are more than a JPEG file holds"
            )
            continue
        if name in PUT_IN_OTHERWISE.get(form.name, ()):
            continue
        if name == EXIF and isinstance(value, bytes):
            value, more = _fit_exif(value, form)  # noqa: PLW2901
            notes += more
            if not value:
                continue
        if name == XMP and isinstance(value, bytes):
            value = _upright_xmp(value, size)  # noqa: PLW2901
        if name == IPTC and isinstance(value, bytes) and form.name == "jpeg":
            value = _photoshop_block(value)  # noqa: PLW2901
        kind = pyvips.GValue.blob_type if isinstance(value, bytes) else pyvips.GValue.gstr_type
        image.set_type(kind, name, value)
    if EXIF in like.metadata:
        # The pixels are upright; without this the orientation within the EXIF block would turn them again.
        image.set_type(pyvips.GValue.gint_type, "orientation", 1)
        # An empty thumbnail in place of the old one: it stands within the EXIF block, too.
        image.set_type(pyvips.GValue.blob_type, "jpeg-thumbnail-data", b"")
    return image, notes


DAMAGED_EXIF = "damaged EXIF: what of it cannot be read was left out"


def _fit_exif(block: bytes, form: Format) -> tuple[bytes, list[str]]:
    """What of a block can be given to libvips, which writes no file at all with some that are damaged; and notes."""
    exif, notes = exif_of_block(block), []
    if exif.lost:
        notes.append(DAMAGED_EXIF)
    if long := len(block) > LONGEST_EXIF:
        notes.append(
            f"the longest parts of EXIF were left out: {form.label} files hold {LONGEST_EXIF} bytes of it"
        )
    if exif.lost or long:
        exif = shortened(exif, LONGEST_EXIF)
        block = exif_block(exif) if exif else b""
    return block, notes


# TIFF's tags. That of IPTC is said to hold long integers or bytes of any kind; what is in it are bytes.
TIFF_IPTC, TIFF_PHOTOSHOP = 33723, 34377
UNDEFINED, RECORD = 7, b"\x1c"


def found_in_tiff(read: ReadAt, directory: Directory) -> tuple[dict[str, bytes | str], list[str]]:
    """What goes from a page of a TIFF to the file that is written and libvips does not find, and notes on it.

    Args:
        read: of the file.
        directory: of the page.
    """
    found: dict[str, bytes | str] = {}
    if exif := exif_of_directory(read, directory):
        found[EXIF] = exif_block(exif)
    for tag in (TIFF_IPTC, TIFF_PHOTOSHOP):
        if IPTC not in found and (value := directory.value(tag)):
            # Turned around by writers that take the bytes for integers.
            turned = value.reordered("<", ">").content
            block = turned if turned.startswith(RECORD) else value.content
            if records := _iptc_records(block):
                found[IPTC] = records
    return found, [f"has {DAMAGED_EXIF}"] if exif.lost else []


def add_to_written_tiff(file: BinaryIO, like: Beside, size: tuple[int, int]) -> list[str]:
    """Put the EXIF and IPTC of another picture into a TIFF that libvips has written; gives notes on what is lost.

    Args:
        file: open to be read and written.
        like: what the picture in it was made from.
        size: its (H, W); of one page.

    Raises:
        OSError: the file cannot be read or written.
    """
    block, records = like.metadata.get(EXIF), like.metadata.get(IPTC)
    exif = exif_of_block(block) if isinstance(block, bytes) else Exif()
    notes = [DAMAGED_EXIF] if exif.lost else []
    if isinstance(records, bytes):
        # libvips cuts it to a quarter of its length.
        picture = {**exif.picture, TIFF_IPTC: Value(UNDEFINED, len(records), records)}
        exif = replace(exif, picture=picture)
    if exif and not add_to_tiff(file, exif, size):
        notes.append("EXIF and IPTC were left out: a TIFF of this size has no room for them")
    return notes


# XMP is XML, written by hundreds of programs. It is edited in place rather than parsed, so that what is not
# understood stays as it is: a property stands as an attribute or as an element.
def _property(name: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"(\b" + name + rb"\s*=\s*[\"']|<" + name + rb">\s*)(-?[0-9]{1,10})")


XMP_ORIENTATION = _property(b"tiff:Orientation")
XMP_WIDTHS = [_property(b"tiff:ImageWidth"), _property(b"exif:PixelXDimension")]
XMP_HEIGHTS = [_property(b"tiff:ImageLength"), _property(b"exif:PixelYDimension")]
XMP_THUMBNAILS = [(b"<%s:Thumbnails>" % prefix, b"</%s:Thumbnails>" % prefix) for prefix in (b"xmp", b"xap")]


def _upright_xmp(packet: bytes, size: tuple[int, int]) -> bytes:
    for opening, closing in XMP_THUMBNAILS:
        packet = _without(packet, opening, closing)
    packet = XMP_ORIENTATION.sub(rb"\g<1>1", packet)
    for patterns, length in ((XMP_HEIGHTS, size[0]), (XMP_WIDTHS, size[1])):
        for pattern in patterns:
            packet = pattern.sub(rb"\g<1>%d" % length, packet)
    return packet


def xmp_for_png(like: Beside, size: tuple[int, int]) -> tuple[bytes, list[str]]:
    """The chunk of XMP that a PNG gets, if any, and notes; libvips writes one that most readers do not find.

    Args:
        like: what the picture was made from.
        size: its (H, W).
    """
    packet = like.metadata.get(XMP)
    if not isinstance(packet, bytes):
        return b"", []
    packet = _upright_xmp(packet, size).rstrip(b"\0")
    try:
        text = packet.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return b"", ["XMP was left out: it is not in UTF-8, and PNG files hold no other"]
    return xmp_chunk(packet), []


def _without(packet: bytes, opening: bytes, closing: bytes) -> bytes:
    # Searched for step by step: a pattern for all of it would start over from each of a million openings.
    kept, at = [], 0
    while (first := packet.find(opening, at)) >= 0 and (last := packet.find(closing, first)) >= 0:
        kept.append(packet[at:first])
        at = last + len(closing)
    return b"".join([*kept, packet[at:]])


# IPTC records stand bare in TIFF files and in JPEG files within a block of Photoshop's, beside things that describe
# the old picture, a thumbnail among them. (Adobe Photoshop File Formats Specification, Image Resource Blocks.)
PHOTOSHOP = b"Photoshop 3.0\0"
RESOURCE, IPTC_RESOURCE = b"8BIM", 0x0404


def _iptc_records(block: bytes) -> bytes:
    """The bare records, of a block of either form; none if it is of neither."""
    if block.startswith(b"\x1c"):
        return block
    at = len(PHOTOSHOP) if block.startswith(PHOTOSHOP) else 0
    while block[at : at + 4] == RESOURCE:
        kind = int.from_bytes(block[at + 4 : at + 6], "big")
        # A name of one length byte and so many letters, padded to an even number of bytes.
        at += 6 + (block[at + 6 : at + 7] or b"\0")[0] // 2 * 2 + 2
        length = int.from_bytes(block[at : at + 4], "big")
        if kind == IPTC_RESOURCE:
            return block[at + 4 : at + 4 + length]
        at += 4 + length + length % 2
    return b""


def _photoshop_block(records: bytes) -> bytes:
    head = PHOTOSHOP + RESOURCE + IPTC_RESOURCE.to_bytes(2, "big") + b"\0\0"
    return head + len(records).to_bytes(4, "big") + records + b"\0" * (len(records) % 2)
