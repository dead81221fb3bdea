"""One function for each kernel: checks shapes, makes descriptors, launches. Nothing is allocated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from wetread.errors import EngineError
from wetread.kernels.weights import is_padded

Tensor: TypeAlias = torch.Tensor
Family = Literal["gather", "taps", "planes", "pairs", "march"]


@dataclass(frozen=True)
class Tile:
    """How a convolution is cut into programs.

    Attributes:
        family: which kernel (see device/conv.py; march is hopper/march.cu, which cuts by itself).
        shape: output voxels of a program along D, H, W; for pairs W counts pairs; for gather the product
            is the number of rows.
        bn: output channels of a program (for pairs: of 2·CO).
        bk: input channels of one step (for pairs: of 4·C).
        warps: warps of a program.
        stages: depth of the software pipeline.
        splits: programs that share one output's K, each writing a part.
    """

    family: Family
    shape: tuple[int, int, int]
    bn: int
    bk: int
    warps: int = 4
    stages: int = 3
    splits: int = 1


@dataclass(frozen=True)
class Norm:
    """An instance norm whose sums are ready: what its consumer needs to apply it.

    Attributes:
        sums: float64 [replicas, N, C, 2], sum and sum of squares.
        gamma: [C] float32.
        beta: [C] float32.
        eps: added to the variance.
        slope: of the leaky ReLU after it (1 none, 0 ReLU).
    """

    sums: Tensor
    gamma: Tensor
    beta: Tensor
    eps: float = 1e-5
    slope: float = 1.0


@dataclass(frozen=True)
class Epilogue:
    """What a convolution does to its result before it is stored.

    Attributes:
        scale: [CO] float32 multiplied in first (8-bit weights and inputs).
        bias: [CO] float32.
        slope: of a leaky ReLU (1 none).
        sums: float64 [replicas, N, CO, 2] to which the norm's sums are added; zeroed by the caller.
        inverse: 1 / scale of an 8-bit output.
    """

    scale: Tensor | None = None
    bias: Tensor | None = None
    slope: float = 1.0
    sums: Tensor | None = None
    inverse: float = 1.0


PLAIN = Epilogue()
OVERLAP = True  # programmatic dependent launches; read at every launch


def _types() -> dict[torch.dtype, Any]:
    import triton.language as tl

    return {
        torch.float16: tl.float16,
        torch.bfloat16: tl.bfloat16,
        torch.float32: tl.float32,
        torch.int8: tl.int8,
        torch.float8_e4m3fn: tl.float8e4nv,
    }


def _overlap() -> dict[str, bool]:
    """Whether a launch may begin while the one before ends (Hopper and later); each waits before it reads."""
    on = OVERLAP and torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 9
    return {"PDL": True, "launch_pdl": True} if on else {"PDL": False}


def _accumulator(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return tl.int32 if dtype == torch.int8 else tl.float32


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise EngineError(f"a kernel was launched with tensors it does not take: {what}")


def _channels_last(*tensors: Tensor) -> None:
    for t in tensors:
        _require(
            t.ndim == 5 and t.stride(-1) == 1, f"[N, D, H, W, C] with C contiguous, found {tuple(t.shape)}"
        )


def _sums(sums: Tensor | None, like: Tensor) -> tuple[Tensor, int, int, int, bool]:
    """Pointer (any, where there is none), strides of N and of replicas, replicas, whether there are sums."""
    if sums is None:
        return like, 0, 0, 1, False
    _require(
        sums.dtype == torch.float64 and sums.is_contiguous() and sums.ndim == 4,
        "sums are float64 [R, N, C, 2]",
    )
    return sums, sums.stride(1), sums.stride(0), sums.shape[0], True


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
    _channels_last(*x)
    one = tile.family == "march"
    _require(
        len(weights) == (1 if one else len(x)) and 1 <= len(x) <= 2,
        "a weight tensor for each of 1 or 2 inputs",
    )
    kinds = {t.dtype for t in x} | ({w.dtype for w in weights} if norm is None else {torch.float16})
    _require(len(kinds) == 1, "inputs and weights of one type, or raw float16 inputs with a norm")
    _require(norm is None or (one and len(x) == 1), "a norm on load with march and one input alone")
    _require(all(t.shape[:4] == x[0].shape[:4] for t in x), "inputs of one spatial shape")
    parts = out.ndim == 6
    _require(parts == (tile.splits > 1), "an output with parts exactly where the tile splits K")
    _require(not parts or (epilogue.sums is None and epilogue.bias is None), "no sums or bias with split K")
    pad = dilation * (kernel[0] - 1) // 2
    sizes = tuple((s - 1) // stride + 1 for s in x[0].shape[1:4])
    final = out[0] if parts else out
    _channels_last(final)
    _require(tuple(final.shape[:4]) == (x[0].shape[0], *sizes), f"an output of {sizes}")
    if tile.family == "gather":
        _gather(x, weights, out, tile, epilogue, (kernel, stride, dilation, pad))
        return
    _require(
        kernel == (3, 3, 3) and stride == 1 and dilation == 1, f"3×3×3 at stride 1 for family {tile.family}"
    )
    if tile.family == "march":
        from wetread.kernels.hopper import march

        _require(not parts and out.dtype == torch.float16, "a float16 output without parts for march")
        march.conv3d_march(x, weights[0], out, epilogue, norm, in_inverse)
    elif tile.family == "taps":
        _taps(x, weights, out, tile, epilogue)
    else:
        _require(not parts, "no split K in planes and pairs")
        _planes(x, weights, out, tile, epilogue)


def _common(epilogue: Epilogue, like: Tensor) -> tuple[tuple[Any, ...], dict[str, Any], tuple[int, int]]:
    """Arguments that all families share: pointers, constants, strides of the sums."""
    sums, sums_n, sums_r, replicas, stats = _sums(epilogue.sums, like)
    pointers = (
        like if epilogue.scale is None else epilogue.scale,
        like if epilogue.bias is None else epilogue.bias,
        sums,
        float(epilogue.inverse),
    )
    constants = {
        "SCALED": epilogue.scale is not None,
        "BIASED": epilogue.bias is not None,
        "SLOPE": float(epilogue.slope),
        "STATS": stats,
        "REPLICAS": replicas,
    }
    return pointers, constants, (sums_n, sums_r)


def _gather(
    x: Sequence[Tensor], weights: Sequence[Tensor], out: Tensor, tile: Tile, epilogue: Epilogue, geometry: Any
) -> None:
    from wetread.kernels.device.conv import gather

    kernel, stride, dilation, pad = geometry
    _require(kernel[0] == kernel[1] == kernel[2], "cubic kernels")
    final = out[0] if out.ndim == 6 else out
    n, do, ho, wo, co = final.shape
    rows = tile.shape[0] * tile.shape[1] * tile.shape[2]
    pointers, constants, (sums_n, sums_r) = _common(epilogue, out)
    last = x[-1]
    grid = (-(-co // tile.bn) * -(-(do * ho * wo) // rows), n, tile.splits)
    gather[grid](
        x[0], last, weights[0], weights[-1], out, *pointers,
        *x[0].shape[1:4], do, ho, wo, *x[0].stride()[:4], *last.stride()[:4], *final.stride()[:4],
        out.stride(0) if out.ndim == 6 else 0, sums_n, sums_r, co,
        C0=x[0].shape[-1], C1=last.shape[-1] if len(x) == 2 else 0, KD=kernel[0], KH=kernel[1], KW=kernel[2],
        S=stride, DIL=dilation, PAD=pad, BM=rows, BN=tile.bn, BK=tile.bk, ACC=_accumulator(x[0].dtype),
        OUT=_types()[out.dtype], SPLITS=tile.splits, **constants, **_overlap(), num_warps=tile.warps,
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
    pointers, constants, (sums_n, sums_r) = _common(epilogue, out)
    block = [1, *tile.shape, tile.bk]
    grid = (-(-co // tile.bn) * _tiles((d, h, w), tile.shape), n, tile.splits)
    taps[grid](
        *(_descriptor(t, block) for t in (x[0], x[-1])),
        *(_descriptor(t, [1, tile.bn, tile.bk]) for t in (weights[0], weights[-1])),
        _descriptor(y, [1, *tile.shape, tile.bn]), *pointers, d, h, w, sums_n, sums_r, co, n,
        C0=x[0].shape[-1], C1=x[-1].shape[-1] if len(x) == 2 else 0, TD=tile.shape[0], TH=tile.shape[1],
        TW=tile.shape[2], BN=tile.bn, BK=tile.bk, ACC=_accumulator(x[0].dtype), OUT=_types()[out.dtype],
        SPLITS=tile.splits, **constants, **_overlap(), num_warps=tile.warps, num_stages=tile.stages,
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
        _require(w % 2 == 0 and out.is_contiguous(), "an even W and a contiguous output for pairs")
        _require(all(is_padded(t) for t in x), "inputs with a zero voxel at both ends of W (weights.padded)")
        w //= 2
        views = [_as_pairs(t) for t in x]
        y = out.view(n, d, h, w, 2 * out.shape[-1])
    co = y.shape[-1]
    pointers, constants, (sums_n, sums_r) = _common(epilogue, out)
    block = [1, 1, *tile.shape[1:], tile.bk]
    grid = (-(-co // tile.bn) * _tiles((d, h, w), tile.shape), n)
    planes[grid](
        *(_descriptor(t, block) for t in (views[0], views[-1])),
        *(_descriptor(t, [1, tile.bn, tile.bk]) for t in (weights[0], weights[-1])),
        _descriptor(y, [1, 1, *tile.shape[1:], tile.bn]), *pointers, d, h, w, sums_n, sums_r, co,
        C0=views[0].shape[-1], C1=views[-1].shape[-1] if len(x) == 2 else 0, TD=tile.shape[0], TH=tile.shape[1],
        TW=tile.shape[2], BN=tile.bn, BK=tile.bk, ACC=_accumulator(x[0].dtype), OUT=_types()[out.dtype],
        PAIRS=pairs, **constants, **_overlap(), num_warps=tile.warps, num_stages=tile.stages,
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

    _channels_last(x, out)
    n, do, ho, wo, co = out.shape
    _require(
        (do, ho, wo) == tuple((s - 1) // stride + 1 for s in x.shape[1:4]) and weight.shape[1] == co,
        "matching shapes",
    )
    pointers, constants, (sums_n, sums_r) = _common(epilogue, out)
    constants.pop("SCALED")
    few[(-(-co // bn) * -(-(do * ho * wo) // rows), n)](
        x, weight, out, *pointers, *x.shape[1:4], do, ho, wo, *x.stride()[:4], *out.stride()[:4], sums_n, sums_r, co,
        C=x.shape[-1], KD=kernel, KH=kernel, KW=kernel, S=stride, PAD=(kernel - 1) // 2, BM=rows, BN=bn,
        BK=weight.shape[0], OUT=_types()[out.dtype], BORDER=border,
        ACROSS=border and across, **constants, **_overlap(), num_warps=4,
    )  # fmt: skip


def norm_apply(
    x: Tensor, norm: Norm, out: Tensor, *, inverse: float = 1.0, rows: int = 0, loop: int = 1, warps: int = 4
) -> None:
    """Normalise, activate, quantise (out = value · inverse in 8 bits).

    An output with a voxel before and after each row (`weights.padded`) has these written with zeros.
    """
    import triton

    from wetread.kernels.device.small import norm_apply as kernel

    _channels_last(x, out)
    n, d, h, w, c = x.shape
    _require(x.shape == out.shape and x.stride(1) == h * x.stride(2), "rows of W evenly spaced")
    sums, sums_n, sums_r, replicas, stats = _sums(norm.sums, x)
    _require(stats, "norm sums")
    halo = 1 if is_padded(out) else 0
    bc = min(64, triton.next_power_of_2(c))
    bv = rows or 4096 // bc
    kernel[(-(-(d * h * (w + 2 * halo)) // (bv * loop)), n, -(-c // bc))](
        x, out, sums, norm.gamma, norm.beta, inverse, norm.eps, d * h * w, w, d * h, x.stride(0), x.stride(2),
        x.stride(3), out.stride(0), out.stride(2), out.stride(3), sums_n, sums_r, c, HALO=halo, BV=bv, BC=bc,
        OUT=_types()[out.dtype], SLOPE=float(norm.slope), REPLICAS=replicas, LOOP=loop, **_overlap(), num_warps=warps,
    )  # fmt: skip


def norm_reduce(
    parts: Tensor, norm: Norm, out: Tensor, *, inverse: float = 1.0, bc: int = 8, warps: int = 8
) -> None:
    """Adds the parts [splits, N, D, H, W, C] of a split convolution, takes the statistics, normalises, activates.

    For volumes that a program holds in registers (up to 4096 voxels or so). `norm.sums` is not read.
    """
    import triton

    from wetread.kernels.device.small import norm_reduce as kernel

    _channels_last(out)
    _require(parts.ndim == 6 and parts.is_contiguous() and parts.shape[1:] == out.shape, "contiguous parts")
    splits, n, d, h, w, c = parts.shape
    _require(out.stride(1) == h * out.stride(2), "rows of W evenly spaced")
    kernel[(-(-c // bc), n)](
        parts, out, norm.gamma, norm.beta, inverse, norm.eps, d * h * w, w, parts.stride(0), parts.stride(1),
        out.stride(0), out.stride(2), out.stride(3), c, SPLITS=splits, BV=triton.next_power_of_2(d * h * w), BC=bc,
        OUT=_types()[out.dtype], SLOPE=float(norm.slope), **_overlap(), num_warps=warps,
    )  # fmt: skip


def upconv(
    x: Tensor, weight: Tensor, out: Tensor, epilogue: Epilogue = PLAIN, *, norm: Norm | None = None,
    in_inverse: float = 1.0, tile: Tile | None = None, taps: int = 4,
) -> None:  # fmt: skip
    """Transposed convolution 2×2×2 with stride 2; weight from `weights.pack_up`.

    Args:
        x: [N, D, H, W, C]; with `norm` raw, and normalised, activated and cast to the weight's type on load.
        weight: [8, CO, C].
        out: [N, 2D, 2H, 2W, CO]; voxels before and after each row are written with zeros where there are any.
        epilogue: scale, bias, inverse.
        norm: of the input.
        in_inverse: 1 / scale of the 8-bit input that `norm` makes.
        tile: rows (product of shape), bn of 2·CO, bk (C or more: the input is loaded once).
        taps: of the four (kd, kh), how many a program makes.
    """
    from wetread.kernels.device.small import upconv as kernel

    _channels_last(x, out)
    n, d, h, w, c = x.shape
    co = out.shape[-1]
    _require(out.shape == (n, 2 * d, 2 * h, 2 * w, co) and weight.shape == (8, co, c), "matching shapes")
    _require(out.stride(3) == co, "an output whose neighbours along W lie one after the other")
    t = tile or Tile("gather", (1, 1, 128), 64, 64, 4, 2)
    rows = t.shape[0] * t.shape[1] * t.shape[2]
    pointers, constants, _ = _common(epilogue, out)
    sums, sums_n, sums_r, replicas, _ = _sums(None if norm is None else norm.sums, x)
    gamma, beta, eps, slope = (
        (x, x, 1.0, 1.0) if norm is None else (norm.gamma, norm.beta, norm.eps, norm.slope)
    )
    kernel[(-(-2 * co // t.bn) * (4 // taps) * -(-(d * h * w) // rows), n)](
        x, weight, out, pointers[0], pointers[1], sums, gamma, beta, float(in_inverse), pointers[3], eps,
        d * h * w, d, h, w, *x.stride()[:4], *out.stride()[:4], sums_n, sums_r, C=c, CO=co, BM=rows,
        BN=t.bn, BK=t.bk, TAPS=taps, IN=_types()[weight.dtype], ACC=_accumulator(weight.dtype), OUT=_types()[out.dtype],
        NORM=norm is not None, IN_SLOPE=float(slope), SCALED=constants["SCALED"], BIASED=constants["BIASED"],
        HALO=is_padded(out), REPLICAS=replicas, **_overlap(), num_warps=t.warps, num_stages=t.stages,
    )  # fmt: skip


def head(
    x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, *, norm: Norm | None = None, softmax: bool = False,
    patch: Tensor | None = None, rows: int = 128, loop: int = 1,
) -> None:  # fmt: skip
    """1×1×1 convolution to K classes, in planes: out [N, K, D, H, W], any strides.

    Args:
        x: [N, D, H, W, C], C a power of two; with `norm` raw.
        weight: [C, BK] from `weights.pack_head`.
        bias: [K] float32.
        out: logits or probabilities; with `patch` a window's view into a volume, to which
            patch · value is added (one window a launch: N = 1, since windows overlap).
        norm: of the input.
        softmax: over the classes.
        patch: [D, H, W] weights, contiguous.
        rows: voxels of one step of a program.
        loop: steps of a program.
    """
    from wetread.kernels.device.small import head as kernel

    _channels_last(x)
    n, d, h, w, c = x.shape
    k = bias.shape[0]
    _require(c & (c - 1) == 0 and weight.shape[0] == c and out.shape == (n, k, d, h, w), "matching shapes")
    _require(
        patch is None or (n == 1 and patch.is_contiguous() and patch.shape == (d, h, w)),
        "a patch and one window",
    )
    sums, sums_n, sums_r, replicas, _ = _sums(None if norm is None else norm.sums, x)
    gamma, beta, eps, slope = (
        (x, x, 1.0, 1.0) if norm is None else (norm.gamma, norm.beta, norm.eps, norm.slope)
    )
    kernel[(-(-(d * h * w) // (rows * loop)), n)](
        x, weight, bias, sums, gamma, beta, out, x if patch is None else patch, eps, d * h * w, d, h, w,
        *x.stride()[:4], out.stride(1), *out.stride()[2:], out.stride(0), sums_n, sums_r, C=c, K=k, BM=rows,
        BK=weight.shape[1], IN=_types()[weight.dtype], SLOPE=float(slope), NORM=norm is not None, SOFTMAX=softmax,
        ADD=patch is not None, REPLICAS=replicas, LOOP=loop, **_overlap(), num_warps=4,
    )  # fmt: skip
