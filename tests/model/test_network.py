"""Specs, assembly, and what the networks see."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from pcsr.model.heads import MLP
from pcsr.model.network import BACKBONES, MAX_PARAMETERS, Network, NetworkSpec, build, skeleton
from pcsr.runtime.errors import CheckpointError, OptionError

SPEC = NetworkSpec("carn", 8, ((4,), (6, 6)), (5,), mean=(0.4, 0.3, 0.2), options=(("groups", 2),))


def influence_radius(network: Network, side: int) -> int:
    """How far a change of one input pixel reaches, found by changing it.

    In float64, with positive weights and a large change, so that nothing cancels and no ReLU hides it.
    """
    backbone = network.backbone.double()
    for parameter in backbone.parameters():
        parameter.data.abs_()
    torch.manual_seed(1)
    picture = torch.rand(1, 3, side, side, dtype=torch.float64)
    changed = picture.clone()
    centre = side // 2
    changed[0, :, centre, centre] += 1e6
    with torch.inference_mode():
        moved = (backbone(changed) - backbone(picture)).abs().amax(dim=(0, 1)) > 0
    rows, columns = moved.nonzero(as_tuple=True)
    return max(int((rows - centre).abs().max()), int((columns - centre).abs().max()))


@pytest.mark.parametrize(
    ("backbone", "width", "options", "halo"),
    [
        ("carn", 8, (("groups", 2),), 19),
        ("fsrcnn", 8, (), 6),
        ("fsrcnn", 8, (("m", 2),), 4),
        ("srresnet", 6, (("nb", 4),), 9),
        ("srresnet", 6, (), 33),
    ],
)
def test_halo_is_how_far_a_pixel_reaches(
    backbone: str, width: int, options: tuple[tuple[str, int], ...], halo: int
) -> None:
    torch.manual_seed(0)
    network = build(NetworkSpec(backbone, width, ((4,), (4,)), (), options=options))
    assert network.halo == halo
    assert influence_radius(network, 2 * halo + 9) == halo


def test_every_backbone_keeps_the_size_and_gives_its_width() -> None:
    for name in BACKBONES:
        network = build(NetworkSpec(name, 8, ((4,), (4,)), (3,)))
        assert network.backbone(torch.rand(1, 3, 5, 7)).shape == (1, 8, 5, 7)
        assert not network.training


def test_carn_calls_its_residual_unit_three_times_with_the_same_weights() -> None:
    block = build(SPEC).backbone.b1  # type: ignore[union-attr]
    calls = []
    block.unit.register_forward_hook(lambda *_: calls.append(1))
    block(torch.rand(1, 8, 4, 4))
    assert len(calls) == 3


def test_heads_take_the_feature_and_four_coordinates() -> None:
    network = build(SPEC)
    assert network.classifier is not None
    assert [head.linears[0].in_features for head in (*network.heads, network.classifier)] == [12, 12, 12]
    assert network.classifier.linears[-1].out_features == 2


def test_an_mlp_has_relu_between_its_layers_and_none_at_the_end() -> None:
    kinds = [type(layer).__name__ for layer in MLP(6, (5, 4), 3).layers]
    assert kinds == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert [type(layer).__name__ for layer in MLP(6, (), 2).layers] == ["Linear"]


def test_a_spec_survives_json() -> None:
    for spec in (SPEC, NetworkSpec("fsrcnn", 8, ((4,),), None), NetworkSpec("srresnet", 4, ((), (), ()), ())):
        assert NetworkSpec.from_json(spec.to_json()) == spec


def test_options_left_out_are_the_authors_defaults() -> None:
    assert NetworkSpec("fsrcnn", 8, ((4,),), None, options=(("m", 2),)).options == (("s", 12), ("m", 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "vgg"}, "unknown backbone 'vgg'; known are carn"),
        ({"width": 0}, "width is 0"),
        ({"width": 1 << 20}, "width is 1048576; .* 1 to 1024"),
        ({"width": True}, "width must be a JSON int"),
        ({"width": 8.0}, "width must be a JSON int"),
        ({"options": {"groups": 10**9}}, "groups is 1000000000"),
        ({"options": {"depth": 3}}, "no option 'depth'"),
        ({"options": []}, "options must be a JSON dict"),
        ({"upsamplers": []}, "0 upsamplers"),
        ({"upsamplers": [[4]] * 17}, "17 upsamplers"),
        ({"upsamplers": [[4], [6] * 17]}, "17 hidden layers"),
        ({"upsamplers": [[4], [10**7]]}, "upsampler 1 is 10000000"),
        ({"upsamplers": [[4], ["6"]]}, "upsampler 1 is str"),
        ({"upsamplers": [4, 6]}, "hidden sizes must be a list"),
        ({"classifier": None}, "without a classifier"),
        ({"upsamplers": [[4]]}, "1 upsamplers with a classifier"),
        ({"mean": [0, 0]}, "list of three numbers"),
        ({"mean": [0, 0, "x"]}, "list of three numbers"),
        ({"mean": [0, 0, float("nan")]}, "mean"),
        ({"mean": [0, 0, 10**400]}, "number without end"),
        ({"std": [1, 1, 0]}, "std"),
        ({"surplus": 1}, "exactly the keys"),
    ],
)
def test_a_spec_with_absurd_values_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        NetworkSpec.from_json(json.dumps(json.loads(SPEC.to_json()) | change))


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", "[" * 60_000, " " * 70_000, '{"width": ' + "9" * 5000 + "}"]
)
def test_a_spec_that_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="network spec"):
        NetworkSpec.from_json(text)


def test_sizes_within_their_limits_still_stop_at_the_limit_of_parameters() -> None:
    spec = NetworkSpec("srresnet", 1024, ((4,), (4,)), (), options=(("nb", 256),))
    with pytest.raises(OptionError, match=f"parameters; the limit is {MAX_PARAMETERS}"):
        build(spec)


def test_layers_that_cannot_exist_are_refused() -> None:
    with pytest.raises(OptionError, match="carn of width 9 cannot be built"):
        build(dataclasses.replace(SPEC, width=9))


def test_a_skeleton_takes_no_memory() -> None:
    assert {tensor.device.type for tensor in skeleton(SPEC).state_dict().values()} == {"meta"}
