"""What `gpu_check` times: ours beside the oracle and dense networks, in turn, in one process.

Pictures and results stay on the device, so no bus is timed. A time is the host's from the call until the device is
idle; the stages of ours are timed by events of the device.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from bench_peers import dense_graph
from bench_record import quartiles, ratios
from bench_rounds import in_turn
from gpu_check_setup import Figures, Setup, Skip
from gpu_check_targets import Target, photo
from numpy.typing import NDArray

from pcsr.runtime.manifest import Manifest

__all__ = ["PEERS", "TIMINGS", "goals"]

ROUNDS = {False: 20, True: 2}
RULES: Mapping[str, Mapping[str, Any]] = {
    "k = 0": {"k": 0.0},
    "adaptive": {"adaptive": True},
    "20 % heavy": {"budget": 0.2},
}
ORACLE, DENSE_TENSORRT = "oracle, PyTorch eager, k = 0", "dense, TensorRT fp16"


@dataclass(frozen=True, slots=True)
class Case:
    """A picture's size and scale."""

    name: str
    lr: tuple[int, int]
    scale: int


CASES = {
    False: (
        Case("x4 to 1080p", (270, 480), 4),
        Case("x4 to 4K", (540, 960), 4),
        Case("x4 to 8K", (1080, 1920), 4),
        Case("x2 1080p to 4K", (1080, 1920), 2),
    ),
    True: (
        Case("x4 to 1080p", (16, 24), 4),
        Case("x4 to 4K", (20, 24), 4),
        Case("x4 to 8K", (24, 28), 4),
        Case("x2 1080p to 4K", (24, 20), 2),
    ),
}

Competitor = Callable[[], object]


def rounds(setup: Setup, competitors: Mapping[str, Competitor]) -> Figures:
    """Milliseconds of each in each round, and ratios to the first one; what cannot run says why."""
    able: dict[str, Competitor] = {}
    found: Figures = {}
    for name, run in competitors.items():
        try:
            run()
            setup.machine.synchronise()
        except Exception as error:  # memory, a compiler that is missing: the others are timed all the same
            found[name] = {"error": f"{type(error).__name__}: {error}"[:400]}
        else:
            able[name] = _waiting(setup, run)
    timed = in_turn(able, ROUNDS[setup.small])
    first = next(iter(timed.values())).seconds if timed else []
    for name, times in timed.items():
        found[name] = {
            "ms": [1000 * value for value in quartiles(times.seconds)],
            "of the first": list(ratios(times.seconds, first)),
            "all ms": [round(1000 * value, 4) for value in times.seconds],
        }
    return found


def _waiting(setup: Setup, run: Competitor) -> Competitor:
    def run_and_wait() -> None:
        run()
        setup.machine.synchronise()

    return run_and_wait


def sizes(setup: Setup, target: Target) -> Figures:
    """Ours at several sizes and by several rules, with shares and stages."""
    found: Figures = {}
    for case in CASES[setup.small]:
        there = target.put(photo(*case.lr))
        competitors = {name: ours(target, there, case.scale, rule) for name, rule in RULES.items()}
        found[case.name] = timed = rounds(setup, competitors)
        for name, rule in RULES.items():
            result = target.up(there, scale=case.scale, **rule)
            timed[name] |= {
                "shares": result.shares,
                "tile": result.tile,
                "stages ms": dict(result.milliseconds),
            }
    return found


def peers(setup: Setup, target: Target, *, case: int) -> Figures:
    """Ours beside the published inference and the dense network, x4."""
    import torch

    chosen = CASES[setup.small][case]
    picture = photo(*chosen.lr)
    there = target.put(picture)
    competitors = {f"pcsr, {name}": ours(target, there, 4, rule) for name, rule in RULES.items()}
    competitors |= _oracle(setup, picture) | _dense(setup, picture)
    try:
        return {chosen.name: rounds(setup, competitors)}
    finally:
        del competitors
        if torch.cuda.is_available():
            # What PyTorch keeps would be missing for ours at the next size.
            torch.cuda.empty_cache()


def pictures(setup: Setup, target: Target) -> Figures:
    """Easy, middle and hard pictures, and all pixels in one class."""
    case = CASES[setup.small][0]
    middle = photo(*case.lr)
    noise = np.random.default_rng(0).integers(-60, 61, middle.shape)
    easy = np.linspace(0, 255, middle.size).astype(np.uint8).reshape(middle.shape)
    each = {"easy": easy, "middle": middle, "hard": np.clip(middle + noise, 0, 255).astype(np.uint8)}
    there = {name: target.put(picture) for name, picture in each.items()}
    asked: dict[str, tuple[Any, Mapping[str, Any]]] = {
        name: (picture, {"k": 0.0}) for name, picture in there.items()
    }
    asked |= {
        "all light": (there["middle"], {"budget": 0.0}),
        "all heavy": (there["middle"], {"budget": 1.0}),
    }
    found = rounds(setup, {name: ours(target, picture, 4, rule) for name, (picture, rule) in asked.items()})
    for name, (picture, rule) in asked.items():
        found[name]["shares"] = target.up(picture, scale=4, **rule).shares
    return found


def stages(setup: Setup, target: Target) -> Figures:
    """Each stage beside the least that memory allows, by the bandwidth of a copy on this device."""
    case = CASES[setup.small][-2]
    bandwidth = setup.machine.bandwidth()
    there = target.put(photo(*case.lr))
    least = least_bytes(target.up.bundle.manifest, case, 2 if target.half else 4)
    target.up(there, scale=case.scale, adaptive=True)
    results = [target.up(there, scale=case.scale, adaptive=True) for _ in range(ROUNDS[setup.small])]
    found: Figures = {"case": case.name, "bytes per second": bandwidth, "stages": {}}
    for stage, count in least.items():
        milliseconds = float(np.median([result.milliseconds[stage] for result in results]))
        found["stages"][stage] = {"ms": milliseconds, "least ms": 1000 * count / bandwidth}
    return found


def least_bytes(manifest: Manifest, case: Case, table: int) -> dict[str, int]:
    """Bytes that each stage reads and writes at least, every number once.

    Args:
        manifest: of the bundle.
        case: size and scale.
        table: bytes of a number in a table.
    """
    h, w = case.lr
    lr, hr = h * w, h * w * case.scale**2
    classifier, *upsamplers = (lr * channels * table for channels in manifest.table_channels)
    return {
        "backbone": 3 * lr + classifier + sum(upsamplers),
        "classifier": classifier + 4 * hr,
        "decision": 4 * hr,
        # A colour in float32 for every pixel.
        "upsamplers": sum(upsamplers) + 12 * hr,
        "compose": 12 * hr + hr + 3 * hr,
    }


def ours(target: Target, picture: Any, scale: int, rule: Mapping[str, Any]) -> Competitor:
    return lambda: target.up(picture, scale=scale, **rule)


def _oracle(setup: Setup, picture: NDArray[Any]) -> dict[str, Competitor]:
    from pcsr.model.checkpoint import load_checkpoint
    from pcsr.model.reference import upscale

    if setup.checkpoint is None:
        return {}
    if not _pytorch_is_there(setup):
        return {ORACLE: _no_pytorch}
    network = load_checkpoint(setup.checkpoint).to(setup.machine.device)
    return {ORACLE: lambda: upscale(network, picture, scale=4)}


def _pytorch_is_there(setup: Setup) -> bool:
    """Whether PyTorch runs where ours does; on the processor of a machine with a GPU its times would mean nothing."""
    import torch

    return setup.machine.simulated or torch.cuda.is_available()


def _no_pytorch() -> None:
    raise Skip("this PyTorch sees no GPU; install its CUDA build")


def _dense(setup: Setup, picture: NDArray[Any]) -> dict[str, Competitor]:
    """The dense CARN with the weights of --dense, or random ones, which take the same time."""
    import torch

    from pcsr.model.dense import DenseNetwork, load_dense

    dense = DenseNetwork("carn", 64) if setup.dense is None else load_dense(setup.dense)
    dense.eval()
    competitors: dict[str, Competitor] = {DENSE_TENSORRT: _dense_tensorrt(setup, dense, picture.shape[:2])}
    names = ("dense, PyTorch fp32", "dense, PyTorch fp16 channels last", "dense, PyTorch fp16 compiled")
    if not _pytorch_is_there(setup):
        return competitors | dict.fromkeys(names, _no_pytorch)
    device = setup.machine.device
    planar = torch.from_numpy(picture).permute(2, 0, 1)[None].float().to(device) / 255
    half = load_half(dense).to(device, memory_format=torch.channels_last)
    lr = planar.half().contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(half, backend="eager" if setup.small else "inductor", dynamic=False)

    def run(network: Callable[..., Any], values: Any) -> Competitor:
        def forward() -> None:
            with torch.inference_mode():
                network(values)

        return forward

    runs = (run(dense.to(device), planar), run(half, lr), run(compiled, lr))
    return competitors | dict(zip(names, runs, strict=True))


def load_half(dense: Any) -> Any:
    """A copy of a network in fp16."""
    import copy

    return copy.deepcopy(dense).half()


def _dense_tensorrt(setup: Setup, dense: Any, size: Sequence[int]) -> Competitor:
    """Built for this very size, with input and output in fp16 on the device."""
    from pcsr.export.tensorrt.builder import build_plan
    from pcsr.runtime.backends.engines import MODULES, Identity, Range, Tuning
    from pcsr.runtime.device.context import Context, new_context

    model = dense_graph(load_half(dense).cpu())
    running: list[Competitor] = []

    def run() -> None:
        if not running:
            running.append(start())
        running[0]()

    def start() -> Competitor:
        flavour = next((each for each, name in MODULES.items() if importlib.util.find_spec(name)), None)
        if flavour is None:
            raise Skip("no TensorRT is installed")
        machine = setup.machine.engine_machine(flavour)
        shape = (1, 3, *size)
        identity = Identity(
            graph="dense",
            precision="fp16",
            graph_sha256=hashlib.sha256(model).hexdigest(),
            flavour=flavour,
            version=machine.version,
            platform=machine.platform,
            compute_capabilities=(machine.compute_capability,),
            gpu="" if flavour == "tensorrt-rtx" else machine.gpu,
            profiles=({"lr": Range(min=shape, opt=shape, max=shape)},),
            tuning=Tuning(),
        )
        plan = build_plan(model, identity, lambda share: True)
        if setup.machine.simulated:
            raise Skip(f"an engine of {len(plan)} bytes was built; it runs on a GPU alone")
        from pcsr.runtime.device.cupy_device import CupyDevice

        trt = importlib.import_module(MODULES[flavour])
        device = CupyDevice(int(setup.machine.device.partition(":")[2]), classes=2)
        logger = trt.Logger(trt.Logger.WARNING)
        runtime = trt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(plan)
        dense_context = Context("dense", engine, new_context(trt, engine), ["hr"])
        stream = device.stream()
        lr = stream.array(shape, np.float16)
        hr = stream.array((1, 3, 4 * size[0], 4 * size[1]), np.float16)
        stream.zero(lr)
        # The names keep alive what the engine needs.
        held = logger, runtime, engine

        def enqueue() -> None:
            assert held
            if not dense_context.enqueue(stream, {"lr": lr}, [hr], 0):
                raise RuntimeError("TensorRT refuses")

        return enqueue

    return run


def goals(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was aimed at on an H100 or H200 for 1920x1080 to 7680x4320, beside what was measured."""
    lines = []
    for result in results:
        timed = (result["figures"] or {}).get("x4 to 8K") if result["check"] == "peers-8k" else None
        ours = (timed or {}).get("pcsr, 20 % heavy", {}).get("ms")
        if timed is None or ours is None:
            continue
        lines.append(f"{result['target']}: {ours[1]:.1f} ms at 20 % heavy; the goal is 40 ms")
        for name, wanted in ((ORACLE, 8.0), (DENSE_TENSORRT, 1.0)):
            theirs = timed.get(name, {}).get("ms")
            if theirs is not None:
                ratio = theirs[1] / ours[1]
                lines.append(
                    f"{result['target']}: {ratio:.2f} x faster than {name}; the goal is {wanted:g} x"
                )
    return lines


# A check each size, as compilers take long: what is done is written. The goals are for the largest.
PEERS: Mapping[str, Callable[[Setup, Target], Figures]] = {
    "peers-8k": partial(peers, case=2),
    "peers-1080p": partial(peers, case=0),
    "peers-4k": partial(peers, case=1),
}
TIMINGS: Mapping[str, Callable[[Setup, Target], Figures]] = {
    "sizes": sizes,
    "pictures": pictures,
    "stages": stages,
    **PEERS,
}
