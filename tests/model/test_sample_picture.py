"""The authors' sample picture (276x420 to 1104x1680): quality, shares and cost measured with their program.

"float" is the unrounded bicubic of the original, which the authors' scripts feed; "8bit" is their LRx4.png.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from numpy.typing import NDArray

from pcsr.model.checkpoint import load_checkpoint
from pcsr.model.dense import dense_cost, load_dense, upscale_dense
from pcsr.model.reference import Reference, upscale
from pcsr.runtime.bicubic import resize

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True)
class Row:
    backbone: str
    lr: str
    rule: dict[str, Any]
    psnr: float
    psnr_refined: float
    heavy_percent: float | None
    gflops: float | None


ROWS = [
    Row("carn", "float", {"k": 0.0}, 29.4894, 29.4795, 29.136, 84.270),
    Row("carn", "8bit", {"k": 0.0}, 29.4689, 29.4601, 28.615, 83.907),
    Row("carn", "float", {"adaptive": True}, 29.4767, 29.4591, 14.467, 74.033),
    Row("carn", "8bit", {"adaptive": True}, 29.4566, 29.4391, 14.384, 73.976),
    Row("carn", "float", {"k": -25.0}, 29.5061, 29.5061, 100.0, 133.73),
    Row("carn", "float", {"k": -0.5}, 29.4963, 29.4912, 63.99, 108.59),
    Row("carn", "float", {"k": 0.25}, 29.4856, 29.4737, 21.92, 79.24),
    Row("carn", "float", {"k": 1.0}, 29.4725, 29.4529, 12.94, 72.97),
    Row("carn", "8bit", {"k": -25.0}, 29.4860, 29.4860, 100.0, None),
    Row("carn", "8bit", {"k": -0.5}, 29.4762, 29.4715, None, None),
    Row("carn", "8bit", {"k": 0.25}, 29.4647, 29.4537, None, None),
    Row("carn", "8bit", {"k": 1.0}, 29.4515, 29.4316, None, None),
    Row("fsrcnn", "float", {"k": 0.0}, 28.4669, 28.4693, 26.218, 17.673),
    Row("fsrcnn", "8bit", {"k": 0.0}, 28.4630, 28.4653, 26.253, 17.690),
    Row("fsrcnn", "float", {"adaptive": True}, 28.4638, 28.4661, 24.302, 16.783),
    Row("fsrcnn", "8bit", {"adaptive": True}, 28.4592, 28.4614, 24.306, 16.785),
]

THRESHOLDS = {
    ("carn", "float"): 0.64089,
    ("carn", "8bit"): 0.64004,
    ("fsrcnn", "float"): 0.51031,
    ("fsrcnn", "8bit"): 0.51037,
}

DENSE = [
    ("carn", "float", 29.4934, 130.914),
    ("carn", "8bit", 29.4849, 130.914),
    ("fsrcnn", "float", 28.4998, 52.981),
    ("fsrcnn", "8bit", 28.4933, 52.981),
]


def levels(image: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.rint(np.clip(image.astype(np.float64) * 255, 0, 255))


@functools.cache
def picture(official: Path, name: str) -> NDArray[np.uint8]:
    return np.asarray(pyvips.Image.new_from_file(str(official / name)).numpy()[..., :3])


@functools.cache
def lr(official: Path, kind: str) -> NDArray[Any]:
    if kind == "8bit":
        return picture(official, "LRx4.png")
    return resize(picture(official, "HR.png").astype(np.float32) / np.float32(255), size=(276, 420))


def psnr(official: Path, image: NDArray[np.float32]) -> float:
    """RGB, 8-bit levels, four pixels shaved off each side, as the paper measures."""
    truth = picture(official, "HR.png").astype(np.float64)
    error = (levels(image) - truth)[4:-4, 4:-4]
    return float(10 * np.log10(255**2 / np.mean(error**2)))


def result(official: Path, row: Row, *, refine: bool) -> Reference:
    network = load_checkpoint(official / f"{row.backbone}-pcsr.pth")
    return upscale(network, lr(official, row.lr), scale=4, refine=refine, **row.rule)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.backbone}-{row.lr}-{row.rule}")
def test_oracle_reaches_the_measured_quality_share_and_cost(official: Path, row: Row) -> None:
    plain, refined = (result(official, row, refine=refine) for refine in (False, True))
    assert psnr(official, plain.image) == pytest.approx(row.psnr, abs=0.002)
    assert psnr(official, refined.image) == pytest.approx(row.psnr_refined, abs=0.002)
    if row.heavy_percent is not None:
        assert 100 * plain.class_map.mean() == pytest.approx(row.heavy_percent, abs=0.01)
    if row.gflops is not None:
        assert plain.flops / 1e9 == pytest.approx(row.gflops, abs=0.01)
    if "adaptive" in row.rule:
        assert plain.thresholds == pytest.approx((THRESHOLDS[row.backbone, row.lr],), abs=2e-5)


def test_oracle_makes_the_authors_sample_result(official: Path) -> None:
    row = next(
        row for row in ROWS if (row.backbone, row.lr, row.rule) == ("carn", "float", {"adaptive": True})
    )
    made = result(official, row, refine=False)
    difference = np.abs(levels(made.image) - picture(official, "PCSR.png"))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-4


@pytest.mark.parametrize(("backbone", "kind", "quality", "gflops"), DENSE)
def test_dense_networks_reach_the_measured_quality_and_cost(
    official: Path, backbone: str, kind: str, quality: float, gflops: float
) -> None:
    network = load_dense(official / f"{backbone}-x4.pth")
    image = upscale_dense(network, lr(official, kind))
    assert psnr(official, image) == pytest.approx(quality, abs=0.002)
    assert dense_cost(network).published * 276 * 420 / 1e9 == pytest.approx(gflops, abs=0.01)
    if (backbone, kind) == ("carn", "float"):
        difference = np.abs(levels(image) - picture(official, "Original.png"))
        assert difference.max() <= 1
        assert (difference > 0).mean() <= 1e-4
