"""Damage to JSON: values of the wrong type or size, keys missing and surplus and doubled, texts that are paths."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

from fuzz_bytes import damage_bytes

DEEP = 100_000

# As text, since Python's own values cannot say all of it: numbers without an end, an object with a key twice.
TEXTS = (
    "null",
    "true",
    "0",
    "1",
    "-1",
    "0.5",
    '""',
    "[]",
    "{}",
    "[[]]",
    '{"": null}',
    "2147483647",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "1" + "0" * 400,
    "1e308",
    "1e999",
    "-1e999",
    "1e-320",
    "-0.0",
    "NaN",
    "Infinity",
    "-Infinity",
    '"NaN"',
    '"1"',
    '"../x"',
    '"/etc/hostname"',
    '"a/../../x"',
    '"graphs/../manifest.json"',
    '"."',
    '"manifest.json"',
    r'"C:\\x"',
    r'"a\u0000b"',
    r'"\ud800"',
    r'"\u001b[31m"',
    '"é"',
    '"' + "f" * 64 + '"',
    '"' + "x" * 100_000 + '"',
    "[" * DEEP + "]" * DEEP,
    '{"a":' * DEEP + "1" + "}" * DEEP,
    "[" + "0," * 100_000 + "0]",
    '{"a": 1, "a": 2}',
)
# No text of a real file holds it.
HOLE = "\u2400hole\u2400"


def damage_json(content: bytes, random: Random) -> tuple[bytes, str]:
    """Damage a JSON document in one to three places, or now and then its bytes.

    Args:
        content: JSON whose top is an object.
        random: decides.
    """
    if random.randrange(8) == 7:
        return damage_bytes(content, random)
    top, said = json.loads(content), []
    text = ""
    for _ in range(random.randrange(3) + 1):
        fill, what = _damage_somewhere(top, random)
        said.append(what)
        text = json.dumps(top).replace(json.dumps(HOLE), fill)
        if fill:
            break
    return text.encode("utf-8", "surrogatepass"), ", ".join(said)


def _damage_somewhere(top: dict[str, Any], random: Random) -> tuple[str, str]:
    """Change one place; the text that belongs where HOLE is now, and what was done."""
    holder, key, where = _pick(top, random)
    match random.randrange(8):
        case 0:
            del holder[key]
            return "", f"{where} removed"
        case 1 if isinstance(holder, dict):
            holder[("surplus", "", "../x", "\x1b[31m")[random.randrange(4)]] = copy.deepcopy(holder[key])
            return "", f"a surplus key beside {where}"
        case 2 if isinstance(holder, dict):
            # Where a key is there twice, readers differ in which one they see.
            fill = f"{json.dumps(holder[key])}, {json.dumps(key)}: {TEXTS[random.randrange(len(TEXTS))]}"
            holder[key] = HOLE
            return fill, f"{where} twice"
        case 3:
            other, its_key, from_where = _pick(top, random)
            holder[key] = copy.deepcopy(other[its_key])
            return "", f"{where} replaced by {from_where}"
        case 4 if type(holder[key]) in (int, float):
            holder[key] = _near(holder[key], random)
            return "", f"{where} is {holder[key]}"
        case 4 if isinstance(holder[key], str):
            changed, what = damage_bytes(holder[key].encode(), random, most=1)
            holder[key] = changed.decode("latin-1")
            return "", f"{where}: {what}"
        case 5 if isinstance(holder[key], list):
            holder[key] *= random.randrange(40) + 2
            return "", f"{where} repeated"
        case _:
            fill = TEXTS[random.randrange(len(TEXTS))]
            holder[key] = HOLE
            return fill, f"{where} is {fill[:40]}"


def _near(value: float, random: Random) -> float:
    return (value + 1, value - 1, -value, value * 2, value * 1000, value / 3, 0)[random.randrange(7)]


def _pick(top: dict[str, Any], random: Random) -> tuple[Any, Any, str]:
    """A place in the document: who holds it, under which key, and its path. Small branches as likely as large ones."""
    holder: Any = top
    path = []
    while True:
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = keys[random.randrange(len(keys))]
        path.append(str(key))
        below = holder[key]
        if not isinstance(below, dict | list) or not below or random.randrange(4) == 3:
            return holder, key, ".".join(path)
        holder = below
