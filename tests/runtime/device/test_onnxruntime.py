"""ONNX Runtime's graphs in a device's memory: what it says is believed, and nothing falls back unsaid.

That the graphs give what they should is shown by whole pictures (`test_road.py`), which run on them.
"""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest

from pcsr.runtime.backends.profiles import plan_pieces
from pcsr.runtime.bundle import Bundle, read_bundle
from pcsr.runtime.device.arrays import AllocationError
from pcsr.runtime.device.onnxruntime import OnnxRuntimeGraphs
from pcsr.runtime.device.simulated import SimulatedDevice
from pcsr.runtime.errors import BackendError
from pcsr.runtime.geometry import axis


@pytest.fixture
def bundle(small_bundle: Path) -> Bundle:
    return read_bundle(small_bundle)


class OnGpu(onnxruntime.InferenceSession):  # type: ignore[misc, name-defined]
    """A session that says it runs on CUDA, and keeps what it was asked for."""

    asked: ClassVar[list[tuple[Any, bool]]] = []
    partly = False

    def __init__(self, model: bytes, options: Any, providers: list[Any]) -> None:
        try:
            alone = options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        except Exception:  # the entry is not there
            alone = False
        self.asked.append((providers[0], alone))
        if alone and self.partly:
            raise RuntimeError("node Gather_3 has been assigned to the default CPU EP")
        super().__init__(model, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def module(session: type) -> Any:
    return SimpleNamespace(
        SessionOptions=onnxruntime.SessionOptions, RunOptions=onnxruntime.RunOptions, InferenceSession=session
    )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimulatedDevice:
    monkeypatch.setattr(OnGpu, "asked", [])
    return SimulatedDevice(2, kind="cuda", index=3)


def test_sessions_are_for_their_device_and_stream_alone(bundle: Bundle, gpu: SimulatedDevice) -> None:
    graphs = OnnxRuntimeGraphs(module(OnGpu), bundle, gpu, precision="fp32")
    graphs.open("backbone", SimpleNamespace(pointer=1234))  # type: ignore[arg-type]
    (first, alone_first), (second, alone_second) = OnGpu.asked
    assert first[0] == second[0] == "CUDAExecutionProvider"
    assert first[1]["device_id"] == second[1]["device_id"] == 3
    # ONNX Runtime's default is less exact than float32.
    assert first[1]["use_tf32"] == second[1]["use_tf32"] == "0"
    assert "user_compute_stream" not in first[1]
    assert second[1]["user_compute_stream"] == "1234"
    assert alone_first
    assert alone_second


def test_a_graph_that_runs_partly_on_the_processor_is_named_once(
    bundle: Bundle, gpu: SimulatedDevice, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnGpu, "partly", True)
    with caplog.at_level(logging.WARNING):
        graphs = OnnxRuntimeGraphs(module(OnGpu), bundle, gpu, precision="fp32")
        graphs.open("backbone", None)
    assert caplog.text.count("on the processor") == 1
    assert "Gather_3" in caplog.text
    assert [alone for _, alone in OnGpu.asked] == [True, False, True, False]


def test_a_session_that_got_another_provider_is_an_error(bundle: Bundle, gpu: SimulatedDevice) -> None:
    class Fallen(OnGpu):
        """What ONNX Runtime does when a CUDA library is missing: it warns and takes the CPU."""

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    with pytest.raises(BackendError, match="was to run on CUDAExecutionProvider and ONNX Runtime gave CPU"):
        OnnxRuntimeGraphs(module(Fallen), bundle, gpu, precision="fp32")


def test_a_graph_that_is_refused_is_named(bundle: Bundle, gpu: SimulatedDevice) -> None:
    class Refused(OnGpu):
        def __init__(self, model: bytes, options: Any, providers: list[Any]) -> None:
            raise RuntimeError("no such operator")

    with pytest.raises(
        BackendError, match=r"refuses graph classifier \(.*classifier-\w+.onnx\): no such operator"
    ):
        OnnxRuntimeGraphs(module(Refused), bundle, gpu, precision="fp32")


@pytest.fixture
def on_cpu(bundle: Bundle) -> tuple[OnnxRuntimeGraphs, SimulatedDevice]:
    device = SimulatedDevice(2)
    return OnnxRuntimeGraphs(onnxruntime, bundle, device, precision="fp32"), device


def run_backbone(graphs: OnnxRuntimeGraphs, device: SimulatedDevice, channels: int = 3) -> list[np.ndarray]:
    stream = device.stream()
    lr = stream.array((1, channels, 6, 7), np.float32)
    stream.upload(np.full(lr.shape, 0.5, np.float32), lr)
    manifest = graphs._bundle.manifest
    outputs = [
        stream.array((6, C, 7) if number < 2 else (6, 7, C), np.float32)
        for number, C in enumerate(manifest.table_channels)
    ]
    graphs.session(stream).run("backbone", {"lr": lr}, outputs)
    return [stream.download(output).wait() for output in outputs]


def test_outputs_are_written_where_they_are_wanted(
    on_cpu: tuple[OnnxRuntimeGraphs, SimulatedDevice], bundle: Bundle
) -> None:
    graphs, device = on_cpu
    session = onnxruntime.InferenceSession(bundle.read(bundle.graphs("fp32")["backbone"]))
    expected = session.run(None, {"lr": np.full((1, 3, 6, 7), 0.5, np.float32)})
    for made, table in zip(run_backbone(graphs, device), expected, strict=True):
        np.testing.assert_array_equal(made, table)


def test_any_picture_is_in_its_limits(on_cpu: tuple[OnnxRuntimeGraphs, SimulatedDevice]) -> None:
    limit = on_cpu[0].limits
    for (h, w), scale in (((1, 1), 4.0), ((1080, 1920), 4.0), ((3, 40_000), 1.0), ((20_000, 20_000), 1.0)):
        rows, columns = (axis(side, round(side * scale)) for side in (h, w))
        pieces = list(plan_pieces(rows, columns, limit, halo=27, margin=1))
        assert len(pieces) == (2 if w > 1 << 15 else 1)
        # A flat index of the table is an int32.
        assert max(piece.tile.window.pixels for piece in pieces) < 1 << 31


def test_a_call_that_fails_names_graph_and_shapes(on_cpu: tuple[OnnxRuntimeGraphs, SimulatedDevice]) -> None:
    with pytest.raises(BackendError, match=r"cannot run graph backbone with lr \(1, 2, 6, 7\)"):
        run_backbone(*on_cpu, channels=2)


def test_where_memory_ends_it_is_the_devices_error(
    on_cpu: tuple[OnnxRuntimeGraphs, SimulatedDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(self: Any, binding: Any, options: Any) -> None:
        raise RuntimeError("bfc_arena.cc: Failed to allocate memory for requested buffer of size 123")

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", run)
    with pytest.raises(AllocationError):
        run_backbone(*on_cpu)
