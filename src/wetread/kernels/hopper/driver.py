"""CUDA's driver and run-time compiler through ctypes: compile, load, describe a tensor, launch.

NVRTC comes with torch; the driver with the GPU. Everything runs in torch's own context.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from wetread.errors import EngineError, EngineUnavailableError, OutputError

# cuda.h: CUtensorMapDataType, CUtensorMapSwizzle, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_TYPES = {torch.float16: 6, torch.int8: 0, torch.uint8: 0, torch.float8_e4m3fn: 0}
_SWIZZLE = {0: 0, 32: 1, 64: 2, 128: 3}
_MAX_SHARED = 8


class TensorMap(ctypes.Structure):
    """A CUtensorMap: 128 bytes, aligned to 64, passed to kernels by value."""

    _fields_ = (("opaque", ctypes.c_uint64 * 16),)


@cache
def _nvrtc() -> ctypes.CDLL:
    names = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
    folders = [Path(p) / "nvidia" for p in sys.path]
    names += [
        str(f) for folder in folders if folder.is_dir() for f in sorted(folder.glob("*/lib/libnvrtc.so.1*"))
    ]
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise EngineUnavailableError(
        "CUDA's run-time compiler (libnvrtc) was not found", todo="install torch built for CUDA"
    )


@cache
def _cuda() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise EngineUnavailableError(
            "CUDA's driver (libcuda.so.1) was not found", todo="install it"
        ) from error


def _check(result: int, what: str) -> None:
    if result != 0:
        text = ctypes.c_char_p()
        _cuda().cuGetErrorString(result, ctypes.byref(text))
        raise EngineError(f"{what} failed: CUDA error {result}, {(text.value or b'').decode()}")


def compile_source(source: str, arch: str, defines: Sequence[str] = ()) -> bytes:
    """A cubin for `arch` (such as "sm_90a"), from the cache on disk where it was compiled before. Needs no device.

    Raises:
        EngineError: with the compiler's log.
    """
    # here, so that kernels can be timed on machines that have torch alone
    from wetread.package import user_cache
    from wetread.storage import write_bytes

    key = hashlib.sha256(json.dumps([source, arch, sorted(defines), _nvrtc_version()]).encode()).hexdigest()
    path = user_cache() / "kernels" / f"{key}.cubin"
    with suppress(OSError):
        kept = path.read_bytes()
        # its own hash first: a file that was cut off or changed is compiled again
        if kept[:32] == hashlib.sha256(kept[32:]).digest():
            return kept[32:]
    cubin = _compile(source, arch, defines)
    with suppress(OutputError):  # a folder that cannot be written to only costs time
        write_bytes(path, hashlib.sha256(cubin).digest() + cubin)
    return cubin


def _nvrtc_version() -> list[int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return [major.value, minor.value]


def _compile(source: str, arch: str, defines: Sequence[str]) -> bytes:
    lib = _nvrtc()
    program = ctypes.c_void_p()
    lib.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"wetread.cu", 0, None, None)
    options = [f"--gpu-architecture={arch}", "--std=c++17", *(f"-D{d}" for d in defines)]
    array = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    result = lib.nvrtcCompileProgram(program, len(options), array)
    size = ctypes.c_size_t()
    if result != 0:
        lib.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        lib.nvrtcGetProgramLog(program, log)
        raise EngineError(f"a kernel does not compile for {arch}: {log.value.decode()}")
    lib.nvrtcGetCUBINSize(program, ctypes.byref(size))
    cubin = ctypes.create_string_buffer(size.value)
    lib.nvrtcGetCUBIN(program, cubin)
    lib.nvrtcDestroyProgram(ctypes.byref(program))
    return cubin.raw


def load(cubin: bytes, name: str, shared_bytes: int) -> ctypes.c_void_p:
    """The function `name` of a cubin, allowed `shared_bytes` of dynamic shared memory."""
    torch.cuda.current_stream()  # torch's context exists and is current
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _check(_cuda().cuModuleLoadData(ctypes.byref(module), cubin), "loading a kernel")
    _check(
        _cuda().cuModuleGetFunction(ctypes.byref(function), module, name.encode()), f"finding kernel {name}"
    )
    _check(_cuda().cuFuncSetAttribute(function, _MAX_SHARED, shared_bytes), "asking for shared memory")
    return function


def tensor_map(tensor: torch.Tensor, box: Sequence[int], swizzle: int) -> TensorMap:
    """Describes a tensor and the box that one copy takes (innermost axis last, as in torch); outside it is zero.

    `swizzle` is 32, 64 or 128 bytes, or 0 for rows as they are.
    """
    storage = (ctypes.c_char * (128 + 64))()
    # the driver writes the map where it is aligned to 64 bytes
    at = (ctypes.addressof(storage) + 63) & ~63
    rank = tensor.ndim
    sizes = (ctypes.c_uint64 * rank)(*reversed(tensor.shape))
    strides = (ctypes.c_uint64 * (rank - 1))(
        *(s * tensor.element_size() for s in reversed(tensor.stride()[:-1]))
    )
    boxes = (ctypes.c_uint32 * rank)(*reversed(list(box)))
    ones = (ctypes.c_uint32 * rank)(*([1] * rank))
    _check(
        _cuda().cuTensorMapEncodeTiled(
            ctypes.c_void_p(at), _TYPES[tensor.dtype], ctypes.c_uint32(rank), ctypes.c_void_p(tensor.data_ptr()),
            sizes, strides, boxes, ones, 0, _SWIZZLE[swizzle], 2, 0,
        ),
        f"describing a tensor of shape {tuple(tensor.shape)}",
    )  # fmt: skip
    return TensorMap.from_buffer_copy((ctypes.c_char * 128).from_address(at))


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute; 6 is programmatic stream serialisation."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int * 16))


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(_Attribute)), ("count", ctypes.c_uint),
    )  # fmt: skip


def launch(
    function: ctypes.c_void_p,
    grid: int | tuple[int, int],
    threads: int,
    shared_bytes: int,
    arguments: Sequence[Any],
) -> None:
    """Launches on torch's current stream; arguments are ctypes values, or tensors for their pointers.

    The kernel may begin while the launch before it ends, and waits for it itself (griddepcontrol.wait).
    """
    values = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in arguments]
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
    early = _Attribute(6, 0, (ctypes.c_int * 16)(1))
    config = _Config(
        (grid, 1, 1) if isinstance(grid, int) else (*grid, 1),
        (threads, 1, 1),
        shared_bytes,
        torch.cuda.current_stream().cuda_stream,
        ctypes.pointer(early),
        1,
    )
    _check(_cuda().cuLaunchKernelEx(ctypes.byref(config), function, pointers, None), "launching a kernel")
