"""The examination: which trials run, in which order, and what their findings add up to."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pcsr.runtime.backends import ON_DEVICE
from pcsr.runtime.doctor.gpu import (
    FLAVOURS,
    check_cuda_libraries,
    check_cupy,
    check_driver,
    check_engine_cache,
    check_tensorrt,
    find_module,
)
from pcsr.runtime.doctor.graphs import (
    CPU,
    CUDA,
    check_onnxruntime,
    check_provider,
    check_upscaler,
    provider_key,
    providers_to_try,
)
from pcsr.runtime.doctor.host import check_host, check_libvips, check_native
from pcsr.runtime.doctor.report import Check, Report
from pcsr.runtime.machine import usable_cores
from pcsr.runtime.shipped import DEFAULT, shipped_bundles
from pcsr.runtime.trial import Trial, run_trials

__all__ = ["DEFAULT_TIMEOUT", "examine"]

DEFAULT_TIMEOUT = 30.0
"""Seconds for each child. The first CUDA call on a cold machine with many GPUs takes ten."""

# A child waits for the disk as much as for a core, but each holds some hundred megabytes.
LEAST_WORKERS, MOST_WORKERS = 2, 4


def examine(
    *,
    timeout: float = DEFAULT_TIMEOUT,
    engine_cache: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Report:
    """Find out what is installed and what works. Nothing is written anywhere.

    Args:
        timeout: seconds that each child process may take; one that takes longer is killed and reported.
        engine_cache: the only folder of engines; None: those in the bundles, then the user's cache folder.
        progress: called with the share of the work done, 0 to 1.
    """
    started = time.monotonic()
    workers = min(max(usable_cores(), LEAST_WORKERS), MOST_WORKERS)
    packages = importlib.metadata.packages_distributions()

    def run(codes: Mapping[str, str], begin: float, end: float) -> dict[str, Trial]:
        done = 0

        def advance() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(begin + (end - begin) * done / len(codes))

        return run_trials(codes, timeout=timeout, workers=workers, progress=advance)

    # What may be tried of the second round depends on what the first finds.
    first = run(_first_round(), 0, 0.6)
    driver = check_driver(first["driver"])
    listed = providers_to_try(first["onnxruntime"])
    second = run(_second_round(listed, driver=driver.works, engine_cache=engine_cache), 0.6, 1)
    trials = first | second

    checks: dict[str, Check] = {}

    def add(check: Check) -> Check:
        checks[check.key] = check
        return check

    for check in check_host():
        add(check)
    add(check_libvips(trials["libvips"]))
    add(check_native(trials["native"]))
    onnxruntime = add(
        check_onnxruntime(
            trials["onnxruntime"],
            distributions=_named(packages.get("onnxruntime", [])),
            driver=driver,
        )
    )
    for name in dict.fromkeys((CPU, CUDA, *listed)):
        trial = trials[provider_key(name)] if name in listed else None
        add(check_provider(name, trial, onnxruntime=onnxruntime, driver=driver))
    add(driver)
    add(check_cuda_libraries(trials["cuda_libraries"], driver=driver))
    cupy = _named(packages.get("cupy", []))
    add(check_cupy(trials.get("cupy"), driver=driver, distributions=cupy))
    for flavour in FLAVOURS:
        add(check_tensorrt(flavour, trials.get(flavour.key), driver=driver.works))
    add(check_engine_cache(engine_cache))
    for bundle, backend, device in _ways():
        needed = [checks["native" if backend == "native" else provider_key(CPU)]]
        if device != "cpu":
            # Both backends route with kernels that CuPy compiles.
            needed = [checks[provider_key(CUDA)] if backend == "onnxruntime" else driver, checks["cupy"]]
        needs = next((check for check in needed if not check.works), needed[0])
        trial = trials.get(f"{bundle} {backend} {device}")
        if backend == "native" and not needs.works:
            # Tried beside the kernels themselves, and says the same.
            trial = None
        add(check_upscaler(bundle, backend, device, trial, needs=needs))
    return Report(checks, time.monotonic() - started)


def _named(distributions: Sequence[str | None]) -> list[str]:
    # What an uninstallation left behind has no name.
    return sorted({name for name in distributions if name})


def _ways() -> Iterator[tuple[str, str, str]]:
    """Every shipped bundle, backend and kind of device that go together."""
    for device in ("cpu", "cuda:0"):
        # The default one also where it is not there: that is a finding.
        for bundle in dict.fromkeys((DEFAULT, *shipped_bundles())):
            for backend in ON_DEVICE[device.partition(":")[0]]:
                yield bundle, backend, device


def _child(function: str, *arguments: str, **options: bool) -> str:
    """Python source that calls a function of `children`."""
    given = ["report", *map(repr, arguments), *(f"{name}={value}" for name, value in options.items())]
    return f"from pcsr.runtime.doctor import children\nchildren.{function}({', '.join(given)})\n"


def _first_round() -> dict[str, str]:
    codes = {
        "driver": _child("driver"),
        "onnxruntime": _child("onnxruntime"),
        provider_key(CPU): _child("provider", CPU),
        "libvips": _child("libvips"),
        "native": _child("native"),
        "cuda_libraries": _child("cuda_libraries"),
    }
    for bundle, backend, device in _ways():
        if device == "cpu":
            codes[f"{bundle} {backend} {device}"] = _child("upscaler", bundle, backend, device)
    return codes


def _second_round(listed: list[str], *, driver: bool, engine_cache: Path | None) -> dict[str, str]:
    codes = {provider_key(name): _child("provider", name) for name in listed if name != CPU}
    if find_module(("cupy",)):
        codes["cupy"] = _child("cupy", run=driver)
    for flavour in FLAVOURS:
        if module := find_module(flavour.modules):
            codes[flavour.key] = _child(
                "tensorrt", module, runtime_always=flavour.stands_alone, driver=driver
            )
    for bundle, backend, device in _ways():
        if device != "cpu" and driver and (backend != "onnxruntime" or CUDA in listed):
            cache = [str(engine_cache)] if engine_cache is not None and backend == "tensorrt" else []
            codes[f"{bundle} {backend} {device}"] = _child("upscaler", bundle, backend, device, *cache)
    return codes
