"""The blocks of a picture, whoever spreads them: progress in between, an end on the way, and whose time is whose."""

import threading
from pathlib import Path

import numpy as np
import pytest
import skimage.data

from pcsr.runtime import Upscaler
from pcsr.runtime.native import backend as native

BACKENDS = ("native", "onnxruntime")
PHOTO = np.ascontiguousarray(skimage.data.chelsea()[60:160, 120:254])


@pytest.fixture
def block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A native call for as many blocks as there are workers, and blocks as small as they get."""
    monkeypatch.setattr(native, "AT_ONCE", 1)
    monkeypatch.setattr(native.NativeBackend, "block", 1 << 12)


@pytest.mark.usefixtures("block_by_block")
@pytest.mark.parametrize("backend", BACKENDS)
def test_progress_is_told_between_the_blocks_of_a_tile(small_bundle: Path, backend: str) -> None:
    shares: list[float] = []
    with Upscaler.open(small_bundle, backend=backend, threads=2) as up:
        result = up(PHOTO, scale=4, adaptive=True, progress=shares.append)
    assert result.tile == PHOTO.shape[:2]
    assert len(shares) >= 8
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)


@pytest.mark.usefixtures("block_by_block")
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("at", [0.6, 0.8])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_on_the_way_ends_the_picture_and_no_other(
    small_bundle: Path, backend: str, at: float, error: type[BaseException]
) -> None:
    last = 0.0

    def progress(share: float) -> None:
        nonlocal last
        last = share
        if share > at:
            raise error

    with Upscaler.open(small_bundle, backend=backend, threads=2) as up:
        expected = up(PHOTO, scale=4, adaptive=True)
        with pytest.raises(error):
            up(PHOTO, scale=4, adaptive=True, progress=progress)
        assert at < last < 1
        again = up(PHOTO, scale=4, adaptive=True)
    np.testing.assert_array_equal(again.image, expected.image)


@pytest.mark.parametrize("memory_limit", [None, 64 << 20])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_stages_take_no_more_than_the_whole(
    small_bundle: Path, backend: str, memory_limit: int | None
) -> None:
    # Where memory is scarce, there are fewer workers than threads.
    with Upscaler.open(small_bundle, backend=backend, threads=16, memory_limit=memory_limit) as up:
        spent = dict(up(PHOTO, scale=4, adaptive=True, refine=True).milliseconds)
    total = spent.pop("total")
    assert min(spent.values()) > 0
    assert sum(spent.values()) <= total


def test_native_blocks_take_no_thread_of_python(small_bundle: Path) -> None:
    with Upscaler.open(small_bundle, backend="native", threads=2) as up:
        up(PHOTO, scale=4, adaptive=True)
        assert not any(thread.name.startswith("pcsr") for thread in threading.enumerate())


def test_native_calls_are_for_so_many_pixels_whatever_the_scale(small_bundle: Path) -> None:
    shares: list[float] = []
    with Upscaler.open(small_bundle, backend="native", threads=1) as up:
        # One input row is a block of 250,000 pixels, eight of the size that it would like to have.
        up(PHOTO[:16, :10], scale=160, progress=shares.append)
    assert len(shares) >= 1 + 16 * 10 * 160 * 160 / native.AT_ONCE
