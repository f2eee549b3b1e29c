"""What each kernel does, in NumPy: the same names, parameters and results.

A twin takes the kernel's arrays flat, as the kernel sees memory, and writes to those that the kernel writes to.
They say what the kernels mean and stand in for them in tests. Those that find thresholds are in `decide_twins`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.device.decide_twins import DECIDE
from pcsr.runtime.device.kernels import CHUNK

__all__ = ["TWINS"]

Array = NDArray[Any]
Twin = Callable[..., None]

FULL_SCALE = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


def _level(values: Array) -> Array:
    if values.dtype == np.float32:
        return values
    return values.astype(np.float32) / np.float32(FULL_SCALE[values.dtype])


def window(
    classes: int,
    picture: Array,
    width: int,
    channels: int,
    top: int,
    left: int,
    rows: int,
    columns: int,
    lr: Array,
) -> None:
    """A window of the picture as planar RGB."""
    pixels = picture[: picture.size // (width * channels) * width * channels].reshape(-1, width, channels)
    part = pixels[top : top + rows, left : left + columns]
    rgb = np.repeat(part, 3, axis=2) if channels == 1 else part[..., :3]
    lr[: 3 * rows * columns] = _level(rgb).transpose(2, 0, 1).reshape(-1)


def axis_terms(
    classes: int,
    relative: Array,
    slope: Array,
    constant: Array,
    n: int,
    channels: int,
    across: int,
    terms: Array,
) -> None:
    """Terms of n positions of an axis."""
    made = relative[:n, None] * slope[:channels] + constant[:channels]
    terms[: n * channels] = (made.T if across else made).reshape(-1)


def shift_indices(classes: int, nearest: Array, n: int, first: int, indices: Array) -> None:
    """Indices into a table that begins later."""
    indices[:n] = nearest[:n] - np.int32(first)


def find_nonfinite_float32(classes: int, values: Array, n: int, flag: Array) -> None:
    """Raise the flag where a value is NaN or infinite."""
    flag[0] |= not np.isfinite(values[:n]).all()


def find_nonfinite_float16(classes: int, values: Array, n: int, flag: Array) -> None:
    """The same for half precision."""
    flag[0] |= not np.isfinite(values[:n].view(np.float16)).all()


def _planes(classes: int, probability: Array, rows: int, columns: int) -> Array:
    planes = 1 if classes == 2 else classes
    return probability[: rows * planes * columns].reshape(rows, planes, columns)


def _difficulty(classes: int, probability: Array, rows: int, columns: int) -> Array:
    p = _planes(classes, probability, rows, columns)
    if classes == 2:
        return p[:, 0]
    expected: Array = p[:, 1].copy()
    for j in range(2, classes):
        expected += np.float32(j) * p[:, j]
    return expected


def _classes(difficulty: Array, thresholds: Array, classes: int) -> Array:
    reached: Array = (difficulty[..., None] >= thresholds[: classes - 1]).sum(axis=-1, dtype=np.uint8)
    return reached


def store_difficulties(
    classes: int,
    probability: Array,
    rows: int,
    columns: int,
    width: int,
    top: int,
    left: int,
    difficulties: Array,
) -> None:
    """Difficulties of a region to their place in the picture's."""
    store = difficulties[: difficulties.size // width * width].reshape(-1, width)
    store[top : top + rows, left : left + columns] = _difficulty(classes, probability, rows, columns)


def classes_by_thresholds(
    classes: int, probability: Array, rows: int, columns: int, thresholds: Array, out: Array
) -> None:
    """Classes of a region by its probabilities."""
    found = _classes(_difficulty(classes, probability, rows, columns), thresholds, classes)
    out[: rows * columns] = found.reshape(-1)


def classes_of_region(
    classes: int,
    difficulties: Array,
    width: int,
    top: int,
    left: int,
    rows: int,
    columns: int,
    thresholds: Array,
    out: Array,
) -> None:
    """The same from the picture's difficulties."""
    store = difficulties[: difficulties.size // width * width].reshape(-1, width)
    found = _classes(store[top : top + rows, left : left + columns], thresholds, classes)
    out[: rows * columns] = found.reshape(-1)


def classes_by_argmax(
    classes: int, probability: Array, rows: int, columns: int, weights: Array, out: Array
) -> None:
    """The class whose probability times weight is the greatest, the first of equal ones."""
    weighted = _planes(classes, probability, rows, columns) * weights[None, :classes, None]
    out[: rows * columns] = weighted.argmax(axis=1).astype(np.uint8).reshape(-1)


def count_classes(classes: int, of: Array, n: int, counts: Array) -> None:
    """Pixels of each class in each chunk."""
    for chunk, first in enumerate(range(0, n, CHUNK)):
        found = np.bincount(of[first : min(first + CHUNK, n)], minlength=classes)
        counts[chunk * classes : (chunk + 1) * classes] = found


def scan_counts(classes: int, chunks: int, counts: Array, totals: Array) -> None:
    """Where each chunk's pixels of each class begin."""
    table = counts[: chunks * classes].reshape(chunks, classes)
    sums = table.sum(axis=0)
    totals[:classes] = sums
    begin = np.concatenate([[0, 0], np.cumsum(sums[1:-1])])
    table[...] = begin + np.cumsum(table, axis=0) - table


def compact_classes(
    classes: int,
    of: Array,
    n: int,
    columns: int,
    starts: Array,
    nearest_rows: Array,
    nearest_columns: Array,
    top: int,
    left: int,
    table_columns: int,
    pixel: Array,
    row: Array,
    column: Array,
) -> None:
    """Pixels of each class but 0 in row-major order, class after class."""
    at = 0
    for j in range(1, classes):
        y, x = np.divmod(np.flatnonzero(of[:n] == j), columns)
        # Where the first chunk begins is where the class begins.
        assert at == int(starts[j])
        end = at + y.size
        pixel[at:end] = (nearest_rows[y] - top) * table_columns + nearest_columns[x] - left
        row[at:end], column[at:end] = y, x
        at = end


def scatter_rgb(
    classes: int, rgb: Array, row: Array, column: Array, n: int, columns: int, residual: Array
) -> None:
    """Routed pixels into a region's residual."""
    place = residual[: residual.size // (3 * columns) * 3 * columns].reshape(-1, 3, columns)
    place[row[:n], :, column[:n]] = rgb[: 3 * n].reshape(n, 3)


def _between(values: Array, low: Array, high: Array, weight: Array, axis: int) -> Array:
    between: Array = values.take(low, axis=axis) * (np.float32(1) - weight)
    between += values.take(high, axis=axis) * weight
    return between


def finish(
    classes: int,
    picture: Array,
    width: int,
    channels: int,
    low_y: Array,
    high_y: Array,
    weight_y: Array,
    low_x: Array,
    high_x: Array,
    weight_x: Array,
    residual: Array,
    of: Array,
    top: int,
    left: int,
    columns: int,
    inner_top: int,
    inner_left: int,
    inner_rows: int,
    inner_columns: int,
    H: int,
    W: int,
    refine: int,
    image: Array,
    class_map: Array,
    counts: Array,
    flag: Array,
) -> None:
    """Base, refinement, grey and alpha, rounding."""
    lr = _level(picture[: picture.size // (width * channels) * width * channels]).reshape(-1, width, channels)
    rows = min(inner_top + inner_rows + 1, H - top)
    y, x = slice(top, top + rows), slice(left, left + columns)
    across = _between(lr, low_x[x], high_x[x], weight_x[x, None], axis=1)
    base = _between(across, low_y[y], high_y[y], weight_y[y, None, None], axis=0)
    rows = min(rows, residual.size // (3 * columns))
    base = base[:rows]
    colour = residual[: rows * 3 * columns].reshape(rows, 3, columns).transpose(0, 2, 1) + base[..., :3]
    kind = of[: rows * columns].reshape(rows, columns)
    finished = colour.copy()
    if refine:
        for r in range(max(1, inner_top), min(rows - 1, inner_top + inner_rows)):
            for s in range(max(1, inner_left), min(columns - 1, inner_left + inner_columns)):
                if kind[r, s] == 0 and kind[r - 1 : r + 2, s - 1 : s + 2].any():
                    near = colour[r - 1 : r + 2, s - 1 : s + 2]
                    sums = near[:, 0] + near[:, 1] + near[:, 2]
                    finished[r, s] = (sums[0] + sums[1] + sums[2]) * np.float32(1 / 9)
    inner = slice(inner_top, inner_top + inner_rows), slice(inner_left, inner_left + inner_columns)
    finished, kind, alpha = finished[inner], kind[inner], base[inner][..., 3:]
    flag[0] |= not np.isfinite(finished).all()
    if channels == 1:
        finished = (finished[..., :1] + finished[..., 1:2] + finished[..., 2:]) / np.float32(3)
    finished = np.concatenate([finished, alpha], axis=2)
    out = (
        slice(top + inner_top, top + inner_top + inner_rows),
        slice(left + inner_left, left + inner_left + inner_columns),
    )
    if image.dtype != np.float32:
        full = np.float32(FULL_SCALE[image.dtype])
        finished = np.clip(np.rint(np.nan_to_num(finished) * full), np.float32(0), full).astype(image.dtype)
    image[: H * W * channels].reshape(H, W, channels)[out] = finished
    class_map[: H * W].reshape(H, W)[out] = kind
    counts[:classes] += np.bincount(kind.reshape(-1), minlength=classes).astype(np.uint64)


TWINS: Mapping[str, Twin] = {
    "window_uint8": window,
    "window_uint16": window,
    "window_float32": window,
    "axis_terms": axis_terms,
    "shift_indices": shift_indices,
    "find_nonfinite_float32": find_nonfinite_float32,
    "find_nonfinite_float16": find_nonfinite_float16,
    "store_difficulties": store_difficulties,
    "classes_by_thresholds": classes_by_thresholds,
    "classes_of_region": classes_of_region,
    "classes_by_argmax": classes_by_argmax,
    **DECIDE,
    "count_classes": count_classes,
    "scan_counts": scan_counts,
    "compact_classes": compact_classes,
    "scatter_rgb": scatter_rgb,
    "finish_uint8": finish,
    "finish_uint16": finish,
    "finish_float32": finish,
}
"""By kernel. Each takes the number of classes first, then what the kernel takes."""
