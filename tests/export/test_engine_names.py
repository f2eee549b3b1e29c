"""Every name of TensorRT in our sources exists in every version that the source serves. No library is needed."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FULL = ("8.6", "10.0", "10", "11.0", "11")
ALL = (*FULL, "rtx")

# Files that do not serve every version.
SERVES: Mapping[str, tuple[str, ...]] = {"export/tensorrt/weak_types.py": ("8.6",)}

# Names that a source asks for before it uses them (hasattr, __members__, or by flavour), and where they are.
FROM_10: tuple[str, ...] = ("10.0", "10", "11.0", "11", "rtx")
ASKED_FOR: Mapping[str, tuple[str, ...]] = {
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": FROM_10,
    "IProgressMonitor": FROM_10,
    "IBuilderConfig.progress_monitor": FROM_10,
    "ParserError.node_name": FROM_10,
    "ParserError.node_operator": FROM_10,
    "ExecutionContextAllocationStrategy": FROM_10,
    "ExecutionContextAllocationStrategy.USER_MANAGED": FROM_10,
    "ICudaEngine.create_execution_context_without_device_memory": ("8.6", "10.0", "10"),
    "ICudaEngine.device_memory_size": ("8.6", "10.0", "10"),
    "IExecutionContext.update_device_memory_size_for_shapes": FROM_10,
    "IExecutionContext.is_stream_capturable": ("rtx",),
    "ComputeCapability": ("rtx",),
    "IBuilderConfig.num_compute_capabilities": ("rtx",),
    "IBuilderConfig.set_compute_capability": ("rtx",),
}

# What our sources call the library's objects.
OBJECTS: Mapping[str, str] = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "shapes": "IOptimizationProfile",
    "layer": "ILayer",
    "error": "ParserError",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}


def used(source: str) -> Iterator[str]:
    """Names below `trt.`, and of the library's objects by what they are called."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute):
            continue
        parts, inner = [node.attr], node.value
        while isinstance(inner, ast.Attribute):
            parts.insert(0, inner.attr)
            inner = inner.value
        parts = [part for part in parts if not part.startswith("__")]
        if not isinstance(inner, ast.Name) or not parts:
            continue
        if inner.id == "trt":
            yield ".".join(parts)
        elif inner.id in OBJECTS:
            yield f"{OBJECTS[inner.id]}.{parts[0]}"


def sources() -> dict[str, str]:
    """Sources that use TensorRT, by name."""
    found: dict[str, str] = {}
    # An option that is called trt is no library.
    flags = {"export/tensorrt/request.py"}
    for room in ("runtime", "export", "validation", "scripts"):
        for file in sorted((ROOT / room).rglob("*.py")):
            if file.relative_to(ROOT).as_posix() in flags:
                continue
            text = file.read_text(encoding="utf-8")
            if any(isinstance(node, ast.Name) and node.id == "trt" for node in ast.walk(ast.parse(text))):
                found[file.relative_to(ROOT).as_posix()] = text
    return found


@cache
def known(shared: Path, version: str) -> frozenset[str]:
    lines = (shared / "tensorrt" / f"names-{version}.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line.partition("\t")[0] for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("source", sources())
def test_every_name_is_in_every_version_that_is_served(shared: Path, source: str) -> None:
    names = set(used(sources()[source]))
    assert names
    missing = [
        f"{name} in {version}"
        for name in sorted(names)
        for version in ASKED_FOR.get(name, SERVES.get(source, ALL))
        if name not in known(shared, version)
    ]
    assert not missing


@pytest.mark.parametrize("name", ASKED_FOR)
def test_what_is_asked_for_is_really_missing_elsewhere(shared: Path, name: str) -> None:
    assert [version for version in ALL if name in known(shared, version)] == list(ASKED_FOR[name])


def test_names_are_found_in_sources() -> None:
    text = (
        "trt.BuilderFlag.TF32; builder.create_network(1); trt.__version__; x.trt; network.get_input(0).name"
    )
    expected = ["Builder.create_network", "BuilderFlag", "BuilderFlag.TF32", "INetworkDefinition.get_input"]
    assert sorted(used(text)) == expected
    assert {"export/tensorrt/builder.py", "export/tensorrt/weak_types.py"} <= sources().keys()
