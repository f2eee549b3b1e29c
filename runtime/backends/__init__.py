"""Engines behind one small protocol: what runs the graphs of a bundle.

`open_backend` picks by name; `Backend` is what the upscaler asks of any of them.
"""

from pcsr.runtime.backends.choice import BACKENDS, open_backend
from pcsr.runtime.backends.protocol import Backend, Tables

__all__ = ["BACKENDS", "Backend", "Tables", "open_backend"]
