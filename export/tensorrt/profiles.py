"""The shapes that engines are built for, chosen so that no picture of any size or scale falls outside.

The backbone has two optimisation profiles: pictures, and pictures smaller than the smallest usual one, which must
not be padded, as that would change their borders. The per-pixel networks take blocks of output pixels of any shape
down to a single one, so one profile holds all of theirs. The planner of `runtime/backends/profiles.py` cuts whatever
is larger. Memory grows with the largest shapes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pcsr.runtime.backends.engines import Profile, Range
from pcsr.runtime.errors import OptionError
from pcsr.runtime.geometry import MAX_SIDE
from pcsr.runtime.manifest import Manifest

__all__ = ["POINTS", "Sizes", "graph_profiles"]

# Output pixels of a block, and routed pixels of a call. A GPU with 132 multiprocessors runs 270,000 threads at
# once, so a million pixels fill it about four times over and the last, partly filled round costs little, while a
# hidden layer of 64 channels on them is 256 MiB in fp32. A 7680x4320 picture is 36 blocks.
POINTS = 1 << 20
# Columns of a block; see `tiling.blocks`.
BLOCK_COLUMNS = 2048
# A block is a row or more, and for refinement one above and one below.
LEAST_POINTS = 3 * BLOCK_COLUMNS
# TensorRT counts the elements of a tensor in 31 bits.
ELEMENTS = (1 << 31) - 1
# The scale that the engines are fastest at.
SCALE = 4

Dimension = tuple[int, int, int]
"""Smallest, best and largest of one axis."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the shapes are made from: (h, w) of input pictures, and output pixels per call.

    Attributes:
        min_lr: smallest window of the main profile; smaller ones go to the small profile.
        opt_lr: window that the backbone is fastest at.
        max_lr: largest window; larger pictures are tiled.
        points: largest number of output pixels in a call of a per-pixel network.
    """

    min_lr: tuple[int, int] = (16, 16)
    opt_lr: tuple[int, int] = (270, 480)
    max_lr: tuple[int, int] = (1920, 1920)
    points: int = POINTS

    def check(self, manifest: Manifest) -> None:
        """Refuse sizes with which some picture could not be upscaled, or that TensorRT cannot count.

        Raises:
            OptionError: says which size, and what it must be.
        """
        for low, high, names in (
            (self.min_lr, self.opt_lr, "--min-lr and --opt-lr"),
            (self.opt_lr, self.max_lr, "--opt-lr and --max-lr"),
        ):
            if low[0] > high[0] or low[1] > high[1]:
                raise OptionError(
                    f"{names} are {_text(low)} and {_text(high)}; the second must not be smaller"
                )
        least = 2 * (manifest.halo + 1) + 16
        if min(self.max_lr) < least:
            raise OptionError(
                f"--max-lr is {_text(self.max_lr)}; this backbone sees {manifest.halo} pixels around, so larger "
                f"pictures can only be tiled when both sides are {least} or more"
            )
        if not self.points >= LEAST_POINTS:
            raise OptionError(f"--points is {self.points}; it must be {LEAST_POINTS} or more")
        network = manifest.network
        hidden = max(
            3, *manifest.table_channels, *network.classifier, *(n for u in network.upsamplers for n in u)
        )
        # Channel groups are padded to 16 at most.
        channels = max(16 * network.options.get("groups", 1) + network.width, hidden)
        for name, pixels, width in (
            ("--max-lr", self.max_lr[0] * self.max_lr[1], channels),
            ("--points", self.points, hidden),
        ):
            if pixels * width > ELEMENTS:
                raise OptionError(
                    f"{name} makes tensors of {pixels} pixels and {width} channels, more than the {ELEMENTS} "
                    "elements that TensorRT counts; ask for less"
                )


def graph_profiles(manifest: Manifest, sizes: Sizes) -> Mapping[str, tuple[Profile, ...]]:
    """Optimisation profiles of every graph of a bundle, by its name.

    Args:
        manifest: of the bundle.
        sizes: that were asked for, checked.
    """
    (min_h, min_w), (opt_h, opt_w), (max_h, max_w) = sizes.min_lr, sizes.opt_lr, sizes.max_lr
    columns = BLOCK_COLUMNS
    rows = sizes.points // columns
    heads = ["classifier", *(f"upsampler_{j}" for j in range(manifest.classes))]
    profiles: dict[str, tuple[Profile, ...]] = {
        "backbone": (
            _window((min_h, opt_h, max_h), (min_w, opt_w, max_w)),
            _window((1, min_h, max_h), (1, min_w, max_w)),
        )
    }
    for number, (head, channels) in enumerate(zip(heads, manifest.table_channels, strict=True)):
        if number < 2:
            block_rows, block_columns = (1, rows, rows), _within(SCALE * opt_w, columns)
            # A block has no more input rows than output rows, and the table all columns of its window.
            table = (_within(rows // SCALE, min(rows, max_h)), _within(opt_w, max_w))
            profiles[head] = (_dense(channels, table, block_rows, block_columns),)
        else:
            flat, points = _within(opt_h * opt_w, max_h * max_w), _within(sizes.points // 4, sizes.points)
            # Terms may be those of a block, a tile or the whole picture: they are read, not computed with.
            most = min(MAX_SIDE, ELEMENTS // channels)
            terms = _within(SCALE * opt_h, most), _within(SCALE * opt_w, most)
            profiles[head] = (_sparse(channels, flat, points, terms),)
    return profiles


def _within(best: int, most: int) -> Dimension:
    return 1, max(1, min(best, most)), most


def _range(*axes: int | Dimension) -> Range:
    triples = [(axis, axis, axis) if isinstance(axis, int) else axis for axis in axes]
    low, best, most = zip(*triples, strict=True)
    return Range(min=low, opt=best, max=most)


def _window(h: Dimension, w: Dimension) -> Profile:
    return {"lr": _range(1, 3, h, w)}


def _dense(channels: int, table: tuple[Dimension, Dimension], rows: Dimension, columns: Dimension) -> Profile:
    return {
        "table": _range(table[0], channels, table[1]),
        "rows": _range(rows),
        "columns": _range(columns),
        "row_terms": _range(rows, channels, 1),
        "column_terms": _range(1, channels, columns),
    }


def _sparse(channels: int, flat: Dimension, points: Dimension, terms: tuple[Dimension, Dimension]) -> Profile:
    return {
        "table": _range(flat, channels),
        **{name: _range(points) for name in ("pixel", "row", "column")},
        "row_terms": _range(terms[0], channels),
        "column_terms": _range(terms[1], channels),
    }


def _text(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
