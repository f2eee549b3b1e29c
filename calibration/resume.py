"""What a calibration has done so far, kept beside its cache so that a killed one goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pcsr.calibration.observers import Histogram
from pcsr.export.int8.cache import Sensitivity
from pcsr.runtime.atomic import write_whole

__all__ = ["Progress", "progress_file"]

# A file of a run has a few MB.
FILE_LIMIT = 256 << 20


def progress_file(cache: Path) -> Path:
    """Where the work so far is kept: `.<cache>.progress` beside the cache."""
    return cache.with_name(f".{cache.name}.progress")


class _Saved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    observed: int
    histograms: dict[str, dict[str, dict[str, Any]]]
    rows: tuple[Sensitivity, ...]


class Progress:
    """Pictures observed and layers measured by an earlier run with the same settings, pictures and network.

    Attributes:
        observed: (picture, scale) pairs whose values are in `histograms`.
        histograms: by graph and tensor; None: none yet.
        rows: of the layers measured, in their order.
    """

    def __init__(self, cache: Path, key: str) -> None:
        """Take up what `.<cache>.progress` holds, if it is of a run like this one.

        Args:
            cache: that the run will write.
            key: says settings, pictures, network and versions of the run.
        """
        self._file = progress_file(cache)
        self._key = key
        self.observed = 0
        self.histograms: dict[str, dict[str, Histogram]] | None = None
        self.rows: list[Sensitivity] = []
        self._restore()

    def _restore(self) -> None:
        try:
            if self._file.stat().st_size > FILE_LIMIT:
                return
            saved = msgspec.msgpack.decode(self._file.read_bytes(), type=_Saved)
            if saved.key != self._key:
                return
            histograms = {
                graph: {tensor: Histogram.restored(state) for tensor, state in tensors.items()}
                for graph, tensors in saved.histograms.items()
            }
        except (OSError, msgspec.DecodeError, KeyError, TypeError, ValueError):
            # Missing, of another version or damaged: the run starts from nothing, as the first one did.
            return
        self.observed, self.histograms, self.rows = saved.observed, histograms or None, list(saved.rows)

    def save(self, histograms: Mapping[str, Mapping[str, Histogram]]) -> None:
        """Write it all down.

        Raises:
            OSError: the file cannot be written.
        """
        states = {
            graph: {tensor: histogram.state() for tensor, histogram in tensors.items()}
            for graph, tensors in histograms.items()
        }
        saved = _Saved(self._key, self.observed, states, tuple(self.rows))
        write_whole(self._file, msgspec.msgpack.encode(saved))
