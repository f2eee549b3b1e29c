"""The upscaler: a bundle opened for use, and what may be asked of it. A picture's way is in `inference.py`."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.backends import Backend, DeviceBackend, Road, Wanted, open_backend
from pcsr.runtime.bundle import Bundle, read_bundle
from pcsr.runtime.compose import check_picture
from pcsr.runtime.errors import ClosedError, OptionError
from pcsr.runtime.files import FileRequest, FileResult, upscale_file
from pcsr.runtime.folder.plan import Job
from pcsr.runtime.folder.refusals import refuse_for_one
from pcsr.runtime.inference import HostRoad, Resources
from pcsr.runtime.kept_geometry import KeptGeometry
from pcsr.runtime.machine import total_memory, usable_cores
from pcsr.runtime.options import Account, Options, Progress, PutRows, Result
from pcsr.runtime.pictures import MAX_PIXELS, Encoding, fill_transparent
from pcsr.runtime.room import Room
from pcsr.runtime.row_source import RowSource
from pcsr.runtime.shipped import find_bundle

__all__ = ["Upscaler"]

# More than any machine has use for; a typing error must not fill the memory with stacks.
MAX_THREADS = 512


class Upscaler:
    """Upscales pictures with one bundle. Safe to share among threads.

    Attributes:
        bundle: what runs.
        threads: worker threads of a call.
        memory_limit: bytes that one call may take, its picture and result included; on a device, all calls
            together.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend | DeviceBackend,
        *,
        threads: int,
        memory_limit: int,
        tile: int | None = None,
    ) -> None:
        """Take over an opened backend; most callers want `Upscaler.open`."""
        self.bundle = bundle
        self.threads = threads
        self._backend = backend
        self._road: Road
        if isinstance(backend, DeviceBackend):
            self.memory_limit = backend.memory_limit
            self._road = backend
        else:
            self.memory_limit = memory_limit
            self._resources = Resources(
                backend=backend,
                manifest=bundle.manifest,
                pool=ThreadPoolExecutor(threads, thread_name_prefix="pcsr"),
                threads=threads,
                memory_limit=memory_limit,
                tile=tile,
                room=Room(memory_limit),
                geometry=KeptGeometry(backend, memory_limit),
            )
            self._road = HostRoad(self._resources)
        self._idle = threading.Condition()
        self._running = 0
        self._callers: set[int] = set()
        self._closed = False

    @classmethod
    def open(
        cls,
        bundle: str | os.PathLike[str],
        *,
        device: str = "cpu",
        precision: str = "auto",
        backend: str = "auto",
        threads: int | None = None,
        memory_limit: int | None = None,
        tile: int | None = None,
        engine_cache: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Open a bundle for upscaling.

        Args:
            bundle: name of a bundle that ships with pcsr, like "carn", or a folder made by `pcsr-export`.
            device: "cpu", "cuda" or "cuda:<index>".
            precision: "fp32", "fp16", "int8", or "auto": of the first two in the bundle, the faster for the
                backend. int8 costs a little quality, so it is taken only when named (or alone there).
            backend: "tensorrt", "native", "onnxruntime", or "auto": the fastest that works on the device; what is
                left out is logged with the reason.
            threads: worker threads, at most 512; None: the cores this process may use.
            memory_limit: bytes that one call may take; None: half of the memory this process can have. With
                tensorrt, bytes of the device's memory that all calls together may take; None: three quarters.
            tile: side of the tiles in input pixels at most, 16 or more; None: by the memory limit.
            engine_cache: folder to look for engines in; None: those in the bundle, then the user's cache folder.

        Raises:
            BundleError: no bundle there, or a damaged one, or it lacks the precision.
            BackendError: the backend is missing, broken, or got another provider than it asked for.
            OptionError: an argument has no meaning.
        """
        for name, value in (("threads", threads), ("memory_limit", memory_limit), ("tile", tile)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
                raise OptionError(f"{name} is {value!r}; it must be a whole number")
        threads = usable_cores() if threads is None else threads
        if not 1 <= threads <= MAX_THREADS:
            raise OptionError(f"threads is {threads}; it must be between 1 and {MAX_THREADS}")
        if memory_limit is not None and memory_limit < 1:
            raise OptionError(f"memory_limit is {memory_limit}; it must be a positive number of bytes")
        if tile is not None and tile < 16:
            raise OptionError(f"tile is {tile}; it must be 16 input pixels or more")
        opened = read_bundle(find_bundle(bundle))
        wanted = Wanted(device, precision, threads, memory_limit, tile, engine_cache)
        ran = open_backend(opened, wanted, backend=backend)
        memory_limit = total_memory() // 2 if memory_limit is None else memory_limit
        return cls(opened, ran, threads=threads, memory_limit=memory_limit, tile=tile)

    @property
    def backend(self) -> str:
        """Name of the backend that runs."""
        return self._backend.name

    @property
    def provider(self) -> str:
        """Execution provider that runs."""
        return self._backend.provider

    @property
    def precision(self) -> str:
        """Precision of the graphs that run."""
        return self._backend.precision

    @property
    def device(self) -> str:
        """Device that was asked for."""
        return self._backend.device

    def __call__(
        self,
        picture: Any,
        *,
        scale: float | None = None,
        size: tuple[int, int] | None = None,
        k: float | None = None,
        adaptive: bool = False,
        budget: float | None = None,
        refine: bool = False,
        progress: Progress | None = None,
        stream: Any = None,
    ) -> Result:
        """Upscale a picture.

        Args:
            picture: (h, w), (h, w, 1), (h, w, 3) RGB or (h, w, 4) RGBA; uint8, uint16, or float32 (0 to 1
                nominal, not clipped). Alpha is interpolated bilinearly, and is not multiplied into the colours;
                in a NumPy array, what lies under wholly transparent pixels is not seen. A NumPy array, or with a
                backend that works on a device an array there (`__cuda_array_interface__` or DLPack): so is the
                result then.
            scale: real magnification, 1 or more.
            size: output (H, W) instead.
            k: see `Options`; with none of k, adaptive and budget, k = 0.
            adaptive: see `Options`.
            budget: see `Options`.
            refine: see `Options`.
            progress: called with the share done, in this thread; returning False cancels.
            stream: with a picture on the device, the CUDA stream that it is ready on; None: the default one.

        Raises:
            OptionError: contradictory or meaningless options, or a budget that `Options` says cannot be spent.
            PictureError: not a picture.
            MemoryLimitError: the limit cannot hold the picture and the smallest tile, or (`DeviceMemoryError`)
                the device cannot.
            CancelledError: `progress` returned False.
            ClosedError: after `close`.
        """
        options = Options(scale=scale, size=size, k=k, adaptive=adaptive, budget=budget, refine=refine)
        with self._in_use():
            prepared = self._prepare(picture, options, stream)
            return self._road.deliver(self._road.compute(prepared, options, progress))

    def upscale_rows(
        self,
        picture: NDArray[Any] | RowSource,
        put: PutRows,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> Account:
        """Upscale a picture and hand out its rows as they are done, so that the whole never needs to be in memory.

        The rows are those that a call gives, half a megapixel or more at a time. On a device they come all at once.

        Args:
            picture: as for a call; a NumPy array, or rows that are read as they are needed.
            put: takes the next rows; what it raises ends the work.
            progress: as for a call.
            **options: scale, size, k, adaptive, budget, refine: as for a call.

        Raises:
            What a call raises.
        """
        asked = Options(**options)
        with self._in_use():
            return self._road.compute_rows(self._prepare(picture, asked, None), asked, progress, put)

    def upscale_file(
        self,
        source: str | os.PathLike[str],
        target: str | os.PathLike[str],
        *,
        scale: float | None = None,
        size: tuple[int, int] | None = None,
        k: float | None = None,
        adaptive: bool = False,
        budget: float | None = None,
        refine: bool = False,
        encoding: Encoding | None = None,
        page: int | None = None,
        max_pixels: int = MAX_PIXELS,
        salvage: bool = False,
        class_map: str | os.PathLike[str] | None = None,
        overlay: str | os.PathLike[str] | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ) -> FileResult:
        """Upscale a picture file: decoding, computing and encoding overlap, and the output need not fit in memory.

        The outputs appear whole, or none of them does. Colour profile, EXIF, XMP, IPTC and resolution are kept,
        orientation is applied, bit depth stays.

        Args:
            source: PNG, JPEG, TIFF, WebP, AVIF, GIF or BMP, by its content.
            target: file to be written; its ending tells the format, unless `encoding` does.
            scale: as for a call.
            size: as for a call.
            k: as for a call.
            adaptive: as for a call.
            budget: as for a call.
            refine: as for a call.
            encoding: format, quality, compression.
            page: of a file with several, 1 for the first; None: all, where the target's format holds them.
            max_pixels: larger inputs are refused by their header.
            salvage: take what decodes of a damaged file; the result's notes say so.
            class_map: PNG file for the class map.
            overlay: file for the picture with the classes laid over it.
            force: replace files that exist.
            progress: as for a call.

        Raises:
            OptionError: contradictory or meaningless arguments, or a target that exists or is the source.
            PictureError: the source cannot be read, or a target cannot be written (`DiskError`: nor can any other
                on that disk) or hold it.
            What a call raises.
        """
        request = FileRequest(
            source=Path(source),
            target=Path(target),
            options=Options(scale=scale, size=size, k=k, adaptive=adaptive, budget=budget, refine=refine),
            encoding=encoding or Encoding(),
            page=page,
            max_pixels=max_pixels,
            salvage=salvage,
            class_map=None if class_map is None else Path(class_map),
            overlay=None if overlay is None else Path(overlay),
            replace=force,
        )
        job = Job(str(source), request.source, request.target, request.class_map, request.overlay)
        try:
            refuse_for_one(job, root=None, form=request.encoding.form, replace=force)
        except OSError as error:
            raise OptionError(
                f"cannot look up {error.filename}: {error.strerror}; check permissions"
            ) from error
        return upscale_file(self, request, progress)

    def map(
        self, pictures: Iterable[Any], *, progress: Progress | None = None, **options: Any
    ) -> Iterator[Result]:
        """Upscale pictures one after another, in order, with the same options as a call.

        The next picture is taken from the iterable, in the caller's thread, while one is being computed in
        another, so reading and computing overlap; no more than that one is held ahead. On a device its upload
        begins then too, before the download of the one that is computed. A progress callback is called in that
        other thread.

        Raises:
            What a call raises, when that picture's turn comes, and what the iterable raises, after the results
            of the pictures before; either ends the iteration.
        """
        rest, stream = iter(pictures), options.pop("stream", None)
        asked = Options(**options)

        def compute(prepared: Any) -> Any:
            with self._in_use():
                return self._road.compute(prepared, asked, progress)

        with ThreadPoolExecutor(1, thread_name_prefix="pcsr-map") as ahead:
            pending: deque[tuple[Any, Future[Any]]] = deque()
            failed: Exception | None = None
            try:
                while failed is None:
                    try:
                        picture = next(rest)
                        with self._in_use():
                            prepared = self._prepare(picture, asked, stream)
                        pending.append((prepared, ahead.submit(compute, prepared)))
                    except StopIteration:
                        break
                    except Exception as error:  # whatever the caller's iterable raises, or the picture
                        failed = error
                    else:
                        if len(pending) == 2:
                            yield self._deliver(pending.popleft()[1].result())
                if pending:
                    yield self._deliver(pending.popleft()[1].result())
                if failed is not None:
                    raise failed
            finally:
                # An error, or a caller who has gone: nobody will ask for the rest.
                for prepared, future in pending:
                    if future.cancel() or future.exception() is None:
                        self._road.discard(prepared)
                # An error holds this frame, which must not hold the error and the pictures in turn.
                failed = None
                pending.clear()

    def _prepare(self, picture: Any, options: Options, stream: Any) -> Any:
        if isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] == 4:
            check_picture(picture)
            picture = fill_transparent(picture)
        return self._road.prepare(picture, options, stream=stream)

    def _deliver(self, computed: Any) -> Result:
        with self._in_use():
            return self._road.deliver(computed)

    def warmup(self, size: tuple[int, int], *, scale: float = 4) -> None:
        """Run once on a grey picture of (h, w), so that the first real one pays for no set-up."""
        grey = np.full((*size, 3), 0.5, dtype=np.float32)
        self(grey, scale=scale)

    def close(self) -> None:
        """Wait for running calls, then release everything; further calls raise `ClosedError`.

        Raises:
            OptionError: called from inside a call, by its progress callback: it would wait for itself.
        """
        with self._idle:
            if threading.get_ident() in self._callers:
                raise OptionError(
                    "close() from a progress callback; return False from it to cancel the picture"
                )
            if self._closed:
                return
            self._closed = True
            self._idle.wait_for(lambda: self._running == 0)
        self._road.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._idle:
            if self._closed:
                raise ClosedError("this upscaler was closed; open another")
            self._running += 1
            self._callers.add(threading.get_ident())
        try:
            yield
        finally:
            with self._idle:
                self._running -= 1
                self._callers.discard(threading.get_ident())
                self._idle.notify_all()
