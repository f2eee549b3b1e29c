"""The competitors through public libraries: dense networks, the published inference, bicubic.

All take and give 8-bit pixels as the runtime does, by the same conversion around the network.
"""

from __future__ import annotations

import copy
import io
import time
import warnings
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch
from bench_competitors import Competitor, Output, Setting, to_levels
from numpy.typing import NDArray

from pcsr.model.dense import DenseNetwork, dense_cost, upscale_dense
from pcsr.model.network import Network
from pcsr.model.reference import upscale
from pcsr.runtime.errors import BackendError
from pcsr.validation.results import Rule

__all__ = ["PEERS", "bicubic", "dense_graph", "oracle"]

Float = NDArray[np.float32]
Forward = Callable[[Float], Float]
"""(1, 3, h, w) normalised to (1, 3, 4h, 4w) normalised."""


def dense_graph(network: DenseNetwork) -> bytes:
    """The dense x4 network as PyTorch's own exporter writes it: lr (1, 3, h, w) to hr, in the network's precision."""
    model = io.BytesIO()
    example = torch.rand(1, 3, 32, 40).to(next(network.parameters()).dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            model,
            dynamo=False,
            opset_version=17,
            input_names=["lr"],
            output_names=["hr"],
            dynamic_axes={"lr": {2: "h", 3: "w"}, "hr": {2: "H", 3: "W"}},
        )
    return model.getvalue()


def in_onnxruntime(network: DenseNetwork, setting: Setting) -> Competitor:
    """In ONNX Runtime, told the picture's size; its threads spin during a call and not after it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    for name, side in zip("hw", setting.lr.shape[:2], strict=True):
        options.add_free_dimension_override_by_name(name, side)
    session = onnxruntime.InferenceSession(dense_graph(network), options, providers=["CPUExecutionProvider"])

    def forward(lr: Float) -> Float:
        hr: Float = session.run(None, {"lr": lr})[0]
        return hr

    return _dense("dense-onnxruntime", f"ONNX Runtime {onnxruntime.__version__}", network, setting, forward)


def in_openvino(network: DenseNetwork, setting: Setting) -> Competitor:
    """In OpenVINO, told the picture's size, in float32 where it would take bfloat16 by itself.

    Raises:
        BackendError: it is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise BackendError(f"cannot be imported ({error}); run: pip install 'pcsr[bench]'") from error
    core = openvino.Core()
    model = core.read_model(dense_graph(network))
    model.reshape([1, 3, *setting.lr.shape[:2]])
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": setting.threads,
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    ran = f"OpenVINO {openvino.__version__.partition('-')[0]}"
    return _dense("dense-openvino", ran, network, setting, lambda lr: compiled([lr])[0])


def in_pytorch(network: DenseNetwork, setting: Setting) -> Competitor:
    """In PyTorch: as it comes, or with channels innermost in memory, whichever was faster in a call of each."""
    layouts = (torch.contiguous_format, torch.channels_last)

    def forward(layout: torch.memory_format) -> Forward:
        arranged = copy.deepcopy(network).to(memory_format=layout)

        def run(lr: Float) -> Float:
            torch.set_num_threads(setting.threads)
            with torch.inference_mode():
                hr: Float = arranged(torch.from_numpy(lr).contiguous(memory_format=layout)).numpy()
                return hr

        return run

    raced = {}
    for layout in layouts:
        name = str(layout).removeprefix("torch.")
        ran = f"PyTorch {torch.__version__}, {name}, the faster of {len(layouts)} layouts"
        competitor = _dense("dense-pytorch", ran, network, setting, forward(layout))
        started = time.perf_counter()
        competitor.run()
        raced[time.perf_counter() - started] = competitor
    return raced[min(raced)]


PEERS: dict[str, Callable[[DenseNetwork, Setting], Competitor]] = {
    "dense-onnxruntime": in_onnxruntime,
    "dense-openvino": in_openvino,
    "dense-pytorch": in_pytorch,
}


def _dense(name: str, ran: str, network: DenseNetwork, setting: Setting, forward: Forward) -> Competitor:
    mean = np.array(network.spec.mean, dtype=np.float32)
    h, w = setting.lr.shape[:2]
    macs = h * w * dense_cost(network).macs

    def run() -> Output:
        planar = (setting.lr.astype(np.float32) / 255 - mean).transpose(2, 0, 1)[None]
        hr = forward(np.ascontiguousarray(planar))
        return Output(to_levels(hr[0].transpose(1, 2, 0) + mean), macs)

    return Competitor(name, ran, run)


def dense_reference(network: DenseNetwork, setting: Setting) -> NDArray[np.uint8]:
    """What the dense network makes of the picture, in PyTorch."""
    return to_levels(upscale_dense(network, setting.lr))


def oracle(network: Network, setting: Setting, rule: Rule) -> Competitor:
    """The published inference in PyTorch."""

    def run() -> Output:
        torch.set_num_threads(setting.threads)
        found = upscale(network, setting.lr, scale=setting.scale, **rule.keywords)
        counts = np.bincount(found.class_map.reshape(-1), minlength=network.spec.classes)
        shares = tuple((counts / found.class_map.size).tolist())
        return Output(to_levels(found.image), found.macs, found.class_map, shares)

    return Competitor("oracle", f"PyTorch {torch.__version__}", run, rule)


def bicubic(setting: Setting) -> Competitor:
    """Bicubic in libvips."""
    import pyvips

    def run() -> Output:
        picture = pyvips.Image.new_from_array(setting.lr)
        resized = picture.resize(setting.scale, kernel=pyvips.enums.Kernel.CUBIC)
        return Output(resized.numpy())

    major, minor, micro = (pyvips.version(part) for part in range(3))
    return Competitor("bicubic", f"libvips {major}.{minor}.{micro}", run)
