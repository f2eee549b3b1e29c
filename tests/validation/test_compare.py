"""Comparisons and their means, with an upscaler whose every number is known: MATLAB's bicubic."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray

from pcsr.runtime import Cost, Decision, Result
from pcsr.runtime.bicubic import resize
from pcsr.runtime.errors import BundleError, MemoryLimitError, PictureError
from pcsr.runtime.pictures import write_picture
from pcsr.validation.compare import compare_folder, compare_picture
from pcsr.validation.metrics import psnr, ssim
from pcsr.validation.results import Rule
from pcsr.validation.sets import PictureSet, find_sets, make_pair

K0 = Rule("k", 0.0)


def upscale(picture: NDArray[Any], **options: Any) -> Result:
    """Bicubic, brightened by a budget so that rules differ; the first rows are heavy."""
    h, w = picture.shape[:2]
    size = round(h * options["scale"]), round(w * options["scale"])
    classes = np.zeros(size, np.uint8)
    classes[: size[0] // 4] = 1
    share = classes.mean()
    return Result(
        image=resize(picture, size=size) + np.float32((options.get("budget") or 0.0) / 10),
        class_map=classes,
        shares=(1 - share, share),
        decision=Decision("k", 0.0, (0.5,)),
        cost=Cost(size[0] * size[1], 2 * size[0] * size[1], 3, 4),
        milliseconds={"total": 5.0},
        tile=(h, w),
        backend="bicubic",
        provider="numpy",
        precision="fp32",
    )


def oracle(picture: NDArray[Any], **options: Any) -> Any:
    """The same, one sample off by 0.25 and one pixel of another class."""
    result = upscale(picture, **options)
    image, classes = result.image.copy(), result.class_map.copy()
    image[0, 0, 0] += np.float32(0.25)
    classes[-1, -1] = 1
    return dataclasses.replace(result, image=image, class_map=classes)


@pytest.fixture(scope="module")
def truth() -> NDArray[np.uint8]:
    return skimage.data.astronaut()[40:141, 180:283]


@pytest.fixture
def sets(tmp_path: Path, truth: NDArray[np.uint8]) -> tuple[PictureSet, ...]:
    for name, picture in (("a", truth), ("b", truth[:50, ::-1])):
        write_picture(tmp_path / f"{name}.png", picture)
    return find_sets(tmp_path)


def test_quality_is_measured_against_the_cropped_truth(truth: NDArray[np.uint8]) -> None:
    (one,) = compare_picture(upscale, truth, name="face", scale=4, rules=[K0])
    small, cropped = make_pair(truth, scale=4)
    large = resize(small, scale=4)
    assert (one.name, one.size) == ("face", (100, 100))
    assert one.runtime.psnr == psnr(large, cropped, shave=4)
    assert one.runtime.psnr_y == psnr(large, cropped, shave=4, channel="y")
    assert one.runtime.ssim == ssim(large, cropped, shave=4)
    assert one.bicubic == one.runtime
    assert one.oracle is None
    assert one.fidelity is None


def test_each_rule_reaches_the_upscaler(truth: NDArray[np.uint8]) -> None:
    asked = []

    def spy(picture: NDArray[Any], **options: Any) -> Result:
        asked.append(options)
        return upscale(picture, **options)

    rules = [Rule("k", -25.0), Rule("adaptive"), Rule("budget", 0.5)]
    found = compare_picture(spy, truth, name="face", scale=2.5, rules=rules, refine=True)
    assert asked == [
        {"scale": 2.5, "refine": True, "k": -25.0},
        {"scale": 2.5, "refine": True, "adaptive": True},
        {"scale": 2.5, "refine": True, "budget": 0.5},
    ]
    assert found[0].runtime.psnr > found[2].runtime.psnr


def test_rules_are_labelled_as_they_are_typed() -> None:
    rules = [Rule("k", 0.0), Rule("k", -0.0), Rule("k", -25.0), Rule("adaptive"), Rule("budget", 0.2)]
    assert [rule.label for rule in rules] == ["k=0", "k=0", "k=-25", "adaptive", "budget=0.2"]


def test_fidelity_sees_one_sample_and_one_pixel(truth: NDArray[np.uint8]) -> None:
    (one,) = compare_picture(upscale, truth, name="face", scale=4, rules=[K0], oracle=oracle)
    assert one.fidelity is not None
    assert one.fidelity.largest_difference == pytest.approx(0.25, abs=1e-6)
    assert one.fidelity.agreement == pytest.approx(100 - 100 / 10000)
    assert one.fidelity.psnr == pytest.approx(10 * math.log10(30000 / 0.0625), abs=1e-4)


def test_a_sets_numbers_are_means_sums_and_extremes(sets: tuple[PictureSet, ...]) -> None:
    (one,), failures = compare_folder(upscale, sets, scales=[2.0], rules=[K0], oracle=oracle)
    first, second = one.pictures
    assert failures == ()
    assert (one.scale, one.rule, first.name, second.name) == (2.0, "k=0", "a", "b")
    assert one.runtime.psnr == pytest.approx((first.runtime.psnr + second.runtime.psnr) / 2)
    assert one.runtime.ssim == pytest.approx((first.runtime.ssim + second.runtime.ssim) / 2)
    assert one.fidelity is not None
    assert first.fidelity is not None
    assert second.fidelity is not None
    assert one.fidelity.psnr == min(first.fidelity.psnr, second.fidelity.psnr)
    pixels = [picture.size[0] * picture.size[1] for picture in one.pictures]
    assert one.fidelity.agreement == pytest.approx(100 - 200 / sum(pixels))
    heavy = [(picture.size[0] // 4) * picture.size[1] for picture in one.pictures]
    assert one.shares == pytest.approx((1 - sum(heavy) / sum(pixels), sum(heavy) / sum(pixels)))
    assert (one.flops, one.macs_all_heavy, one.milliseconds) == (sum(pixels), 8, 10.0)
    assert one.drop == pytest.approx(one.oracle.psnr - one.runtime.psnr if one.oracle else None)


def test_every_set_scale_and_rule_has_its_result(sets: tuple[PictureSet, ...]) -> None:
    watched: list[tuple[str, str, float]] = []
    rules = [K0, Rule("adaptive")]
    found, _ = compare_folder(
        upscale, sets, scales=[3.0, 1.5], rules=rules, watch=lambda *seen: watched.append(seen)
    )
    assert [(one.scale, one.rule) for one in found] == [
        (3.0, "k=0"),
        (3.0, "adaptive"),
        (1.5, "k=0"),
        (1.5, "adaptive"),
    ]
    name = sets[0].name
    assert watched == [(name, "a", 3.0), (name, "b", 3.0), (name, "a", 1.5), (name, "b", 1.5)]


def test_a_picture_that_fails_does_not_stop_the_others(sets: tuple[PictureSet, ...]) -> None:
    sets[0].paths[0].write_bytes(b"no picture")
    found, failures = compare_folder(upscale, sets, scales=[2.0, 60.0], rules=[K0])
    assert [(one.scale, len(one.pictures)) for one in found] == [(2.0, 1)]
    assert [(one.name, one.scale) for one in failures] == [("a", 2.0), ("a", 60.0), ("b", 60.0)]
    assert "a.png" in failures[0].message


@pytest.mark.parametrize(
    ("error", "stops"), [(PictureError, False), (MemoryLimitError, False), (BundleError, True)]
)
def test_only_what_a_picture_is_to_blame_for_is_its_failure(
    sets: tuple[PictureSet, ...], error: type[Exception], stops: bool
) -> None:
    def refuse(picture: NDArray[Any], **options: Any) -> Result:
        raise error("because")

    if stops:
        with pytest.raises(error):
            compare_folder(refuse, sets, scales=[2.0], rules=[K0])
    else:
        found, failures = compare_folder(refuse, sets, scales=[2.0], rules=[K0])
        assert found == ()
        assert [one.message for one in failures] == ["because", "because"]
