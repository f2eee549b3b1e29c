"""Whole pictures on a simulated device, beside the CPU road: it is lazy, its memory ends where asked, and the graphs
are run by ONNX Runtime within the limits of engines."""

import gc
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcsr.runtime import Result, Upscaler
from pcsr.runtime.backends.profiles import Limits
from pcsr.runtime.device.place import Places
from pcsr.runtime.device.simulated import SimulatedArray, SimulatedDevice
from pcsr.runtime.errors import BackendError, CancelledError, DeviceMemoryError, OptionError, PictureError
from pcsr.runtime.geometry import axis

Open = Callable[..., tuple[Upscaler, SimulatedDevice]]

PHOTO = skimage.data.chelsea()
RULES: list[dict[str, Any]] = [{}, {"k": 1.0}, {"adaptive": True}, {"budget": 0.3}, {"budget": 0.0}]
# Engines that take little: tiles, blocks of a few rows and columns, chunks of sparse pixels.
NARROW = Limits(windows=(((1, 1), (40, 44)),), table=(6, 44), block=(7, 33), points=100, flat=1760)


def photo(dtype: str, channels: int, h: int = 33, w: int = 47) -> np.ndarray:
    picture = PHOTO[60 : 60 + h, 120 : 120 + w]
    if channels == 1:
        picture = picture[..., 1]
    elif channels == 4:
        alpha = np.broadcast_to(np.arange(w, dtype=np.uint8)[None, :, None] * 3, (h, w, 1))
        picture = np.concatenate([picture, alpha], axis=2)
    picture = np.ascontiguousarray(picture)
    if dtype == "uint16":
        return picture.astype(np.uint16) * 257
    return picture if dtype == "uint8" else picture / np.float32(255)


def assert_same(result: Result, expected: Result) -> None:
    """Within the contract; a class may differ where a difficulty lies next to a threshold."""
    assert result.image.shape == expected.image.shape
    assert result.image.dtype == expected.image.dtype
    assert result.class_map.dtype == np.uint8
    differs = result.class_map != expected.class_map
    assert differs.mean() <= 1e-3
    if expected.decision.thresholds is None:
        assert result.decision == expected.decision
    else:
        assert result.decision.kind == expected.decision.kind
        assert result.decision.value == expected.decision.value
        assert result.decision.thresholds == pytest.approx(expected.decision.thresholds, abs=2e-5)
    touched = np.zeros(np.add(differs.shape, 2), bool)
    for y in range(3):
        for x in range(3):
            touched[y : y + differs.shape[0], x : x + differs.shape[1]] |= differs
    apart = np.abs(result.image.astype(np.float64) - expected.image)[~touched[1:-1, 1:-1]]
    tolerance = 2e-5 if result.image.dtype == np.float32 else 2 if result.image.dtype == np.uint16 else 1
    assert apart.max(initial=0) <= tolerance
    if not differs.any():
        assert result.shares == expected.shares
        assert result.cost == expected.cost


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("limits", [None, NARROW], ids=["wide", "narrow"])
def test_every_rule_gives_the_cpu_roads_picture(
    open_simulated: Open, small_bundle: Path, rule: dict[str, Any], refine: bool, limits: Limits | None
) -> None:
    up, _ = open_simulated(small_bundle, **({"limits": limits} if limits else {}))
    picture = photo("float32", 3)
    result = up(picture, scale=2.5, refine=refine, **rule)
    with Upscaler.open(small_bundle, precision="fp32", threads=1) as cpu:
        assert_same(result, cpu(picture, scale=2.5, refine=refine, **rule))
    assert set(result.milliseconds) >= {"backbone", "classifier", "upsamplers", "compose", "total"}
    assert (result.tile == (33, 47)) == (limits is None)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("refine", [False, True])
def test_three_classes_give_the_cpu_roads_picture(
    open_simulated: Open, three_class_bundle: Path, rule: dict[str, Any], refine: bool
) -> None:
    up, _ = open_simulated(three_class_bundle, limits=NARROW)
    picture = photo("uint8", 3)
    with Upscaler.open(three_class_bundle, precision="fp32", threads=1) as cpu:
        assert_same(up(picture, scale=3, refine=refine, **rule), cpu(picture, scale=3, refine=refine, **rule))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (37, 2), (20, 31)])
def test_every_kind_of_picture_gives_the_cpu_roads(
    open_simulated: Open, small_bundle: Path, dtype: str, channels: int, shape: tuple[int, int]
) -> None:
    up, _ = open_simulated(small_bundle)
    picture = photo(dtype, channels, *shape)
    with Upscaler.open(small_bundle, precision="fp32", threads=1) as cpu:
        assert_same(up(picture, scale=1.7, refine=True), cpu(picture, scale=1.7, refine=True))


@pytest.mark.parametrize("classes", [2, 3])
def test_the_compiled_sources_give_the_twins_picture(
    open_simulated: Open,
    small_bundle: Path,
    three_class_bundle: Path,
    host_kernels: Callable[..., Any],
    classes: int,
) -> None:
    bundle = {2: small_bundle, 3: three_class_bundle}[classes]
    options: dict[str, Any] = {"limits": NARROW}
    twins, _ = open_simulated(bundle, **options)
    compiled, _ = open_simulated(bundle, launch=host_kernels(classes, backwards=True), **options)
    for rule in RULES:
        for channels in (1, 3, 4):
            picture = photo("uint8", channels, 19, 23)
            a, b = (up(picture, scale=2.5, refine=True, **rule) for up in (twins, compiled))
            np.testing.assert_array_equal(a.image, b.image)
            np.testing.assert_array_equal(a.class_map, b.class_map)
            assert a.decision == b.decision
            assert a.shares == b.shares


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data())
def test_any_size_scale_and_limit_give_the_cpu_roads_picture(
    open_simulated: Open, small_bundle: Path, data: st.DataObject
) -> None:
    h, w = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 50))
    scale, rule = data.draw(st.floats(1, 5)), data.draw(st.sampled_from(RULES))
    refine = data.draw(st.booleans())
    side = st.integers(30, 60)
    limits = Limits(
        windows=(((1, 1), (data.draw(side), data.draw(side))),),
        table=(data.draw(st.integers(3, 60)), 60),
        block=(data.draw(st.integers(3, 200)), data.draw(st.integers(3, 200))),
        points=data.draw(st.integers(1, 3000)) + 50,
        flat=3600,
    )
    up, _ = open_simulated(small_bundle, limits=limits)
    picture = photo("float32", 3, h, w)
    with Upscaler.open(small_bundle, precision="fp32", threads=1) as cpu:
        assert_same(
            up(picture, scale=scale, refine=refine, **rule), cpu(picture, scale=scale, refine=refine, **rule)
        )


def test_half_precision_tables_are_those_of_the_graphs(open_simulated: Open, small_bundle: Path) -> None:
    up, _ = open_simulated(small_bundle, precision="fp16")
    picture = photo("float32", 3)
    result = up(picture, scale=2, adaptive=True)
    with Upscaler.open(small_bundle, precision="fp16", threads=1) as cpu:
        assert_same(result, cpu(picture, scale=2, adaptive=True))
    assert (result.precision, result.redone_tiles) == ("fp16", 0)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_only_counts_and_what_launches_need_come_back(
    open_simulated: Open, small_bundle: Path, rule: dict[str, Any]
) -> None:
    up, device = open_simulated(small_bundle)
    picture = photo("uint8", 3)
    result = up(picture, scale=4, **rule)
    down = [event.bytes for event in device.events if event.kind == "download"]
    delivered = result.image.nbytes + result.class_map.nbytes
    assert sum(down) - delivered <= 200
    # A second picture of the size brings itself and a few numbers.
    device.events.clear()
    up(picture, scale=4, **rule)
    up_bytes = [event.bytes for event in device.events if event.kind == "upload"]
    assert sum(up_bytes) - picture.nbytes <= 32


def test_k_with_two_classes_takes_one_sweep(open_simulated: Open, small_bundle: Path) -> None:
    up, device = open_simulated(small_bundle, tile=16)
    result = up(photo("uint8", 3), scale=2, k=0.5)
    ran = [event.name for event in device.events if event.kind == "call"]
    tiles = -(-33 // 16) * -(-47 // 16)
    assert ran.count("backbone") == tiles
    assert result.tile == (16, 16)
    assert "store_difficulties" not in {event.name for event in device.events}


def test_no_pixel_is_given_to_a_class_that_has_none(open_simulated: Open, small_bundle: Path) -> None:
    up, device = open_simulated(small_bundle)
    up(photo("uint8", 3), scale=2, budget=0.0)
    assert "upsampler_1" not in {event.name for event in device.events}
    device.events.clear()
    up(photo("uint8", 3), scale=2, budget=1.0)
    assert "upsampler_0" not in {event.name for event in device.events}


class TestMemory:
    def test_out_of_memory_halves_the_tiles_and_goes_on(
        self, open_simulated: Open, small_bundle: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        picture = photo("uint8", 3, 200, 200)
        whole, probe = open_simulated(small_bundle)
        expected = whole(picture, scale=1, adaptive=True)
        largest = max(event.bytes for event in probe.events if event.kind == "allocate")
        up, _ = open_simulated(small_bundle, refuse=lambda nbytes: nbytes >= largest)
        with caplog.at_level(logging.WARNING):
            result = up(picture, scale=1, adaptive=True)
        assert result.tile == (100, 100)
        assert "tiles of 100 instead of 200" in caplog.text
        assert_same(result, expected)

    def test_no_room_at_all_is_a_typed_error_and_the_next_picture_is_fine(
        self, open_simulated: Open, small_bundle: Path
    ) -> None:
        full = False
        up, device = open_simulated(small_bundle, refuse=lambda _: full)
        picture = photo("uint8", 3, 150, 150)
        expected = up(picture, scale=2)
        held = device.allocated
        full = True
        with pytest.raises(DeviceMemoryError, match="no room"):
            up(picture, scale=2)
        full = False
        # The picture fits, nothing else does.
        up_late, late = open_simulated(small_bundle, refuse=lambda n: full and n != picture.nbytes)
        up_late(picture, scale=2)
        held_late = late.allocated
        full = True
        with pytest.raises(DeviceMemoryError, match=r"tiles of \d+"):
            up_late(picture, scale=2)
        full = False
        assert (device.allocated, late.allocated) == (held, held_late)
        for again in (up, up_late):
            np.testing.assert_array_equal(again(picture, scale=2).image, expected.image)

    @pytest.mark.parametrize("rule", RULES, ids=str)
    @pytest.mark.parametrize("refine", [False, True])
    def test_the_plan_is_an_upper_bound_and_is_kept_to(
        self, open_simulated: Open, small_bundle: Path, rule: dict[str, Any], refine: bool
    ) -> None:
        picture = photo("float32", 3, 200, 240)
        limit = 14 << 20
        up, device = open_simulated(small_bundle, memory_limit=limit)
        result = up(picture, scale=2, refine=refine, **rule)
        assert device.peak <= limit
        assert result.tile < (200, 240)
        whole, _ = open_simulated(small_bundle)
        assert_same(result, whole(picture, scale=2, refine=refine, **rule))

    def test_a_limit_that_holds_no_tile_is_refused_before_anything_is_computed(
        self, open_simulated: Open, small_bundle: Path
    ) -> None:
        up, device = open_simulated(small_bundle, memory_limit=1 << 20)
        with pytest.raises(DeviceMemoryError, match="MiB"):
            up(photo("uint8", 3, 200, 200), scale=4)
        assert "backbone" not in {event.name for event in device.events}

    def test_500_pictures_leave_nothing_behind(self, open_simulated: Open, small_bundle: Path) -> None:
        up, device = open_simulated(small_bundle)
        sizes = [(5, 6), (7, 5), (6, 9)]
        held = set()
        for number in range(500):
            up(photo("uint8", 3, *sizes[number % 3]), scale=2, adaptive=number % 2 == 0)
            if number >= 6:
                held.add(device.allocated)
        assert len(held) == 1
        assert device.streams == 2


class TestNotFinite:
    @staticmethod
    def spoiler(graph: str, number: int, calls: list[str]) -> Callable[..., None]:
        """Makes the given call of a graph give NaN or infinity."""

        def spoil(name: str, inputs: dict[str, np.ndarray], outputs: tuple[np.ndarray, ...]) -> None:
            if name == graph:
                calls.append(name)
                if len(calls) == number:
                    # All, as some of class 0 is overwritten by other classes.
                    outputs[-1][...] = np.inf if name == "backbone" else np.nan

        return spoil

    @pytest.mark.parametrize("graph", ["backbone", "classifier", "upsampler_0", "upsampler_1"])
    @pytest.mark.parametrize("rule", [{}, {"adaptive": True}, {"budget": 0.4}], ids=str)
    def test_a_tile_is_redone_in_fp32_counted_and_warned_of_once(
        self,
        open_simulated: Open,
        small_bundle: Path,
        caplog: pytest.LogCaptureFixture,
        graph: str,
        rule: dict[str, Any],
    ) -> None:
        spoil = self.spoiler(graph, 2, [])
        options: dict[str, Any] = {"precision": "fp16", "exact": True, "tile": 20}
        up, _ = open_simulated(small_bundle, spoil=spoil, **options)
        picture = photo("float32", 3)
        with caplog.at_level(logging.WARNING):
            result = up(picture, scale=2, **rule)
        assert result.redone_tiles == 1
        assert np.isfinite(result.image).all()
        assert sum(result.shares) == pytest.approx(1)
        assert caplog.text.count("redone in fp32") == 1
        clean, _ = open_simulated(small_bundle, **options)
        # Next to a threshold a pixel may go elsewhere in the other precision.
        expected = clean(picture, scale=2, **rule)
        assert (result.class_map != expected.class_map).mean() < 0.01
        assert (np.abs(result.image - expected.image) > 2e-3).mean() < 0.01
        assert up(picture, scale=2, **rule).redone_tiles == 0

    def test_without_fp32_graphs_it_is_an_error_that_says_so(
        self, open_simulated: Open, small_bundle: Path
    ) -> None:
        up, _ = open_simulated(small_bundle, precision="fp16", spoil=self.spoiler("classifier", 1, []))
        with pytest.raises(BackendError, match="no fp32 graphs"):
            up(photo("float32", 3), scale=2)
        up(photo("float32", 3), scale=2)

    def test_not_finite_in_fp32_is_an_error(self, open_simulated: Open, small_bundle: Path) -> None:
        up, _ = open_simulated(small_bundle, spoil=self.spoiler("upsampler_0", 1, []))
        with pytest.raises(BackendError, match="fp32"):
            up(photo("float32", 3), scale=2)


def test_progress_rises_to_one_and_false_cancels_and_leaves_nothing(
    open_simulated: Open, small_bundle: Path
) -> None:
    up, device = open_simulated(small_bundle, tile=16)
    shares: list[float] = []
    picture = photo("uint8", 3)
    up(picture, scale=2, adaptive=True, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    held = device.allocated
    with pytest.raises(CancelledError):
        up(picture, scale=2, adaptive=True, progress=lambda share: share < 0.6)
    assert device.allocated == held
    up(picture, scale=2)


def test_eight_threads_get_the_bytes_that_one_gets(open_simulated: Open, small_bundle: Path) -> None:
    picture = photo("uint8", 3)
    up, device = open_simulated(small_bundle, tile=16, memory_limit=1 << 20)
    jobs = [{"scale": 2 + n % 2, **RULES[n % len(RULES)]} for n in range(24)]
    expected = [up(picture, **job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda job: up(picture, **job), jobs))
    for result, one in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.image, one.image)
        np.testing.assert_array_equal(result.class_map, one.class_map)
        assert result.decision == one.decision
    assert device.peak <= device.memory_limit
    # A stream of work each lane, one of copies each caller.
    assert device.streams <= 4 + 8


def test_map_uploads_the_next_picture_before_it_downloads_the_one_before(
    open_simulated: Open, small_bundle: Path
) -> None:
    up, device = open_simulated(small_bundle)
    pictures = [photo("uint8", 3, 20 + n, 30) for n in range(5)]
    results = list(up.map(pictures, scale=2))
    for picture, result in zip(pictures, results, strict=True):
        np.testing.assert_array_equal(result.image, up(picture, scale=2).image)
    uploads = {picture.nbytes: n for n, picture in enumerate(pictures)}
    downloads = {result.image.nbytes: n for n, result in enumerate(results)}
    # As the events came; those of single calls come later.
    order = [
        ("up", uploads[event.bytes]) if event.kind == "upload" else ("down", downloads[event.bytes])
        for event in device.events
        if (event.kind == "upload" and event.bytes in uploads)
        or (event.kind == "download" and event.bytes in downloads)
    ][: 2 * len(pictures)]
    for n in range(len(pictures) - 1):
        assert order.index(("up", n + 1)) < order.index(("down", n))


def test_a_map_that_is_left_early_or_fails_gives_its_streams_back(
    open_simulated: Open, small_bundle: Path
) -> None:
    up, device = open_simulated(small_bundle)
    picture = photo("uint8", 3, 20, 30)
    list(up.map([picture] * 3, scale=2))
    held, streams = device.allocated, device.streams
    for _ in range(5):
        results = up.map([picture] * 4, scale=2)
        next(results)
        results.close()
        with pytest.raises(PictureError):
            list(up.map([picture, picture, picture[..., :2]], scale=2))
        with pytest.raises(CancelledError):
            list(up.map([picture] * 4, scale=2, progress=lambda share: share < 0.5))
    gc.collect()
    assert (device.allocated, device.streams) == (held, streams)
    np.testing.assert_array_equal(up(picture, scale=2).image, next(up.map([picture], scale=2)).image)


class TestPicturesOnTheDevice:
    @staticmethod
    def on_device(device: SimulatedDevice, picture: np.ndarray) -> SimulatedArray:
        stream = device.stream()
        array = stream.array(picture.shape, picture.dtype)
        stream.upload(picture, array)
        stream.synchronise()
        return SimulatedArray(array, device)

    @pytest.mark.parametrize("dtype", ["uint8", "float32"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_the_result_stays_there(
        self, open_simulated: Open, small_bundle: Path, dtype: str, channels: int
    ) -> None:
        up, device = open_simulated(small_bundle)
        picture = photo(dtype, channels)
        expected = up(picture, scale=2)
        given = self.on_device(device, picture)
        device.events.clear()
        result = up(given, scale=2)
        assert isinstance(result.image, SimulatedArray)
        np.testing.assert_array_equal(result.image.get(), expected.image)
        np.testing.assert_array_equal(result.class_map.get(), expected.class_map)
        assert max(event.bytes for event in device.events if event.kind == "download") < 100

    def test_what_is_no_picture_is_refused(self, open_simulated: Open, small_bundle: Path) -> None:
        up, device = open_simulated(small_bundle)
        other = SimulatedDevice(2)
        bad = np.full((4, 4, 3), np.nan, np.float32)
        for array, message in (
            (self.on_device(other, photo("uint8", 3)), "no array of this device"),
            (self.on_device(device, np.zeros((4, 4, 2), np.uint8)), "shape"),
            (self.on_device(device, np.zeros((4, 4), np.int32)), "int32"),
            (self.on_device(device, np.zeros((0, 4), np.uint8)), "no pixels"),
            (self.on_device(device, bad), "NaN"),
        ):
            with pytest.raises(PictureError, match=message):
                up(array, scale=2)
        with pytest.raises(OptionError, match="stream"):
            up(photo("uint8", 3), scale=2, stream=7)


def test_a_place_is_there_for_a_stream_that_did_not_make_it() -> None:
    device = SimulatedDevice(2)
    first = dict.fromkeys(("relative_y", "relative_x", "cell_y", "cell_x", "bias"), np.ones(4, np.float32))
    places, one, other = Places({"classifier": first}), device.stream(), device.stream()
    made = places.get((5, 7), (11, 15), one)
    found = places.get((5, 7), (11, 15), other)
    assert found is made
    # Nobody has waited for the stream that brings it.
    np.testing.assert_array_equal(other.download(found.y.nearest).wait(), axis(5, 11).nearest)


def test_close_waits_for_a_picture_that_is_under_way(open_simulated: Open, small_bundle: Path) -> None:
    up, _ = open_simulated(small_bundle, tile=16)
    begun, results = threading.Event(), []

    def progress(_: float) -> None:
        begun.set()
        time.sleep(0.01)

    thread = threading.Thread(
        target=lambda: results.append(up(photo("uint8", 3), scale=2, progress=progress))
    )
    thread.start()
    begun.wait()
    up.close()
    thread.join()
    assert results[0].image.shape == (66, 94, 3)
