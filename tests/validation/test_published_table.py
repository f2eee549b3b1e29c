"""Every number known of the authors' program on their sample picture, by the runtime."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcsr.runtime import Upscaler
from pcsr.validation.compare import compare_picture
from pcsr.validation.results import Rule
from pcsr.validation.sets import LrKind, read_truth

K0, ADAPTIVE = Rule("k", 0.0), Rule("adaptive")
# Network, LR, rule; PSNR without and with refinement; heavy pixels in %, GFLOPs by the paper's convention.
ROWS: list[tuple[str, LrKind, Rule, float, float, float | None, float | None]] = [
    ("carn", "float", K0, 29.4894, 29.4795, 29.136, 84.270),
    ("carn", "8bit", K0, 29.4689, 29.4601, 28.615, 83.907),
    ("carn", "float", ADAPTIVE, 29.4767, 29.4591, 14.467, 74.033),
    ("carn", "8bit", ADAPTIVE, 29.4566, 29.4391, 14.384, 73.976),
    ("carn", "float", Rule("k", -25), 29.5061, 29.5061, 100, 133.73),
    ("carn", "float", Rule("k", -0.5), 29.4963, 29.4912, 63.99, 108.59),
    ("carn", "float", Rule("k", 0.25), 29.4856, 29.4737, 21.92, 79.24),
    ("carn", "float", Rule("k", 1), 29.4725, 29.4529, 12.94, 72.97),
    ("carn", "8bit", Rule("k", -25), 29.4860, 29.4860, 100, 133.73),
    ("carn", "8bit", Rule("k", -0.5), 29.4762, 29.4715, None, None),
    ("carn", "8bit", Rule("k", 0.25), 29.4647, 29.4537, None, None),
    ("carn", "8bit", Rule("k", 1), 29.4515, 29.4316, None, None),
    ("fsrcnn", "float", K0, 28.4669, 28.4693, 26.218, 17.673),
    ("fsrcnn", "8bit", K0, 28.4630, 28.4653, 26.253, 17.690),
    ("fsrcnn", "float", ADAPTIVE, 28.4638, 28.4661, 24.302, 16.783),
    ("fsrcnn", "8bit", ADAPTIVE, 28.4592, 28.4614, 24.306, 16.785),
]


@pytest.mark.slow
@pytest.mark.parametrize("refine", [False, True], ids=["plain", "refined"])
@pytest.mark.parametrize("lr", ["float", "8bit"])
@pytest.mark.parametrize("network", ["carn", "fsrcnn"])
def test_the_runtime_gives_the_published_numbers(
    request: pytest.FixtureRequest, shared: Path, network: str, lr: LrKind, refine: bool
) -> None:
    rows = [row for row in ROWS if row[:2] == (network, lr)]
    truth = read_truth(shared / "reference" / "official" / "HR.png")
    with Upscaler.open(request.getfixturevalue(f"{network}_bundle"), precision="fp32", threads=2) as upscaler:
        found = compare_picture(
            upscaler, truth, name="HR", scale=4.0, rules=[row[2] for row in rows], refine=refine, lr=lr
        )
    for one, (_, _, rule, plain, refined, heavy, gflops) in zip(found, rows, strict=True):
        assert one.runtime.psnr == pytest.approx(refined if refine else plain, abs=0.002), rule.label
        assert one.bicubic.psnr == pytest.approx(27.0842 if lr == "float" else 27.0823, abs=1e-4)
        if heavy is not None and gflops is not None:
            assert 100 * one.shares[1] == pytest.approx(heavy, abs=0.01), rule.label
            assert one.flops / 1e9 == pytest.approx(gflops, abs=0.01), rule.label
