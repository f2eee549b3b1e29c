"""What the upscaler asks of a backend. There are two kinds.

A host backend runs the networks, on arrays of the host; everything between them is the upscaler's (`inference`). A
device backend takes the picture to a device and does it all there; it is a `Road`, and so is what the upscaler makes
of a host backend.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.backends.workers import Workers
from pcsr.runtime.compose import Patch
from pcsr.runtime.decision import Rule
from pcsr.runtime.distribution import Passes, Spread
from pcsr.runtime.geometry import Axis
from pcsr.runtime.options import Account, Options, Progress, PutRows, Result
from pcsr.runtime.tiling import Region

__all__ = ["Backend", "DeviceBackend", "Painted", "Road", "Surveyed", "Tables"]

Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tables:
    """First-layer sums of every per-pixel network over a window, once per input pixel.

    Attributes:
        window: of the input.
        classifier: (h, C, w), or whatever the backend keeps.
        upsamplers: one each class: (h, C, w) for class 0, (h, w, C) for the others.
    """

    window: Region
    classifier: NDArray[Any]
    upsamplers: tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What was done to one block or several.

    Attributes:
        pixels: of theirs.
        seconds: of the classifier, those of all threads together.
    """

    pixels: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Painted:
    """What was done to one block or several.

    Attributes:
        counts: pixels of each class, of the part that is wanted.
        seconds: of classifier, upsamplers, compose, those of all threads together.
    """

    counts: Sequence[int]
    seconds: tuple[float, float, float]


class Backend(Protocol):
    """Runs the networks. Safe to call from several threads; the same input gives the same bytes."""

    name: str
    provider: str
    precision: str
    device: str
    block: int
    """Output pixels of a block that it likes."""
    block_bytes: int
    """Working memory of all that is done to a block, per output pixel of it."""
    table_bytes: int
    """Bytes of the tables, per input pixel of a window."""

    def working_bytes(self, h: int, w: int) -> int:
        """Bytes that `tables` takes over a window of h×w input pixels, its result included."""

    def place(self, rows: Axis, columns: Axis) -> Any:
        """What depends on the sizes of a picture alone, handed back below.

        Pictures of the same sizes, also at the same time, are given the same one: nothing may change it.
        """

    def tables(self, lr: Float, window: Region) -> Tables:
        """Run the backbone over a window.

        Args:
            lr: (3, h, w) float32 RGB, 0 to 1 nominal.
            window: where it lies on the input.
        """

    def probabilities(self, tables: Tables, place: Any, region: Region) -> Float:
        """Run the classifier on every pixel of an output region.

        Returns:
            (rows, P, columns) float32; P = 1, the probability of being heavy, for two classes, else P = M.
        """

    def residuals(self, tables: Tables, place: Any, region: Region, classes: NDArray[np.uint8]) -> Float:
        """Run on every pixel of an output region the upsampler of its class.

        Args:
            tables: of a window that holds all nearest input pixels.
            place: of the picture.
            region: of the output.
            classes: (rows, columns).

        Returns:
            (rows, 3, columns) float32, to be added to the bilinear base; the caller may overwrite it.
        """

    def finish(self, residual: Float, classes: NDArray[np.uint8], patch: Patch) -> None:
        """What `compose.finish` says."""

    def survey(
        self, tables: Tables, place: Any, blocks: Iterable[Region], out: Float, workers: Workers
    ) -> Iterator[Surveyed]:
        """Write the difficulty of every pixel of some blocks, several of them at once.

        Args:
            tables: of a window that holds all nearest input pixels.
            place: of the picture.
            blocks: of the output, in reading order.
            out: (H, W), the whole output's.
            workers: how many blocks at once.

        Yields:
            After every block or every few what was done; whoever stops before the end leaves no work running.

        Raises:
            BackendError: a block has values that are not finite; the first such block is named.
        """

    def paint(
        self,
        tables: Tables,
        place: Any,
        patch: Patch,
        blocks: Iterable[Region],
        rule: Rule,
        difficulties: Float | None,
        class_map: NDArray[np.uint8],
        workers: Workers,
    ) -> Iterator[Painted]:
        """Class the pixels of some blocks, run their upsamplers and compose: the steps above, in one.

        Args:
            tables: of a window that holds all nearest input pixels.
            place: of the picture.
            patch: what the blocks are parts of, and where its colours go.
            blocks: parts of the patch's inner region, in reading order.
            rule: by which pixels are classed.
            difficulties: (H, W), the whole output's, where they are known.
            class_map: (rows, columns) of the patch's inner region, a view of the output; written.
            workers: how many blocks at once.

        Yields:
            As for `survey`.

        Raises:
            BackendError: as for `survey`.
        """

    def passes(self, spread: Spread) -> Passes:
        """What counts difficulties, on threads of its own or by a `map`."""

    def close(self) -> None:
        """Release what it holds."""


class Road(Protocol):
    """A picture's way from the caller and back, in three steps, so that those of successive pictures overlap."""

    def prepare(self, picture: Any, options: Options, *, stream: Any = None) -> Any:
        """Check a picture, and begin to bring it to where it is computed. Does not wait.

        Raises:
            PictureError: not a picture.
            OptionError: a stream where none is of use.
        """

    def compute(self, prepared: Any, options: Options, progress: Progress | None) -> Any:
        """Upscale what was prepared; where it fails, nothing is left to deliver."""

    def compute_rows(
        self, prepared: Any, options: Options, progress: Progress | None, put: PutRows
    ) -> Account:
        """Upscale what was prepared and hand out rows as they are done; nothing is left to deliver."""

    def deliver(self, computed: Any) -> Result:
        """Bring the result to the caller."""

    def discard(self, prepared: Any) -> None:
        """Let go of a picture that was prepared, and computed or not, and that nobody will ask for."""

    def close(self) -> None:
        """Release everything; nothing may be under way."""


@runtime_checkable
class DeviceBackend(Road, Protocol):
    """Does pictures on a device. Safe to call from several threads.

    Attributes:
        name: of the backend.
        provider: what runs the graphs.
        precision: of them.
        device: where.
        memory_limit: bytes of the device's memory that all pictures under way take together.
    """

    name: str
    provider: str
    precision: str
    device: str
    memory_limit: int
