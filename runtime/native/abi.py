"""The C interface of the kernels, as ctypes sees it: structures and the arguments of functions.

Everything here is in abi.cpp, engine.hpp or network.hpp, too; whoever changes one raises ABI in both.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.tiling import Region

__all__ = [
    "ABI",
    "MESSAGE_BYTES",
    "NOT_FINITE",
    "NO_MEMORY",
    "SAMPLES",
    "HeadStructure",
    "NetworkStructure",
    "OptionStructure",
    "PaintingStructure",
    "PatchStructure",
    "PlaceArrays",
    "SpreadStructure",
    "TablesStructure",
    "WeightStructure",
    "declare",
    "region_structure",
]

ABI = 5
# Of calls; 0 is success.
NO_MEMORY, NOT_FINITE = 1, 3
MESSAGE_BYTES = 512
SAMPLES = {np.dtype(np.uint8): 0, np.dtype(np.uint16): 1, np.dtype(np.float32): 2}

Float = NDArray[np.float32]


class OptionStructure(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_int32))


class WeightStructure(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("dimensions", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 4),
    )


class HeadStructure(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("hidden", ctypes.POINTER(ctypes.c_int32)),
        ("hidden_layers", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
    )


class NetworkStructure(ctypes.Structure):
    _fields_ = (
        ("backbone", ctypes.c_char_p),
        ("width", ctypes.c_int32),
        ("mean", ctypes.c_float * 3),
        ("std", ctypes.c_float * 3),
        ("options_count", ctypes.c_int32),
        ("options", ctypes.POINTER(OptionStructure)),
        ("heads_count", ctypes.c_int32),
        ("heads", ctypes.POINTER(HeadStructure)),
        ("weights_count", ctypes.c_int32),
        ("weights", ctypes.POINTER(WeightStructure)),
    )


class RegionStructure(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int32) for name in ("top", "bottom", "left", "right"))


class SpreadStructure(ctypes.Structure):
    _fields_ = (
        ("blocks", ctypes.POINTER(RegionStructure)),
        ("count", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


class TablesStructure(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("window", RegionStructure))


class PlaceStructure(ctypes.Structure):
    _fields_ = (
        ("nearest_rows", ctypes.c_void_p),
        ("nearest_columns", ctypes.c_void_p),
        ("row_terms", ctypes.POINTER(ctypes.c_void_p)),
        ("column_terms", ctypes.POINTER(ctypes.c_void_p)),
        ("column_stride", ctypes.c_int64),
    )


class PatchStructure(ctypes.Structure):
    _fields_ = (
        ("lr", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("lr_row", "lr_pixel", "lr_channel")),
        *((name, ctypes.c_int32) for name in ("lr_top", "lr_left", "lr_columns")),
        *((name, ctypes.c_int32) for name in ("channels", "sample", "refined")),
        *((name, ctypes.c_void_p) for name in ("low_rows", "high_rows", "row_weights")),
        *((name, ctypes.c_void_p) for name in ("low_columns", "high_columns", "column_weights")),
        ("region", RegionStructure),
        ("inner", RegionStructure),
        ("out", ctypes.c_void_p),
        ("out_stride", ctypes.c_int64),
    )


class PaintingStructure(ctypes.Structure):
    _fields_ = (
        ("thresholds", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("difficulties", ctypes.c_void_p),
        ("difficulty_stride", ctypes.c_int64),
        ("class_map", ctypes.c_void_p),
        ("class_stride", ctypes.c_int64),
        ("counts", ctypes.c_void_p),
        ("seconds", ctypes.c_void_p),
    )


@dataclass(frozen=True)
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

    @cached_property
    def structure(self) -> PlaceStructure:
        """For calls; it has the arrays' addresses alone."""
        pointers = ctypes.c_void_p * len(self.row_terms)
        return PlaceStructure(
            self.nearest_rows.ctypes.data,
            self.nearest_columns.ctypes.data,
            pointers(*(each.ctypes.data for each in self.row_terms)),
            pointers(*(each.ctypes.data for each in self.column_terms)),
            self.stride,
        )


def declare(library: ctypes.CDLL) -> None:
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32
    size, real = ctypes.c_int64, ctypes.c_double
    where = [pointer] * 4
    values = [pointer, pointer, size, real, real, number, number]
    arguments = {
        "pcsr_instruction_sets": [text, ctypes.c_size_t],
        "pcsr_open": [text, pointer, pointer, pointer, text],
        "pcsr_close": [pointer],
        "pcsr_no_backbone": [pointer],
        "pcsr_tables": [pointer, pointer, number, number, pointer, number, text],
        "pcsr_working_bytes": [pointer, number, number, number, pointer, text],
        "pcsr_probabilities": [*where, pointer, text],
        "pcsr_residuals": [*where, pointer, pointer, text],
        "pcsr_finish": [pointer, pointer, pointer, pointer, text],
        "pcsr_survey": [*where, pointer, size, pointer, pointer, text],
        "pcsr_paint": [*where, pointer, pointer, pointer, text],
        "pcsr_extremes": [pointer, pointer, size, pointer, text],
        "pcsr_histogram": [*values, pointer, pointer, text],
        "pcsr_inside": [*values, pointer, pointer, text],
    }
    for name, types in arguments.items():
        getattr(library, name).argtypes = types
    for name in ("pcsr_instruction_sets", "pcsr_close"):
        getattr(library, name).restype = None
    library.pcsr_no_backbone.restype = text


def region_structure(region: Region) -> RegionStructure:
    return RegionStructure(region.top, region.bottom, region.left, region.right)
