"""What of a run was done before, and what is put down when more of it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pcsr.runtime.atomic import DISK_ERRORS
from pcsr.runtime.errors import DiskError, PictureError
from pcsr.runtime.files import FileRequest
from pcsr.runtime.folder.entries import Identity, content_of
from pcsr.runtime.folder.journal import Journal, State
from pcsr.runtime.folder.plan import Job
from pcsr.runtime.pictures import PictureFile, output_format

__all__ = ["Resume"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """A run's way with its journal.

    Attributes:
        journal: of the output folder.
        request: what is asked for each picture, source and outputs apart.
        bundle_sha256: of the bundle's manifest.
        precision: of the graphs that run.
    """

    journal: Journal
    request: FileRequest
    bundle_sha256: str
    precision: str

    def identity(self, job: Job, file: PictureFile) -> Identity:
        """Of the work that a job is.

        Raises:
            PictureError: the file cannot be read.
        """
        return Identity(file.sha256(), self.bundle_sha256, self._options(job))

    def state(self, job: Job, identity: Identity) -> State:
        """What is to be thought of the files of a job."""
        also = [path for _, path in job.files()][1:]
        return self.journal.state(job.name, job.target, identity, also=also)

    def record(self, job: Job, identity: Identity, input_bytes: int, files: Mapping[Path, BinaryIO]) -> None:
        """Put down that a job is done, right before its files are put in place.

        Raises:
            PictureError: the journal cannot be written (`DiskError`: because of its disk).
        """
        contents = {path: content_of(file) for path, file in files.items()}
        try:
            self.journal.record(
                job.name,
                contents.pop(job.target),
                identity,
                input_name=job.name,
                input_bytes=input_bytes,
                also=contents,
            )
        except OSError as error:
            kind = DiskError if error.errno in DISK_ERRORS else PictureError
            raise kind(
                f"cannot write {self.journal.path}: {error.strerror or error}; check space and permission"
            ) from error

    def _options(self, job: Job) -> dict[str, Any]:
        """All that changes the files that are written."""
        request = self.request
        # A budget of zero is one, while k = 0 is what is done when nothing is said.
        given = {**dataclasses.asdict(request.options), "k": request.options.k or None}
        given |= dataclasses.asdict(request.encoding)
        return {
            **{name: value for name, value in given.items() if value is not None and value is not False},
            "form": request.encoding.form or output_format(job.target),
            "precision": self.precision,
            **({"page": request.page} if request.page is not None else {}),
            **({"salvage": True} if request.salvage else {}),
            **({"class_map": True} if job.class_map else {}),
            **({"overlay": True} if job.overlay else {}),
        }
