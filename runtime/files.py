"""One picture file's way: read, upscale, write; in three steps that those of successive pictures can overlap in."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.class_maps import levels, overlay
from pcsr.runtime.errors import OptionError, PictureError
from pcsr.runtime.geometry import output_size
from pcsr.runtime.options import Account, Options, Progress
from pcsr.runtime.pictures import (
    MAX_PIXELS,
    Encoding,
    Picture,
    PictureFile,
    PictureWriter,
    StreamedPicture,
    open_picture,
    output_format,
)
from pcsr.runtime.pictures.formats import FORMATS
from pcsr.runtime.row_source import RowSource

if TYPE_CHECKING:
    from pcsr.runtime.upscaler import Upscaler

__all__ = ["FileRequest", "FileResult", "FileWork", "upscale_file"]

logger = logging.getLogger(__name__)

# What a pixel may take: RGB of 16 bits. A smaller estimate would decode whole what is large; a larger one costs time.
BYTES_PER_PIXEL = 6
# Rows that wait for an encoder, where the memory limit allows: enough for a 4K picture.
WAITING_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRequest:
    """What is asked for one picture file.

    Attributes:
        source: the picture.
        target: file to be written.
        options: size and rule.
        encoding: how the target is written.
        page: of a file with several, 1 for the first; None: all.
        max_pixels: larger inputs are refused.
        salvage: take what decodes of a damaged file.
        class_map: file for the class map, PNG.
        overlay: file for the picture with the classes laid over it.
        replace: files that exist.
    """

    source: Path
    target: Path
    options: Options
    encoding: Encoding = field(default_factory=Encoding)
    page: int | None = None
    max_pixels: int = MAX_PIXELS
    salvage: bool = False
    class_map: Path | None = None
    overlay: Path | None = None
    replace: bool = False

    def __post_init__(self) -> None:
        if self.page is not None and (isinstance(self.page, bool) or self.page < 1):
            raise OptionError(f"page is {self.page!r}; it must be 1 (the first) or more")
        if self.max_pixels < 1:
            raise OptionError(f"max_pixels is {self.max_pixels}; it must be 1 or more")

    def outputs(self) -> Iterator[Path]:
        """All files to be written, the one that stands for all of them last."""
        yield from (path for path in (self.class_map, self.overlay, self.target) if path is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileResult:
    """What became of one picture file.

    Attributes:
        source: the picture.
        target: file that was written.
        size: (H, W) of it; of one page.
        pages: how each page came about.
        notes: what its owner should know, like a conversion of colours or damage that was passed over.
        milliseconds: wall time of reading, of computing (handing rows to the encoder included), and of waiting for
            the encoder after that.
    """

    source: Path
    target: Path
    size: tuple[int, int]
    pages: tuple[Account, ...]
    notes: tuple[str, ...]
    milliseconds: Mapping[str, float]

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the pixels of all pages in each class, lightest first."""
        return tuple(
            sum(each) / len(self.pages) for each in zip(*(page.shares for page in self.pages), strict=True)
        )


def upscale_file(upscaler: Upscaler, request: FileRequest, progress: Progress | None = None) -> FileResult:
    """Read, upscale and write one picture file; all of its outputs appear, or none.

    Raises:
        OptionError: as `FileWork.decode`.
        PictureError: the picture cannot be read, or a file cannot be written or hold it.
        PcsrError: as the upscaler raises.
    """
    with FileWork(upscaler, request) as work:
        work.open()
        work.compute(progress)
        return work.finish()


class FileWork:
    """One picture file on its way: `open`, `decode`, `compute`, `finish`, in this order, each in any thread.

    As a context it lets go of everything at the end, whatever was done by then.

    Attributes:
        request: what is asked.
        replace: files that exist; may be changed until `compute`.
    """

    def __init__(
        self,
        upscaler: Upscaler,
        request: FileRequest,
        *,
        waiting_bytes: int | None = None,
        log_level: int = logging.INFO,
    ) -> None:
        """Nothing is opened yet.

        Args:
            upscaler: computes.
            request: what is asked.
            waiting_bytes: of rows that may wait for the encoder.
            log_level: of the line that says from which size to which.
        """
        self.request = request
        self.replace = request.replace
        self._upscaler = upscaler
        self._waiting = (
            min(WAITING_BYTES, upscaler.memory_limit // 8) if waiting_bytes is None else waiting_bytes
        )
        self._log_level = log_level
        self._open = ExitStack()
        self._broken_off = False
        self._first: Picture | StreamedPicture | None = None
        self._pages: Iterator[Picture] = iter(())
        self._writers: list[PictureWriter] = []
        self._accounts: list[Account] = []
        self._notes: list[str] = []
        self._milliseconds = {"read": 0.0, "compute": 0.0, "encode": 0.0}

    def open(self) -> PictureFile:
        """Open the picture and read its header.

        Raises:
            PictureError: it cannot be read, or the target cannot hold its pages.
        """
        started, request = time.perf_counter(), self.request
        self._file = self._open.enter_context(
            open_picture(request.source, max_pixels=request.max_pixels, salvage=request.salvage)
        )
        pages = self._file.header.pages
        form = FORMATS[request.encoding.form or output_format(request.target)]
        if request.page is None and pages > 1 and not form.pages:
            # Before anything is decoded: a long animation takes long.
            others = " or ".join(other.label for other in FORMATS.values() if other.pages)
            raise PictureError(
                f"{request.source} has {pages} pages and {form.label} holds one; write {others}, or pick one with "
                "--page"
            )
        self._spent("read", started)
        return self._file

    def decode(self) -> None:
        """Decode the picture, or the first page of several, unless that was done.

        Raises:
            OptionError: a page that is not there.
            PictureError: the picture is damaged, or of a kind that is not taken.
        """
        if self._first is not None:
            return
        started = time.perf_counter()
        self._first = self._rows_as_needed()
        if self._first is None:
            self._pages = self._file.pages(self.request.page)
            self._first = next(self._pages)
        self._note(self._first.notes)
        self._spent("read", started)

    def compute(self, progress: Progress | None = None) -> None:
        """Upscale, handing rows to the encoder.

        Raises:
            PictureError: a page cannot be read or is of another kind than the first, or a file cannot be written.
            CancelledError: after `break_off`.
            PcsrError: as the upscaler raises.
        """
        started = time.perf_counter()
        self.decode()
        first, self._first = self._first, None
        assert first is not None
        self._count = self._file.header.pages if self.request.page is None else 1
        self._size, kind = self._begin(first), (first.pixels.shape, first.pixels.dtype)
        pictures: Iterator[Picture | StreamedPicture] = itertools.chain([first], self._pages)
        for number, picture in enumerate(pictures):
            if (picture.pixels.shape, picture.pixels.dtype) != kind:
                raise PictureError(
                    f"{self.request.source}: page {number + 1} has another size or kind than the first, and a file "
                    "that is written here holds pages of one; pick one with --page"
                )
            if number:
                self._note(picture.notes)
            self._accounts.append(self._upscale(picture.pixels, number, progress))
            # Held by the generator's frame no longer than needed: the next page is decoded now.
            del picture
        self._spent("compute", started)

    def finish(self, record: Callable[[Mapping[Path, BinaryIO]], None] | None = None) -> FileResult:
        """Wait for the files and put them in their places, the target last.

        Args:
            record: called when all files are complete and before the first takes its name, with each open.

        Raises:
            PictureError: a file cannot be written.
            CancelledError: after `break_off`.
            Whatever `record` raises; no file takes its name then.
        """
        started = time.perf_counter()
        paths = list(self.request.outputs())
        if record is not None:
            files = {
                path: writer.complete(lambda file: file)
                for path, writer in zip(paths, self._writers, strict=True)
            }
            record(files)
        # What was put beside a target that then fails goes again; a file that was replaced is not taken away.
        placed: list[Path] = []
        try:
            for path, writer in zip(paths, self._writers, strict=True):
                new = not os.path.lexists(path)
                writer.finish()
                self._notes += writer.notes
                if new:
                    placed.append(path)
        except BaseException:
            for path in placed:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            raise
        self._writers.clear()
        self._spent("encode", started)
        return FileResult(
            source=self.request.source,
            target=self.request.target,
            size=self._size,
            pages=tuple(self._accounts),
            notes=tuple(dict.fromkeys(self._notes)),
            milliseconds=dict(self._milliseconds),
        )

    def break_off(self) -> None:
        """Make `compute` and `finish`, in whatever thread they are, end soon with `CancelledError`; nothing is left."""
        self._broken_off = True
        for writer in list(self._writers):
            writer.break_off()

    def close(self) -> None:
        """Let go of everything; files that are not in their places never will be."""
        for writer in self._writers:
            writer.abandon()
        self._writers.clear()
        self._open.close()

    def __enter__(self) -> FileWork:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows_as_needed(self) -> StreamedPicture | None:
        """The picture without decoding it, where it would take much of the memory limit."""
        h, w = self._file.header.size
        several = self.request.page is None and self._file.header.pages > 1
        if several or h * w * BYTES_PER_PIXEL <= self._upscaler.memory_limit // 8:
            return None
        return self._file.streamed(self.request.page)

    def _begin(self, first: Picture | StreamedPicture) -> tuple[int, int]:
        """Start the encoders."""
        request, options = self.request, self.request.options
        h, w = first.pixels.shape[:2]
        size = output_size(h, w, options.scale, options.size)
        common: dict[str, Any] = {
            "pages": self._count,
            "replace": self.replace,
            "waiting_bytes": self._waiting,
        }
        target = PictureWriter(
            request.target,
            (*size, *first.pixels.shape[2:]),
            first.pixels.dtype,
            like=first,
            encoding=request.encoding,
            animation=self._file.header.animation,
            **common,
        )
        # In the order in which the files take their places.
        self._writers = [target]
        if request.overlay is not None:
            self._writers.insert(0, PictureWriter(request.overlay, (*size, 3), np.uint8, **common))
        if request.class_map is not None:
            self._writers.insert(0, PictureWriter(request.class_map, size, np.uint8, **common))
        logger.log(self._log_level, "%s: %dx%d to %dx%d", request.source, w, h, size[1], size[0])
        return size

    def _upscale(self, pixels: NDArray[Any] | RowSource, number: int, progress: Progress | None) -> Account:
        options, classes = self.request.options, self._upscaler.bundle.manifest.classes
        shades = levels(classes)

        def tell(share: float) -> object:
            answer = None if progress is None else progress((number + share) / self._count)
            return False if self._broken_off else answer

        def put(image: NDArray[Any], class_map: NDArray[np.uint8]) -> None:
            rows: list[NDArray[Any]] = [image]
            if self.request.overlay is not None:
                rows.insert(0, overlay(image, class_map, classes))
            if self.request.class_map is not None:
                rows.insert(0, shades[class_map])
            for writer, part in zip(self._writers, rows, strict=True):
                writer.put(part)

        return self._upscaler.upscale_rows(
            pixels,
            put,
            progress=tell,
            scale=options.scale,
            size=options.size,
            k=options.k,
            adaptive=options.adaptive,
            budget=options.budget,
            refine=options.refine,
        )

    def _spent(self, what: str, started: float) -> None:
        self._milliseconds[what] += 1000 * (time.perf_counter() - started)

    def _note(self, notes: Sequence[str]) -> None:
        for note in notes:
            if note not in self._notes:
                logger.warning("%s %s", self.request.source, note)
                self._notes.append(note)
