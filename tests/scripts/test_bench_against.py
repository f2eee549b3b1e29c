"""Comparing with a record: ratios of one class of machine, of the same networks and picture, within a band."""

from collections.abc import Callable
from pathlib import Path

import pytest
from bench import main
from bench_against import Change, changes, check_comparable, verdict
from bench_machine import machine_class
from bench_machine import processor as this_processor
from bench_record import (
    Cell,
    Environment,
    Method,
    Picture,
    Processor,
    Record,
    Row,
    Source,
    read_record,
    write_record,
)  # fmt: skip
from click.testing import CliRunner
from msgspec import structs

from pcsr.model.checkpoint import save_checkpoint
from pcsr.model.network import Network
from pcsr.runtime.errors import OptionError

PROCESSOR = Processor(
    model="A", vendor="GenuineIntel", vector_units=("avx2", "fma"), flags="", caches={}, cores=2
)
NETWORK, DENSE = Source(backbone="carn", file="a", sha256="1"), Source(backbone="carn", file="b", sha256="2")
PICTURE = Picture(name="p.png", sha256="3")


def row(competitor: str, rule: str | None, **ratios: float) -> Row:
    return Row(
        competitor=competitor,
        rule=rule,
        ran="",
        seconds=(1.0, 1.0, 1.0),
        busy=1.0,
        spun_ms=0.0,
        ratios={name.replace("_", "-"): (0.9 * value, value, 1.1 * value) for name, value in ratios.items()},
    )


def record(*rows: Row, threads: int = 2, processor: Processor = PROCESSOR) -> Record:
    return Record(
        environment=Environment(
            processor=processor, load=(0.0, 0.0), python="", versions={}, commit="", date="", peaks={}
        ),
        network=NETWORK,
        dense=DENSE,
        picture=PICTURE,
        method=Method(rounds=3, warm_up=1, pause_ms=0.0),
        cells=(Cell(lr="420x276", output_pixels=1_854_720, scale=4.0, threads=threads, rows=rows),),
    )


@pytest.mark.parametrize(
    ("now", "holds"), [(0.2, True), (0.219, True), (0.221, False), (0.183, True), (0.181, False)]
)
def test_a_band_reaches_as_far_down_as_up_by_quotient(now: float, holds: bool) -> None:
    assert Change("", "", "", 0.2, now, 0.1).holds is holds


def test_medians_of_the_runtimes_rows_are_compared_and_no_others() -> None:
    before = record(
        row("native", "adaptive", dense_onnxruntime=0.2, oracle=0.05),
        row("onnxruntime", "k=0", dense_onnxruntime=0.6),
        row("oracle", "k=0", dense_onnxruntime=3.0),
        row("dense-openvino", None, dense_onnxruntime=0.9),
    )
    now = record(
        row("native", "adaptive", dense_onnxruntime=0.24),
        row("oracle", "k=0", dense_onnxruntime=6.0),
        row("dense-openvino", None, dense_onnxruntime=1.9),
    )
    (found,) = changes(before, now, 0.15)
    assert (found.name, found.baseline) == ("native, adaptive", "dense-onnxruntime")
    assert found.relative == pytest.approx(0.2)
    assert not found.holds
    section = verdict([found])
    assert section.rows[0][2:] == ("0.200", "0.240", "+20.0 %", "SLOWER")


def test_what_became_much_faster_is_to_be_recorded_anew() -> None:
    assert "FASTER" in verdict([Change("c", "n", "b", 0.2, 0.1, 0.15)]).rows[0][-1]


def test_cells_must_be_the_same() -> None:
    ours = row("native", "adaptive", dense_onnxruntime=0.2)
    with pytest.raises(OptionError, match="no ratio in common"):
        changes(record(ours), record(ours, threads=1), 0.15)


def test_a_record_of_this_class_of_machine_is_taken() -> None:
    other_model = structs.replace(PROCESSOR, model="B", cores=8)
    check_comparable(record(row("native", "k=0")), other_model, NETWORK, DENSE, PICTURE)


@pytest.mark.parametrize(
    ("processor", "said"),
    [
        (structs.replace(PROCESSOR, vendor="AuthenticAMD"), "another class of machine"),
        (structs.replace(PROCESSOR, vector_units=("avx2", "fma", "avx512f")), "another class of machine"),
        (structs.replace(PROCESSOR, cores=1), "cells of 2 threads"),
    ],
)
def test_a_record_of_another_machine_is_refused(processor: Processor, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        check_comparable(record(row("native", "k=0")), processor, NETWORK, DENSE, PICTURE)


def test_a_record_of_other_networks_or_pictures_is_refused() -> None:
    found, other = record(row("native", "k=0")), "0"
    with pytest.raises(OptionError, match="another network"):
        check_comparable(found, PROCESSOR, structs.replace(NETWORK, sha256=other), DENSE, PICTURE)
    with pytest.raises(OptionError, match="another dense network"):
        check_comparable(found, PROCESSOR, NETWORK, None, PICTURE)
    with pytest.raises(OptionError, match="another picture"):
        check_comparable(found, PROCESSOR, NETWORK, DENSE, structs.replace(PICTURE, sha256=other))


def test_this_processor_has_a_class() -> None:
    assert machine_class(this_processor()).strip()


def test_the_command_holds_against_its_own_record_and_fails_against_a_better_one(
    random_network: Callable[..., Network], tmp_path: Path
) -> None:
    save_checkpoint(random_network(), tmp_path / "small.safetensors")
    own, better = tmp_path / "own.json", tmp_path / "better.json"
    common = [str(tmp_path / "small.safetensors"), "--random", "dense", "--rounds", "3"]
    few = [
        "--sizes",
        "16x12",
        "--threads",
        "1",
        "--rules",
        "k=0",
        "--competitors",
        "onnxruntime,dense-onnxruntime",
    ]
    assert CliRunner().invoke(main, [*common, *few, "--json", str(own)]).exit_code == 0
    asked = [*common, "--competitors", "onnxruntime,dense-onnxruntime"]
    # Tiny pictures are noisy: everything holds in so wide a band, and nothing against ratios so small.
    assert CliRunner().invoke(main, [*asked, "--against", str(own), "--band", "1000"]).exit_code == 0
    content = read_record(own)
    small = tuple(
        structs.replace(each, ratios=dict.fromkeys(each.ratios, (1e-06,) * 3))
        for each in content.cells[0].rows
    )
    write_record(structs.replace(content, cells=(structs.replace(content.cells[0], rows=small),)), better)
    done = CliRunner().invoke(main, [*asked, "--against", str(better)])
    assert done.exit_code == 1
    assert "SLOWER" in done.stdout
