"""Engines behind one small protocol: what runs the graphs of a bundle.

`open_backend` picks by name; `protocol` says what the upscaler asks of them.
"""

from pcsr.runtime.backends.choice import BACKENDS, ON_DEVICE, Wanted, open_backend
from pcsr.runtime.backends.protocol import Backend, DeviceBackend, Painted, Road, Surveyed, Tables
from pcsr.runtime.backends.workers import Workers

__all__ = [
    "BACKENDS",
    "ON_DEVICE",
    "Backend",
    "DeviceBackend",
    "Painted",
    "Road",
    "Surveyed",
    "Tables",
    "Wanted",
    "Workers",
    "open_backend",
]
