"""The shared library of kernels: whether it is there, what it can use here, and its calls on NumPy arrays.

Every call comes back with a status; what went wrong in C++ is raised here. ctypes lets go of the interpreter's lock
while a call runs, so blocks are computed side by side.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.errors import BackendError, MemoryLimitError, NotInstalledError, OptionError
from pcsr.runtime.manifest import Manifest
from pcsr.runtime.tiling import Region

__all__ = ["INSTRUCTION_SET", "Engine", "Library", "PlaceArrays", "open_library"]

PATH = Path(__file__).parent / "kernels.so"
# Of the structures below; abi.cpp has the same number.
ABI = 1
# Names the instruction set to use in place of the best: for tests and comparisons.
INSTRUCTION_SET = "PCSR_NATIVE_ISA"
NO_MEMORY, NOT_FINITE = 1, 3
MESSAGE_BYTES = 512

Float = NDArray[np.float32]


class _Option(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_int32))


class _Weight(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("dimensions", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 4),
    )


class _Head(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("hidden", ctypes.POINTER(ctypes.c_int32)),
        ("hidden_layers", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
    )


class _Network(ctypes.Structure):
    _fields_ = (
        ("backbone", ctypes.c_char_p),
        ("width", ctypes.c_int32),
        ("mean", ctypes.c_float * 3),
        ("std", ctypes.c_float * 3),
        ("options_count", ctypes.c_int32),
        ("options", ctypes.POINTER(_Option)),
        ("heads_count", ctypes.c_int32),
        ("heads", ctypes.POINTER(_Head)),
        ("weights_count", ctypes.c_int32),
        ("weights", ctypes.POINTER(_Weight)),
    )


class _Region(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int32) for name in ("top", "bottom", "left", "right"))


class _Tables(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("window", _Region))


class _Place(ctypes.Structure):
    _fields_ = (
        ("nearest_rows", ctypes.c_void_p),
        ("nearest_columns", ctypes.c_void_p),
        ("row_terms", ctypes.POINTER(ctypes.c_void_p)),
        ("column_terms", ctypes.POINTER(ctypes.c_void_p)),
        ("column_stride", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True)
class PlaceArrays:
    """The geometry of a picture as kernels read it; see Place in engine.hpp.

    Attributes:
        nearest_rows: (H,) int32.
        nearest_columns: (W,) int32.
        row_terms: of each head (H, padded channels) float32.
        column_terms: of the classifier and class 0 (channels, stride), of the others (W, padded channels).
        stride: of the former.
    """

    nearest_rows: NDArray[np.int32]
    nearest_columns: NDArray[np.int32]
    row_terms: Sequence[Float]
    column_terms: Sequence[Float]
    stride: int

    def structure(self) -> _Place:
        """For a call; the arrays are to outlive it."""
        pointers = ctypes.c_void_p * len(self.row_terms)
        return _Place(
            self.nearest_rows.ctypes.data,
            self.nearest_columns.ctypes.data,
            pointers(*(each.ctypes.data for each in self.row_terms)),
            pointers(*(each.ctypes.data for each in self.column_terms)),
            self.stride,
        )


class Engine:
    """A network opened for an instruction set.

    Attributes:
        row: floats of a table row: the channels of all heads, each padded.
        no_backbone: why it cannot compute tables; empty if it can.
    """

    def __init__(self, library: ctypes.CDLL, pointer: ctypes.c_void_p, row: int) -> None:
        self._library, self._pointer = library, pointer
        self.row = row
        self.no_backbone: str = library.pcsr_no_backbone(pointer).decode()

    def tables(self, lr: Float, out: Float, threads: int) -> None:
        """Run the backbone on a (3, h, w) picture into (h, w, row) tables."""
        _, h, w = lr.shape
        self._call("pcsr_tables", lr.ctypes.data, h, w, out.ctypes.data, threads)

    def probabilities(
        self, tables: Float, window: Region, place: PlaceArrays, region: Region, out: Float
    ) -> bool:
        """Run the classifier on an output region, into (rows, P, columns). Says whether all was finite."""
        return self._call("pcsr_probabilities", *self._where(tables, window, place, region), out.ctypes.data)

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
        return self._call(
            "pcsr_residuals",
            *self._where(tables, window, place, region),
            classes.ctypes.data,
            out.ctypes.data,
        )

    def close(self) -> None:
        """Release it; no call may be under way."""
        pointer, self._pointer = self._pointer, ctypes.c_void_p()
        self._library.pcsr_close(pointer)

    def _where(self, tables: Float, window: Region, place: PlaceArrays, region: Region) -> list[Any]:
        made = _Tables(tables.ctypes.data, _region(window)), place.structure(), _region(region)
        return [ctypes.byref(each) for each in made]

    def _call(self, name: str, *arguments: Any) -> bool:
        return _checked(getattr(self._library, name), self._pointer, *arguments)


class Library:
    """The loaded library.

    Attributes:
        instruction_sets: those that it has kernels for and this processor runs, the best last.
        instruction_set: the one to use.
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
        given = _Network(
            network.backbone.encode(),
            network.width,
            (ctypes.c_float * 3)(*manifest.normalisation.mean),
            (ctypes.c_float * 3)(*manifest.normalisation.std),
            *_array(_Option, [_Option(name.encode(), value) for name, value in network.options.items()]),
            *_array(
                _Head,
                [
                    _Head(name.encode(), (ctypes.c_int32 * len(hidden))(*hidden), len(hidden), outputs)
                    for name, hidden, outputs in heads
                ],
            ),
            *_array(
                _Weight,
                [
                    _Weight(
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
        return Engine(self._library, pointer, row.value)


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
    _declare(library)
    return Library(library, os.environ.get(INSTRUCTION_SET) or None)


def _declare(library: ctypes.CDLL) -> None:
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32
    where = [pointer] * 4
    arguments = {
        "pcsr_instruction_sets": [text, ctypes.c_size_t],
        "pcsr_open": [text, pointer, pointer, pointer, text],
        "pcsr_close": [pointer],
        "pcsr_no_backbone": [pointer],
        "pcsr_tables": [pointer, pointer, number, number, pointer, number, text],
        "pcsr_probabilities": [*where, pointer, text],
        "pcsr_residuals": [*where, pointer, pointer, text],
    }
    for name, types in arguments.items():
        getattr(library, name).argtypes = types
    for name in ("pcsr_instruction_sets", "pcsr_close"):
        getattr(library, name).restype = None
    library.pcsr_no_backbone.restype = text


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


def _region(region: Region) -> _Region:
    return _Region(region.top, region.bottom, region.left, region.right)
