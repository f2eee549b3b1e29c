"""Whole runs of a second: killed and resumed, extended, fine-tuned, and stopped for a reason."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import yaml

from pcsr.model.checkpoint import load_checkpoint, save_checkpoint
from pcsr.model.network import NetworkSpec, build
from pcsr.model.reference import upscale
from pcsr.runtime.errors import OptionError, TrainingError
from pcsr.runtime.pictures import read_picture
from pcsr.training.command import Request, run_command
from pcsr.training.measure import TIMED, WARM
from pcsr.training.plan import steps_done
from pcsr.training.state import PREVIOUS, STATE, read_state, write_state

COMMAND = Path(sys.executable).parent / "pcsr-train"


@pytest.fixture
def request_for(tmp_path: Path, tree: dict[str, Any], photos: Path) -> Request:
    """A run on one thread in float32, which is exact everywhere."""
    tree["precision"] = "float32"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return Request(
        config=tmp_path / "run.yaml", data=str(photos), out=tmp_path / "out", device="cpu", threads=1
    )


def test_a_run_gives_a_network_that_knows_where_it_comes_from(request_for: Request) -> None:
    result = run_command(request_for)
    network = load_checkpoint(result)
    assert network.spec.upsamplers == ((4,), (8, 8))
    metadata = metadata_of(result)
    assert json.loads(metadata["configuration"])["network"]["width"] == 8
    assert metadata["seed"] == "3"
    assert len(metadata["data_sha256"]) == 64
    assert [(part["phase"], part["steps"]) for part in json.loads(metadata["plan"])] == [
        ("backbone", 12),
        ("decision", 8),
    ]
    assert [event["event"] for event in json.loads(metadata["history"])] == ["started"]
    events = [json.loads(line)["event"] for line in (request_for.out / "log.jsonl").read_text().splitlines()]
    assert (events[0], events[-1]) == ("started", "finished")


def test_phase_1_leaves_backbone_and_heavy_upsampler_alone(request_for: Request) -> None:
    run_command(request_for)
    _, before = read_state_of_stretch(request_for, 1)
    after = read_state(request_for.out)[1]
    for name, value in after.items():
        if name.startswith(("average/backbone", "average/upsamplers.1", "raw/backbone", "raw/upsamplers.1")):
            assert torch.equal(value, before[name]), name
    moved = [
        name for name in after if name.startswith("average/") and not torch.equal(after[name], before[name])
    ]
    assert {name.split(".")[0] for name in moved} == {"average/upsamplers", "average/classifier"}


def test_training_makes_the_loss_smaller(request_for: Request) -> None:
    # Wide enough, and from a seed, that no processor's rounding leaves it with dead units.
    settings = ["phases.backbone.steps=500", "phases.decision.steps=5", "phases.backbone.rate=0.003"]
    settings += ["phases.backbone.batch=4", "phases.backbone.pixels=300", "data.scales=[2, 2]"]
    settings += ["network.width=16", "seed=1"]
    network = load_checkpoint(run_command(replace(request_for, settings=settings)))
    picture = read_picture(Path(request_for.data or "") / "coffee.png").pixels
    from pcsr.runtime import bicubic
    from pcsr.validation.metrics import psnr

    truth = picture[:80, :108]
    lr = bicubic.resize(truth, size=(40, 54))
    untrained = build(network.spec)
    for head in untrained.heads:
        torch.nn.init.zeros_(head.linears[-1].weight)
        torch.nn.init.zeros_(head.linears[-1].bias)
    bilinear = psnr(upscale(untrained, lr, scale=2, force_class=1).image, truth)
    assert psnr(upscale(network, lr, scale=2, force_class=1).image, truth) > bilinear + 0.3


@pytest.mark.parametrize("kills", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_at_any_moment_gives_the_same_bytes(request_for: Request, kills: int) -> None:
    settings = ["save_minutes=0.0005", "phases.backbone.steps=120", "phases.decision.steps=60"]
    steady = replace(request_for, out=request_for.out.with_name("steady"), settings=settings)
    uninterrupted = run_command(steady).read_bytes()
    options = {"--data": request_for.data, "--out": request_for.out, "--device": "cpu", "--threads": 1}
    command = [COMMAND, request_for.config, *(part for option in options.items() for part in option)]
    command += [part for setting in settings for part in ("--set", setting)]
    path, chance = request_for.out / STATE, random.Random(kills)
    done = []
    for kill in range(kills):
        arguments = [*map(str, command), *(["--resume"] if kill else [])]
        seen = path.stat().st_mtime_ns if kill else 0
        with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as process:
            wait_for_a_later_state(path, seen, process)
            time.sleep(chance.uniform(0, 0.3))
            process.kill()
        assert process.returncode in (-signal.SIGKILL, 0)
        state, _ = read_state(request_for.out)
        done.append(sum(steps_done(state.plan, state.at, state.done)))
    assert done[0] < 180, "the first kill must come before the end, or this test shows nothing"
    result = run_command(replace(request_for, settings=settings, resume=True))
    assert result.read_bytes() == uninterrupted


def test_sigterm_saves_where_it_stands_and_the_rest_is_exact(request_for: Request) -> None:
    steady = replace(request_for, out=request_for.out.with_name("steady"))
    uninterrupted = run_command(steady).read_bytes()
    with interrupted_after(signal.SIGTERM, 7), pytest.raises(KeyboardInterrupt):
        run_command(request_for)
    state, _ = read_state(request_for.out)
    assert (state.at, state.done) == (0, 7)
    assert run_command(replace(request_for, resume=True)).read_bytes() == uninterrupted


def test_a_plain_resume_keeps_a_plan_that_was_set_on_the_command_line(request_for: Request) -> None:
    settings = ["phases.backbone.steps=20"]
    with interrupted_after(signal.SIGTERM, 7), pytest.raises(KeyboardInterrupt):
        run_command(replace(request_for, settings=settings))
    metadata = metadata_of(run_command(replace(request_for, resume=True)))
    assert json.loads(metadata["plan"])[0]["steps"] == 20


def test_more_steps_extend_a_finished_run_and_say_so(request_for: Request) -> None:
    run_command(request_for)
    settings = ["phases.backbone.steps=20", "phases.decision.steps=8"]
    metadata = metadata_of(run_command(replace(request_for, resume=True, settings=settings)))
    plan = [(part["phase"], part["steps"]) for part in json.loads(metadata["plan"])]
    assert plan == [("backbone", 12), ("decision", 8), ("backbone", 8), ("decision", 8)]
    assert [event["event"] for event in json.loads(metadata["history"])] == ["started", "extended"]
    assert json.loads(metadata["history"])[1]["step"] == 20


def test_more_steps_of_one_phase_leave_the_plan_of_the_other(request_for: Request) -> None:
    with interrupted_after(signal.SIGTERM, 7), pytest.raises(KeyboardInterrupt):
        run_command(replace(request_for, settings=["phases.decision.steps=3"]))
    longer = replace(request_for, resume=True, settings=["phases.backbone.steps=20"])
    metadata = metadata_of(run_command(longer))
    plan = [(part["phase"], part["steps"]) for part in json.loads(metadata["plan"])]
    assert plan == [("backbone", 7), ("backbone", 13), ("decision", 3)]
    phases = json.loads(metadata["configuration"])["phases"]
    assert (phases["backbone"]["steps"], phases["decision"]["steps"]) == (20, 3)
    # A finished run: phase 1 is trained as long as it was.
    metadata = metadata_of(run_command(replace(longer, settings=["phases.backbone.steps=24"])))
    plan = [(part["phase"], part["steps"]) for part in json.loads(metadata["plan"])]
    assert plan[3:] == [("backbone", 4), ("decision", 3)]


def test_a_lower_rate_on_resume_is_a_new_stretch_for_what_is_left(request_for: Request) -> None:
    with interrupted_after(signal.SIGINT, 5), pytest.raises(KeyboardInterrupt):
        run_command(request_for)
    run_command(replace(request_for, resume=True, settings=["phases.backbone.rate=1e-4"]))
    state, _ = read_state(request_for.out)
    assert [(stretch.phase, stretch.steps) for stretch in state.plan] == [(0, 5), (0, 7), (1, 8)]
    assert state.plan[1].rate == pytest.approx(5e-5)


def test_hours_are_turned_into_steps_and_a_plain_resume_keeps_them(request_for: Request) -> None:
    measured = 2 * (WARM + TIMED)
    with interrupted_after(signal.SIGINT, measured + 2), pytest.raises(KeyboardInterrupt):
        run_command(replace(request_for, hours=0.0002))
    planned, _ = read_state(request_for.out)
    run_command(replace(request_for, resume=True))
    state, _ = read_state(request_for.out)
    assert state.plan == planned.plan
    assert len(state.history) == 1


def test_a_resume_with_other_pictures_or_steps_of_another_kind_is_refused(
    request_for: Request, tmp_path: Path
) -> None:
    with interrupted_after(signal.SIGINT, 2), pytest.raises(KeyboardInterrupt):
        run_command(request_for)
    again = replace(request_for, resume=True)
    with pytest.raises(OptionError, match="cannot go on exactly"):
        run_command(replace(again, settings=["phases.backbone.batch=3"]))
    with pytest.raises(OptionError, match="another seed"):
        run_command(replace(again, settings=["seed=4"]))
    with pytest.raises(OptionError, match="another network"):
        run_command(replace(again, settings=["network.width=12"]))
    (tmp_path / "fewer").mkdir()
    (tmp_path / "fewer" / "a.png").write_bytes((Path(request_for.data or "") / "coffee.png").read_bytes())
    with pytest.raises(OptionError, match="cannot go on exactly"):
        run_command(replace(again, data=str(tmp_path / "fewer")))


def test_a_run_is_not_started_over_another(request_for: Request) -> None:
    run_command(request_for)
    with pytest.raises(OptionError, match="holds a run already"):
        run_command(request_for)
    with pytest.raises(OptionError, match="to resume"):
        run_command(replace(request_for, out=request_for.out / "none", resume=True))


def test_nan_stops_the_run_with_step_and_cause_and_keeps_the_state(request_for: Request) -> None:
    with interrupted_after(signal.SIGINT, 5), pytest.raises(KeyboardInterrupt):
        run_command(request_for)
    state, tensors = read_state(request_for.out)
    tensors["raw/upsamplers.1.layers.4.bias"][1] = float("nan")
    write_state(request_for.out, state, tensors)
    before = (request_for.out / STATE).read_bytes()
    with pytest.raises(TrainingError, match="loss is nan at step 5; the last good state is kept"):
        run_command(replace(request_for, resume=True))
    assert (request_for.out / STATE).read_bytes() == before


def test_a_full_disk_stops_the_run_and_keeps_the_state(request_for: Request) -> None:
    with interrupted_after(signal.SIGINT, 5), pytest.raises(KeyboardInterrupt):
        run_command(request_for)
    before = (request_for.out / STATE).read_bytes()
    state, tensors = read_state(request_for.out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(TrainingError, match="cannot write .*the last state, which is kept"):
            write_state(request_for.out, state, tensors)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (request_for.out / STATE).read_bytes() == before
    assert sorted(path.name for path in request_for.out.iterdir()) == ["log.jsonl", PREVIOUS, STATE]


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_state_is_told_and_the_previous_one_taken(request_for: Request, damage: str) -> None:
    with interrupted_after(signal.SIGINT, 5), pytest.raises(KeyboardInterrupt):
        run_command(request_for)
    path = request_for.out / STATE
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[-100] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    assert read_state(request_for.out)[0].done == 0  # what was written as the run began


@pytest.mark.parametrize("form", ["pth", "safetensors", "heavy only"])
def test_a_run_can_start_from_a_checkpoint(
    request_for: Request, tmp_path: Path, tree: dict[str, Any], form: str, shared: Path
) -> None:
    if form == "pth":
        init = shared / "reference" / "official" / "fsrcnn-pcsr.pth"
        tree["network"] = {
            "backbone": "fsrcnn",
            "width": 48,
            "upsamplers": [[10] * 3, [58] * 4],
            "classifier": [],
        }
    else:
        init = tmp_path / "start.safetensors"
        upsamplers = ((8, 8),) if form == "heavy only" else ((4,), (8, 8))
        classifier = None if form == "heavy only" else (5,)
        mean = tuple(tree["network"]["mean"])
        save_checkpoint(build(NetworkSpec("carn", 8, upsamplers, classifier, mean=mean)), init)
    # So small a rate changes nothing that is seen here.
    for phase in tree["phases"].values():
        phase |= {"rate": 1e-12, "steps": 1}
    request_for.config.write_text(yaml.safe_dump(tree | {"init": str(init)}), encoding="utf-8")
    trained = load_checkpoint(run_command(request_for))
    start = load_checkpoint(init, complete=False)
    for part, other in ((trained.backbone, start.backbone), (trained.heads[-1], start.heads[-1])):
        for name, value in part.named_parameters():
            assert torch.allclose(value, other.get_parameter(name), atol=1e-6), name
    if form != "heavy only":
        assert trained.classifier is not None
        assert start.classifier is not None
        weight, expected = trained.classifier.linears[0].weight, start.classifier.linears[0].weight
        assert torch.allclose(weight, expected, atol=1e-6)


def test_more_classes_grow_on_a_backbone_that_stays_as_it_is(
    request_for: Request, tmp_path: Path, tree: dict[str, Any]
) -> None:
    init = tmp_path / "two.safetensors"
    save_checkpoint(load_checkpoint(run_command(request_for)), init)
    settings = ["network.upsamplers=[[4], [6], [8, 8]]", f"init={init}", "phases.backbone.steps=0"]
    three = load_checkpoint(run_command(replace(request_for, settings=settings, out=tmp_path / "three")))
    two = load_checkpoint(init)
    assert three.spec.classes == 3
    for part, other in ((three.backbone, two.backbone), (three.heads[-1], two.heads[-1])):
        expected = other.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in part.state_dict().items())
    lines = [json.loads(line) for line in (tmp_path / "three" / "log.jsonl").read_text().splitlines()]
    assert lines[0]["plan"] == [{"phase": 1, "steps": 8, "rate": 0.001, "warmup": 0}]
    with pytest.raises(OptionError, match="name a checkpoint in init"):
        run_command(replace(request_for, settings=["phases.backbone.steps=0"], out=tmp_path / "none"))


def test_a_checkpoint_of_another_network_is_refused(
    request_for: Request, tmp_path: Path, tree: dict[str, Any]
) -> None:
    save_checkpoint(build(NetworkSpec("carn", 12, ((4,), (8, 8)), (5,))), tmp_path / "other.safetensors")
    with pytest.raises(OptionError, match="the configuration says"):
        run_command(replace(request_for, settings=[f"init={tmp_path / 'other.safetensors'}"]))


def test_three_classes_train_in_order_of_their_weight(request_for: Request) -> None:
    settings = ["network.upsamplers=[[4], [6], [8, 8]]"]
    network = load_checkpoint(run_command(replace(request_for, settings=settings)))
    assert network.spec.classes == 3
    moments = {
        name.split("/")[1].rsplit(".layers", 1)[0] for name in read_state(request_for.out)[1] if "/" in name
    }
    assert {"upsamplers.0", "upsamplers.1", "upsamplers.2", "classifier"} <= moments


def test_bfloat16_trains_too(request_for: Request) -> None:
    network = load_checkpoint(run_command(replace(request_for, settings=["precision=bfloat16"])))
    assert all(torch.isfinite(value).all() for value in network.parameters())


def test_validation_is_measured_at_the_end_of_each_phase(request_for: Request) -> None:
    run_command(replace(request_for, validate=request_for.data))
    lines = [json.loads(line) for line in (request_for.out / "log.jsonl").read_text().splitlines()]
    found = [line for line in lines if line["event"] == "validation"]
    assert [line["step"] for line in found] == [12, 20]
    assert {"heavy_x2", "k0_x4", "share_x3"} <= found[1].keys()
    assert not {"k0_x4", "share_x3"} & found[0].keys()  # nothing has trained a classifier yet
    assert 10 < found[1]["heavy_x2"] < 50


def read_state_of_stretch(request: Request, at: int) -> tuple[Any, dict[str, torch.Tensor]]:
    """The state of the same run as it was when a stretch began."""
    other = replace(request, out=request.out.with_name("half"))
    with interrupted_after(signal.SIGINT, 12), pytest.raises(KeyboardInterrupt):
        run_command(other)
    state, tensors = read_state(other.out)
    assert (state.at, state.done) == (at, 0)
    return state, tensors


def metadata_of(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="pt") as file:
        return dict(file.metadata())


@contextmanager
def interrupted_after(number: signal.Signals, steps: int) -> Iterator[None]:
    """Send this process a signal while a run does its n-th step."""
    from pcsr.training.steps import PhaseStep

    original = PhaseStep.__call__
    count = 0

    def counted(self: PhaseStep, *args: Any) -> Any:
        nonlocal count
        count += 1
        if count == steps:
            os.kill(os.getpid(), number)
        return original(self, *args)

    PhaseStep.__call__ = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        PhaseStep.__call__ = original  # type: ignore[method-assign]


def wait_for_a_later_state(path: Path, seen: int, process: subprocess.Popen[bytes]) -> None:
    """Until the file was written after `seen` (nanoseconds), or the process is at its end."""
    while process.poll() is None and (not path.exists() or path.stat().st_mtime_ns <= seen):
        time.sleep(0.01)
