"""Host side of first.cu (3×3×3 of one channel): when it applies, its weights, its launch."""

from __future__ import annotations

import ctypes
from typing import TypeAlias

import torch

from wetread.kernels.arguments import Epilogue
from wetread.kernels.hopper import driver, parts
from wetread.kernels.hopper.march import outputs_of

Tensor: TypeAlias = torch.Tensor
TILE = (8, 8, 32)  # outputs of a block at a time


def applies(channels: int, co: int, dtype: torch.dtype) -> bool:
    """Whether the layer fits: 3×3×3, stride 1, pad 1, one input channel of float16 or float32, on Hopper.

    Args:
        channels: of the input: 1.
        co: a multiple of 32 or 48.
        dtype: of the input; no border of zeros is needed, and one does no harm. Weights are rounded to float16.
    """
    return channels == 1 and outputs_of(co) > 0 and dtype in (torch.float16, torch.float32)


def pack(weight: Tensor) -> Tensor:
    """[CO, 1, 3, 3, 3] as the operand registers of each lane: [blocks, 2 · outputs / 8, 5, 32 lanes, 2] float16."""
    co = weight.shape[0]
    n = outputs_of(co)
    # K: 9 rows (kd, kh) of four neighbouring inputs, for each of two outputs; four rows of zeros
    wide = torch.zeros(co // n, 2, n, 10, 4, dtype=torch.float16, device=weight.device)
    rows = weight.to(torch.float16).reshape(co // n, n, 9, 3)[:, parts.order(n)]
    for j in range(2):
        wide[:, j, :, :9, j : j + 3] = rows
    k = wide.reshape(co // n, 2 * n // 8, 8, 5, 4, 2)  # blocks, products, column, registers, quad, half
    return k.permute(0, 1, 3, 2, 4, 5).reshape(co // n, 2 * n // 8, 5, 32, 2).contiguous()


def defines(co: int, dtype: torch.dtype, epilogue: Epilogue, out: torch.dtype = torch.float16) -> list[str]:
    """Constants of one layer."""
    n = outputs_of(co)
    return [
        "KIND=0", "S=32", f"OUT={n}", f"XKIND={int(dtype == torch.float32)}", f"THREADS={256 if n == 32 else 192}",
        *parts.epilogue_defines(epilogue, out),
    ]  # fmt: skip


def conv3d_first(x: Tensor, weight: Tensor, out: Tensor, epilogue: Epilogue) -> None:
    """Launches first.cu: x [N, D, H, W, 1] of any strides, weights from `pack`."""
    n, d, h, w, co = out.shape
    function = parts.function(
        parts.text("first"), "first", tuple(defines(co, x.dtype, epilogue, out.dtype)), 0
    )
    count = outputs_of(co)
    tiles = [-(-size // edge) for size, edge in zip((d, h, w), TILE, strict=True)]
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    columns = n * (co // count)
    # two blocks fit a multiprocessor; tiles are spread evenly
    most = tiles[0] * tiles[1] * tiles[2]
    each = -(-most // max(1, 2 * processors // columns))
    i, q = ctypes.c_int, ctypes.c_int64
    driver.launch(function, (-(-most // each), columns), 256 if count == 32 else 192, 0, [
        x, weight, i(d), i(h), i(w), *(q(v) for v in x.stride()[:4]), *(i(t) for t in tiles), i(co // count),
        parts.output(out, epilogue),
    ])  # fmt: skip
