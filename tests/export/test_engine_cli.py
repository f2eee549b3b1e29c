"""`pcsr-export` with engines: where they go, what is said, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pcsr.export.cli import main
from pcsr.export.tensorrt.plan import check_memory
from pcsr.export.tensorrt.profiles import Sizes
from pcsr.export.tensorrt.request import WITHOUT_EFFECT
from pcsr.runtime import shipped_bundle
from pcsr.runtime.backends.engine_search import Machine, find_engines, machine_platform
from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.errors import BackendError
from pcsr.runtime.probe import Gpu, Unavailable, probe_gpu, probe_tensorrt

AHEAD = ("--trt-rtx", "--for", "8.6,8.9,12.0")


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_refused(result: Result, reason: str, *, status: int = 2) -> None:
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert reason in last


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_bundle, tmp_path / "bundle")


@pytest.fixture(autouse=True)
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder for engines."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pcsr" / "engines"


def test_engines_are_built_into_a_bundle_and_kept_the_next_time(bundle: Path) -> None:
    first = export(bundle, *AHEAD)
    assert first.exit_code == 0, first.output
    lines = first.stdout.splitlines()
    assert lines[0] == f"{bundle / 'engines'}: built 8 engines, kept 0"
    assert len(lines) == 9
    assert all("MB" in line and line.endswith("there is none yet") for line in lines[1:])
    assert "up to 8 engines of tensorrt-rtx" in first.stderr
    assert "each takes about a second" in first.stderr
    report = json.loads(export(bundle, *AHEAD, "--json").stdout)
    assert report["engine_folder"] == str(bundle / "engines")
    assert [engine["built"] for engine in report["engines"]] == [False] * 8
    # The reader finds them on a machine with such a GPU.
    probed = probe_tensorrt("tensorrt_rtx_bindings")
    assert not isinstance(probed, Unavailable)
    here = Machine("tensorrt-rtx", probed.version, machine_platform(), "8.9", "")
    opened = read_bundle(bundle)
    assert set(find_engines(opened, "fp32", here, folders=[bundle / "engines"])) == set(opened.graphs("fp32"))


def test_a_checkpoint_becomes_a_bundle_with_engines(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "new"
    result = export(checkpoint, "-o", target, "--precision", "fp32", *AHEAD)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == f"{target}: wrote fp32"
    assert f"{target / 'engines'}: built 4 engines, kept 0" in result.stdout
    # Another precision leaves engines alone; a bundle that is replaced loses them.
    plans = sorted((target / "engines").iterdir())
    assert export(target, "--precision", "fp16").exit_code == 0
    assert sorted((target / "engines").iterdir()) == plans


@pytest.mark.slow
def test_a_precision_that_the_bundle_lacks_is_exported_first(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "new"
    assert export(checkpoint, "-o", target, "--precision", "fp32").exit_code == 0
    result = export(target, "--precision", "fp16", *AHEAD)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{target}: wrote fp16, kept fp32\n")
    assert {path.name.split("-")[1] for path in (target / "engines").glob("*.plan")} == {"fp16"}


def test_a_shipped_bundle_keeps_its_folder_and_fills_the_users_cache(users: Path) -> None:
    result = export("fsrcnn", "--precision", "fp16", *AHEAD)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{users}: built 4 engines, kept 0\n")


def test_a_folder_that_is_named_is_used(bundle: Path, tmp_path: Path) -> None:
    result = export(bundle, "--precision", "fp16", *AHEAD, "--engine-cache", tmp_path / "mine")
    assert result.stdout.startswith(f"{tmp_path / 'mine'}: built 4 engines, kept 0\n")
    assert not (bundle / "engines").exists()


@pytest.mark.slow
def test_building_from_a_bundle_needs_neither_torch_nor_onnx(bundle: Path) -> None:
    program = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(('torch', 'onnx', 'onnxruntime'))\n"
        "from pcsr.export.cli import main\n"
        "main()"
    )
    command = [sys.executable, "-c", program, bundle, "--precision", "fp16", *AHEAD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--for", "8.9"], "--for has an effect only where engines are built; add --trt or --trt-rtx"),
        (["--points", "4096"], "--points has an effect only where"),
        (["--hardware-compat"], "--hardware-compat has an effect only where"),
        (["--engine-cache", "x"], "--engine-cache has an effect only with --trt, --trt-rtx or --compare"),
        (["--trt", "--for", "8.9"], "--for has an effect only with --trt-rtx"),
        (["--trt-rtx", "--for", "sm_89"], "--for is 'sm_89'; write compute capabilities like 8.6,8.9,12.0"),
        (["--trt-rtx", "--for", ""], "--for is ''"),
        (
            [*AHEAD, "--opt-level", "3"],
            f"--opt-level has no effect with --trt-rtx: {WITHOUT_EFFECT['--opt-level']}",
        ),
        ([*AHEAD, "--hardware-compat"], "--hardware-compat has no effect with --trt-rtx"),
        ([*AHEAD, "--version-compat"], "--version-compat has no effect with --trt-rtx"),
        ([*AHEAD, "--max-lr", "20x20", "--opt-lr", "20x20"], "--max-lr is 20x20; this backbone sees"),
        ([*AHEAD, "--min-lr", "big"], "'big' is not a size"),
        ([*AHEAD, "--workspace", "much"], "'much' is not an amount of memory"),
        ([*AHEAD, "--points", "1"], "--points is 1; it must be 6144 or more"),
        ([*AHEAD, "--engine-cache", ""], "--engine-cache is empty"),
        ([*AHEAD, "--precision", "int8"], "int8"),
        ([*AHEAD, "--precision", ""], "(none) is unknown"),
        (["--trt", "--trt-rtx", "--compare"], "--compare runs one TensorRT at a time"),
        ([*AHEAD, "--inspect"], "leave -o and --calibration away, and options of engines"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_option_without_a_meaning_is_refused(bundle: Path, arguments: Sequence[str], reason: str) -> None:
    assert_refused(export(bundle, *arguments), reason)
    assert not (bundle / "engines").exists() or not list((bundle / "engines").glob("*.plan"))


def test_without_a_gpu_or_library_the_error_says_what_to_do(
    bundle: Path, checkpoint: Path, tmp_path: Path
) -> None:
    if not isinstance(probe_gpu(), Unavailable):
        pytest.skip("there is a GPU")
    assert_refused(export(bundle, "--trt-rtx"), "ahead of time with --trt-rtx --for 8.6,8.9,12.0")
    assert_refused(
        export(bundle, *AHEAD, "--compare"), "tensorrt-rtx needs a GPU here: there is no NVIDIA driver"
    )
    reason = "tensorrt is not installed; run: pip install 'pcsr[trt]'"
    assert_refused(export(bundle, "--trt"), reason)
    assert_refused(export(bundle, "--compare"), reason)
    # Said before the export that would take long.
    assert_refused(export(checkpoint, "-o", tmp_path / "new", "--trt"), reason)
    assert not (tmp_path / "new").exists()


def test_a_gpu_that_cannot_hold_a_window_is_refused_before_anything_is_built() -> None:
    carn = read_bundle(shipped_bundle("carn"))
    small = Gpu(name="Small", compute_capability="8.6", memory=5 << 30, cuda="12.8")
    check_memory(carn, Sizes(), ["fp16"], small)
    with pytest.raises(BackendError, match="1920x1920 needs about 8100 MiB and Small has 5120 MiB; .*max-lr"):
        check_memory(carn, Sizes(), ["fp16", "fp32"], small)
    check_memory(carn, Sizes(max_lr=(1080, 1920)), ["fp32"], small)


@pytest.mark.parametrize("module", ["filelock", "platformdirs"])
def test_a_missing_package_is_status_2_with_the_command(module: str) -> None:
    program = f"import sys; sys.modules[{module!r}] = None\nfrom pcsr.export.cli import main\nmain()"
    command = [sys.executable, "-c", program, "fsrcnn", *AHEAD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert module in done.stderr
    assert "pip install 'pcsr[trt" in done.stderr
