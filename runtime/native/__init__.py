"""The CPU backend of kernels written for it: the per-pixel networks fused, for the best instructions there are.

The kernels are C++ (`src`, built by setup.py into one library); this room finds them (`library`), and drives them as a
backend (`backend`). It hands out `open_native` and `open_library`.
"""

from pcsr.runtime.native.backend import open_native
from pcsr.runtime.native.library import open_library

__all__ = ["open_library", "open_native"]
