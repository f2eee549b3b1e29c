"""From what was named to pictures: files as they are, folders with all that is in them, patterns.

What a user names may be a link; what is found below it is not followed out of its folder. Paths are text here: path
objects for a hundred thousand files come later, once.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pcsr.runtime.errors import OptionError
from pcsr.runtime.folder.journal import JOURNAL
from pcsr.runtime.pictures.formats import INPUT_SUFFIXES

__all__ = ["Found", "Search", "find_pictures", "within"]

logger = logging.getLogger(__name__)

HIDDEN = "hidden"
NO_PICTURE = "not a picture"
LINKED_FOLDER = "a link to a folder"
LINKED_OUT = "a link out of the folder"
NO_FILE = "no regular file"
UNREADABLE = "unreadable folder"

FOLDER, PICTURE = "folder", "picture"


@dataclass(frozen=True, slots=True)
class Found:
    """A picture to upscale.

    Attributes:
        source: path, as the user would write it.
        relative: path within the folder it was found in, with forward slashes; of other files the name.
        place: absolute path without links in its folders, the same however the file was named.
    """

    source: str
    relative: str
    place: str


@dataclass(slots=True)
class Search:
    """What has been found so far.

    Attributes:
        files: in alphabetical order within each input, inputs in the order given, none of them twice.
        folders: that were looked into from their top, with their absolute paths without links.
        skipped: how many entries were passed over, by reason.
        patterns: whether any input was a pattern.
        files_only: whether folders are refused, as there is no place for what becomes of them.
    """

    files_only: bool
    files: list[Found] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    patterns: bool = False
    _places: set[str] = field(default_factory=set)
    _walked: set[str] = field(default_factory=set)
    _twice: list[str] = field(default_factory=list)

    def add_file(self, path: str) -> None:
        """Take a file, whatever it is."""
        folder, _, name = path.rstrip("/").rpartition("/")
        real = os.path.realpath(folder or ("/" if path.startswith("/") else "."))
        self._add(Found(path, name, _join(real, name)))

    def add_folder(self, folder: str) -> None:
        """Take the pictures below a folder; what cannot be looked into in it is left out.

        Raises:
            OptionError: only files may be named.
            OSError: the folder itself cannot be looked into.
        """
        if self.files_only:
            raise OptionError(
                "to upscale a folder, name an output folder with -o; without it "
                f"INPUT is {folder!r}, which is no file; name a picture"
            )
        top = os.path.realpath(folder)
        entries = _entries(folder)
        self.folders.setdefault(folder, top)
        found: list[Found] = []
        # An explicit stack: trees may be deeper than Python calls.
        stack = [(folder, "", top)]
        while stack:
            here, relative, place = stack.pop()
            if place in self._walked:
                self._twice.append(here)
                continue
            self._walked.add(place)
            for entry in entries if here == folder else self._listed(here):
                name = entry.name
                kind = HIDDEN if name.startswith(".") else _kind(entry, inside=top)
                if kind == FOLDER:
                    stack.append((entry.path, f"{relative}{name}/", _join(place, name)))
                elif kind == PICTURE:
                    found.append(Found(entry.path, relative + name, _join(place, name)))
                elif name != JOURNAL:
                    self.skipped[kind] += 1
        for each in sorted(found, key=lambda each: each.relative):
            self._add(each)

    def add_matches(self, pattern: str) -> None:
        """Take the pictures and folders that a pattern matches; a hidden one only where its dot is in the pattern.

        Raises:
            OptionError: a folder matches, and only files may.
        """
        self.patterns = True
        parts = Path(pattern).parts
        literal = next(index for index, part in enumerate(parts) if _is_magic(part))
        base = str(Path(*parts[:literal])) if literal else ""
        wild = list(parts[literal:])
        while wild and wild[-1] == "**":
            # All that is in a folder is the folder.
            wild.pop()
        matches = [base]
        for number, part in enumerate(wild):
            if number:
                matches = [match for match in matches if not self._is_link(match)]
            matches = list(dict.fromkeys(match for each in matches for match in self._matches(each, part)))
        inside = os.path.realpath(base)
        for match in sorted(matches):
            kind = _kind(Path(match), inside=inside)
            if kind == FOLDER:
                try:
                    self.add_folder(match or ".")
                except OSError as error:
                    self._leave_out(match, error)
            elif kind == PICTURE:
                self.add_file(match)
            else:
                self.skipped[kind] += 1
        if not matches:
            logger.warning("nothing matches %s", pattern)

    def tell_twice(self) -> None:
        """Log what was named or found more than once."""
        if self._twice:
            more = f" and {len(self._twice) - 1} more" if len(self._twice) > 1 else ""
            logger.info("named twice and taken once: %s%s", self._twice[0], more)

    def _add(self, found: Found) -> None:
        if found.place in self._places:
            self._twice.append(found.source)
        else:
            self._places.add(found.place)
            self.files.append(found)

    def _matches(self, folder: str, part: str) -> Iterator[str]:
        """Paths in a folder that one part of a pattern matches."""
        if part == "**":
            stack = [folder]
            while stack:
                here = stack.pop()
                yield here
                stack += [
                    _join(here, entry.name)
                    for entry in self._listed(here)
                    if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
                ]
        elif _is_magic(part):
            fits = re.compile(fnmatch.translate(part)).match
            for entry in self._listed(folder):
                if fits(entry.name) and (part.startswith(".") or not entry.name.startswith(".")):
                    yield _join(folder, entry.name)
        elif os.path.lexists(_join(folder, part)):
            yield _join(folder, part)

    def _is_link(self, match: str) -> bool:
        """Whether a match that more is looked for in is a link; one to a folder is counted."""
        if not Path(match).is_symlink():
            return False
        self.skipped[LINKED_FOLDER] += Path(match).is_dir()
        return True

    def _listed(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            return _entries(folder or ".")
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self._leave_out(folder, error)
            return []

    def _leave_out(self, folder: str, error: OSError) -> None:
        self.skipped[UNREADABLE] += 1
        logger.warning("cannot look into %s: %s; what is in it is left out", folder, error.strerror)


def find_pictures(inputs: Sequence[str | os.PathLike[str]], *, files_only: bool = False) -> Search:
    """Find the pictures that are meant, by name, in folders, or by pattern (`*`, `?`, `[…]`, `**`: any folders).

    What exists under its name is no pattern, and what neither exists nor is a pattern is taken as a file: that it is
    not there is told when it is read.

    Raises:
        OptionError: an input is no name, or a folder that cannot be looked into or must not be one.
    """
    found = Search(files_only)
    for each in inputs:
        path = os.fspath(each)
        if not path:
            raise OptionError("INPUT is '', which is no file; name a picture")
        try:
            if Path(path).is_dir():
                found.add_folder(path)
            elif os.path.lexists(path) or not _is_magic(path):
                found.add_file(path)
            else:
                found.add_matches(path)
        except OSError as error:
            raise OptionError(
                f"cannot look into {path}: {error.strerror}; change its permissions or name another input"
            ) from error
    found.tell_twice()
    return found


def within(path: str, folder: str) -> bool:
    """Whether an absolute path is a folder or below it, going by their text."""
    return path == folder or path.startswith(_join(folder, ""))


def _join(folder: str, name: str) -> str:
    return folder + name if not folder or folder.endswith("/") else f"{folder}/{name}"


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _is_magic(text: str) -> bool:
    return any(letter in text for letter in "*?[")


def _kind(entry: os.DirEntry[str] | Path, *, inside: str) -> str:
    """`FOLDER`, `PICTURE`, or why the entry is neither for us."""
    try:
        linked = entry.is_symlink()
        if entry.is_dir():
            return LINKED_FOLDER if linked else FOLDER
        if not entry.is_file():
            return NO_FILE
    except OSError:
        # A link that goes in circles.
        return NO_FILE
    if Path(entry.name).suffix.lower() not in INPUT_SUFFIXES:
        return NO_PICTURE
    if linked and not within(os.path.realpath(entry), inside):
        return LINKED_OUT
    return PICTURE
