"""Where the output pixels of a picture lie, on the device: axes and terms, made once for pictures of one geometry."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.device.arrays import DeviceArray, Stream
from pcsr.runtime.geometry import Axis, axis
from pcsr.runtime.tiling import Region

__all__ = ["AxisOnDevice", "Head", "Place", "Places", "feed_terms", "upload_together"]

# Pictures of a few sizes alternate; a place takes less than a megabyte.
KEPT = 8

Vectors = Mapping[str, NDArray[np.float32]]
"""Of one head: relative_y, relative_x, cell_y, cell_x, bias, C values each."""


@dataclass(frozen=True, slots=True)
class AxisOnDevice:
    """The arrays of `Axis`, (hr,) each."""

    nearest: DeviceArray
    relative: DeviceArray
    low: DeviceArray
    high: DeviceArray
    weight: DeviceArray


@dataclass(frozen=True, slots=True)
class Head:
    """A per-pixel network's terms as slope * relative + constant, (C,) each, for rows and for columns."""

    channels: int
    slope_y: DeviceArray
    constant_y: DeviceArray
    slope_x: DeviceArray
    constant_x: DeviceArray


@dataclass(frozen=True, slots=True)
class Place:
    """Geometry of a picture.

    Attributes:
        rows: of the picture, on the host.
        columns: of the picture, on the host.
        y: rows on the device.
        x: columns on the device.
        heads: classifier and upsamplers by name.
        ready: when all of it is on the device.
    """

    rows: Axis
    columns: Axis
    y: AxisOnDevice
    x: AxisOnDevice
    heads: Mapping[str, Head]
    ready: Any


class Places:
    """Places by geometry; the last few are kept. Safe to use from several threads."""

    def __init__(self, first: Mapping[str, Vectors]) -> None:
        """`first`: vectors of each head by name."""
        self._first = first
        self._kept: OrderedDict[tuple[int, int, int, int], Place] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, lr: tuple[int, int], hr: tuple[int, int], stream: Stream) -> Place:
        """The place of (h, w) input and (H, W) output pixels, ready for a stream."""
        key = (*lr, *hr)
        with self._lock:
            place = self._kept.pop(key, None)
            if place is None:
                place = self._make(lr, hr, stream)
            self._kept[key] = place
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        stream.wait(place.ready)
        return place

    def clear(self) -> None:
        """Let go of all that are kept."""
        with self._lock:
            self._kept.clear()

    def _make(self, lr: tuple[int, int], hr: tuple[int, int], stream: Stream) -> Place:
        rows, columns = axis(lr[0], hr[0]), axis(lr[1], hr[1])
        values: dict[str, NDArray[Any]] = {}
        for name, side in (("y", rows), ("x", columns)):
            for part in ("nearest", "relative", "low", "high", "weight"):
                values[f"{name}.{part}"] = getattr(side, part)
        for name, vectors in self._first.items():
            # As `terms` makes them: the part that is the same for all positions first.
            values[f"{name}.slope_y"] = vectors["relative_y"]
            values[f"{name}.constant_y"] = vectors["cell_y"] * rows.cell + vectors["bias"]
            values[f"{name}.slope_x"] = vectors["relative_x"]
            values[f"{name}.constant_x"] = vectors["cell_x"] * columns.cell
        arrays = upload_together(stream, values)

        def on_device(name: str) -> AxisOnDevice:
            return AxisOnDevice(
                **{
                    part: arrays[f"{name}.{part}"]
                    for part in ("nearest", "relative", "low", "high", "weight")
                }
            )

        heads = {
            name: Head(
                vectors["bias"].size,
                **{
                    part: arrays[f"{name}.{part}"]
                    for part in ("slope_y", "constant_y", "slope_x", "constant_x")
                },
            )
            for name, vectors in self._first.items()
        }
        return Place(rows, columns, on_device("y"), on_device("x"), heads, stream.mark())


def upload_together(stream: Stream, values: Mapping[str, NDArray[Any]]) -> dict[str, DeviceArray]:
    """Arrays of 4-byte numbers, in one copy."""
    host = np.concatenate([value.reshape(-1).view(np.uint32) for value in values.values()])
    whole = stream.array(host.shape, np.uint32)
    stream.upload(host, whole)
    arrays, first = {}, 0
    for name, value in values.items():
        arrays[name] = whole.part(first, value.shape).viewed_as(value.dtype)
        first += value.size
    return arrays


def feed_terms(
    stream: Stream, place: Place, head: str, region: Region, *, dense: bool
) -> tuple[DeviceArray, DeviceArray]:
    """Row and column terms of a region: (R, C, 1) and (1, C, S) for a dense graph, (R, C) and (S, C) else."""
    network, (rows, columns) = place.heads[head], region.shape
    C = network.channels
    down = stream.array((rows, C, 1) if dense else (rows, C), np.float32)
    across = stream.array((1, C, columns) if dense else (columns, C), np.float32)
    relative = place.y.relative.part(region.top, (rows,))
    stream.launch("axis_terms", down.size, relative, network.slope_y, network.constant_y, rows, C, 0, down)
    relative = place.x.relative.part(region.left, (columns,))
    stream.launch(
        "axis_terms",
        across.size,
        relative,
        network.slope_x,
        network.constant_x,
        columns,
        C,
        int(dense),
        across,
    )
    return down, across
