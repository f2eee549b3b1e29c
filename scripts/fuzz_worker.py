"""The child process of the fuzz harness: does what a program would do with each input, and says how that ended.

A line of JSON asks (`target`, `path`, `out`), a line of JSON answers. Only a success or an error of the family is
foreseen; what else comes out of a case is a finding, and what ends this process is seen by the parent (`fuzz_watch`).
"""

from __future__ import annotations

import faulthandler
import importlib
import itertools
import json
import logging
import os
import resource
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pcsr.runtime.errors import PcsrError

if TYPE_CHECKING:
    from pcsr.runtime.pictures import Picture

Demand = Callable[[Path, Path], None]
"""Does with an input what a program would do. Takes its path and a folder to write to, which it leaves empty."""

# A limit that a picture of the corpus is far below. With it, what a picture within the limit may rightly take is
# little beside the growth of memory that is a finding.
MAX_PIXELS = 1 << 20
MAX_PAGES = 8
MEMORY_LIMIT = 256 << 20
LONGEST_MESSAGE = 4000


class BrokenPromiseError(Exception):
    """An input was accepted, and what came of it is not what the function promises."""


def promise(kept: bool, otherwise: str) -> None:
    """Make a finding of a promise that was not kept."""
    if not kept:
        raise BrokenPromiseError(otherwise)


def read_and_write(path: Path, out: Path) -> None:
    """A picture: all pages read, or else salvaged; what is accepted is written as PNG and TIFF, and read again."""
    try:
        _read(path, out, salvage=False)
    except PcsrError:
        # What is refused is refused, but must not be more than that where it is to be salvaged.
        with suppress(PcsrError):
            _read(path, out, salvage=True)
        raise


def _read(path: Path, out: Path, *, salvage: bool) -> None:
    from pcsr.runtime.pictures import open_picture

    with open_picture(path, max_pixels=MAX_PIXELS, salvage=salvage) as file:
        for number, picture in enumerate(itertools.islice(file.pages(), MAX_PAGES)):
            pixels = picture.pixels
            promise(pixels.dtype in (np.uint8, np.uint16, np.float32), f"pixels are {pixels.dtype}")
            promise(pixels.ndim == 2 or pixels.shape[2:] in ((3,), (4,)), f"shape {pixels.shape}")
            promise(0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS, f"shape {pixels.shape}")
            if number == 0:
                _write(picture, out)


def _write(picture: Picture, out: Path) -> None:
    from pcsr.runtime.pictures import read_picture, write_picture

    pixels = picture.pixels
    for suffix in (".tif",) if pixels.dtype == np.float32 else (".tif", ".png"):
        written = out / f"written{suffix}"
        try:
            write_picture(written, pixels, like=picture)
            again = read_picture(written).pixels
        except PcsrError as error:
            raise BrokenPromiseError(f"accepted, but as {suffix}: {error}") from error
        finally:
            written.unlink(missing_ok=True)
        promise(again.shape == pixels.shape, f"{suffix}: {again.shape} of {pixels.shape}")
        promise(np.array_equal(again, pixels, equal_nan=True), f"{suffix}: other pixels came back")


def run_bundle(path: Path, out: Path) -> None:
    """A bundle: every precision opened, and a small picture upscaled by it."""
    from pcsr.runtime import Upscaler
    from pcsr.runtime.bundle import read_bundle

    bundle = read_bundle(path)
    picture = np.arange(24 * 20 * 3, dtype=np.uint8).reshape(24, 20, 3)
    for precision in bundle.precisions:
        upscaler = Upscaler.open(path, precision=precision, threads=1, memory_limit=MEMORY_LIMIT)
        try:
            result = upscaler(picture, scale=2, adaptive=bundle.manifest.classes == 2)
        finally:
            upscaler.close()
        promise(result.image.shape == (48, 40, 3), f"image of {result.image.shape}")
        promise(int(result.class_map.max()) < bundle.manifest.classes, "a class that there is not")


def read_manifest(path: Path, out: Path) -> None:
    """A manifest: read, and every file that it names."""
    from pcsr.runtime.bundle import read_bundle
    from pcsr.runtime.manifest import FORMS

    bundle = read_bundle(path)
    manifest = bundle.manifest
    promise(bool(bundle.precisions), "no precision")
    promise(len(manifest.table_channels) == manifest.classes + 1, "another number of tables than networks")
    bundle.weights()
    bundle.sample()
    for precision in bundle.precisions:
        for form in FORMS[precision]:
            for entry in bundle.graphs(form).values():
                bundle.read(entry)
    if manifest.calibration is not None:
        bundle.calibration()


def load(path: Path, out: Path) -> None:
    """A checkpoint: loaded, and hashed."""
    import torch

    from pcsr.model.checkpoint import checkpoint_sha256, load_checkpoint

    torch.set_num_threads(1)
    network = load_checkpoint(path, complete=False)
    promise(
        all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values()), "weights not finite"
    )
    checkpoint_sha256(path)


def read_cache(path: Path, out: Path) -> None:
    """A calibration cache: read, held against the network that it says it is of, and made into scales."""
    from pcsr.export.int8.cache import check_fits, graph_scales, read_calibration

    calibration = read_calibration(path)
    models, layers = _network()
    check_fits(calibration, models, layers, cache="the cache", bundle="the network")
    for graph in calibration.graphs:
        graph_scales(calibration, graph)


@cache
def _network() -> tuple[Any, Any]:
    """The graphs and layers of the network that the caches of the corpus are of."""
    from pcsr.export.graphs import build_graphs
    from pcsr.export.int8.layers import layers_of
    from pcsr.runtime.bundle import read_bundle
    from pcsr.runtime.shipped import shipped_bundle

    bundle = read_bundle(shipped_bundle("fsrcnn"))
    manifest, weights = bundle.manifest, bundle.weights()
    models = build_graphs(manifest.network, manifest.normalisation, weights, half=False)
    return models, layers_of(models, weights)


# Imported before the first case of a target, whose time and memory they are not.
MODULES = {
    "picture": ("pyvips", "pcsr.runtime.pictures"),
    "bundle": ("onnxruntime", "pcsr.runtime.upscaler"),
    "manifest": ("pcsr.runtime.bundle",),
    "checkpoint": ("pcsr.model.checkpoint",),
    "calibration": ("pcsr.export.graphs", "pcsr.export.int8.cache"),
}
DEMANDS: Mapping[str, Demand] = {
    "picture": read_and_write,
    "bundle": run_bundle,
    "manifest": read_manifest,
    "checkpoint": load,
    "calibration": read_cache,
}


def serve(demands: Mapping[str, Demand]) -> None:
    """Answer until the parent closes the pipe."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What libraries print goes where their errors go; answers have the pipe for themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    faulthandler.enable()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    for line in sys.stdin:
        asked = json.loads(line)
        for module in MODULES.get(asked["target"], ()):
            importlib.import_module(module)
        answers.write(json.dumps(_answer(demands[asked["target"]], Path(asked["path"]), Path(asked["out"]))))
        answers.write("\n")
        answers.flush()


def _answer(demand: Demand, path: Path, out: Path) -> dict[str, object]:
    before = _restart_peak()
    verdict, kind, detail = "accepted", "", ""
    try:
        demand(path, out)
    except PcsrError as error:
        verdict, kind, detail = "refused", type(error).__name__, str(error)
    except BrokenPromiseError as error:
        # The folders are others each time; findings are counted by what is left.
        verdict, detail = "promise", str(error)
        kind = detail.replace(str(out), "OUT").replace(str(path), "PATH")
    except BaseException as error:
        # The lines of the error itself, not of what it came from, tell one finding from another.
        verdict, detail = "traceback", traceback.format_exc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"
    return {
        "verdict": verdict,
        "kind": kind,
        "detail": detail[-LONGEST_MESSAGE:],
        "growth": max(_peak() - before, 0),
    }


def _restart_peak() -> int:
    """Bytes in use; the largest number of bytes is counted anew from here, where the system can do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return _peak()


def _peak() -> int:
    try:
        return _status("VmHWM")
    except OSError:
        # Kilobytes, except on a Mac.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith(f"{name}:"))


if __name__ == "__main__":
    serve(DEMANDS)
