"""How CuPy is called, line by line, against a stand-in of it: `fake_cupy`. Whole pictures run through it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import skimage.data
from fake_cupy import TO_DEVICE, TO_HOST, FakeArray, FakeCupy

from pcsr.runtime import Upscaler
from pcsr.runtime.backends import onnxruntime as backend
from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.device import cupy_device
from pcsr.runtime.device.cupy_device import CupyDevice
from pcsr.runtime.device.onnxruntime import OnnxRuntimeGraphs
from pcsr.runtime.device.road import DeviceRoad
from pcsr.runtime.errors import BackendError, DeviceMemoryError, OptionError, PictureError

PHOTO = np.ascontiguousarray(skimage.data.chelsea()[60:93, 120:167])


@pytest.fixture
def cupy(kernel_library: Callable[[int], ctypes.CDLL], monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    fake = FakeCupy(lambda: kernel_library(2))
    monkeypatch.setattr(cupy_device, "_import", lambda: fake)
    return fake


@pytest.fixture
def open_on_gpu(cupy: FakeCupy, small_bundle: Path) -> Iterator[Callable[..., Upscaler]]:
    """open_on_gpu(**options of the device) → an upscaler on the stand-in, whose graphs the processor runs."""
    opened: list[Upscaler] = []

    def open_one(**options: Any) -> Upscaler:
        bundle = read_bundle(small_bundle)
        device = CupyDevice(0, classes=2, **options)
        # Its memory is the host's, so ONNX Runtime may have it.
        device.kind = "cpu"
        graphs = {"fp32": OnnxRuntimeGraphs(onnxruntime, bundle, device, precision="fp32")}
        road = DeviceRoad(
            bundle, device, graphs, name="cuda", provider="stand-in", precision="fp32", asked="cuda"
        )
        opened.append(Upscaler(bundle, road, threads=1, memory_limit=1))
        return opened[-1]

    yield open_one
    for up in opened:
        up.close()


@pytest.fixture
def on_cpu(small_bundle: Path) -> Iterator[Upscaler]:
    with Upscaler.open(small_bundle, precision="fp32", threads=1) as up:
        yield up


@pytest.mark.parametrize(
    "rule", [{}, {"k": 0.5}, {"adaptive": True}, {"budget": 0.3, "refine": True}], ids=str
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_whole_pictures_are_those_of_the_cpu_road(
    open_on_gpu: Callable[..., Upscaler], on_cpu: Upscaler, rule: dict[str, Any], dtype: str
) -> None:
    picture = PHOTO.astype(dtype) * {"uint8": 1, "uint16": 257, "float32": 1 / 255}[dtype]
    picture = picture.astype(dtype)
    result, expected = open_on_gpu()(picture, scale=2.5, **rule), on_cpu(picture, scale=2.5, **rule)
    assert result.image.dtype == picture.dtype
    assert (result.class_map != expected.class_map).mean() <= 1e-3
    apart = np.abs(result.image.astype(np.float64) - expected.image)
    assert np.quantile(apart, 0.99) <= (2e-5 if dtype == "float32" else 2 if dtype == "uint16" else 1)
    assert result.milliseconds["backbone"] == 0.25


def test_pictures_on_the_device_stay_there_and_wait_for_the_callers_stream(
    open_on_gpu: Callable[..., Upscaler], cupy: FakeCupy
) -> None:
    up = open_on_gpu()
    expected = up(PHOTO, scale=2)
    array = cupy.put(PHOTO)
    by_dlpack = SimpleNamespace(__dlpack__=lambda: array, __dlpack_device__=lambda: (2, 0))
    for picture in (array, by_dlpack):
        for stream, pointer in (
            (None, 0),
            (77, 77),
            (SimpleNamespace(ptr=78), 78),
            (SimpleNamespace(cuda_stream=79), 79),
        ):
            cupy.calls.clear()
            result = up(picture, scale=2, stream=stream)
            assert isinstance(result.image, FakeArray)
            np.testing.assert_array_equal(result.image.get(), expected.image)
            np.testing.assert_array_equal(result.class_map.get(), expected.class_map)
            records = [call for call in cupy.calls if call[0] == "record" and call[2] == pointer]
            waits = [call for call in cupy.calls if call[0] == "wait" and call[1] == pointer]
            # Ours waits for what the caller's was given, the caller's for picture and class map.
            assert len(records) == 1
            assert len(waits) == 2
            assert ("wait", records[0][1]) in {(call[0], call[2]) for call in cupy.calls if call[0] == "wait"}
            copied = sum(
                call[2] for call in cupy.calls if call[0] == "copy" and call[1] in (TO_DEVICE, TO_HOST)
            )
            assert copied < PHOTO.nbytes, "the picture crossed the bus"


def test_a_result_keeps_its_memory_when_all_else_is_gone(
    open_on_gpu: Callable[..., Upscaler], cupy: FakeCupy
) -> None:
    up = open_on_gpu()
    expected = up(PHOTO, scale=2).image
    kept = up(cupy.put(PHOTO), scale=2).image
    up(PHOTO[::-1].copy(), scale=2)
    up.close()
    gc.collect()
    np.testing.assert_array_equal(kept.get(), expected)


@pytest.mark.parametrize(
    ("picture", "error"),
    [
        (lambda cupy: cupy.put(PHOTO, device=0).get().tolist(), "this is a list"),
        (lambda cupy: cupy.put(PHOTO.astype(np.int32)), "uint8, uint16 or float32"),
        (lambda cupy: cupy.put(PHOTO[..., :2].copy()), r"\(h, w, 3\)"),
        (lambda cupy: cupy.put(np.full((4, 4, 3), np.nan, np.float32)), "NaN"),
        (lambda cupy: FakeArray((9, 9, 3), np.dtype(np.uint8), 1, None, 0, contiguous=False), "contiguous"),
    ],
)
def test_what_is_no_picture_is_refused(
    open_on_gpu: Callable[..., Upscaler], cupy: FakeCupy, picture: Callable[[FakeCupy], Any], error: str
) -> None:
    up = open_on_gpu()
    with pytest.raises(PictureError, match=error):
        up(picture(cupy), scale=2)
    with pytest.raises(OptionError, match="a stream is a number"):
        up(cupy.put(PHOTO), scale=2, stream="first")
    assert up(PHOTO, scale=2).image.shape == (66, 94, 3)


def test_the_pool_has_a_limit_and_what_does_not_fit_is_an_error(
    open_on_gpu: Callable[..., Upscaler], cupy: FakeCupy
) -> None:
    assert open_on_gpu().memory_limit == (1 << 30) * 3 // 4
    up = open_on_gpu(memory_limit=4 << 20)
    with pytest.raises(DeviceMemoryError, match="MiB"):
        up(np.zeros((900, 900, 3), np.uint8), scale=4)
    with pytest.raises(DeviceMemoryError, match="no room for a picture"):
        up(np.zeros((2000, 2000, 3), np.uint8), scale=1)
    assert ("free_all_blocks",) in cupy.calls
    assert up(PHOTO, scale=2).image.shape == (66, 94, 3)


def test_many_pictures_and_threads_leave_nothing_behind(open_on_gpu: Callable[..., Upscaler]) -> None:
    up = open_on_gpu()
    pictures = [np.ascontiguousarray(PHOTO[: 9 + n, : 12 + n]) for n in range(5)]
    expected = [up(picture, scale=2, adaptive=True).image for picture in pictures]
    pool = up._road._on._pool  # type: ignore[attr-defined]
    held = pool.used
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda n: up(pictures[n % 5], scale=2, adaptive=True).image, range(80)))
    for n, image in enumerate(results):
        np.testing.assert_array_equal(image, expected[n % 5])
    for image, wanted in zip(up.map(pictures, scale=2, adaptive=True), expected, strict=True):
        np.testing.assert_array_equal(image.image, wanted)
    gc.collect()
    assert pool.used == held


def test_what_is_recorded_runs_when_it_is_launched(cupy: FakeCupy) -> None:
    device = CupyDevice(0, classes=2)
    stream = device.stream()
    array, other = stream.array((4,), np.float32), stream.array((4,), np.float32)
    stream.upload(np.arange(4, dtype=np.float32), array)

    def work() -> bool:
        stream.copy(array, other)
        return True

    graph = stream.record(work)
    assert ("begin_capture", stream.pointer, 1) in cupy.calls
    stream.zero(other)
    assert not stream.download(other).wait().any()
    stream.replay(graph)
    np.testing.assert_array_equal(stream.download(other).wait(), np.arange(4))
    with pytest.raises(RuntimeError, match="while it is recorded"):
        stream.record(lambda: False)
    stream.zero(array)
    assert not stream.download(array).wait().any()


def test_uploads_are_kept_until_they_are_done_and_may_be_changed_at_once(cupy: FakeCupy) -> None:
    stream = CupyDevice(0, classes=2).stream()
    values, array = np.arange(6, dtype=np.uint16), stream.array((6,), np.uint16)
    stream.upload(values, array)
    values[...] = 0
    np.testing.assert_array_equal(stream.download(array).wait(), np.arange(6))
    stream.synchronise()


def test_a_gpu_that_is_not_there_is_an_error(cupy: FakeCupy) -> None:
    with pytest.raises(BackendError, match="cannot use GPU 3: cudaErrorInvalidDevice"):
        CupyDevice(3, classes=2)


class OnCuda(onnxruntime.InferenceSession):  # type: ignore[misc, name-defined]
    """A session that is asked for CUDA and runs on the processor, where the stand-in's memory is."""

    def __init__(self, model: bytes, options: Any, providers: list[Any]) -> None:
        ((provider, self.asked),) = providers
        assert provider == "CUDAExecutionProvider"
        super().__init__(model, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def io_binding(self) -> Any:
        binding = super().io_binding()

        def bind(to: Callable[..., None]) -> Callable[..., None]:
            def on_host(name: str, device: str, index: int, kind: Any, shape: Any, address: int) -> None:
                assert (device, index) == ("cuda", 0)
                to(name, "cpu", 0, kind, shape, address)

            return on_host

        binding.bind_input, binding.bind_output = bind(binding.bind_input), bind(binding.bind_output)
        return binding


@pytest.mark.parametrize(("precision", "runs"), [("auto", "fp16"), ("fp32", "fp32")])
def test_onnxruntime_on_a_gpu_is_opened_by_name(
    cupy: FakeCupy,
    small_bundle: Path,
    on_cpu: Upscaler,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    runs: str,
) -> None:
    ort = SimpleNamespace(
        SessionOptions=onnxruntime.SessionOptions, RunOptions=onnxruntime.RunOptions, InferenceSession=OnCuda
    )
    monkeypatch.setattr(backend, "_import", lambda provider: ort)
    with Upscaler.open(small_bundle, device="cuda", backend="onnxruntime", precision=precision) as up:
        assert (up.backend, up.provider, up.precision) == ("onnxruntime", "CUDAExecutionProvider", runs)
        result = up(cupy.put(PHOTO), scale=2, adaptive=True)
    expected = on_cpu(PHOTO, scale=2, adaptive=True)
    assert np.quantile(np.abs(result.image.get().astype(int) - expected.image), 0.98) <= 1
