"""What a run tells: a bar that only goes forward, lines for logs, and a summary."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pcsr.runtime import Upscaler
from pcsr.runtime.errors import DiskError, PictureError
from pcsr.runtime.folder import telling
from pcsr.runtime.folder.plan import Job, Plan
from pcsr.runtime.folder.run import Outcome
from pcsr.runtime.folder.telling import Teller
from pcsr.runtime.options import Options
from pcsr.runtime.pictures import write_picture
from pcsr.runtime.report import line

OPTIONS = Options(scale=2)


def job(name: str) -> Job:
    return Job(name, Path("in") / name, Path("out") / name)


def teller(*names: str, as_json: bool = False, **skipped: int) -> Teller:
    plan = Plan(tuple(map(job, names)), Counter(skipped), Path("out"), one=False)
    return Teller(plan, OPTIONS, threads=1, as_json=as_json)


@pytest.fixture
def result(upscaler: Upscaler, tmp_path: Path, photo: Callable[..., Any]) -> Any:
    write_picture(tmp_path / "a.png", photo())
    return upscaler.upscale_file(tmp_path / "a.png", tmp_path / "b.png", scale=2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that a test makes go by."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(telling, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_without_a_terminal_a_line_every_ten_seconds_says_how_far_it_is(
    result: Any, clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pcsr.runtime.folder.telling")
    with teller("a", "b", "c", "d") as told:
        for second in range(1, 31):
            clock.seconds = second
            told.working(job("a"), second / 40)
        assert [record.getMessage() for record in caplog.records] == [
            "0 of 4 pictures, 0.0 megapixels/s, 0:02:30 left",
            "0 of 4 pictures, 0.0 megapixels/s, 0:02:20 left",
            "0 of 4 pictures, 0.0 megapixels/s, 0:02:10 left",
        ]
        caplog.clear()
        clock.seconds = 40
        told.done(Outcome(job("a"), result=result))
        assert "1 of 4 pictures, 0.0 megapixels/s, 0:02:00 left" in caplog.text


def test_what_was_done_before_makes_no_promise_of_speed(
    clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pcsr.runtime.folder.telling")
    with teller("a", "b", "c", "d") as told:
        told.done(Outcome(job("a")))
        told.done(Outcome(job("b")))
        clock.seconds = 10
        told.working(job("c"), 0.5)
    # Half of one in ten seconds, and one and a half to do.
    assert "2 of 4 pictures, 0.0 megapixels/s, 0:00:30 left" in caplog.text


def test_progress_only_goes_forward_while_pictures_overlap(result: Any) -> None:
    told, seen = teller("a", "b", "c"), []
    told._task = 0
    told._bar = SimpleNamespace(update=lambda _, completed, rate: seen.append(completed), stop=lambda: None)
    told.working(job("a"), 1.0)
    told.working(job("b"), 0.5)
    told.done(Outcome(job("a"), result=result))
    told.working(job("b"), 1.0)
    told.working(job("c"), 0.25)
    told.done(Outcome(job("b"), error=PictureError("bad")))
    told.done(Outcome(job("c"), result=result))
    assert seen == [1, 1.5, 1.5, 2, 2.25, 2.25, 3]


def test_the_summary_says_what_became_of_all_and_names_what_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "pcsr.runtime.folder.telling")
    name = os.fsdecode(b"caf\xe9.png")
    told = teller(name, "b.png", "c.png", hidden=2)
    told.done(Outcome(job(name), error=PictureError("it is\ndamaged")))
    told.done(Outcome(job("b.png"), error=MemoryError()))
    counts = {"done": 0, "failed": 2, "skipped": 0, "not tried": 1}
    caplog.clear()
    told.summary(SimpleNamespace(counts=counts, stopped=DiskError("cannot write out/b.png")))  # type: ignore[arg-type]
    assert [record.getMessage() for record in caplog.records] == [
        "3 pictures: 2 failed, 1 not tried",
        "passed over in folders: 2 hidden",
        r"failed: in/caf\xe9.png: it is damaged",
        "failed: in/b.png: out of memory; give a lower memory limit or ask for a smaller output",
        "stopped, because no other picture could be written either: cannot write out/b.png",
    ]


def test_each_line_is_one_line_and_harmless_to_a_terminal_whatever_the_name(result: Any) -> None:
    named = dataclasses.replace(result, target=Path("a\nb\x1b[2J 写.png"))
    assert line(named).startswith(r"a\nb\x1b[2J 写.png 62x48 light ")


def test_each_object_is_one_line_of_json_whatever_the_name(capsys: pytest.CaptureFixture[str]) -> None:
    told = teller("a\nb.png", as_json=True)
    told.done(Outcome(job("a\nb.png")))
    told.done(Outcome(job("a\nb.png"), error=ZeroDivisionError("two\nlines")))
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {"input": "in/a\nb.png", "output": "out/a\nb.png", "skipped": "done before"}
    assert second["error"] == "unforeseen ZeroDivisionError: two lines (--verbose shows where)"
