"""Bundle and picture in, picture out, without PyTorch.

`Upscaler.open(bundle)` gives a callable that upscales NumPy pictures. A picture's way reads top to
bottom in `inference.py`: plan tiles, probabilities per tile, decide once, colours per tile, compose.
"""

from pcsr.runtime.errors import PcsrError
from pcsr.runtime.options import Cost, Decision, Options, Result
from pcsr.runtime.shipped import shipped_bundle, shipped_bundles
from pcsr.runtime.upscaler import Upscaler

__all__ = [
    "Cost",
    "Decision",
    "Options",
    "PcsrError",
    "Result",
    "Upscaler",
    "shipped_bundle",
    "shipped_bundles",
]
