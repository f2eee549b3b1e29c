"""Every rewrite is the module it replaces, and a wrong one does not get past the export."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pcsr.export import rewrites
from pcsr.export.rewrites import (
    fold_batch_norm,
    heavy_margin,
    rewrite,
    scale_output,
    split_concatenation,
    split_first_layer,
)
from pcsr.model.network import Network
from pcsr.runtime.errors import CheckError

Make = Callable[..., Network]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(5)


def assert_same(got: Tensor, expected: Tensor) -> None:
    """Within 1e-5 of the value range."""
    got, expected = got.detach(), expected.detach()
    span = float(expected.max() - expected.min())
    assert float((got - expected).abs().max()) <= 1e-5 * span, "further apart than 1e-5 of the range"


def double(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def test_a_folded_batch_norm_is_the_convolution_and_the_norm() -> None:
    convolution, norm = nn.Conv2d(6, 4, 3, bias=False).double(), nn.BatchNorm2d(4).double()
    with torch.no_grad():
        norm(torch.randn(8, 4, 5, 5, dtype=torch.float64) * 3 + 2)
        norm.weight.uniform_(-2, 2)
        norm.bias.normal_()
    norm.eval()
    picture = torch.randn(1, 6, 9, 7, dtype=torch.float64)
    weight, bias = fold_batch_norm(convolution.weight.detach().numpy(), norm)
    assert_same(functional.conv2d(picture, double(weight), double(bias)), norm(convolution(picture)))


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_a_split_convolution_is_that_of_the_concatenation(parts: int) -> None:
    convolution = nn.Conv2d(5 * parts, 7, 1, bias=False).double()
    pieces = torch.randn(parts, 1, 5, 4, 6, dtype=torch.float64)
    split = split_concatenation(convolution.weight.detach().numpy(), parts)
    summed = sum(functional.conv2d(piece, double(part)) for piece, part in zip(pieces, split, strict=True))
    assert_same(summed, convolution(torch.cat(list(pieces), dim=1)))


def test_a_split_first_layer_is_the_layer() -> None:
    layer = nn.Linear(9 + 4, 6).double()
    feature, geometry = torch.randn(50, 9, dtype=torch.float64), torch.randn(50, 4, dtype=torch.float64)
    parts = {name: double(values) for name, values in split_first_layer(layer, 9).items()}
    assert set(parts) == {"table", "relative_y", "relative_x", "cell_y", "cell_x", "bias"}
    table = feature @ parts["table"].T
    row = geometry[:, :1] * parts["relative_y"] + geometry[:, 2:3] * parts["cell_y"] + parts["bias"]
    column = geometry[:, 1:2] * parts["relative_x"] + geometry[:, 3:] * parts["cell_x"]
    assert_same(table + row + column, layer(torch.cat([feature, geometry], dim=1)))


def test_the_heavy_margin_gives_the_heavy_probability() -> None:
    layer = nn.Linear(8, 2).double()
    rows = torch.randn(50, 8, dtype=torch.float64) * 5
    assert_same(heavy_margin(layer)(rows)[:, 0].sigmoid(), layer(rows).softmax(dim=1)[:, 1])


def test_a_scaled_output_is_the_output_times_the_deviation() -> None:
    layer = nn.Linear(8, 3).double()
    before = layer.weight.detach().clone()
    rows = torch.randn(50, 8, dtype=torch.float64)
    deviation = (0.25, 2.0, 0.1)
    assert_same(scale_output(layer, deviation)(rows), layer(rows) * double(np.array(deviation)))
    assert torch.equal(layer.weight, before)


def test_all_weights_are_finite_float32_and_the_network_is_left_alone(network: Network) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.random.get_rng_state()
    weights = rewrite(network)
    assert all(values.dtype == np.float32 and values.flags.c_contiguous for values in weights.values())
    assert all(np.isfinite(values).all() for values in weights.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_weights_are_rounded_once(make: Make) -> None:
    network = make("carn")
    fusion = network.get_submodule("backbone.c1")
    assert isinstance(fusion, nn.Sequential)
    weight, bias = fold_batch_norm(fusion[0].weight.detach().double().numpy(), fusion[1].double())
    weights = rewrite(network)
    np.testing.assert_array_equal(
        weights["backbone.cascade1.weight1"], weight[:, 20:, 0, 0].astype(np.float32)
    )
    np.testing.assert_array_equal(weights["backbone.cascade1.bias"], bias.astype(np.float32))


# --- a wrong rewrite


def swapped_axes(layer: nn.Linear, features: int) -> dict[str, np.ndarray]:
    parts = split_first_layer(layer, features)
    return parts | {"relative_y": parts["relative_x"], "relative_x": parts["relative_y"]}


def forgotten_bias(weight: np.ndarray, norm: nn.BatchNorm2d) -> tuple[np.ndarray, np.ndarray]:
    folded, bias = fold_batch_norm(weight, norm)
    return folded, np.zeros_like(bias)


def negated(layer: nn.Linear) -> nn.Linear:
    margin = heavy_margin(layer)
    margin.weight.data.neg_()
    return margin


@pytest.mark.parametrize(
    ("function", "wrong", "name"),
    [
        ("fold_batch_norm", forgotten_bias, "carn"),
        ("split_concatenation", lambda weight, parts: split_concatenation(weight, parts)[::-1], "carn"),
        ("split_first_layer", swapped_axes, "srresnet"),
        ("heavy_margin", negated, "fsrcnn"),
        ("scale_output", lambda layer, deviation: layer, "a deviation"),
    ],
)
def test_a_wrong_rewrite_is_caught_by_name(
    monkeypatch: pytest.MonkeyPatch, make: Make, function: str, wrong: Callable[..., object], name: str
) -> None:
    monkeypatch.setattr(rewrites, function, wrong)
    with pytest.raises(CheckError, match=rf"rewrite .*{function}.* changes its output by .* \(allowed "):
        rewrite(make(name))


def test_a_weight_that_leaves_float32_is_named(make: Make) -> None:
    network = make("carn")
    fusion = network.get_submodule("backbone.b2.c3")
    assert isinstance(fusion, nn.Sequential)
    with torch.no_grad():
        fusion[0].weight[0, 0] = 1e38
        fusion[1].running_var[0] = 0
    with pytest.raises(
        CheckError, match=r"weight backbone.block2.cascade3.weight0 reaches 1e\+40|beyond float32"
    ):
        rewrite(network)
