"""Damage to bytes, whatever they mean. Every function draws from a `Random`, so a seed makes the case again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

# Of numbers in headers: none, the smallest, the edges of signed and unsigned ones.
EXTREMES = (0, 1, 0x7F, 0xFF)
# Headers stand at the start; half of the damage is to be there.
START = 256
LONGEST_RUN = 64
LARGEST = 4 << 20

Step = Callable[[bytearray, Random], str]
"""Damages in place, and says what it did."""


def damage_bytes(
    content: bytes, random: Random, *, others: Sequence[bytes] = (), most: int = 4
) -> tuple[bytes, str]:
    """Damage a content in one to `most` places.

    Args:
        content: to damage.
        random: decides.
        others: contents of the same kind, to splice with.
        most: steps.

    Returns:
        The damaged content, and the steps in words.
    """
    damaged, said = bytearray(content), []
    # Half of the time in one place alone, after which the most is left to be understood.
    steps = 1 if random.randrange(2) == 0 else random.randrange(most) + 1
    for _ in range(steps):
        if others and random.randrange(16) == 15:
            said.append(_splice(damaged, others[random.randrange(len(others))], random))
        else:
            said.append(STEPS[random.randrange(len(STEPS))](damaged, random))
        del damaged[LARGEST:]
    return bytes(damaged), ", ".join(said)


def extreme(random: Random, size: int) -> bytes:
    """A number of so many bytes that is likely to be at an edge, in either order of bytes."""
    first, rest = EXTREMES[random.randrange(len(EXTREMES))], random.randrange(2)
    # 0, 1, 0x7F…F, 0xF…F; and 0x7F, 0x80…0 and 0xFF with nothing after, or before, them.
    if first in (0, 1) or rest:
        number = first if rest == 0 else first << 8 * (size - 1)
    else:
        number = (first << 8 * (size - 1)) | ((1 << 8 * (size - 1)) - 1)
    return number.to_bytes(size, "little" if random.randrange(2) else "big")


def _at(damaged: bytearray, random: Random) -> int:
    """A place, half of the time near the start."""
    size = max(len(damaged), 1)
    return random.randrange(min(START, size)) if random.randrange(2) == 0 else random.randrange(size)


def _flip(damaged: bytearray, random: Random) -> str:
    at, bit = _at(damaged, random), random.randrange(8)
    if at < len(damaged):
        damaged[at] ^= 1 << bit
    return f"bit {bit} of byte {at} flipped"


def _number(damaged: bytearray, random: Random) -> str:
    at, size = _at(damaged, random), (2, 4, 4, 8)[random.randrange(4)]
    value = extreme(random, size)
    damaged[at : at + size] = value
    return f"bytes from {at} set to {value.hex()}"


def _byte(damaged: bytearray, random: Random) -> str:
    """One byte: off by one, or no letter, where everything else is right."""
    at, choice = _at(damaged, random), random.randrange(6)
    if at < len(damaged):
        old = damaged[at]
        damaged[at] = ((old + 1) % 256, (old - 1) % 256, (old + 16) % 256, 0, 0x80, 0xFF)[choice]
    return f"byte {at} {('plus 1', 'minus 1', 'plus 16', 'set to 0', 'set to 0x80', 'set to 0xff')[choice]}"


def _run(damaged: bytearray, random: Random) -> str:
    at, length = _at(damaged, random), random.randrange(LONGEST_RUN) + 1
    value = (0, 0xFF, 0x41)[random.randrange(3)]
    length = min(length, len(damaged) - at)
    damaged[at : at + length] = bytes([value]) * length
    return f"{length} bytes from {at} set to {value:#x}"


def _noise(damaged: bytearray, random: Random) -> str:
    at = _at(damaged, random)
    length = min(random.randrange(LONGEST_RUN) + 1, len(damaged) - at)
    values = bytes(random.randrange(256) for _ in range(length))
    damaged[at : at + length] = values
    return f"bytes from {at} set to {values.hex()}"


def _cut(damaged: bytearray, random: Random) -> str:
    at = random.randrange(max(len(damaged), 1))
    del damaged[at:]
    return f"cut at {at}"


def _drop(damaged: bytearray, random: Random) -> str:
    at, length = _at(damaged, random), _length(damaged, random)
    del damaged[at : at + length]
    return f"{length} bytes from {at} removed"


def _repeat(damaged: bytearray, random: Random) -> str:
    at, length = _at(damaged, random), _length(damaged, random)
    damaged[at:at] = damaged[at : at + length]
    return f"{length} bytes from {at} doubled"


def _swap(damaged: bytearray, random: Random) -> str:
    length = _length(damaged, random)
    one, other = sorted((_at(damaged, random), _at(damaged, random)))
    if one + length <= other:
        first, second = damaged[one : one + length], damaged[other : other + length]
        damaged[other : other + length] = first
        damaged[one : one + length] = second
    return f"{length} bytes from {one} and from {other} swapped"


def _length(damaged: bytearray, random: Random) -> int:
    most = LONGEST_RUN if random.randrange(2) == 0 else max(len(damaged) // 2, 1)
    return random.randrange(most) + 1


def _splice(damaged: bytearray, other: bytes, random: Random) -> str:
    at, start = random.randrange(max(len(damaged), 1)), random.randrange(max(len(other), 1))
    damaged[at:] = other[start:]
    return f"from {at} on another file's content from {start} on"


STEPS: tuple[Step, ...] = (_flip, _number, _byte, _run, _noise, _number, _cut, _drop, _repeat, _swap)
