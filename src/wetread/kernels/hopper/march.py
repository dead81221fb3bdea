"""Host side of march.cu: when it applies, its weights, its launch."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import torch

from wetread.kernels.arguments import Epilogue, Norm
from wetread.kernels.hopper import driver, parts

Tensor: TypeAlias = torch.Tensor
COLUMN, EDGE = 16, 18


def outputs_of(co: int) -> int:
    """Output channels of a block: 32, or 48 where only that divides them (0: neither)."""
    return next((n for n in (32, 48) if co % n == 0), 0)


def chunk_bytes(channels: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of one voxel in a chunk of channels: the widest of 64 and 32 that divides every input (0: none)."""
    return next((s for s in (64, 32) if all(c * dtype.itemsize % s == 0 for c in channels)), 0)


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


def layout(channels: Sequence[int], dtype: torch.dtype, norm: bool = False, outputs: int = 32) -> Layout:
    """Resident weights where two planes fit beside them, else streamed ones."""
    s = chunk_bytes(channels, dtype)
    if s == 0 or (norm and (len(channels) > 1 or sum(channels) > 64)):
        return Layout(0, False, 0)
    width = dtype.itemsize
    # alignment twice, barriers and the norm's table
    fixed = 3 * 1024 + raws(channels, dtype, norm) * _stage_bytes(s * 2 // width)
    resident = 27 * outputs * sum(channels) * width
    count = min(6, (parts.SHARED_BYTES - fixed - resident) // _stage_bytes(s))
    if count >= 2:
        return Layout(count, False, fixed + resident + count * _stage_bytes(s))
    held = _stage_bytes(s) + 27 * outputs * s
    count = 0 if norm else min(6, (parts.SHARED_BYTES - fixed) // held)
    return Layout(count, True, fixed + count * held)


def applies(
    channels: Sequence[int], co: int, dtype: torch.dtype, norm: bool = False, outputs: int | None = None
) -> bool:
    """Whether the layer fits: 3×3×3, stride 1, pad 1, dilation 1, groups 1, on Hopper.

    Args:
        channels: of one or two inputs; of each, the bytes of a voxel are a multiple of 32 (16 channels of float16,
            32 in 8 bits).
        co: a multiple of 32 or 48.
        dtype: of the weights: float16, int8 (inputs int8 or uint8) or float8_e4m3fn.
        norm: on load, instance or group norm with a leaky ReLU: one raw float16 input of at most 64 channels.
        outputs: 32 or 48 channels a block; None as `outputs_of`.
    """
    n = outputs or outputs_of(co)
    if n not in (32, 48) or co % n or dtype not in parts.KINDS or not 1 <= len(channels) <= 2:
        return False
    return layout(channels, dtype, norm, n).stages >= 2


def pack(weight: Tensor, channels: Sequence[int], outputs: int | None = None) -> Tensor:
    """[CO, C, 3, 3, 3] as rows [blocks, chunks, 9 (kh, kw), 3 (kd 2 to 0), outputs as in `parts.order`] × chunk."""
    co, c = weight.shape[:2]
    n = outputs or outputs_of(co)
    step = chunk_bytes(channels, weight.dtype) // weight.element_size()
    w = weight.reshape(co // n, n, c // step, step, 3, 3, 3)[:, parts.order(n)].flip(4)
    # axes: block, output, chunk, channel, kd, kh, kw
    return w.permute(0, 2, 5, 6, 4, 1, 3).reshape(-1, step).contiguous()


@cache
def source(dtype: torch.dtype, outputs: int = 32, unsigned: bool = False) -> str:
    """The kernel's text with the instruction of the type written out."""
    return parts.text("march").replace(
        "{ MARCH_PRODUCT; }", "{ " + parts.product(3 * outputs, dtype, unsigned) + "; }"
    )


def defines(
    channels: Sequence[int], dtype: torch.dtype, epilogue: Epilogue, norm: bool = False, outputs: int = 32,
    out: torch.dtype = torch.float16,
) -> list[str]:  # fmt: skip
    """Constants of one layer."""
    s, placed = chunk_bytes(channels, dtype), layout(channels, dtype, norm, outputs)
    return [
        f"KIND={parts.KINDS[dtype]}", f"S={s}", f"CHUNKS={sum(channels) * dtype.itemsize // s}",
        f"CHUNKS0={channels[0] * dtype.itemsize // s}", f"STAGES={placed.stages}", f"STREAM={int(placed.stream)}",
        f"OUT={outputs}", f"NORM={int(norm)}", f"RAWS={raws(channels, dtype, norm)}",
        *parts.epilogue_defines(epilogue, out),
    ]  # fmt: skip


def segments(columns: int, depth: int, processors: int) -> int:
    """Parts into which D is cut, so that the fewest planes lie on the busiest multiprocessor."""

    def planes(count: int) -> int:
        return -(-columns * count // processors) * (-(-depth // count) + 2)

    return min(range(1, depth + 1), key=planes)


def conv3d_march(
    x: Sequence[Tensor], weight: Tensor, out: Tensor, epilogue: Epilogue, norm: Norm | None = None,
    in_inverse: float = 1.0, outputs: int | None = None,
) -> None:  # fmt: skip
    """Launches march.cu; as `launch.conv3d`, with one weight tensor from `pack`.

    Inputs and output may be channel slices and have any strides of N, D, H, W that are multiples of 16 bytes.
    """
    dtype = weight.dtype
    channels = [t.shape[-1] for t in x]
    n, d, h, w, co = out.shape
    count, normed = outputs or outputs_of(co), norm is not None
    s, shared = chunk_bytes(channels, dtype), layout(channels, dtype, normed, count).bytes
    function = parts.function(
        source(dtype, count, x[0].dtype == torch.uint8), "march",
        tuple(defines(channels, dtype, epilogue, normed, count, out.dtype)), shared,
    )  # fmt: skip
    step = s // weight.element_size()
    swizzle = 0 if normed and dtype != torch.float16 else s
    maps = [driver.tensor_map(t, (1, 1, EDGE, EDGE, step), swizzle) for t in (x[0], x[-1])]
    rows, columns = -(-h // COLUMN), -(-w // COLUMN)
    processors = torch.cuda.get_device_properties(x[0].device).multi_processor_count
    blocks = n * rows * columns * (co // count)
    length = -(-d // segments(blocks, d, processors))
    cut = -(-d // length)
    i = ctypes.c_int
    driver.launch(function, blocks * cut, 512 if normed else 384, shared, [
        *maps, driver.tensor_map(weight, (3 * count, step), s), i(d), i(h), i(w), i(rows), i(columns), i(co // count),
        i(cut), i(length), parts.output(out, epilogue), parts.source(norm, channels[0], in_inverse),
    ])  # fmt: skip
