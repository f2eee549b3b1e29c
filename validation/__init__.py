"""Proof in numbers: the runtime against the oracle and against ground truth, and the gate that keeps it so.

`compare_folder` runs an upscaler over sets of pictures; `validate` is a whole validation with its report, as
`pcsr-validate` runs it; `metrics` (NumPy only) may be used from everywhere.
"""

from pcsr.validation.compare import compare_folder
from pcsr.validation.results import Rule
from pcsr.validation.run import Settings, validate

__all__ = ["Rule", "Settings", "compare_folder", "validate"]
