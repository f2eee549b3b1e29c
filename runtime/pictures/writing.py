"""Picture files out, through libvips: row by row while they are being made, whole or not at all."""

from __future__ import annotations

import logging
import os
import queue
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from pcsr.runtime.atomic import DISK_ERRORS, whole_output
from pcsr.runtime.errors import CancelledError, DiskError, OptionError, PictureError
from pcsr.runtime.pictures.formats import FORMATS, Format, check_writable, output_format
from pcsr.runtime.pictures.metadata import add_to_written_tiff, put_metadata, xmp_for_png
from pcsr.runtime.pictures.picture import Beside
from pcsr.runtime.pictures.png import put_behind_header
from pcsr.runtime.pictures.rows import RowPipe

__all__ = ["Encoding", "PictureWriter", "write_picture"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

QUALITY = 95
# From here up a TIFF needs 64-bit offsets; compression may not help, so the raw size decides.
BIGTIFF_FROM = 4_000_000_000
# Rows of a picture that may wait for its encoder.
WAITING_BYTES = 256 << 20
# What a disk has free that is full for all that is worth writing.
LEAST_FREE = 64 << 10


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a picture is to be written.

    Attributes:
        form: "png", "jpeg", "tiff", "webp" or "avif"; None: as the name of the file says.
        quality: of JPEG, WebP and AVIF, 1 to 100; None: 95.
        compression: of PNG "0" (fast) to "9" (small), of TIFF "deflate", "none" or "lzw"; None: "3" and
            "deflate".
        lossless: WebP and AVIF lose nothing.
    """

    form: str | None = None
    quality: int | None = None
    compression: str | None = None
    lossless: bool = False

    def __post_init__(self) -> None:
        if self.form is not None and self.form not in FORMATS:
            raise OptionError(f"format is {self.form!r}; it must be one of {', '.join(FORMATS)}")
        if self.quality is not None and (isinstance(self.quality, bool) or not 1 <= self.quality <= 100):
            raise OptionError(f"quality is {self.quality!r}; it must be a whole number from 1 to 100")
        known = {each for form in FORMATS.values() for each in form.compressions}
        if self.compression is not None and self.compression not in known:
            raise OptionError(
                f"compression is {self.compression!r}; it must be one of {', '.join(sorted(known))}"
            )
        if self.lossless and self.quality is not None:
            raise OptionError("lossless and quality contradict one another; give one of them")

    def check(self, forms: set[str]) -> None:
        """Refuse what would have no effect on any file that is written.

        Args:
            forms: names of the formats that are written.

        Raises:
            OptionError: a quality, compression or lossless that none of them has.
        """
        formats = [FORMATS[name] for name in sorted(forms)]
        labels = " or ".join(form.label for form in formats)
        if self.quality is not None and not any(form.lossy for form in formats):
            raise OptionError(f"quality has no effect on {labels}, which loses nothing; leave it out")
        if self.lossless and not any(form.lossless for form in formats):
            raise OptionError(
                f"lossless has no effect on {labels}; leave it out or write WebP, AVIF, PNG or TIFF"
            )
        if self.compression is not None and not any(
            self.compression in form.compressions for form in formats
        ):
            choice = "; ".join(
                f"{form.label} has {', '.join(sorted(form.compressions)) or 'none'}" for form in formats
            )
            raise OptionError(f"{labels} has no compression {self.compression!r} ({choice}); choose another")

    def options(self, form: Format, dtype: Any, nbytes: int, bits: int) -> dict[str, object]:
        """Of libvips' saver."""
        options = dict(form.options)
        if form.lossless and self.lossless:
            options["lossless"] = True
            if form.name == "webp":
                # Colours of what is transparent, too.
                options["exact"] = True
        elif form.lossy:
            options["Q"] = QUALITY if self.quality is None else self.quality
        if form.compressions:
            chosen = self.compression if self.compression in form.compressions else form.compressions[0]
            options["compression"] = int(chosen) if form.name == "png" else chosen
        if form.name == "tiff":
            options["predictor"] = "float" if np.dtype(dtype) == np.float32 else "horizontal"
            options["bigtiff"] = nbytes > BIGTIFF_FROM
        if form.name == "avif":
            options["bitdepth"] = 8 if np.dtype(dtype) == np.uint8 else bits
        return options


def write_picture(
    path: str | os.PathLike[str],
    pixels: NDArray[Any],
    *,
    like: Beside | None = None,
    quality: int | None = None,
    encoding: Encoding | None = None,
    replace: bool = True,
) -> None:
    """Write a picture: whole, or not at all.

    Args:
        path: of the file; an existing one is replaced once the new one is complete.
        pixels: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); uint8, uint16 or float32.
        like: picture whose colour profile, EXIF, XMP, IPTC and resolution the file gets.
        quality: of JPEG, WebP and AVIF, 1 to 100; PNG and TIFF lose nothing.
        encoding: format and all else, instead of a quality and a format by the file's name.
        replace: a file that exists; without it that is an error.

    Raises:
        OptionError: the name ends in no known format.
        PictureError: the format cannot hold the picture, or the file cannot be written (`DiskError`: because the
            disk is full, read-only or gone).
    """
    encoding = Encoding(quality=quality) if encoding is None else encoding
    with PictureWriter(
        path, pixels.shape, pixels.dtype, like=like, encoding=encoding, replace=replace
    ) as writer:
        rows = max(1, WRITE_BYTES // max(1, pixels[:1].nbytes))
        for top in range(0, len(pixels), rows):
            writer.put(pixels[top : top + rows])


WRITE_BYTES = 8 << 20


class PictureWriter:
    """Writes a picture while its rows are being made; the encoder works in a thread of its own.

    As a context: `finish` at the end of the block, `abandon` when it raises.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        shape: tuple[int, ...],
        dtype: Any,
        *,
        like: Beside | None = None,
        encoding: Encoding | None = None,
        pages: int = 1,
        animation: Mapping[str, int | list[int]] | None = None,
        replace: bool = True,
        waiting_bytes: int = WAITING_BYTES,
    ) -> None:
        """Begin a file.

        Args:
            path: of the file.
            shape: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), of one page.
            dtype: uint8, uint16 or float32.
            like: as in `write_picture`.
            encoding: how to write.
            pages: pictures of this shape, all to be put one after another.
            animation: as in `Header`, for formats that have such a thing.
            replace: a file that exists.
            waiting_bytes: of rows that may wait for the encoder; `put` blocks while more do.

        Raises:
            OptionError: the name ends in no known format.
            PictureError: the format cannot hold the picture.
        """
        self._path = Path(path)
        self._encoding = encoding or Encoding()
        bits = 16 if like is None else like.bits
        name = self._encoding.form or output_format(self._path)
        check_writable(self._path, shape, dtype, form=name, bits=bits, pages=pages)
        self._form, self._like, self._bits, self._dtype = FORMATS[name], like, bits, np.dtype(dtype)
        self._size = (shape[0], shape[1])
        self._grey_alpha = bool(like and like.grey_alpha and len(shape) == 3 and shape[2] == 4)
        self._bands = 2 if self._grey_alpha else 1 if len(shape) == 2 else shape[2]
        self._pages, self._animation = pages, dict(animation or {}) if pages > 1 else {}
        self._replace = replace
        self._pipe = RowPipe(shape[0] * pages, shape[1], self._bands, dtype, limit=waiting_bytes)
        self._failed: BaseException | None = None
        self._broken_off = False
        # The file when all of it is on the disk, and whether it may take its name.
        self._complete: queue.Queue[BinaryIO | None] = queue.Queue()
        self._verdict: queue.Queue[bool] = queue.Queue()
        self.notes: list[str] = []
        self._thread = threading.Thread(target=self._work, name="pcsr-encode")
        self._thread.start()

    def put(self, rows: NDArray[Any]) -> None:
        """Add rows below the ones before: (n, W) or (n, W, channels), which must not change until `finish`.

        Raises:
            PictureError: writing has failed already.
            CancelledError: after `break_off`, sooner or later.
        """
        if self._failed is not None:
            self.finish()
        if self._grey_alpha:
            rows = _grey_and_alpha(rows)
        elif self._form.name == "avif" and rows.dtype == np.uint16:
            rows = _rounded(rows, self._bits)
        self._pipe.put(rows)

    def complete(self, look: Callable[[BinaryIO], T]) -> T:
        """Wait until all of the file is on the disk; it has not taken its name yet.

        Args:
            look: is given the file, to read it.

        Raises:
            PictureError: it cannot be written.
        """
        self._pipe.close()
        file = self._complete.get()
        self._complete.put(file)
        if file is None:
            self._end(place=False)
        assert file is not None
        return look(file)

    def finish(self) -> None:
        """Wait until the file is complete and in its place.

        Raises:
            PictureError: it cannot be written.
        """
        self._pipe.close()
        self._end(place=True)

    def break_off(self) -> None:
        """Let whoever waits in `put`, `complete` or `finish` go on; from there on they raise `CancelledError`.

        From any thread. A file that is in its place already stays.
        """
        self._broken_off = True
        self._pipe.abandon()

    def abandon(self) -> None:
        """Drop what was written; nothing of it stays."""
        self._pipe.abandon()
        self._verdict.put(False)
        self._thread.join()

    def _end(self, *, place: bool) -> None:
        self._verdict.put(place)
        self._thread.join()
        for note in self.notes:
            logger.warning("%s: %s", self._path, note)
        error = self._failed
        if error is None:
            return
        if isinstance(error, FileExistsError):
            raise PictureError(
                f"{self._path} appeared meanwhile and was left as it is; give --force to replace it, or another name"
            ) from error
        is_vips = type(error).__module__.startswith("pyvips")
        if is_vips or isinstance(error, OSError):
            reason = _reason(error) if is_vips else f": {getattr(error, 'strerror', None) or error}"
            kind = DiskError if _disk_is_done(error, self._path.absolute().parent) else PictureError
            raise kind(f"cannot write {self._path}{reason}; check folder, permission and space") from error
        raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.abandon()

    def _work(self) -> None:
        try:
            with whole_output(self._path, replace=self._replace, before=self._ask) as file:
                self._encode(file)
        except BaseException as error:  # told by `finish`, in the thread that waits
            self._failed = CancelledError(f"{self._path} was broken off") if self._broken_off else error
            self._pipe.abandon()
            self._complete.put(None)

    def _ask(self, file: BinaryIO) -> None:
        # The encoder has taken all that it wants; nobody shall wait for it to take the rest.
        self._pipe.abandon()
        self._complete.put(file)
        if not self._verdict.get() or self._broken_off:
            raise CancelledError(f"{self._path} was not wanted any more")

    def _encode(self, file: BinaryIO) -> None:
        import pyvips

        image = self._pipe.image()
        grey, colour = {1: ("b-w", "srgb"), 2: ("grey16", "rgb16"), 4: ("b-w", "scrgb")}[self._dtype.itemsize]
        image = image.copy(interpretation=grey if self._bands < 3 else colour)
        if self._like is not None:
            image, notes = put_metadata(image, self._like, self._form, self._size)
            self.notes += notes
        if self._pages > 1:
            image = image.copy()
            image.set_type(pyvips.GValue.gint_type, "page-height", self._size[0])
            if "delay" in self._animation:
                image.set_type(pyvips.GValue.array_int_type, "delay", self._animation["delay"])
            if "loop" in self._animation:
                image.set_type(pyvips.GValue.gint_type, "loop", self._animation["loop"])
        h, w = self._size
        nbytes = h * w * self._pages * self._bands * self._dtype.itemsize
        options = self._encoding.options(self._form, self._dtype, nbytes, self._bits)
        lead = b""
        if self._form.name == "png" and self._like is not None:
            lead, notes = xmp_for_png(self._like, self._size)
            self.notes += notes
            file.seek(len(lead))
        # Through the descriptor: no path for libvips to interpret, and no encoded copy in memory.
        target = pyvips.Target.new_to_descriptor(file.fileno())
        getattr(image, f"{self._form.saver}save_target")(target, **options)
        if lead:
            put_behind_header(file, lead)
        if self._form.name == "tiff" and self._like is not None:
            self.notes += add_to_written_tiff(file, self._like, self._size)


def _grey_and_alpha(rows: NDArray[Any]) -> NDArray[Any]:
    """(n, W, 2) of (n, W, 4) whose colours are grey but for rounding."""
    grey = rows[..., :3].mean(axis=2, dtype=np.float32)
    if rows.dtype != np.float32:
        np.rint(grey, out=grey)
    return np.stack([grey.astype(rows.dtype), rows[..., 3]], axis=2)


def _rounded(rows: NDArray[np.uint16], bits: int) -> NDArray[np.uint16]:
    """Rounded to so many bits, in the upper ones; libvips cuts off the others."""
    full = (1 << bits) - 1
    return ((rows.astype(np.uint32) * full + 32767) // 65535 << (16 - bits)).astype(np.uint16)


def _disk_is_done(error: BaseException, folder: Path) -> bool:
    # libvips' words, which another thread may have taken.
    if getattr(error, "errno", None) in DISK_ERRORS or _of_the_disk(_lines(error)):
        return True
    try:
        return shutil.disk_usage(folder).free < LEAST_FREE
    except OSError:
        return True


def _reason(error: BaseException) -> str:
    lines = _lines(error)
    lines = _of_the_disk(lines) or lines
    return f" ({lines[-1]})" if lines else ""


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in getattr(error, "detail", "").splitlines() if line.strip()]


def _of_the_disk(lines: list[str]) -> list[str]:
    """Those in which libvips repeats what the system says of a disk; it has only its words."""
    words = {os.strerror(number) for number in DISK_ERRORS}
    return [line for line in lines if any(each in line for each in words)]
