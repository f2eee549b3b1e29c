"""Keeping a folder of engines up to date: what fits stays, the rest is built under a lock and written whole."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pcsr.export.locks import held
from pcsr.export.tensorrt.worker import build_in_child
from pcsr.runtime.atomic import whole_file, write_whole
from pcsr.runtime.backends.engine_search import engine_form
from pcsr.runtime.backends.engines import Description, Engine, Identity, read_engine
from pcsr.runtime.bundle import Bundle
from pcsr.runtime.errors import BackendError

__all__ = ["Outcome", "build_engines", "first_difference"]

logger = logging.getLogger(__name__)

# How long to wait for another builder: it may have eight graphs to build.
LOCK_SECONDS = 3600.0
LOCK = ".engines.lock"

# Only files of these names are ever removed.
PARTIAL = re.compile(r"\.[a-z][a-z0-9_]*-fp\d+-[^/]*\.[0-9a-f]{8}\.partial")
PLAN = re.compile(r"[a-z][a-z0-9_]*-fp\d+-[0-9a-f]{12}\.plan")

Progress = Callable[[str], AbstractContextManager[Callable[[float], object]]]
"""Gives, for the name of a piece of work, a place to tell its share done to."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done for one engine.

    Attributes:
        engine: as it is now.
        reason: why it was built; None: it was there and fits.
        seconds: that building took.
    """

    engine: Engine
    reason: str | None
    seconds: float


def build_engines(
    bundle: Bundle,
    wanted: Sequence[Identity],
    folder: Path,
    *,
    progress: Progress = lambda _: nullcontext(lambda _: None),
) -> list[Outcome]:
    """Build the engines that a folder lacks.

    Args:
        bundle: whose graphs they are of.
        wanted: what they are to be.
        folder: where they lie; made if it is missing.
        progress: shows how far one engine is.

    Raises:
        BackendError: TensorRT refuses a graph, another builder holds the folder for too long, or the folder
            cannot be written to. Engines that were finished before stay.
        BundleError: a graph file is damaged.
    """
    with _locked(folder):
        _sweep(folder, bundle)
        return [_keep_or_build(bundle, identity, folder, progress) for identity in wanted]


def _keep_or_build(bundle: Bundle, identity: Identity, folder: Path, progress: Progress) -> Outcome:
    found = _find(identity, folder)
    if isinstance(found, Engine):
        return Outcome(found, None, 0.0)
    description, reason = folder / f"{identity.stem}.json", found
    logger.info("building %s: %s", identity.stem, reason)
    model = bundle.read(bundle.graphs(engine_form(identity.precision, identity.version))[identity.graph])
    started = time.monotonic()
    try:
        with progress(f"{identity.graph} {identity.precision}") as show:
            _build(model, identity, description, show)
    except OSError as error:
        raise BackendError(
            f"cannot write to {folder}: {error.strerror or error}; name another folder with --engine-cache"
        ) from error
    _remove_superseded(identity, folder)
    return Outcome(read_engine(description), reason, time.monotonic() - started)


def _build(model: bytes, identity: Identity, description: Path, show: Callable[[float], object]) -> None:
    """Write plan and description, or neither."""
    plan = description.with_suffix(".plan")
    # An old description must at no time stand beside a new plan.
    _unlink(description)
    try:
        with whole_file(plan) as temporary:
            build_in_child(model, identity, temporary, progress=show)
            content = temporary.read_bytes()
        written = Description(
            identity=identity, bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
        )
        write_whole(description, msgspec.json.format(msgspec.json.encode(written), indent=2) + b"\n")
    except BaseException:
        if not description.exists():
            _unlink(plan)
        raise


def _find(identity: Identity, folder: Path) -> Engine | str:
    """The engine if it is there and whole; else what is wrong with it, or with the one most like it."""
    description = folder / f"{identity.stem}.json"
    if description.exists():
        try:
            engine = read_engine(description)
            engine.read()
        except BackendError as error:
            return str(error)
        return engine
    others = list(_engines(folder.glob(f"{identity.graph}-{identity.precision}-*.json")))
    for engine in others:
        if _serves(engine.identity, identity):
            with suppress(BackendError):
                engine.read()
                return engine
    if not others:
        return "there is none yet"
    # The one that agrees longest says most.
    differences = [(*first_difference(other.identity, identity), other.path.name) for other in others]
    _, difference, name = max(differences, key=lambda each: (each[0], each[2]))
    return f"{name} {difference}"


def _serves(found: Identity, wanted: Identity) -> bool:
    """Whether an engine made ahead of time is for the GPUs wanted and for others besides."""
    same = msgspec.structs.replace(found, compute_capabilities=wanted.compute_capabilities) == wanted
    return same and set(wanted.compute_capabilities) <= set(found.compute_capabilities)


def first_difference(found: Identity, wanted: Identity) -> tuple[int, str]:
    """Number of the first field in which two engines differ, and both values."""
    for number, field in enumerate(Identity.__struct_fields__):
        there, here = getattr(found, field), getattr(wanted, field)
        if there != here:
            if field == "profiles":
                return number, f"has other {field}"
            return number, f"has {field} {_shown(there)}, wanted is {_shown(here)}"
    return len(Identity.__struct_fields__), "is the same"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, msgspec.Struct):
        return ", ".join(f"{name}={item}" for name, item in msgspec.structs.asdict(value).items())
    return str(value)[:64] or "(none)"


def _engines(descriptions: Iterable[Path]) -> Iterator[Engine]:
    """Those that can be read."""
    for description in sorted(descriptions):
        with suppress(BackendError):
            yield read_engine(description)


def _remove_superseded(identity: Identity, folder: Path) -> None:
    """Remove engines that differ from a new one in shapes or options alone: the newest is what was asked for."""
    for engine in _engines(folder.glob(f"{identity.graph}-{identity.precision}-*.json")):
        same = {"profiles": identity.profiles, "tuning": identity.tuning}
        if engine.identity != identity and msgspec.structs.replace(engine.identity, **same) == identity:
            logger.info("removing %s: it is superseded", engine.path.name)
            _remove(engine.path)


def _sweep(folder: Path, bundle: Bundle) -> None:
    """Remove what killed builders left, and in the bundle's own folder the engines of graphs it has no more.

    Call with the lock held. A folder that several bundles share keeps what is of others.
    """
    for path in folder.iterdir():
        orphan = PLAN.fullmatch(path.name) and not path.with_suffix(".json").exists()
        if orphan or PARTIAL.fullmatch(path.name):
            _unlink(path)
    if folder != bundle.path / "engines":
        return
    graphs = {entry.sha256 for files in bundle.manifest.graphs.values() for entry in files.values()}
    for engine in _engines(folder.glob("*.json")):
        if engine.identity.graph_sha256 not in graphs:
            logger.info("removing %s: the bundle has another graph (graph_sha256)", engine.path.name)
            _remove(engine.path)


def _remove(plan: Path) -> None:
    # The description first: a plan without one is nobody's, and is swept.
    _unlink(plan.with_suffix(".json"))
    _unlink(plan)


def _unlink(path: Path) -> None:
    # What cannot be removed stays until the next time: it harms nobody.
    with suppress(OSError):
        path.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder of engines; two builders would time each other's kernels on one GPU. The lock's file stays.

    Raises:
        BackendError: another builder holds it for too long, or the folder cannot be written to.
    """
    with held(
        folder / LOCK,
        place=folder,
        who="another builder",
        seconds=LOCK_SECONDS,
        error=BackendError,
        elsewhere="name another folder with --engine-cache",
    ):
        yield
