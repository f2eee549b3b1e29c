"""The lint says of each rule that is broken which it is, and names the layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from pcsr.export.cli import main
from pcsr.export.int8.lint import Finding, Target, lint, read_model
from pcsr.runtime.errors import OptionError

Graph = list[onnx.NodeProto]


class Draft:
    """A convolution with ReLU, quantised as a target likes it, to be spoilt."""

    def __init__(self, target: Target) -> None:
        rng = np.random.default_rng(1)
        act = np.int8 if target == "tensorrt" else np.uint8
        self.constants: dict[str, np.ndarray] = {
            "scale": np.array(0.1, dtype=np.float32),
            "zero": np.array(0, dtype=act),
            "weight": rng.integers(-100, 100, (8, 4, 3, 3)).astype(np.int8),
            "weight_scale": np.full(8, 0.01, dtype=np.float32),
            "weight_zero": np.zeros(8, dtype=np.int8),
        }
        self.nodes: Graph = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_q"], "q"),
            helper.make_node("DequantizeLinear", ["x_q", "scale", "zero"], ["x_d"], "dq"),
            helper.make_node(
                "DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w_d"], "wdq", axis=0
            ),
            helper.make_node("Conv", ["x_d", "w_d", "b_d"], ["c"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"], "relu"),
        ]
        if target == "tensorrt":
            self.constants["b_d"] = np.zeros(8, dtype=np.float32)
            self.nodes.append(helper.make_node("Identity", ["r"], ["y"], "out"))
        else:
            self.constants |= {
                "bias": np.zeros(8, dtype=np.int32),
                "bias_scale": np.full(8, 0.001, dtype=np.float32),
                "bias_zero": np.zeros(8, dtype=np.int32),
            }
            self.nodes[3:3] = [
                helper.make_node("DequantizeLinear", ["bias", "bias_scale", "bias_zero"], ["b_d"], axis=0)
            ]
            self.nodes += [
                helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["y_q"], "q2"),
                helper.make_node("DequantizeLinear", ["y_q", "scale", "zero"], ["y"], "dq2"),
            ]
        self.opset = 17

    def node(self, name: str) -> onnx.NodeProto:
        return next(node for node in self.nodes if node.name == name)

    def model(self) -> onnx.ModelProto:
        constants = [numpy_helper.from_array(values, name) for name, values in self.constants.items()]
        io = [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, "h", "w"]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, "h", "w"]),
        ]
        graph = helper.make_graph(self.nodes, "g", io[:1], io[1:], constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9)

    def finding(self, target: Target) -> Finding:
        (found,) = lint(self.model(), target)
        return found


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_the_right_form_has_nothing_wrong(target: Target) -> None:
    found = Draft(target).finding(target)
    assert (found.node, found.int8, found.reasons) == ("conv", True, ())


def constant(name: str, values: object) -> Callable[[Draft], None]:
    return lambda draft: draft.constants.__setitem__(name, np.asarray(values))


def connect(node: str, place: int, tensor: str) -> Callable[[Draft], None]:
    return lambda draft: draft.node(node).input.__setitem__(place, tensor)


def without_zero(draft: Draft) -> None:
    for name in ("q", "dq"):
        del draft.node(name).input[2:]


def rounded_before_relu(draft: Draft) -> None:
    draft.nodes[4:4] = [
        helper.make_node("QuantizeLinear", ["c", "scale", "zero"], ["c_q"], "early"),
        helper.make_node("DequantizeLinear", ["c_q", "scale", "zero"], ["c_d"], "early_dq"),
    ]
    draft.node("relu").input[0] = "c_d"


def half(draft: Draft) -> None:
    draft.constants["scale"] = np.array(0.1, dtype=np.float16)


def along_axis_1(draft: Draft) -> None:
    draft.node("wdq").attribute[0].i = 1


BOTH = [
    (constant("scale", np.array([0.1], dtype=np.float32)), r"has the shape \[1\]; only rank 0 is fused"),
    (constant("scale", np.array(0, dtype=np.float32)), "is not positive everywhere"),
    (constant("scale", np.array(-1, dtype=np.float32)), "is not positive everywhere"),
    (constant("weight_scale", np.full(7, 0.01, dtype=np.float32)), "7 scales for 8 output channels"),
    (along_axis_1, "run along axis 1, its output channels along axis 0"),
    (constant("weight_zero", np.full(8, 3, dtype=np.int8)), "zero point of its weight is not 0"),
    (constant("weight", np.zeros((8, 4, 3, 3), dtype=np.uint8)), "its weight is uint8, not int8"),
    (connect("conv", 0, "x"), "its input is not behind QuantizeLinear"),
    (without_zero, "zero point of its input is not given"),
]
TENSORRT = [
    (constant("zero", np.array(0, dtype=np.uint8)), "its input is quantised to uint8, not int8"),
    (constant("zero", np.array(5, dtype=np.int8)), "zero point of its input is not 0"),
    (rounded_before_relu, "QuantizeLinear stands between it and Relu relu"),
    (half, "float16, which Q/DQ take from opset 19 on; this is 17"),
]
ONNXRUNTIME = [
    (constant("zero", np.array(0, dtype=np.int8)), "its input is quantised to int8, not uint8"),
    (connect("conv", 2, "bias_scale"), "its bias is not an int32 constant"),
    (connect("q2", 0, "c"), "not read by one QuantizeLinear alone"),
    (half, "ONNX Runtime fuses float32 alone"),
]


@pytest.mark.parametrize(
    ("target", "spoil", "reason"),
    [
        *(("tensorrt", *one) for one in (*BOTH, *TENSORRT)),
        *(("onnxruntime", *one) for one in (*BOTH, *ONNXRUNTIME)),
    ],
)
def test_a_broken_rule_is_named(target: Target, spoil: Callable[[Draft], None], reason: str) -> None:
    import re

    draft = Draft(target)
    spoil(draft)
    found = draft.finding(target)
    assert not found.int8
    assert found.quantised
    assert any(re.search(reason, text) for text in found.reasons), found.reasons


def test_tensorrt_is_told_of_an_integer_bias() -> None:
    found = Draft("onnxruntime").finding("tensorrt")
    assert any("dequantised integer" in reason for reason in found.reasons)


def test_a_layer_that_nobody_wanted_quantised_is_floating_point() -> None:
    draft = Draft("tensorrt")
    draft.constants["w_d"] = np.zeros((8, 4, 3, 3), dtype=np.float32)
    del draft.nodes[2]
    found = draft.finding("tensorrt")
    assert (found.int8, found.quantised, found.reasons) == (False, False, ("its weight is not quantised",))


def test_operators_that_hold_integers_are_for_one_target() -> None:
    node = helper.make_node("ConvInteger", ["x", "w"], ["y"], "integers")
    io = [helper.make_tensor_value_info(n, TensorProto.UINT8, None) for n in ("x", "y")]
    graph = helper.make_graph([node], "g", io[:1], io[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert [lint(model, t)[0].int8 for t in ("tensorrt", "onnxruntime")] == [False, True]


def test_a_skip_in_floating_point_is_noted_but_no_fault() -> None:
    draft = Draft("tensorrt")
    draft.nodes[4:5] = [
        helper.make_node("Sigmoid", ["c"], ["s"], "skip"),
        helper.make_node("Add", ["c", "s"], ["sum"], "add"),
        helper.make_node("Relu", ["sum"], ["r"], "relu"),
    ]
    found = draft.finding("tensorrt")
    assert found.int8
    assert found.reasons[0].startswith("note: the skip s is added in floating point")


# --- the command -------------------------------------------------------------------------------------------


def invoke(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return done.exit_code, done.output


def test_the_command_ends_with_3_where_a_layer_is_quantised_in_vain(tmp_path: Path) -> None:
    onnx.save(Draft("tensorrt").model(), str(tmp_path / "right.onnx"))
    draft = Draft("tensorrt")
    BOTH[0][0](draft)
    onnx.save(draft.model(), str(tmp_path / "wrong.onnx"))
    status, said = invoke(tmp_path / "right.onnx", "--lint")
    assert (status, "1 of 1 layers will run in INT8" in said) == (0, True)
    status, said = invoke(tmp_path / "wrong.onnx", "--lint", "--for", "tensorrt")
    assert status == 3
    assert "NOT FUSED Conv conv: the scale of its input has the shape [1]" in said
    status, said = invoke(tmp_path / "right.onnx", "--lint", "--for", "onnxruntime", "--json")
    assert status == 3
    assert json.loads(said.splitlines()[0])["layers"][0]["int8"] is False


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--for", "8.6"], "judges for tensorrt or onnxruntime, not for '8.6'"),
        (["-o", "bundle"], "leave other options than --for and --json away"),
        (["--trt"], "leave other options than --for and --json away"),
    ],
)
def test_options_that_do_not_go_with_it_are_refused(tmp_path: Path, options: list[str], reason: str) -> None:
    onnx.save(Draft("tensorrt").model(), str(tmp_path / "m.onnx"))
    status, said = invoke(tmp_path / "m.onnx", "--lint", *options)
    assert (status, reason in said) == (2, True)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08" * 500, None])
def test_what_is_no_onnx_file_is_one_error(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(OptionError, match="is no valid ONNX file|cannot read"):
        read_model(tmp_path / "m.onnx")
