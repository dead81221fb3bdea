"""Launchers of resizing (device/resize.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wetread.kernels.arguments import Tensor, overlapped, require, sums_arguments, triton_type


@dataclass(frozen=True)
class Finish:
    """What is done to the resized values before they are stored.

    Attributes:
        residual: (N, C, DO, HO, WO), added first.
        sums: float64 [replicas, N, C, 2] to which the norm's sums are added; zeroed by the caller.
        activation: its name, see `arguments.ACTIVATIONS`.
        slope: its parameter; leaky with 1 is none.
        inverse: 1 / scale of an 8-bit output.
    """

    residual: Tensor | None = None
    sums: Tensor | None = None
    activation: str = "leaky"
    slope: float = 1.0
    inverse: float = 1.0


Tables = Sequence[tuple[Tensor, Tensor]]
"""Input voxels int32 and weights float32 of each axis, each [taps, out]."""


def applies(shapes: Sequence[Sequence[int]], strides: Sequence[Sequence[int]]) -> bool:
    """Whether the kernels take these maps (N, C, D, H, W): channels lie together."""
    return all(
        len(shape) == 5 and (each[1] == 1 or shape[1] == 1)
        for shape, each in zip(shapes, strides, strict=True)
    )


def _launch(
    x: Tensor, out: Tensor, finish: Finish
) -> tuple[list[int], tuple[Any, ...], tuple[int, int], dict[str, Any]]:
    """Strides of x, y and the residual; pointers of residual and sums; strides of the sums; constants."""
    residual = out if finish.residual is None else finish.residual
    maps = (x, out, residual)
    require(applies([t.shape for t in maps], [t.stride() for t in maps]), "maps with channels last in memory")
    require(residual.shape == out.shape, f"a residual of the output's shape {tuple(out.shape)}")
    sums, sums_n, sums_r, replicas, stats = sums_arguments(finish.sums, out)
    constants = {
        "OUT": triton_type(out.dtype), "RESIDUAL": finish.residual is not None, "ACT": finish.activation,
        "SLOPE": float(finish.slope), "STATS": stats, "REPLICAS": replicas,
    }  # fmt: skip
    strides = [t.stride(i) for t in maps for i in (0, 2, 3, 4)]
    return strides, (residual, sums), (sums_n, sums_r), constants


def _block(channels: int, most: int) -> int:
    return min(most, 1 << max(channels - 1, 0).bit_length())


def by_table(
    x: Tensor, out: Tensor, tables: Tables, finish: Finish, *, rows: int = 32, warps: int = 4
) -> None:
    """Resizing by any factors.

    Args:
        x: (N, C, D, H, W), channels together in memory.
        out: (N, C, DO, HO, WO), likewise.
        tables: of D, H, W.
        finish: what follows.
        rows: output voxels of a program, a power of two.
        warps: of a program.
    """
    from wetread.kernels.device.resize import by_table as kernel

    strides, (residual, sums), sums_strides, constants = _launch(x, out, finish)
    n, c, *size = out.shape
    require([index.shape[1] for index, _ in tables] == size, f"tables of the output's sizes {size}")
    bc = _block(c, 64)
    kernel[(-(-math.prod(size) // rows), n, -(-c // bc))](
        x, out, residual, sums, *(i for i, _ in tables), *(f for _, f in tables), float(finish.inverse), *size,
        *strides, *sums_strides, c, *(i.shape[0] for i, _ in tables), BV=rows, BC=bc, **constants, **overlapped(),
        num_warps=warps,
    )  # fmt: skip


def double(x: Tensor, out: Tensor, finish: Finish, *, linear: bool, rows: int = 32, warps: int = 4) -> None:
    """Doubling each axis: linear with half-pixel centres, or each voxel repeated; `by_table` has the arguments."""
    from wetread.kernels.device.resize import double as kernel

    strides, (residual, sums), sums_strides, constants = _launch(x, out, finish)
    n, c, *size = x.shape
    require(list(out.shape[2:]) == [2 * s for s in size], f"an output of twice {tuple(size)}")
    bc = _block(c, 32)
    kernel[(-(-math.prod(size) // rows), n, -(-c // bc))](
        x, out, residual, sums, float(finish.inverse), *size, *strides, *sums_strides, c, LINEAR=linear, BV=rows, BC=bc,
        **constants, **overlapped(), num_warps=warps,
    )  # fmt: skip
