"""PSNR and SSIM against scikit-image and published numbers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import skimage.color
import skimage.data
import skimage.metrics
from numpy.typing import NDArray

from pcsr.runtime.errors import OptionError, PictureError
from pcsr.runtime.pictures import read_picture
from pcsr.validation.metrics import STRIP, agreement, largest_difference, psnr, shave_for, ssim


@pytest.fixture(scope="module")
def pair() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A photograph and a noisy one, higher than a few strips and no multiple of them."""
    picture = skimage.data.astronaut()[: 2 * STRIP + 37, :301]
    noise = np.random.default_rng(0).normal(0, 9, picture.shape)
    return picture, np.clip(picture + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("name", "expected"), [("PCSR", 29.4767), ("Original", 29.4934)])
def test_psnr_of_the_authors_pictures_is_theirs(shared: Path, name: str, expected: float) -> None:
    official = shared / "reference" / "official"
    truth = read_picture(official / "HR.png").pixels[..., :3]
    picture = read_picture(official / f"{name}.png").pixels[..., :3]
    assert psnr(picture, truth, shave=4) == pytest.approx(expected, abs=5e-5)


def test_psnr_is_that_of_scikit_image(pair: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    a, b = pair
    assert psnr(a, b) == pytest.approx(skimage.metrics.peak_signal_noise_ratio(a, b), abs=1e-9)
    inside = (slice(5, -5), slice(5, -5))
    expected = skimage.metrics.peak_signal_noise_ratio(a[inside], b[inside])
    assert psnr(a, b, shave=5) == pytest.approx(expected, abs=1e-9)


def test_psnr_of_luma_is_that_of_matlabs_conversion(
    pair: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> None:
    luma = [skimage.color.rgb2ycbcr(picture)[..., 0] for picture in pair]
    expected = skimage.metrics.peak_signal_noise_ratio(*luma, data_range=255)
    assert psnr(*pair, channel="y") == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("height", [11, 12, STRIP, STRIP + 9, STRIP + 10, STRIP + 11, 2 * STRIP + 37])
def test_ssim_is_that_of_scikit_image_at_every_strip_border(
    pair: tuple[NDArray[np.uint8], NDArray[np.uint8]], height: int
) -> None:
    a, b = (picture[:height] for picture in pair)
    same = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    rgb = skimage.metrics.structural_similarity(a, b, channel_axis=2, **same)
    luma = [skimage.color.rgb2ycbcr(picture)[..., 0] for picture in (a, b)]
    assert ssim(a, b, channel="rgb") == pytest.approx(rgb, abs=1e-10)
    assert ssim(a, b) == pytest.approx(skimage.metrics.structural_similarity(*luma, **same), abs=1e-10)


def test_floats_are_seen_as_a_viewer_would(pair: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    a, b = pair
    floats = a.astype(np.float32) / np.float32(255)
    # Within half a level, and beyond white and black.
    near = np.where(a == 255, 1.3, np.where(a == 0, -0.2, floats + 0.4 / 255)).astype(np.float32)
    assert psnr(near, a) == math.inf
    assert psnr(near, b) == psnr(a, b)
    assert ssim(near, b) == ssim(a, b)
    assert psnr(near, floats, rounded=False) < 60


def test_half_levels_round_to_even() -> None:
    halves = np.array([[0.5, 1.5, 2.5, 3.5]]) / 255
    assert psnr(halves, np.array([[0, 2, 2, 4]], np.uint8)) == math.inf


def test_grey_counts_as_equal_red_green_and_blue(pair: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    a, b = (picture[..., 1] for picture in pair)
    rgb = [np.repeat(picture[..., None], 3, axis=2) for picture in (a, b)]
    for channel in ("rgb", "y"):
        assert psnr(a, b, channel=channel) == pytest.approx(psnr(*rgb, channel=channel), abs=1e-9)
        assert ssim(a, b, channel=channel) == pytest.approx(ssim(*rgb, channel=channel), abs=1e-9)


def test_equal_pictures_are_infinitely_near(pair: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    a = pair[0]
    assert psnr(a, a) == math.inf
    assert ssim(a, a) == 1
    assert largest_difference(a, a) == 0


def test_ssim_of_less_than_a_window_is_undefined() -> None:
    assert math.isnan(ssim(np.zeros((10, 40), np.uint8), np.zeros((10, 40), np.uint8)))


def test_largest_difference_finds_one_sample_and_does_not_clamp() -> None:
    a = np.full((2 * STRIP + 1, 9, 3), 0.5, np.float32)
    b = a.copy()
    b[-1, -1, 2] = 1.75
    assert largest_difference(a, b) == pytest.approx(1.25)


def test_agreement_is_a_percentage() -> None:
    a = np.zeros((10, 10), np.uint8)
    b = a.copy()
    b[0, :3] = 1
    assert agreement(a, b) == 97


def test_a_fractional_scale_shaves_its_ceiling() -> None:
    assert [shave_for(scale) for scale in (1, 2.3, 4.0)] == [1, 3, 4]


def test_unequal_shapes_are_refused() -> None:
    a, b = np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), np.uint8)
    for compare in (psnr, ssim, largest_difference, agreement):
        with pytest.raises(PictureError, match="shapes"):
            compare(a, b)


def test_shaving_everything_is_refused() -> None:
    a = np.zeros((20, 8, 3), np.uint8)
    with pytest.raises(PictureError, match="8x20"):
        psnr(a, a, shave=4)
    with pytest.raises(OptionError):
        psnr(a, a, shave=-1)
