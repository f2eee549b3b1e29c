"""One line of the journal: one output, what it was made from, and how. docs/folders.md specifies it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO

import msgspec
from msgspec import Meta

__all__ = ["LINE_LIMIT", "VERSION", "AlsoEntry", "Content", "Entry", "Identity", "InputEntry", "content_of"]

VERSION = 1
# Bytes, line feed included. Input, output, class map and overlay have paths of up to 4096 bytes, and JSON without
# other than ASCII letters takes up to six times as many.
LINE_LIMIT = 1 << 17

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Time = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """What a file holds, and the time stamp in nanoseconds that it had then."""

    bytes: Size
    mtime_ns: Time
    sha256: Sha256


class AlsoEntry(Content, frozen=True, kw_only=True):
    """A class map or overlay; `output` is its path from the output folder, with forward slashes."""

    output: str


class InputEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The picture that was upscaled; its name is for people."""

    name: str
    bytes: Size
    sha256: Sha256


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes an output what it is. The same work makes the same file.

    Attributes:
        input_sha256: of the input file.
        bundle_sha256: of the bundle's manifest, which has the hashes of all else in it.
        options: all that changes the files written, as JSON has it: text, numbers, true, false, null, lists, objects.
    """

    input_sha256: str
    bundle_sha256: str
    options: Mapping[str, Any]

    def digest(self) -> bytes:
        """Equal for the same work, in whatever order its options are."""
        return hashlib.sha256(
            _json([self.input_sha256, self.bundle_sha256, dict(self.options)], sort=True)
        ).digest()


class Entry(Content, frozen=True, kw_only=True):
    """A line of version 1, the version apart.

    Attributes:
        output: path of the output from its folder, with forward slashes.
        input: what was upscaled.
        bundle: sha256 of the bundle's manifest.
        options: all that changes the files written.
        also: class map and overlay, where they were asked for.
    """

    output: str
    input: InputEntry
    bundle: Sha256
    options: dict[str, Any]
    also: tuple[AlsoEntry, ...] = ()

    @property
    def identity(self) -> Identity:
        """The work that was done."""
        return Identity(self.input.sha256, self.bundle, self.options)

    def line(self) -> bytes:
        """As it stands in the journal. Names that are not Unicode survive as escaped surrogates."""
        also = {"also": [_fields(each) for each in self.also]} if self.also else {}
        entry = {"version": VERSION, **_fields(self), "input": _fields(self.input), **also}
        return _json(entry) + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Entry:
        """Read a line.

        Raises:
            ValueError, RecursionError: it is damaged.
            UnknownVersionError: it is of another version, and need not look like ours.
        """
        # msgspec's own decoder refuses names that are not Unicode.
        read = json.loads(line)
        version = msgspec.convert(read, _Versioned).version
        if version != VERSION:
            raise UnknownVersionError(version)
        return msgspec.convert(read, cls)


class UnknownVersionError(Exception):
    """A line of another version; its argument is the number."""


class _Versioned(msgspec.Struct, frozen=True):
    version: int


def content_of(file: BinaryIO) -> Content:
    """Size, time stamp and hash of an open file, after what was written to it is flushed."""
    file.flush()
    file.seek(0)
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    found = os.fstat(file.fileno())
    return Content(bytes=found.st_size, mtime_ns=found.st_mtime_ns, sha256=digest.hexdigest())


def _fields(of: msgspec.Struct) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(of).items() if name != "also"}


def _json(value: object, *, sort: bool = False) -> bytes:
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, sort_keys=sort, separators=(",", ":"))
    return text.encode("ascii")
