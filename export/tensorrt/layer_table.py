"""Which layers an engine really runs in INT8, read from what the builder says of its kernels.

A Q/DQ graph that breaks a rule builds without a warning and runs in floating point. The builder's own table tells: with
detailed profiling and a verbose log it lists every kernel with the types that it reads, and the ONNX nodes it is of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["int8_layers"]

# Kernels of convolutions and of matrix products.
PRODUCTS = ("correlation", "gemm")

LINE = re.compile(
    r"Name: .*?, LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: .*?Metadata: (?P<nodes>.*)"
)
TYPE = re.compile(r"Datatype: (\w+)")
NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


def int8_layers(messages: Iterable[str]) -> dict[str, bool]:
    """Every ONNX node that a kernel of a convolution or matrix product is of, and whether that kernel is of INT8.

    It is if both what it reads and its weights are: where the builder emulates Q/DQ, they are Half or Float.

    Args:
        messages: of a verbose log.
    """
    found: dict[str, bool] = {}
    for line in (line for message in messages for line in message.split("\n")):
        match = LINE.match(line)
        if match is None or match["kind"] not in PRODUCTS:
            continue
        reads, weights = TYPE.findall(match["inputs"]), TYPE.findall(match["constants"])
        integer = "Int8" in reads[:1] and "Int8" in weights
        for node in NODE.findall(match["nodes"]):
            found[node] = integer
    return found
