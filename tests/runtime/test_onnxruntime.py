"""The portable backend gives what was asked for, or says why not and what to do."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from pcsr.runtime import Upscaler, shipped_bundle
from pcsr.runtime.backends import onnxruntime as backend
from pcsr.runtime.bundle import Bundle
from pcsr.runtime.errors import BackendError, BundleError, OptionError


def test_an_unknown_backend_or_device_is_refused_with_the_choices(small_bundle: Path) -> None:
    with pytest.raises(OptionError, match="'openvino'; choose one of: auto, tensorrt, onnxruntime"):
        Upscaler.open(small_bundle, backend="openvino")
    for device in ("gpu", "cuda:x", "cpu:0", "cuda:", ""):
        with pytest.raises(OptionError, match="use cpu, cuda or cuda:<index>"):
            Upscaler.open(small_bundle, device=device)


def test_cuda_without_its_provider_is_an_error_and_never_the_processor(small_bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"no CUDAExecutionProvider, only .*pip install 'pcsr\[gpu\]'"):
        Upscaler.open(small_bundle, device="cuda:0")


def test_two_wheels_that_overwrite_each_other_are_detected(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both wheels own the same files: only their metadata tells.
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: iter([name]))
    with pytest.raises(BackendError, match="both installed.*pip uninstall onnxruntime onnxruntime-gpu"):
        Upscaler.open(small_bundle)


def test_a_missing_onnx_runtime_names_the_extra(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"pip install 'pcsr\[cpu\]'"):
        Upscaler.open(small_bundle)


def test_a_graph_that_onnx_runtime_refuses_is_named() -> None:
    with pytest.raises(BackendError, match="ONNX Runtime refuses graph nonsense"):
        backend.open_model(b"nonsense", "graph nonsense")


def test_auto_takes_float32_on_the_processor_whatever_order_the_bundle_has(small_bundle: Path) -> None:
    with Upscaler.open(small_bundle, precision="auto") as up:
        assert up.precision == "fp32"


def test_an_unknown_precision_is_refused_with_the_choices(small_bundle: Path) -> None:
    with pytest.raises(OptionError, match="'fp8'; choose one of: auto, fp32, fp16"):
        Upscaler.open(small_bundle, precision="fp8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads is 0"),
        ({"threads": "2"}, "whole number"),
        ({"memory_limit": "1GiB"}, "whole number"),
        ({"threads": 10_000_000}, "between 1 and 512"),
        ({"memory_limit": 0}, "memory_limit is 0"),
        ({"tile": 15}, "16 input pixels"),
    ],
)
def test_meaningless_arguments_of_open_are_refused(
    small_bundle: Path, options: dict[str, int], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        Upscaler.open(small_bundle, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("exact", [True, False])
def test_int8_takes_the_form_of_the_processor(monkeypatch: pytest.MonkeyPatch, exact: bool) -> None:
    monkeypatch.setattr(backend, "multiplies_int8", lambda: exact)
    read: list[str] = []
    whole = Bundle.read
    monkeypatch.setattr(Bundle, "read", lambda self, entry: (read.append(entry.path), whole(self, entry))[1])
    with Upscaler.open("fsrcnn", precision="int8") as up:
        assert up.precision == "int8"
    forms = {path.split("/")[1] for path in read if path.startswith("graphs/")}
    assert forms == {"int8-vnni" if exact else "int8-cpu"}


def test_int8_is_not_taken_unasked_but_where_there_is_nothing_else(tmp_path: Path) -> None:
    from pcsr.export.pipeline import export_bundle

    with Upscaler.open("fsrcnn") as up:
        assert up.precision == "fp32"
    only = export_bundle(shipped_bundle("fsrcnn"), tmp_path / "only", precisions=["int8"]).bundle
    with Upscaler.open(only.path) as up:
        assert up.precision == "int8"


def test_int8_on_a_gpu_is_for_tensorrt() -> None:
    with pytest.raises(BackendError, match="runs int8 on cpu alone.*use the backend tensorrt there, or fp16"):
        Upscaler.open("fsrcnn", device="cuda", backend="onnxruntime", precision="int8")


def test_a_bundle_without_int8_says_how_to_get_it(small_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"no int8 graphs.*--precision int8 --calibration CACHE\.json"):
        Upscaler.open(small_bundle, precision="int8")
