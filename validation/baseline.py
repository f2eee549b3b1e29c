"""The gate: the runtime must not fall behind the oracle, nor behind numbers that were once good.

A baseline is a small JSON file that is kept beside the code or the model: for each set, scale and rule the
mean PSNR (RGB) and which pictures it was taken over. It is written whole or not at all and, coming from
outside, read with suspicion.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pcsr.runtime.atomic import write_whole
from pcsr.runtime.errors import OptionError
from pcsr.validation.results import SetComparison
from pcsr.validation.sets import LrKind

__all__ = [
    "Baseline",
    "Entry",
    "Verdict",
    "check_baseline",
    "check_oracle",
    "make_baseline",
    "read_baseline",
    "write_baseline",
]

# Some hundred bytes for each set, scale and rule; nobody has thousands of them.
LIMIT = 1 << 20

Text = Annotated[str, Meta(min_length=1, max_length=255)]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One set at one scale by one rule."""

    set: Text
    scale: Annotated[float, Meta(ge=1, le=1024)]
    rule: Text
    pictures: Annotated[int, Meta(ge=1)]
    pictures_sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    """Of the lines "NAME WIDTHxHEIGHT" of all pictures, sorted."""
    psnr: Annotated[float, Meta(ge=-1000, le=1000)] | None
    """Mean over the pictures, dB; null where they equal the truth and it is infinite."""


class Baseline(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of a baseline file, version 1."""

    format: Literal["pcsr-baseline"] = "pcsr-baseline"
    version: Literal[1] = 1
    lr: LrKind
    refine: bool
    entries: Annotated[tuple[Entry, ...], Meta(min_length=1, max_length=4096)]
    provenance: dict[str, str]


# format and version have defaults for whoever makes one; a file must say them.
class _Head(msgspec.Struct):
    format: str
    version: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found: failures end in FAILED, notes are only said."""

    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def check_oracle(compared: Iterable[SetComparison], *, max_drop: float) -> Verdict:
    """Fail every set whose mean PSNR lies more than `max_drop` dB below the oracle's."""
    return Verdict(
        tuple(
            f"{_name(one.set, one.scale, one.rule)} is {one.drop:.4f} dB below the oracle, "
            f"{max_drop:g} is allowed"
            for one in compared
            if one.drop is not None and not one.drop <= max_drop
        )
    )


def check_baseline(compared: Iterable[SetComparison], baseline: Baseline, *, max_drop: float) -> Verdict:
    """Fail every set whose mean PSNR fell more than `max_drop` dB below the baseline.

    A set, scale and rule of the baseline that was not run fails too, and so does one that was run over other
    pictures. One that the baseline lacks is noted.
    """
    now = {(one.set, one.scale, one.rule): one for one in compared}
    failures, notes = [], []
    for entry in baseline.entries:
        name = _name(entry.set, entry.scale, entry.rule)
        one = now.pop((entry.set, entry.scale, entry.rule), None)
        if one is None:
            failures.append(f"{name} is in the baseline and was not run")
        elif _pictures_sha256(one) != entry.pictures_sha256:
            failures.append(
                f"{name} was run over other pictures than the baseline "
                f"({len(one.pictures)} now, {entry.pictures} then)"
            )
        else:
            before = math.inf if entry.psnr is None else entry.psnr
            drop = 0.0 if before == one.runtime.psnr else before - one.runtime.psnr
            if not drop <= max_drop:
                failures.append(f"{name} fell by {drop:.4f} dB from the baseline, {max_drop:g} is allowed")
    notes = [f"{_name(*key)} is not in the baseline: not gated" for key in now]
    return Verdict(tuple(failures), tuple(notes))


def make_baseline(
    compared: Iterable[SetComparison], *, lr: LrKind, refine: bool, provenance: Mapping[str, str]
) -> Baseline:
    """The baseline that these results would be."""
    return Baseline(
        lr=lr,
        refine=refine,
        entries=tuple(
            Entry(
                set=one.set,
                scale=one.scale,
                rule=one.rule,
                pictures=len(one.pictures),
                pictures_sha256=_pictures_sha256(one),
                psnr=one.runtime.psnr if math.isfinite(one.runtime.psnr) else None,
            )
            for one in compared
        ),
        provenance=dict(provenance),
    )


def write_baseline(path: str | os.PathLike[str], baseline: Baseline) -> None:
    """Write a baseline file, whole or not at all.

    Raises:
        OptionError: it cannot be written there.
    """
    try:
        write_whole(Path(path), msgspec.json.format(msgspec.json.encode(baseline)) + b"\n")
    except OSError as error:
        raise OptionError(
            f"cannot write the baseline {path}: {error.strerror or error}; name another file"
        ) from error


def read_baseline(path: str | os.PathLike[str]) -> Baseline:
    """Read a baseline file.

    Raises:
        OptionError: there is none, it is too large, damaged, or of a version unknown here.
    """
    anew = "make one with: pcsr-validate … --save-baseline FILE"
    try:
        with Path(path).open("rb") as file:
            content = file.read(LIMIT + 1)
    except OSError as error:
        raise OptionError(f"cannot read the baseline {path}: {error.strerror or error}; {anew}") from error
    if len(content) > LIMIT:
        raise OptionError(f"{path} is larger than {LIMIT} bytes and so is no baseline; {anew}")
    try:
        head = msgspec.json.decode(content, type=_Head)
        if head.format == "pcsr-baseline" and head.version != 1:
            raise OptionError(
                f"baseline {path} has version {head.version} and this pcsr reads version 1; "
                "upgrade pcsr, or save the baseline anew"
            )
        baseline = msgspec.json.decode(content, type=Baseline)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise OptionError(f"{path} is not a baseline ({error}); {anew}") from error
    keys = [(entry.set, entry.scale, entry.rule) for entry in baseline.entries]
    if len(set(keys)) < len(keys):
        raise OptionError(f"baseline {path} lists a set, scale and rule twice; {anew}")
    return baseline


def _name(name: str, scale: float, rule: str) -> str:
    return f"{name} ×{scale:g} {rule}"


def _pictures_sha256(one: SetComparison) -> str:
    lines = sorted(f"{picture.name} {picture.truth_sha256}\n" for picture in one.pictures)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
