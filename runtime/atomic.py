"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["sync_folder", "unwritable", "whole_file", "write_whole"]


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
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed to `path` when the block ends well, else removed.

    Raises:
        OSError: as writing, syncing or renaming does.
    """
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.partial")
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
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
