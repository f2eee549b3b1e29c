"""What one run of the benchmark found: plain values, written as JSON and read back strictly."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from pcsr.runtime.atomic import write_whole
from pcsr.runtime.errors import OptionError

__all__ = [
    "Cell", "Difference", "Environment", "Growth", "Method", "Picture", "ProcessRun", "Processor", "Quartiles",
    "Record", "Row", "Source", "Speedup", "Stage", "Work", "label", "median_ms", "quartiles", "ratios", "read_record",
    "write_record",
]  # fmt: skip

Quartiles = tuple[float, float, float]
"""First quartile, median, third quartile."""


class _Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a record."""


class Peak(_Value, kw_only=True):
    """Ceilings of so many threads together: float32 multiply-adds, and bytes copied (read + write)."""

    gflops: float
    copy_gb_per_s: float
    instruction_set: str


class Processor(_Value, kw_only=True):
    """Who computed; `vector_units` and `vendor` make the class of machine."""

    model: str
    vendor: str
    vector_units: tuple[str, ...]
    flags: str
    caches: dict[str, str]
    """Like "L2": "2048K", of the first core."""
    cores: int
    """That this process may use."""


class Environment(_Value, kw_only=True):
    """What a reader needs to place the numbers."""

    processor: Processor
    load: tuple[float, float]
    """Of the machine over a minute, before and after."""
    python: str
    versions: dict[str, str]
    commit: str
    """With "+" where files differ from it."""
    date: str
    peaks: dict[str, Peak]
    """By number of threads; without a compiler, none."""


class Source(_Value, kw_only=True):
    """A network that was timed: its file, or random weights."""

    backbone: str
    file: str | None = None
    sha256: str | None = None


class Picture(_Value, kw_only=True):
    """The picture that all sizes were cut from, or mirrored to."""

    name: str
    sha256: str
    """Of its pixels."""
    truth: str | None = None


class Method(_Value, kw_only=True):
    """How it was measured."""

    rounds: int
    warm_up: int
    pause_ms: float
    """Slept after each call, so that threads which still spin cannot take the next competitor's cores."""


class Work(_Value, kw_only=True):
    """Multiply-accumulates that were needed, and the rate they were done at."""

    gmacs: float
    gflops: float
    """Two for each multiply-accumulate, 10⁹ a second, by the median time."""
    of_peak: float | None = None


class Stage(_Value, kw_only=True):
    """One stage of the runtime."""

    milliseconds: float
    """Median over the rounds."""
    work: Work | None = None


class Difference(_Value, kw_only=True):
    """From the same network in PyTorch (the oracle; the dense network), in levels of 8 bits over all samples."""

    largest: int
    mean: float
    agreement: float | None = None
    """Share of output pixels that the oracle sends to the same class."""


class Row(_Value, kw_only=True):
    """One competitor, by one rule if it has rules, in one cell."""

    competitor: str
    rule: str | None = None
    ran: str
    """Library or backend with its provider and precision."""
    seconds: tuple[float, ...]
    busy: float
    """Median of processor time over wall time times threads: 1 where all threads work all the time."""
    spun_ms: float
    """Median of processor time that went on in the pause after a call."""
    ratios: dict[str, Quartiles] = {}
    """Of the baselines' times, by the baseline, round by round."""
    work: Work | None = None
    stages: dict[str, Stage] = {}
    shares: tuple[float, ...] | None = None
    psnr: float | None = None
    difference: Difference | None = None

    @property
    def name(self) -> str:
        """Competitor and rule."""
        return label(self.competitor, self.rule)


class Cell(_Value, kw_only=True):
    """What was timed side by side: one size, one scale, one number of threads."""

    lr: str
    """WIDTHxHEIGHT."""
    output_pixels: int
    scale: float
    threads: int
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """Like "420x276 ×4, 2 threads"."""
        return f"{self.lr} ×{self.scale:g}, {self.threads} thread{'s' if self.threads > 1 else ''}"


class Growth(_Value, kw_only=True):
    """Time against size of one competitor at one scale and number of threads."""

    name: str
    scale: float
    threads: int
    ns_per_pixel: float
    """Slope of a line through all sizes' medians, every one weighing the same in relation to itself."""
    fixed_ms: float
    """Where the line begins."""
    largest_to_predicted: float
    """Time of the largest size to what the smallest predicts per output pixel."""


class Speedup(_Value, kw_only=True):
    """What more threads gave one competitor at one size and scale, round by round."""

    name: str
    lr: str
    scale: float
    threads: tuple[int, int]
    times: Quartiles


class ProcessRun(_Value, kw_only=True):
    """`pcsr-upscale PNG -o PNG` as a process of its own, start to end."""

    command: str
    lr: str
    scale: float
    seconds: tuple[float, ...]
    peak_mib: tuple[float, ...]
    """Largest resident size."""


class Record(_Value, kw_only=True):
    """One run of the benchmark."""

    format: Literal["pcsr-benchmark"] = "pcsr-benchmark"
    version: Literal[1] = 1
    environment: Environment
    network: Source
    dense: Source | None
    picture: Picture
    method: Method
    cells: tuple[Cell, ...]
    left_out: dict[str, str] = {}
    """Competitors that were asked for and did not run, with the reason."""
    growth: tuple[Growth, ...] = ()
    speedups: tuple[Speedup, ...] = ()
    process: ProcessRun | None = None


def label(competitor: str, rule: str | None) -> str:
    """How a row is named."""
    return competitor if rule is None else f"{competitor}, {rule}"


def quartiles(values: Sequence[float]) -> Quartiles:
    """First quartile, median, third quartile."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return float(low), float(middle), float(high)


def ratios(seconds: Sequence[float], baseline: Sequence[float]) -> Quartiles:
    """Quartiles of one competitor's time over another's, each pair of one round."""
    return quartiles([own / other for own, other in zip(seconds, baseline, strict=True)])


def median_ms(row: Row) -> float:
    """Of a call."""
    return 1000 * statistics.median(row.seconds)


def write_record(record: Record, file: Path) -> None:
    """Write it as JSON, whole or not at all."""
    write_whole(file, msgspec.json.format(msgspec.json.encode(record)) + b"\n")


def read_record(file: Path) -> Record:
    """Read what `write_record` wrote.

    Raises:
        OptionError: it cannot be read, or is no such record.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=Record)
    except OSError as error:
        raise OptionError(f"cannot read {file}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise OptionError(
            f"{file} is no record of this benchmark ({error}); make one with --json FILE"
        ) from error
