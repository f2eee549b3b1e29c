"""What `gpu_check` proves: that a device gives the pictures that the CPU and the published inference give.

Each check takes the setup and a target, returns figures, and raises `NotProven` or `Skip`. Tolerances are wide where
other kernels may round otherwise, and narrow where only a mistake can differ; the figures say how near it was.
"""

from __future__ import annotations

import hashlib
import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_check_setup import Figures, NotProven, Setup, Skip, nearness, prove, prove_near
from gpu_check_targets import Target, photo
from numpy.typing import NDArray

from pcsr.model.checkpoint import load_checkpoint
from pcsr.model.reference import Reference, upscale
from pcsr.runtime.bicubic import resize
from pcsr.runtime.errors import BackendError, DeviceMemoryError
from pcsr.runtime.pictures import read_picture
from pcsr.validation.compare import compare_picture
from pcsr.validation.metrics import psnr
from pcsr.validation.results import Comparison, Rule
from pcsr.validation.sets import find_sets, read_truth

__all__ = ["PROOFS"]

RULES: Sequence[Mapping[str, Any]] = ({}, {"k": 1.0}, {"adaptive": True}, {"budget": 0.2}, {"refine": True})
LARGEST_DROP = 0.005
# Of the published program's pictures (docs/validation.md), as in the tests.
GOLDEN_TOLERANCE, FACTS_DECIBEL = 2e-4, 0.002
FACTS: Sequence[tuple[Mapping[str, Any], float, float]] = (
    ({"k": 0.0}, 29.4894, 29.136),
    ({"adaptive": True}, 29.4767, 14.467),
    ({"k": 0.25}, 29.4856, 21.92),
)


def opens(setup: Setup, target: Target) -> Figures:
    """It opened; how long that and the first picture took."""
    started = time.perf_counter()
    result = target.up(photo(24, 32), scale=4)
    return {
        "seconds to open": target.opened,
        "seconds of the first picture": time.perf_counter() - started,
        "provider": result.provider,
        "memory limit": target.up.memory_limit,
    }


def golden(setup: Setup, target: Target) -> Figures:
    """Cases computed with the authors' program, by their CARN-PCSR in fp32."""
    if target.half:
        raise Skip("for fp32")
    bundle = setup.reference_bundle()
    assert setup.reference is not None
    cases = setup.reference / "golden"
    entries = [
        entry
        for entry in json.loads((cases / "manifest.json").read_text())["cases"]
        if entry["name"].startswith("carn_") and entry["phase"] == 1
    ]
    worst, apart = 0.0, 0
    with _again(setup, target, bundle) as again:
        for entry in entries[: 3 if setup.small else None]:
            arrays = np.load(cases / f"{entry['name']}.npz")
            size = entry["hr_size_arg"]
            asked = {"scale": entry["scale"]} if size is None else {"size": tuple(size)}
            rule = {"adaptive": True} if entry["adaptive"] else {"k": float(entry["k"])}
            picture = arrays["lr"].astype(np.float32) / np.float32(255)
            result = again.up(picture, **asked, **rule, refine=entry["refinement"])
            differs = result.class_map != arrays["flag"]
            prove(
                int(differs.sum()) <= entry["ambiguous"],
                f"{entry['name']}: {int(differs.sum())} pixels in another class",
            )
            apart += int(differs.sum())
            if not differs.any():
                worst = max(worst, float(np.abs(result.image - arrays["sr"]).max()))
    prove(worst <= GOLDEN_TOLERANCE, f"a colour differs by {worst:.2g}")
    return {"cases": len(entries), "pixels in another class": apart, "largest": worst}


def facts(setup: Setup, target: Target) -> Figures:
    """The published results on the authors' sample picture."""
    if target.half:
        raise Skip("for fp32")
    bundle = setup.reference_bundle()
    assert setup.reference is not None
    truth = read_picture(setup.reference / "official" / "HR.png").pixels[..., :3]
    lr = resize(truth, scale=0.25)
    found: Figures = {}
    with _again(setup, target, bundle) as again:
        for rule, decibel, heavy in FACTS[: 1 if setup.small else None]:
            result = again.up(lr, size=truth.shape[:2], **rule)
            got, share = psnr(result.image, truth, shave=4), 100 * result.shares[1]
            found[str(dict(rule))] = {"psnr": got, "published": decibel, "heavy %": share}
            prove(
                abs(got - decibel) <= FACTS_DECIBEL and abs(share - heavy) <= 0.05,
                f"{rule}: {got:.4f} dB and {share:.3f} % heavy, published {decibel} dB and {heavy} %",
            )
    return found


def drop(setup: Setup, target: Target) -> Figures:
    """PSNR and classes beside the published inference in PyTorch, on whole pictures."""
    if setup.checkpoint is None:
        raise Skip("no checkpoint: give the bundle's with -c")
    oracle = _oracle(setup)
    pairs: list[Comparison] = []
    for scale in (4.0, 2.0):
        for name, truth in truths(setup):
            rules = (Rule("k", 0.0), Rule("adaptive", None))
            pairs += compare_picture(target.up, truth, name=name, scale=scale, rules=rules, oracle=oracle)
    drops = [pair.oracle.psnr - pair.runtime.psnr for pair in pairs if pair.oracle is not None]
    agreements = [pair.fidelity.agreement for pair in pairs if pair.fidelity is not None]
    found = {
        "pictures": len(pairs),
        "mean drop dB": float(np.mean(drops)),
        "largest drop dB": max(drops),
        "least agreement": min(agreements),
        "psnr": float(np.mean([pair.runtime.psnr for pair in pairs])),
    }
    prove(found["mean drop dB"] <= LARGEST_DROP, f"{found['mean drop dB']:.4f} dB are lost on the mean")
    return found


def rules(setup: Setup, target: Target) -> Figures:
    """Every rule beside the CPU road in fp32."""
    picture, found = _picture(setup), {}
    for rule in RULES:
        near = nearness(target.up(picture, scale=2.5, **rule), setup.on_cpu(picture, scale=2.5, **rule))
        found[str(dict(rule) or "k = 0")] = near
        prove_near(near, target.half, str(dict(rule)))
    return found


def tiles(setup: Setup, target: Target) -> Figures:
    """A picture in tiles is the picture in one."""
    picture, found = _picture(setup), {}
    tile = 24 if setup.small else 64
    with _again(setup, target, setup.bundle, tile=tile) as tiled:
        for rule in ({"budget": 1.0}, {"adaptive": True, "refine": True}):
            result = tiled.up(picture, scale=3, **rule)
            near = nearness(result, target.up(picture, scale=3, **rule))
            found[str(rule)] = {**near, "tile": result.tile}
            prove(max(result.tile) <= tile, f"tiles of {result.tile} where {tile} was asked for")
            prove_near(near, target.half, f"{rule} in tiles of {tile}")
    return found


def arrays(setup: Setup, target: Target) -> Figures:
    """Pictures on the device come back on the device, the same."""
    picture, found = _picture(setup), []
    expected = target.up(picture, scale=2, adaptive=True)
    result = target.up(target.put(picture), scale=2, adaptive=True)
    prove(not isinstance(result.image, np.ndarray), "the result came back to the host")
    np.testing.assert_array_equal(target.get(result.image), expected.image)
    np.testing.assert_array_equal(target.get(result.class_map), expected.class_map)
    for name, (array, back, stream) in setup.machine.others(picture).items():
        result = target.up(array, scale=2, adaptive=True, stream=stream)
        np.testing.assert_array_equal(back(result.image), expected.image, err_msg=name)
        found.append(name)
    return {"libraries": found}


def threads(setup: Setup, target: Target) -> Figures:
    """Eight threads at once get what one gets."""
    pictures = [photo(h, w, seed=h) for h, w in _sizes(setup, 5)]
    expected = [target.up(picture, scale=2, adaptive=True) for picture in pictures]
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            (number, pool.submit(target.up, pictures[number], scale=2, adaptive=True))
            for number in [*range(len(pictures))] * 8
        ]
        results = [(number, job.result()) for number, job in jobs]
    differ = sum(not np.array_equal(got.image, expected[number].image) for number, got in results)
    for number, got in results:
        prove_near(nearness(got, expected[number]), target.half, f"picture {number} among eight threads")
    return {"pictures": len(results), "not the same bytes": differ}


def memory(setup: Setup, target: Target) -> Figures:
    """Less memory means smaller tiles and the same picture; too little a typed error, and the next picture runs."""
    picture = photo(150, 140) if setup.small else photo(270, 480)
    expected = target.up(picture, scale=4, adaptive=True)
    found: Figures = {}
    # Each try opens an upscaler, which takes seconds on a GPU.
    limit, smaller = 64 * expected.image.nbytes, False
    while not smaller:
        limit = 3 * limit // 4
        try:
            with _again(setup, target, setup.bundle, memory_limit=limit) as less:
                result = less.up(picture, scale=4, adaptive=True)
        except DeviceMemoryError:
            break
        if result.tile == expected.tile:
            continue
        smaller = True
        near = nearness(result, expected)
        found[f"{limit >> 10} KiB"] = {"tile": result.tile, **near}
        prove_near(near, target.half, f"with {limit} bytes, in tiles of {result.tile}")
    prove(smaller, f"tiles are {expected.tile} whatever the limit, down to {limit} bytes")
    limit = (8 if setup.small else 64) << 20
    side = int((2 * limit / 48) ** 0.5)
    with _again(setup, target, setup.bundle, memory_limit=limit) as little:
        try:
            little.up(photo(side, side), scale=4, adaptive=True)
        except DeviceMemoryError as error:
            found["refused"] = str(error)
        else:
            raise NotProven(f"a picture whose result takes twice the limit of {limit} bytes ran")
        near = nearness(little.up(picture[:16, :16], scale=4), target.up(picture[:16, :16], scale=4))
        prove_near(near, target.half, "the picture after the refused one")
    return found


def nan(setup: Setup, target: Target) -> Figures:
    """What overflows in fp16 is redone in fp32 and counted."""
    if not target.half:
        raise Skip("for fp16")
    picture = photo(24, 32, dtype="float32")
    for factor in (1e2, 1e3, 1e4, 1e5):
        loud = picture * np.float32(factor)
        try:
            result = target.up(loud, scale=2)
        except BackendError as error:
            return {"refused at": factor, "error": str(error)}
        if result.redone_tiles:
            expected = setup.on_cpu(loud, scale=2)
            prove(bool(np.isfinite(result.image).all()), "the result is not finite")
            apart = float(np.abs(result.image - expected.image).max()) / factor
            prove(apart <= 1e-3, f"what was redone differs from fp32 by {apart:.2g} of the range")
            return {"overflows at": factor, "redone": result.redone_tiles, "largest": apart}
    raise Skip("nothing overflowed")


def mapped(setup: Setup, target: Target) -> Figures:
    """`map` gives what single calls give; how much of the copies it hides."""
    pictures = [photo(h, w, seed=w) for h, w in _sizes(setup, 6)] * 2
    started = time.perf_counter()
    single = [target.up(picture, scale=4) for picture in pictures]
    alone = time.perf_counter() - started
    started = time.perf_counter()
    results = list(target.up.map(pictures, scale=4))
    together = time.perf_counter() - started
    for number, (got, expected) in enumerate(zip(results, single, strict=True)):
        prove_near(nearness(got, expected), target.half, f"picture {number} of map")
    return {"seconds one by one": alone, "seconds by map": together}


def leak(setup: Setup, target: Target) -> Figures:
    """Hundreds of pictures of ten sizes leave no more memory taken than the first of them did."""
    sizes, count = _sizes(setup, 10), 40 if setup.small else 500
    pictures = [photo(h, w, seed=h) for h, w in sizes]
    seen = []
    for number in range(count):
        target.up(pictures[number % 10], scale=2, adaptive=number % 3 == 0)
        if number + 1 in (count // 5, count):
            setup.machine.synchronise()
            seen.append((setup.machine.memory_used(), _resident()))
    (device, host), (device_later, host_later) = seen
    found = {
        "pictures": count,
        "device bytes more": device_later - device,
        "host bytes more": host_later - host,
    }
    prove(max(device_later - device, host_later - host) <= 64 << 20, f"memory grew: {found}")
    return found


@contextmanager
def _again(setup: Setup, target: Target, bundle: Path, **options: Any) -> Iterator[Target]:
    """The target's backend opened once more; `Skip` where it cannot be, as for want of engines for that bundle."""
    backend, precision = target.label.split()
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(setup.machine.opened(bundle, backend, precision, **options))
        except BackendError as error:
            raise Skip(f"not opened: {error}") from error
        yield opened


def _oracle(setup: Setup) -> Callable[..., Reference]:
    """The published inference, on the GPU where PyTorch sees one, in true float32; once for all targets."""
    assert setup.checkpoint is not None
    device = setup.machine.device if torch.cuda.is_available() else "cpu"
    network = load_checkpoint(setup.checkpoint).to(device)

    def oracle(picture: NDArray[Any], **options: Any) -> Reference:
        key = f"{hashlib.sha256(picture.tobytes()).hexdigest()} {picture.shape} {sorted(options.items())}"
        if key not in setup.references:
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                setup.references[key] = upscale(network, picture, **options)
        return setup.references[key]

    return oracle


def truths(setup: Setup) -> list[tuple[str, NDArray[Any]]]:
    if setup.data is None or setup.small:
        side, seeds = (48, (1,)) if setup.small else (384, (0, 1, 2))
        return [(f"photo {seed}", photo(side, side, seed=seed)) for seed in seeds]
    paths = [path for each in find_sets(setup.data, limit=5) for path in each.paths]
    return [(path.stem, read_truth(path)) for path in paths]


def _picture(setup: Setup) -> NDArray[Any]:
    return photo(40, 52) if setup.small else photo(270, 480)


def _sizes(setup: Setup, count: int) -> list[tuple[int, int]]:
    step = 2 if setup.small else 24
    return [((6 + 3 * n) * step // 2, (9 + 2 * n) * step // 2) for n in range(count)]


def _resident() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


PROOFS: Mapping[str, Callable[[Setup, Target], Figures]] = {
    "open": opens,
    "golden": golden,
    "facts": facts,
    "drop": drop,
    "rules": rules,
    "tiles": tiles,
    "arrays": arrays,
    "threads": threads,
    "memory": memory,
    "nan": nan,
    "map": mapped,
    "leak": leak,
}
