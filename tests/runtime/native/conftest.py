"""Networks with random heads of any shape, and what they compute in plain NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from pcsr.runtime.backends import Tables
from pcsr.runtime.bundle import Bundle, read_bundle
from pcsr.runtime.geometry import Axis
from pcsr.runtime.native import open_library, open_native
from pcsr.runtime.native.backend import NativeBackend
from pcsr.runtime.shipped import shipped_bundle
from pcsr.runtime.terms import terms
from pcsr.runtime.tiling import Region

INSTRUCTION_SETS = open_library().instruction_sets


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set of this processor; what is opened in the test uses it."""
    monkeypatch.setenv("PCSR_NATIVE_ISA", request.param)
    return str(request.param)


class RandomBundle(Bundle):
    """The shipped FSRCNN with heads of random weights."""

    def __init__(
        self, classifier: tuple[int, ...], upsamplers: tuple[tuple[int, ...], ...], *, seed: int = 0
    ) -> None:
        shipped = read_bundle(shipped_bundle("fsrcnn"))
        network = msgspec.structs.replace(
            shipped.manifest.network, classifier=classifier, upsamplers=upsamplers
        )
        super().__init__(shipped.path, msgspec.structs.replace(shipped.manifest, network=network))
        self.made = {name: w for name, w in shipped.weights().items() if name.startswith("backbone.")}
        rng = np.random.default_rng(seed)
        outputs = 1 if len(upsamplers) == 2 else len(upsamplers)
        self.heads = {"classifier": (classifier, outputs)}
        self.heads |= {f"upsampler_{j}": (hidden, 3) for j, hidden in enumerate(upsamplers)}
        for head, (hidden, last) in self.heads.items():
            sizes = [*hidden, last]
            self.made[f"{head}.first.table"] = rng.normal(size=(sizes[0], network.width)).astype(np.float32)
            for part in ("relative_y", "relative_x", "cell_y", "cell_x", "bias"):
                self.made[f"{head}.first.{part}"] = rng.normal(size=sizes[0]).astype(np.float32)
            for i, (before, after) in enumerate(pairwise(sizes), start=1):
                weight = rng.normal(size=(after, before)) / np.sqrt(before)
                self.made[f"{head}.layer{i}.weight"] = weight.astype(np.float32)
                self.made[f"{head}.layer{i}.bias"] = rng.normal(size=after).astype(np.float32)

    def weights(self) -> dict[str, np.ndarray]:
        return self.made

    def tables(self, h: int, w: int, *, seed: int = 1) -> dict[str, np.ndarray]:
        """Random tables of all heads, each (h, w, channels)."""
        rng = np.random.default_rng(seed)
        channels = zip(self.heads, self.manifest.table_channels, strict=True)
        return {head: rng.normal(size=(h, w, n)).astype(np.float32) for head, n in channels}

    def expected(self, head: str, table: np.ndarray, rows: Axis, columns: Axis) -> np.ndarray:
        """What a head gives for every output pixel, in float64: (H, W, outputs), before any sigmoid or softmax."""
        first = {
            part: self.made[f"{head}.first.{part}"]
            for part in ("relative_y", "relative_x", "cell_y", "cell_x", "bias")
        }
        made = terms(first, rows, columns)
        x = table[rows.nearest][:, columns.nearest].astype(np.float64)
        x = x + made.rows[:, None] + made.columns[None]
        for i in range(1, len(self.heads[head][0]) + 1):
            weight, bias = self.made[f"{head}.layer{i}.weight"], self.made[f"{head}.layer{i}.bias"]
            x = np.maximum(x, 0) @ weight.astype(np.float64).T + bias
        return x


@dataclass(frozen=True)
class Opened:
    """A random network, opened."""

    bundle: RandomBundle
    backend: NativeBackend

    def tables(self, given: dict[str, np.ndarray], window: Region) -> Tables:
        """A window of tables in the one array that kernels read."""
        cut = [table[window.top : window.bottom, window.left : window.right] for table in given.values()]
        padded = [np.pad(table, ((0, 0), (0, 0), (0, -table.shape[2] % 16))) for table in cut]
        return Tables(window, np.ascontiguousarray(np.concatenate(padded, axis=2)), ())


Open = Callable[..., Opened]


@pytest.fixture
def open_random() -> Iterator[Open]:
    """A function that opens a random network by the hidden sizes of its heads."""
    opened: list[Opened] = []

    def open_by_sizes(classifier: tuple[int, ...], *upsamplers: tuple[int, ...], **options: Any) -> Opened:
        bundle = RandomBundle(classifier, upsamplers, **options)
        opened.append(Opened(bundle, open_native(bundle, precision="fp32", threads=1)))
        return opened[-1]

    yield open_by_sizes
    for each in opened:
        each.backend.close()


@pytest.fixture
def shipped() -> Path:
    """The folder of a bundle that ships."""
    return shipped_bundle("fsrcnn")
