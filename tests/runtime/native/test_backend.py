"""The native backend: how it is chosen and opened, what it refuses, and whole pictures by it."""

import logging
import platform
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import skimage.data

import pcsr.runtime.native
from pcsr.runtime import Upscaler
from pcsr.runtime.backends.graphs import graph_bytes
from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.doctor.examination import _child
from pcsr.runtime.doctor.host import check_native
from pcsr.runtime.errors import BackendError, BundleError, ClosedError, NotInstalledError, OptionError
from pcsr.runtime.geometry import axis
from pcsr.runtime.native import library, open_library, open_native
from pcsr.runtime.native.backend import NativeBackend
from pcsr.runtime.shipped import shipped_bundle
from pcsr.runtime.tiling import Region
from pcsr.runtime.trial import run_trial

NEAR = 2e-4


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    picture: np.ndarray = skimage.data.astronaut()[40:88, 190:254] / np.float32(255)
    return picture


@pytest.fixture
def not_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An install without the library."""
    monkeypatch.setattr(library, "PATH", tmp_path / "kernels.so")


@pytest.mark.parametrize("size", [(48, 64), (96, 128), (144, 192), (101, 237)])
@pytest.mark.parametrize("bundle", ["carn", "fsrcnn"])
def test_pictures_are_those_of_onnx_runtime(
    instruction_set: str, bundle: str, photo: np.ndarray, size: tuple[int, int]
) -> None:
    with (
        Upscaler.open(bundle, backend="native", threads=2) as native,
        Upscaler.open(bundle, backend="onnxruntime", precision="fp32", threads=2) as graphs,
    ):
        found, expected = (up(photo, size=size, k=0) for up in (native, graphs))
    assert (found.backend, found.provider, found.precision) == (
        "native",
        f"native {instruction_set}",
        "fp32",
    )
    same = found.class_map == expected.class_map
    # Pixels at the threshold may go the other way by rounding.
    assert (~same).mean() < 1e-3
    np.testing.assert_allclose(found.image[same], expected.image[same], rtol=0, atol=NEAR)


@pytest.mark.parametrize("tile", [16, 32])
def test_tiles_and_threads_change_classes_nowhere_and_colours_by_rounding_alone(
    photo: np.ndarray, tile: int
) -> None:
    with (
        Upscaler.open("fsrcnn", backend="native", threads=1) as whole,
        Upscaler.open("fsrcnn", backend="native", threads=3, tile=tile) as tiled,
    ):
        a, b = (up(photo, scale=3, budget=0.3) for up in (whole, tiled))
    assert (a.class_map != b.class_map).mean() < 1e-3
    same = a.class_map == b.class_map
    np.testing.assert_allclose(a.image[same], b.image[same], rtol=0, atol=1e-5)


def test_auto_takes_native_kernels_on_the_processor(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("PCSR_NATIVE_ISA", raising=False)
    with caplog.at_level(logging.INFO), Upscaler.open("fsrcnn") as up:
        assert up.backend == "native"
        assert up.provider == f"native {open_library().instruction_sets[-1]}"
    assert f"by native, {up.provider}" in caplog.text


def test_native_kernels_need_no_onnx_runtime(monkeypatch: pytest.MonkeyPatch, photo: np.ndarray) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with Upscaler.open("carn") as up:
        assert up(photo, scale=2).backend == "native"


def test_a_backbone_without_kernels_runs_by_its_graph(
    photo: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = read_bundle(shipped_bundle("fsrcnn"))
    other = msgspec.structs.replace(bundle.manifest.network, backbone="another")
    rows, columns = axis(48, 96), axis(64, 128)
    window, region = Region(0, 48, 0, 64), Region(0, 96, 0, 128)
    lr = np.ascontiguousarray(photo.transpose(2, 0, 1))
    found = []
    for network in (bundle.manifest.network, other):
        monkeypatch.setattr(bundle, "manifest", msgspec.structs.replace(bundle.manifest, network=network))
        with caplog.at_level(logging.INFO):
            backend = open_native(bundle, precision="fp32", threads=1)
        tables = backend.tables(lr, window)
        found.append(backend.probabilities(tables, backend.place(rows, columns), region))
        backend.close()
    np.testing.assert_allclose(*found, rtol=0, atol=1e-5)
    assert "by ONNX Runtime: there are no native kernels for the backbone another" in caplog.text


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_auto_leaves_other_precisions_to_onnx_runtime(precision: str) -> None:
    with Upscaler.open("fsrcnn", precision=precision) as up:
        assert (up.backend, up.precision) == ("onnxruntime", precision)


@pytest.mark.usefixtures("not_built")
def test_auto_without_the_library_says_so_and_takes_onnx_runtime(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), Upscaler.open("fsrcnn") as up:
        assert up.backend == "onnxruntime"
    (record,) = (each for each in caplog.records if "by native" in each.getMessage())
    assert record.levelno == logging.INFO
    assert record.getMessage().startswith("not running by native: this install of pcsr has no native kernels")


def test_auto_leaves_processors_without_vectors_to_onnx_runtime(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("PCSR_NATIVE_ISA", raising=False)
    plain = open_library()
    monkeypatch.setattr(plain, "worthwhile", False)
    monkeypatch.setattr(pcsr.runtime.native, "open_library", lambda: plain)
    with caplog.at_level(logging.INFO), Upscaler.open("fsrcnn") as up:
        assert up.backend == "onnxruntime"
    assert (
        "not running by native: there are native kernels for x86-64 processors with AVX2 alone" in caplog.text
    )


@pytest.mark.usefixtures("not_built")
def test_asking_for_a_library_that_is_not_there_is_an_error_that_says_how_to_get_it() -> None:
    with pytest.raises(NotInstalledError, match="with gcc or clang there"):
        Upscaler.open("fsrcnn", backend="native")


def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "ABI", library.ABI + 1)
    with pytest.raises(BackendError, match=r"are of version \d+, and this pcsr needs \d+; install pcsr anew"):
        open_library()


def test_a_file_that_is_no_library_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kernels.so").write_bytes(b"\x7fELF but for another machine")
    monkeypatch.setattr(library, "PATH", tmp_path / "kernels.so")
    with pytest.raises(BackendError, match="cannot be loaded"):
        open_library()


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_an_instruction_set_that_is_not_there_is_refused_with_the_choices(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setenv("PCSR_NATIVE_ISA", "altivec")
    with pytest.raises(OptionError, match="PCSR_NATIVE_ISA is 'altivec', and the native kernels have scalar"):
        Upscaler.open("fsrcnn", backend=backend)


def test_the_processor_is_asked_for_what_was_compiled() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split("flags", 1)[-1].split("\n", 1)[0].split())
    wanted = {
        "scalar": set(),
        "avx2": {"avx2", "fma"},
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"},
    }
    expected = tuple(name for name, needed in wanted.items() if needed <= flags)
    assert open_library().instruction_sets == expected


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_other_precisions_are_refused(precision: str) -> None:
    with pytest.raises(BackendError, match=f"fp32 alone; for {precision} use the backend onnxruntime"):
        Upscaler.open("fsrcnn", backend="native", precision=precision)


def test_a_gpu_is_refused() -> None:
    with pytest.raises(BackendError, match="on the processor alone"):
        Upscaler.open("fsrcnn", backend="native", device="cuda")


def test_a_bundle_without_fp32_is_refused_as_by_every_backend(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = read_bundle(small_bundle)
    monkeypatch.delitem(bundle.manifest.graphs, "fp32")
    with pytest.raises(BundleError, match="has no fp32 graphs"):
        open_native(bundle, precision="auto", threads=1)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("upsampler_1.layer2.weight", None, "lack upsampler_1.layer2.weight"),
        ("upsampler_0.layer1.bias", np.zeros(3, np.float32), "upsampler_0.layer1.bias has another shape"),
        ("upsampler_0.layer1.bias", np.zeros(10, np.float64), "lack upsampler_0.layer1.bias"),
        ("classifier.first.bias", np.full(1, np.nan, np.float32), "lack classifier.first.bias"),
        ("upsampler_1.layer4.bias", np.full(3, np.inf, np.float32), "has NaN or infinite values"),
    ],
)
def test_weights_that_are_not_the_manifests_are_named(
    monkeypatch: pytest.MonkeyPatch, name: str, change: np.ndarray | None, reason: str
) -> None:
    bundle = read_bundle(shipped_bundle("fsrcnn"))
    weights = bundle.weights()
    del weights[name]
    if change is not None:
        weights[name] = change
    monkeypatch.setattr(bundle, "weights", lambda: weights)
    with pytest.raises((BackendError, BundleError), match=reason):
        open_native(bundle, precision="fp32", threads=1)


def test_a_closed_backend_is_an_error_and_no_crash() -> None:
    backend = open_native(read_bundle(shipped_bundle("fsrcnn")), precision="fp32", threads=1)
    backend.close()
    backend.close()
    with pytest.raises(ClosedError):
        backend.tables(np.zeros((3, 4, 4), np.float32), Region(0, 4, 0, 4))


def test_memory_that_is_not_there_is_an_error_and_leaves_the_process_well() -> None:
    # Two layers of 64 MB each, with room for none.
    program = """
import resource
import numpy as np
from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.errors import MemoryLimitError
from pcsr.runtime.native import open_library
from pcsr.runtime.shipped import shipped_bundle
import msgspec
bundle = read_bundle(shipped_bundle("fsrcnn"))
weights = bundle.weights()
network = msgspec.structs.replace(bundle.manifest.network, upsamplers=((10, 10, 10), (4096, 4096)))
manifest = msgspec.structs.replace(bundle.manifest, network=network)
weights["upsampler_1.first.table"] = np.zeros((4096, 48), np.float32)
weights["upsampler_1.layer1.weight"] = np.zeros((4096, 4096), np.float32)
weights["upsampler_1.layer1.bias"] = np.zeros(4096, np.float32)
weights["upsampler_1.layer2.weight"] = np.zeros((3, 4096), np.float32)
weights["upsampler_1.layer2.bias"] = np.zeros(3, np.float32)
library = open_library()
library.open(bundle.manifest, bundle.weights()).close()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), resource.RLIM_INFINITY))
for _ in range(3):
    try:
        library.open(manifest, weights)
    except MemoryLimitError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
library.open(manifest, weights).close()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = (
        "there is not enough memory for the native kernels; give a lower memory limit, or smaller tiles\n"
    )
    assert done.stdout == 3 * expected


def test_the_memory_plan_counts_the_padding_of_tables() -> None:
    with Upscaler.open("carn", backend="native") as up:
        backend = up._backend
        assert isinstance(backend, NativeBackend)
        # 10, 20 and 74 channels, each to a multiple of 16.
        assert backend.table_bytes == 4 * (16 + 32 + 80)


@pytest.mark.parametrize("name", ["carn", "fsrcnn"])
def test_the_memory_plan_counts_what_the_backbone_takes(instruction_set: str, name: str) -> None:
    program = f"""
import resource
import numpy as np
from pcsr.runtime.bundle import read_bundle
from pcsr.runtime.native import open_native
from pcsr.runtime.shipped import shipped_bundle
from pcsr.runtime.tiling import Region
backend = open_native(read_bundle(shipped_bundle({name!r})), precision="fp32", threads=2)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
kept = []
for h, w in ((40, 60), (300, 500)):
    lr = np.ones((3, h, w), np.float32)
    before = resident()
    kept.append(backend.tables(lr, Region(0, h, 0, w)))
    print(resident() - before, backend.working_bytes(h, w))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    (_, small), (taken, large) = (map(int, line.split()) for line in done.stdout.splitlines())
    # What the first call left is used again by the second.
    assert 0.9 * large - small < taken < 1.05 * large
    assert large < 0.7 * 300 * 500 * graph_bytes(read_bundle(shipped_bundle(name)).manifest)


def test_tiles_are_larger_than_those_of_onnx_runtime_within_the_same_limit() -> None:
    picture = np.zeros((300, 300, 3), np.uint8)
    tiles = {}
    for backend in ("native", "onnxruntime"):
        with Upscaler.open("fsrcnn", backend=backend, threads=1, memory_limit=48 << 20) as up:
            tiles[backend] = up(picture, scale=2).tile
    assert tiles["native"] > tiles["onnxruntime"]


def test_the_doctor_says_what_the_kernels_use_here() -> None:
    trial = run_trial(_child("native"), timeout=60)
    check = check_native(trial)
    assert check.status == "ok"
    assert check.facts["instruction_set"] in check.facts["instruction_sets"]
    assert check.facts["instruction_sets"] == list(open_library().instruction_sets)


def test_the_doctor_calls_kernels_that_were_not_built_missing() -> None:
    without = (
        "from pathlib import Path\nfrom pcsr.runtime.native import library\nlibrary.PATH = Path('nowhere')\n"
    )
    check = check_native(run_trial(without + _child("native"), timeout=60))
    assert (check.status, check.summary) == ("missing", "not built by this install")
    assert "gcc or clang" in check.todo


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have one instruction set")
def test_code_that_all_processors_run_uses_no_better_instructions() -> None:
    # What several instruction sets have in common, like templates of the standard library, is linked once.
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", "-C", library.PATH],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    functions = re.split(r"^[0-9a-f]+ <(.*)>:$", listing, flags=re.MULTILINE)[1:]
    vectors = re.compile(r"\tv\w+ .*%[xyz]mm")
    using = {name for name, code in zip(functions[::2], functions[1::2], strict=True) if vectors.search(code)}
    assert any("avx2::" in name for name in using)
    assert {name for name in using if "avx2::" not in name and "avx512::" not in name} == set()
