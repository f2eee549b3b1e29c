"""Configurations: what ships is valid, and mistakes are named before hours are spent on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pcsr.model.authors import authors_spec
from pcsr.runtime.errors import OptionError
from pcsr.training.config import load_config, parse_config

SHIPPED = ("carn", "fsrcnn", "srresnet", "carn-m3")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_configuration_is_valid_and_found_by_its_name(name: str) -> None:
    config = load_config(Path(name))
    assert config.data.scales == (1.5, 4.0)
    assert config.network.spec().classes == (3 if name == "carn-m3" else 2)


@pytest.mark.parametrize(
    ("name", "size", "light", "heavy", "classifier"),
    [
        ("carn", ("nf", 52), [20] * 3, [74] * 4, [10, 10]),
        ("fsrcnn", ("d", 48), [10] * 3, [58] * 4, []),
        ("srresnet", ("nf", 58), [40] * 3, [170] * 4, [20, 20]),
    ],
)
def test_shipped_networks_have_the_papers_sizes(
    name: str, size: tuple[str, int], light: list[int], heavy: list[int], classifier: list[int]
) -> None:
    def sampler(hidden: list[int]) -> dict[str, Any]:
        mlp = {"name": "mlp", "args": {"hidden_list": hidden}}
        return {"name": "liif-sampler", "args": {"imnet_spec": mlp}}

    paper = authors_spec(
        "pcsr-phase1",
        {
            "encoder_spec": {"name": name, "args": {size[0]: size[1], "no_upsampling": True}},
            "light_sampler_spec": sampler(light),
            "heavy_sampler_spec": sampler(heavy),
            "classifier_spec": sampler(classifier),
        },
    )
    assert load_config(Path(name)).network.spec() == paper


@pytest.mark.parametrize(
    ("keys", "nearest"),
    [
        (("pahses",), "phases"),
        (("data", "scale"), "data.scales"),
        (("phases", "decision", "learning_rate"), "phases.decision.rate"),
        (("network", "upsampler"), "network.upsamplers"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(
    tree: dict[str, Any], keys: tuple[str, ...], nearest: str
) -> None:
    group = tree
    for key in keys[:-1]:
        group = group[key]
    group[keys[-1]] = 1
    with pytest.raises(OptionError, match=rf"unknown key {'.'.join(keys)}; did you mean {nearest}\?"):
        parse_config(tree, where="my.yaml")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("phases.backbone.pixels=400", "a patch at the lowest scale 1.5 has 324"),
        ("phases.backbone.steps=null", "phases.backbone.steps is missing"),
        ("hours=2", "both steps and hours"),
        ("data.scales=[4, 2]", "lowest and the highest"),
        ("data.scales=[0.5, 2]", "from 1 to 16"),
        ("data.memory=lots", "amount of memory"),
        ("network.upsamplers=[[8]]", "1 upsamplers with a classifier"),
        ("network.width=9", "cannot be built"),
        ("phases.decision.rate=-1", "rate and restart"),
        ("phases.decision.ema=1", "ema"),
        ("phases.decision.batch=many", "Expected `int`"),
        ("seed=-1", "seed"),
        ("network=carn", "must be a group of keys"),
        ("seed.more=1", "seed is a value"),
        ("nothing", "must be key=value"),
    ],
)
def test_what_contradicts_itself_is_refused_with_the_reason(
    tmp_path: Path, tree: dict[str, Any], setting: str, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        load_config(written(tmp_path, tree), [setting])


def test_a_setting_overrides_the_file(tmp_path: Path, tree: dict[str, Any]) -> None:
    file = written(tmp_path, tree)
    config = load_config(file, ["phases.decision.rate=5e-4", "data.scales=[2, 3]"])
    assert config.phases.decision.rate == 5e-4  # YAML 1.1 would have made text of it
    assert config.data.scales == (2, 3)
    assert config.phases.backbone == load_config(file).phases.backbone


def test_hours_replace_the_steps_of_the_file(tmp_path: Path, tree: dict[str, Any]) -> None:
    config = load_config(written(tmp_path, tree), hours=2)
    assert (config.hours, config.phases.backbone.steps) == (2, None)
    with pytest.raises(OptionError, match="contradict each other"):
        load_config(tmp_path / "run.yaml", ["phases.backbone.steps=5"], hours=2)
    with pytest.raises(OptionError, match="above 0"):
        load_config(tmp_path / "run.yaml", hours=-1)


@pytest.mark.parametrize("content", [b"a: [1", b"- 1", b"\xff\xfe\x00", b"!!python/object:os.system {}"])
def test_a_file_that_is_no_configuration_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    with pytest.raises(OptionError, match=r"bad\.yaml"):
        load_config(tmp_path / "bad.yaml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"gone\.yaml"):
        load_config(tmp_path / "gone.yaml")


def written(folder: Path, tree: dict[str, Any]) -> Path:
    (folder / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder / "run.yaml"
