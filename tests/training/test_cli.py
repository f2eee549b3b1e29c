"""`pcsr-train` from its command line: what it says and how it ends."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from pcsr.runtime.errors import BackendError, OptionError, TrainingError
from pcsr.training.cli import main
from pcsr.training.meters import Clock, Losses
from pcsr.training.precision import choose_device, choose_precision


@pytest.fixture
def config(tmp_path: Path, tree: dict[str, Any]) -> Path:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return tmp_path / "run.yaml"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(
        main, [str(argument) for argument in (*arguments, "--device", "cpu", "--threads", "1")]
    )


def test_a_run_ends_with_what_to_do_next(config: Path, photos: Path, tmp_path: Path) -> None:
    ended = run(config, "--data", photos, "--out", tmp_path / "out")
    assert ended.exit_code == 0, ended.output
    assert "pcsr-export" in ended.stdout
    assert (tmp_path / "out" / "network.safetensors").is_file()


def test_a_dry_run_shows_sizes_cost_memory_and_hours_and_writes_nothing(
    config: Path, photos: Path, tmp_path: Path
) -> None:
    ended = run(config, "--data", photos, "--out", tmp_path / "out", "--dry-run")
    assert ended.exit_code == 0, ended.output
    for word in (
        "3 pictures",
        "18 to 48 HR pixels",
        "multiply-accumulates",
        "12 steps",
        "GiB",
        "hours on cpu",
    ):
        assert word in ended.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "data.patches=3"], "did you mean data.patch?"),
        (["--data", "nowhere"], "cannot look into nowhere: no such folder"),
        ([], "name a folder of training pictures"),
        (["--data", "PHOTOS", "--resume"], "to resume"),
        (["--data", "PHOTOS", "--hours", "0"], "above 0"),
    ],
)
def test_what_cannot_be_tried_ends_with_status_2(
    config: Path, photos: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    ended = run(config, "--out", tmp_path / "out", *[str(photos) if a == "PHOTOS" else a for a in arguments])
    assert ended.exit_code == 2
    assert message in ended.stderr


def test_tensorboard_shows_what_the_log_holds(config: Path, photos: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "out"
    ended = run(config, "--data", photos, "--out", out, "--validate", photos, "--tensorboard")
    assert ended.exit_code == 0, ended.stderr
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["event"] == "validation"]
    shown = board.Scalars("validation/k0_x4")
    assert [event.step for event in shown] == [line["step"] for line in logged if "k0_x4" in line]
    expected = [line["k0_x4"] for line in logged if "k0_x4" in line]
    assert [event.value for event in shown] == pytest.approx(expected)


def test_tensorboard_without_the_extra_names_it(
    config: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    ended = run(config, "--data", photos, "--out", tmp_path / "out", "--tensorboard")
    assert ended.exit_code == 2
    assert "pip install 'pcsr[train]'" in ended.stderr


def test_yaml_without_the_extra_is_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    ended = run(config)
    assert ended.exit_code == 2
    assert "pip install 'pcsr[train]'" in ended.stderr


def test_a_device_that_is_not_there_is_an_error_and_not_a_fallback() -> None:
    with pytest.raises(OptionError, match="no device"):
        choose_device("gpu0")
    with pytest.raises(OptionError, match="not on meta"):
        choose_device("meta")
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="sees no device cuda"):
            choose_device("cuda")


def test_a_precision_that_is_asked_for_is_taken() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("float32", cpu) == torch.float32
    assert choose_precision("bfloat16", cpu) == torch.bfloat16
    assert choose_precision("auto", cpu) in (torch.float32, torch.bfloat16)


def test_a_pause_is_no_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 3.0, 3603.0, 3605.0])
    monkeypatch.setattr("pcsr.training.meters.time.perf_counter", lambda: next(times))
    clock = Clock()
    for kind in ("outside", "network", "outside", "network"):
        clock.lap(kind)
    assert (clock.total, clock.laps) == (5.0, 2)


@pytest.mark.parametrize(
    ("loss", "norm", "cause"),
    [(math.nan, 1, "loss is nan"), (math.inf, 1, "loss is inf"), (1, math.inf, "gradient")],
)
def test_what_is_no_number_is_told_with_its_step(loss: float, norm: float, cause: str) -> None:
    losses = Losses(look_every=3)
    losses.add(torch.tensor(1.0), torch.tensor(1.0), 40)
    losses.add(torch.tensor(loss), torch.tensor(float(norm)), 41)
    with pytest.raises(TrainingError, match=f"{cause}.* at step 41"):
        losses.add(torch.tensor(1.0), torch.tensor(1.0), 42)


def test_a_loss_that_grows_tenfold_is_divergence() -> None:
    losses = Losses(look_every=1)

    def go_on(loss: float, steps: range) -> None:
        for step in steps:
            losses.add(torch.tensor(loss), torch.tensor(1.0), step)

    go_on(0.02, range(300))
    with pytest.raises(TrainingError, match=r"diverged at step 399: the loss rose to 0\.3 from 0\.02"):
        go_on(0.3, range(300, 600))
