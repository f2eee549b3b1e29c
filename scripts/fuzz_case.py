"""A case of the fuzz harness: what is laid on disk, for which target, and how it was made."""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class Place(enum.Enum):
    """What may lie where a file is expected."""

    FOLDER = "a folder"
    PIPE = "a pipe without a writer"


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    to: str


Entry = bytes | Place | Link
"""What lies under a name: the content of a file, or something that is none."""


@dataclass(frozen=True, slots=True)
class Case:
    """One input.

    Attributes:
        target: what it is for, a key of `fuzz_worker.DEMANDS`.
        entries: by path, of a file or of all files in a folder.
        root: the path that the target is given, like "picture.png" or "bundle".
        origin: what it was made from, and by which steps.
    """

    target: str
    entries: Mapping[str, Entry]
    root: str
    origin: str


def lay(case: Case, folder: Path) -> Path:
    """Write a case below a folder, and return what its target is to be given."""
    for name, entry in case.entries.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        match entry:
            case bytes():
                path.write_bytes(entry)
            case Link():
                path.symlink_to(entry.to)
            case Place.FOLDER:
                path.mkdir(exist_ok=True)
            case Place.PIPE:
                os.mkfifo(path)
    return folder / case.root
