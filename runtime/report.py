"""What became of a picture file: a line for people, an object for programs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from pcsr.runtime.console import format_size
from pcsr.runtime.files import FileResult
from pcsr.runtime.options import Account, Options

__all__ = ["failure", "line", "name_of", "report"]


def name_of(path: os.PathLike[str] | str) -> str:
    """A path as text that can be printed and put into JSON, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def line(result: FileResult) -> str:
    """For people: `photo_x4.png 3840x2160 light 71.39 % heavy 28.61 % 1.64 s`."""
    several = [f"class {number}" for number in range(len(result.shares))]
    names = ["light", "heavy"] if len(several) == 2 else several
    shares = " ".join(f"{name} {100 * share:.2f} %" for name, share in zip(names, result.shares, strict=True))
    pages = f" {len(result.pages)} pages" if len(result.pages) > 1 else ""
    seconds = sum(result.milliseconds.values()) / 1000
    # One line, which does nothing to a terminal.
    name = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in name_of(result.target)
    )
    return f"{name} {format_size(result.size)}{pages} {shares} {seconds:.2f} s"


def report(result: FileResult, options: Options, *, threads: int) -> Mapping[str, object]:
    """For programs: sizes as WIDTHxHEIGHT, lightest class first, null where nothing applies.

    Of several pages, shares and cost are those of all of them; each page's own stand in "pages".
    """
    first = result.pages[0]
    found: dict[str, object] = {
        "input": name_of(result.source),
        "output": name_of(result.target),
        "size": format_size(result.size),
        "scale": options.scale,
        "decision": _decision(first),
        "shares": list(result.shares),
        "cost": {
            name: sum(getattr(page.cost, name) for page in result.pages)
            for name in ("flops", "flops_all_heavy", "macs", "macs_all_heavy")
        },
        "milliseconds": {
            **{
                stage: round(sum(page.milliseconds[stage] for page in result.pages), 3)
                for stage in first.milliseconds
                if stage != "total"
            },
            **{stage: round(spent, 3) for stage, spent in result.milliseconds.items()},
            "total": round(sum(result.milliseconds.values()), 3),
        },
        "tile": format_size(first.tile),
        "backend": first.backend,
        "provider": first.provider,
        "precision": first.precision,
        "threads": threads,
        "notes": list(result.notes),
    }
    if len(result.pages) > 1:
        found["pages"] = [{"decision": _decision(page), "shares": list(page.shares)} for page in result.pages]
    return found


def failure(source: os.PathLike[str], target: os.PathLike[str], message: str) -> Mapping[str, object]:
    """For programs, of a picture that failed."""
    return {"input": name_of(source), "output": name_of(target), "error": message}


def _decision(account: Account) -> Mapping[str, object]:
    thresholds = None
    if account.decision.thresholds is not None:
        # One that no pixel is to reach is infinite, for which JSON has no number.
        thresholds = [each if math.isfinite(each) else None for each in account.decision.thresholds]
    return {"kind": account.decision.kind, "value": account.decision.value, "thresholds": thresholds}
