"""The house rules that a machine can hold: who imports whom, and what the runtime drags in."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What each room may import of ours, beside itself: a room, or one module of it.
ALLOWED: dict[str, tuple[str, ...]] = {
    "model": ("runtime.errors",),
    "export": ("model", "runtime", "validation.metrics"),
    "runtime": (),
    "calibration": ("runtime", "export", "validation.metrics", "validation.sets"),
    "validation": ("model", "runtime"),
    "training": ("model", "runtime", "validation.metrics"),
    "serving": ("runtime", "validation.metrics"),
}

# Too heavy, or an extra, for everyone who only wants to upscale an array.
NOT_ON_IMPORT = (
    "torch",
    "onnx",
    "onnxruntime",
    "pyvips",
    "rich",
    "click",
    "cupy",
    "skimage",
    "scipy",
    "tensorrt",
    "tensorrt_rtx_bindings",
    "polygraphy",
    "platformdirs",
)

# The standard library, and what the base install or the room's own extra has; see pyproject.toml.
PACKAGES: dict[str, set[str]] = {
    "runtime": {
        "numpy",
        "msgspec",
        "safetensors",
        "pyvips",
        "PIL",
        "rich",
        "click",
        "onnxruntime",
        "tensorrt",
        "tensorrt_rtx_bindings",
        "platformdirs",
        "cupy",
        "av",
    },
    "model": {"numpy", "torch", "safetensors"},
}


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """Dotted names that a source file imports, anywhere in it, with the line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively; write the full name"
            # `from pcsr.runtime import errors` may name a module or a name in one: both are listed.
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def is_within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_between_rooms_run_one_way(room: str) -> None:
    allowed = [f"pcsr.{name}" for name in (room, *ALLOWED[room])]
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in sources(room)
        for name, line in imports(file)
        if is_within(name, "pcsr") and not any(is_within(name, prefix) for prefix in allowed)
    ]
    assert not wrong


@pytest.mark.parametrize("room", PACKAGES)
def test_a_room_imports_no_package_that_is_not_its_own(room: str) -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {name}"
        for file in sources(room)
        for name, line in imports(file)
        if name.partition(".")[0] not in sys.stdlib_module_names | PACKAGES[room] | {"pcsr"}
    ]
    assert not wrong


def test_metrics_need_numpy_and_nothing_else() -> None:
    file = ROOT / "validation" / "metrics.py"
    wrong = [
        name
        for name, _ in imports(file)
        if name.partition(".")[0] not in sys.stdlib_module_names | {"numpy"}
        and not is_within(name, "pcsr.runtime.errors")
    ]
    assert not wrong


def test_the_oracle_shares_no_code_with_the_runtime() -> None:
    ours = {name for name, _ in imports(ROOT / "model" / "reference.py") if is_within(name, "pcsr")}
    assert all(is_within(name, "pcsr.model") or is_within(name, "pcsr.runtime.errors") for name in ours)


def test_every_room_on_disk_has_its_import_rule() -> None:
    rooms = {file.parent.name for file in ROOT.glob("*/__init__.py")}
    assert rooms <= ALLOWED.keys()


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    heavy = f"sorted(set({NOT_ON_IMPORT}) & sys.modules.keys())"
    program = f"import sys; import pcsr.runtime; print({heavy})"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
