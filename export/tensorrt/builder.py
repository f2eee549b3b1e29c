"""One ONNX graph to one plan, in the process that calls it. Runs in a child process: see `worker`.

One way for TensorRT 10, 11 and TensorRT-RTX, whose networks are strongly typed: precision is the ONNX file's. What
8.6 needs instead is in `weak_types`. Every name of the library is one that its versions have, which a test looks up.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from pcsr.export.tensorrt.weak_types import create_weak_network, narrow
from pcsr.runtime.backends.engines import MODULES, Flavour, Identity, Profile
from pcsr.runtime.errors import BackendError

__all__ = ["UnsupportedGraphError", "build_plan"]

# Messages of the builder that an error repeats.
MESSAGES = 3

Tell = Callable[[float], object]
"""Is given the share of the work done; False stops the builder."""


class UnsupportedGraphError(BackendError):
    """The parser does not take the graph."""


def build_plan(model: bytes, identity: Identity, tell: Tell, *, messages: list[str] | None = None) -> bytes:
    """Build an engine.

    Args:
        model: ONNX.
        identity: what it is to be.
        tell: is told how far the work is, where this TensorRT has a progress monitor.
        messages: takes all that the builder says, its table of layers included; see `layer_table`.

    Raises:
        BackendError: the library is missing or cannot build the graph.
        UnsupportedGraphError: its parser does not take the graph; names the node.
    """
    trt = _import(identity.flavour)
    log = _log(trt, messages)
    # TensorRT keeps none of these alive for those made from them: the names hold them until the plan is there.
    builder = _made(trt.Builder(log), "builder", log, identity)
    network = _made(_create_network(trt, builder), "network", log, identity)
    parser = _made(trt.OnnxParser(network, log), "parser", log, identity)
    if not parser.parse(model):
        raise UnsupportedGraphError(_parse_failure(parser, log, identity))
    config = _made(builder.create_builder_config(), "configuration", log, identity)
    _configure(trt, config, identity)
    if messages is not None:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if _is_weakly_typed(trt):
        narrow(trt, network, config, precision=identity.precision)
    for profile in identity.profiles:
        _add_profile(builder, network, config, profile, identity)
    monitor = _monitor(trt, tell)
    if monitor is not None:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(_build_failure(log, identity))
    return bytes(plan)


def _import(flavour: Flavour) -> Any:
    try:
        return importlib.import_module(MODULES[flavour])
    except ImportError as error:
        raise BackendError(f"{MODULES[flavour]} cannot be imported ({error})") from error


def _made(thing: Any, what: str, log: Any, identity: Identity) -> Any:
    if thing is None:
        raise BackendError(f"{_name(identity)} makes no {what}{_said(log)}")
    return thing


def _name(identity: Identity) -> str:
    title = "TensorRT-RTX" if identity.flavour == "tensorrt-rtx" else "TensorRT"
    return f"{title} {identity.version}"


def _is_weakly_typed(trt: Any) -> bool:
    return "STRONGLY_TYPED" not in trt.NetworkDefinitionCreationFlag.__members__


def _create_network(trt: Any, builder: Any) -> Any:
    if _is_weakly_typed(trt):
        return create_weak_network(trt, builder)
    # The bit of a flag moves between versions; its number is the member's value.
    return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def _configure(trt: Any, config: Any, identity: Identity) -> None:
    tuning = identity.tuning
    # On by default in some versions, and no more exact than half precision.
    config.clear_flag(trt.BuilderFlag.TF32)
    if tuning.opt_level is not None:
        config.builder_optimization_level = tuning.opt_level
    if tuning.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, tuning.workspace)
    if tuning.hardware_compat:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if tuning.version_compat:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if identity.flavour == "tensorrt-rtx":
        known = trt.ComputeCapability.__members__
        config.num_compute_capabilities = len(identity.compute_capabilities)
        for number, capability in enumerate(identity.compute_capabilities):
            member = known.get(f"SM{capability.replace('.', '')}")
            if member is None or not config.set_compute_capability(member, number):
                names = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in known if n.startswith("SM"))
                raise BackendError(
                    f"{_name(identity)} builds nothing for compute capability {capability}, only for {names}"
                )


def _add_profile(builder: Any, network: Any, config: Any, profile: Profile, identity: Identity) -> None:
    inputs = [network.get_input(number).name for number in range(network.num_inputs)]
    if set(inputs) != set(profile):
        raise BackendError(
            f"graph {identity.graph} has the inputs {', '.join(inputs)}, not those of the bundle format"
        )
    shapes = _made(builder.create_optimization_profile(), "profile", None, identity)
    for name in inputs:
        shapes.set_shape(name, profile[name].min, profile[name].opt, profile[name].max)
    if config.add_optimization_profile(shapes) < 0:
        raise BackendError(f"{_name(identity)} refuses the shapes for graph {identity.graph}")


def _log(trt: Any, messages: list[str] | None) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps what the library says of errors and warnings."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if messages is not None:
                messages.append(message)
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(" ".join(message.split()))

    return Log()


def _said(log: Any) -> str:
    errors = [] if log is None else list(dict.fromkeys(log.errors))[:MESSAGES]
    return f": {'; '.join(errors)}" if errors else ""


def _parse_failure(parser: Any, log: Any, identity: Identity) -> str:
    """Name the nodes that the parser stumbled over."""
    nodes = []
    for error in (parser.get_error(number) for number in range(parser.num_errors)):
        # 8.6 knows the number of a node only.
        name = error.node_name() if hasattr(error, "node_name") else f"number {error.node()}"
        operator = f" ({error.node_operator()})" if hasattr(error, "node_operator") else ""
        nodes.append((f"node {name}{operator}: " if name else "") + " ".join(error.desc().split()))
    reasons = "; ".join(nodes[:MESSAGES]) or _said(log).lstrip(": ") or "it says nothing more"
    return f"{_name(identity)} does not take graph {identity.graph}: {reasons}"


def _build_failure(log: Any, identity: Identity) -> str:
    said = _said(log)
    reason = f"{_name(identity)} cannot build graph {identity.graph}{said or ', and says nothing more'}"
    if "workspace" in said.lower():
        reason += "; raise --workspace or leave it away"
    elif "memory" in said.lower():
        reason += "; ask for smaller shapes (--max-lr, --points), or free memory of the GPU"
    return reason


def _monitor(trt: Any, tell: Tell) -> Any:
    """A progress monitor, where there is such a thing."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Adds up nested phases: each is a step of the one around it."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, list[int]] = {}
            self.share = 0.0

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.phases[phase] = [0, steps]

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self.phases:
                self.phases[phase][0] = step + 1
            self.share = max(self.share, nested_share(list(self.phases.values())))
            return tell(self.share) is not False

        def phase_finish(self, phase: str) -> None:
            self.phases.pop(phase, None)

    return Monitor()


def nested_share(phases: Sequence[Sequence[int]]) -> float:
    """Share of the work done, 0 to 1, from (steps done, steps) of each phase, the outermost first."""
    share = 0.0
    for done, steps in reversed(phases):
        share = min((done + share) / max(steps, 1), 1.0)
    return share
