"""Picture files in, through libvips.

Files come from strangers: the format is told from the content, sizes are checked before memory is taken, and a file
that is damaged anywhere is refused unless what decodes of it is asked for. A picture comes as the array that the
upscaler takes, upright, at its own bit depth.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.errors import OptionError, PictureError
from pcsr.runtime.pictures import png, tiff
from pcsr.runtime.pictures.formats import INPUT_LABELS, format_of
from pcsr.runtime.pictures.lazy import LazyPages
from pcsr.runtime.pictures.metadata import found_in_tiff
from pcsr.runtime.pictures.picture import ICC, MAX_PIXELS, Beside, Header, Picture, StreamedPicture
from pcsr.runtime.pictures.pillow import PillowFile
from pcsr.runtime.pictures.planes import PlanesError, SeparatePlanes
from pcsr.runtime.pictures.refusals import damaged, reason, unreadable
from pcsr.runtime.pictures.streamed import ReadRows, StreamedRows

__all__ = ["PictureFile", "open_picture", "read_picture"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A file is larger than its pixels uncompressed only by what lies beside them.
BYTES_PER_PIXEL, BYTES_BESIDE = 16, 64 << 20
# Decoders of these formats read as they go. The others want the whole file: it is read, because a file that is mapped
# and cut short by another process ends this one.
STREAMED = ("png", "jpeg", "tiff")
# Warnings of the JPEG decoder are of damage; those of others are of odd tags.
FAIL_ON = {"jpeg": "warning"}


def read_picture(
    path: str | os.PathLike[str],
    *,
    max_pixels: int = MAX_PIXELS,
    page: int | None = None,
    salvage: bool = False,
) -> Picture:
    """Read a picture file: PNG, JPEG, TIFF, WebP, AVIF, GIF or BMP, and HEIF where libvips was built with its decoder.

    Orientation is applied; bit depth stays. A palette becomes RGB, one bit 8-bit grey, grey with alpha RGBA,
    and CMYK and Lab become RGB through their profile, which the log says.

    Args:
        path: of the file; its format is told from its content, not from its name.
        max_pixels: larger pictures are refused by their header.
        page: of a file with several, 1 for the first.
        salvage: take what decodes of a damaged file, which the log says.

    Raises:
        PictureError: the file cannot be read, is damaged anywhere, too large, has several pages and none was
            picked, or is of a format or kind that is not taken here.
    """
    with open_picture(path, max_pixels=max_pixels, salvage=salvage) as file:
        if page is None and file.header.pages > 1:
            raise PictureError(f"{path} has {file.header.pages} pages; pick one, the first with page 1")
        (picture,) = file.pages(1 if page is None else page)
    for note in picture.notes:
        logger.warning("%s %s", path, note)
    return picture


@contextmanager
def open_picture(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, salvage: bool = False
) -> Iterator[PictureFile]:
    """Open a picture file and read its header.

    Raises:
        PictureError: as `read_picture`, as far as the header tells.
    """
    path = Path(path)
    try:
        # Opened without blocking, or a named pipe would be waited for before it is found to be one.
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    except OSError as error:
        raise unreadable(path, error) from error
    with file:
        yield PictureFile(path, file, max_pixels=max_pixels, salvage=salvage)


class PictureFile:
    """An open picture file.

    Attributes:
        header: what the file says of itself.
    """

    def __init__(self, path: Path, file: BinaryIO, *, max_pixels: int, salvage: bool) -> None:
        """Read the header; callers want `open_picture`."""
        self._path, self._file = path, file
        self._max_pixels, self._salvage = max_pixels, salvage
        try:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PictureError(f"{path} is not a regular file; name a picture file")
            self._bytes = status.st_size
            start = self._read_at(0, 32)
        except OSError as error:
            raise unreadable(path, error) from error
        if not start:
            raise PictureError(f"{path} is empty; get an intact copy")
        form = format_of(start)
        if form is None:
            *most, last = INPUT_LABELS.values()
            raise PictureError(
                f"{path} is no {', '.join(most)} or {last} picture; convert it to one of these first"
            )
        self._form = form
        self._content: bytes | None = None
        self._pillow: PillowFile | None = None
        # Of a TIFF, offsets of the directories of its pages.
        self._directories: list[int] = []
        self.header = self._header()

    def sha256(self) -> str:
        """Of the whole file, in hexadecimal digits.

        Raises:
            PictureError: it cannot be read.
        """
        try:
            self._file.seek(0)
            digest = hashlib.sha256()
            while part := self._file.read(1 << 20):
                digest.update(part)
            return digest.hexdigest()
        except OSError as error:
            raise unreadable(self._path, error) from error

    @property
    def length(self) -> int:
        """Bytes of the file."""
        return self._bytes

    def pages(self, page: int | None = None) -> Iterator[Picture]:
        """Decode pictures one after another, each when it is asked for.

        Args:
            page: only this one, 1 for the first; None: all.

        Raises:
            OptionError: there is no such page.
            PictureError: the file is damaged there, or has samples or channels that mean nothing here.
        """
        if page is not None and not 1 <= page <= self.header.pages:
            raise OptionError(f"{self._path} has {self.header.pages} pages and {page} was asked for")
        if self._pillow is not None:
            yield from self._pillow_pages(self._pillow, page)
            return
        wanted = range(self.header.pages) if page is None else range(page - 1, page)
        opened: LazyPages | None = None
        for number in wanted:
            # Pages of an animation follow from one another: those after the first are not decoded from the start.
            if opened is None or not opened.has(number):
                opened = self._opened(number)
            try:
                picture = opened.page(number)
            except _vips_error() as error:
                opened = None
                if not self._salvage:
                    raise self._damaged(error) from error
                picture = self._salvaged(number, error)
            yield picture

    def streamed(self, page: int | None = None) -> StreamedPicture | None:
        """A picture whose rows are decoded as they are needed, where the format allows that.

        That is PNG without interlacing, baseline JPEG, and TIFF; upright, without alpha, and not to be salvaged.

        Args:
            page: which one, 1 for the first; None: the first.

        Raises:
            PictureError: the file is damaged there, or has samples or channels that mean nothing here.
        """
        number = 0 if page is None else page - 1
        if self._form not in STREAMED or self._pillow is not None or self._salvage:
            return None
        if not 0 <= number < self.header.pages:
            return None
        opened = self._opened(number)
        if not opened.streams:
            return None
        shape, dtype, beside = opened.shape, opened.dtype, opened.beside()

        def start() -> ReadRows:
            pages = self._opened(number)

            def read(top: int, out: NDArray[Any]) -> None:
                try:
                    pages.read(top, out)
                except _vips_error() as error:
                    raise self._damaged(error) from error

            return read

        rows = StreamedRows(shape, dtype, start, name=str(self._path))
        return StreamedPicture(rows, **{each.name: getattr(beside, each.name) for each in fields(Beside)})

    def _header(self) -> Header:
        if self._form == "png" and (size := png.header_size(self._read_at)):
            # libpng has limits of its own and tells them from damage to nobody.
            self._check_size(*size)
            if png.text_bytes(self._read_at, BYTES_BESIDE) >= BYTES_BESIDE:
                raise PictureError(
                    f"{self._path} has {BYTES_BESIDE >> 20} MiB of text or more beside its pixels; get an intact copy"
                )
        if self._form == "bmp" or (self._form == "png" and png.is_animated(self._read_at)):
            return self._pillow_header()
        if self._form == "tiff":
            self._look_into_tiff()
        try:
            image = self._load(None, strict=not self._salvage)
        except _vips_error() as error:
            raise self._damaged(error) from error
        self._check_size(image.height, image.width)
        pages = image.get("n-pages") if image.get_typeof("n-pages") else 1
        animation = {}
        if pages > 1 and self._form in ("gif", "webp"):
            animation = {name: image.get(name) for name in ("delay", "loop") if image.get_typeof(name)}
        return Header(format=self._form, size=(image.height, image.width), pages=pages, animation=animation)

    def _check_size(self, h: int, w: int) -> None:
        if h * w > self._max_pixels:
            raise PictureError(
                f"{self._path} has {w}x{h} pixels and the limit is {self._max_pixels} in all; make it smaller "
                "first, or raise --max-pixels"
            )
        if not h * w:
            raise PictureError(f"{self._path} has no pixels; get an intact copy")
        if self._form not in STREAMED and self._bytes > h * w * BYTES_PER_PIXEL + BYTES_BESIDE:
            raise PictureError(
                f"{self._path} has {self._bytes >> 20} MiB, more than {w}x{h} pixels can need; get an intact copy"
            )

    def _look_into_tiff(self) -> None:
        """Find the pages, and refuse 16-bit floating point, which libvips takes for integers."""
        for directory in tiff.directories(self._read_at):
            self._directories.append(directory.offset)
            if directory.number(SAMPLE_FORMAT, 1) == 3 and directory.number(BITS_PER_SAMPLE) == 16:
                raise PictureError(
                    f"{self._path} has samples of 16-bit floating point; convert it to 32-bit floating point first"
                )

    def _opened(self, number: int) -> LazyPages:
        try:
            return self._open_page(number, strict=True)
        except _vips_error() as error:
            if not self._salvage:
                raise self._damaged(error) from error
            return self._open_page_anyhow(number, error)

    def _open_page_anyhow(self, number: int, error: Exception) -> LazyPages:
        try:
            return self._open_page(
                number, strict=False, notes=[f"is damaged{reason(error)}: took what decodes"]
            )
        except _vips_error() as worse:
            raise self._damaged(worse) from worse

    def _salvaged(self, number: int, error: Exception) -> Picture:
        try:
            return self._open_page_anyhow(number, error).page(number)
        except _vips_error() as worse:
            raise self._damaged(worse) from worse

    def _open_page(self, number: int, *, strict: bool, notes: list[str] | None = None) -> LazyPages:
        several = self.header.pages > 1
        together = several and bool(self.header.animation)
        directory = self._directory(number)
        planes = None
        if directory is not None and SeparatePlanes.needed(directory):
            planes = SeparatePlanes(self._read_at, self._bytes, directory)
            image = self._joined(planes, strict=strict)
        else:
            image = self._load(number if several else None, strict=strict, to_the_end=together)
        pages = range(number, self.header.pages if together else number + 1)
        h = image.height // len(pages) if together else image.height
        self._check_size(h, image.width)
        metadata, more = ({}, []) if directory is None else found_in_tiff(self._read_at, directory)
        notes = [*(notes or []), *more]
        if self._form == "png" and (gamma := png.odd_gamma(self._read_at)) is not None:
            notes.append(
                f"has samples of gamma {gamma:g} (gAMA), which gets lost: the output is shown as sRGB"
            )
        return LazyPages(image, self._form, self._path, pages, notes=notes, metadata=metadata, holds=planes)

    def _directory(self, number: int) -> tiff.Directory | None:
        """Of a page of a TIFF."""
        layout = tiff.layout(self._read_at)
        if layout is None or number >= len(self._directories):
            return None
        return tiff.Directory(self._read_at, layout, self._directories[number])

    def _load(self, page: int | None, *, strict: bool, to_the_end: bool = False) -> Any:
        """The lazy image, by the format's own loader: libvips must not pick another for a file that looks like two."""
        import pyvips

        options = self._options(strict=strict)
        # What libvips did not raise, of a picture salvaged before, would be told as the reason of the next error.
        pyvips.vips_lib.vips_error_clear()
        if page is not None:
            options["page"] = page
        if to_the_end:
            options["n"] = -1
        loader = "heif" if self._form == "avif" else self._form
        if self._form in STREAMED:
            source = pyvips.Source.new_from_descriptor(self._file.fileno())
            return getattr(pyvips.Image, f"{loader}load_source")(source, **options)
        return getattr(pyvips.Image, f"{loader}load_buffer")(self._whole(), **options)

    def _joined(self, planes: SeparatePlanes, *, strict: bool) -> Any:
        try:
            return planes.image(**self._options(strict=strict))
        except PlanesError as error:
            raise self._damaged(error) from error

    def _options(self, *, strict: bool) -> dict[str, Any]:
        fail_on = FAIL_ON.get(self._form, "error") if strict else "none"
        return {"access": "sequential", "fail_on": fail_on}

    def _whole(self) -> bytes:
        if self._content is None:
            limit = self._max_pixels * BYTES_PER_PIXEL + BYTES_BESIDE
            if self._bytes > limit:
                raise PictureError(
                    f"{self._path} has {self._bytes >> 20} MiB, more than any picture that is taken; split it"
                )
            try:
                self._file.seek(0)
                self._content = self._file.read(limit)
            except OSError as error:
                raise unreadable(self._path, error) from error
        return self._content

    def _read_at(self, offset: int, length: int) -> bytes:
        # No file is that long; the system takes no larger offset.
        return os.pread(self._file.fileno(), length, offset) if offset < 1 << 62 else b""

    def _pillow_header(self) -> Header:
        if self._form == "png" and png.bit_depth(self._read_at) == 16:
            raise PictureError(
                f"{self._path} is animated with 16-bit samples; convert it to 8-bit or to still pictures"
            )
        self._file.seek(0)
        self._pillow = self._by_pillow(lambda: PillowFile(self._form, self._file))
        self._check_size(*self._pillow.size)
        pages = self._pillow.pages
        animation: dict[str, int | list[int]] = {}
        if pages > 1:
            delays = png.frame_delays(self._read_at)
            if len(delays) < pages:
                raise self._damaged(ValueError(f"{pages} frames are promised and {len(delays)} are there"))
            animation = {"loop": self._pillow.loop, "delay": delays[-pages:]}
        return Header(format=self._form, size=self._pillow.size, pages=pages, animation=animation)

    def _pillow_pages(self, opened: PillowFile, page: int | None) -> Iterator[Picture]:
        frames = opened.frames()
        metadata = {} if opened.profile is None else {ICC: opened.profile}
        for number in range(1, opened.pages + 1):
            pixels = self._by_pillow(lambda: next(frames))
            if page in (None, number):
                yield Picture(
                    np.ascontiguousarray(pixels),
                    format=self._form,
                    metadata=metadata,
                    resolution=opened.resolution,
                )

    def _by_pillow(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except PictureError:
            raise
        except Exception as error:  # Pillow's decoders raise whatever their parsing runs into
            # There is no part of it to be had: nothing is to be salvaged.
            raise damaged(self._path, self._form, error, salvaging=True) from error

    def _damaged(self, error: Exception) -> PictureError:
        return damaged(self._path, self._form, error, salvaging=self._salvage)


SAMPLE_FORMAT, BITS_PER_SAMPLE = 339, 258


def _vips_error() -> tuple[type[Exception], ...]:
    import pyvips

    # pyvips fails to make its own error where libvips quotes bytes of the file that are no UTF-8.
    return (pyvips.Error, UnicodeDecodeError)
