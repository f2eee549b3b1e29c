"""Builds the native kernels of the runtime; everything else about the package is in pyproject.toml.

They are one shared library behind a C interface (no Python in it), compiled by any gcc or clang that knows C++17. It is
optional: without such a compiler the package is installed without it, and says so.
"""

from __future__ import annotations

import os
import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

SOURCES = Path("runtime/native/src")
# Objects outlive the build, so that the next one compiles only what has changed.
OBJECTS = Path("build/native")
FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-pthread",
]
X86 = platform.machine().lower() in ("x86_64", "amd64")
# Of each instruction set the lanes of a vector, and what the compiler may use: abi.cpp asks the processor for the same.
INSTRUCTION_SETS: dict[str, tuple[int, list[str]]] = {"scalar": (1, ["-march=x86-64"] if X86 else [])}
if X86:
    INSTRUCTION_SETS["avx2"] = (8, ["-march=x86-64", "-mavx2", "-mfma"])
    INSTRUCTION_SETS["avx512"] = (
        16,
        ["-march=x86-64", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    )
# Compiled once, for any processor; the others are kernels.
COMMON = ("abi.cpp", "network.cpp")

Unit = tuple[str, Path, list[tuple[str, str | None]], list[str]]
"""Folder of the object, source, macros, flags."""


def units() -> list[Unit]:
    """What is compiled, in the order of the linker.

    Templates of the standard library that several units use are linked once, from the first that has them: so code for
    better processors must come last.
    """
    macros: list[tuple[str, str | None]] = [("PCSR_X86", None)] if X86 else []
    found: list[Unit] = [("common", SOURCES / name, macros, FLAGS) for name in COMMON]
    kernels = [source for source in sorted(SOURCES.glob("*.cpp")) if source.name not in COMMON]
    for name, (lanes, flags) in INSTRUCTION_SETS.items():
        macros = [("PCSR_ISA", name), ("PCSR_LANES", str(lanes))]
        found += [(name, source, macros, FLAGS + flags) for source in kernels]
    return found


class BuildKernels(build_ext):
    """Compiles side by side, and leaves the library out where that fails."""

    def get_ext_filename(self, fullname: str) -> str:
        """A plain shared library: no Python version in its name."""
        return os.path.join(*fullname.split(".")) + ".so"  # noqa: PTH118 (setuptools wants a str)

    def get_outputs(self) -> list[str]:
        """What has been built."""
        return [each for each in super().get_outputs() if Path(each).exists()]

    def get_output_mapping(self) -> dict[str, str]:
        """Of what has been built, its place beside the sources, for an editable install."""
        return {made: place for made, place in super().get_output_mapping().items() if Path(made).exists()}

    def copy_extensions_to_source(self) -> None:
        """An editable install runs what is beside the sources: no library of an earlier build may stay there."""
        for place in super().get_output_mapping().values():
            Path(place).unlink(missing_ok=True)
        super().copy_extensions_to_source()

    def build_extension(self, ext: Extension) -> None:
        """Compile what has changed and link; a line on the build's output where that cannot be."""
        library = Path(self.get_ext_fullpath(ext.name))
        library.unlink(missing_ok=True)
        try:
            self._build(library)
        except (BaseError, CCompilerError, OSError) as error:
            # Which error a compiler that is missing or fails makes depends on setuptools; all are of these.
            print(f"pcsr: the native kernels are left out, ONNX Runtime does their work: {error}", flush=True)

    def _build(self, library: Path) -> None:
        if self.compiler.compiler_type != "unix":
            raise BaseError(f"they need gcc or clang, and this compiler is {self.compiler.compiler_type}")
        plan = units()
        # Another compiler or other flags make objects worthless.
        made_by = OBJECTS / "made-by"
        identity = repr((self.compiler.compiler_so, getattr(self.compiler, "compiler_so_cxx", None), plan))
        if not made_by.exists() or made_by.read_text() != identity:
            shutil.rmtree(OBJECTS, ignore_errors=True)
            OBJECTS.mkdir(parents=True)
            made_by.write_text(identity)
        headers = max(each.stat().st_mtime for each in SOURCES.glob("*.hpp"))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda unit: self._compiled(*unit, headers=headers), plan))
        library.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(
            objects, str(library), extra_postargs=["-pthread"], target_lang="c++"
        )

    def _compiled(
        self,
        folder: str,
        source: Path,
        macros: list[tuple[str, str | None]],
        flags: list[str],
        *,
        headers: float,
    ) -> str:
        made = OBJECTS / folder / SOURCES / f"{source.stem}.o"
        if not made.exists() or made.stat().st_mtime <= max(headers, source.stat().st_mtime):
            # Beside its place first: a compiler that is killed leaves no half of an object there.
            partial = str(OBJECTS / folder / "partial")
            (compiled,) = self.compiler.compile(
                [str(source)], output_dir=partial, macros=macros, extra_postargs=flags
            )
            made.parent.mkdir(parents=True, exist_ok=True)
            Path(compiled).replace(made)
        return str(made)


class PlatformWheel(bdist_wheel):
    """The library is for a platform, and for any Python there."""

    def get_tag(self) -> tuple[str, str, str]:
        """Like py3-none-linux_x86_64."""
        return ("py3", "none", super().get_tag()[2])


sources: dict[str, Any] = {
    "sources": sorted(str(source) for source in SOURCES.glob("*.cpp")),
    "depends": sorted(str(header) for header in SOURCES.glob("*.hpp")),
}
setup(
    ext_modules=[Extension("pcsr.runtime.native.kernels", language="c++", optional=True, **sources)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
