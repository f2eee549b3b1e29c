"""The benchmark: real competitors on tiny pictures, and a record that says what was done."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
import skimage.data
from bench import main
from bench_competitors import COMPETITORS, Setting, parse_rule
from bench_growth import growth, speedups
from bench_measure import Plan, measure
from bench_networks import Networks, Pictures, load_networks, load_pictures
from bench_record import Cell, Record, Row, quartiles, read_record
from bench_rounds import in_turn
from click.testing import CliRunner

from pcsr.model.checkpoint import save_checkpoint
from pcsr.model.network import Network
from pcsr.runtime.bicubic import resize
from pcsr.runtime.errors import CheckpointError, OptionError
from pcsr.runtime.pictures import write_picture
from pcsr.validation.results import Rule

ROOT = Path(__file__).resolve().parent.parent.parent
RULES = ("k=0", "budget=0", "budget=0.5", "budget=1")


@dataclass(frozen=True)
class Ran:
    """One run of the command, everything asked for at once."""

    folder: Path
    printed: str
    record: Record


@pytest.fixture(scope="module")
def network_file(random_network: Callable[..., Network], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("network") / "small.safetensors"
    save_checkpoint(random_network(), file)
    return file


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "scripts/bench.py", *map(str, arguments)]
    few = os.environ | {"OMP_NUM_THREADS": "2"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=few)


@pytest.fixture(scope="module")
def ran(network_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("bench")
    truth = np.ascontiguousarray(skimage.data.chelsea()[60:156, 100:228])
    lr = np.rint(np.clip(resize(truth, scale=0.25), 0, 1) * 255).astype(np.uint8)
    write_picture(folder / "truth.png", truth)
    write_picture(folder / "lr.png", lr)
    done = bench(
        network_file, "--random", "dense", "--picture", folder / "lr.png", "--truth", folder / "truth.png",
        "--sizes", "32x24,40x30", "--scales", "4,2", "--threads", "1", "--rounds", 3, "--rules", ",".join(RULES),
        "--process", 1, "--json", folder / "all.json", "--plot", folder / "plots", "--markdown",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Ran(folder, done.stdout, read_record(folder / "all.json"))


@pytest.fixture(scope="module")
def networks(network_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Networks:
    return load_networks(str(network_file), None, "dense", tmp_path_factory.mktemp("made"))


def plan(*competitors: str, rounds: int = 3) -> Plan:
    return Plan(
        competitors=competitors,
        rules=(Rule("k", 0.0),),
        sizes=((12, 16),),
        scales=(4.0,),
        threads=(1,),
        rounds=rounds,
        process_runs=0,
    )


def test_every_competitor_is_in_every_cell_that_it_can_be_in(ran: Ran) -> None:
    everyone = {name for name in COMPETITORS if name != "int8"}
    cells = {
        (cell.lr, cell.scale, cell.threads): {row.competitor for row in cell.rows}
        for cell in ran.record.cells
    }
    assert len(cells) == 4
    for (_, scale, _), found in cells.items():
        assert found == (everyone if scale == 4 else {n for n in everyone if not n.startswith("dense-")})
    assert {name for name in ran.record.left_out if name.endswith("×2")} == {
        f"{name} ×2" for name in everyone if name.startswith("dense-")
    }
    assert "| dense-openvino ×2 | the dense networks upsample by 4 only |" in ran.printed


def test_the_runtime_and_the_libraries_give_what_pytorch_gives(ran: Ran) -> None:
    for cell in ran.record.cells:
        for row in cell.rows:
            if row.competitor in ("oracle", "bicubic"):
                continue
            assert row.difference is not None
            # A pixel at the threshold may go either way, by rounding.
            assert row.difference.mean < 1e-2
            if row.rule is None or row.difference.agreement == 1:
                assert row.difference.largest <= 1
            if row.rule is not None:
                assert row.difference.agreement is not None
                assert row.difference.agreement > 0.999


def test_shares_follow_the_rules(ran: Ran) -> None:
    for row in (row for cell in ran.record.cells for row in cell.rows if row.competitor == "native"):
        assert row.shares is not None
        if (row.rule or "").startswith("budget"):
            assert row.shares[-1] == pytest.approx(float((row.rule or "").partition("=")[2]), abs=0.01)


def test_only_the_size_and_scale_of_the_truth_have_a_psnr(ran: Ran) -> None:
    for cell in ran.record.cells:
        known = cell.lr == "32x24" and cell.scale == 4
        assert all((row.psnr is not None) == known for row in cell.rows)
    first = {row.name: row.psnr for row in ran.record.cells[0].rows}
    assert first["native, k=0"] == pytest.approx(first["oracle, k=0"], abs=0.002)


def test_ratios_are_those_of_the_seconds_round_by_round(ran: Ran) -> None:
    cell = ran.record.cells[0]
    rows = {row.name: row for row in cell.rows}
    native, oracle = rows["native, k=0"], rows["oracle, k=0"]
    each = [a / b for a, b in zip(native.seconds, oracle.seconds, strict=True)]
    assert native.ratios["oracle"] == pytest.approx(tuple(np.quantile(each, (0.25, 0.5, 0.75))))
    assert set(native.ratios) == {"dense-onnxruntime", "dense-openvino", "dense-pytorch", "oracle"}


def test_work_is_that_of_the_stages_and_shares_of_the_peak_fit(ran: Ran) -> None:
    for cell in ran.record.cells:
        for row in cell.rows:
            if row.competitor == "bicubic":
                assert row.work is None
                continue
            assert row.work is not None
            assert row.work.gflops == pytest.approx(2 * row.work.gmacs / np.median(row.seconds))
            if row.stages:
                inside = sum(stage.work.gmacs for stage in row.stages.values() if stage.work is not None)
                assert inside == pytest.approx(row.work.gmacs)
            if (peak := ran.record.environment.peaks.get(str(cell.threads))) is not None:
                assert row.work.of_peak == pytest.approx(row.work.gflops / peak.gflops)


def test_all_heavy_needs_more_than_all_light(ran: Ran) -> None:
    work = {row.name: row.work for row in ran.record.cells[0].rows if row.work is not None}
    assert work["native, budget=0"].gmacs < work["native, k=0"].gmacs < work["native, budget=1"].gmacs


def test_the_record_is_strict_json(ran: Ran) -> None:
    content = msgspec.json.decode((ran.folder / "all.json").read_bytes())
    assert content["format"] == "pcsr-benchmark"
    assert content["method"] == {"rounds": 3, "warm_up": 1, "pause_ms": 50.0}
    content["surprise"] = 1
    wrong = ran.folder / "wrong.json"
    wrong.write_bytes(msgspec.json.encode(content))
    with pytest.raises(OptionError, match="surprise"):
        read_record(wrong)
    with pytest.raises(OptionError, match="cannot read"):
        read_record(ran.folder / "nowhere.json")


def test_a_schema_of_the_record_can_be_given_and_it_fits(ran: Ran) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(
        msgspec.json.decode((ran.folder / "all.json").read_bytes()), msgspec.json.schema(Record)
    )


def test_the_environment_says_what_the_numbers_came_from(ran: Ran) -> None:
    environment = ran.record.environment
    assert {"numpy", "onnxruntime", "openvino", "torch"} <= environment.versions.keys()
    assert environment.processor.cores >= 1
    assert ran.record.network.file == "small.safetensors"
    assert ran.record.dense is not None
    assert ran.record.dense.file is None
    assert "random weights" in ran.printed


def test_the_process_is_timed_with_its_own_memory(ran: Ran) -> None:
    process = ran.record.process
    assert process is not None
    assert len(process.seconds) == len(process.peak_mib) == 1
    assert 0.1 < process.seconds[0] < 60
    # Python with its libraries takes more than 40 MiB, and the benchmark with PyTorch in it is not counted.
    assert 40 < process.peak_mib[0] < 400


def test_both_plots_are_drawn(ran: Ran) -> None:
    for name in ("all-dial.svg", "all-growth.svg"):
        text = (ran.folder / "plots" / name).read_text(encoding="utf-8")
        assert text.startswith("<?xml")
        assert "</svg>" in text


def test_a_record_is_shown_as_it_was_printed(ran: Ran) -> None:
    shown = bench("--show", ran.folder / "all.json", "--markdown", "--plot", ran.folder / "again")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == ran.printed
    for name in ("all-dial.svg", "all-growth.svg"):
        assert (ran.folder / "again" / name).read_bytes() == (ran.folder / "plots" / name).read_bytes()


def test_plots_of_nothing_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    refused = bench("no-such-network", "--plot", tmp_path / "plots")
    assert refused.returncode == 2
    assert "--truth" in refused.stderr
    assert not (tmp_path / "plots").exists()


def test_a_missing_library_is_told_and_the_rest_runs(
    networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    record = measure(plan("dense-openvino", "native"), networks, load_pictures(None, None))
    assert [row.competitor for row in record.cells[0].rows] == ["native"]
    assert "pip install 'pcsr[bench]'" in record.left_out["dense-openvino"]


def test_without_a_dense_network_the_dense_competitors_are_left_out(
    network_file: Path, tmp_path: Path
) -> None:
    alone = load_networks(str(network_file), None, None, tmp_path)
    record = measure(plan("dense-onnxruntime", "int8", "bicubic"), alone, load_pictures(None, None))
    assert [row.competitor for row in record.cells[0].rows] == ["bicubic"]
    assert "--dense" in record.left_out["dense-onnxruntime"]
    assert "--calibration" in record.left_out["int8"]


@pytest.mark.parametrize("backbone", ["carn", "fsrcnn", "srresnet"])
def test_random_networks_have_the_published_sizes(backbone: str, tmp_path: Path) -> None:
    made = load_networks(backbone, None, "all", tmp_path)
    parameters = sum(parameter.numel() for parameter in made.pcsr.parameters())
    assert parameters == {"carn": 168_970, "fsrcnn": 24_502, "srresnet": 1_078_390}[backbone]
    assert made.dense is not None
    assert made.pcsr_source.file is None
    assert made.file.exists()


def test_networks_that_contradict_each_other_are_refused(network_file: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="carn, fsrcnn, srresnet"):
        load_networks("resnet", None, "all", tmp_path)
    with pytest.raises(OptionError, match="give one of them"):
        load_networks(str(network_file), network_file, "dense", tmp_path)
    with pytest.raises(CheckpointError):
        load_networks(str(tmp_path / "nothing.pth"), None, None, tmp_path)


def test_pictures_are_cut_or_mirrored_and_truth_only_cut() -> None:
    lr = skimage.data.chelsea()[:6, :8]
    truth = skimage.data.chelsea()[:24, :32]
    pictures = Pictures(lr, truth, load_pictures(None, None).told)
    assert np.array_equal(pictures.at((4, 5)), lr[:4, :5])
    assert np.array_equal(pictures.at((8, 8))[6:], lr[:3:-1])
    assert np.array_equal(pictures.truth_at((4, 5), 4), truth[:16, :20])
    assert pictures.truth_at((8, 8), 4) is None
    assert pictures.truth_at((4, 5), 2) is None


def test_truth_without_its_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--picture"):
        load_pictures(None, tmp_path / "truth.png")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--competitors", "native,oracel", "oracel"),
        ("--rules", "budget=much", "is no rule"),
        ("--threads", "0", "not 1 or more"),
        ("--sizes", "12", "not a size"),
    ],
)
def test_wrong_names_are_refused_before_anything_is_timed(
    network_file: Path, option: str, value: str, said: str
) -> None:
    done = CliRunner().invoke(main, [str(network_file), option, value])
    assert done.exit_code == 2
    assert said in done.output


@pytest.mark.parametrize("text", ["k", "k=", "adaptive=1", "budget=x", ""])
def test_texts_that_are_no_rule_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="is no rule"):
        parse_rule(text)


def test_rounds_go_in_turn() -> None:
    called: list[str] = []
    timed = in_turn({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 3)
    assert called == ["a", "b"] * 3
    assert len(timed["a"].seconds) == len(timed["b"].after) == 3


def test_output_pixels_are_those_of_the_runtime() -> None:
    assert Setting(np.zeros((31, 15, 3), np.uint8), 1.5, 1).output_pixels == 46 * 22


def cell_of(side: int, threads: int, seconds: tuple[float, ...]) -> Cell:
    row = Row(competitor="native", rule="k=0", ran="", seconds=seconds, busy=1.0, spun_ms=0.0)
    return Cell(lr=f"{side}x{side}", output_pixels=16 * side**2, scale=4.0, threads=threads, rows=(row,))


def test_growth_is_the_line_through_the_sizes() -> None:
    # 10 ms and 20 ns for each output pixel.
    cells = [cell_of(side, 1, (0.01 + 20e-9 * 16 * side**2,) * 3) for side in (400, 100, 200)]
    (line,) = growth(cells)
    assert line.ns_per_pixel == pytest.approx(20)
    assert line.fixed_ms == pytest.approx(10)
    assert line.largest_to_predicted == pytest.approx((0.01 + 0.0512) / (16 * (0.01 + 0.0032)))


def test_speedups_compare_the_fewest_with_the_most_threads_round_by_round() -> None:
    cells = [cell_of(8, 1, (2.0, 4.0, 6.0)), cell_of(8, 2, (1.0, 4.0, 2.0)), cell_of(9, 1, (1.0,) * 3)]
    (found,) = speedups(cells)
    assert found.threads == (1, 2)
    assert found.times == quartiles([2.0, 1.0, 3.0])
