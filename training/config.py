"""What a training run is told: a YAML file, checked before anything is trained.

A key that is not known is an error that names the nearest one that is, and so is a contradiction: a run of
many hours must not end with a network that nobody asked for.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from pcsr.model.network import NetworkSpec, skeleton
from pcsr.runtime.console import parse_bytes
from pcsr.runtime.errors import OptionError

__all__ = [
    "Config",
    "DataConfig",
    "DecisionConfig",
    "DecisionError",
    "NetworkConfig",
    "PhaseConfig",
    "PhasesConfig",
    "Precision",
    "as_json",
    "load_config",
    "parse_config",
]

DecisionError = Literal["mixture", "expected"]
Precision = Literal["auto", "float32", "bfloat16"]

MAX_CONFIG_BYTES = 1 << 20


class NetworkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The network to train; fields as in `NetworkSpec`."""

    backbone: str
    width: int
    upsamplers: tuple[tuple[int, ...], ...]
    classifier: tuple[int, ...]
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    options: dict[str, int] = msgspec.field(default_factory=dict)

    def spec(self) -> NetworkSpec:
        """The whole network.

        Raises:
            OptionError: the fields contradict each other or are out of the limits of a network.
        """
        return NetworkSpec(
            backbone=self.backbone,
            width=self.width,
            upsamplers=self.upsamplers,
            classifier=self.classifier,
            mean=self.mean,
            std=self.std,
            options=tuple(self.options.items()),
        )


class DataConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pictures and what is cut out of them."""

    folder: str | None = None
    """Folder of training pictures; `--data` overrides it."""
    scales: tuple[float, float] = (1.5, 4.0)
    """Lowest and highest scale; one is drawn for each batch, evenly."""
    patch: int = 32
    """Side of a patch in LR pixels; round(patch * scale) HR pixels are cut out."""
    memory: str = "2GiB"
    """Decoded pictures up to this are held in memory, more in a mapped file in the cache folder."""

    def hr_side(self, scale: float) -> int:
        """HR pixels of a patch's side."""
        return round(self.patch * scale)


class PhaseConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one phase is optimised (Adam with betas 0.9 and 0.99, cosine to 0)."""

    steps: int | None = None
    """Steps in all; None where the run is planned in hours. Of phase 0, 0 keeps backbone and heavy upsampler as
    they are in `init`."""
    rate: float = 1e-3
    """Learning rate at the top of the schedule, for the batch given here."""
    batch: int = 16
    """Patches of a step on a CPU."""
    gpu_batch: int = 64
    """Patches of a step on a GPU; the rate grows with the square root of the ratio, as suits Adam."""
    pixels: int = 2048
    """HR pixels drawn from each patch."""
    warmup: int = 500
    """Steps over which the rate rises from 0, at most a tenth of a stretch."""
    restart: float = 0.5
    """Share of the rate from which an extended schedule falls again."""
    ema: float = 0.999
    """Decay of the averaged weights, which are what counts in the end."""
    clip: float = 1.0
    """Largest norm of the gradient."""


class DecisionConfig(PhaseConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How phase 1 is optimised."""

    error: DecisionError = "mixture"
    """What is minimised beside the balance of the classes: the error of the soft mixture (the authors' form), or
    the expected error of one class. See `losses.decision_loss`."""


class PhasesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Both phases of the paper."""

    backbone: PhaseConfig
    """Phase 0: the backbone and the heavy upsampler."""
    decision: DecisionConfig
    """Phase 1: the lighter upsamplers and the classifier."""

    def __getitem__(self, phase: int) -> PhaseConfig:
        return (self.backbone, self.decision)[phase]


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A training run."""

    network: NetworkConfig
    phases: PhasesConfig
    data: DataConfig = DataConfig()
    seed: int = 1
    hours: float | None = None
    """Plan the run by time instead of steps."""
    decision_share: float = 0.1
    """Share of the hours that phase 1 gets."""
    init: str | None = None
    """Checkpoint to start from instead of random weights."""
    precision: Precision = "auto"
    """Arithmetic of the network's passes: bfloat16 where the processor has it, else float32."""
    save_minutes: float = 5.0
    validate_minutes: float = 30.0


def load_config(path: Path, settings: Sequence[str] = (), *, hours: float | None = None) -> Config:
    """Read a YAML file.

    Args:
        path: the file, or one that ships with the toolkit by its bare name (carn, fsrcnn, srresnet, carn-m3).
        settings: "key=value" with a dotted key, each value in YAML, overriding the file's.
        hours: to plan by, instead of the file's steps or hours.

    Raises:
        OptionError: the file cannot be read, or it and the settings make no sense.
    """
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise OptionError("training needs PyYAML; run: pip install 'pcsr[train]'") from error
    path = _shipped(path)
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise OptionError(f"{path} has more than {MAX_CONFIG_BYTES} bytes; that is no configuration")
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"cannot read {path} ({error}); name a configuration in YAML") from error
    except yaml.YAMLError as error:
        raise OptionError(f"{path} is not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(tree, dict):
        raise OptionError(f"{path} must hold keys and values, like network: and phases:")
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise OptionError(f"--set {setting!r} must be key=value, like data.patch=32")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise OptionError(f"--set {setting!r}: the value is not YAML") from error
        if hours is not None and key.endswith(".steps"):
            raise OptionError(f"--hours and --set {setting} contradict each other; give one")
        _set(tree, key.split("."), value)
    if hours is not None:
        _set(tree, ["hours"], hours)
        phases = tree.get("phases")
        for phase in phases.values() if isinstance(phases, dict) else ():
            if isinstance(phase, dict):
                phase.pop("steps", None)
    return parse_config(tree, where=str(path))


def parse_config(tree: Mapping[str, Any], *, where: str) -> Config:
    """Check a tree of plain values and make a `Config` of it.

    Args:
        tree: as YAML or JSON hold it.
        where: named in errors.

    Raises:
        OptionError: an unknown key, a value of a wrong type or out of range, or a contradiction.
    """
    _check_keys(tree, Config, where, "")
    try:
        config = msgspec.convert(_numbers(tree), Config)
    except msgspec.ValidationError as error:
        raise OptionError(f"{where}: {error}") from error
    try:
        _check(config)
    except OptionError as error:
        raise OptionError(f"{where}: {error}") from error
    return config


def as_json(config: Config) -> str:
    """The configuration as one line of JSON with a fixed order of keys."""
    return msgspec.json.encode(config, order="deterministic").decode()


def _shipped(path: Path) -> Path:
    """A shipped configuration where no such file exists and the name is bare."""
    shipped = Path(__file__).parent / "configs" / f"{path.name.removesuffix('.yaml')}.yaml"
    return shipped if path.parent == Path() and not path.exists() and shipped.is_file() else path


def _set(tree: dict[str, Any], keys: list[str], value: object) -> None:
    for key in keys[:-1]:
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):
            raise OptionError(f"--set {'.'.join(keys)}: {key} is a value, not a group of keys")
        tree = below
    tree[keys[-1]] = value


def _number(value: Any) -> Any:
    """YAML 1.1 takes 1e-3 for text, as it has no dot; people write it all the same."""
    if isinstance(value, str):
        try:
            return float(value) if value[:1] in "+-.0123456789" and "e" in value.lower() else value
        except ValueError:
            return value
    return value


def _numbers(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _numbers(value) for key, value in tree.items()}
    return [_numbers(value) for value in tree] if isinstance(tree, list | tuple) else _number(tree)


def _check_keys(tree: Mapping[str, Any], kind: type[msgspec.Struct], where: str, prefix: str) -> None:
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    for key, value in tree.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.4)
            there = f"; did you mean {prefix}{near[0]}?" if near else f"; known are {', '.join(fields)}"
            raise OptionError(f"{where}: unknown key {prefix}{key}{there}")
        below = fields[key].type
        if isinstance(below, type) and issubclass(below, msgspec.Struct):
            if not isinstance(value, Mapping):
                raise OptionError(f"{where}: {prefix}{key} must be a group of keys")
            _check_keys(value, below, where, f"{prefix}{key}.")


def _check(config: Config) -> None:
    skeleton(config.network.spec())
    if len(config.network.upsamplers) < 2:
        raise OptionError("network.upsamplers must name two classes or more, the lightest first")
    low, high = config.data.scales
    if not (math.isfinite(high) and 1 <= low <= high <= 16):
        raise OptionError(f"data.scales {[low, high]} must be the lowest and the highest scale, from 1 to 16")
    if not 8 <= config.data.patch <= 256:
        raise OptionError(f"data.patch is {config.data.patch}; it must be 8 to 256 LR pixels")
    parse_bytes(config.data.memory)
    smallest = config.data.hr_side(low) ** 2
    for name in ("backbone", "decision"):
        phase: PhaseConfig = getattr(config.phases, name)
        where = f"phases.{name}"
        if (phase.steps is None) == (config.hours is None):
            both = "both steps and hours are given" if config.hours else f"{where}.steps is missing"
            raise OptionError(f"{both}; give steps for each phase, or hours for the whole run")
        if name == "backbone" and phase.steps == 0 and config.init is None:
            raise OptionError(f"{where}.steps is 0, so nothing trains a backbone; name a checkpoint in init")
        if phase.steps is not None and phase.steps < (name == "decision"):
            raise OptionError(f"{where}.steps is {phase.steps}; it must be 1 or more")
        if not 1 <= phase.pixels <= smallest:
            raise OptionError(
                f"{where}.pixels is {phase.pixels}, but a patch at the lowest scale {low:g} has {smallest}; "
                "ask for fewer pixels, a larger patch or a higher lowest scale"
            )
        if phase.batch < 1 or phase.gpu_batch < 1:
            raise OptionError(f"{where}: batch and gpu_batch must be 1 or more")
        if not (0 < phase.rate <= 1 and 0 < phase.restart <= 1 and phase.warmup >= 0):
            raise OptionError(f"{where}: rate and restart must be above 0, up to 1, and warmup 0 or more")
        if not (0 <= phase.ema < 1 and phase.clip > 0):
            raise OptionError(f"{where}: ema must be from 0 to below 1, and clip above 0")
    if config.hours is not None and not (math.isfinite(config.hours) and config.hours > 0):
        raise OptionError(f"hours is {config.hours}; it must be above 0")
    if not 0 < config.decision_share < 1:
        raise OptionError(f"decision_share is {config.decision_share}; it must be between 0 and 1")
    if not 0 <= config.seed < 1 << 63:
        raise OptionError(f"seed is {config.seed}; it must be a whole number from 0 up to 2^63")
    if not (config.save_minutes > 0 and config.validate_minutes > 0):
        raise OptionError("save_minutes and validate_minutes must be above 0")
