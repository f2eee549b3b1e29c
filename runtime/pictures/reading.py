"""Picture files in, through libvips.

Files come from strangers: the format is told from the content, sizes are checked before memory is taken, and a file
that is damaged anywhere is refused unless what decodes of it is asked for. A picture comes as the array that the
upscaler takes, upright, at its own bit depth.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.errors import OptionError, PictureError
from pcsr.runtime.pictures import tiff
from pcsr.runtime.pictures.colour import SAMPLES, grey_or_rgb
from pcsr.runtime.pictures.formats import INPUT_LABELS, format_of
from pcsr.runtime.pictures.metadata import carried
from pcsr.runtime.pictures.picture import ICC, MAX_PIXELS, Header, Picture
from pcsr.runtime.pictures.pillow import PillowFile
from pcsr.runtime.pictures.rows import read_rows

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
# What can follow in a PNG before its pixels is limited, too.
MAX_CHUNKS = 10_000


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
        raise _unreadable(path, error) from error
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
            raise _unreadable(path, error) from error
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
            raise _unreadable(self._path, error) from error

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
        opened: _Opened | None = None
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

    def _header(self) -> Header:
        if self._form == "bmp" or (self._form == "png" and self._is_animated_png()):
            return self._pillow_header()
        if self._form == "tiff":
            self._check_tiff()
        try:
            image = self._load(None, strict=not self._salvage)
        except _vips_error() as error:
            if self._form == "tiff" and "separate planes" in str(error):
                return self._pillow_header()
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

    def _check_tiff(self) -> None:
        """Refuse 16-bit floating point, which libvips takes for integers."""
        for directory in tiff.directories(self._read_at):
            if directory.number(SAMPLE_FORMAT, 1) == 3 and directory.number(BITS_PER_SAMPLE) == 16:
                raise PictureError(
                    f"{self._path} has samples of 16-bit floating point; convert it to 32-bit floating point first"
                )

    def _opened(self, number: int) -> _Opened:
        try:
            return self._open_page(number, strict=True)
        except _vips_error() as error:
            if not self._salvage:
                raise self._damaged(error) from error
            return self._open_page_anyhow(number, error)

    def _open_page_anyhow(self, number: int, reason: Exception) -> _Opened:
        try:
            return self._open_page(
                number, strict=False, notes=[f"is damaged{_reason(reason)}: took what decodes"]
            )
        except _vips_error() as error:
            raise self._damaged(error) from error

    def _salvaged(self, number: int, reason: Exception) -> Picture:
        try:
            return self._open_page_anyhow(number, reason).page(number)
        except _vips_error() as error:
            raise self._damaged(error) from error

    def _open_page(self, number: int, *, strict: bool, notes: list[str] | None = None) -> _Opened:
        several = self.header.pages > 1
        together = several and bool(self.header.animation)
        image = self._load(number if several else None, strict=strict, to_the_end=together)
        pages = range(number, self.header.pages if together else number + 1)
        h = image.height // len(pages) if together else image.height
        self._check_size(h, image.width)
        return _Opened(image, self._form, self._path, pages, h, notes or [])

    def _load(self, page: int | None, *, strict: bool, to_the_end: bool = False) -> Any:
        """The lazy image, by the format's own loader: libvips must not pick another for a file that looks like two."""
        import pyvips

        options: dict[str, Any] = {
            "access": "sequential",
            "fail_on": FAIL_ON.get(self._form, "error") if strict else "none",
        }
        if page is not None:
            options["page"] = page
        if to_the_end:
            options["n"] = -1
        loader = "heif" if self._form == "avif" else self._form
        if self._form in STREAMED:
            source = pyvips.Source.new_from_descriptor(self._file.fileno())
            return getattr(pyvips.Image, f"{loader}load_source")(source, **options)
        return getattr(pyvips.Image, f"{loader}load_buffer")(self._whole(), **options)

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
                raise _unreadable(self._path, error) from error
        return self._content

    def _read_at(self, offset: int, length: int) -> bytes:
        # No file is that long; the system takes no larger offset.
        return os.pread(self._file.fileno(), length, offset) if offset < 1 << 62 else b""

    def _png_chunks(self) -> Iterator[tuple[bytes, int]]:
        """Kind of each chunk and where its data begin, as far as the file goes."""
        at = 8
        for _ in range(MAX_CHUNKS):
            head = self._read_at(at, 8)
            if len(head) < 8:
                return
            yield head[4:], at + 8
            at += 12 + int.from_bytes(head[:4], "big")

    def _is_animated_png(self) -> bool:
        # The animation's control chunk stands before the pixels; libvips reads one picture and says nothing.
        before = itertools.takewhile(lambda chunk: chunk[0] != b"IDAT", self._png_chunks())
        return any(kind == b"acTL" for kind, _ in before)

    def _png_delays(self) -> list[int]:
        """Milliseconds that each frame of an animation is shown (APNG: the fcTL chunks)."""
        fractions = [self._read_at(at + 20, 4) for kind, at in self._png_chunks() if kind == b"fcTL"]
        parts = [
            (int.from_bytes(each[:2], "big"), int.from_bytes(each[2:], "big") or 100) for each in fractions
        ]
        return [round(1000 * numerator / denominator) for numerator, denominator in parts]

    def _pillow_header(self) -> Header:
        if self._form == "png" and self._read_at(24, 1) not in (b"\x08", b"\x01", b"\x02", b"\x04"):
            raise PictureError(
                f"{self._path} is animated with 16-bit samples; convert it to 8-bit or to still pictures"
            )
        self._file.seek(0)
        self._pillow = self._by_pillow(lambda: PillowFile(self._form, self._file))
        self._check_size(*self._pillow.size)
        pages = self._pillow.pages
        animation: dict[str, int | list[int]] = {}
        if pages > 1:
            animation = {"loop": self._pillow.loop, "delay": self._png_delays()[-pages:]}
        return Header(format=self._form, size=self._pillow.size, pages=pages, animation=animation)

    def _pillow_pages(self, opened: PillowFile, page: int | None) -> Iterator[Picture]:
        frames = opened.frames()
        metadata = {} if opened.profile is None else {ICC: opened.profile}
        for number in range(1, opened.pages + 1):
            pixels = self._by_pillow(lambda: next(frames))
            if page in (None, number):
                yield Picture(np.ascontiguousarray(pixels), self._form, metadata, opened.resolution)

    def _by_pillow(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except PictureError:
            raise
        except Exception as error:  # Pillow's decoders raise whatever their parsing runs into
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> PictureError:
        label, reason = INPUT_LABELS[self._form], _reason(error)
        if "HEVC" in reason:
            return PictureError(
                f"{self._path} is compressed with HEVC, which the libvips that comes with pyvips does not decode; "
                "install libvips with libheif and libde265 on the system, or convert the file to JPEG, PNG or AVIF"
            )
        remedy = "" if self._salvage else ", take what decodes with --salvage"
        return PictureError(
            f"{self._path} cannot be decoded as {label}{reason}; it is damaged, cut short or of a rare kind, so get an "
            f"intact copy{remedy} or convert it"
        )


class _Opened:
    """Pages of a lazy image, one below the other."""

    def __init__(self, image: Any, form: str, path: Path, pages: range, h: int, notes: list[str]) -> None:
        import pyvips

        self._form, self._pages, self._h = form, pages, h
        image, self._grey_alpha, converted = grey_or_rgb(image, path)
        self._image, self._notes = image, (*notes, *converted)
        self._region = pyvips.Region.new(image)
        self._metadata = carried(image)

    def has(self, number: int) -> bool:
        return number in self._pages

    def page(self, number: int) -> Picture:
        image, samples = self._image, SAMPLES[self._image.format]
        shape = (self._h, image.width, image.bands) if image.bands > 1 else (self._h, image.width)
        pixels = np.empty(shape, dtype=samples)
        read_rows(self._region, self._pages.index(number) * self._h, pixels, samples)
        bits = 8 * pixels.itemsize
        if self._form in ("avif", "heif") and image.get_typeof("bits-per-sample"):
            bits = int(image.get("bits-per-sample"))
            if 8 < bits < 16:
                # libvips puts them into the upper bits: the lower ones repeat those, so that white is white.
                pixels |= pixels >> np.uint16(bits)
        turn = image.get("orientation") if image.get_typeof("orientation") else 1
        resolution = (image.xres, image.yres)
        return Picture(
            _upright(pixels, turn),
            self._form,
            metadata=self._metadata,
            resolution=resolution[::-1] if turn in (5, 6, 7, 8) else resolution,
            bits=bits,
            grey_alpha=self._grey_alpha,
            notes=self._notes,
        )


SAMPLE_FORMAT, BITS_PER_SAMPLE = 339, 258


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply an EXIF orientation (EXIF 2.3, tag 0x0112: 1 upright, 2 to 8 mirrored and turned)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _vips_error() -> type[Exception]:
    import pyvips

    error: type[Exception] = pyvips.Error
    return error


def _unreadable(path: Path, error: OSError) -> PictureError:
    return PictureError(f"cannot read {path}: {error.strerror or error}; check name and permission")


def _reason(error: Exception) -> str:
    detail = getattr(error, "detail", None) or str(error)
    lines = [line.strip() for line in detail.splitlines() if line.strip()]
    # libvips tells the same as often as it came up, and of our own buffer that it could not be loaded.
    told = [line for line in dict.fromkeys(lines) if not line.endswith(": load error")]
    return f" ({'; '.join(told[-2:])})" if told else ""
