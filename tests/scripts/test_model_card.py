"""Model cards: the numbers are those of another PSNR, weaknesses are listed, sources are complete, nothing is stale."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import model_card
import numpy as np
import pytest
import skimage.data
import yaml
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio

from pcsr.export.pipeline import export_bundle
from pcsr.model.checkpoint import load_checkpoint, save_checkpoint
from pcsr.model.reference import upscale
from pcsr.runtime.bicubic import resize
from pcsr.runtime.pictures import read_picture, write_picture
from pcsr.training.command import Request, run_command

ROOT = Path(__file__).resolve().parent.parent.parent
CARDS = ROOT / "docs" / "models"
COMMITTED = sorted(path.stem for path in CARDS.glob("*.md") if path.stem != "training-pictures")
LICENCES = ('CC0-1.0 ("All images are CC0", README.md)', 'CC-BY-SA-4.0 (README: "CC BY-SA 4.0")', "CC-BY-4.0")
PHASE = {"batch": 2, "pixels": 60, "warmup": 2}
CONFIG = {
    "network": {"backbone": "carn", "width": 8, "upsamplers": [[4], [8, 8]], "classifier": [5]},
    "data": {"patch": 12, "scales": [1.5, 4.0]},
    "phases": {"backbone": {"steps": 3, **PHASE}, "decision": {"steps": 2, **PHASE}},
}

Run = Callable[..., Result]


@dataclass(frozen=True)
class Model:
    """A network that was trained for a moment and measured, and all it came from."""

    checkpoint: Path
    bundle: Path
    config: Path
    run: Path
    sources: Path
    sets: Path
    results: Path

    @property
    def measured(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.results.read_text())
        return found

    def psnr(self, group: str, name: str, scale: float, what: str) -> float:
        (row,) = (
            row
            for row in self.measured["pictures"]
            if (row["set"], row["name"], row["scale"]) == (group, name, scale)
        )
        found: float = row["psnr"][what]
        return found


@pytest.fixture(scope="module")
def run_script() -> Run:
    def run(*words: object) -> Result:
        return CliRunner().invoke(model_card.main, [str(word) for word in words])

    return run


def write_sources(path: Path, pictures: list[Path], *, tier: str = "A") -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "sha256", "source", "author", "licence", "processing", "tier"])
        for number, picture in enumerate(pictures):
            digest = hashlib.sha256(picture.read_bytes()).hexdigest()
            licence = LICENCES[number % len(LICENCES)]
            rows.writerow(
                [
                    f"train/{picture.name}",
                    digest,
                    f"somewhere|{number}",
                    f"Ada {number}",
                    licence,
                    "cut",
                    tier,
                ]
            )
        rows.writerow(["test/Kodak24/x.png", "0" * 64, "there", "Kodak", "unrestricted", "none", "K"])


@pytest.fixture(scope="module")
def model(run_script: Run, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("card")
    train, sets = folder / "train", folder / "sets"
    for place in (train, sets / "Kodak24", sets / "Other"):
        place.mkdir(parents=True)
    write_picture(train / "b.png", skimage.data.astronaut()[40:140, 150:260])
    write_picture(train / "a.png", skimage.data.chelsea()[60:150, 100:190])
    write_picture(train / "c.png", skimage.data.coffee()[100:180, 200:310])
    write_picture(sets / "Kodak24" / "k1.png", skimage.data.astronaut()[200:271, 60:150])
    write_picture(sets / "Kodak24" / "k2.png", skimage.data.chelsea()[100:166, 200:280])
    write_picture(sets / "Other" / "o1.png", skimage.data.coffee()[50:110, 100:164])
    found = Model(
        checkpoint=folder / "run" / "network.safetensors",
        bundle=folder / "bundle",
        config=folder / "tiny.yaml",
        run=folder / "run",
        sources=folder / "sources.csv",
        sets=sets,
        results=folder / "tiny.json",
    )
    write_sources(found.sources, [train / "a.png", train / "b.png", train / "c.png"])
    found.config.write_text(yaml.safe_dump(CONFIG))
    run_command(Request(config=found.config, data=str(train), out=found.run, device="cpu", threads=1))
    export_bundle(found.checkpoint, found.bundle, precisions=("fp32",))
    ran = run_script(*measure_words(found), "--run", found.run, "--trained-on", "a desk", "--threads", 1)
    assert ran.exit_code == 0, ran.output
    return found


def measure_words(model: Model) -> list[object]:
    where = ["--checkpoint", model.checkpoint, "--bundle", model.bundle, "--data", model.sets]
    return ["measure", "tiny", *where, "--output", model.results]


def write_words(model: Model, output: Path, *, results: Path | None = None) -> list[object]:
    where = [
        "--checkpoint",
        model.checkpoint,
        "--results",
        results or model.results,
        "--config",
        model.config,
    ]
    return ["write", "tiny", *where, "--output", output]


def written(run_script: Run, model: Model, folder: Path, *, results: Path | None = None) -> str:
    words = write_words(model, folder / "tiny.md", results=results)
    ran = run_script(*words, "--sources", model.sources, "--data", model.sets)
    assert ran.exit_code == 0, ran.output
    return (folder / "tiny.md").read_text()


def edited(model: Model, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    measured = model.measured
    for row in measured["pictures"]:
        change(row)
    path = folder / "edited.json"
    path.write_text(json.dumps(measured))
    return path


def pair(path: Path, scale: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    truth = read_picture(path).pixels
    truth = truth[: truth.shape[0] // scale * scale, : truth.shape[1] // scale * scale]
    return resize(truth, size=(truth.shape[0] // scale, truth.shape[1] // scale)), truth


def other_psnr(image: NDArray[Any], truth: NDArray[np.uint8], scale: int) -> float:
    inside = (slice(scale, -scale), slice(scale, -scale))
    levels = np.rint(np.clip(image * 255, 0, 255)).astype(np.uint8)
    return float(peak_signal_noise_ratio(truth[inside], levels[inside]))


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("name", ["Kodak24/k1", "Kodak24/k2", "Other/o1"])
def test_measured_numbers_are_those_of_pytorch_and_another_psnr(model: Model, name: str, scale: int) -> None:
    group, _, stem = name.partition("/")
    lr, truth = pair(model.sets / f"{name}.png", scale)
    bicubic = resize(lr, size=(truth.shape[0], truth.shape[1]))
    network = load_checkpoint(model.checkpoint)
    for what, image in (
        ("bicubic", bicubic),
        ("k=0", upscale(network, lr, scale=scale, k=0.0).image),
        ("adaptive", upscale(network, lr, scale=scale, adaptive=True).image),
        ("budget=1", upscale(network, lr, scale=scale, budget=1.0).image),
    ):
        expected = other_psnr(image, truth, scale)
        assert model.psnr(group, stem, scale, what) == pytest.approx(expected, abs=0.006), what


def test_a_sets_figures_are_the_means_of_its_pictures(model: Model) -> None:
    for row in model.measured["sets"]:
        each = [
            one["psnr"][row["what"]]
            for one in model.measured["pictures"]
            if (one["set"], one["scale"]) == (row["set"], row["scale"])
        ]
        assert row["pictures"] == len(each)
        assert row["psnr"] == pytest.approx(np.mean(each), abs=0.0011)
        if row["what"] == "budget=1":
            assert (row["shares"], row["flops"], row["macs"]) == ([0, 1], 1, 1)
        elif row["what"] != "bicubic":
            assert sum(row["shares"]) == pytest.approx(1, abs=2e-4)
            assert 0 < row["flops"] <= 1


def test_the_results_name_no_folder_of_the_machine_and_have_a_row_a_line(model: Model) -> None:
    content = model.results.read_text()
    assert str(model.sets.parent) not in content
    rows = [line for line in content.splitlines() if line.startswith("  {")]
    assert len(rows) == len(model.measured["sets"]) + len(model.measured["pictures"])
    digest = hashlib.sha256(model.checkpoint.read_bytes()).hexdigest()
    assert model.measured["checkpoint_sha256"] == digest


def test_the_card_shows_the_measured_means(run_script: Run, model: Model, tmp_path: Path) -> None:
    text = written(run_script, model, tmp_path)
    sets = {(row["set"], row["scale"], row["what"]): row for row in model.measured["sets"]}
    for scale in (1.5, 2, 3, 4):
        section = text.partition(f"\n### ×{scale:g}\n")[2].partition("\n#")[0]
        for group, count in (("Kodak24", 2), ("Other", 1)):
            columns = ("bicubic", "budget=1", "k=0", "adaptive")
            cells = [f"{sets[group, scale, what]['psnr']:.2f}" for what in columns]
            assert f"| {group} | {count} | {' | '.join(cells)} |" in section
            share = sets[group, scale, "k=0"]["shares"][0]
            assert f"{100 * share:.1f} / {100 - 100 * share:.1f}; " in section


def test_every_picture_worse_than_bicubic_is_listed(run_script: Run, model: Model, tmp_path: Path) -> None:
    # The network was trained for five steps: it is worse wherever it is not lucky.
    text = written(run_script, model, tmp_path)
    section = text.partition("## Where it is worse than bicubic")[2].partition("\n## ")[0]
    pictures = model.measured["pictures"]
    worse = [row for row in pictures if row["psnr"]["k=0"] < row["psnr"]["bicubic"]]
    assert len(worse) > 5
    assert f"In {len(worse)} of {len(pictures)} cases" in section
    for row in worse:
        loss = row["psnr"]["bicubic"] - row["psnr"]["k=0"]
        assert f"| {row['set']} | {row['name']} | ×{row['scale']:g} | " in section
        assert f" | −{loss:.3f} |" in section
    assert section.count("\n| ") == 1 + len(worse)


def test_with_nothing_worse_the_five_smallest_gains_are_listed(
    run_script: Run, model: Model, tmp_path: Path
) -> None:
    gains = iter(range(12))

    def change(row: dict[str, Any]) -> None:
        row["psnr"]["k=0"] = row["psnr"]["bicubic"] + next(gains)

    results = edited(model, tmp_path, change)
    (tmp_path / "training-pictures.md").write_text(page_of(run_script, model, tmp_path))
    assert run_script(*write_words(model, tmp_path / "tiny.md", results=results)).exit_code == 0
    section = (tmp_path / "tiny.md").read_text().partition("## Where it is worse than bicubic")[2]
    rows = section.partition("\n## ")[0].splitlines()
    assert "In none of 12 cases" in section
    assert [row.split(" | ")[-1] for row in rows if row.startswith(("| Kodak24", "| Other"))] == [
        f"+{gain}.000 |" for gain in range(5)
    ]


def page_of(run_script: Run, model: Model, folder: Path) -> str:
    (folder / "page").mkdir()
    written(run_script, model, folder / "page")
    return (folder / "page" / "training-pictures.md").read_text()


def test_the_text_needs_neither_test_sets_nor_sources(run_script: Run, model: Model, tmp_path: Path) -> None:
    for place in ("whole", "text"):
        (tmp_path / place).mkdir()
    text = written(run_script, model, tmp_path / "whole")
    page = (tmp_path / "whole" / "training-pictures.md").read_bytes()
    (tmp_path / "text" / "training-pictures.md").write_bytes(page)
    ran = run_script(*write_words(model, tmp_path / "text" / "tiny.md"))
    assert ran.exit_code == 0, ran.output
    assert (tmp_path / "text" / "tiny.md").read_text() == text


def test_the_page_credits_every_picture_under_its_licence(
    run_script: Run, model: Model, tmp_path: Path
) -> None:
    text = " ".join(written(run_script, model, tmp_path).split())
    page = (tmp_path / "training-pictures.md").read_text()
    assert "CC-BY-4.0 (1), CC-BY-SA-4.0 (1), CC0-1.0 (1)" in text
    assert "1 of them are under CC-BY-SA" in text
    for number, (name, heading) in enumerate((("a", "CC0-1.0"), ("b", "CC-BY-SA-4.0"), ("c", "CC-BY-4.0"))):
        section = page.partition(f"\n## {heading}: 1 picture\n")[2].partition("\n## ")[0]
        assert f"| {name}.png | Ada {number} | somewhere\\|{number} | cut |" in section
    # The hash is the one that training gave the list, which it computes from the files alone.
    state = json.loads((model.run / "log.jsonl").read_text().splitlines()[0])
    assert f"    {state['data']}\n" in page
    assert "Kodak" not in page


def without_a_row(sources: Path) -> None:
    lines = sources.read_text().splitlines(keepends=True)
    sources.write_text("".join(line for line in lines if "train/b.png" not in line))


def with_another_tier(sources: Path) -> None:
    sources.write_text(sources.read_text().replace("cut,A", "cut,T", 1))


def without_an_author(sources: Path) -> None:
    sources.write_text(sources.read_text().replace("Ada 1", ""))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_a_row, "no row for train/b.png"),
        (with_another_tier, "not for training"),
        (without_an_author, "train/b.png lacks"),
    ],
)
@pytest.mark.parametrize("at_hand", [True, False])
def test_sources_that_do_not_cover_the_training_pictures_are_refused(
    run_script: Run,
    model: Model,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    message: str,
    at_hand: bool,
) -> None:
    sources = tmp_path / "sources.csv"
    sources.write_bytes(model.sources.read_bytes())
    spoil(sources)
    if at_hand:
        (tmp_path / "train").symlink_to(model.sources.parent / "train")
    elif spoil is without_a_row:
        message = "lists 2 training pictures, which are not those"
    ran = run_script(*write_words(model, tmp_path / "tiny.md"), "--sources", sources)
    assert ran.exit_code == 2
    assert message in ran.output
    assert not (tmp_path / "tiny.md").exists()
    assert not (tmp_path / "training-pictures.md").exists()


def test_a_picture_of_other_content_than_its_row_is_refused(
    run_script: Run, model: Model, tmp_path: Path
) -> None:
    (tmp_path / "train").mkdir()
    for name in "abc":
        write_picture(tmp_path / "train" / f"{name}.png", np.zeros((60, 60, 3), np.uint8))
    (tmp_path / "sources.csv").write_bytes(model.sources.read_bytes())
    ran = run_script(*write_words(model, tmp_path / "tiny.md"), "--sources", tmp_path / "sources.csv")
    assert ran.exit_code == 2
    assert "train/a.png is not the picture" in ran.output


def test_the_gallery_shows_the_set_that_may_be_shown_and_no_other(
    run_script: Run, model: Model, tmp_path: Path
) -> None:
    text = written(run_script, model, tmp_path)
    section = text.partition("## Gallery")[2].partition("\n## ")[0]
    assert "(tiny-gallery.webp)" in section
    assert "o1" not in section
    sheet = read_picture(tmp_path / "tiny-gallery.webp").pixels.astype(float)
    rows = [line.split(" | ") for line in section.splitlines() if line[:3] in ("| 1", "| 2", "| 3", "| 4")]
    assert len(rows) == 4
    for number, (_, _, name, scale, *_) in enumerate(rows):
        truth = read_picture(model.sets / "Kodak24" / f"{name}.png").pixels
        h, w = (int(side // float(scale[1:]) * float(scale[1:])) for side in truth.shape[:2])
        shown = sheet[number * 198 : number * 198 + h, :w]
        assert np.abs(shown - truth[:h, :w]).mean() < 6  # WebP loses a little


def test_without_pictures_that_may_be_shown_there_is_no_gallery(
    run_script: Run, model: Model, tmp_path: Path
) -> None:
    text = written(
        run_script, model, tmp_path, results=edited(model, tmp_path, lambda row: row.update(set="Other"))
    )
    assert "## Gallery" not in text
    assert not (tmp_path / "tiny-gallery.webp").exists()


def test_a_gallery_of_other_pictures_than_the_measured_fails(
    run_script: Run, model: Model, tmp_path: Path
) -> None:
    (tmp_path / "sets" / "Kodak24").mkdir(parents=True)
    for name in ("k1", "k2"):
        write_picture(tmp_path / "sets" / "Kodak24" / f"{name}.png", skimage.data.coffee()[100:171, 100:190])
    words = write_words(model, tmp_path / "tiny.md")
    ran = run_script(*words, "--sources", model.sources, "--data", tmp_path / "sets")
    assert ran.exit_code == 3
    assert "measured were" in ran.output
    assert not (tmp_path / "tiny.md").exists()


def test_a_preview_says_so_and_how_to_replace_it(run_script: Run, model: Model, tmp_path: Path) -> None:
    assert "preview" not in written(run_script, model, tmp_path).lower()
    longer = json.loads(json.dumps(CONFIG))
    longer["phases"]["backbone"]["steps"] = 30_000
    (tmp_path / "longer.yaml").write_text(yaml.safe_dump(longer))
    ran = run_script(*write_words(model, tmp_path / "tiny.md"), "--config", tmp_path / "longer.yaml")
    assert ran.exit_code == 0, ran.output
    text = (tmp_path / "tiny.md").read_text()
    assert text.startswith("# tiny: CARN-PCSR (preview)\n")
    assert "Trained for 3 + 2 steps" in text
    assert "asks for 30,000 + 2" in text
    assert "$ pcsr-train tiny --data PHOTOGRAPHS --out run --device cuda\n" in text
    assert "--threads 1 --set phases.backbone.steps=3\n" in text


def test_a_network_that_started_from_another_names_it_without_its_folder(
    run_script: Run, model: Model, tmp_path: Path
) -> None:
    start = tmp_path / "start.safetensors"
    start.write_bytes(model.checkpoint.read_bytes())
    train = str(model.sources.parent / "train")
    request = Request(
        config=model.config, data=train, out=tmp_path / "run", settings=[f"init={start}"], threads=1
    )
    checkpoint = run_command(request)
    measured = model.measured | {"checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest()}
    (tmp_path / "tiny.json").write_text(json.dumps(measured))
    ran = run_script(
        "write", "tiny", "--checkpoint", checkpoint, "--results", tmp_path / "tiny.json", "--config", model.config,
        "--sources", model.sources, "--output", tmp_path / "tiny.md",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    text = (tmp_path / "tiny.md").read_text()
    assert "| started from | `start.safetensors` |" in text
    assert '--set init="start.safetensors"' in text
    assert str(tmp_path) not in text


def test_the_hours_are_those_of_the_run_that_made_the_network(
    run_script: Run, model: Model, tmp_path: Path
) -> None:
    assert model.measured["training"]["plans"][0]["plan"][0]["steps"] == 3
    run_command(
        Request(
            config=model.config,
            data=str(model.sources.parent / "train"),
            out=tmp_path / "run",
            settings=["seed=9"],
            threads=1,
        )
    )
    words: list[object] = measure_words(model)
    words[-1] = tmp_path / "tiny.json"
    ran = run_script(*words, "--run", tmp_path / "run")
    assert ran.exit_code == 2
    assert "is not the run that the checkpoint came from" in ran.output
    assert not (tmp_path / "tiny.json").exists()


def test_results_of_another_checkpoint_are_refused(run_script: Run, model: Model, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_checkpoint(load_checkpoint(model.checkpoint), other)
    words = [
        "write",
        "tiny",
        "--checkpoint",
        other,
        "--results",
        model.results,
        "--output",
        tmp_path / "o.md",
    ]
    ran = run_script(*words)
    assert ran.exit_code == 2
    assert "was not measured with" in ran.output
    ran = run_script(
        "measure", "tiny", "--checkpoint", other, "--bundle", model.bundle, "--data", model.sets,
        "--output", tmp_path / "o.json",
    )  # fmt: skip
    assert ran.exit_code == 2
    assert "was made from another checkpoint" in ran.output
    assert not list(tmp_path.glob("o.*"))


def test_published_networks_are_measured_beside_it(
    run_script: Run, model: Model, shared: Path, tmp_path: Path
) -> None:
    official = shared / "reference" / "official"
    words: list[object] = measure_words(model)
    words[-1] = tmp_path / "tiny.json"
    ran = run_script(
        *words, "--published-pcsr", official / "fsrcnn-pcsr.pth", "--published-dense", official / "fsrcnn-x4.pth",
        "--threads", 1,
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    measured = json.loads((tmp_path / "tiny.json").read_text())
    published = [row for row in measured["sets"] if row["what"].startswith("published")]
    assert {row["scale"] for row in published if row["what"] == "published dense"} == {4}
    assert {row["scale"] for row in published if row["what"] == "published k=0"} == {1.5, 2, 3, 4}
    digest = hashlib.sha256((official / "fsrcnn-x4.pth").read_bytes()).hexdigest()
    assert measured["published"]["fsrcnn-x4.pth"] == digest
    lr, truth = pair(model.sets / "Other" / "o1.png", 4)
    expected = other_psnr(upscale(load_checkpoint(official / "fsrcnn-pcsr.pth"), lr, scale=4).image, truth, 4)
    (found,) = (
        row["psnr"]
        for row in published
        if (row["set"], row["scale"], row["what"]) == ("Other", 4, "published k=0")
    )
    assert found == pytest.approx(expected, abs=0.006)
    text = written(run_script, model, tmp_path, results=tmp_path / "tiny.json")
    assert f" | {found:.2f} | " in text.partition("### ×4")[2]
    assert "hours | not recorded" in text


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_card_is_what_its_results_and_checkpoint_say(
    run_script: Run, name: str, tmp_path: Path
) -> None:
    (tmp_path / "training-pictures.md").write_bytes((CARDS / "training-pictures.md").read_bytes())
    ran = run_script(
        "write", name, "--checkpoint", ROOT / "training" / "networks" / f"{name}.safetensors",
        "--results", ROOT / "docs" / "results" / "models" / f"{name}.json", "--output", tmp_path / f"{name}.md",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert (CARDS / f"{name}.md").read_text() == (tmp_path / f"{name}.md").read_text()
    assert (CARDS / f"{name}-gallery.webp").exists() == (
        "## Gallery" in (tmp_path / f"{name}.md").read_text()
    )


@pytest.mark.skipif(not COMMITTED, reason="no card is committed")
def test_the_committed_page_credits_the_pictures_as_their_table_does(
    run_script: Run, shared: Path, tmp_path: Path
) -> None:
    name = COMMITTED[0]
    ran = run_script(
        "write", name, "--checkpoint", ROOT / "training" / "networks" / f"{name}.safetensors",
        "--results", ROOT / "docs" / "results" / "models" / f"{name}.json", "--output", tmp_path / f"{name}.md",
        "--sources", shared / "data" / "SOURCES.csv",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    page = (tmp_path / "training-pictures.md").read_text()
    assert (CARDS / "training-pictures.md").read_text() == page
