"""What the host sides of the Hopper kernels share: the text, its constants, the structures passed by value."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import TypeAlias

import torch

from wetread.kernels.arguments import Epilogue, Norm
from wetread.kernels.hopper import driver

Tensor: TypeAlias = torch.Tensor
SHARED_BYTES = 232_448  # the most a block may have on Hopper
KINDS = {torch.float16: 0, torch.int8: 1, torch.float8_e4m3fn: 2}  # of the product, by the weights' type
OUTPUTS = {torch.float16: 0, torch.int8: 1, torch.float8_e4m3fn: 2, torch.uint8: 3}
_PRODUCTS = {
    torch.float16: ("k16.f32.f16.f16", "p, 1, 1, 0, 0", "+f"),
    torch.float8_e4m3fn: ("k32.f32.e4m3.e4m3", "p, 1, 1", "+f"),
    torch.int8: ("k32.s32.s8.s8", "p", "+r"),
}


def product(columns: int, dtype: torch.dtype, unsigned: bool = False) -> str:
    """The instruction that adds 64 rows × `columns` into the first columns / 2 registers of `d`."""
    shape, tail, constraint = _PRODUCTS[dtype]
    if unsigned:
        shape = shape.replace("s8.s8", "u8.s8")
    count = columns // 2
    registers = ", ".join(f"%{i}" for i in range(count))
    operands = ", ".join(f'"{constraint}"(d[{i}])' for i in range(count))
    return (
        'asm volatile("{ .reg .pred p; setp.ne.b32 p, 1, 0; '
        f'wgmma.mma_async.sync.aligned.m64n{columns}{shape} {{{registers}}}, %{count}, %{count + 1}, {tail}; }}" '
        f': {operands} : "l"(a), "l"(b))'
    )


@cache
def order(outputs: int) -> list[int]:
    """The channel of each column of a block, so that a thread's columns are neighbouring channels.

    In the accumulators a thread has columns 8t + 2q and the next of every eight; these become channels 8q to 8q + 7 of
    each 32, and 4q to 4q + 3 of 16 left over.
    """
    found = []
    for column in range(outputs):
        t, q, e = column // 8, column % 8 // 2, column % 2
        group = t // 4
        wide = 8 if group < outputs // 32 else 4
        found.append(group * 32 + q * wide + t % 4 * 2 + e)
    return found


@cache
def text(name: str) -> str:
    """common.cu and the kernel's own file."""
    folder = Path(__file__).parent
    return (folder / "common.cu").read_text() + (folder / f"{name}.cu").read_text()


def epilogue_defines(epilogue: Epilogue, out: torch.dtype = torch.float16) -> list[str]:
    """Constants of common.cu's epilogue."""
    return [
        f"YKIND={OUTPUTS[out]}", f"SCALED={int(epilogue.scale is not None)}",
        f"BIASED={int(epilogue.bias is not None)}",
        f"LEAKY={int(epilogue.slope != 1.0)}", f"STATS={int(epilogue.sums is not None)}",
        f"RESIDUAL={int(epilogue.residual is not None)}",
    ]  # fmt: skip


class _Source(ctypes.Structure):
    """What a norm on load reads (common.cu: Source)."""

    _fields_ = (
        ("sums", ctypes.c_void_p), ("gamma", ctypes.c_void_p), ("beta", ctypes.c_void_p), ("sums_n", ctypes.c_int64),
        ("sums_r", ctypes.c_int64), ("replicas", ctypes.c_int), ("group", ctypes.c_int), ("eps", ctypes.c_float),
        ("slope", ctypes.c_float), ("inverse", ctypes.c_float),
    )  # fmt: skip


class _Output(ctypes.Structure):
    """Where a result goes and what is done to it (common.cu: Output)."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("y", "residual", "scale", "bias", "sums")),
        *((name, ctypes.c_int64) for name in ("yn", "yd", "yh", "yw", "rn", "rd", "rh", "rw", "sums_n", "sums_r")),
        ("replicas", ctypes.c_int), ("slope", ctypes.c_float), ("inverse", ctypes.c_float),
    )  # fmt: skip


def source(norm: Norm | None, channels: int, inverse: float) -> ctypes.Structure:
    """The norm of an input of so many channels, whose 8-bit operand is value · inverse."""
    if norm is None:
        return _Source()
    return _Source(
        norm.sums.data_ptr(), norm.gamma.data_ptr(), norm.beta.data_ptr(), norm.sums.stride(1), norm.sums.stride(0),
        norm.sums.shape[0], channels // norm.groups if norm.groups else 1, norm.eps, norm.slope, inverse,
    )  # fmt: skip


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def output(out: Tensor, epilogue: Epilogue) -> ctypes.Structure:
    """The epilogue of a result [N, D, H, W, CO]."""
    r, sums = epilogue.residual, epilogue.sums
    return _Output(
        out.data_ptr(), _pointer(r), _pointer(epilogue.scale), _pointer(epilogue.bias), _pointer(sums),
        *out.stride()[:4],
        *((0,) * 4 if r is None else r.stride()[:4]), *((0, 0) if sums is None else (sums.stride(1), sums.stride(0))),
        1 if sums is None else sums.shape[0], epilogue.slope, epilogue.inverse,
    )  # fmt: skip


@cache
def function(
    source_text: str, name: str, constants: tuple[str, ...], shared: int
) -> ctypes.c_void_p:  # pragma: no cover - needs a device
    """The compiled kernel, loaded; one for each set of constants."""
    return driver.load(driver.compile_source(source_text, "sm_90a", constants), name, shared)
