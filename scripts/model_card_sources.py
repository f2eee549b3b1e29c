"""The pictures that the models were trained on: their table of sources, and the page that credits them."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pcsr.runtime.errors import OptionError

FOLDER = "train"
TIERS = {"A", "B", "C"}
"""Of the table's tiers, those that may be trained on; the others are for evaluation."""
LINKS = {
    "BSD-2-Clause": "https://opensource.org/license/bsd-2-clause",
    "CC-BY-2.0": "https://creativecommons.org/licenses/by/2.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "Unsplash licence": "https://unsplash.com/license",
}


@dataclass(frozen=True, slots=True)
class Source:
    """A row of the table.

    Attributes:
        name: of the file in the folder of training pictures.
        sha256: of its bytes.
        source: where it was taken from.
        author: as far as known.
        licence: its name, like "CC-BY-4.0".
        evidence: the sentence that the licence rests on; "" where the table gives none.
        processing: what was done to it.
    """

    name: str
    sha256: str
    source: str
    author: str
    licence: str
    evidence: str
    processing: str


def read_sources(path: Path) -> tuple[Source, ...]:
    """The training pictures of a table of sources, in the order in which training takes them.

    Args:
        path: CSV with the columns file, sha256, source, author, licence, processing and tier; training
            pictures are the files below `train/`.

    Raises:
        OptionError: the table cannot be read, lacks something, or has a picture that must not be trained on.
    """
    sources = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                place = PurePosixPath(row["file"])
                if place.parts[0] != FOLDER:
                    continue
                if row["tier"] not in TIERS:
                    raise OptionError(f"{path}: {place} has tier {row['tier']!r}, which is not for training")
                licence, _, evidence = row["licence"].partition(" (")
                name = place.relative_to(FOLDER).as_posix()
                fields = (row["sha256"], row["source"], row["author"], licence, evidence.removesuffix(")"))
                if not all(fields[:4]):
                    raise OptionError(
                        f"{path}: {place} lacks sha256, source, author or licence; fill them in"
                    )
                sources.append(Source(name, *fields, row["processing"]))
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise OptionError(f"cannot read the sources {path} ({error!r})") from error
    if not sources:
        raise OptionError(f"{path} has no row for a file below {FOLDER}/")
    return tuple(sorted(sources, key=lambda source: PurePosixPath(source.name)))


def list_sha256(sources: tuple[Source, ...]) -> str:
    """The hash by which a checkpoint names its pictures: over names and contents, as training computes it."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(json.dumps([source.name, source.sha256]).encode())
    return digest.hexdigest()


def check_sources(sources: tuple[Source, ...], path: Path, *, data_sha256: str) -> None:
    """Make sure that the table lists the pictures that were trained on, and the files where they are at hand.

    Args:
        sources: of the table.
        path: of the table; the pictures are at hand where `train/` lies beside it.
        data_sha256: from the checkpoint's metadata.

    Raises:
        OptionError: a picture has no row or another content, or the pictures are others.
    """
    rows = {source.name: source.sha256 for source in sources}
    folder = path.parent / FOLDER
    if folder.is_dir():
        files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
        for name in sorted(files.keys() | rows.keys()):
            if name not in rows:
                raise OptionError(
                    f"{path} has no row for {FOLDER}/{name}; add its author, source and licence"
                )
            if name not in files:
                raise OptionError(f"{path} has a row for {FOLDER}/{name}, which is not in {folder}")
            if hashlib.sha256(files[name].read_bytes()).hexdigest() != rows[name]:
                raise OptionError(f"{folder / name} is not the picture that {path} describes: other sha256")
    if list_sha256(sources) != data_sha256:
        raise OptionError(
            f"{path} lists {len(sources)} training pictures, which are not those that the checkpoint was trained "
            f"on (hash {list_sha256(sources)[:12]}…, in its metadata {data_sha256[:12]}…); give their table"
        )


def pictures_page(sources: tuple[Source, ...]) -> str:
    """The page of credits, in Markdown: every picture, grouped by licence."""
    lines = [
        "# Training pictures",
        "",
        f"The {_count(len(sources))} that the models in this folder were trained on, by licence. They are not part of",
        "this repository. The hash over their names and contents (sorted by name), as `data_sha256` in the metadata of",
        "a checkpoint has it:",
        "",
        f"    {list_sha256(sources)}",
        "",
        "Made by `scripts/model_card.py write`.",
    ]
    by_licence = sorted(sources, key=lambda one: (one.licence, one.evidence, PurePosixPath(one.name)))
    for licence, group in itertools.groupby(by_licence, key=lambda one: one.licence):
        members = tuple(group)
        lines += ["", f"## {licence}: {_count(len(members))}"]
        if licence in LINKS:
            lines += ["", f"<{LINKS[licence]}>"]
        for evidence, stated in itertools.groupby(members, key=lambda one: one.evidence):
            if evidence:
                lines += ["", f"Stated in: {_cell(evidence)}"]
            lines += ["", "| picture | author | source | processing |", "|---|---|---|---|"]
            lines += [
                f"| {' | '.join(_cell(cell) for cell in (one.name, one.author, one.source, one.processing))} |"
                for one in stated
            ]
    return "\n".join(lines) + "\n"


def licences_of(page: str) -> tuple[tuple[str, int], ...]:
    """Licences and their numbers of pictures, from the headings of a page that `pictures_page` made."""
    found = re.findall(r"^## (.+): (\d+) pictures?$", page, flags=re.MULTILINE)
    return tuple((licence, int(count)) for licence, count in found)


def _count(pictures: int) -> str:
    return f"{pictures} picture" + ("s" if pictures > 1 else "")


def _cell(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())
