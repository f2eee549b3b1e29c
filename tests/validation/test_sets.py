"""Finding sets of pictures, and the rule by which LR and cropped truth are made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcsr.runtime.bicubic import resize
from pcsr.runtime.errors import OptionError, PictureError
from pcsr.runtime.geometry import output_size
from pcsr.runtime.pictures import write_picture
from pcsr.validation.sets import find_sets, make_pair, read_truth


def a_picture(path: Path, shape: tuple[int, ...] = (8, 9, 3), dtype: type = np.uint8) -> Path:
    path.parent.mkdir(exist_ok=True)
    write_picture(path, (np.arange(np.prod(shape)).reshape(shape) % 251).astype(dtype))
    return path


def test_pictures_right_inside_are_one_set_named_after_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "Set2"
    paths = tuple(a_picture(folder / name) for name in ("a.png", "b.TIFF", "c.jpg"))
    a_picture(folder / ".hidden.png")
    (folder / "README.md").write_text("no picture")
    (only,) = find_sets(folder)
    assert (only.name, only.paths) == ("Set2", paths)


def test_subfolders_with_pictures_are_sets_in_order(tmp_path: Path) -> None:
    for name in ("Set5", "Set14"):
        for number in range(3):
            a_picture(tmp_path / name / f"{number}.png")
    (tmp_path / "empty").mkdir()
    found = find_sets(tmp_path, limit=2)
    assert [(one.name, len(one.paths)) for one in found] == [("Set14", 2), ("Set5", 2)]


def test_pictures_beside_folders_of_pictures_are_refused(tmp_path: Path) -> None:
    a_picture(tmp_path / "a.png")
    a_picture(tmp_path / "Set5" / "b.png")
    with pytest.raises(OptionError, match="Set5"):
        find_sets(tmp_path)


def test_no_pictures_and_no_folder_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(OptionError, match=str(folder)):
            find_sets(folder)


def test_truth_is_rgb_whatever_the_file_holds(tmp_path: Path) -> None:
    grey = read_truth(a_picture(tmp_path / "grey.png", (8, 9)))
    assert grey.shape == (8, 9, 3)
    assert np.ptp(grey, axis=2).max() == 0
    assert read_truth(a_picture(tmp_path / "rgba.png", (8, 9, 4))).shape == (8, 9, 3)
    deep = read_truth(a_picture(tmp_path / "deep.png", (8, 9, 3), np.uint16))
    assert deep.dtype == np.float32
    assert deep[0, 0, 1] == np.float32(1 / 65535)


@pytest.mark.parametrize(
    ("size", "scale", "lr", "cropped"),
    [
        ((361, 250), 4, (90, 62), (360, 248)),
        ((361, 250), 3, (120, 83), (360, 249)),
        ((360, 248), 4, (90, 62), (360, 248)),
        ((38, 53), 2.5, (15, 21), (38, 52)),  # 37.5 and 52.5 half to even
        ((100, 101), 2.3, (43, 43), (99, 99)),
        ((7, 7), 1, (7, 7), (7, 7)),
    ],
)
def test_sizes_of_lr_and_truth_follow_the_rule(
    size: tuple[int, int], scale: float, lr: tuple[int, int], cropped: tuple[int, int]
) -> None:
    small, truth = make_pair(np.zeros((*size, 3), np.uint8), scale=scale)
    assert small.shape == (*lr, 3)
    assert truth.shape == (*cropped, 3)


@settings(max_examples=60, deadline=None)
@given(side=st.integers(8, 300), scale=st.integers(10, 80))
def test_the_upscaler_gives_the_truths_size_back(side: int, scale: int) -> None:
    small, truth = make_pair(np.zeros((side, side, 3), np.uint8), scale=scale / 10)
    assert output_size(*small.shape[:2], scale / 10, None) == truth.shape[:2]


def test_lr_is_the_bicubic_of_the_top_left_crop() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (41, 55, 3), dtype=np.uint8)
    small, truth = make_pair(picture, scale=4)
    np.testing.assert_array_equal(truth, picture[:40, :52])
    np.testing.assert_array_equal(small, resize(picture[:40, :52], scale=0.25))
    rounded, _ = make_pair(picture, scale=4, lr="8bit")
    levels = rounded.astype(np.float64) * 255
    np.testing.assert_allclose(levels, np.rint(np.clip(small.astype(np.float64) * 255, 0, 255)), atol=1e-4)


def test_a_picture_smaller_than_the_scale_is_refused() -> None:
    with pytest.raises(PictureError, match="50x3"):
        make_pair(np.zeros((3, 50, 3), np.uint8), scale=4)
    with pytest.raises(OptionError):
        make_pair(np.zeros((50, 50, 3), np.uint8), scale=0.5)
