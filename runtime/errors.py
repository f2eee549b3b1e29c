"""One family of errors, each saying what was wrong, where, and what to do.

PcsrError
├ OptionError          an option or argument has no meaning or contradicts another
├ CheckpointError      a checkpoint cannot be trusted or does not hold a PCSR network
├ BundleError          a bundle is missing, damaged, foreign, or lacks what was asked for
├ PictureError         a picture cannot be read, upscaled or written
│ └ DiskError          the disk that it was to be written to is full, read-only or gone
├ BackendError         a backend is missing, broken, or did not give what was asked for
├ MemoryLimitError     the memory limit cannot hold the smallest piece of work
│ └ DeviceMemoryError  the same on a GPU, or it has run out of memory
├ CalibrationError     a calibration cache is damaged, of another version or of another network
├ CheckError           a check of exactness or accuracy failed
├ TrainingError        a training run cannot go on; its last good state is kept
├ CancelledError       the caller's progress callback asked to stop
└ ClosedError          the upscaler has been closed
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "BundleError",
    "CalibrationError",
    "CancelledError",
    "CheckError",
    "CheckpointError",
    "ClosedError",
    "DeviceMemoryError",
    "DiskError",
    "MemoryLimitError",
    "NotInstalledError",
    "OptionError",
    "PcsrError",
    "PictureError",
    "TrainingError",
]


class PcsrError(Exception):
    """Base of everything this toolkit raises on purpose."""


class OptionError(PcsrError, ValueError):
    """An option or argument has no meaning or contradicts another."""


class CheckpointError(PcsrError):
    """A checkpoint cannot be trusted or does not hold a PCSR network."""


class BundleError(PcsrError):
    """A bundle is missing, damaged, foreign, or lacks what was asked for."""


class PictureError(PcsrError):
    """A picture cannot be read, upscaled or written."""


class DiskError(PictureError):
    """A picture cannot be written because its disk is full, read-only or gone, as no other can."""


class BackendError(PcsrError):
    """A backend is missing, broken, or did not give what was asked for."""


class NotInstalledError(BackendError):
    """A backend's library is not installed."""


class MemoryLimitError(PcsrError):
    """The memory limit cannot hold the smallest piece of work."""


class DeviceMemoryError(MemoryLimitError):
    """A GPU's memory, or the limit of it, cannot hold the smallest piece of work."""


class CalibrationError(PcsrError):
    """A calibration cache is missing, damaged, of another version or of another network."""


class CheckError(PcsrError):
    """A check of exactness or accuracy failed."""


class TrainingError(PcsrError):
    """A training run cannot start or go on; its last good state is kept."""


class CancelledError(PcsrError):
    """The caller's progress callback asked to stop."""


class ClosedError(PcsrError, RuntimeError):
    """The upscaler has been closed."""
