"""What the oracle does beyond the golden cases: options, sizes, classes, extremes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pcsr.model.checkpoint import load_checkpoint
from pcsr.model.cost import network_cost, total
from pcsr.model.network import Network, NetworkSpec, build
from pcsr.model.reference import Reference, output_size, upscale
from pcsr.runtime.errors import OptionError

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "golden"


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    with np.load(GOLDEN / "srresnet_lrx4_24x33_x2_k0_ref.npz") as case:
        return np.asarray(case["lr"])


@pytest.fixture(scope="module")
def network() -> Network:
    """Two classes, random weights, probabilities spread by a strong last layer of the classifier."""
    torch.manual_seed(3)
    network = build(
        NetworkSpec("fsrcnn", 16, ((4,), (8, 8)), (6,), mean=(0.4, 0.3, 0.2), std=(0.5, 1.0, 2.0))
    )
    assert network.classifier is not None
    network.classifier.linears[-1].weight.data *= 20
    return network


@pytest.fixture(scope="module")
def three_classes(picture: NDArray[np.uint8]) -> Network:
    """Random weights, the classifier's biases set so that every class gets its share of the picture."""
    torch.manual_seed(4)
    network = build(NetworkSpec("carn", 8, ((), (6,), (9, 9)), (6,)))
    assert network.classifier is not None
    last = network.classifier.linears[-1]
    last.weight.data *= 20
    probability = upscale(network, picture, scale=2).probability
    last.bias.data -= torch.from_numpy(np.log(probability)).mean(dim=(0, 1))
    return network


def assert_same(result: Reference, other: Reference) -> None:
    np.testing.assert_array_equal(result.class_map, other.class_map)
    np.testing.assert_allclose(result.image, other.image, atol=2e-6)


def test_result_has_the_documented_form(network: Network, picture: NDArray[np.uint8]) -> None:
    result = upscale(network, picture, scale=2.3)
    H, W = round(24 * 2.3), round(33 * 2.3)
    assert (result.image.shape, result.image.dtype) == ((H, W, 3), np.float32)
    assert (result.class_map.shape, result.class_map.dtype) == ((H, W), np.uint8)
    assert result.probability is not None
    assert (result.probability.shape, result.probability.dtype) == ((H, W, 2), np.float32)
    assert 0 < result.class_map.mean() < 1


def test_bytes_and_floats_give_the_same(network: Network, picture: NDArray[np.uint8]) -> None:
    as_float = picture.astype(np.float32) / np.float32(255)
    assert_same(upscale(network, picture, scale=2), upscale(network, as_float, scale=2))


@pytest.mark.parametrize("rule", [{"k": 0.5}, {"adaptive": True}, {"budget": 0.3}])
def test_pixel_batches_change_nothing(
    network: Network, picture: NDArray[np.uint8], rule: dict[str, Any]
) -> None:
    whole = upscale(network, picture, scale=1.5, refine=True, **rule)
    assert_same(upscale(network, picture, scale=1.5, refine=True, pixel_batch=97, **rule), whole)


def test_threshold_separates_the_classes(network: Network, picture: NDArray[np.uint8]) -> None:
    for rule in ({"k": 0.7}, {"k": -0.3}, {"adaptive": True}, {"budget": 0.25}):
        result = upscale(network, picture, scale=2, **rule)  # type: ignore[arg-type]
        assert result.probability is not None
        assert result.thresholds is not None
        (threshold,) = result.thresholds
        heavy = result.probability[..., 1]
        clear = np.abs(heavy - threshold) > 1e-6
        np.testing.assert_array_equal((heavy > threshold)[clear], result.class_map[clear] == 1)


@pytest.mark.parametrize("rule", [{"adaptive": True}, {"budget": 0.15}, {"budget": 0.6}])
def test_thresholds_separate_three_classes_by_difficulty(
    three_classes: Network, picture: NDArray[np.uint8], rule: dict[str, Any]
) -> None:
    result = upscale(three_classes, picture, scale=2, **rule)
    assert result.probability is not None
    assert result.thresholds is not None
    assert list(result.thresholds) == sorted(result.thresholds)
    difficulty = result.probability @ np.arange(3, dtype=np.float32)
    clear = np.abs(difficulty[..., None] - result.thresholds).min(axis=2) > 1e-5
    expected = (difficulty[..., None] >= result.thresholds).sum(axis=2)
    np.testing.assert_array_equal(result.class_map[clear], expected[clear])
    assert clear.mean() > 0.9


def test_a_greater_k_makes_fewer_pixels_heavy(network: Network, picture: NDArray[np.uint8]) -> None:
    shares = [upscale(network, picture, scale=3, k=k).class_map.mean() for k in (-30, -1, 0, 1, 30)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]


@pytest.mark.parametrize("k", [-1000.0, -1e9])
def test_an_extreme_k_sends_everything_to_the_heaviest_class(
    network: Network, three_classes: Network, picture: NDArray[np.uint8], k: float
) -> None:
    # No power of a cost at these k fits float32.
    for each in (network, three_classes):
        result = upscale(each, picture[:6, :7], scale=8, k=k)
        assert (result.class_map == each.spec.classes - 1).all()


def test_an_extreme_k_sends_everything_to_the_lightest_class(
    network: Network, three_classes: Network, picture: NDArray[np.uint8]
) -> None:
    for each in (network, three_classes):
        result = upscale(each, picture[:6, :7], scale=8, k=1e6)
        assert (result.class_map == 0).all()


def test_three_classes_are_routed_by_argmax_of_probability_over_cost(
    three_classes: Network, picture: NDArray[np.uint8]
) -> None:
    plain = upscale(three_classes, picture, scale=2)
    assert plain.probability is not None
    assert plain.thresholds is None
    np.testing.assert_array_equal(plain.class_map, plain.probability.argmax(axis=2))
    assert set(np.unique(plain.class_map)) == {0, 1, 2}
    cheaper = upscale(three_classes, picture, scale=2, k=20)
    assert cheaper.flops < plain.flops
    # Every pixel has the colour that its class alone would give it.
    alone = np.stack([upscale(three_classes, picture, scale=2, force_class=c).image for c in range(3)])
    chosen = np.take_along_axis(alone, plain.class_map[None, ..., None].astype(np.intp), axis=0)[0]
    np.testing.assert_allclose(plain.image, chosen, atol=2e-6)


def test_adaptive_parts_three_classes_where_their_means_are(
    three_classes: Network, picture: NDArray[np.uint8]
) -> None:
    result = upscale(three_classes, picture, scale=2, adaptive=True)
    assert result.probability is not None
    assert result.thresholds is not None
    difficulty = result.probability.astype(np.float64) @ np.arange(3)
    means = [difficulty[result.class_map == j].mean() for j in range(3)]
    middles = [(means[0] + means[1]) / 2, (means[1] + means[2]) / 2]
    # It stops when all centroids together move by less than a hundredth of the range.
    np.testing.assert_allclose(result.thresholds, middles, atol=0.01 * np.ptp(difficulty))


@pytest.mark.parametrize("budget", [0.0, 0.001, 0.2, 0.37, 0.8, 1.0])
def test_budget_is_the_share_of_the_adjustable_cost_of_three_classes(
    three_classes: Network, picture: NDArray[np.uint8], budget: float
) -> None:
    result = upscale(three_classes, picture, scale=2, budget=budget)
    light, heavy = (upscale(three_classes, picture, scale=2, budget=end).flops for end in (0, 1))
    costs = network_cost(three_classes).published.upsamplers
    # Each class is reached by half a pixel more or less where no two are tied.
    assert result.flops - light == pytest.approx(budget * (heavy - light), abs=0.6 * (costs[2] - costs[0]))
    assert heavy - light == result.class_map.size * (costs[2] - costs[0])
    assert (result.thresholds == (math.inf, math.inf)) == (budget == 0)


def test_a_budget_among_classes_whose_costs_do_not_ascend_is_refused(picture: NDArray[np.uint8]) -> None:
    network = build(NetworkSpec("fsrcnn", 8, ((4,), (9, 9), (6,)), ()))
    with pytest.raises(OptionError, match="costs that ascend"):
        upscale(network, picture, scale=2, budget=0.5)
    assert upscale(network, picture[:5, :6], scale=2, adaptive=True).thresholds is not None


def test_tied_pixels_of_three_classes_go_one_way(picture: NDArray[np.uint8]) -> None:
    network = build(NetworkSpec("fsrcnn", 8, ((4,), (6, 6), (16, 16)), ()))
    assert network.classifier is not None
    network.classifier.linears[-1].weight.data.zero_()
    network.classifier.linears[-1].bias.data = torch.tensor([0.0, 1.0, 0.5])
    cost = network_cost(network).published.upsamplers
    middle = (cost[1] - cost[0]) / (cost[2] - cost[0])
    # Half of the pixels or more are to reach class 1 from a budget of `middle` on, half of which is for it; class 2
    # once all can reach class 1 and half of the rest of the budget is there.
    found = [
        np.unique(upscale(network, picture, scale=2, budget=budget).class_map)
        for budget in (
            middle * 0.9,
            middle * 1.1,
            middle + (1 - middle) * 0.45,
            middle + (1 - middle) * 0.55,
        )
    ]
    assert [classes.tolist() for classes in found] == [[0], [1], [1], [2]]


@pytest.mark.parametrize("budget", [0.0, 0.001, 0.37, 1.0])
def test_budget_is_the_share_of_heavy_pixels(
    network: Network, picture: NDArray[np.uint8], budget: float
) -> None:
    result = upscale(network, picture, scale=2, budget=budget)
    assert result.class_map.sum() == round(budget * result.class_map.size)
    assert (result.thresholds == (math.inf,)) == (budget == 0)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_constant_probability_sends_all_pixels_to_the_lightest_class(
    picture: NDArray[np.uint8], classes: int
) -> None:
    network = build(NetworkSpec("fsrcnn", 8, ((4,),) * classes, ()))
    assert network.classifier is not None
    network.classifier.linears[-1].weight.data.zero_()
    result = upscale(network, picture, scale=2, adaptive=True)
    assert (result.class_map == 0).all()
    assert result.thresholds == (math.inf,) * (classes - 1)


def test_one_pixel_works_with_every_rule(network: Network) -> None:
    picture = np.full((1, 1, 3), 0.5, dtype=np.float32)
    for rule in ({}, {"adaptive": True}, {"budget": 1.0}, {"force_class": 1}):
        result = upscale(network, picture, scale=1, refine=True, **rule)  # type: ignore[arg-type]
        assert result.image.shape == (1, 1, 3)
        assert np.isfinite(result.image).all()


def test_refinement_averages_light_pixels_beside_heavy_ones_only(
    network: Network, picture: NDArray[np.uint8]
) -> None:
    plain = upscale(network, picture, scale=2)
    refined = upscale(network, picture, scale=2, refine=True)
    np.testing.assert_array_equal(plain.class_map, refined.class_map)
    H, W = plain.class_map.shape
    expected = plain.image.copy()
    averaged = 0
    for y in range(1, H - 1):
        for x in range(1, W - 1):
            around = (slice(y - 1, y + 2), slice(x - 1, x + 2))
            if plain.class_map[y, x] == 0 and plain.class_map[around].any():
                expected[y, x] = plain.image[around].mean(axis=(0, 1))
                averaged += 1
    assert averaged > 0
    np.testing.assert_allclose(refined.image, expected, atol=2e-6)


def test_a_heavy_only_network_sends_every_pixel_to_its_class(picture: NDArray[np.uint8]) -> None:
    network = load_checkpoint(GOLDEN / "carn-pcsr-phase0-random.pth", complete=False)
    result = upscale(network, picture, scale=2, refine=True)
    assert result.probability is None
    assert result.thresholds is None
    assert (result.class_map == 0).all()
    assert result.macs == total(network_cost(network).macs, 24, 33, (48 * 66,), classified=False)


def test_forcing_a_class_costs_no_classifier(network: Network, picture: NDArray[np.uint8]) -> None:
    cost = network_cost(network)
    result = upscale(network, picture, scale=2, force_class=1)
    assert (result.class_map == 1).all()
    assert result.probability is None
    assert result.flops == total(cost.published, 24, 33, (0, 48 * 66), classified=False)


@pytest.mark.parametrize(
    ("lr", "scale", "hr"),
    [((31, 15), 1.5, (46, 22)), ((15, 21), 2.3, (34, 48)), ((21, 15), 2.5, (52, 38)), ((7, 9), 1, (7, 9))],
)
def test_sizes_round_half_to_even(lr: tuple[int, int], scale: float, hr: tuple[int, int]) -> None:
    assert output_size(lr, scale=scale) == hr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of scale and size"),
        ({"scale": 2, "size": (48, 66)}, "exactly one of scale and size"),
        ({"scale": 0.99}, "scale is 0.99"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": float("inf")}, "scale is inf"),
        ({"size": (48, 32)}, "no smaller than the picture"),
        ({"size": (48, 66.0)}, "two whole numbers"),
        ({"size": (48,)}, "two whole numbers"),
        ({"scale": 2, "k": float("nan")}, "k is nan"),
        ({"scale": 2, "k": 1.0, "adaptive": True}, "contradict"),
        ({"scale": 2, "budget": 0.1, "adaptive": True}, "contradict"),
        ({"scale": 2, "budget": 0.1, "force_class": 0}, "contradict"),
        ({"scale": 2, "budget": 1.1}, "budget is 1.1"),
        ({"scale": 2, "budget": float("nan")}, "budget is nan"),
        ({"scale": 2, "force_class": 2}, "classes 0 to 1"),
        ({"scale": 2, "pixel_batch": 0}, "pixel_batch is 0"),
    ],
)
def test_options_without_meaning_are_refused(
    network: Network, picture: NDArray[np.uint8], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        upscale(network, picture, **options)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((4, 4, 3), np.float64),
    ],
)
def test_what_is_no_picture_is_refused(network: Network, picture: NDArray[Any]) -> None:
    with pytest.raises(OptionError, match="picture has the"):
        upscale(network, picture, scale=2)
