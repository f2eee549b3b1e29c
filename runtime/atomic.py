"""Files that appear whole or not at all, and what killed runs leave of them.

A file is written under a temporary name in its own folder, `.{name}.{8 hexadecimal digits}.partial`, and then put in
place in one step. `whole_output` keeps the temporary locked as long as it is written. The system drops the lock of a
process that is killed, so `sweep_partial` knows what nobody writes any more.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "DISK_ERRORS",
    "sweep_partial",
    "sync_folder",
    "unwritable",
    "whole_file",
    "whole_output",
    "write_whole",
]

# Of the disk, and so of every other file that is to be written there.
DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE}
)

# Characters of the name that a temporary shows. They have at most 160 bytes in UTF-8: with the rest of the temporary's
# name it fits in the 255 that file systems allow.
SHOWN = 40
# Of temporaries that others open by their path. Nobody holds a lock on them, so they must not be swept.
UNLOCKED = ".unlocked"
PARTIAL = re.compile(rf"\..{{1,{SHOWN}}}(?<!{re.escape(UNLOCKED)})\.[0-9a-f]{{8}}\.partial", re.DOTALL)
# What file systems without hard links, or with no more for this file, answer.
NO_LINKS = frozenset(
    {
        errno.EACCES,
        errno.EINVAL,
        errno.EMLINK,
        errno.ENOSYS,
        errno.ENOTSUP,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EXDEV,
    }
)


def unwritable(path: Path) -> str | None:
    """Why a file cannot be written there, as far as can be told without trying; None if nothing speaks against it.

    For finding out before an hour of work what would otherwise be found after it.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"{path.parent} is not a folder; make it first or write elsewhere"
    if path.is_dir():
        return f"{path} is a folder; name a file"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{path.parent} cannot be written to; change its permissions or write elsewhere"
    return None


@contextmanager
def whole_output(
    path: Path, *, replace: bool, before: Callable[[BinaryIO], object] | None = None
) -> Iterator[BinaryIO]:
    """A file to write, which is put in place at `path` when the block ends well and else goes away.

    Args:
        path: of the file; its folder is there.
        replace: what is at `path` then; without it, a file that appears there at any time stays as it is.
        before: called with the file when all of it is on the disk, right before it is put in place. It may read, and
            must not write. What it raises keeps the file from its place.

    Yields:
        The file, open to be read and written, under a temporary name. It stays open.

    Raises:
        FileExistsError: without `replace`, there is something at `path`.
        OSError: as writing, syncing or renaming does.
    """
    temporary, file = _locked_temporary(path)
    try:
        yield file
        file.flush()
        os.fsync(file.fileno())
        if before is not None:
            before(file)
        if replace:
            temporary.replace(path)
        else:
            _put_where_nothing_is(temporary, path)
    except BaseException:
        # Closing may try to write once more; the first error is the one to tell.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        with suppress(OSError):
            file.close()
        raise
    file.close()
    sync_folder(path.parent)


def _locked_temporary(path: Path) -> tuple[Path, BinaryIO]:
    while True:
        temporary = _temporary(path)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        # Where the file system has no locks, no sweep gets one either and all temporaries stay.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # A sweep may have come between the last two steps and have taken the file for one that nobody writes.
        if os.fstat(descriptor).st_nlink:
            return temporary, os.fdopen(descriptor, "w+b")
        os.close(descriptor)


def _temporary(path: Path, mark: str = "") -> Path:
    return path.with_name(f".{path.name[:SHOWN]}{mark}.{secrets.token_hex(4)}.partial")


def _put_where_nothing_is(temporary: Path, path: Path) -> None:
    try:
        path.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in NO_LINKS | {errno.EEXIST}:
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        # No hard links here. Between the look and the rename lies a moment, which is the best there is.
        temporary.rename(path)
        return
    # The file is in place, whatever becomes of its other name.
    with suppress(OSError):
        temporary.unlink()


def sweep_partial(folder: Path) -> int:
    """Remove what killed runs left in a folder of files that they were writing, and say how many there were.

    Only regular files that are named like temporaries of `whole_output` and that nobody writes are removed. Network
    file systems may not tell threads of one process apart: sweep before writing, not meanwhile.

    Raises:
        OSError: the folder cannot be listed.
    """
    with os.scandir(folder) as entries:
        left = [Path(entry) for entry in entries if PARTIAL.fullmatch(entry.name)]
    return sum(_swept(path) for path in left)


def _swept(path: Path) -> bool:
    try:
        # Opening a pipe or a device would wait or do something; between the two looks, the flags see to it.
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return False
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(descriptor)
    except OSError:
        # Held by its writer, in place by now, or not ours to remove.
        return False
    return True


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed to `path` when the block ends well, else removed.

    For writers that want a path. Others better use `whole_output`: what is left of this one when the process is killed
    stays, as its name says that no lock tells whether it is being written.

    Raises:
        OSError: as writing, syncing or renaming does.
    """
    temporary = _temporary(path, UNLOCKED)
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears with all its content or not at all."""
    with whole_output(path, replace=True) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
