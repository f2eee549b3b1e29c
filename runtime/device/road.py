"""Pictures on a device: upload, `inference`, download, so that those of successive pictures overlap."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcsr.runtime.bundle import Bundle, head_weights
from pcsr.runtime.compose import check_picture
from pcsr.runtime.device.arrays import AllocationError, Device, DeviceArray, Graphs, Stream
from pcsr.runtime.device.inference import DeviceResources, Prepared, infer
from pcsr.runtime.device.lanes import MOST_LANES, Lanes, Streams
from pcsr.runtime.device.memory import MemoryGate
from pcsr.runtime.device.place import Places
from pcsr.runtime.device.tiles import Output, PictureOnDevice
from pcsr.runtime.errors import DeviceMemoryError, OptionError, PictureError
from pcsr.runtime.options import Account, Options, Progress, PutRows, Result
from pcsr.runtime.row_source import RowSource, all_rows

__all__ = ["Computed", "DeviceRoad"]


@dataclass(frozen=True, slots=True)
class Computed:
    """A picture that is done but for its download."""

    prepared: Prepared
    output: Output
    summary: Mapping[str, Any]
    started: float


class DeviceRoad:
    """Runs pictures on a device. Safe to use from several threads.

    Attributes:
        name: of the backend.
        provider: what runs the graphs.
        precision: of them.
        device: as it was asked for.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: Device,
        graphs: Mapping[str, Graphs],
        *,
        name: str,
        provider: str,
        precision: str,
        asked: str,
        tile: int | None = None,
        lanes: int = MOST_LANES,
    ) -> None:
        """Take over a device and graphs.

        Args:
            bundle: whose graphs they are.
            device: where they run.
            graphs: by precision; beside the one that runs there may be fp32, to redo tiles in.
            name: of the backend.
            provider: what runs the graphs.
            precision: that runs.
            asked: the device as the caller named it.
            tile: largest side of tiles in input pixels that was asked for.
            lanes: callers that may work at once; more wait.
        """
        self.name, self.provider, self.precision, self.device = name, provider, precision, asked
        self.memory_limit = device.memory_limit
        self._on, self._streams = device, Streams(device)
        manifest, weights = bundle.manifest, bundle.weights()
        heads = ["classifier", *(f"upsampler_{j}" for j in range(manifest.classes))]
        widths = zip(heads, manifest.table_channels, strict=True)
        self._shared = DeviceResources(
            on=device,
            graphs=graphs,
            precision=precision,
            manifest=manifest,
            lanes=Lanes(device, graphs, most=lanes),
            places=Places({head: head_weights(weights, head, width) for head, width in widths}),
            gate=MemoryGate(device.memory_limit),
            tile=tile,
        )

    def prepare(self, picture: Any, options: Options, *, stream: Any = None) -> Prepared:
        """Check a picture and begin its upload, or take it over where it lies on the device.

        Raises:
            PictureError: not a picture.
            DeviceMemoryError: it does not fit.
            OptionError: a stream with a picture of the host.
        """
        if isinstance(picture, RowSource):
            # On a device a picture is whole.
            picture = all_rows(picture)
        on_host = isinstance(picture, np.ndarray)
        if on_host:
            check_picture(picture)
            if stream is not None:
                raise OptionError("a stream goes with a picture on the device; this one is a NumPy array")
        with self._streams.borrowed_on_failure() as copies:
            began = copies.mark()
            if on_host:
                shape = tuple(picture.shape)
                values = np.ascontiguousarray(picture).reshape(*shape[:2], -1)
                array = self._allocate(copies, values.shape, values.dtype)
                copies.upload(values, array)
            else:
                adopted = self._adopt(picture, copies, stream)
                shape = adopted.shape
                array = adopted.part(0, (*shape[:2], shape[2] if len(shape) == 3 else 1))
            return Prepared(PictureOnDevice(array, shape, copies.mark(), on_host), copies, stream, began)

    def compute(self, prepared: Prepared, options: Options, progress: Progress | None) -> Computed:
        """Upscale a picture; returns when it is done on the device.

        Raises:
            DeviceMemoryError: the device cannot hold the smallest tile.
            BackendError: a graph fails, or gives values that are not finite in float32 either.
            CancelledError: `progress` said so.
        """
        try:
            started = time.perf_counter()
            output, summary = infer(self._shared, prepared, options, progress)
            return Computed(prepared, output, summary, started)
        except BaseException:
            self._streams.give(prepared.copies)
            raise

    def compute_rows(
        self, prepared: Prepared, options: Options, progress: Progress | None, put: PutRows
    ) -> Account:
        """Upscale a picture and hand it out, all rows at once: on a device a picture is whole."""
        result = self.deliver(self.compute(prepared, options, progress))
        put(result.image, result.class_map)
        return result.account()

    def deliver(self, computed: Computed) -> Result:
        """Bring the result to where the picture came from."""
        prepared, output = computed.prepared, computed.output
        copies, shape = prepared.copies, prepared.picture.shape
        H, W = output.class_map.shape
        image = output.image.part(0, (H, W, *shape[2:]))
        milliseconds = dict(computed.summary["milliseconds"])
        try:
            before = copies.mark()
            if prepared.picture.on_host:
                downloads = copies.download(image), copies.download(output.class_map)
                after = copies.mark()
                picture, class_map = (download.wait() for download in downloads)
                milliseconds["download"] = self._on.milliseconds(before, after)
            else:
                picture = self._on.publish(image, copies, prepared.caller)
                class_map = self._on.publish(output.class_map, copies, prepared.caller)
        finally:
            self._streams.give(copies)
        milliseconds["total"] = 1000 * (time.perf_counter() - computed.started)
        rest = {name: value for name, value in computed.summary.items() if name != "milliseconds"}
        return Result(
            image=picture,
            class_map=class_map,
            milliseconds=milliseconds,
            backend=self.name,
            provider=self.provider,
            precision=self.precision,
            **rest,
        )

    def discard(self, prepared: Prepared) -> None:
        """Its stream is for others now; what it uploads to stays allocated until that is done."""
        prepared.copies.synchronise()
        self._streams.give(prepared.copies)

    def close(self) -> None:
        """Release everything; nothing may be running."""
        self._shared.lanes.clear()
        self._streams.clear()
        self._shared.places.clear()
        for graphs in self._shared.graphs.values():
            graphs.close()
        self._on.close()

    def _allocate(self, stream: Stream, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        try:
            return stream.array(shape, dtype)
        except AllocationError:
            pass
        self._on.release()
        try:
            return stream.array(shape, dtype)
        except AllocationError:
            raise DeviceMemoryError(
                f"the device has no room for a picture of {math.prod(shape) * dtype.itemsize >> 20} MiB; "
                f"the limit is {self.memory_limit >> 20} MiB"
            ) from None

    def _adopt(self, picture: Any, copies: Stream, caller: Any) -> DeviceArray:
        array = self._on.adopt(picture, copies, caller)
        if len(array.shape) not in (2, 3) or (len(array.shape) == 3 and array.shape[2] not in (1, 3, 4)):
            raise PictureError(
                f"a picture has the shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), not {array.shape}"
            )
        if array.dtype not in (np.uint8, np.uint16, np.float32):
            raise PictureError(f"a picture is uint8, uint16 or float32, not {array.dtype}; convert it first")
        if 0 in array.shape:
            raise PictureError(f"a picture of shape {array.shape} has no pixels")
        if array.dtype == np.float32:
            flag = copies.array((1,), np.int32)
            copies.zero(flag)
            copies.launch("find_nonfinite_float32", array.size, array, array.size, flag)
            if copies.download(flag).wait()[0]:
                raise PictureError("the picture has NaN or infinite values; replace them first")
        return array
