"""What a caller of the upscaler can rely on."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data

from pcsr.runtime import Upscaler
from pcsr.runtime.errors import CancelledError, ClosedError, MemoryLimitError, OptionError, PictureError
from pcsr.runtime.geometry import Axis


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.chelsea()[60:110, 120:187])


@pytest.fixture
def up(small_bundle: Path) -> Iterator[Upscaler]:
    with Upscaler.open(small_bundle, threads=2) as opened:
        yield opened


def test_the_result_says_what_ran_and_adds_up(up: Upscaler, photo: np.ndarray) -> None:
    result = up(photo, scale=3, budget=0.25)
    assert result.image.shape == (150, 201, 3)
    assert result.image.dtype == np.uint8
    assert result.class_map.shape == (150, 201)
    assert sum(result.shares) == pytest.approx(1)
    assert result.shares[1] == pytest.approx((result.class_map == 1).mean())
    assert result.shares[1] == pytest.approx(0.25, abs=0.01)
    assert (result.backend, result.provider, result.precision) == (up.backend, up.provider, "fp32")
    assert result.provider.startswith("native ")
    assert result.tile == (50, 67)
    assert result.decision.kind == "budget"
    assert result.cost.macs < result.cost.macs_all_heavy
    assert result.cost.flops < result.cost.flops_all_heavy
    assert result.milliseconds["total"] > 0


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_type_and_channels_come_back(
    up: Upscaler, photo: np.ndarray, channels: int | None, dtype: type
) -> None:
    full = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    picture = (photo.astype(np.float64) / 255 * full).astype(dtype)
    picture = (
        picture[..., 0]
        if channels is None
        else np.concatenate([picture, picture[..., :1]], 2)[..., :channels]
    )
    result = up(picture, scale=2.5)
    assert result.image.dtype == dtype
    assert result.image.shape == (round(50 * 2.5), round(67 * 2.5), *picture.shape[2:])
    # An upscaled photograph looks like the photograph.
    near = (
        result.image[1::5, 1::5].astype(np.float64) / full
        - picture[::2, ::2][:25, :34].astype(np.float64) / full
    )
    assert np.abs(near).mean() < 0.1


def test_16_bit_is_not_8_bit(up: Upscaler) -> None:
    ramp = np.linspace(20_000, 21_000, 64, dtype=np.uint16)[None].repeat(8, 0)
    assert len(np.unique(up(ramp, scale=4).image)) > 150


def test_alpha_is_the_bilinear_base_and_does_not_touch_colours_that_are_seen(
    up: Upscaler, photo: np.ndarray
) -> None:
    alpha = np.full((*photo.shape[:2], 1), 3, np.uint8)
    alpha[:, 30:] = 255
    result = up(np.concatenate([photo, alpha], 2), scale=2)
    np.testing.assert_array_equal(result.image[..., :3], up(photo, scale=2).image)
    assert set(np.unique(result.image[..., 3])) == {3, 66, 192, 255}


@pytest.mark.parametrize("hidden", [0, 255])
def test_what_lies_under_transparent_pixels_leaves_no_fringe(up: Upscaler, hidden: int) -> None:
    # An evenly coloured square on nothing: wherever the result is seen at all, it has that colour.
    colour = np.array([180, 120, 60])
    picture = np.full((40, 40, 4), hidden, np.uint8)
    picture[..., 3] = 0
    picture[12:28, 12:28] = (*colour, 255)
    evenly = up(np.full((40, 40, 3), colour, np.uint8), scale=3).image.astype(int)
    image = up(picture, scale=3).image

    assert (image[..., 3] > 0).any()
    assert (image[..., 3] < 255).any()
    np.testing.assert_array_equal(image[..., :3], evenly)


@pytest.mark.parametrize("backend", ["native", "onnxruntime"])
def test_what_depends_on_sizes_alone_is_made_once_for_pictures_of_a_size(
    small_bundle: Path, photo: np.ndarray, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, ...]] = []
    with Upscaler.open(small_bundle, threads=2, backend=backend) as up:
        kind, place = type(up._backend), type(up._backend).place

        def noted(self: Any, rows: Axis, columns: Axis) -> Any:
            made.append((rows.lr, rows.hr, columns.lr, columns.hr))
            return place(self, rows, columns)

        monkeypatch.setattr(kind, "place", noted)
        first = up(photo, scale=2)
        flipped = up(photo[::-1], scale=2, k=1)
        again = up(photo, scale=2)
        turned = up(photo.transpose(1, 0, 2), scale=2)
        larger = up(photo, size=(101, 134))
    assert made == [(50, 100, 67, 134), (67, 134, 50, 100), (50, 101, 67, 134)]
    np.testing.assert_array_equal(again.image, first.image)
    for result, shape in ((flipped, (100, 134, 3)), (turned, (134, 100, 3)), (larger, (101, 134, 3))):
        assert result.image.shape == shape


@pytest.mark.parametrize("size", [[101, 134], (np.int64(101), np.int64(134))])
def test_a_size_is_any_pair_of_whole_numbers(up: Upscaler, photo: np.ndarray, size: Any) -> None:
    expected = up(photo, size=(101, 134)).image
    np.testing.assert_array_equal(up(photo, size=size).image, expected)
    rows: list[np.ndarray] = []
    up.upscale_rows(photo, lambda image, _: rows.append(image), size=size)
    np.testing.assert_array_equal(np.concatenate(rows), expected)


def test_float_pictures_are_neither_clipped_nor_clamped(up: Upscaler, photo: np.ndarray) -> None:
    picture = photo.astype(np.float32) / 255 * 3 - 1
    image = up(picture, scale=2).image
    assert image.min() < -0.5
    assert image.max() > 1.5


def test_no_rule_is_k_zero(up: Upscaler, photo: np.ndarray) -> None:
    default, explicit = up(photo, scale=2), up(photo, scale=2, k=0.0)
    np.testing.assert_array_equal(default.image, explicit.image)
    assert default.decision == explicit.decision


def test_k_is_a_dial(up: Upscaler, photo: np.ndarray) -> None:
    heavy = [up(photo, scale=2, k=k).shares[1] for k in (-3.0, -0.5, 0.0, 0.5, 3.0)]
    assert heavy == sorted(heavy, reverse=True)
    assert heavy[0] > heavy[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of scale"),
        ({"scale": 2, "size": (100, 200)}, "exactly one of scale"),
        ({"scale": 0.5}, "scale is 0.5"),
        ({"scale": float("nan")}, "finite"),
        ({"size": (0, 5)}, "positive"),
        ({"size": (10, 10)}, "smaller than the picture"),
        ({"scale": 2, "k": 0.0, "adaptive": True}, "at most one"),
        ({"scale": 2, "k": 0.0, "budget": 0.5}, "at most one"),
        ({"scale": 2, "budget": 1.5}, "between 0"),
        ({"scale": 2, "k": float("inf")}, "finite"),
        ({"scale": "4"}, "scale is '4'"),
        ({"scale": True}, "scale is True"),
        ({"scale": 2, "budget": "x"}, "budget is 'x'"),
        ({"size": 300}, "size is 300"),
        ({"size": (252.5, 300)}, "two whole numbers"),
    ],
)
def test_meaningless_options_are_refused(
    up: Upscaler, photo: np.ndarray, options: dict, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        up(photo, **options)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros((4,), np.uint8), r"\(4,\)"),
        (np.zeros((4, 4), np.int32), "int32"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
        (np.full((4, 4), np.nan, np.float32), "NaN"),
        (np.full((4, 4, 3), np.inf, np.float32), "infinite"),
        ([[1, 2]], "list"),
    ],
)
def test_what_is_no_picture_is_refused(up: Upscaler, picture: np.ndarray, message: str) -> None:
    with pytest.raises(PictureError, match=message):
        up(picture, scale=2)


def test_odd_strides_do_not_matter(up: Upscaler, photo: np.ndarray) -> None:
    wide = np.zeros((100, 134, 4), np.uint8)
    wide[::2, ::2, :3] = photo
    np.testing.assert_array_equal(up(wide[::2, ::2, :3], scale=2).image, up(photo, scale=2).image)
    np.testing.assert_array_equal(up(photo[::-1], scale=2).image, up(photo[::-1].copy(), scale=2).image)


def test_the_number_of_threads_changes_no_byte(small_bundle: Path, photo: np.ndarray) -> None:
    images = []
    for threads in (1, 2, 3):
        with Upscaler.open(small_bundle, threads=threads, tile=32) as up:
            result = up(photo, scale=3.3, adaptive=True, refine=True)
            images.append((result.image.tobytes(), result.class_map.tobytes(), result.decision))
    assert images[0] == images[1] == images[2]


def test_eight_threads_get_the_same_bytes_as_one_after_another(up: Upscaler, photo: np.ndarray) -> None:
    pictures = [np.ascontiguousarray(photo[i : i + 30, 2 * i :]) for i in range(8)]
    expected = [up(p, scale=2.2, adaptive=True).image.tobytes() for p in pictures]
    got: list[list[bytes]] = [[] for _ in pictures]

    def work(i: int) -> None:
        for _ in range(5):
            got[i].append(up(pictures[i], scale=2.2, adaptive=True).image.tobytes())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [[image] * 5 for image in expected]


def test_close_waits_for_running_calls_and_a_closed_upscaler_raises(small_bundle: Path) -> None:
    up = Upscaler.open(small_bundle, threads=1, tile=16)
    started, results = threading.Event(), []

    def progress(share: float) -> None:
        started.set()
        time.sleep(0.02)

    def work() -> None:
        results.append(up(np.zeros((40, 40), np.uint8), scale=2, progress=progress))

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    up.close()
    assert len(results) == 1 or not thread.is_alive() or results == []
    thread.join()
    assert results[0].image.shape == (80, 80)
    with pytest.raises(ClosedError, match="closed"):
        up(np.zeros((4, 4), np.uint8), scale=2)
    up.close()


def test_progress_goes_from_start_to_end_and_can_cancel(up: Upscaler, photo: np.ndarray) -> None:
    for options in ({"k": 0.0}, {"adaptive": True}):
        shares: list[float] = []
        up(photo, scale=4, progress=shares.append, **options)
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1.0)
    with pytest.raises(CancelledError):
        up(photo, scale=4, progress=lambda share: share < 0.6)
    # Cancelled means only that picture.
    up(photo, scale=2)


def test_map_keeps_order_and_holds_no_more_than_one_picture_ahead(up: Upscaler, photo: np.ndarray) -> None:
    taken, given = 0, 0

    def pictures() -> Iterator[np.ndarray]:
        nonlocal taken
        for i in range(6):
            taken += 1
            yield photo[: 10 + i]

    for i, result in enumerate(up.map(pictures(), scale=2)):
        given += 1
        assert taken <= given + 1
        assert result.image.shape[0] == 2 * (10 + i)
    assert given == 6


def test_map_raises_at_the_bad_pictures_turn(up: Upscaler, photo: np.ndarray) -> None:
    results = up.map([photo, np.zeros((2, 2), np.int64), photo], scale=2)
    next(results)
    with pytest.raises(PictureError):
        next(results)


def test_map_gives_the_results_before_it_raises_what_the_iterable_raised(
    up: Upscaler, photo: np.ndarray
) -> None:
    def pictures() -> Iterator[np.ndarray]:
        yield photo
        yield photo[:20]
        raise OSError("the third cannot be read")

    results = up.map(pictures(), scale=2)
    assert next(results).image.shape == (100, 134, 3)
    assert next(results).image.shape == (40, 134, 3)
    with pytest.raises(OSError, match="third"):
        next(results)


def test_close_from_inside_a_call_is_refused_and_does_not_wait_for_itself(
    up: Upscaler, photo: np.ndarray
) -> None:
    with pytest.raises(OptionError, match="return False"):
        up(photo, scale=2, progress=lambda share: up.close())
    up(photo, scale=2)


def test_false_of_numpy_cancels_too_and_nothing_else_that_is_falsy(up: Upscaler, photo: np.ndarray) -> None:
    with pytest.raises(CancelledError):
        up(photo, scale=2, progress=lambda share: np.bool_(False))
    up(photo, scale=2, progress=lambda share: 0)


def test_many_threads_do_not_make_a_sane_memory_limit_unusable(small_bundle: Path, photo: np.ndarray) -> None:
    with Upscaler.open(small_bundle, threads=64, memory_limit=200 << 20) as many:
        result = many(photo, scale=4, refine=True)
    with Upscaler.open(small_bundle, threads=1) as one:
        np.testing.assert_array_equal(result.image, one(photo, scale=4, refine=True).image)


def test_an_engine_cache_where_no_engine_can_run_is_refused(small_bundle: Path, tmp_path: Path) -> None:
    for backend in ("auto", "onnxruntime"):
        with pytest.raises(OptionError, match="for TensorRT alone"):
            Upscaler.open(small_bundle, backend=backend, engine_cache=tmp_path)


def test_warmup_runs(up: Upscaler) -> None:
    up.warmup((20, 30))


def test_three_classes_are_decided_by_k(three_class_bundle: Path, photo: np.ndarray) -> None:
    with Upscaler.open(three_class_bundle, threads=2) as up:
        result = up(photo, scale=2)
        assert len(result.shares) == 3
        assert result.decision.thresholds is None
        assert min(result.shares) > 0


def test_a_constant_picture_is_all_light_under_adaptive(up: Upscaler) -> None:
    # 1x1: one probability at scale 1, so 2-means has nothing to part.
    assert up(np.full((1, 1, 3), 100, np.uint8), scale=1, adaptive=True).shares == (1.0, 0.0)


def test_a_memory_limit_makes_smaller_tiles_or_says_what_is_needed(small_bundle: Path) -> None:
    picture = np.zeros((300, 300, 3), np.uint8)
    with Upscaler.open(small_bundle, threads=1) as up:
        whole = up(picture, scale=2, budget=0.5)
    with Upscaler.open(small_bundle, threads=1, memory_limit=24 << 20) as up:
        tiled = up(picture, scale=2, budget=0.5)
    assert whole.tile == (300, 300)
    assert tiled.tile < whole.tile
    with (
        Upscaler.open(small_bundle, threads=1, memory_limit=1 << 20) as up,
        pytest.raises(MemoryLimitError, match="300x300 picture needs about"),
    ):
        up(picture, scale=2)


def test_fp16_graphs_give_nearly_the_same_picture(small_bundle: Path, photo: np.ndarray) -> None:
    with Upscaler.open(small_bundle, precision="fp16") as half, Upscaler.open(small_bundle) as single:
        assert (half.precision, single.precision) == ("fp16", "fp32")
        a, b = half(photo, scale=2, budget=0.3).image, single(photo, scale=2, budget=0.3).image
        assert np.abs(a.astype(int) - b).mean() < 0.5


def test_blocks_are_smaller_where_memory_is_scarce(small_bundle: Path, photo: np.ndarray) -> None:
    picture = np.tile(photo, (3, 3, 1))[:90, :120]
    found = {}
    for limit in (20 << 20, 1 << 30):
        with Upscaler.open(small_bundle, backend="onnxruntime", threads=2, memory_limit=limit) as up:
            # A block of its own size would take 96 MiB.
            found[limit] = up(picture, scale=3, k=0.0, refine=True)
    scarce, plenty = found.values()
    np.testing.assert_array_equal(scarce.class_map, plenty.class_map)
    np.testing.assert_allclose(scarce.image.astype(int), plenty.image, atol=1)
