"""How a model was made: what its checkpoint's metadata says, held against the repository, and that part of its card."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_card_results import Results

TITLES = {"carn": "CARN", "fsrcnn": "FSRCNN", "srresnet": "SRResNet"}
WIDTH = 118
UNSEEN = {"hours", "decision_share", "data.folder", "data.memory", "save_minutes", "validate_minutes"}
"""Keys without a part in the network: hours were turned into the steps of the plan."""


@dataclass(frozen=True, slots=True)
class Made:
    """How a model was made.

    Attributes:
        config: of the run.
        repository: the configuration of the same name in the repository.
        plan: stretches of the schedule.
        history: what happened, oldest first.
        data_sha256: of the training pictures.
        licences: of the training pictures, with their numbers.
    """

    config: dict[str, Any]
    repository: dict[str, Any]
    plan: tuple[dict[str, Any], ...]
    history: tuple[dict[str, Any], ...]
    data_sha256: str
    licences: tuple[tuple[str, int], ...]

    @property
    def title(self) -> str:
        """Name of the network."""
        return f"{TITLES[self.config['network']['backbone']]}-PCSR"

    @property
    def steps(self) -> dict[str, int]:
        """Trained steps of each phase."""
        return {
            phase: sum(stretch["steps"] for stretch in self.plan if stretch["phase"] == phase)
            for phase in self.config["phases"]
        }

    @property
    def whole(self) -> dict[str, int]:
        """Steps of each phase that the repository's configuration asks for."""
        return {phase: keys["steps"] for phase, keys in self.repository["phases"].items()}

    @property
    def started_from(self) -> str:
        """File name of the checkpoint that the run started from; "" for random weights."""
        return Path(self.config["init"] or "").name

    @property
    def preview(self) -> bool:
        """Whether a phase had fewer steps than the repository's configuration asks for."""
        return any(self.steps[phase] < steps for phase, steps in self.whole.items())


def prose(text: str) -> str:
    """A paragraph in lines of this repository's width."""
    return textwrap.fill(text.strip(), WIDTH, break_long_words=False, break_on_hyphens=False)


def preview_section(name: str, made: Made) -> str:
    """That the model is a preview, and what replaces it; "" where it is none."""
    if not made.preview:
        return ""
    start = f", starting from `{made.started_from}`" if made.started_from else ""
    text = prose(
        f"**Preview.** Trained for {in_steps(made.steps)} steps (backbone + decision){start}, where "
        f"[the configuration](../../training/configs/{name}.yaml) asks for {in_steps(made.whole)}. To replace it, "
        "train all of them on a GPU and make the bundle anew; then this card."
    )
    return "\n".join(
        [
            text,
            "",
            "```console",
            f"$ pcsr-train {name} --data PHOTOGRAPHS --out run --device cuda",
            f"$ cp run/network.safetensors training/networks/{name}.safetensors",
            f"$ pcsr-export training/networks/{name}.safetensors -o build/{name}",
            f"$ pcsr-calibrate build/{name} --data PHOTOGRAPHS -o training/networks/{name}.calibration.json --force",
            "$ make bundles",
            "```",
        ]
    )


def licence_section(made: Made) -> str:
    """Licence of the weights, and the licences of the pictures."""
    total = sum(count for _, count in made.licences)
    listed = ", ".join(f"{licence} ({count})" for licence, count in made.licences)
    alike = sum(count for licence, count in made.licences if licence.startswith("CC-BY-SA"))
    text = (
        f"The weights are licensed like the project: Apache-2.0. They were trained on {total} photographs: {listed}. "
        "[training-pictures.md](training-pictures.md) names author, source, licence and processing of each."
    )
    if alike:
        text += f" Mind that {alike} of them are under CC-BY-SA, which asks that adaptations be shared alike."
    return f"## Licence\n\n{prose(text)}"


def training_section(results: Results, made: Made) -> str:
    """Configuration, hardware, hours, schedule, command and history."""
    config, network = made.config, made.config["network"]
    first = made.history[0]
    batches = {
        phase: keys["gpu_batch" if first["device"] == "cuda" else "batch"]
        for phase, keys in config["phases"].items()
    }
    options = [f"width {network['width']}", *(f"{key} {value}" for key, value in network["options"].items())]
    rows = {
        "network": f"{made.title}: {', '.join(options)}",
        "hidden layers of the upsamplers, lightest first": "; ".join(map(_layers, network["upsamplers"])),
        "hidden layers of the classifier": _layers(network["classifier"]),
        "scales": "{:g} to {:g}".format(*config["data"]["scales"]),
        "steps, backbone + decision": in_steps(made.steps),
        "patches a step": f"{in_steps(batches)}, of {config['data']['patch']}×{config['data']['patch']} LR pixels",
        "seed": str(config["seed"]),
        "started from": f"`{made.started_from}`" if made.started_from else "random weights",
        "hardware": results.trained_on or "not recorded",
        "hours": "not recorded" if results.training is None else f"{results.training.hours:.3g}",
        "training pictures": f"{first['pictures']}, sha256 `{made.data_sha256}`",
        "checkpoint": f"`training/networks/{results.name}.safetensors`, sha256 `{results.checkpoint_sha256}`",
        "bundle": f"`runtime/bundles/{results.name}`, sha256 of its manifest `{results.manifest_sha256}`",
    }
    repeats = "The command that repeats it:"
    if any(event["event"] == "extended" for event in made.history):
        repeats = "It was planned anew on the way; this command trains as many steps under one schedule:"
    schedule = ", ".join(map(_stretch, made.plan))
    return "\n".join(
        [
            "## Training",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows.items()),
            "",
            prose(f"Schedule, each part a cosine towards 0: {schedule}. {repeats}"),
            "",
            "```console",
            f"$ {_command(results.name, made)}",
            "```",
            "",
            "What happened:",
            "",
            *_history(results, made),
        ]
    )


def in_steps(by_phase: Mapping[str, int]) -> str:
    """Like "22,000 + 6,000"."""
    return " + ".join(f"{count:,}" for count in by_phase.values())


def _history(results: Results, made: Made) -> list[str]:
    planned = {} if results.training is None else {one.step: one for one in results.training.plans}
    lines = []
    for event in made.history:
        threads = f", threads: {event['threads']}" if event["device"] == "cpu" else ""
        line = (
            f"{event['event']} at step {event['step']:,}: {event['device']}{threads}, {event['precision']}, "
            f"PyTorch {event['pytorch']}"
        )
        plan = planned.get(event["step"])
        if plan is not None and event["event"] in ("started", "extended"):
            line += f"; {plan.time[:10]}, planned: {', '.join(map(_stretch, plan.plan))}"
        lines.append(textwrap.indent(prose(line), "  ").replace("  ", "- ", 1))
    return lines


def _command(name: str, made: Made) -> str:
    """The command that trains as many steps with the same keys."""
    ours, theirs = _flat(made.config), _flat(made.repository)
    changed = {k: value for k, value in ours.items() if theirs.get(k) != value and k not in UNSEEN}
    if made.started_from:
        changed["init"] = made.started_from
    for phase, steps in made.steps.items():
        if steps != made.whole[phase]:
            changed[f"phases.{phase}.steps"] = steps
    sets = [f"--set {key}={json.dumps(value, separators=(',', ':'))}" for key, value in changed.items()]
    first = made.history[0]
    device = f"--threads {first['threads']}" if first["device"] == "cpu" else f"--device {first['device']}"
    return " ".join(["pcsr-train", name, "--data PHOTOGRAPHS --out run", device, *sets])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys with dots, as `--set` takes them; without the steps, which the plan has."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        # `options` has keys of its own for each backbone: it is one value.
        if isinstance(value, Mapping) and key != "options":
            flat |= _flat(value, f"{prefix}{key}.")
        elif key != "steps":
            flat[prefix + key] = value
    return flat


def _stretch(stretch: Mapping[str, Any]) -> str:
    return f"{stretch['phase']} {stretch['steps']:,} steps from {stretch['rate']:.3g}"


def _layers(hidden: list[int]) -> str:
    return "-".join(map(str, hidden)) or "none"
