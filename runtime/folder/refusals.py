"""What must not be written, told before any work: a night's run must not end at its first picture, or its last."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pcsr.runtime.atomic import unwritable
from pcsr.runtime.errors import OptionError
from pcsr.runtime.folder.find import within
from pcsr.runtime.pictures.formats import FORMATS, SUFFIXES, output_format

if TYPE_CHECKING:
    from pcsr.runtime.folder.plan import Job

__all__ = ["refuse_folders", "refuse_for_one", "refuse_for_several"]


def refuse_folders(folders: Mapping[str, Path | None], *, inputs: Mapping[str, str]) -> None:
    """Refuse folders to write into that cannot be, or from which a later run would read.

    Args:
        folders: by option; they need not exist.
        inputs: folders to be upscaled, with their absolute paths without links.

    Raises:
        OptionError: a folder is none, cannot be made or written to, or is an input folder or in one.
    """
    for option, folder in folders.items():
        if folder is None:
            continue
        real = os.path.realpath(folder)
        for named, top in inputs.items():
            if within(real, top):
                where = "is" if real == top else "lies in"
                raise OptionError(
                    f"{option} {folder} {where} the input folder {named}, so that a later run would upscale what "
                    "this one writes; name a folder outside"
                )
        place = folder.absolute()
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            raise OptionError(f"{option} {folder} must be a folder and {place} is none; name another folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise OptionError(f"{place} cannot be written to; change its permissions or write elsewhere")


def refuse_for_one(job: Job, *, root: Path | None, form: str | None, replace: bool) -> None:
    """Refuse files for a single picture that cannot or must not be written.

    Args:
        job: with files that were named, apart from an output in a folder or beside its input.
        root: the output folder, which need not exist.
        form: of the output, where its ending is not to tell.
        replace: whether files may exist.

    Raises:
        OptionError: a name with no known format, in no folder, given twice, of the input, or of a file that exists.
        OSError: a place cannot be looked up.
    """
    seen = {os.path.realpath(job.source): "the input"}
    for option, path in job.files():
        _refuse_format(option, path, form)
        new_folder = option == "--output" and root is not None and not root.exists()
        if not new_folder and (problem := unwritable(path)):
            raise OptionError(problem)
        place = os.path.realpath(path)
        if place in seen or (path.exists() and job.source.exists() and path.samefile(job.source)):
            raise OptionError(f"{option} {path} is also {seen.get(place, 'the input')}; give it another name")
        seen[place] = option
        if os.path.lexists(path) and not replace:
            raise OptionError(f"{path} exists; give --force to replace it, or another name")


def _refuse_format(option: str, path: Path, form: str | None) -> None:
    if option == "--output" and form is not None:
        own = SUFFIXES.get(path.suffix.lower(), form)
        if own != form:
            raise OptionError(
                f"{path} ends like {FORMATS[own].label} and {FORMATS[form].label} is asked for; "
                f"end it in {FORMATS[form].suffix}"
            )
    elif output_format(path) != "png" and option == "--class-map":
        raise OptionError(f"{path}: a class map is written as PNG; end the name in .png")


def refuse_for_several(jobs: Sequence[Job], *, folders: Mapping[str, Path | None], replace: bool) -> None:
    """Refuse a folder run that would write two files to one place, over an input, or over what is there.

    Args:
        jobs: with all files in the folders, or beside their inputs.
        folders: to write into, by option; they need not exist.
        replace: whether files may exist.

    Raises:
        OptionError: as above, or a folder within one of `folders` is none, cannot be written to or leads out.
        OSError: a place cannot be looked up.
    """
    tops = {option: os.path.realpath(folder) for option, folder in folders.items() if folder is not None}
    real = cache(os.path.realpath)

    @cache
    def is_there(folder: str, option: str) -> bool:
        return _look_at_folder(folder, top=folders.get(option), real_top=tops.get(option))

    def place(path: Path) -> str:
        folder, name = _split(path)
        return f"{real(folder).rstrip('/')}/{name}"

    inputs = {place(job.source): job.source for job in jobs}
    written: dict[str, tuple[str, Job]] = {}
    existing: list[tuple[Path, Job]] = []
    for job in jobs:
        for option, path in job.files():
            there = is_there(_split(path)[0], option)
            key = place(path)
            if key in inputs:
                raise _over_an_input(job, path, inputs[key])
            other_option, other = written.setdefault(key, (option, job))
            if (other_option, other) != (option, job):
                raise OptionError(
                    f"{other.source} ({other_option}) and {job.source} ({option}) would both be written to {path}; "
                    "upscale them into different folders"
                )
            if there and os.path.lexists(path):
                existing.append((path, job))
    _refuse_files_as_folders(written)
    _refuse_existing(
        existing, inputs.values(), replace=replace, resumable=folders.get("--output") is not None
    )


def _look_at_folder(folder: str, *, top: Path | None, real_top: str | None) -> bool:
    """Whether a folder to write into is there; one that cannot be used is refused."""
    if top is not None and real_top is not None and not within(os.path.realpath(folder), real_top):
        raise OptionError(
            f"{folder} leads out of {top} through a link; remove the link or name another folder"
        )
    try:
        Path(folder).stat()
    except FileNotFoundError:
        # A run makes its folders. Beside an input, the input is missing too, which is told when it is read.
        return False
    except NotADirectoryError:
        pass
    if not Path(folder).is_dir():
        raise OptionError(
            f"{folder} must be a folder and is not; remove what is there or name another folder"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OptionError(f"{folder} cannot be written to; change its permissions or write elsewhere")
    return True


def _refuse_files_as_folders(written: Mapping[str, tuple[str, Job]]) -> None:
    needed: dict[str, Job] = {}
    for key, (_, job) in written.items():
        folder = key.rpartition("/")[0]
        while folder and folder not in needed:
            needed[folder] = job
            folder = folder.rpartition("/")[0]
    for key, (_, job) in written.items():
        if key in needed:
            raise OptionError(
                f"{key} would have to be a file for {job.source} and a folder for {needed[key].source}; "
                "upscale them into different folders"
            )


def _refuse_existing(
    existing: Sequence[tuple[Path, Job]], inputs: Iterable[Path], *, replace: bool, resumable: bool
) -> None:
    if not existing:
        return
    # However it is named: through links, or as another name of the same file.
    identities = {identity: source for source in inputs if (identity := _identity(source)) is not None}
    for path, job in existing:
        identity = _identity(path)
        if identity in identities:
            raise _over_an_input(job, path, identities[identity])
        if path.is_dir():
            raise OptionError(
                f"{path} is a folder and would be the output of {job.source}; name another folder"
            )
    if replace:
        return
    go_on = ", --resume to go on with an earlier run" if resumable else ""
    if len(existing) == 1:
        raise OptionError(f"{existing[0][0]} exists; give --force to replace it{go_on}, or another name")
    named = ", ".join(str(path) for path, _ in existing[:3]) + (", …" if len(existing) > 3 else "")
    raise OptionError(
        f"{len(existing)} files exist: {named}; give --force to replace them{go_on}, or another folder"
    )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        # Missing or out of reach, which is told when it is read.
        return None
    return found.st_dev, found.st_ino


def _over_an_input(job: Job, path: Path, source: Path) -> OptionError:
    return OptionError(
        f"{job.source} would be written to {path}, which is the input {source}; write to another place with -o"
    )


def _split(path: Path) -> tuple[str, str]:
    text = str(path)
    folder, slash, name = text.rpartition("/")
    return folder or slash or ".", name
