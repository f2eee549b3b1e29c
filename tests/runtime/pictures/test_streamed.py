"""Rows decoded as they are needed are the rows of the picture decoded whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image, PngImagePlugin

from pcsr.runtime import Upscaler
from pcsr.runtime.errors import PictureError
from pcsr.runtime.pictures import Encoding, Picture, open_picture, read_picture, write_picture
from pcsr.runtime.pictures.streamed import StreamedRows

PHOTO = skimage.data.chelsea()[20:230, 40:301]


def saved(path: Path, dtype: str = "uint8", grey: bool = False, **options: Any) -> Path:
    pixels = PHOTO[..., 1] if grey else PHOTO
    if dtype == "uint16":
        pixels = pixels.astype(np.uint16) * 251
    elif dtype == "float32":
        pixels = pixels.astype(np.float32) / 200 - 0.1
    write_picture(path, np.ascontiguousarray(pixels), encoding=Encoding(**options))
    return path


KINDS = [
    ("a.png", {}),
    ("a.png", {"dtype": "uint16"}),
    ("a.png", {"grey": True}),
    ("a.jpg", {}),
    ("a.jpg", {"grey": True}),
    ("a.tif", {}),
    ("a.tif", {"dtype": "uint16", "compression": "none"}),
    ("a.tif", {"dtype": "float32"}),
]


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_windows_that_go_down_the_picture_are_those_of_the_whole(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    path = saved(tmp_path / name, **options)
    whole = read_picture(path)
    with open_picture(path) as file:
        streamed = file.streamed()
        assert streamed is not None
        rows = streamed.pixels
        assert (rows.shape, rows.dtype) == (whole.pixels.shape, whole.pixels.dtype)
        assert (streamed.bits, streamed.resolution) == (whole.bits, whole.resolution)
        for _ in range(2):
            rows.begin()
            for top, bottom in ((0, 40), (0, 40), (21, 90), (80, 90), (81, 210)):
                rows.hold(top, bottom)
                held = rows[top:bottom, 7:200]
                np.testing.assert_array_equal(held, whole.pixels[top:bottom, 7:200])


def test_what_cannot_be_streamed_is_decoded_whole(tmp_path: Path) -> None:
    saved(tmp_path / "a.webp")
    Image.fromarray(PHOTO).save(tmp_path / "progressive.jpg", progressive=True)
    Image.fromarray(np.dstack([PHOTO, PHOTO[..., 0]])).save(tmp_path / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PHOTO).save(tmp_path / "turned.jpg", exif=exif)
    for name in ("a.webp", "progressive.jpg", "alpha.png", "turned.jpg"):
        with open_picture(tmp_path / name) as file:
            assert file.streamed() is None, name
    with open_picture(saved(tmp_path / "a.png"), salvage=True) as file:
        assert file.streamed() is None


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("rule", [{}, {"adaptive": True, "refine": True}])
def test_a_large_picture_comes_out_as_it_would_with_all_the_memory(
    tmp_path: Path, small_bundle: Path, name: str, rule: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / name)
    with Upscaler.open(small_bundle, tile=32) as up:
        up.upscale_file(path, tmp_path / "whole.png", scale=1.5, **rule)
        streamed: list[StreamedRows] = []
        begin = StreamedRows.begin
        monkeypatch.setattr(StreamedRows, "begin", lambda rows: (streamed.append(rows), begin(rows)))
        monkeypatch.setattr("pcsr.runtime.files.BYTES_PER_PIXEL", up.memory_limit)
        up.upscale_file(path, tmp_path / "streamed.png", scale=1.5, **rule)
    assert len(streamed) == (2 if rule else 1)
    whole, other = (read_picture(tmp_path / name).pixels for name in ("whole.png", "streamed.png"))
    np.testing.assert_array_equal(other, whole)


def test_damage_found_in_the_middle_leaves_no_output(
    tmp_path: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with Upscaler.open(small_bundle, tile=32) as up:
        monkeypatch.setattr("pcsr.runtime.files.BYTES_PER_PIXEL", up.memory_limit)
        with pytest.raises(PictureError, match=r"a\.png cannot be decoded as PNG"):
            up.upscale_file(path, tmp_path / "out.png", scale=2)
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]


def test_what_is_not_finite_is_found_when_it_is_read(
    tmp_path: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.zeros((90, 40, 3), np.float32)
    pixels[70, 3] = np.nan
    write_picture(tmp_path / "a.tif", pixels)
    with Upscaler.open(small_bundle, tile=16) as up:
        monkeypatch.setattr("pcsr.runtime.files.BYTES_PER_PIXEL", up.memory_limit)
        with pytest.raises(PictureError, match=r"a\.tif has NaN"):
            up.upscale_file(tmp_path / "a.tif", tmp_path / "out.tif", scale=2)


# --- what fuzzing found


def test_a_keyword_that_is_no_utf8_is_no_reason_to_fail(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add(b"tEXt", b"R\xe9sum\xe9\0text")
    Image.fromarray(PHOTO).save(tmp_path / "a.png", pnginfo=text)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png").pixels, PHOTO)


@pytest.mark.parametrize(("change", "kept"), [(b"\0", True), (b"", False)], ids=["longer", "shorter"])
def test_a_profile_of_another_length_than_it_says_does_not_keep_a_png_from_being_written(
    tmp_path: Path, change: bytes, kept: bool
) -> None:
    import pyvips

    profile = pyvips.Image.profile_load("p3")
    odd = profile + change if change else profile[:-1]
    like = Picture(PHOTO, format="webp", metadata={"icc-profile-data": odd})
    write_picture(tmp_path / "a.png", PHOTO, like=like)
    assert read_picture(tmp_path / "a.png").profile == (profile if kept else None)
