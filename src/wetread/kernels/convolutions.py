"""Launchers of the convolutions (device/conv.py, device/small.py: few, hopper/march)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from wetread.kernels.arguments import (
    PLAIN,
    Epilogue,
    Norm,
    Tensor,
    Tile,
    accumulator,
    common_arguments,
    overlapped,
    require,
    require_channels_last,
    triton_type,
)  # fmt: skip
from wetread.kernels.weights import is_padded


def conv3d(
    x: Sequence[Tensor],
    weights: Sequence[Tensor],
    out: Tensor,
    tile: Tile,
    epilogue: Epilogue = PLAIN,
    *,
    kernel: tuple[int, int, int] = (3, 3, 3),
    stride: int = 1,
    dilation: int = 1,
    norm: Norm | None = None,
    in_inverse: float = 1.0,
) -> None:
    """Convolution of one input, or of two that lie one after the other in channels (a concat never made).

    Padding is "same" for odd kernels: dilation · (kernel − 1) / 2.

    Args:
        x: one or two [N, D, H, W, C], float16, int8 or float8_e4m3fn (equal types).
        weights: one for each input, packed for the tile's family (`weights.pack_rows`, `pack_pairs`); one for
            all inputs with march (`march.pack`).
        out: [N, DO, HO, WO, CO]; with splits [splits, N, DO, HO, WO, CO] float32, the parts to be added.
        tile: family and sizes; taps, planes and pairs take 3×3×3 with stride and dilation 1.
        epilogue: not with splits, but for `scale`.
        kernel: taps along D, H, W.
        stride: of the output, equal along all axes.
        dilation: of the kernel, equal along all axes.
        norm: of one raw float16 input, applied as it is loaded (march alone; the weights set the product's type).
        in_inverse: 1 / scale of the 8-bit input that `norm` makes.

    Raises:
        EngineError: shapes or types that the family does not take.
    """
    require_channels_last(*x)
    one = tile.family == "march"
    require(
        len(weights) == (1 if one else len(x)) and 1 <= len(x) <= 2,
        "a weight tensor for each of 1 or 2 inputs",
    )
    kinds = {t.dtype for t in x} | ({w.dtype for w in weights} if norm is None else {torch.float16})
    require(len(kinds) == 1, "inputs and weights of one type, or raw float16 inputs with a norm")
    require(norm is None or (one and len(x) == 1), "a norm on load with march and one input alone")
    require(all(t.shape[:4] == x[0].shape[:4] for t in x), "inputs of one spatial shape")
    parts = out.ndim == 6
    require(parts == (tile.splits > 1), "an output with parts exactly where the tile splits K")
    require(not parts or (epilogue.sums is None and epilogue.bias is None), "no sums or bias with split K")
    pad = dilation * (kernel[0] - 1) // 2
    sizes = tuple((s - 1) // stride + 1 for s in x[0].shape[1:4])
    final = out[0] if parts else out
    require_channels_last(final)
    require(tuple(final.shape[:4]) == (x[0].shape[0], *sizes), f"an output of {sizes}")
    if tile.family == "gather":
        _gather(x, weights, out, tile, epilogue, (kernel, stride, dilation, pad))
        return
    require(
        kernel == (3, 3, 3) and stride == 1 and dilation == 1, f"3×3×3 at stride 1 for family {tile.family}"
    )
    if tile.family == "march":
        from wetread.kernels.hopper import march

        require(not parts, "no split K in march")
        march.conv3d_march(x, weights[0], out, epilogue, norm, in_inverse, tile.bn)
    elif tile.family == "taps":
        _taps(x, weights, out, tile, epilogue)
    else:
        require(not parts, "no split K in planes and pairs")
        _planes(x, weights, out, tile, epilogue)


def _gather(
    x: Sequence[Tensor], weights: Sequence[Tensor], out: Tensor, tile: Tile, epilogue: Epilogue, geometry: Any
) -> None:
    from wetread.kernels.device.conv import gather

    kernel, stride, dilation, pad = geometry
    require(kernel[0] == kernel[1] == kernel[2], "cubic kernels")
    final = out[0] if out.ndim == 6 else out
    n, do, ho, wo, co = final.shape
    rows = tile.shape[0] * tile.shape[1] * tile.shape[2]
    pointers, constants, (sums_n, sums_r) = common_arguments(epilogue, out)
    last = x[-1]
    grid = (-(-co // tile.bn) * -(-(do * ho * wo) // rows), n, tile.splits)
    gather[grid](
        x[0], last, weights[0], weights[-1], out, *pointers,
        *x[0].shape[1:4], do, ho, wo, *x[0].stride()[:4], *last.stride()[:4], *final.stride()[:4],
        out.stride(0) if out.ndim == 6 else 0, sums_n, sums_r, co,
        C0=x[0].shape[-1], C1=last.shape[-1] if len(x) == 2 else 0, KD=kernel[0], KH=kernel[1], KW=kernel[2],
        S=stride, DIL=dilation, PAD=pad, BM=rows, BN=tile.bn, BK=tile.bk, ACC=accumulator(x[0].dtype),
        OUT=triton_type(out.dtype), SPLITS=tile.splits, **constants, **overlapped(), num_warps=tile.warps,
        num_stages=tile.stages,
    )  # fmt: skip


def _descriptor(tensor: Tensor, block: Sequence[int]) -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), list(block))


def _taps(
    x: Sequence[Tensor], weights: Sequence[Tensor], out: Tensor, tile: Tile, epilogue: Epilogue
) -> None:
    from wetread.kernels.device.conv import taps

    y = out.flatten(0, 1) if out.ndim == 6 else out
    n, d, h, w, _ = x[0].shape
    co = y.shape[-1]
    pointers, constants, (sums_n, sums_r) = common_arguments(epilogue, out)
    block = [1, *tile.shape, tile.bk]
    grid = (-(-co // tile.bn) * _tiles((d, h, w), tile.shape), n, tile.splits)
    taps[grid](
        *(_descriptor(t, block) for t in (x[0], x[-1])),
        *(_descriptor(t, [1, tile.bn, tile.bk]) for t in (weights[0], weights[-1])),
        _descriptor(y, [1, *tile.shape, tile.bn]), *pointers, d, h, w, sums_n, sums_r, co, n,
        C0=x[0].shape[-1], C1=x[-1].shape[-1] if len(x) == 2 else 0, TD=tile.shape[0], TH=tile.shape[1],
        TW=tile.shape[2], BN=tile.bn, BK=tile.bk, ACC=accumulator(x[0].dtype), OUT=triton_type(out.dtype),
        SPLITS=tile.splits, **constants, **overlapped(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _tiles(size: Sequence[int], tile: Sequence[int]) -> int:
    return -(-size[0] // tile[0]) * -(-size[1] // tile[1]) * -(-size[2] // tile[2])


def _planes(
    x: Sequence[Tensor], weights: Sequence[Tensor], out: Tensor, tile: Tile, epilogue: Epilogue
) -> None:
    from wetread.kernels.device.conv import planes

    pairs = tile.family == "pairs"
    n, d, h, w, _ = x[0].shape
    views, y = list(x), out
    if pairs:
        require(w % 2 == 0 and out.is_contiguous(), "an even W and a contiguous output for pairs")
        require(all(is_padded(t) for t in x), "inputs with a zero voxel at both ends of W (weights.padded)")
        w //= 2
        views = [_as_pairs(t) for t in x]
        y = out.view(n, d, h, w, 2 * out.shape[-1])
    co = y.shape[-1]
    pointers, constants, (sums_n, sums_r) = common_arguments(epilogue, out)
    block = [1, 1, *tile.shape[1:], tile.bk]
    grid = (-(-co // tile.bn) * _tiles((d, h, w), tile.shape), n)
    planes[grid](
        *(_descriptor(t, block) for t in (views[0], views[-1])),
        *(_descriptor(t, [1, tile.bn, tile.bk]) for t in (weights[0], weights[-1])),
        _descriptor(y, [1, 1, *tile.shape[1:], tile.bn]), *pointers, d, h, w, sums_n, sums_r, co,
        C0=views[0].shape[-1], C1=views[-1].shape[-1] if len(x) == 2 else 0, TD=tile.shape[0], TH=tile.shape[1],
        TW=tile.shape[2], BN=tile.bn, BK=tile.bk, ACC=accumulator(x[0].dtype), OUT=triton_type(out.dtype),
        PAIRS=pairs, **constants, **overlapped(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _as_pairs(x: Tensor) -> Tensor:
    """Overlapping rows [N, D, H, W/2, 4·C], from one voxel before x."""
    n, d, h, w, c = x.shape
    strides = (*x.stride()[:3], 2 * c, 1)
    return torch.as_strided(x, (n, d, h, w // 2, 4 * c), strides, x.storage_offset() - c)


def conv_few(
    x: Tensor, weight: Tensor, out: Tensor, epilogue: Epilogue = PLAIN, *, rows: int = 128, bn: int = 32,
    kernel: int = 3, stride: int = 1, border: bool = False, across: bool = False,
) -> None:  # fmt: skip
    """Convolution of few channels (the first layer).

    Args:
        x: [N, D, H, W, C].
        weight: from `weights.pack_few`; its type is that of the product.
        out: [N, DO, HO, WO, CO].
        epilogue: without scale.
        rows: voxels of a program.
        bn: output channels of a program.
        kernel: taps along each axis.
        stride: along each axis.
        border: x lies in a volume with (kernel − 1) / 2 zero voxels on every side: loads need no masks.
        across: with `border`, the product transposed (loads along W).
    """
    from wetread.kernels.device.small import few

    require_channels_last(x, out)
    n, do, ho, wo, co = out.shape
    require(
        (do, ho, wo) == tuple((s - 1) // stride + 1 for s in x.shape[1:4]) and weight.shape[1] == co,
        "matching shapes",
    )
    pointers, constants, (sums_n, sums_r) = common_arguments(epilogue, out)
    constants.pop("SCALED")
    few[(-(-co // bn) * -(-(do * ho * wo) // rows), n)](
        x, weight, out, *pointers, *x.shape[1:4], do, ho, wo, *x.stride()[:4], *out.stride()[:4], sums_n, sums_r, co,
        C=x.shape[-1], KD=kernel, KH=kernel, KW=kernel, S=stride, PAD=(kernel - 1) // 2, BM=rows, BN=bn,
        BK=weight.shape[0], OUT=triton_type(out.dtype), BORDER=border,
        ACROSS=border and across, **constants, **overlapped(), num_warps=4,
    )  # fmt: skip
