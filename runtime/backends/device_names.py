"""How devices are named."""

from pcsr.runtime.errors import OptionError

__all__ = ["parse_device"]

KINDS = ("cpu", "cuda")


def parse_device(device: str) -> tuple[str, int]:
    """Kind, "cpu" or "cuda", and index of a device; OptionError if it is named otherwise."""
    kind, colon, index = device.partition(":")
    if kind not in KINDS or (colon and (kind == "cpu" or not index.isdecimal())):
        raise OptionError(f"no device is named {device!r}; use cpu, cuda or cuda:<index>")
    return kind, int(index or 0)
