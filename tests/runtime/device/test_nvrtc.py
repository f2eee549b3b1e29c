"""The CUDA sources compile for the GPUs that the documentation names. NVRTC needs neither a driver nor a GPU."""

import ctypes
import importlib.util
from pathlib import Path

import pytest

from pcsr.runtime.device.kernels import KERNELS, OPTIONS, source

ARCHITECTURES = (80, 86, 89, 90, 120)


@pytest.fixture(scope="module")
def nvrtc() -> ctypes.CDLL:
    spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
    assert spec is not None, "NVRTC is missing; run: pip install '.[dev]'"
    assert spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations))) / "lib"
    return ctypes.CDLL(str(next(folder.glob("libnvrtc.so.*"))))


def compiled(nvrtc: ctypes.CDLL, text: str, architecture: int) -> bytes:
    """The machine code, or AssertionError with the compiler's log."""
    program = ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None) == 0
    options = [option.encode() for option in (f"--gpu-architecture=sm_{architecture}", *OPTIONS)]
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    assert nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)) == 0
    log = ctypes.create_string_buffer(size.value)
    assert nvrtc.nvrtcGetProgramLog(program, log) == 0
    assert not failed, log.value.decode()
    assert nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
    code = ctypes.create_string_buffer(size.value)
    assert nvrtc.nvrtcGetCUBIN(program, code) == 0
    assert nvrtc.nvrtcDestroyProgram(ctypes.byref(program)) == 0
    return code.raw


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("classes", [2, 3])
def test_every_kernel_compiles(nvrtc: ctypes.CDLL, architecture: int, classes: int) -> None:
    code = compiled(nvrtc, source(classes), architecture)
    assert all(name.encode() + b"\0" in code for name in KERNELS)


def test_sixteen_classes_compile(nvrtc: ctypes.CDLL) -> None:
    assert compiled(nvrtc, source(16), 90)


def test_no_product_and_sum_are_fused(nvrtc: ctypes.CDLL) -> None:
    # The option is what keeps the roundings of the contract; PTX tells.
    def ptx(options: tuple[str, ...]) -> bytes:
        program = ctypes.c_void_p()
        text = source(3).encode()
        assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, b"kernels.cu", 0, None, None) == 0
        given = [option.encode() for option in ("--gpu-architecture=compute_90", *options)]
        assert nvrtc.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given)) == 0
        size = ctypes.c_size_t()
        assert nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size)) == 0
        made = ctypes.create_string_buffer(size.value)
        assert nvrtc.nvrtcGetPTX(program, made) == 0
        assert nvrtc.nvrtcDestroyProgram(ctypes.byref(program)) == 0
        return made.raw

    def multiplies_and_adds(made: bytes) -> int:
        return made.count(b"fma.rn.f32") + made.count(b"fma.rn.f64")

    assert multiplies_and_adds(ptx(OPTIONS)) == 0
    assert multiplies_and_adds(ptx(())) > 0
