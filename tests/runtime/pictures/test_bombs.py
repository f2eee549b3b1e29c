"""Files that claim or unpack to more than they are: refused, or read, without taking the memory first."""

from __future__ import annotations

import functools
import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

SMALL = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
SIDE = 20_000
MEBIBYTE = 1 << 20


def saved(form: str, **options: object) -> bytearray:
    file = io.BytesIO()
    SMALL.save(file, form, **options)
    return bytearray(file.getvalue())


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(extra: bytes = b"", *, w: int = 50, h: int = 40) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((1 + 3 * 50) * 40)))
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + chunk(b"IEND", b"")


def with_sides(content: bytearray, before: bytes, form: str, *, skip: int = 0, side: int = SIDE) -> bytes:
    """With both sides written so many bytes behind a mark."""
    at = content.index(before) + len(before) + skip
    struct.pack_into(form, content, at, side, side)
    return bytes(content)


def tiff(*entries: tuple[int, int, int, int], behind: bytes = b"") -> bytes:
    lines = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + lines + bytes(4) + behind


def grey_tiff(w: int, h: int, *entries: tuple[int, int, int, int], behind: bytes = b"") -> bytes:
    kinds = ((258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1))
    return tiff((256, 4, 1, w), (257, 4, 1, h), *kinds, *entries, behind=behind)


@functools.cache
def zeros(mebibytes: int) -> bytes:
    packing = zlib.compressobj(1)
    return b"".join([*(packing.compress(bytes(MEBIBYTE)) for _ in range(mebibytes)), packing.flush()])


def animation() -> bytes:
    frame = struct.pack(">IIIIIHHBB", 0, SIDE, SIDE, 0, 0, 1, 1, 0, 0)
    return chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", frame)


TOO_LARGE = f"has {SIDE}x{SIDE} pixels and the limit is"
CUT = "cannot be decoded as "
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    # Sides that are too long.
    "side.png": (lambda: png(w=SIDE, h=SIDE), TOO_LARGE),
    "side_animated.png": (lambda: png(animation(), w=SIDE, h=SIDE), TOO_LARGE),
    "side.jpg": (lambda: with_sides(saved("JPEG"), b"\xff\xc0", ">HH", skip=3), TOO_LARGE),
    "side_progressive.jpg": (
        lambda: with_sides(saved("JPEG", progressive=True), b"\xff\xc2", ">HH", skip=3),
        TOO_LARGE,
    ),
    "side.tif": (lambda: grey_tiff(SIDE, SIDE, (273, 4, 1, 8), (278, 4, 1, 1), (279, 4, 1, 9)), TOO_LARGE),
    "side.gif": (lambda: with_sides(saved("GIF"), b"\x2c\0\0\0\0", "<HH"), TOO_LARGE),
    "side.avif": (lambda: with_sides(saved("AVIF"), b"ispe", ">II", skip=4), TOO_LARGE),
    "side.bmp": (lambda: with_sides(saved("BMP"), b"BM", "<ii", skip=16), TOO_LARGE),
    "side_down.bmp": (
        lambda: with_sides(saved("BMP"), b"BM", "<iI", skip=16, side=-SIDE & 0x7FFFFFFF),
        "limit",
    ),
    # Sides of a WebP have 14 bits in the pixels and 24 around them: both must agree.
    "side.webp": (lambda: with_sides(saved("WEBP"), b"\x9d\x01\x2a", "<HH", side=16383), CUT + "WebP"),
    # Within the limit, and no pixels behind it.
    "cut.bmp": (lambda: with_sides(saved("BMP"), b"BM", "<ii", skip=16, side=16000), CUT + "BMP"),
    "cut.avif": (lambda: with_sides(saved("AVIF"), b"ispe", ">II", skip=4, side=16000), CUT + "AVIF"),
    "strips.tif": (
        lambda: grey_tiff(1, 200_000_000, (273, 4, 200_000_000, 8), (278, 4, 1, 1), (279, 4, 200_000_000, 8)),
        CUT + "TIFF",
    ),
    "strip.tif": (
        lambda: grey_tiff(
            16000, 16000, (273, 4, 1, 200), (278, 4, 1, 2**32 - 1), (279, 4, 1, 2**32 - 16), behind=zeros(1)
        ),
        CUT + "TIFF",
    ),
    "tile.tif": (
        lambda: grey_tiff(
            *(100, 100, (322, 4, 1, 1 << 15), (323, 4, 1, 1 << 15), (324, 4, 1, 200), (325, 4, 1, 20)),
            behind=zeros(1),
        ),
        CUT + "TIFF",
    ),
    "metadata.tif": (
        lambda: grey_tiff(
            *(5, 5, (273, 4, 1, 8), (278, 4, 1, 5), (279, 4, 1, 25)),
            *((700, 7, 1 << 29, 8), (34665, 4, 1, 8), (34675, 7, 1 << 29, 8)),
        ),
        CUT + "TIFF",
    ),
    # What unpacks to a gigabyte, and what says that it has one.
    "profile.png": (lambda: png(chunk(b"iCCP", b"x\0\0" + zeros(1024))), "read"),
    "text.png": (lambda: png(chunk(b"zTXt", b"x\0\0" + zeros(1024))), "64 MiB of text"),
    "xmp.png": (lambda: png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zeros(1024))), "64 MiB of text"),
    "texts.png": (lambda: png(chunk(b"iTXt", b"x\0\1\0\0\0" + zeros(7)) * 200), "64 MiB of text"),
    "length.png": (lambda: png(struct.pack(">I", 2**31 - 1) + b"tEXt"), CUT + "PNG"),
    "frames.png": (
        lambda: png(chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)) + animation()[20:]),
        CUT + "PNG",
    ),
    "riff.webp": (lambda: bytes(saved("WEBP")[:4] + b"\xf0\xff\xff\xff" + saved("WEBP")[8:]), CUT + "WebP"),
}

READ_EACH = """
import json, logging, re, sys
from pathlib import Path
from pcsr.runtime.errors import PictureError
from pcsr.runtime.pictures import read_picture

logging.disable(logging.CRITICAL)

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

known, *paths = sys.argv[1:]
for path in [*Path(known).iterdir(), *map(Path, paths)]:
    before = peak()
    try:
        read_picture(path)
        said = "read"
    except PictureError as error:
        said = str(error)
    print(json.dumps([path.name, said, peak() - before]))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """What is said of each file by a process that reads them all, and by how many MiB its memory grew for each."""
    folder = tmp_path_factory.mktemp("bombs")
    (folder / "known").mkdir()
    # Decoders load and warm up with these.
    for form in ("PNG", "JPEG", "TIFF", "GIF", "AVIF", "BMP", "WEBP"):
        (folder / "known" / form).write_bytes(saved(form))
    paths = [folder / name for name in FILES]
    for path in paths:
        path.write_bytes(FILES[path.name][0]())
    done = subprocess.run(
        [sys.executable, "-c", READ_EACH, str(folder / "known"), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return {name: (said, grown) for name, said, grown in map(json.loads, done.stdout.splitlines())}


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory of a process is read from /proc")
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_claims_much_gets_one_clear_answer_and_little_memory(
    outcomes: dict[str, tuple[str, int]], name: str
) -> None:
    said, grown = outcomes[name]
    assert FILES[name][1] in said
    assert said == "read" or name in said
    assert "\n" not in said
    # The largest of the pictures would have 760 MiB, and what is unpacked here a gigabyte.
    assert grown < 60
