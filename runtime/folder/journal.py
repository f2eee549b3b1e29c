"""What runs have finished in an output folder, so that a later one can go on: docs/folders.md specifies the file.

A line is on the disk before the files that it describes are put in place. So what is in place has its line, and a
line alone proves nothing: the file must be the one described.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from pcsr.runtime.atomic import sync_folder
from pcsr.runtime.errors import OptionError
from pcsr.runtime.folder.entries import (
    LINE_LIMIT,
    VERSION,
    AlsoEntry,
    Content,
    Entry,
    Identity,
    InputEntry,
    UnknownVersionError,
)

__all__ = ["JOURNAL", "Journal", "State"]

logger = logging.getLogger(__name__)

JOURNAL = "pcsr-journal.jsonl"

State = Literal["done", "redo", "foreign", "missing"]


class _File(NamedTuple):
    """A `Content`, the hash as bytes: there may be a hundred thousand."""

    size: int
    mtime_ns: int
    sha256: bytes

    @classmethod
    def of(cls, content: Content) -> _File:
        return cls(content.bytes, content.mtime_ns, bytes.fromhex(content.sha256))


class _Known(NamedTuple):
    """What remains in memory of a line about one output."""

    identity: bytes
    output: _File
    also: Mapping[str, _File] | None

    def file(self, also: str | None) -> _File | None:
        """The output, or class map or overlay by name."""
        return self.output if also is None else (self.also or {}).get(also)


@dataclass(slots=True, eq=False)
class Journal:
    """The journal of one output folder, held against other runs. Its methods may be called from any thread.

    Attributes:
        path: of the file.
    """

    path: Path
    _descriptor: int
    _end: int = 0
    _known: dict[str, list[_Known]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    @contextmanager
    def open(cls, folder: Path) -> Iterator[Journal]:
        """Open the journal of an output folder, or begin it; the folder is there.

        Raises:
            OptionError: another run holds it, it is of an unknown version, or cannot be opened, locked or read.
        """
        path = folder / JOURNAL
        descriptor = _open_locked(path)
        try:
            journal = cls(path, descriptor)
            try:
                journal._read()
            except OSError as error:
                raise _cannot("read", path, error) from error
            sync_folder(folder)
            yield journal
        finally:
            os.close(descriptor)

    def __len__(self) -> int:
        """Number of outputs that are described."""
        return len(self._known)

    def state(self, name: str, path: Path, identity: Identity, *, also: Sequence[Path] = ()) -> State:
        """What is to be thought of the files of one piece of work.

        Args:
            name: of the output, relative to the folder, with forward slashes.
            path: of the output.
            identity: of the work asked for.
            also: class map and overlay, where they are asked for.

        Returns:
            "missing": none of the files is there.
            "foreign": one is there that no line about this output describes; nobody but the user may replace it.
            "done": all are there, as the last line about them says, and it is about the same work.
            "redo": anything else; those that are there are ours to replace.
        """
        with self._lock:
            lines = tuple(self._known.get(name, ()))
        done = bool(lines) and lines[-1].identity == identity.digest()
        there = False
        for place in (path, *also):
            key = None if place == path else self._relative(place)
            # Lines without it were about other options.
            described = [file for line in lines if (file := line.file(key)) is not None]
            try:
                held = _recognise(place, described)
            except (FileNotFoundError, NotADirectoryError):
                done = False
                continue
            except OSError:
                # What cannot be looked at cannot be shown to be ours.
                held = None
            if held is None:
                return "foreign"
            there = True
            latest = lines[-1].file(key)
            done = done and latest is not None and held == latest.sha256
        if not there:
            return "missing"
        return "done" if done else "redo"

    def record(
        self,
        name: str,
        content: Content,
        identity: Identity,
        *,
        input_name: str,
        input_bytes: int,
        also: Mapping[Path, Content] | None = None,
    ) -> None:
        """Put down one finished piece of work, right before its files are put in place.

        Args:
            name: of the output, relative to the folder, with forward slashes.
            content: of the output.
            identity: of the work.
            input_name: for people.
            input_bytes: size of the input file.
            also: content of class map and overlay, by path.

        Raises:
            OSError: the line is not on the disk; the journal is as it was.
        """
        entry = Entry(
            output=name,
            bytes=content.bytes,
            mtime_ns=content.mtime_ns,
            sha256=content.sha256,
            input=InputEntry(name=input_name, bytes=input_bytes, sha256=identity.input_sha256),
            bundle=identity.bundle_sha256,
            options=dict(identity.options),
            also=tuple(
                AlsoEntry(
                    output=self._relative(path),
                    bytes=each.bytes,
                    mtime_ns=each.mtime_ns,
                    sha256=each.sha256,
                )
                for path, each in (also or {}).items()
            ),
        )
        line = entry.line()
        if len(line) > LINE_LIMIT:
            raise OSError(errno.ENAMETOOLONG, f"names too long for the journal: {name}", str(self.path))
        with self._lock:
            try:
                written = 0
                while written < len(line):
                    written += os.pwrite(self._descriptor, line[written:], self._end + written)
                os.fsync(self._descriptor)
            except OSError:
                # Where this fails too, the next line is written over what there is of this one.
                with suppress(OSError):
                    os.ftruncate(self._descriptor, self._end)
                raise
            self._end += len(line)
            self._learn(entry)

    def _relative(self, path: Path) -> str:
        return os.path.relpath(path, self.path.parent)

    def _learn(self, entry: Entry) -> None:
        also = {each.output: _File.of(each) for each in entry.also} or None
        known = _Known(entry.identity.digest(), _File.of(entry), also)
        self._known.setdefault(entry.output, []).append(known)

    def _read(self) -> None:
        damaged: list[int] = []
        with os.fdopen(self._descriptor, "rb", closefd=False) as file:
            for number, (line, size) in enumerate(_lines(file), start=1):
                if not line.endswith(b"\n"):
                    logger.info("%s ends in half a line, which is removed", self.path)
                    os.ftruncate(self._descriptor, self._end)
                    break
                self._end += size
                try:
                    if size > LINE_LIMIT:
                        raise ValueError("too long")
                    self._learn(Entry.parse(line))
                except UnknownVersionError as error:
                    raise OptionError(
                        f"line {number} of {self.path} has version {error}, and this pcsr knows version {VERSION}; "
                        "upgrade pcsr or use another output folder"
                    ) from error
                except (ValueError, RecursionError):
                    damaged.append(number)
        if damaged:
            logger.warning(
                "%s has %d damaged lines, the first is line %d; they are left out, and their outputs are not known",
                self.path,
                len(damaged),
                damaged[0],
            )


def _open_locked(path: Path) -> int:
    try:
        # Not following a link, nor waiting for the other end of a pipe.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if path.is_symlink():
            raise _no_journal(path) from error
        raise _cannot("open", path, error) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _no_journal(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OptionError(
                f"another run is at work in {path.parent} (it holds {path.name}); wait for it or end it"
            ) from error
        except OSError as error:
            raise _cannot("lock", path, error) from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _no_journal(path: Path) -> OptionError:
    return OptionError(
        f"{path} is no regular file, so it is no journal; remove it or use another output folder"
    )


def _cannot(what: str, path: Path, error: OSError) -> OptionError:
    return OptionError(
        f"cannot {what} {path}: {error.strerror or error}; see to it, use another output folder or go without --resume"
    )


def _lines(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Lines with their sizes; of one that is too long the end is enough."""
    while line := file.readline(LINE_LIMIT + 1):
        size = len(line)
        while not line.endswith(b"\n") and (more := file.readline(LINE_LIMIT + 1)):
            line, size = more, size + len(more)
        yield line, size


def _recognise(path: Path, described: Sequence[_File]) -> bytes | None:
    """Hash of a file if it is one of those described, by size and either time stamp or hash; else None.

    Raises:
        OSError: the file is not there, or cannot be looked at.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        return None
    hashes = {each.sha256 for each in described if each.size == found.st_size}
    stamped = {
        each.sha256 for each in described if (each.size, each.mtime_ns) == (found.st_size, found.st_mtime_ns)
    }
    if len(stamped) == 1:
        return stamped.pop()
    if not hashes:
        return None
    # Copied with another time stamp, or two of one size within the file system's tick.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        held = hashlib.file_digest(file, "sha256").digest()
    return held if held in hashes else None
