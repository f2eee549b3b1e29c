"""The oracle: PCSR's inference as published, plainly and slowly, with everything the authors' program does.

Coordinates and sampling are PyTorch's own float32 `grid_sample`, as in the authors' program, so that where
rounding decides the nearest input pixel (fractional scales), PyTorch decides. On a CPU with fused
multiply-add, every one of the last ten years, that is the rule the runtime reproduces.

Source: "PCSR: Pixel-level Classification for Single Image Super-Resolution" (Jeong et al., ECCV 2024).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pcsr.model.cost import network_cost, normalised_cost_list, total
from pcsr.model.network import Network
from pcsr.runtime.errors import OptionError

__all__ = ["Reference", "output_size", "upscale"]


@dataclass(frozen=True, slots=True)
class Reference:
    """What the published inference makes of a picture."""

    image: NDArray[np.float32]
    """(H, W, 3), de-normalised (0 to 1 nominal), neither clamped nor rounded."""
    class_map: NDArray[np.uint8]
    """(H, W), the class of each pixel, 0 the lightest; refinement does not change it."""
    probability: NDArray[np.float32] | None
    """(H, W, M) softmax of the classifier, before any division by costs; None where no classifier ran."""
    thresholds: tuple[float, ...] | None
    """M - 1, ascending: the difficulty (expected class; with two classes the probability of the heavy one) from
    which (k: above which) a pixel goes to each class but the lightest; infinite where none is to. None without a
    classifier, and for more than two classes under k."""
    flops: int
    """Of the whole forward pass, by the published convention."""
    macs: int
    """True multiply-accumulates of the same."""


def upscale(
    network: Network,
    picture: NDArray[Any],
    *,
    scale: float | None = None,
    size: tuple[int, int] | None = None,
    k: float = 0.0,
    adaptive: bool = False,
    budget: float | None = None,
    refine: bool = False,
    pixel_batch: int = 300_000,
    force_class: int | None = None,
) -> Reference:
    """Upscale a picture by the published inference.

    A heavy-only (phase 0) network sends every pixel to its only class.

    Args:
        network: on any device, in eval mode.
        picture: (h, w, 3) RGB, uint8, or float32 in 0 to 1 (nominal).
        scale: real factor from 1 up; H = round(h * scale), half to even, and W likewise.
        size: (H, W) instead, from (h, w) up.
        k: probabilities are divided by cost^k before their argmax (paper, section 3.3).
        adaptive: adaptive decision making (paper, section 3.4) instead. Where the difficulty is the same
            everywhere (the authors' program stops with an error), all pixels go to the lightest class. More than
            two classes, which their program does not have, begin with centroids evenly spread.
        budget: share of the adjustable cost, 0 to 1, to spend instead, on the most difficult pixels; for two
            classes it is the share of heavy pixels. Not in the paper; for comparisons.
        refine: replace light pixels that have a heavier neighbour by the mean of their 3x3 neighbourhood
            (paper, section 3.5); the outermost pixels stay.
        pixel_batch: HR pixels at a time; bounds the memory apart from features and results.
        force_class: send every pixel to this class instead; the classifier does not run.

    Raises:
        OptionError: the options contradict each other, are out of range, or ask for a budget among more than
            two classes whose costs do not ascend.
    """
    _check_options(
        network, k=k, adaptive=adaptive, budget=budget, pixel_batch=pixel_batch, force_class=force_class
    )
    network_costs = network_cost(network)
    costs = network_costs.published.upsamplers
    if budget is not None and len(costs) > 2 and list(costs) != sorted(set(costs)):
        raise OptionError(
            f"a budget needs costs that ascend with the class; they are {costs}; use k or adaptive"
        )
    lr = _normalised(network, picture)
    h, w = lr.shape[2:]
    H, W = output_size((h, w), scale=scale, size=size)
    scale_key = float(scale) if scale is not None else round((H / h + W / w) / 2, 1)
    only_class = 0 if network.classifier is None else force_class

    with torch.inference_mode():
        features = network.backbone(lr)
        # Both are sampled at the nearest LR pixel, so they travel together.
        sampled = torch.cat([features, _coordinates_map(h, w, lr.device)], dim=1)
        probability = thresholds = None
        if only_class is None:
            assert network.classifier is not None
            probability = torch.cat(
                [
                    network.classifier(_head_inputs(sampled, coordinates, (H, W))).softmax(dim=1)
                    for _, coordinates in _batches((H, W), pixel_batch, lr.device)
                ]
            )
            if adaptive:
                classes, thresholds = _classes_adaptive(_difficulty(probability), network.spec.classes)
            elif budget is not None:
                classes, thresholds = _classes_budget(_difficulty(probability), budget, costs)
            else:
                classes, thresholds = _classes_k(
                    probability, k, normalised_cost_list(network_costs, scale_key)
                )
        else:
            classes = torch.full((H * W,), only_class, dtype=torch.uint8, device=lr.device)

        prediction = torch.empty(H * W, 3, device=lr.device)
        for span, coordinates in _batches((H, W), pixel_batch, lr.device):
            rows = _head_inputs(sampled, coordinates, (H, W))
            colours = _sample(lr, coordinates, "bilinear")
            for index, upsampler in enumerate(network.upsamplers):
                chosen = classes[span] == index
                colours[chosen] += upsampler(rows[chosen])
            prediction[span] = colours
        if refine:
            prediction = _refined(prediction, classes, (H, W))
        std, mean = prediction.new_tensor(network.spec.std), prediction.new_tensor(network.spec.mean)
        image = prediction * std + mean

    counts = torch.bincount(classes.int(), minlength=network.spec.classes).tolist()
    classified = only_class is None
    return Reference(
        image=image.view(H, W, 3).cpu().numpy(),
        class_map=classes.view(H, W).cpu().numpy(),
        probability=None if probability is None else probability.view(H, W, -1).cpu().numpy(),
        thresholds=thresholds,
        flops=total(network_costs.published, h, w, counts, classified=classified),
        macs=total(network_costs.macs, h, w, counts, classified=classified),
    )


def output_size(
    lr_size: tuple[int, int], *, scale: float | None = None, size: tuple[int, int] | None = None
) -> tuple[int, int]:
    """(H, W) of the output for an (h, w) picture: Python's float product, rounded half to even.

    Raises:
        OptionError: not exactly one of scale and size, or an output smaller than the picture.
    """
    h, w = lr_size
    if (scale is None) == (size is None):
        raise OptionError("give exactly one of scale and size")
    if scale is not None:
        if not (math.isfinite(scale) and scale >= 1):
            raise OptionError(f"scale is {scale}; it must be a finite number from 1 up")
        return round(h * scale), round(w * scale)
    assert size is not None
    if (
        len(size) != 2
        or not all(isinstance(side, int | np.integer) for side in size)
        or size[0] < h
        or size[1] < w
    ):
        raise OptionError(
            f"size is {size}; it must be two whole numbers (H, W), no smaller than the picture's {h, w}"
        )
    return int(size[0]), int(size[1])


def _check_options(
    network: Network,
    *,
    k: float,
    adaptive: bool,
    budget: float | None,
    pixel_batch: int,
    force_class: int | None,
) -> None:
    classes = network.spec.classes
    if (k != 0) + adaptive + (budget is not None) + (force_class is not None) > 1:
        raise OptionError("k, adaptive, budget and force_class contradict each other; give at most one")
    if not math.isfinite(k):
        raise OptionError(f"k is {k}; it must be finite")
    if budget is not None and not 0 <= budget <= 1:
        raise OptionError(f"budget is {budget}; it must be between 0 and 1")
    if force_class is not None and not 0 <= force_class < classes:
        raise OptionError(f"force_class is {force_class}; the network has the classes 0 to {classes - 1}")
    if pixel_batch < 1:
        raise OptionError(f"pixel_batch is {pixel_batch}; it must be 1 or more")


def _normalised(network: Network, picture: NDArray[Any]) -> Tensor:
    """(h, w, 3) picture to (1, 3, h, w) float32, (x - mean) / std."""
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise OptionError(f"picture has the shape {picture.shape}; it must be (h, w, 3)")
    if picture.dtype not in (np.uint8, np.float32):
        raise OptionError(f"picture has the type {picture.dtype}; it must be uint8, or float32 in 0 to 1")
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).to(next(network.parameters()).device)
    pixels = pixels / 255 if picture.dtype == np.uint8 else pixels
    pixels = (pixels - pixels.new_tensor(network.spec.mean)) / pixels.new_tensor(network.spec.std)
    return pixels.permute(2, 0, 1).unsqueeze(0).contiguous()


def _centres(n: int, device: torch.device) -> Tensor:
    """Centres of n pixels that share the interval -1 to 1, rounded as the authors' program rounds them."""
    half = 1 / n
    return -1 + half + 2 * half * torch.arange(n, device=device).float()


def _coordinates_map(h: int, w: int, device: torch.device) -> Tensor:
    """(1, 2, h, w) coordinates (y, x) of every LR pixel."""
    return torch.stack(torch.meshgrid(_centres(h, device), _centres(w, device), indexing="ij")).unsqueeze(0)


def _batches(
    hr_size: tuple[int, int], pixel_batch: int, device: torch.device
) -> Iterator[tuple[slice, Tensor]]:
    """Spans of row-major HR pixels with their (n, 2) coordinates (y, x)."""
    H, W = hr_size
    ys, xs = _centres(H, device), _centres(W, device)
    for start in range(0, H * W, pixel_batch):
        span = slice(start, min(start + pixel_batch, H * W))
        index = torch.arange(span.start, span.stop, device=device)
        yield span, torch.stack([ys[index // W], xs[index % W]], dim=1)


def _sample(values: Tensor, coordinates: Tensor, mode: str) -> Tensor:
    """(1, c, h, w) values at (n, 2) coordinates (y, x): (n, c)."""
    grid = coordinates.flip(1).view(1, 1, -1, 2)
    found = functional.grid_sample(values, grid, mode=mode, padding_mode="border", align_corners=False)
    return found[0, :, 0].T.contiguous()


def _head_inputs(sampled: Tensor, coordinates: Tensor, hr_size: tuple[int, int]) -> Tensor:
    """(n, C + 4) rows [feature, rel_y, rel_x, cell_y, cell_x] for the heads.

    Relative coordinates and cells are in half LR pixels: from the nearest LR pixel's centre, and the extent
    of an HR pixel.
    """
    lr_size = coordinates.new_tensor(sampled.shape[2:])
    nearest = _sample(sampled, coordinates, "nearest")
    feature, centre = nearest[:, :-2], nearest[:, -2:]
    relative = (coordinates - centre) * lr_size
    cell = (2 / coordinates.new_tensor(hr_size)) * lr_size
    return torch.cat([feature, relative, cell.expand_as(relative)], dim=1)


def _difficulty(probability: Tensor) -> Tensor:
    """(n, M) probabilities to (n,) expected classes, summed in ascending order."""
    difficulty = probability[:, 1]
    for j in range(2, probability.shape[1]):
        difficulty = difficulty + j * probability[:, j]
    return difficulty


def _classes_k(
    probability: Tensor, k: float, costs: tuple[float, ...]
) -> tuple[Tensor, tuple[float, ...] | None]:
    """Argmax of probability / cost^k; the lighter class on a tie."""
    cost = torch.tensor(costs, dtype=torch.float32, device=probability.device)
    price = cost**k
    if torch.isfinite(price).all() and (price > 0).all():
        merit = probability / price
    else:  # so extreme a k that float32 cannot hold the power: compare logarithms
        merit = probability.double().log() - k * cost.double().log()
    classes = merit.argmax(dim=1).to(torch.uint8)
    if len(costs) > 2:
        return classes, None
    ratio = k * (math.log(costs[0]) - math.log(costs[1]))
    return classes, (1 / (1 + math.exp(min(ratio, 700))),)


def _classes_adaptive(difficulty: Tensor, classes: int) -> tuple[Tensor, tuple[float, ...]]:
    """M-means on the normalised difficulty of the whole picture, as fast_pytorch_kmeans runs it for two classes.

    The authors start it with the one centroid 0.5: after the first update the centroids are the mean of all
    and, of an empty cluster, 0. More than two start evenly spread. The labels are those from the start of the
    last iteration. In float64: the library's float32 sums depend on the order of summation.
    """
    low, high = difficulty.min(), difficulty.max()
    if not high > low:
        return torch.zeros_like(difficulty, dtype=torch.uint8), (math.inf,) * (classes - 1)
    values = ((difficulty - low) / (high - low)).double()
    centroids = [0.0, values.mean().item()] if classes == 2 else [j / (classes - 1) for j in range(classes)]
    for _ in range(19):  # max_iter = 20, the first of which is the authors' start
        middles = values.new_tensor([(a + b) / 2 for a, b in itertools.pairwise(centroids)])
        labels = torch.bucketize(values, middles, right=True)
        members = [values[labels == j] for j in range(classes)]
        # An empty cluster stays where it is; of two, neither ever is: the values 0 and 1 occur.
        means = [
            own.mean().item() if own.numel() else old for own, old in zip(members, centroids, strict=True)
        ]
        moved = sum((new - old) ** 2 for new, old in zip(means, centroids, strict=True))
        centroids = means
        if moved <= 1e-4:
            break
    width = float(high) - float(low)
    return labels.to(torch.uint8), tuple(float(low) + middle * width for middle in middles.tolist())


def _classes_budget(
    difficulty: Tensor, budget: float, costs: tuple[int, ...]
) -> tuple[Tensor, tuple[float, ...]]:
    """The most difficult pixels get the budget, a share of what is between all light and all heaviest.

    Each step from a class to the next gets the same part of the budget, or what all pixels need to take it if that is
    less; no step is taken by more pixels than the one before. Pixels of one difficulty go together, so that the
    number is missed by as little as can be, and upwards where both ways are as near.
    """
    n, steps = difficulty.numel(), [heavier - lighter for lighter, heavier in itertools.pairwise(costs)]
    if len(steps) == 1:
        shares = [budget]
    else:
        # What the steps cost when each may spend `part` rises with it: halve until the doubles end.
        dearest = [max(steps[: j + 1]) for j in range(len(steps))]
        part, beyond = 0.0, math.nextafter(float(dearest[-1]), math.inf)
        while part < (middle := (part + beyond) / 2) < beyond:
            spent = sum(step * min(1.0, middle / most) for step, most in zip(steps, dearest, strict=True))
            part, beyond = (middle, beyond) if spent <= budget * sum(steps) else (part, middle)
        shares = [min(1.0, part / most) for most in dearest]
    exact = difficulty.double()
    values, counts = torch.unique(exact, return_counts=True)
    # Thresholds that can be, from none reached to the least value, and how many pixels reach each.
    thresholds = torch.cat([values, values.new_tensor([math.inf])]).flip(0)
    reaching = torch.cat([counts.new_zeros(1), counts.flip(0).cumsum(0)])
    chosen = []
    for share in shares:
        missed = (reaching - round(share * n)).abs()
        chosen.append(thresholds[(missed == missed.min()).nonzero()[-1, 0]])
    found = torch.stack(chosen)
    return (exact[:, None] >= found).sum(dim=1).to(torch.uint8), tuple(found.tolist())


def _refined(prediction: Tensor, classes: Tensor, hr_size: tuple[int, int]) -> Tensor:
    """Mean of the 3x3 neighbourhood for light pixels with a heavier one in it, the border apart."""
    H, W = hr_size
    heavier = (classes > 0).float().view(1, 1, H, W)
    near_heavier = functional.max_pool2d(heavier, 3, stride=1, padding=1).view(H, W) > 0
    chosen = near_heavier & (classes == 0).view(H, W)
    chosen[[0, -1], :] = False
    chosen[:, [0, -1]] = False
    planes = prediction.T.reshape(1, 3, H, W)
    means = functional.avg_pool2d(planes, 3, stride=1, padding=1)  # its padded border is never used
    return torch.where(chosen, means, planes)[0].flatten(1).T
