"""The runtime against results of the authors' program on their sample picture, whole: 420x276 to 1680x1104.

PSNR in RGB, rounded, four pixels shaved. "float" is the picture's unrounded bicubic reduction, which is what
the published networks were trained on; "8bit" is that, rounded. The published demo's own output is there too.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips

from pcsr.export.pipeline import export_bundle
from pcsr.runtime import Result, Upscaler
from pcsr.runtime.bicubic import resize
from pcsr.validation.metrics import psnr

pytestmark = pytest.mark.slow

DECIBEL, PER_CENT, GIGA, THRESHOLD = 0.002, 0.01, 0.01, 1e-4


@dataclass(frozen=True, slots=True)
class Row:
    """What the authors' program gave: PSNR without and with refinement, share of heavy pixels, GFLOPs."""

    network: str
    lr: str
    k: float | None
    """None: adaptive."""
    plain: float
    refined: float
    heavy: float
    gflops: float
    threshold: float | None = None

    def __str__(self) -> str:
        return f"{self.network}-{self.lr}-{'adaptive' if self.k is None else f'k={self.k:g}'}"


TABLE = [
    Row("carn", "float", 0, 29.4894, 29.4795, 29.136, 84.270),
    Row("carn", "float", None, 29.4767, 29.4591, 14.467, 74.033, 0.64089),
    Row("carn", "8bit", 0, 29.4689, 29.4601, 28.615, 83.907),
    Row("carn", "8bit", None, 29.4566, 29.4391, 14.384, 73.976, 0.64004),
    Row("fsrcnn", "float", 0, 28.4669, 28.4693, 26.218, 17.673),
    Row("fsrcnn", "float", None, 28.4638, 28.4661, 24.302, 16.783, 0.51031),
    Row("fsrcnn", "8bit", 0, 28.4630, 28.4653, 26.253, 17.690),
    Row("fsrcnn", "8bit", None, 28.4592, 28.4614, 24.306, 16.785, 0.51037),
    Row("carn", "float", -25, 29.5061, 29.5061, 100, 133.73),
    Row("carn", "float", -0.5, 29.4963, 29.4912, 63.99, 108.59),
    Row("carn", "float", 0.25, 29.4856, 29.4737, 21.92, 79.24),
    Row("carn", "float", 1, 29.4725, 29.4529, 12.94, 72.97),
]

# Of the 8-bit picture at other k only the PSNR is known.
PSNR_8BIT = [
    (-25, 29.4860, 29.4860),
    (-0.5, 29.4762, 29.4715),
    (0.25, 29.4647, 29.4537),
    (1, 29.4515, 29.4316),
]


@dataclass(frozen=True, slots=True)
class Sample:
    """The sample picture: the truth, and both reductions by name."""

    hr: np.ndarray
    lr: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def sample(shared: Path) -> Sample:
    hr = pixels(shared / "reference" / "official" / "HR.png")
    rounded = pixels(shared / "reference" / "official" / "LRx4.png")
    reduced = resize(hr, size=rounded.shape[:2])
    return Sample(hr, {"float": reduced, "8bit": rounded.astype(np.float32) / np.float32(255)})


def pixels(path: Path) -> np.ndarray:
    return pyvips.Image.new_from_file(str(path)).numpy()[..., :3]


@pytest.fixture(scope="module")
def upscale(
    shared: Path, sample: Sample, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, str, dict[str, Any]], Result]]:
    """A function of network, reduction and options that upscales the sample picture to its size."""
    opened: dict[str, Upscaler] = {}

    def run(network: str, lr: str, options: dict[str, Any]) -> Result:
        if network not in opened:
            bundle = tmp_path_factory.mktemp("facts") / "bundle"
            checkpoint = shared / "reference" / "official" / f"{network}-pcsr.pth"
            export_bundle(checkpoint, bundle, precisions=("fp32",))
            opened[network] = Upscaler.open(bundle)
        return opened[network](sample.lr[lr], scale=4, **options)

    yield run
    for up in opened.values():
        up.close()


Upscale = Callable[[str, str, dict[str, Any]], Result]


@pytest.mark.parametrize("refine", [False, True], ids=["plain", "refined"])
@pytest.mark.parametrize("row", TABLE, ids=str)
def test_the_published_results_on_the_sample_picture(
    row: Row, sample: Sample, upscale: Upscale, refine: bool
) -> None:
    rule: dict[str, Any] = {"adaptive": True} if row.k is None else {"k": float(row.k)}
    result = upscale(row.network, row.lr, {**rule, "refine": refine})
    expected = row.refined if refine else row.plain
    assert psnr(result.image, sample.hr, shave=4) == pytest.approx(expected, abs=DECIBEL)
    assert 100 * result.shares[1] == pytest.approx(row.heavy, abs=PER_CENT)
    assert result.cost.flops / 1e9 == pytest.approx(row.gflops, abs=GIGA)
    if row.threshold is not None:
        assert result.decision.thresholds == pytest.approx((row.threshold,), abs=THRESHOLD)


@pytest.mark.parametrize("refine", [False, True], ids=["plain", "refined"])
@pytest.mark.parametrize(("k", "plain", "refined"), PSNR_8BIT)
def test_the_published_psnr_of_the_8_bit_picture_at_other_k(
    k: float, plain: float, refined: float, sample: Sample, upscale: Upscale, refine: bool
) -> None:
    result = upscale("carn", "8bit", {"k": float(k), "refine": refine})
    assert psnr(result.image, sample.hr, shave=4) == pytest.approx(refined if refine else plain, abs=DECIBEL)


def test_an_8_bit_picture_gives_what_its_float_values_give_rounded(
    shared: Path, sample: Sample, upscale: Upscale, carn_bundle: Path
) -> None:
    with Upscaler.open(carn_bundle, precision="fp32") as up:
        image = up(pixels(shared / "reference" / "official" / "LRx4.png"), scale=4).image
    expected = np.rint(np.clip(upscale("carn", "8bit", {"k": 0.0}).image, 0, 1) * np.float32(255))
    np.testing.assert_array_equal(image, expected)


def test_the_picture_that_the_authors_published_is_reproduced(
    shared: Path, sample: Sample, upscale: Upscale
) -> None:
    published = pixels(shared / "reference" / "official" / "PCSR.png")
    image = upscale("carn", "float", {"adaptive": True}).image
    difference = np.abs(np.rint(np.clip(image, 0, 1) * 255) - published)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-4
