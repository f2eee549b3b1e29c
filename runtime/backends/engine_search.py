"""Which engines fit a bundle and a machine, and where engines lie."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pcsr.runtime.backends.engines import OPTIONS, Engine, Flavour, Identity, read_engine
from pcsr.runtime.bundle import Bundle
from pcsr.runtime.errors import BackendError
from pcsr.runtime.shipped import FOLDER as SHIPPED

__all__ = [
    "Machine",
    "build_folder",
    "default_cache",
    "engine_folders",
    "find_engines",
    "machine_platform",
    "misfit",
]

# Major versions whose runtime loads a version-compatible plan of a major version (the vendor's documentation).
LOADED_BY = {8: (8, 10), 10: (10, 11), 11: (11,)}

# Beyond the number of fields that are compared.
DAMAGED = 100


@dataclass(frozen=True, slots=True)
class Machine:
    """Where an engine is to run: the TensorRT that is installed and the GPU, as in `Identity`."""

    flavour: Flavour
    version: str
    platform: str
    compute_capability: str
    gpu: str


def machine_platform() -> str:
    """Operating system and processor, like "linux-x86_64"."""
    return f"{platform.system()}-{platform.machine()}".lower()


def default_cache() -> Path:
    """Folder for engines of bundles that cannot be written to: `pcsr/engines` in the user's cache folder.

    Raises:
        BackendError: platformdirs is missing.
    """
    try:
        import platformdirs
    except ImportError as error:
        raise BackendError(
            "the user's cache folder cannot be found without platformdirs; run: pip install 'pcsr[trt]', "
            "or name a folder with --engine-cache"
        ) from error
    return platformdirs.user_cache_path("pcsr") / "engines"


def engine_folders(bundle: Bundle, engine_cache: str | os.PathLike[str] | None = None) -> tuple[Path, ...]:
    """Folders in which a bundle's engines are looked for, in this order.

    Args:
        bundle: theirs.
        engine_cache: the only folder, where one is named.
    """
    if engine_cache is not None:
        return (Path(engine_cache),)
    return bundle.path / "engines", default_cache()


def build_folder(bundle: Bundle, engine_cache: str | os.PathLike[str] | None = None) -> Path:
    """Where new engines go: the folder that is named, the bundle's own, or the user's cache folder.

    A bundle that ships with pcsr is never written to, nor is one whose folder cannot be.
    """
    if engine_cache is not None:
        return Path(engine_cache)
    own = bundle.path / "engines"
    shipped = Path(os.path.realpath(bundle.path)).is_relative_to(SHIPPED)
    if not shipped and os.access(own if own.exists() else bundle.path, os.W_OK | os.X_OK):
        return own
    return default_cache()


def find_engines(
    bundle: Bundle, precision: str, machine: Machine, *, folders: Sequence[Path]
) -> dict[str, Engine]:
    """The engines of all graphs of a bundle that fit a machine.

    Args:
        bundle: theirs.
        precision: "fp32", "fp16" or "int8".
        machine: where they are to run.
        folders: where to look, the first that has a fitting engine wins; see `engine_folders`.

    Returns:
        Engines by graph; their plans are whole, and are checked again when they are read.

    Raises:
        BundleError: the bundle lacks the precision.
        BackendError: a graph has no engine that fits; says how the nearest one differs, and the command to run.
    """
    found = {}
    for graph, file in bundle.graphs(engine_form(precision, machine.version)).items():
        misses: list[tuple[int, str]] = []
        for folder in folders:
            fitting = []
            for description in sorted(folder.glob(f"{graph}-{precision}-*.json")):
                try:
                    engine = read_engine(description)
                    rank, reason = misfit(engine.identity, file.sha256, machine)
                    if reason is None:
                        engine.read()
                        fitting.append(engine)
                    else:
                        misses.append((rank, f"{engine.path} {reason}"))
                except BackendError as error:
                    # Said before anything else: it may have been the one that fits.
                    misses.append((DAMAGED, str(error)))
            if fitting:
                found[graph] = min(fitting, key=lambda engine: _preference(engine, machine))
                break
        else:
            raise BackendError(_no_engine(bundle, graph, precision, machine, folders, misses))
    return found


def engine_form(precision: str, version: str) -> str:
    """The form whose graphs a version of TensorRT builds for a precision: 8 has one of its own for int8."""
    return "int8-trt8" if precision == "int8" and version.startswith("8.") else precision


def misfit(identity: Identity, graph_sha256: str, machine: Machine) -> tuple[int, str | None]:
    """How many fields agree before one does not, and what that one says; None: the engine fits."""
    full, options = identity.flavour == "tensorrt", identity.tuning
    ours, theirs = f"{machine.gpu} ({machine.compute_capability})", ", ".join(identity.compute_capabilities)
    any_ampere = full and options.hardware_compat and float(machine.compute_capability) >= 8
    checks = (
        (identity.graph_sha256 == graph_sha256, "was built from another graph (graph_sha256)"),
        (
            identity.flavour == machine.flavour,
            f"is of {identity.flavour}, not of {machine.flavour} (flavour)",
        ),
        (
            _loads(machine.version, identity),
            f"was built by version {identity.version}, here is {machine.version} (version)",
        ),
        (
            identity.platform == machine.platform,
            f"was built for {identity.platform}, this is {machine.platform} (platform)",
        ),
        (
            any_ampere or machine.compute_capability in identity.compute_capabilities,
            f"was built for compute capability {theirs}, this GPU is {ours} (compute_capabilities)",
        ),
        (
            not full or any_ampere or identity.gpu == machine.gpu,
            f"was built on {identity.gpu}, this GPU is {ours} (gpu)",
        ),
    )
    wrong = (rank for rank, (fits, _) in enumerate(checks) if not fits)
    rank = next(wrong, len(checks))
    return rank, checks[rank][1] if rank < len(checks) else None


def _loads(version: str, identity: Identity) -> bool:
    if identity.version == version:
        return True
    if not identity.tuning.version_compat:
        return False
    built, here = _numbers(identity.version), _numbers(version)
    return here >= built and here[0] in LOADED_BY.get(built[0], ())


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else 0 for part in version.split("."))


def _preference(engine: Engine, machine: Machine) -> tuple[bool, bool, int, str]:
    """Engines made for just this machine first; the name last, so that the choice is always the same."""
    identity, tuning = engine.identity, engine.identity.tuning
    return (
        tuning.hardware_compat,
        identity.version != machine.version or tuning.version_compat,
        len(identity.compute_capabilities),
        engine.path.name,
    )


def _no_engine(
    bundle: Bundle,
    graph: str,
    precision: str,
    machine: Machine,
    folders: Sequence[Path],
    misses: Sequence[tuple[int, str]],
) -> str:
    command = (
        f"pcsr-export {shlex.quote(str(bundle.path))} {OPTIONS[machine.flavour]} --precision {precision}"
    )
    if folders and folders[0] != bundle.path / "engines":
        command += f" --engine-cache {shlex.quote(str(folders[0]))}"
    places = " nor ".join(str(folder) for folder in folders)
    why = max(misses, key=lambda miss: miss[0])[1] if misses else f"there is none in {places}"
    return f"no engine of {precision} graph {graph} fits: {why}; build one with: {command}"
