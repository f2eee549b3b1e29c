"""Training pictures: odd ones are named and left out, and where they lie changes nothing."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import skimage.data

from pcsr.runtime.errors import OptionError, TrainingError
from pcsr.runtime.pictures import read_picture, write_picture
from pcsr.training.pictures import load_pool


def test_pictures_are_decoded_in_the_order_of_their_names(photos: Path) -> None:
    pool = load_pool(photos, side=48, memory=1 << 20)
    assert pool.names == ("astronaut.png", "chelsea.png", "coffee.png")
    for name, picture in zip(pool.names, pool.pictures, strict=True):
        assert np.array_equal(picture, read_picture(photos / name).pixels)


def test_damaged_tiny_and_odd_pictures_are_named_and_skipped(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(photos, folder)
    whole = (photos / "coffee.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("not a picture")
    write_picture(folder / "tiny.png", skimage.data.coffee()[:20, :60])
    write_picture(folder / "clear.png", np.full((60, 60, 4), 100, np.uint8))
    write_picture(folder / "grey.png", skimage.data.camera()[:60, :60])
    with caplog.at_level(logging.WARNING, logger="pcsr"):
        pool = load_pool(folder, side=48, memory=1 << 20)
    assert pool.names == ("astronaut.png", "chelsea.png", "coffee.png", "grey.png")
    assert [name for name, _ in pool.skipped] == ["clear.png", "cut.png", "text.jpg", "tiny.png"]
    assert all(name in caplog.text for name, _ in pool.skipped)
    assert pool.pictures[3].shape == (60, 60, 3)


def test_deep_pictures_are_rounded_to_eight_bits(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 60 * 60 * 3).astype(np.uint16).reshape(60, 60, 3)
    write_picture(tmp_path / "deep.png", levels)
    (picture,) = load_pool(tmp_path, side=48, memory=1 << 20).pictures
    assert np.abs(picture - levels / 257).max() <= 0.501


def test_a_folder_without_usable_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no pictures"):
        load_pool(tmp_path, side=48, memory=1 << 20)
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(OptionError, match=r"can be used \(text\.png"):
        load_pool(tmp_path, side=48, memory=1 << 20)
    with pytest.raises(OptionError, match="cannot look into .*gone: no such folder"):
        load_pool(tmp_path / "gone", side=48, memory=1 << 20)


def test_pictures_beyond_the_memory_are_mapped_and_the_same(photos: Path, tmp_path: Path) -> None:
    held = load_pool(photos, side=48, memory=1 << 20)
    mapped = load_pool(photos, side=48, memory=40_000, cache=tmp_path / "cache")
    assert mapped.sha256 == held.sha256
    for a, b in zip(held.pictures, mapped.pictures, strict=True):
        assert np.array_equal(a, b)
    assert not mapped.pictures[0].flags.owndata
    assert list((tmp_path / "cache").iterdir()) == []  # nothing stays behind, killed or not


def test_a_cache_that_cannot_be_written_is_an_error(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"data\.memory"):
        load_pool(photos, side=48, memory=1, cache=tmp_path / "file")


def test_the_hash_follows_content_and_names_and_not_the_folder(photos: Path, tmp_path: Path) -> None:
    first = load_pool(photos, side=48, memory=1 << 20).sha256
    moved = tmp_path / "moved"
    shutil.copytree(photos, moved)
    assert load_pool(moved, side=48, memory=1 << 20).sha256 == first
    (moved / "coffee.png").rename(moved / "tea.png")
    assert load_pool(moved, side=48, memory=1 << 20).sha256 != first
