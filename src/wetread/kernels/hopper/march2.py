"""Host side of march2.cu (3×3×3 at stride 2): when it applies, its weights, its launch."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TypeAlias

import torch

from wetread.errors import EngineError
from wetread.kernels.arguments import Epilogue
from wetread.kernels.hopper import driver, parts

Tensor: TypeAlias = torch.Tensor
ROWS, COLUMNS = 8, 16  # outputs of a block along H and W
EVENS, ODDS = (1, 1, 17, 16), (1, 1, 17, 17)


def chunk_bytes(channels: int, dtype: torch.dtype) -> int:
    """Bytes of one voxel in a chunk of channels: 64 or 32 (0: neither divides them)."""
    return next((s for s in (64, 32) if channels * dtype.itemsize % s == 0), 0)


def layout(channels: int, dtype: torch.dtype, outputs: int) -> tuple[int, int]:
    """Planes in flight (below 2 the kernel does not fit) and bytes of shared memory."""
    s = chunk_bytes(channels, dtype)
    if s == 0:
        return 0, 0
    stage = (-(-17 * 16 * s // 1024) + -(-17 * 17 * s // 1024)) * 1024
    fixed = 2 * 1024 + 27 * outputs * channels * dtype.itemsize
    count = min(6, (parts.SHARED_BYTES - fixed) // stage)
    return count, fixed + count * stage


def applies(channels: int, co: int, dtype: torch.dtype, outputs: int) -> bool:
    """Whether the layer fits: 3×3×3, stride 2, pad 1, dilation 1, groups 1, one input of W ≥ 2, on Hopper.

    Args:
        channels: of the input; the bytes of a voxel are a multiple of 32, and the weights of a block stay in
            shared memory: 32 → 64 in float16, up to 64 → any multiple of 64 in 8 bits.
        co: a multiple of `outputs`.
        dtype: of the weights: float16, int8 (input int8 or uint8) or float8_e4m3fn.
        outputs: 32 or 64 channels a block.
    """
    if outputs not in (32, 64) or co % outputs or dtype not in parts.KINDS:
        return False
    return layout(channels, dtype, outputs)[0] >= 2


def pack(weight: Tensor, outputs: int) -> Tensor:
    """[CO, C, 3, 3, 3] as rows [blocks, chunks, 9 (kh, kw), 3 (kd 2, 0, 1), outputs as in `parts.order`] × chunk."""
    co, c = weight.shape[:2]
    step = chunk_bytes(c, weight.dtype) // weight.element_size()
    w = weight.reshape(co // outputs, outputs, c // step, step, 3, 3, 3)
    w = w[:, parts.order(outputs)][:, :, :, :, [2, 0, 1]]
    # axes: block, output, chunk, channel, kd, kh, kw
    return w.permute(0, 2, 5, 6, 4, 1, 3).reshape(-1, step).contiguous()


@cache
def source(dtype: torch.dtype, outputs: int, unsigned: bool = False) -> str:
    """The kernel's text with the instructions of the type written out."""
    text = parts.text("march2")
    for name, columns in (("ONE", outputs), ("TWO", 2 * outputs)):
        text = text.replace(f"{{ PRODUCT_{name}; }}", f"{{ {parts.product(columns, dtype, unsigned)}; }}")
    return text


def defines(
    channels: int, dtype: torch.dtype, epilogue: Epilogue, outputs: int, out: torch.dtype = torch.float16
) -> list[str]:
    """Constants of one layer."""
    s = chunk_bytes(channels, dtype)
    return [
        f"KIND={parts.KINDS[dtype]}", f"S={s}", f"CHUNKS={channels * dtype.itemsize // s}",
        f"STAGES={layout(channels, dtype, outputs)[0]}", f"OUT={outputs}", *parts.epilogue_defines(epilogue, out),
    ]  # fmt: skip


def segments(columns: int, depth: int, processors: int) -> int:
    """Parts into which the output's D is cut, so that the fewest planes lie on the busiest multiprocessor."""

    def planes(count: int) -> int:
        return -(-columns * count // processors) * (2 * -(-depth // count) + 1)

    return min(range(1, depth + 1), key=planes)


def conv3d_march2(x: Tensor, weight: Tensor, out: Tensor, epilogue: Epilogue, outputs: int) -> None:
    """Launches march2.cu on one input [N, D, H, W, C] with weights from `pack`.

    Raises:
        EngineError: W is 1.
    """
    if x.shape[3] < 2:
        raise EngineError("family march2 was launched on an input of one voxel along W", todo="use gather")
    dtype, channels = weight.dtype, x.shape[-1]
    n, d, h, w, co = out.shape
    _, shared = layout(channels, dtype, outputs)
    function = parts.function(
        source(dtype, outputs, x.dtype == torch.uint8), "march2",
        tuple(defines(channels, dtype, epilogue, outputs, out.dtype)), shared,
    )  # fmt: skip
    s = chunk_bytes(channels, dtype)
    step = s // weight.element_size()
    rows, columns = -(-h // ROWS), -(-w // COLUMNS)
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    blocks = n * rows * columns * (co // outputs)
    length = -(-d // segments(blocks, d, processors))
    cut = -(-d // length)
    i = ctypes.c_int
    driver.launch(function, blocks * cut, 384, shared, [
        driver.tensor_map(x[:, :, :, 0::2], (*EVENS, step), s), driver.tensor_map(x[:, :, :, 1::2], (*ODDS, step), s),
        driver.tensor_map(weight, (3 * outputs, step), s), i(d), i(h), i(w), i(rows), i(columns), i(co // outputs),
        i(cut), i(length), parts.output(out, epilogue),
    ])  # fmt: skip
