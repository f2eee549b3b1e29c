"""What a budget buys by several rules, for a network with three classes; the measurement behind the rule that is used.

Every pixel is upscaled by every class, so that any routing is a sum over pixels. A rule routes the pixels of each
picture so that the share of the adjustable cost is spent, and what counts is the mean PSNR of the pictures (all
pixels, three channels, clamped, unrounded).

    python scripts/budget_rules.py CHECKPOINT --data FOLDER
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from pcsr.model.checkpoint import load_checkpoint
from pcsr.model.cost import network_cost
from pcsr.model.network import Network
from pcsr.model.reference import upscale
from pcsr.runtime.console import exit_on_error
from pcsr.runtime.decision import budget_counts
from pcsr.runtime.errors import OptionError
from pcsr.validation.sets import find_sets, make_pair, read_truth

Doubles = NDArray[np.float64]
Rule = Callable[["Pixels", float], float]

BUDGETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7)
SHARES = np.linspace(0, 1, 41)


class Pixels:
    """A picture's pixels, the most difficult first.

    Args:
        probability: (n, 3).
        error: (n, 3) squared error of each class.
        costs: of the three classes, per pixel.
    """

    def __init__(self, probability: Doubles, error: Doubles, costs: Sequence[int]) -> None:
        difficulty = probability @ np.arange(3.0)
        order = np.argsort(-difficulty, kind="stable")
        self.difficulty, self.probability, self.error = difficulty[order], probability[order], error[order]
        self.n, self.costs = len(order), costs
        self.steps = costs[1] - costs[0], costs[2] - costs[1]
        self._below = np.vstack([np.zeros(3), np.cumsum(self.error, axis=0)])

    def mean(self, reaching_1: int, reaching_2: int) -> float:
        """Mean squared error with so many pixels in class 1 or 2, and in class 2."""
        at, total = self._below, self._below[-1, 0]
        light = total - at[reaching_1, 0]
        return float(light + at[reaching_1, 1] - at[reaching_2, 1] + at[reaching_2, 2]) / self.n

    def spent(self, classes: NDArray[np.intp]) -> float:
        """Share of the adjustable cost."""
        rising = np.array([0, self.steps[0], sum(self.steps)])
        return float(rising[classes].mean() / sum(self.steps))


def equal_parts(pixels: Pixels, budget: float) -> float:
    """Each step from a class to the next gets the same part of the budget: the rule that is used."""
    one, two = budget_counts(pixels.n, budget, pixels.steps)
    return pixels.mean(one, two)


def same_share(pixels: Pixels, budget: float) -> float:
    """Of the pixels that reach a class, the same share q reaches the next: q and q^2 of all pixels."""
    first, second = pixels.steps
    q = ((first**2 + 4 * second * budget * (first + second)) ** 0.5 - first) / (2 * second)
    return pixels.mean(round(q * pixels.n), round(q * q * pixels.n))


def split(pixels: Pixels, budget: float, share: float) -> float:
    """A fixed share of the budget for the middle class, or what is left of all pixels."""
    middle, heavy = pixels.steps[0] / sum(pixels.steps), budget * (1 - share)
    reaching_1 = heavy + budget * share / middle
    if reaching_1 > 1:
        reaching_1, heavy = 1.0, (budget - middle) / (1 - middle)
    return pixels.mean(round(reaching_1 * pixels.n), round(heavy * pixels.n))


def one_apart(pixels: Pixels, budget: float) -> float:
    """Thresholds of difficulty that lie one apart."""
    ascending = pixels.difficulty[::-1]

    def reaching(threshold: float) -> int:
        return pixels.n - int(np.searchsorted(ascending, threshold))

    low, high = -1.0, 2.1
    for _ in range(50):
        middle = (low + high) / 2
        counts = reaching(middle), reaching(middle + 1)
        spent = sum(step * count for step, count in zip(pixels.steps, counts, strict=True))
        low, high = (low, middle) if spent <= budget * pixels.n * sum(pixels.steps) else (middle, high)
    return pixels.mean(reaching(high), reaching(high + 1))


def solved_k(pixels: Pixels, budget: float) -> float:
    """The paper's argmax of p / cost^k on every pixel, with the k that spends the budget."""
    logarithm, cost = np.log(np.maximum(pixels.probability, 1e-30)), np.log(np.array(pixels.costs, float))
    low, high = -100.0, 100.0
    for _ in range(50):
        k = (low + high) / 2
        spent = pixels.spent((logarithm - k * cost).argmax(axis=1))
        low, high = (low, k) if spent <= budget else (k, high)
    classes = (logarithm - high * cost).argmax(axis=1)
    return float(np.take_along_axis(pixels.error, classes[:, None], axis=1).mean())


def best_split(pixels: Pixels, budget: float) -> float:
    """The best division for this very picture, which only its truth can tell: nothing that cuts the order of
    difficulty can do better."""
    return min(split(pixels, budget, share) for share in SHARES)


RULES: dict[str, Rule] = {
    "each step gets the same part (used)": equal_parts,
    "the same share of each class goes on": same_share,
    "half for pixels of the middle class": lambda pixels, budget: split(pixels, budget, 0.5),
    "all for the middle class, as far as it goes": lambda pixels, budget: split(pixels, budget, 1.0),
    "none for it: light and heavy only": lambda pixels, budget: split(pixels, budget, 0.0),
    "thresholds one apart": one_apart,
    "argmax of p / cost^k, k solved for": solved_k,
    "best division, known from the truth": best_split,
}


def measure(network: Network, picture: NDArray[Any], scale: int) -> Pixels:
    """All classes on a picture's low-resolution version."""
    lr, truth = make_pair(picture, scale=scale)
    size = truth.shape[:2]
    probability = upscale(network, lr, size=size).probability
    assert probability is not None
    made = [upscale(network, lr, size=size, force_class=j).image for j in range(3)]
    wanted = truth / 255.0 if truth.dtype == np.uint8 else truth
    error = [((np.clip(image, 0, 1) - wanted) ** 2).mean(axis=2).reshape(-1) for image in made]
    costs = network_cost(network).published.upsamplers
    return Pixels(probability.reshape(-1, 3).astype(np.float64), np.stack(error, axis=1), costs)


def table(network: Network, pictures: Sequence[NDArray[Any]], scales: Sequence[int]) -> list[str]:
    """A Markdown table for each scale: mean PSNR in dB of each rule at each budget."""
    lines = []
    for scale in scales:
        each = [measure(network, picture, scale) for picture in pictures]
        lines += [f"| ×{scale} | " + " | ".join(f"{budget:g}" for budget in BUDGETS) + " |"]
        lines += ["|---|" + "---|" * len(BUDGETS)]
        for name, rule in RULES.items():
            found = [np.mean([-10 * np.log10(rule(pixels, budget)) for pixels in each]) for budget in BUDGETS]
            lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in found) + " |")
    return lines


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--scale", "-s", "scales", type=click.IntRange(2, 8), multiple=True, default=(2, 4))
@click.option("--limit", type=click.IntRange(1), help="The first pictures of each set, no more.")
@exit_on_error()
def main(*, checkpoint: Path, data: Path, scales: tuple[int, ...], limit: int | None) -> None:
    """Print the tables for CHECKPOINT and all pictures of a folder of sets."""
    network = load_checkpoint(checkpoint)
    if network.spec.classes != 3:
        raise OptionError(f"{checkpoint} has {network.spec.classes} classes; this compares rules for three")
    pictures = [read_truth(path) for each in find_sets(data, limit=limit) for path in each.paths]
    for line in table(network, pictures, scales):
        click.echo(line)


if __name__ == "__main__":
    main()
