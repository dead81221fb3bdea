"""Launchers of the convolutions with tensor cores (device/conv.py, hopper/march)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from wetread.kernels.arguments import (
    PLAIN,
    Epilogue,
    Geometry,
    Norm,
    Tensor,
    Three,
    Tile,
    accumulator,
    common_arguments,
    overlapped,
    require,
    require_channels_last,
    same_geometry,
    triton_type,
)  # fmt: skip
from wetread.kernels.weights import is_padded


def conv3d(
    x: Sequence[Tensor], weights: Sequence[Tensor], out: Tensor, tile: Tile, epilogue: Epilogue = PLAIN, *,
    kernel: Three = (3, 3, 3), stride: int = 1, dilation: int = 1, geometry: Geometry | None = None,
    norm: Norm | None = None, in_inverse: float = 1.0,
) -> None:  # fmt: skip
    """Convolution of one input, or of two that lie one after the other in channels (a concat never made).

    Args:
        x: one or two [N, D, H, W, C], float16, bfloat16, int8, uint8 or float8_e4m3fn (equal types). Of uint8 all
            families but march take value − 128 (weights int8): the result lacks 128·Σw, which belongs into the bias
            (`weights.unsigned_bias`), or is taken away by an instance norm.
        weights: one for each input, packed for the tile's family (`weights.pack_rows`, `pack_pairs`); one for
            all inputs with march (`march.pack`).
        out: [N, DO, HO, WO, CO]; with splits [splits, N, DO, HO, WO, CO] float32, the parts to be added.
        tile: family and sizes; gather takes any geometry of one group, taps stride 1 along all axes, strided 2 along
            H and W of even sizes (one input whose rows are dense), planes 3×3×3 with stride 1 and pads as dilation;
            pairs and march 3×3×3 with stride, dilation and pads 1.
        epilogue: not with splits, but for `scale`.
        kernel, stride, dilation: of a kernel padded by dilation · (kernel − 1) / 2, where `geometry` is not given.
        geometry: any other.
        norm: of one raw float16 input, applied as it is loaded (march alone; the weights set the product's type).
        in_inverse: 1 / scale of the 8-bit input that `norm` makes.

    Raises:
        EngineError: shapes or types that the family does not take.
    """
    at = geometry or same_geometry(kernel, stride, dilation)
    march = tile.family == "march"
    require_channels_last(*x)
    require(
        len(weights) == (1 if march else len(x)) and 1 <= len(x) <= 2,
        "a weight tensor for each of 1 or 2 inputs",
    )
    given = {torch.int8 if t.dtype == torch.uint8 else t.dtype for t in x}
    unsigned = x[0].dtype == torch.uint8
    require(all((t.dtype == torch.uint8) == unsigned for t in x), "inputs of one type")
    kinds = given | ({w.dtype for w in weights} if norm is None else {torch.float16})
    require(len(kinds) == 1, "inputs and weights of one type, or raw float16 inputs with a norm")
    require(norm is None or (march and len(x) == 1), "a norm on load with march and one input alone")
    require(all(t.shape[:4] == x[0].shape[:4] for t in x), "inputs of one spatial shape")
    parts = out.ndim == 6
    require(parts == (tile.splits > 1), "an output with parts exactly where the tile splits K")
    rest = (epilogue.sums, epilogue.bias, epilogue.residual)
    require(not parts or all(t is None for t in rest), "no sums, bias or residual with split K")
    final, sizes = out[0] if parts else out, at.out_size(x[0].shape[1:4])
    require_channels_last(final)
    require(tuple(final.shape[:4]) == (x[0].shape[0], *sizes), f"an output of {sizes}")
    require(at.groups == 1, "one group")
    if not march:
        x = [t.view(torch.int8) if unsigned else t for t in x]
    if tile.family == "gather":
        _gather(x, weights, out, tile, epilogue, at, unsigned)
    elif tile.family == "taps":
        _taps(x, weights, out, tile, epilogue, at, unsigned)
    elif tile.family == "strided":
        _strided(x, weights, out, tile, epilogue, at, unsigned)
    else:
        plain = at.cube or (tile.family == "planes" and at.spread)
        require(plain and not parts, f"3×3×3 at stride 1 without split K for family {tile.family}")
        if march:
            from wetread.kernels.hopper import march as hopper

            require(epilogue.activation == "leaky", "no activation but the leaky ReLU in march")
            require(norm is None or norm.activation == "leaky", "no activation but the leaky ReLU in march")
            hopper.conv3d_march(x, weights[0], out, epilogue, norm, in_inverse, tile.bn)
        else:
            _planes(x, weights, out, tile, epilogue, at, unsigned)


def axis_constants(prefix: str, values: Three) -> dict[str, int]:
    """Constants for D, H, W: {"SD": .., "SH": .., "SW": ..} of prefix "S"."""
    return {prefix + axis: value for axis, value in zip("DHW", values, strict=True)}


def _gather(
    x: Sequence[Tensor], weights: Sequence[Tensor], out: Tensor, tile: Tile, epilogue: Epilogue, at: Geometry,
    unsigned: bool,
) -> None:  # fmt: skip
    from wetread.kernels.device.conv import gather

    final = out[0] if out.ndim == 6 else out
    n, do, ho, wo, co = final.shape
    rows = tile.shape[0] * tile.shape[1] * tile.shape[2]
    pointers, constants, (sums_n, sums_r) = common_arguments(epilogue, final)
    last = x[-1]
    grid = (-(-co // tile.bn) * -(-(do * ho * wo) // rows), n, tile.splits)
    gather[grid](
        x[0], last, weights[0], weights[-1], out, *pointers,
        *x[0].shape[1:4], do, ho, wo, *x[0].stride()[:4], *last.stride()[:4], *final.stride()[:4],
        out.stride(0) if out.ndim == 6 else 0, sums_n, sums_r, co,
        C0=x[0].shape[-1], C1=last.shape[-1] if len(x) == 2 else 0, **axis_constants("K", at.kernel),
        **axis_constants("S", at.stride), **axis_constants("L", at.dilation), **axis_constants("P", at.before),
        BM=rows, BN=tile.bn, BK=tile.bk, ACC=accumulator(x[0].dtype), OUT=triton_type(out.dtype), SPLITS=tile.splits,
        UNSIGNED=unsigned, **constants, **overlapped(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _descriptor(tensor: Tensor, block: Sequence[int]) -> Any:
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), list(block))


def _taps(
    x: Sequence[Tensor], weights: Sequence[Tensor], out: Tensor, tile: Tile, epilogue: Epilogue, at: Geometry,
    unsigned: bool,
) -> None:  # fmt: skip
    from wetread.kernels.device.conv import taps

    require(at.stride == (1, 1, 1), "stride 1 for family taps")
    y = out.flatten(0, 1) if out.ndim == 6 else out
    n, d, h, w, co = (out[0] if out.ndim == 6 else out).shape
    pointers, constants, (sums_n, sums_r) = common_arguments(epilogue, out[0] if out.ndim == 6 else out)
    block = [1, *tile.shape, tile.bk]
    grid = (-(-co // tile.bn) * _tiles((d, h, w), tile.shape), n, tile.splits)
    taps[grid](
        *(_descriptor(t, block) for t in (x[0], x[-1])),
        *(_descriptor(t, [1, tile.bn, tile.bk]) for t in (weights[0], weights[-1])),
        _descriptor(y, [1, *tile.shape, tile.bn]), *pointers, d, h, w, sums_n, sums_r, co, n,
        C0=x[0].shape[-1], C1=x[-1].shape[-1] if len(x) == 2 else 0, **axis_constants("T", tile.shape),
        **axis_constants("K", at.kernel), **axis_constants("L", at.dilation), **axis_constants("P", at.before),
        BN=tile.bn, BK=tile.bk, ACC=accumulator(x[0].dtype), OUT=triton_type(out.dtype), SPLITS=tile.splits,
        UNSIGNED=unsigned, **constants, **overlapped(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _strided(
    x: Sequence[Tensor], weights: Sequence[Tensor], out: Tensor, tile: Tile, epilogue: Epilogue, at: Geometry,
    unsigned: bool,
) -> None:  # fmt: skip
    from wetread.kernels.device.conv import strided

    y = out.flatten(0, 1) if out.ndim == 6 else out
    n, d, h, w, co = (out[0] if out.ndim == 6 else out).shape
    ni, di, hi, wi, c = x[0].shape
    sn, sd, sh, sw, _ = x[0].stride()
    require(
        len(x) == 1 and at.stride[1:] == (2, 2) and tile.shape[0] == 1, "one input, stride 2 along H and W"
    )
    require(
        hi % 2 == wi % 2 == 0 and sw == c and c % tile.bk == 0,
        "an even H and W, dense rows, whole blocks of C",
    )
    require(ni == 1 or sn == di * sd, "planes evenly spaced over the windows")
    pairs = torch.as_strided(
        x[0], (ni * di, hi // 2, 2, wi // 2, 2 * c), (sd, 2 * sh, sh, 2 * c, 1), x[0].storage_offset()
    )
    pointers, constants, (sums_n, sums_r) = common_arguments(epilogue, out[0] if out.ndim == 6 else out)
    grid = (-(-co // tile.bn) * _tiles((d, h, w), tile.shape), n, tile.splits)
    strided[grid](
        _descriptor(pairs, [1, tile.shape[1], 1, tile.shape[2], tile.bk]),
        _descriptor(weights[0], [1, tile.bn, tile.bk]), _descriptor(y, [1, *tile.shape, tile.bn]), *pointers,
        di, d, h, w, sums_n, sums_r, co, n, C=c, TH=tile.shape[1], TW=tile.shape[2], SD=at.stride[0],
        **axis_constants("K", at.kernel), **axis_constants("L", at.dilation), **axis_constants("P", at.before),
        BN=tile.bn, BK=tile.bk, ACC=accumulator(x[0].dtype), OUT=triton_type(out.dtype), SPLITS=tile.splits,
        UNSIGNED=unsigned, **constants, **overlapped(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _tiles(size: Sequence[int], tile: Sequence[int]) -> int:
    return -(-size[0] // tile[0]) * -(-size[1] // tile[1]) * -(-size[2] // tile[2])


def _planes(
    x: Sequence[Tensor],
    weights: Sequence[Tensor],
    out: Tensor,
    tile: Tile,
    epilogue: Epilogue,
    at: Geometry,
    unsigned: bool,
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
    step = at.dilation[0]  # a program's planes lie so far apart
    planes_of_one = -(-d // step)
    count = step * -(-planes_of_one // tile.shape[0])
    grid = (-(-co // tile.bn) * count * _tiles((1, h, w), (1, *tile.shape[1:])), n)
    planes[grid](
        *(_descriptor(t, block) for t in (views[0], views[-1])),
        *(_descriptor(t, [1, tile.bn, tile.bk]) for t in (weights[0], weights[-1])),
        _descriptor(y, [1, 1, *tile.shape[1:], tile.bn]), *pointers, d, h, w, sums_n, sums_r, co,
        C0=views[0].shape[-1], C1=views[-1].shape[-1] if len(x) == 2 else 0, TD=tile.shape[0], TH=tile.shape[1],
        TW=tile.shape[2], BN=tile.bn, BK=tile.bk, ACC=accumulator(x[0].dtype), OUT=triton_type(out.dtype),
        PAIRS=pairs, **axis_constants("L", at.dilation), UNSIGNED=unsigned, **constants, **overlapped(),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _as_pairs(x: Tensor) -> Tensor:
    """Overlapping rows [N, D, H, W/2, 4·C], from one voxel before x."""
    n, d, h, w, c = x.shape
    strides = (*x.stride()[:3], 2 * c, 1)
    return torch.as_strided(x, (n, d, h, w // 2, 4 * c), strides, x.storage_offset() - c)
