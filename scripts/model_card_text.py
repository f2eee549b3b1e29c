"""The text of a model's card: made of its results, its checkpoint's metadata and its configuration, of nothing else."""

from __future__ import annotations

from collections.abc import Iterable

from model_card_results import (
    ADAPTIVE,
    BICUBIC,
    DENSE,
    HEAVY,
    K0,
    PUBLISHED,
    Figures,
    PictureFigures,
    Results,
)
from model_card_training import Made, licence_section, preview_section, prose, training_section

SHOWN = "Kodak24"
"""The only set whose pictures may be shown; of the others, names and numbers."""
SMALLEST, TYPICAL = "smallest gain", "typical"
SMALLEST_GAINS = 5
COLUMNS = {
    BICUBIC: "bicubic",
    DENSE: "published dense",
    PUBLISHED + HEAVY: "published PCSR, all heavy",
    PUBLISHED + K0: "published PCSR, k = 0",
    HEAVY: "all heavy",
    K0: "k = 0",
    ADAPTIVE: "adaptive",
}

INTRODUCTION = """
Enlarges photographs by any factor from {low:g} to {high:g}. For every output pixel a small classifier chooses one of
{classes} upsamplers, so that easy pixels cost less. It ships with the toolkit: `pcsr-upscale -b {name}`, or
`Upscaler.open("{name}")` in Python.
"""
MEASURES = """
PSNR in dB over RGB, mean over the pictures of a set. LR pictures by MATLAB-style bicubic, unrounded; no refinement; as
many pixels left out at each side as the scale says. *All heavy* sends every pixel to the largest upsampler (`--budget
1`), *k = 0* is the default, *adaptive* is `--adaptive`. The second table of a scale says which share of the pixels went
to each class, the lightest first, and what that cost against all heavy: FLOPs by the paper's count, then
multiply-accumulates as run. The results file has luma PSNR, SSIM and every picture.
"""
PUBLISHED_NETWORKS = """
*Published* are the authors' {files} (github.com/3587jjh/PCSR, without a licence; not part of this repository),
measured here in the same way. They were trained for ×4: at other scales the published classifier is on unknown ground,
and the dense network does not run.
"""
GALLERY = """
From left to right: truth, bicubic, k = 0, and where the computation went (blue the lightest upsampler, orange the
heaviest). Of a picture with the smallest gain, the part where k = 0 errs most; of a typical one, a part that gains as
the whole picture does. Numbers are of whole pictures. The pictures are Kodak's, released by Eastman Kodak for
unrestricted usage.
"""
LIMITS = """\
- The model expects LR pictures like those it was trained on: clean photographs, shrunk by MATLAB-style bicubic. It
  removes no noise and no JPEG artefacts, and undoes no other blur: faults of the input are enlarged with it.
- Scales outside {low:g} to {high:g} were not trained.
- Drawings, text and screenshots are hardly among the training pictures."""


def card(results: Results, made: Made) -> str:
    """The card in Markdown."""
    low, high = made.config["data"]["scales"]
    classes, name = len(made.config["network"]["upsamplers"]), results.name
    sections = [
        f"# {name}: {made.title}{' (preview)' if made.preview else ''}",
        prose(INTRODUCTION.format(low=low, high=high, classes=classes, name=name)),
        preview_section(name, made),
        licence_section(made),
        training_section(results, made),
        _quality(results),
        *(_scale(results, scale) for scale in results.scales),
        _worse(results.pictures),
        _gallery(results),
        _limits(made),
        prose(
            f"Made by `scripts/model_card.py write` of [the results](../results/models/{name}.json) and the metadata "
            "of the checkpoint."
        ),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def gallery_cases(results: Results) -> list[tuple[PictureFigures, str]]:
    """What the gallery shows, a row each: the two smallest gains, and the median gains at the two highest scales.

    Returns:
        Pictures with `SMALLEST` or `TYPICAL`.
    """
    shown = sorted((one for one in results.pictures if one.set == SHOWN), key=lambda one: one.gain)
    # Two pictures, and not one at two scales.
    worst = {one.name: one for one in reversed(shown)}
    cases = [(one, SMALLEST) for one in sorted(worst.values(), key=lambda one: one.gain)[:2]]
    for scale in results.scales[-2:]:
        at_scale = [one for one in shown if one.scale == scale]
        if at_scale:
            cases.append((at_scale[len(at_scale) // 2], TYPICAL))
    return cases


def _quality(results: Results) -> str:
    ran = results.ran
    paragraphs = ["## Quality and cost", prose(MEASURES)]
    if results.published:
        files = " and ".join(f"`{name}`" for name in sorted(results.published))
        paragraphs.append(prose(PUBLISHED_NETWORKS.format(files=files)))
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    paragraphs += [
        prose(
            f"Measured on {results.machine['processor']} (threads: {ran['threads']}) with {ran['backend']}, "
            f"{ran['provider']}, {ran['precision']}; {versions}; by"
        ),
        f"```console\n$ {results.command}\n```",
    ]
    return "\n\n".join(paragraphs)


def _scale(results: Results, scale: float) -> str:
    rows = {(row.set, row.what): row for row in results.sets if row.scale == scale}
    sets = list(dict.fromkeys(name for name, _ in rows))
    present = {what for _, what in rows}
    columns = [what for what in COLUMNS if what in present]
    quality = _table(
        ["set", "pictures", *(COLUMNS[what] for what in columns)],
        (
            [name, str(rows[name, BICUBIC].pictures), *(f"{rows[name, what].psnr:.2f}" for what in columns)]
            for name in sets
        ),
    )
    routed = [what for what in (K0, ADAPTIVE, PUBLISHED + K0) if what in present]
    cost = _table(
        ["set", *(f"{COLUMNS[what]}: pixels %; cost %" for what in routed)],
        ([name, *(_cost(rows[name, what]) for what in routed)] for name in sets),
    )
    return f"### ×{scale:g}\n\n{quality}\n\n{cost}"


def _cost(row: Figures) -> str:
    shares = " / ".join(f"{100 * share:.1f}" for share in row.shares)
    costs = " / ".join(f"{100 * cost:.0f}" for cost in (row.flops, row.macs) if cost is not None)
    return f"{shares}; {costs}"


def _worse(pictures: Iterable[PictureFigures]) -> str:
    by_gain = sorted(pictures, key=lambda one: one.gain)
    worse = [one for one in by_gain if one.gain < 0]
    if worse:
        said = f"In {len(worse)} of {len(by_gain)} cases (a picture at a scale) k = 0 lies below bicubic:"
    else:
        said = f"In none of {len(by_gain)} cases (a picture at a scale) k = 0 lies below bicubic. The smallest gains:"
    table = _table(
        ["set", "picture", "scale", "bicubic", "k = 0", "gain dB"],
        ([one.set, one.name, *_gain(one)] for one in worse or by_gain[:SMALLEST_GAINS]),
    )
    return f"## Where it is worse than bicubic\n\n{said}\n\n{table}"


def _gallery(results: Results) -> str:
    cases = gallery_cases(results)
    if not cases:
        return ""
    table = _table(
        ["row", "case", "picture", "scale", "bicubic", "k = 0", "gain dB"],
        ([str(row), case, one.name, *_gain(one)] for row, (one, case) in enumerate(cases, start=1)),
    )
    image = f"![truth, bicubic, k = 0, classes]({results.name}-gallery.webp)"
    return f"## Gallery\n\n{image}\n\n{prose(GALLERY)}\n\n{table}"


def _limits(made: Made) -> str:
    low, high = made.config["data"]["scales"]
    lines = ["## Limits", "", LIMITS.format(low=low, high=high)]
    if made.preview:
        shares = " and ".join(
            f"{100 * made.steps[phase] / steps:.2g} %" for phase, steps in made.whole.items()
        )
        lines.append(f"- It is a preview, with {shares} of the steps of its phases: expect more of the rest.")
    return "\n".join(lines)


def _gain(one: PictureFigures) -> list[str]:
    gain = f"{one.gain:+.3f}".replace("-", "−")
    return [f"×{one.scale:g}", f"{one.psnr[BICUBIC]:.2f}", f"{one.psnr[K0]:.2f}", gain]


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    first, *others = (f"| {' | '.join(cells)} |" for cells in (head, *rows))
    return "\n".join([first, f"|---{'|---:' * (len(head) - 1)}|", *others])
