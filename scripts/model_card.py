"""The card of a shipped model: what it is, what it was made of, what was measured, where it fails.

    python scripts/model_card.py measure carn --checkpoint training/networks/carn.safetensors \\
        --bundle runtime/bundles/carn --data TESTSETS --output docs/results/models/carn.json
    python scripts/model_card.py write carn --checkpoint training/networks/carn.safetensors \\
        --results docs/results/models/carn.json --sources SOURCES.csv --data TESTSETS --output docs/models/carn.md

`measure` takes minutes and writes numbers; `write` makes the card of them, a gallery beside it, and the page that
credits the training pictures. Without --sources and --data, `write` makes the card's text alone, from committed files.

Status: 0 done, 1 a picture failed, 2 usage, 3 the pictures are not those that were measured.
"""

from __future__ import annotations

import json
import shlex
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click
import numpy as np
import safetensors
from model_card_results import K0, Results, encode, measure, read_results, training_of
from model_card_sources import check_sources, licences_of, pictures_page, read_sources
from model_card_text import SHOWN, TYPICAL, card, gallery_cases
from model_card_training import Made
from numpy.typing import NDArray

from pcsr.model.checkpoint import checkpoint_sha256, load_checkpoint
from pcsr.model.network import Network
from pcsr.model.reference import upscale
from pcsr.runtime.atomic import unwritable, write_whole
from pcsr.runtime.bicubic import resize
from pcsr.runtime.class_maps import overlay
from pcsr.runtime.console import exit_on_error, start_logging
from pcsr.runtime.errors import CheckError, OptionError
from pcsr.runtime.pictures import write_picture
from pcsr.training.config import load_config
from pcsr.training.resume import as_plain
from pcsr.validation.cli import watching
from pcsr.validation.compare import Watch
from pcsr.validation.metrics import psnr, shave_for
from pcsr.validation.sets import find_sets, make_pair, read_truth

ROOT = Path(__file__).resolve().parent.parent
PICTURES_PAGE = "training-pictures.md"
CROP, GAP, STEP, QUALITY = 192, 6, 16, 90
"""Pixels of a gallery's crop and between two, of the grid on which crops are looked for; WebP's quality."""
TOLERANCE = 0.02
"""dB by which a gallery's picture may differ from the measured one: PyTorch beside the runtime."""
PATH = click.Path(path_type=Path)


@click.group()
def main() -> None:
    """Measure a model, or write its card."""
    start_logging()


@main.command("measure")
@click.argument("name")
@click.option("--checkpoint", required=True, type=PATH, help="The network, as pcsr-train wrote it.")
@click.option("--bundle", required=True, type=PATH, help="Made of that checkpoint.")
@click.option("--data", required=True, type=PATH, help="Folder of test sets.")
@click.option("--published-pcsr", type=PATH, help="The authors' PCSR checkpoint, to compare with.")
@click.option("--published-dense", type=PATH, help="The authors' dense x4 checkpoint, to compare with.")
@click.option("--run", type=PATH, help="Folder of the training run, for its hours and plans.")
@click.option("--trained-on", default="", help="What it was trained on, in words for the card.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: the cores this process may use.")
@click.option("--output", required=True, type=PATH, help="JSON file.")
@exit_on_error()
def measure_command(name: str, *, run: Path | None, output: Path, data: Path, **options: Any) -> None:
    """Measure the model NAME and what it is compared with on every set, and write the numbers."""
    _make_folder(output)
    training = None if run is None else training_of(run, _metadata(options["checkpoint"]))

    def progress(scales: int) -> AbstractContextManager[Watch]:
        return watching(data, scales=scales, limit=None)

    results = measure(name, data=data, training=training, command=_typed(), watching=progress, **options)
    write_whole(output, encode(results))
    click.echo(output)


@main.command("write")
@click.argument("name")
@click.option("--checkpoint", required=True, type=PATH, help="The network that was measured.")
@click.option("--results", "measured", required=True, type=PATH, help="From measure.")
@click.option("--config", type=PATH, help="Configuration in the repository.  [default: of that NAME]")
@click.option("--sources", type=PATH, help="Table of the training pictures; without it their page is kept.")
@click.option("--data", type=PATH, help="Folder of test sets; without it the gallery is kept.")
@click.option("--output", required=True, type=PATH, help="Markdown file.")
@exit_on_error()
def write_command(
    name: str,
    *,
    checkpoint: Path,
    measured: Path,
    config: Path | None,
    sources: Path | None,
    data: Path | None,
    output: Path,
) -> None:
    """Write the card of the model NAME."""
    _make_folder(output)
    results = read_results(measured)
    if (results.name, results.checkpoint_sha256) != (name, checkpoint_sha256(checkpoint)):
        raise OptionError(f"{measured} was not measured with {name} of {checkpoint}; measure it first")
    metadata = _metadata(checkpoint)
    page = output.with_name(PICTURES_PAGE)
    if sources is not None:
        listed = read_sources(sources)
        check_sources(listed, sources, data_sha256=metadata["data_sha256"])
        write_whole(page, pictures_page(listed).encode())
        click.echo(page)
    made = _made(metadata, config or ROOT / "training" / "configs" / f"{name}.yaml", page)
    gallery = output.with_name(f"{name}-gallery.webp")
    if data is not None and gallery_cases(results):
        write_picture(gallery, _gallery(load_checkpoint(checkpoint), results, data), quality=QUALITY)
        click.echo(gallery)
    elif gallery_cases(results) and not gallery.exists():
        click.echo(f"{gallery} is missing, which the card shows; make it with --data", err=True)
    write_whole(output, card(results, made).encode())
    click.echo(output)


def _make_folder(output: Path) -> None:
    """Found out now, not after the measurement."""
    output.parent.mkdir(parents=True, exist_ok=True)
    if problem := unwritable(output):
        raise OptionError(problem)


def _typed() -> str:
    """The command for the record; of paths outside the repository their names, as the rest means nothing elsewhere."""
    context = click.get_current_context()
    words = ["python", "scripts/model_card.py", str(context.info_name)]
    for parameter in context.command.params:
        value = context.params[str(parameter.name)]
        if value is None or value == "":
            continue
        if isinstance(value, Path):
            whole = value.resolve()
            value = whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else whole.name
        words += [parameter.opts[0]] if isinstance(parameter, click.Option) else []
        words.append(str(value))
    return shlex.join(words)


def _metadata(checkpoint: Path) -> dict[str, str]:
    """What pcsr-train wrote of a network."""
    try:
        with safetensors.safe_open(checkpoint, framework="np") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise OptionError(
            f"cannot read {checkpoint} ({error}); give the network of a training run"
        ) from error
    missing = {"configuration", "data_sha256", "history", "plan"} - metadata.keys()
    if missing:
        raise OptionError(
            f"{checkpoint} does not say {', '.join(sorted(missing))}; only networks of pcsr-train have a card"
        )
    return metadata


def _made(metadata: dict[str, str], config: Path, page: Path) -> Made:
    """How the model was made, held against the repository's configuration and the page of credits."""
    made, repository = json.loads(metadata["configuration"]), as_plain(load_config(config))
    if made["network"] != repository["network"]:
        raise OptionError(
            f"the checkpoint holds another network than {config} describes; give its own --config"
        )
    if repository["hours"] is not None:
        raise OptionError(f"{config} plans in hours; a card compares steps, so give one that plans in steps")
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise OptionError(f"cannot read {page} ({error.strerror}); make it: give --sources") from error
    if metadata["data_sha256"] not in text:
        raise OptionError(
            f"{page} credits other pictures than the checkpoint was trained on; make it anew: give --sources"
        )
    return Made(
        config=made,
        repository=repository,
        plan=tuple(json.loads(metadata["plan"])),
        history=tuple(json.loads(metadata["history"])),
        data_sha256=metadata["data_sha256"],
        licences=licences_of(text),
    )


def _gallery(network: Network, results: Results, data: Path) -> NDArray[np.uint8]:
    """A row of crops for each case: truth, bicubic, k = 0, classes; smaller pictures lie on white."""
    paths = {path.stem: path for group in find_sets(data) if group.name == SHOWN for path in group.paths}
    cases = gallery_cases(results)
    pitch = CROP + GAP
    sheet = np.full((len(cases) * pitch - GAP, 4 * pitch - GAP, 3), 255, np.uint8)
    for row, (one, case) in enumerate(cases):
        if one.name not in paths:
            raise OptionError(f"{data} has no {SHOWN}/{one.name}; give the test sets that were measured")
        click.echo(f"gallery: {one.name} ×{one.scale:g}", err=True)
        lr, truth = make_pair(read_truth(paths[one.name]), scale=one.scale)
        ours = upscale(network, lr, scale=one.scale, k=0.0)
        found = psnr(ours.image, truth, shave=shave_for(one.scale))
        if not abs(found - one.psnr[K0]) <= TOLERANCE:
            raise CheckError(
                f"{SHOWN}/{one.name} ×{one.scale:g} gives {found:.3f} dB, measured were {one.psnr[K0]:.3f}; "
                "measure again with these pictures"
            )
        bicubic = resize(lr, size=(truth.shape[0], truth.shape[1]))
        window = _window(_levels(truth), _levels(bicubic), _levels(ours.image), typical=case == TYPICAL)
        classes = overlay(ours.image, ours.class_map, network.spec.classes)
        for column, panel in enumerate((truth, bicubic, ours.image, classes)):
            crop = np.rint(_levels(panel[window])).astype(np.uint8)
            H, W = crop.shape[:2]
            sheet[row * pitch : row * pitch + H, column * pitch : column * pitch + W] = crop
    return sheet


def _levels(picture: NDArray[Any]) -> NDArray[np.float64]:
    """Values of 0 to 255."""
    scale = 1 if picture.dtype == np.uint8 else 255
    return np.clip(picture.astype(np.float64) * scale, 0, 255)


def _window(
    truth: NDArray[np.float64], bicubic: NDArray[np.float64], ours: NDArray[np.float64], *, typical: bool
) -> tuple[slice, slice]:
    """The part of a picture to show: where ours errs most, or where it gains as it does in the whole picture."""
    H, W = truth.shape[:2]
    h, w = min(CROP, H), min(CROP, W)
    corners = [(y, x) for y in range(0, H - h + 1, STEP) for x in range(0, W - w + 1, STEP)]
    errors = []
    for picture in (bicubic, ours):
        # Sums over all pixels above and to the left, so that each window is four of them.
        sums = np.pad(((picture - truth) ** 2).sum(axis=2).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
        errors.append([sums[y + h, x + w] - sums[y, x + w] - sums[y + h, x] + sums[y, x] for y, x in corners])
        errors[-1].append(sums[-1, -1])
    (*before, before_all), (*after, after_all) = errors
    chosen = int(np.argmax(after))
    if typical:
        ratio = np.array(after) / np.maximum(before, 1e-9)
        # Not a smooth part, where there is nothing to see.
        plain = np.array(before) < np.median(before)
        chosen = int(np.argmin(np.where(plain, np.inf, np.abs(ratio - after_all / max(before_all, 1e-9)))))
    y, x = corners[chosen]
    return slice(y, y + h), slice(x, x + w)


if __name__ == "__main__":
    main()
