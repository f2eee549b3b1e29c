"""The shared library of kernels: whether it is there, what it can use here, and its calls on NumPy arrays.

Every call comes back with a status; what went wrong in C++ is raised here. ctypes lets go of the interpreter's lock
while a call runs, so pictures of several callers are computed side by side.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.backends.protocol import Painted, Surveyed
from pcsr.runtime.compose import Patch, read_for
from pcsr.runtime.decision import ByThresholds, ByWeights, Rule
from pcsr.runtime.distribution import BINS, Bins
from pcsr.runtime.errors import BackendError, ClosedError, MemoryLimitError, NotInstalledError, OptionError
from pcsr.runtime.manifest import Manifest
from pcsr.runtime.native.abi import (
    ABI,
    MESSAGE_BYTES,
    NO_MEMORY,
    NOT_FINITE,
    SAMPLES,
    HeadStructure,
    NetworkStructure,
    OptionStructure,
    PaintingStructure,
    PatchStructure,
    PlaceArrays,
    RegionStructure,
    SpreadStructure,
    TablesStructure,
    WeightStructure,
    declare,
    region_structure,
)
from pcsr.runtime.tiling import Region

__all__ = ["INSTRUCTION_SET", "Engine", "Library", "NativePasses", "open_library"]

PATH = Path(__file__).parent / "kernels.so"
# Names the instruction set to use in place of the best: for tests and comparisons.
INSTRUCTION_SET = "PCSR_NATIVE_ISA"

Float = NDArray[np.float32]


class Engine:
    """A network opened for an instruction set.

    Attributes:
        row: floats of a table row: the channels of all heads, each padded.
        classes: M.
        no_backbone: why it cannot compute tables; empty if it can.
    """

    def __init__(self, library: ctypes.CDLL, pointer: ctypes.c_void_p, *, row: int, classes: int) -> None:
        self._library, self._pointer = library, pointer
        # Also where whoever opened it failed before it could close it.
        self._free = weakref.finalize(self, library.pcsr_close, pointer)
        self.row, self.classes = row, classes
        self.no_backbone: str = library.pcsr_no_backbone(pointer).decode()

    def tables(self, lr: Float, out: Float, threads: int) -> None:
        """Run the backbone on a (3, h, w) picture into (h, w, row) tables."""
        _, h, w = lr.shape
        self.call("pcsr_tables", lr.ctypes.data, h, w, out.ctypes.data, threads)

    def working_bytes(self, h: int, w: int, threads: int) -> int:
        """Bytes that `tables` takes over a picture of this size beside its result, and keeps for the next."""
        found = ctypes.c_int64()
        self.call("pcsr_working_bytes", h, w, threads, ctypes.byref(found))
        return found.value

    def probabilities(
        self, tables: Float, window: Region, place: PlaceArrays, region: Region, out: Float
    ) -> bool:
        """Run the classifier on an output region, into (rows, P, columns). Says whether all was finite."""
        return self.call("pcsr_probabilities", *_where(tables, window, place, region), out.ctypes.data)

    def residuals(
        self,
        tables: Float,
        window: Region,
        place: PlaceArrays,
        region: Region,
        classes: NDArray[np.uint8],
        out: Float,
    ) -> bool:
        """Run on every pixel the upsampler of its class, into (rows, 3, columns). Says whether all was finite."""
        return self.call(
            "pcsr_residuals",
            *_where(tables, window, place, region),
            classes.ctypes.data,
            out.ctypes.data,
        )

    def finish(self, residual: Float, classes: NDArray[np.uint8], patch: Patch) -> None:
        """Add the base to residuals (rows, 3, columns), refine, and write into the output."""
        lr = _read(patch)
        self.call(
            "pcsr_finish",
            ctypes.byref(_patch_structure(patch, lr)),
            residual.ctypes.data,
            classes.ctypes.data,
        )

    def survey(
        self,
        tables: Float,
        window: Region,
        place: PlaceArrays,
        blocks: Sequence[Region],
        out: Float,
        threads: int,
    ) -> tuple[Surveyed, Region | None]:
        """Write difficulties of blocks into (H, W), of any row stride; and the first block that is not finite."""
        seconds, first = ctypes.c_double(), ctypes.c_int32()
        finite = self.call(
            "pcsr_survey",
            *_here(tables, window, place),
            ctypes.byref(_spread_structure(blocks, threads)),
            *_rows(out),
            ctypes.byref(seconds),
            ctypes.byref(first),
        )
        done = Surveyed(sum(block.pixels for block in blocks), seconds.value)
        return done, None if finite else blocks[first.value]

    def paint(
        self,
        tables: Float,
        window: Region,
        place: PlaceArrays,
        patch: Patch,
        blocks: Sequence[Region],
        rule: Rule,
        difficulties: Float | None,
        class_map: NDArray[np.uint8],
        threads: int,
    ) -> tuple[Painted, Region | None]:
        """Class, upsample and compose blocks of a patch; and the first of them that is not finite."""
        lr, counts, seconds = _read(patch), np.zeros(self.classes, dtype=np.int64), np.zeros(3)
        first = ctypes.c_int32()
        # Held until the call has returned, as is everything that the structures have addresses of.
        thresholds = np.array(rule.thresholds, dtype=np.float32) if isinstance(rule, ByThresholds) else None
        weights = np.ascontiguousarray(rule.weights) if isinstance(rule, ByWeights) else None
        painting = PaintingStructure(
            None if thresholds is None else thresholds.ctypes.data,
            None if weights is None else weights.ctypes.data,
            *((None, 0) if difficulties is None else _rows(difficulties)),
            class_map.ctypes.data,
            class_map.strides[0],
            counts.ctypes.data,
            seconds.ctypes.data,
        )
        finite = self.call(
            "pcsr_paint",
            *_here(tables, window, place),
            ctypes.byref(_patch_structure(patch, lr)),
            ctypes.byref(_spread_structure(blocks, threads)),
            ctypes.byref(painting),
            ctypes.byref(first),
        )
        classifier, upsamplers, compose = seconds.tolist()
        done = Painted(counts.tolist(), (classifier, upsamplers, compose))
        return done, None if finite else blocks[first.value]

    def close(self) -> None:
        """Release it; no call may be under way."""
        self._free()

    def call(self, name: str, *arguments: Any) -> bool:
        """Call a function of this network; whether its values are finite."""
        if not self._free.alive:
            raise ClosedError("the native backend has been closed; open another")
        return _checked(getattr(self._library, name), self._pointer, *arguments)


class NativePasses:
    """Passes over difficulties by kernels; see `Passes` for what each method promises."""

    def __init__(self, engine: Engine, threads: int) -> None:
        self._engine, self._threads = engine, threads

    def extremes(self, values: Float) -> tuple[float, float]:
        """As `Passes` says."""
        found = np.empty(2, dtype=np.float32)
        self._engine.call("pcsr_extremes", values.ctypes.data, values.size, found.ctypes.data)
        return float(found[0]), float(found[1])

    def histogram(self, values: Float, bins: Bins) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """As `Passes` says."""
        counts, sums = np.zeros(BINS, dtype=np.int64), np.zeros(BINS)
        self._engine.call("pcsr_histogram", *self._binned(values, bins), counts.ctypes.data, sums.ctypes.data)
        return counts, sums

    def inside(self, values: Float, bins: Bins, wanted: NDArray[np.bool_], size: int) -> Float:
        """As `Passes` says."""
        found = np.empty(size, dtype=np.float32)
        self._engine.call("pcsr_inside", *self._binned(values, bins), wanted.ctypes.data, found.ctypes.data)
        return found

    def _binned(self, values: Float, bins: Bins) -> tuple[int, int, float, float, int, int]:
        return values.ctypes.data, values.size, bins.low, bins.factor, BINS, self._threads


class Library:
    """The loaded library.

    Attributes:
        instruction_sets: those that it has kernels for and this processor runs, the best last.
        instruction_set: the one to use.
        worthwhile: whether it has vectors, without which ONNX Runtime is faster, or was asked to do without.
    """

    def __init__(self, library: ctypes.CDLL, asked: str | None) -> None:
        self._library = library
        names = ctypes.create_string_buffer(MESSAGE_BYTES)
        library.pcsr_instruction_sets(names, MESSAGE_BYTES)
        self.instruction_sets = tuple(names.value.decode().split())
        self.instruction_set = asked or self.instruction_sets[-1]
        if self.instruction_set not in self.instruction_sets:
            raise OptionError(
                f"{INSTRUCTION_SET} is {self.instruction_set!r}, and the native kernels have "
                f"{', '.join(self.instruction_sets)} on this processor; unset it, or set it to one of these"
            )

        self.worthwhile = asked is not None or len(self.instruction_sets) > 1

    def open(self, manifest: Manifest, weights: Mapping[str, NDArray[Any]]) -> Engine:
        """Open a network; the weights are copied.

        Raises:
            BackendError: they are not as the manifest says.
            MemoryLimitError: there is no memory for them.
        """
        network = manifest.network
        outputs = 1 if manifest.classes == 2 else manifest.classes
        heads = [("classifier", network.classifier, outputs)]
        heads += [(f"upsampler_{j}", hidden, 3) for j, hidden in enumerate(network.upsamplers)]
        # Held until the call has returned: the structures have their addresses alone.
        arrays = {
            name: np.ascontiguousarray(array)
            for name, array in weights.items()
            if array.dtype == np.float32 and array.ndim <= 4
        }
        given = NetworkStructure(
            network.backbone.encode(),
            network.width,
            (ctypes.c_float * 3)(*manifest.normalisation.mean),
            (ctypes.c_float * 3)(*manifest.normalisation.std),
            *_array(
                OptionStructure,
                [OptionStructure(name.encode(), value) for name, value in network.options.items()],
            ),
            *_array(
                HeadStructure,
                [
                    HeadStructure(
                        name.encode(), (ctypes.c_int32 * len(hidden))(*hidden), len(hidden), outputs
                    )
                    for name, hidden, outputs in heads
                ],
            ),
            *_array(
                WeightStructure,
                [
                    WeightStructure(
                        name.encode(),
                        array.ctypes.data,
                        array.ndim,
                        (ctypes.c_int64 * 4)(*array.shape),
                    )
                    for name, array in arrays.items()
                ],
            ),
        )
        pointer, row = ctypes.c_void_p(), ctypes.c_int32()
        _checked(
            self._library.pcsr_open,
            self.instruction_set.encode(),
            ctypes.byref(given),
            ctypes.byref(pointer),
            ctypes.byref(row),
        )
        return Engine(self._library, pointer, row=row.value, classes=manifest.classes)


def open_library() -> Library:
    """Load the library, for the best instruction set there is or the one that the environment names.

    Raises:
        NotInstalledError: this install has none.
        BackendError: it cannot be loaded, or is of another version.
        OptionError: the environment names an instruction set that is not there.
    """
    if not PATH.exists():
        raise NotInstalledError(
            "this install of pcsr has no native kernels; with gcc or clang there, install it anew from its sources: "
            "its output says what keeps them from being built"
        )
    try:
        library = ctypes.CDLL(str(PATH))
        found = library.pcsr_abi()
    except (OSError, AttributeError) as error:
        raise BackendError(f"the native kernels cannot be loaded ({error}); install pcsr anew") from error
    if found != ABI:
        raise BackendError(
            f"the native kernels at {PATH} are of version {found}, and this pcsr needs {ABI}; install pcsr anew"
        )
    declare(library)
    return Library(library, os.environ.get(INSTRUCTION_SET) or None)


def _here(tables: Float, window: Region, place: PlaceArrays) -> list[Any]:
    """Tables and place, for calls."""
    return [
        ctypes.byref(TablesStructure(tables.ctypes.data, region_structure(window))),
        ctypes.byref(place.structure),
    ]


def _where(tables: Float, window: Region, place: PlaceArrays, region: Region) -> list[Any]:
    """The same, and a region of the output."""
    return [*_here(tables, window, place), ctypes.byref(region_structure(region))]


def _rows(values: Float) -> tuple[int, int]:
    """The address of an array (rows, columns), and floats from row to row."""
    return values.ctypes.data, values.strides[0] // values.itemsize


def _spread_structure(blocks: Sequence[Region], threads: int) -> SpreadStructure:
    count, array = _array(RegionStructure, [region_structure(block) for block in blocks])
    return SpreadStructure(array, count, threads)


def _read(patch: Patch) -> NDArray[Any]:
    """The part of the input that a patch's base reads, as it lies in memory: (rows, columns, channels)."""
    read = read_for(patch.region, patch.rows, patch.columns)
    lr = patch.picture[read.top : read.bottom, read.left : read.right]
    return lr[..., None] if lr.ndim == 2 else lr


def _patch_structure(patch: Patch, lr: NDArray[Any]) -> PatchStructure:
    """A patch for calls, of the input that `_read` gave; it has addresses alone."""
    rows, columns, read = patch.rows, patch.columns, read_for(patch.region, patch.rows, patch.columns)
    return PatchStructure(
        lr.ctypes.data,
        *lr.strides,
        *(read.top, read.left, lr.shape[1]),
        *(lr.shape[2], SAMPLES[lr.dtype], patch.refined),
        *(each.ctypes.data for each in (rows.low, rows.high, rows.weight)),
        *(each.ctypes.data for each in (columns.low, columns.high, columns.weight)),
        region_structure(patch.region),
        region_structure(patch.inner),
        patch.out.ctypes.data,
        patch.out.strides[0],
    )


def _checked(function: Any, *arguments: Any) -> bool:
    """Call a function whose last argument is room for a message; whether its values are finite."""
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    status = function(*arguments, message)
    if status == NO_MEMORY:
        raise MemoryLimitError(
            "there is not enough memory for the native kernels; give a lower memory limit, or smaller tiles"
        )
    if status not in (0, NOT_FINITE):
        raise BackendError(
            f"the native kernels cannot run this network: {message.value.decode(errors='replace')}; "
            "export the bundle anew with --force"
        )
    return bool(status == 0)


def _array(kind: Any, items: Sequence[Any]) -> tuple[int, Any]:
    return len(items), (kind * len(items))(*items)
