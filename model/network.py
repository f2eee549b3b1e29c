"""What a PCSR network is made of (`NetworkSpec`), and the network itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import nn

from pcsr.model.carn import Carn
from pcsr.model.fsrcnn import Fsrcnn
from pcsr.model.heads import GEOMETRY, MLP
from pcsr.model.srresnet import SrResnet
from pcsr.runtime.errors import CheckpointError, OptionError

__all__ = ["BACKBONES", "Backbone", "Network", "NetworkSpec", "build", "skeleton"]

_T = TypeVar("_T")

Backbone = Carn | Fsrcnn | SrResnet

BACKBONES: Mapping[str, type[Backbone]] = MappingProxyType(
    {
        "carn": Carn,
        "fsrcnn": Fsrcnn,
        "srresnet": SrResnet,
    }
)

# Bounds for files from outside: several times what any published network of the kind uses, and small enough
# that a network at all of them at once is still stopped by MAX_PARAMETERS before memory is taken.
MAX_WIDTH = 1024
MAX_OPTION = 256
MAX_CLASSES = 16
MAX_LAYERS = 16
MAX_HIDDEN = 4096
MAX_PARAMETERS = 64_000_000  # 256 MB as float32
MAX_JSON = 65_536  # characters

_FIELDS = ("backbone", "width", "options", "upsamplers", "classifier", "mean", "std")


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """Everything needed to build a network, apart from its weights.

    Raises:
        OptionError: a field is out of the limits stated in this file, or fields contradict each other.
    """

    backbone: str
    """Key of `BACKBONES`."""
    width: int
    """Feature channels C of the backbone."""
    upsamplers: tuple[tuple[int, ...], ...]
    """Hidden sizes of each class's MLP, lightest first; a single entry for a heavy-only (phase 0) network."""
    classifier: tuple[int, ...] | None
    """Hidden sizes of the classifier; empty for a single linear layer, None for a heavy-only network."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Subtracted from an RGB picture in 0 to 1."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Divides the picture after that."""
    options: tuple[tuple[str, int], ...] = ()
    """What the backbone takes beside its width (its `OPTIONS`); what is left out has the authors' default.
    After construction all of them are present, in the order of `OPTIONS`."""

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise OptionError(f"unknown backbone {self.backbone!r}; known are {', '.join(BACKBONES)}")
        defaults = BACKBONES[self.backbone].OPTIONS
        given = dict(self.options)
        if surplus := sorted(set(given) - set(defaults)):
            raise OptionError(
                f"backbone {self.backbone} has no option {surplus[0]!r}; it has {', '.join(defaults)}"
            )
        object.__setattr__(
            self, "options", tuple((key, given.get(key, default)) for key, default in defaults.items())
        )
        _check_integer("width", self.width, MAX_WIDTH)
        for key, value in self.options:
            _check_integer(key, value, MAX_OPTION)
        if not 1 <= len(self.upsamplers) <= MAX_CLASSES:
            raise OptionError(f"{len(self.upsamplers)} upsamplers; a network has 1 to {MAX_CLASSES}")
        for index, hidden in enumerate(self.upsamplers):
            _check_hidden(f"upsampler {index}", hidden)
        if self.classifier is not None:
            _check_hidden("the classifier", self.classifier)
        if (self.classifier is None) != (len(self.upsamplers) == 1):
            classifier = "without" if self.classifier is None else "with"
            raise OptionError(
                f"{len(self.upsamplers)} upsamplers {classifier} a classifier; a complete network has a "
                "classifier and at least two, a heavy-only one has no classifier and one"
            )
        for name, triple, lowest in (("mean", self.mean, -1e3), ("std", self.std, 1e-3)):
            if len(triple) != 3 or not all(math.isfinite(x) and lowest <= x <= 1e3 for x in triple):
                raise OptionError(f"{name} {triple} must be three numbers from {lowest:g} to 1000")

    @property
    def classes(self) -> int:
        """M: the number of classes, that is of upsamplers."""
        return len(self.upsamplers)

    def to_json(self) -> str:
        """The spec as one line of JSON with sorted keys (the same spec gives the same bytes)."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        return json.dumps(fields | {"options": dict(self.options)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> NetworkSpec:
        """Read what `to_json` wrote, trusting nothing in it.

        Raises:
            CheckpointError: the text is no such JSON, or a value is outside the limits stated in this file.
        """
        if len(text) > MAX_JSON:
            raise CheckpointError(f"network spec of {len(text)} characters; a spec has at most {MAX_JSON}")
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"network spec is not JSON ({error})") from error
        if not isinstance(fields, dict) or set(fields) != set(_FIELDS):
            raise CheckpointError(
                f"network spec must be an object with exactly the keys {', '.join(_FIELDS)}"
            )
        try:
            return cls(
                backbone=_typed(fields, "backbone", str),
                width=_typed(fields, "width", int),
                options=tuple(_typed(fields, "options", dict).items()),
                upsamplers=tuple(_hidden(hidden) for hidden in _typed(fields, "upsamplers", list)),
                classifier=None if fields["classifier"] is None else _hidden(fields["classifier"]),
                mean=_triple(fields, "mean"),
                std=_triple(fields, "std"),
            )
        except OptionError as error:
            raise CheckpointError(f"network spec: {error}") from error


class Network(nn.Module):
    """A PCSR network: a backbone seen once per LR pixel, a classifier and upsamplers seen per HR pixel.

    Attributes:
        spec: what it was built from.
        backbone: (1, 3, h, w) normalised picture to (1, C, h, w) features.
        upsamplers: per class, lightest first, (n, C + 4) rows to (n, 3) residual colours.
        classifier: (n, C + 4) rows to (n, M) logits; None in a heavy-only network.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone: Backbone = BACKBONES[spec.backbone](spec.width, **dict(spec.options))
        inputs = spec.width + GEOMETRY
        self.upsamplers = nn.ModuleList(MLP(inputs, hidden, 3) for hidden in spec.upsamplers)
        self.classifier = None if spec.classifier is None else MLP(inputs, spec.classifier, spec.classes)

    @property
    def halo(self) -> int:
        """LR pixels that the backbone sees to each side of a pixel, computed from its layers."""
        return self.backbone.halo

    @property
    def heads(self) -> tuple[MLP, ...]:
        """The upsamplers, lightest first, with their type."""
        return tuple(head for head in self.upsamplers if isinstance(head, MLP))


def build(spec: NetworkSpec) -> Network:
    """Build a network with PyTorch's random weights, in eval mode.

    Raises:
        OptionError: the spec asks for too many parameters, or for layers that cannot exist.
    """
    skeleton(spec)
    return Network(spec).eval()


def skeleton(spec: NetworkSpec) -> Network:
    """Build a network whose tensors have shapes but no memory (PyTorch's meta device), in eval mode.

    Raises:
        OptionError: the spec asks for too many parameters, or for layers that cannot exist.
    """
    try:
        with torch.device("meta"):
            network = Network(spec).eval()
    except ValueError as error:
        raise OptionError(f"a {spec.backbone} of width {spec.width} cannot be built: {error}") from error
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if parameters > MAX_PARAMETERS:
        raise OptionError(f"the network would have {parameters} parameters; the limit is {MAX_PARAMETERS}")
    return network


def _check_integer(name: str, value: int, limit: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        # Files put anything here: only what prints short is printed, the rest is named by its type.
        shown = value if isinstance(value, int | float) and abs(value) < 1e18 else type(value).__name__
        raise OptionError(f"{name} is {shown}; it must be a whole number from 1 to {limit}")


def _check_hidden(name: str, hidden: tuple[int, ...]) -> None:
    if len(hidden) > MAX_LAYERS:
        raise OptionError(f"{name} has {len(hidden)} hidden layers; the limit is {MAX_LAYERS}")
    for size in hidden:
        _check_integer(f"a hidden layer of {name}", size, MAX_HIDDEN)


def _typed(fields: Mapping[str, Any], key: str, kind: type[_T]) -> _T:
    value = fields[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise OptionError(f"{key} must be a JSON {kind.__name__}, not {type(value).__name__}")
    return value


def _hidden(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise OptionError(f"hidden sizes must be a list of whole numbers, not {type(value).__name__}")
    return tuple(value)


def _triple(fields: Mapping[str, Any], key: str) -> tuple[float, float, float]:
    value = _typed(fields, key, list)
    if len(value) != 3 or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in value):
        raise OptionError(f"{key} must be a list of three numbers")
    try:
        return float(value[0]), float(value[1]), float(value[2])
    except OverflowError as error:
        raise OptionError(f"{key} holds a number without end") from error
