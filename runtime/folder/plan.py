"""Which picture becomes which files, decided and checked before the first is read."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from pcsr.runtime.errors import OptionError
from pcsr.runtime.folder.find import Found, Search, find_pictures
from pcsr.runtime.folder.refusals import refuse_folders, refuse_for_one, refuse_for_several
from pcsr.runtime.pictures.formats import FORMATS, SUFFIXES

__all__ = ["Job", "Plan", "plan_jobs"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One picture and the files to be written for it.

    Attributes:
        name: for people and the journal, with forward slashes, no two alike in a plan. With an output folder the path
            within the folder that the picture was found in, or a file's own name; else the path as it was given.
        source: the picture.
        target: the output.
        class_map: where it is asked for.
        overlay: where it is asked for.
    """

    name: str
    source: Path
    target: Path
    class_map: Path | None = None
    overlay: Path | None = None

    def files(self) -> Iterator[tuple[str, Path]]:
        """What is to be written, by the option that asks for it; the output first."""
        yield "--output", self.target
        if self.class_map is not None:
            yield "--class-map", self.class_map
        if self.overlay is not None:
            yield "--overlay", self.overlay


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done.

    Attributes:
        jobs: in alphabetical order within each input, inputs in the order given.
        skipped: how many entries of folders are passed over, by reason.
        root: the output folder, which need not exist; None where outputs lie beside inputs, or one file is named.
        one: a single file was asked for, so that class map and overlay are files too, not folders.
    """

    jobs: tuple[Job, ...]
    skipped: Mapping[str, int]
    root: Path | None
    one: bool


def plan_jobs(
    inputs: Sequence[str | Path],
    *,
    output: str | Path | None,
    suffix_text: str,
    form: str | None,
    class_map: Path | None,
    overlay: Path | None,
    force: bool,
    resume: bool,
) -> Plan:
    """Find the pictures, name their outputs, and refuse what cannot or must not be written.

    Args:
        inputs: files, folders and patterns.
        output: a file where the input is one file, unless it is an existing folder or ends in a separator (which only
            text keeps); else a folder. None: beside the inputs.
        suffix_text: what names beside the inputs say, like "x4": photo_x4.jpg.
        form: one of `FORMATS`; None: that of a named output's ending, else that of the input's ending, else PNG.
        class_map: file or folder, as `Plan.one` says, for class maps.
        overlay: file or folder for overlays.
        force: files that exist may be replaced.
        resume: files that exist may stay: the run looks at each.

    Raises:
        OptionError: there is nothing to do; a folder cannot be read or written; two files would be written to one
            place, or over an input; or files exist and must not be replaced.
    """
    search = find_pictures(inputs, files_only=output is None)
    if not search.files:
        raise OptionError(_nothing_to_do(inputs, search))
    one = len(search.files) == 1 and not search.folders and not search.patterns
    try:
        named = one and output is not None and not _is_folder(output)
        root = None if output is None or named else Path(output)
        folders = {"--output": root}
        if not one:
            folders |= {"--class-map": class_map, "--overlay": overlay}
        refuse_folders(folders, inputs=search.folders)
        targets = [_target(found, output, root, said=f"_{suffix_text}", form=form) for found in search.files]
        jobs = [
            Job(
                name=str(Path(found.source)) if root is None else found.relative,
                source=Path(found.source),
                target=target,
                class_map=class_map
                if one or class_map is None
                else class_map / _with_ending(relative, "png"),
                overlay=overlay if one or overlay is None else overlay / relative,
            )
            for found, (target, relative) in zip(search.files, targets, strict=True)
        ]
        if one:
            refuse_for_one(jobs[0], root=root, form=form, replace=force or resume)
        else:
            refuse_for_several(jobs, folders=folders, replace=force or resume)
    except OSError as error:
        raise OptionError(f"cannot look up {error.filename}: {error.strerror}; check permissions") from error
    if form is None and not named:
        _tell_what_becomes_png(search)
    return Plan(jobs=tuple(jobs), skipped=dict(search.skipped), root=root, one=one)


def _target(
    found: Found, output: str | Path | None, root: Path | None, *, said: str, form: str | None
) -> tuple[Path, str]:
    """Path of an output, and as much of it as class map and overlay share."""
    folder, slash, name = found.relative.rpartition("/")
    target = _with_ending(name, form or SUFFIXES.get(PurePath(name).suffix.lower(), "png"))
    if root is not None:
        return root / f"{folder}{slash}{target}", f"{folder}{slash}{target}"
    if output is not None:
        return Path(output), Path(output).name
    ending = PurePath(target).suffix
    target = f"{target.removesuffix(ending)}{said}{ending}"
    return Path(found.source).with_name(target), target


def _is_folder(output: str | Path) -> bool:
    return os.fspath(output).endswith("/") or Path(output).is_dir()


def _with_ending(name: str, form: str) -> str:
    """The name, with another ending where its own does not mean the format."""
    ending = PurePath(name).suffix
    if SUFFIXES.get(ending.lower()) == form:
        return name
    return name.removesuffix(ending) + FORMATS[form].suffix


def _tell_what_becomes_png(search: Search) -> None:
    endings = Counter(PurePath(found.relative).suffix.lower() for found in search.files)
    others = [
        f"{count} {ending or 'without ending'}"
        for ending, count in sorted(endings.items())
        if ending not in SUFFIXES
    ]
    if others:
        logger.info("to be written as PNG, as their own formats are not written: %s", ", ".join(others))


def _nothing_to_do(inputs: Sequence[str | Path], search: Search) -> str:
    named = ", ".join(str(each) for each in inputs[:3]) + (", …" if len(inputs) > 3 else "")
    passed = ", ".join(f"{count} {reason}" for reason, count in sorted(search.skipped.items()))
    return (
        f"there is nothing to do: no pictures in {named or 'no input'}"
        f"{f' (passed over: {passed})' if passed else ''}; name pictures, or folders that have some"
    )
