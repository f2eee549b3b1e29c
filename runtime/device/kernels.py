"""The kernels by name: their sources, what they take, and how many threads they run on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib.resources import files

import numpy as np

__all__ = ["CHUNK", "KERNELS", "OPTIONS", "THREADS", "Kernel", "Parameter", "Threads", "source"]

# In this order they are one source.
SOURCES = ("common", "input", "classify", "decide", "compact", "finish")
# Fused multiply-add would round less often than the contract does.
OPTIONS = ("--fmad=false", "--std=c++14")

THREADS = 256
# Pixels that a block of threads compacts.
CHUNK = THREADS * 16
# Blocks of a pass over all difficulties; enough to fill any GPU, few enough that their sums cost nothing.
PASS_BLOCKS = 1024

DTYPES: Mapping[str, type[np.generic]] = {
    "u8": np.uint8,
    "u16": np.uint16,
    "u32": np.uint32,
    "u64": np.uint64,
    "int": np.int32,
    "i64": np.int64,
    "float": np.float32,
    "double": np.float64,
}


class Threads(Enum):
    """What a thread is for."""

    ELEMENT = "one element"
    CHUNK = "a part of a chunk of 4096 pixels"
    PASS = "every so many-th element"
    SINGLE = "all, alone, with the other threads of its block at the most"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A scalar, or an array where `pointer`; `written` arrays are not const."""

    name: str
    dtype: type[np.generic]
    pointer: bool
    written: bool


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel of the sources.

    Attributes:
        name: as in the sources.
        signature: its parameters in C++, as in the sources.
        threads: what a thread is for.
    """

    name: str
    signature: str
    threads: Threads

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The signature, parsed."""
        return _parameters(self.signature)

    def grid(self, elements: int) -> int:
        """Blocks of `THREADS` threads for so many elements."""
        if self.threads is Threads.SINGLE:
            return 1
        each = CHUNK if self.threads is Threads.CHUNK else THREADS
        blocks = -(-elements // each)
        return min(blocks, PASS_BLOCKS) if self.threads is Threads.PASS else blocks


@cache
def _parameters(signature: str) -> tuple[Parameter, ...]:
    found = []
    for text in signature.split(","):
        match = re.fullmatch(r"\s*(const )?(\w+)(\*?) (\w+)\s*", text)
        assert match is not None, text
        const, dtype, star, name = match.groups()
        found.append(Parameter(name, DTYPES[dtype], bool(star), bool(star) and not const))
    return tuple(found)


def source(classes: int) -> str:
    """CUDA C++ of all kernels for a number of classes."""
    folder = files("pcsr.runtime.device") / "kernels"
    parts = ((folder / f"{name}.cu").read_text(encoding="utf-8") for name in SOURCES)
    return "\n".join([f"#define CLASSES {classes}", *parts])


def _window(dtype: str) -> str:
    return f"const {dtype}* picture, int width, int channels, int top, int left, int rows, int columns, float* lr"


def _finish(dtype: str) -> str:
    return (
        f"const {dtype}* picture, int width, int channels, const int* low_y, const int* high_y, "
        "const float* weight_y, const int* low_x, const int* high_x, const float* weight_x, "
        "const float* residual, const u8* classes, int top, int left, int columns, int inner_top, "
        f"int inner_left, int inner_rows, int inner_columns, int H, int W, int refine, {dtype}* image, "
        "u8* class_map, u64* counts, int* flag"
    )


_KERNELS = (
    Kernel("window_uint8", _window("u8"), Threads.ELEMENT),
    Kernel("window_uint16", _window("u16"), Threads.ELEMENT),
    Kernel("window_float32", _window("float"), Threads.ELEMENT),
    Kernel(
        "axis_terms",
        "const float* relative, const float* slope, const float* constant, int n, int channels, int across, "
        "float* terms",
        Threads.ELEMENT,
    ),
    Kernel("shift_indices", "const int* nearest, int n, int first, int* indices", Threads.ELEMENT),
    Kernel("find_nonfinite_float32", "const float* values, i64 n, int* flag", Threads.PASS),
    Kernel("find_nonfinite_float16", "const u16* values, i64 n, int* flag", Threads.PASS),
    Kernel(
        "store_difficulties",
        "const float* probability, int rows, int columns, int width, int top, int left, float* difficulties",
        Threads.ELEMENT,
    ),
    Kernel(
        "classes_by_thresholds",
        "const float* probability, int rows, int columns, const float* thresholds, u8* classes",
        Threads.ELEMENT,
    ),
    Kernel(
        "classes_of_region",
        "const float* difficulties, int width, int top, int left, int rows, int columns, "
        "const float* thresholds, u8* classes",
        Threads.ELEMENT,
    ),
    Kernel(
        "classes_by_argmax",
        "const float* probability, int rows, int columns, const float* weights, u8* classes",
        Threads.ELEMENT,
    ),
    Kernel(
        "find_extremes", "const float* values, i64 n, double unit, u32* extremes, u64* total", Threads.PASS
    ),
    Kernel(
        "means_begin",
        "const u32* extremes, const u64* total, i64 n, double unit, double* centres, u64* reached, "
        "float* thresholds, int* state",
        Threads.SINGLE,
    ),
    Kernel(
        "means_pass",
        "const float* values, i64 n, double unit, const float* thresholds, const int* state, u64* reached",
        Threads.PASS,
    ),
    Kernel(
        "means_update",
        "const u32* extremes, const u64* total, i64 n, double unit, int rounds, double tolerance, "
        "double* centres, u64* reached, float* thresholds, int* state",
        Threads.SINGLE,
    ),
    Kernel("budget_begin", "const u32* extremes, u32* bounds, float* tried, u64* reached", Threads.SINGLE),
    Kernel("budget_pass", "const float* values, i64 n, const float* tried, u64* reached", Threads.PASS),
    Kernel("budget_update", "const u64* wanted, u32* bounds, float* tried, u64* reached", Threads.SINGLE),
    Kernel("budget_ties", "const u32* bounds, float* tried, u64* reached", Threads.SINGLE),
    Kernel(
        "budget_end",
        "const u64* wanted, const float* tried, const u64* reached, float* thresholds",
        Threads.SINGLE,
    ),
    Kernel("count_classes", "const u8* classes, int n, u32* counts", Threads.CHUNK),
    Kernel("scan_counts", "int chunks, u32* counts, int* totals", Threads.SINGLE),
    Kernel(
        "compact_classes",
        "const u8* classes, int n, int columns, const u32* starts, const int* nearest_rows, "
        "const int* nearest_columns, int top, int left, int table_columns, int* pixel, int* row, int* column",
        Threads.CHUNK,
    ),
    Kernel(
        "scatter_rgb",
        "const float* rgb, const int* row, const int* column, int n, int columns, float* residual",
        Threads.ELEMENT,
    ),
    Kernel("finish_uint8", _finish("u8"), Threads.ELEMENT),
    Kernel("finish_uint16", _finish("u16"), Threads.ELEMENT),
    Kernel("finish_float32", _finish("float"), Threads.ELEMENT),
)

KERNELS: Mapping[str, Kernel] = {kernel.name: kernel for kernel in _KERNELS}
