"""Host side of march.cu: when it applies, its weights, its launch."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

import torch

from wetread.kernels.arguments import Epilogue, Norm
from wetread.kernels.hopper import driver

Tensor: TypeAlias = torch.Tensor
COLUMN, OUTPUTS, EDGE = 16, 32, 18
SHARED_BYTES = 232_448  # the most a block may have on Hopper
_INSTRUCTIONS = {
    torch.float16: ("m64n96k16.f32.f16.f16", "p, 1, 1, 0, 0", "+f"),
    torch.float8_e4m3fn: ("m64n96k32.f32.e4m3.e4m3", "p, 1, 1", "+f"),
    torch.int8: ("m64n96k32.s32.s8.s8", "p", "+r"),
}
_KINDS = {torch.float16: 0, torch.int8: 1, torch.float8_e4m3fn: 2}


def chunk_bytes(channels: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of one voxel in a chunk of channels: the widest of 64 and 32 that divides every input (0: none)."""
    width = torch.empty(0, dtype=dtype).element_size()
    return next((s for s in (64, 32) if all(c * width % s == 0 for c in channels)), 0)


def _stage_bytes(s: int) -> int:
    return -(-EDGE * EDGE * s // 1024) * 1024


def raws(channels: Sequence[int], dtype: torch.dtype, norm: bool) -> int:
    """Raw planes in flight, where a norm on load writes another type than it reads."""
    if not norm or dtype == torch.float16:
        return 0
    return 3 if chunk_bytes(channels, dtype) <= 32 else 2


@dataclass(frozen=True)
class Layout:
    """What lies in a block's shared memory.

    Attributes:
        stages: planes in flight; below 2 the kernel does not fit.
        stream: weights arrive with each chunk of a plane (else they stay).
        bytes: of dynamic shared memory.
    """

    stages: int
    stream: bool
    bytes: int


def layout(channels: Sequence[int], dtype: torch.dtype, norm: bool = False) -> Layout:
    """Resident weights where two planes fit beside them, else streamed ones."""
    s = chunk_bytes(channels, dtype)
    if s == 0 or (norm and (len(channels) > 1 or sum(channels) > 64)):
        return Layout(0, False, 0)
    width = torch.empty(0, dtype=dtype).element_size()
    # alignment twice, barriers and the norm's table
    fixed = 3 * 1024 + raws(channels, dtype, norm) * _stage_bytes(s * 2 // width)
    resident = 27 * OUTPUTS * sum(channels) * width
    count = min(6, (SHARED_BYTES - fixed - resident) // _stage_bytes(s))
    if count >= 2:
        return Layout(count, False, fixed + resident + count * _stage_bytes(s))
    held = _stage_bytes(s) + 27 * OUTPUTS * s
    count = 0 if norm else min(6, (SHARED_BYTES - fixed) // held)
    return Layout(count, True, fixed + count * held)


def applies(channels: Sequence[int], co: int, dtype: torch.dtype, norm: bool = False) -> bool:
    """Whether the layer fits; a norm on load needs one input of at most 64 channels."""
    return co % OUTPUTS == 0 and dtype in _KINDS and layout(channels, dtype, norm).stages >= 2


class _Source(ctypes.Structure):
    """What a norm on load reads (march.cu: Source)."""

    _fields_ = (
        ("sums", ctypes.c_void_p), ("gamma", ctypes.c_void_p), ("beta", ctypes.c_void_p), ("sums_n", ctypes.c_int64),
        ("sums_r", ctypes.c_int64), ("replicas", ctypes.c_int), ("eps", ctypes.c_float), ("slope", ctypes.c_float),
        ("inverse", ctypes.c_float),
    )  # fmt: skip


def pack(weight: Tensor, channels: Sequence[int]) -> Tensor:
    """[CO, C, 3, 3, 3] as rows [blocks, chunks, 9 (kh, kw), 3 (kd from 2 to 0), 32] × chunk channels."""
    co, c = weight.shape[:2]
    step = chunk_bytes(channels, weight.dtype) // weight.element_size()
    w = weight.reshape(co // OUTPUTS, OUTPUTS, c // step, step, 3, 3, 3).flip(4)
    # axes: block, output, chunk, channel, kd, kh, kw
    return w.permute(0, 2, 5, 6, 4, 1, 3).reshape(-1, step).contiguous()


@cache
def source(dtype: torch.dtype) -> str:
    """The kernel's text with the instruction of the type written out."""
    shape, tail, constraint = _INSTRUCTIONS[dtype]
    registers = ", ".join(f"%{i}" for i in range(48))
    operands = ", ".join(f'"{constraint}"(d[{i}])' for i in range(48))
    text = (
        'asm volatile("{ .reg .pred p; setp.ne.b32 p, 1, 0; '
        f'wgmma.mma_async.sync.aligned.{shape} {{{registers}}}, %48, %49, {tail}; }}" '
        f': {operands} : "l"(a), "l"(b))'
    )
    return (Path(__file__).parent / "march.cu").read_text().replace("{ WGMMA; }", "{ " + text + "; }")


def defines(channels: Sequence[int], dtype: torch.dtype, epilogue: Epilogue, norm: bool = False) -> list[str]:
    """Constants of one layer."""
    s, placed = chunk_bytes(channels, dtype), layout(channels, dtype, norm)
    width = torch.empty(0, dtype=dtype).element_size()
    return [
        f"KIND={_KINDS[dtype]}", f"S={s}", f"CHUNKS={sum(channels) * width // s}",
        f"CHUNKS0={channels[0] * width // s}",
        f"STAGES={placed.stages}", f"STREAM={int(placed.stream)}", f"SCALED={int(epilogue.scale is not None)}",
        f"BIASED={int(epilogue.bias is not None)}",
        f"LEAKY={int(epilogue.slope != 1.0)}", f"STATS={int(epilogue.sums is not None)}",
        f"NORM={int(norm)}", f"RAWS={raws(channels, dtype, norm)}",
    ]  # fmt: skip


@cache
def _function(dtype: torch.dtype, constants: tuple[str, ...], shared: int) -> ctypes.c_void_p:
    return driver.load(driver.compile_source(source(dtype), "sm_90a", constants), "march", shared)


def segments(columns: int, depth: int, processors: int) -> int:
    """Parts into which D is cut, so that the fewest planes lie on the busiest multiprocessor."""

    def planes(parts: int) -> int:
        return -(-columns * parts // processors) * (-(-depth // parts) + 2)

    return min(range(1, depth + 1), key=planes)


def conv3d_march(
    x: Sequence[Tensor], weight: Tensor, out: Tensor, epilogue: Epilogue, norm: Norm | None = None,
    in_inverse: float = 1.0,
) -> None:  # fmt: skip
    """Launches march.cu; as `launch.conv3d`, with one weight tensor from `pack` and a float16 output."""
    dtype = weight.dtype
    channels = [t.shape[-1] for t in x]
    n, d, h, w, co = out.shape
    s, normed = chunk_bytes(channels, dtype), norm is not None
    shared = layout(channels, dtype, normed).bytes
    function = _function(dtype, tuple(defines(channels, dtype, epilogue, normed)), shared)
    step = s // weight.element_size()
    maps = [
        driver.tensor_map(t, (1, 1, EDGE, EDGE, step), s if t.dtype == dtype else 0) for t in (x[0], x[-1])
    ]
    rows, columns = -(-h // COLUMN), -(-w // COLUMN)
    processors = torch.cuda.get_device_properties(x[0].device).multi_processor_count
    blocks = n * rows * columns * (co // OUTPUTS)
    length = -(-d // segments(blocks, d, processors))
    parts = -(-d // length)
    sums = epilogue.sums
    source = _Source()
    if norm is not None:
        source = _Source(
            norm.sums.data_ptr(), norm.gamma.data_ptr(), norm.beta.data_ptr(), norm.sums.stride(1),
            norm.sums.stride(0), norm.sums.shape[0], norm.eps, norm.slope, in_inverse,
        )  # fmt: skip
    i, q, null = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p(0)
    driver.launch(function, blocks * parts, 512 if normed else 384, shared, [
        *maps, driver.tensor_map(weight, (96, step), s), out,
        null if epilogue.scale is None else epilogue.scale, null if epilogue.bias is None else epilogue.bias,
        null if sums is None else sums, ctypes.c_float(epilogue.slope), i(d), i(h), i(w), i(rows), i(columns),
        i(co // OUTPUTS), i(parts), i(length), *(q(v) for v in out.stride()[:4]),
        q(0 if sums is None else sums.stride(1)), q(0 if sums is None else sums.stride(0)),
        i(1 if sums is None else sums.shape[0]), source,
    ])  # fmt: skip
