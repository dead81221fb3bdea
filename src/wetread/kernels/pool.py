"""Launchers of pooling (device/pool.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wetread.kernels.arguments import Tensor, overlapped, require, triton_type

Three = tuple[int, int, int]
MOST_PARTS = 256


@dataclass(frozen=True)
class Window:
    """Kernel, strides and dilations along D, H, W, and zeros around: begins, then ends."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[int, ...]


def applies(shape: Sequence[int], *strides: Sequence[int]) -> bool:
    """Whether the kernels take maps (N, C, D, H, W) of these strides: channels lie together."""
    return len(shape) == 5 and all(each[1] == 1 or shape[1] == 1 for each in strides)


def parts(voxels: int, rows: int) -> int:
    """Into how many programs a volume is cut for global pooling."""
    return min(MOST_PARTS, -(-voxels // (4 * rows)))


def _block(channels: int) -> int:
    return min(64, 1 << max(channels - 1, 0).bit_length())


def pool(
    x: Tensor, out: Tensor, window: Window, *, largest: bool, count_pads: bool = False, inverse: float = 1.0,
    box: Three = (1, 1, 32), warps: int = 4,
) -> None:  # fmt: skip
    """Pooling over windows.

    Args:
        x: (N, C, D, H, W), channels together in memory.
        out: (N, C, DO, HO, WO), likewise; its size says how many windows there are.
        window: how they lie.
        largest: maxima, else means.
        count_pads: the window's zeros count in means.
        inverse: an 8-bit out holds the result times it.
        box: windows of a program along D, H, W, powers of two.
        warps: of a program.
    """
    from wetread.kernels.device.pool import pool as kernel

    require(applies(x.shape, x.stride(), out.stride()), "maps (N, C, D, H, W) with channels last in memory")
    require(x.shape[:2] == out.shape[:2], "an output of the same batch and channels")
    n, c, *size = out.shape
    bc = _block(c)
    steps = [t.stride(i) for t in (x, out) for i in (0, 2, 3, 4)]
    tiles = math.prod(-(-s // b) for s, b in zip(size, box, strict=True))
    kernel[(tiles, n, -(-c // bc))](
        x, out, inverse, *x.shape[2:], *size, *steps, c, *window.kernel, *window.stride, *window.dilation, *window.pads,
        MAX=largest, COUNT=count_pads, TD=box[0], TH=box[1], TW=box[2], BC=bc, OUT=triton_type(out.dtype),
        **overlapped(), num_warps=warps,
    )  # fmt: skip


def global_pool(
    x: Tensor, out: Tensor, scratch: Tensor | None, *, largest: bool, inverse: float = 1.0, rows: int = 128,
    warps: int = 4,
) -> None:  # fmt: skip
    """Mean or largest of each channel of each volume.

    Args:
        x: (N, C, D, H, W), channels together in memory.
        out: (N, C, 1, 1, 1), channels together.
        scratch: uint8 of at least 4 · N · C · `parts` bytes.
        largest: maxima, else means.
        inverse: an 8-bit out holds the result times it.
        rows: voxels of a program's step, a power of two.
        warps: of a program.
    """
    import torch

    from wetread.kernels.device.pool import pool_parts, pool_whole

    require(applies(x.shape, x.stride(), out.stride()), "maps (N, C, D, H, W) with channels last in memory")
    n, c, d, h, w = x.shape
    count = parts(d * h * w, rows)
    require(
        scratch is not None and scratch.numel() >= 4 * n * c * count, "scratch for the parts of the volumes"
    )
    assert scratch is not None
    held = scratch[: 4 * n * c * count].view(torch.float32)
    bc = _block(c)
    steps = -(-(d * h * w) // (count * rows))
    pool_parts[(count, n, -(-c // bc))](
        x, held, d * h * w, h, w, x.stride(0), *x.stride()[2:], c, count, steps, MAX=largest, BV=rows, BC=bc,
        **overlapped(), num_warps=warps,
    )  # fmt: skip
    bc = min(bc, 16)
    pool_whole[(-(-c // bc), n)](
        held, out, inverse, 1.0 / (d * h * w), out.stride(0), c, PARTS=count, MAX=largest,
        BP=1 << max(count - 1, 0).bit_length(), BC=bc, OUT=triton_type(out.dtype), **overlapped(), num_warps=4,
    )  # fmt: skip
