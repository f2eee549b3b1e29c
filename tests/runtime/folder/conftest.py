"""What the tests of folder runs share: pictures, the command in this process, and a run that can be listened to."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from pcsr.runtime import Upscaler
from pcsr.runtime.cli import main
from pcsr.runtime.files import FileRequest
from pcsr.runtime.folder.plan import Job, Plan, plan_jobs
from pcsr.runtime.folder.run import Outcome, Run
from pcsr.runtime.options import Options
from pcsr.runtime.pictures import write_picture


@pytest.fixture(scope="session")
def upscaler(small_bundle: Path) -> Iterator[Upscaler]:
    """The small bundle, opened once."""
    with Upscaler.open(small_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def photo() -> Callable[..., NDArray[np.uint8]]:
    """A function that cuts a piece out of a photograph, another one for each number."""

    def cut(h: int = 24, w: int = 31, number: int = 0) -> NDArray[np.uint8]:
        y, x = 40 + 7 * number % 100, 60 + 13 * number % 200
        return skimage.data.coffee()[y : y + h, x : x + w]

    return cut


@pytest.fixture
def folder_of(tmp_path: Path, photo: Callable[..., Any]) -> Callable[..., Path]:
    """A function that makes a folder `in` of so many PNG pictures: 00.png, 01.png, …"""

    def make(count: int, **size: int) -> Path:
        (tmp_path / "in").mkdir()
        for number in range(count):
            write_picture(tmp_path / "in" / f"{number:02}.png", photo(number=number, **size))
        return tmp_path / "in"

    return make


@pytest.fixture
def upscale(small_bundle: Path) -> Callable[..., Result]:
    """`pcsr-upscale` with the small bundle, twice the size, in this process."""

    def call(*arguments: object) -> Result:
        words = [*map(os.fspath, map(str, arguments)), "-b", str(small_bundle), "--threads", "1"]
        scale = [] if {"-s", "--size"} & set(words) else ["-s", "2"]
        return CliRunner().invoke(main, [*words, *scale])

    return call


@dataclass
class Heard:
    """A listener that keeps all it hears."""

    outcomes: list[Outcome] = field(default_factory=list)

    def working(self, job: Job, share: float) -> None:
        """Nothing."""

    def done(self, outcome: Outcome) -> None:
        """Keep it."""
        self.outcomes.append(outcome)

    def of(self, name: str) -> Outcome:
        """What became of the picture with this name."""
        (found,) = (each for each in self.outcomes if each.job.name == name)
        return found


@pytest.fixture
def run_of(upscaler: Upscaler) -> Callable[..., tuple[Run, Heard]]:
    """A function that makes a run over a folder, and who listens to it."""

    def make(source: Path, output: Path, *, scale: float = 2, **options: Any) -> tuple[Run, Heard]:
        plan = plan_of(source, output, **options)
        heard = Heard()
        first = plan.jobs[0]
        request = FileRequest(source=first.source, target=first.target, options=Options(scale=scale))
        return Run(upscaler=upscaler, plan=plan, request=request, listener=heard), heard

    return make


def plan_of(source: Path, output: Path, **options: Any) -> Plan:
    asked: dict[str, Any] = {
        "suffix_text": "", "form": None, "class_map": None, "overlay": None, "force": False, "resume": False,
    }  # fmt: skip
    return plan_jobs([source], output=output, **asked | options)


@pytest.fixture
def nobodys(upscaler: Upscaler) -> Iterator[Path]:
    """A folder of a user whom permissions hold back, also when the tests are run by root."""
    import onnxruntime  # noqa: F401  what is loaded late is not readable then
    import pyvips  # noqa: F401

    if os.geteuid() != 0:
        with tempfile.TemporaryDirectory() as own:
            yield Path(own)
        return
    nobody = 65534
    folder = tempfile.mkdtemp()
    os.chown(folder, nobody, nobody)
    os.setresuid(nobody, nobody, 0)
    try:
        yield Path(folder)
    finally:
        os.setresuid(0, 0, 0)
        shutil.rmtree(folder)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by relative name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="session")
def tree_of() -> Callable[[Path], dict[str, bytes]]:
    """A function that gives every file below a folder by relative name."""
    return tree
