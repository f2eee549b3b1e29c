"""EXIF between TIFF, which libvips leaves alone, and the other formats. Pillow and tifffile read what is written."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pcsr.runtime.pictures import Encoding, Picture, PictureWriter, open_picture, read_picture, write_picture
from pcsr.runtime.pictures.exif import exif_block, exif_of_block, shortened

PHOTO = np.ascontiguousarray(skimage.data.chelsea()[60:100, 100:150])
EXIF_POINTER, GPS_POINTER = 0x8769, 0x8825
DESCRIPTION, MAKE, ORIENTATION, RATING = 0x010E, 0x010F, 0x0112, 0x4746
WIDTH, HEIGHT, MAKER_NOTE = 0xA002, 0xA003, 0x927C
NOTE = bytes(range(256)) * 9


def camera_exif(*, orientation: int = 1, description: str = "A cat, looking. " * 40) -> bytes:
    exif = Image.Exif()
    exif.update({DESCRIPTION: description, MAKE: "Maker (of cameras)", RATING: 4, ORIENTATION: orientation})
    exif.get_ifd(EXIF_POINTER).update(
        {
            WIDTH: PHOTO.shape[1],
            HEIGHT: PHOTO.shape[0],
            MAKER_NOTE: NOTE,
            0x9003: "2024:05:06 07:08:09",
            0x829A: (1, 125),
            0x9204: -0.5,
            0x8827: 400,
            0xA432: (24.0, 70.0, 2.8, 4.0),
        }
    )
    exif.get_ifd(GPS_POINTER).update({1: "S", 2: (12.0, 34.0, 56.5), 5: b"\x01"})
    return exif.tobytes()


def seen(path: Path) -> dict[int, Any]:
    """What Pillow reads of the tags above, but for those that are to change."""
    with Image.open(path) as opened:
        exif = opened.getexif()
        tags = {
            **{tag: exif[tag] for tag in (DESCRIPTION, MAKE) if tag in exif},
            **exif.get_ifd(EXIF_POINTER),
            **exif.get_ifd(GPS_POINTER),
        }
    # Written by libexif of its own accord: version, components, FlashPix, colour space.
    for tag in (0x9000, 0x9101, 0xA000, 0xA001):
        tags.pop(tag, None)
    return tags


def upscaled(source: Path, out: Path) -> list[str]:
    """Twice as wide and three times as high; gives the notes."""
    picture = read_picture(source, page=1)
    large = picture.pixels.repeat(3, axis=0).repeat(2, axis=1)
    with PictureWriter(out, large.shape, large.dtype, like=picture) as writer:
        writer.put(large)
    return [*picture.notes, *writer.notes]


@pytest.mark.parametrize("out", ["out.tif", "out.jpg", "out.png", "out.webp", "out.avif"])
@pytest.mark.parametrize("source", ["in.jpg", "in.tif", "in.png"])
def test_exif_is_kept_from_and_to_every_format_but_for_the_size(
    tmp_path: Path, source: str, out: str
) -> None:
    Image.fromarray(PHOTO).save(tmp_path / source, exif=camera_exif())
    before = seen(tmp_path / source)
    notes = upscaled(tmp_path / source, tmp_path / out)
    after = seen(tmp_path / out)

    h, w = PHOTO.shape[:2]
    assert (after.pop(WIDTH), after.pop(HEIGHT)) == (2 * w, 3 * h)
    assert (before.pop(WIDTH), before.pop(HEIGHT)) == (w, h)
    assert len(before) == 11
    assert after == before
    assert notes == []


def test_tifffile_reads_the_pixels_and_the_exif_that_stand_behind_them(tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "in.jpg", exif=camera_exif(), quality=95)
    upscaled(tmp_path / "in.jpg", tmp_path / "out.tif")
    with tifffile.TiffFile(tmp_path / "out.tif") as opened:
        (page,) = opened.pages
        tags = page.aspage().tags

        np.testing.assert_array_equal(page.asarray()[::3, ::2], read_picture(tmp_path / "in.jpg").pixels)
        assert list(tags.keys()) == sorted(tags.keys())
        assert tags[EXIF_POINTER].value["MakerNote"] == NOTE
        assert tags[GPS_POINTER].value["GPSLatitudeRef"] == "S"
        assert tags[RATING].value == 4


@pytest.mark.parametrize("bigtiff", [False, True], ids=["classic", "BigTIFF"])
@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("out", ["out.tif", "out.jpg"])
def test_exif_of_tiff_is_read_in_every_layout(tmp_path: Path, order: str, bigtiff: bool, out: str) -> None:
    made = tiff_with_exif(order, big=bigtiff)
    (tmp_path / "in.tif").write_bytes(made)
    upscaled(tmp_path / "in.tif", tmp_path / out)
    after = seen(tmp_path / out)

    assert after[DESCRIPTION].rstrip("\0") == "A cat"
    assert after[0x8827] == 1600
    assert after[0x829A] == pytest.approx(1 / 250)
    assert (after[WIDTH], after[HEIGHT]) == (4, 6)
    assert after[1].rstrip("\0") == "N"


def tiff_with_exif(order: str, *, big: bool) -> bytes:
    """Two by two grey pixels, written by hand; each directory is followed by its one long value."""
    word = "Q" if big else "I"

    def directory(at: int, *entries: tuple[int, int, int, bytes]) -> bytes:
        size = struct.calcsize(order + word)
        lines, rest = b"", b""
        behind = at + (8 if big else 2) + len(entries) * (4 + 2 * size) + size
        for tag, kind, count, value in entries:
            field = value.ljust(size, b"\0")
            if len(value) > size:
                field = struct.pack(order + word, behind + len(rest))
                rest += value + b"\0" * (len(value) % 2)
            lines += struct.pack(order + "HH" + word, tag, kind, count) + field
        return struct.pack(order + ("Q" if big else "H"), len(entries)) + lines + bytes(size) + rest

    def short(number: int) -> bytes:
        return struct.pack(order + "H", number)

    def long(number: int) -> bytes:
        return struct.pack(order + "I", number)

    mark = b"II" if order == "<" else b"MM"
    start = mark + (struct.pack(order + "HHHQ", 43, 8, 0, 24) if big else struct.pack(order + "HI", 42, 12))
    start += bytes([10, 20, 30, 40]).ljust(8 if big else 4, b"\0")
    exposure = (
        (0x829A, 5, 1, struct.pack(order + "II", 1, 250)),
        (0x8827, 3, 1, short(1600)),
        (WIDTH, 4, 1, long(2)),
        (HEIGHT, 3, 1, short(2)),
    )
    place = ((1, 2, 2, b"N\0"),)

    def first(exif: int, gps: int) -> bytes:
        return directory(
            len(start),
            *((256, 3, 1, short(2)), (257, 3, 1, short(2)), (258, 3, 1, short(8)), (259, 3, 1, short(1))),
            *((262, 3, 1, short(1)), (DESCRIPTION, 2, 6, b"A cat\0"), (273, 4, 1, long(16 if big else 8))),
            *((277, 3, 1, short(1)), (278, 3, 1, short(2)), (279, 4, 1, long(4))),
            *((EXIF_POINTER, 4, 1, long(exif)), (GPS_POINTER, 4, 1, long(gps))),
        )

    at = len(start) + len(first(0, 0))
    parts = directory(at, *exposure)
    return start + first(at, at + len(parts)) + parts + directory(at + len(parts), *place)


@pytest.mark.parametrize("name", ["in.tif", "in.jpg"])
def test_the_orientation_is_not_carried_where_the_pixels_are_upright(tmp_path: Path, name: str) -> None:
    Image.fromarray(PHOTO).save(tmp_path / name, exif=camera_exif(orientation=6))
    upscaled(tmp_path / name, tmp_path / "out.tif")
    with Image.open(tmp_path / "out.tif") as opened:
        assert opened.getexif()[ORIENTATION] == 1
        assert opened.size == (2 * PHOTO.shape[0], 3 * PHOTO.shape[1])
    assert seen(tmp_path / "out.tif")[WIDTH] == 2 * PHOTO.shape[0]


def test_the_first_of_several_pages_carries_exif_and_the_others_stay_whole(tmp_path: Path) -> None:
    first, second = Image.fromarray(PHOTO), Image.fromarray(PHOTO[::-1].copy())
    first.save(tmp_path / "in.tif", save_all=True, append_images=[second], exif=camera_exif())
    with open_picture(tmp_path / "in.tif") as opened:
        pages = list(opened.pages())
    with PictureWriter(tmp_path / "out.tif", PHOTO.shape, np.uint8, like=pages[0], pages=2) as writer:
        for page in pages:
            writer.put(page.pixels)

    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        np.testing.assert_array_equal(tif.pages[0].asarray(), PHOTO)
        np.testing.assert_array_equal(tif.pages[1].asarray(), PHOTO[::-1])
        assert len(tif.pages) == 2
    assert seen(tmp_path / "out.tif")[MAKER_NOTE] == NOTE


def test_exif_is_added_to_a_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain: Callable[..., dict[str, object]] = Encoding.options
    monkeypatch.setattr(Encoding, "options", lambda *args: {**plain(*args), "bigtiff": True})
    Image.fromarray(PHOTO).save(tmp_path / "in.jpg", exif=camera_exif())
    upscaled(tmp_path / "in.jpg", tmp_path / "out.tif")

    assert (tmp_path / "out.tif").read_bytes().startswith(b"II+\0")
    assert seen(tmp_path / "out.tif")[MAKER_NOTE] == NOTE
    with tifffile.TiffFile(tmp_path / "out.tif") as tif:
        assert tif.pages[0].aspage().tags[EXIF_POINTER].value["MakerNote"] == NOTE


def test_what_programs_describe_their_arrays_by_is_not_carried_to_an_array_of_another_shape(
    tmp_path: Path,
) -> None:
    tifffile.imwrite(tmp_path / "in.tif", PHOTO, photometric="rgb")
    upscaled(tmp_path / "in.tif", tmp_path / "out.tif")
    h, w, bands = PHOTO.shape
    assert tifffile.imread(tmp_path / "out.tif").shape == (3 * h, 2 * w, bands)
    assert DESCRIPTION not in seen(tmp_path / "out.tif")


@pytest.mark.parametrize("out", ["out.jpg", "out.png", "out.webp", "out.avif"])
def test_exif_too_long_for_a_format_loses_its_longest_part_and_says_so(tmp_path: Path, out: str) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "in.tif", exif=camera_exif(description="cat " * 20000))
    notes = upscaled(tmp_path / "in.tif", tmp_path / out)

    assert seen(tmp_path / out)[MAKER_NOTE] == NOTE
    assert DESCRIPTION not in seen(tmp_path / out)
    assert any("longest parts of EXIF" in note for note in notes)


def test_a_pointer_into_nowhere_is_told_and_the_rest_is_kept(tmp_path: Path) -> None:
    made = tiff_with_exif("<", big=False)
    pointer = struct.pack("<HHI", EXIF_POINTER, 4, 1)
    at = made.index(pointer) + len(pointer)
    (tmp_path / "in.tif").write_bytes(made[:at] + struct.pack("<I", 1 << 31) + made[at + 4 :])
    notes = upscaled(tmp_path / "in.tif", tmp_path / "out.tif")

    assert any("damaged EXIF" in note for note in notes)
    assert seen(tmp_path / "out.tif")[DESCRIPTION].rstrip("\0") == "A cat"


# --- what comes from strangers


def blocks() -> st.SearchStrategy[bytes]:
    """A real block in which some bytes are others, or any bytes."""
    real = bytearray(camera_exif())
    changes = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=12)

    def changed(each: list[tuple[int, int]]) -> bytes:
        block = bytearray(real)
        for at, value in each:
            block[at] = value
        return bytes(block)

    return (
        changes.map(changed)
        | st.binary(max_size=200)
        | st.binary(max_size=100).map(lambda each: b"Exif\0\0II*\0" + each)
    )


@given(block=blocks())
@settings(deadline=None, max_examples=300)
def test_a_block_of_any_bytes_is_read_and_what_is_read_is_written_the_same(block: bytes) -> None:
    exif = exif_of_block(block)
    again = exif_of_block(exif_block(exif))
    assert (again.picture, again.exposure, again.place) == (exif.picture, exif.exposure, exif.place)
    assert len(exif_block(shortened(exif, 1000))) <= 1000


@pytest.mark.parametrize("name", ["a.tif", "a.jpg", "a.png", "a.webp", "a.avif"])
@given(block=blocks())
@settings(deadline=None, max_examples=25)
def test_a_block_of_any_bytes_keeps_no_picture_from_being_written(name: str, block: bytes) -> None:
    pixels = PHOTO[:4, :4].copy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write_picture(path, pixels, like=Picture(pixels, format="png", metadata={"exif-data": block}))
        back = read_picture(path)
        assert back.pixels.shape == pixels.shape


@given(changes=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=8))
@settings(deadline=None, max_examples=100)
def test_no_change_to_the_directories_of_a_tiff_runs_on_or_fails_otherwise_than_by_its_own_error(
    changes: list[tuple[int, int]],
) -> None:
    from pcsr.runtime.errors import PictureError

    made = bytearray(tiff_with_exif(">", big=True))
    for at, value in changes:
        made[at % len(made)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tif"
        path.write_bytes(made)
        try:
            read_picture(path, max_pixels=10000)
        except PictureError as error:
            assert str(path) in str(error)
