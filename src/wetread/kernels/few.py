"""Launchers of the convolutions of few channels and of depthwise ones (device/small.py)."""

from __future__ import annotations

from wetread.kernels.arguments import (
    CUBE,
    PLAIN,
    Epilogue,
    Geometry,
    Tensor,
    accumulator,
    common_arguments,
    overlapped,
    require,
    require_channels_last,
    triton_type,
)  # fmt: skip
from wetread.kernels.convolutions import axis_constants


def conv_few(
    x: Tensor, weight: Tensor, out: Tensor, epilogue: Epilogue = PLAIN, *, rows: int = 128, bn: int = 32,
    geometry: Geometry = CUBE, stride: int = 1, border: bool = False, across: bool = False, warps: int = 4,
) -> None:  # fmt: skip
    """Convolution of few channels (the first layer).

    Args:
        x: [N, D, H, W, C].
        weight: from `weights.pack_few`; its type is that of the product.
        out: [N, DO, HO, WO, CO].
        epilogue: what is done to the product.
        rows: voxels of a program.
        bn: output channels of a program.
        geometry: kernel, stride and pads; dilation 1.
        stride: of 3×3×3 where `geometry` is not given.
        border: x lies in a volume with at least as many zero voxels on every side as the geometry pads: loads need
            no masks.
        across: with `border`, the product transposed (loads along W).
        warps: of a program.
    """
    from wetread.kernels.device.small import few

    at = geometry if stride == 1 else Geometry((3, 3, 3), (stride,) * 3, (1, 1, 1), (1, 1, 1), (1, 1, 1))
    require_channels_last(x, out)
    n, do, ho, wo, co = out.shape
    require((do, ho, wo) == at.out_size(x.shape[1:4]) and weight.shape[1] == co, "matching shapes")
    require(at.dilation == (1, 1, 1) and at.groups == 1, "one group and dilation 1")
    pointers, constants, (sums_n, sums_r) = common_arguments(epilogue, out)
    few[(-(-co // bn) * -(-(do * ho * wo) // rows), n)](
        x, weight, out, *pointers, *x.shape[1:4], do, ho, wo, *x.stride()[:4], *out.stride()[:4], sums_n, sums_r, co,
        C=x.shape[-1], **axis_constants("K", at.kernel), **axis_constants("S", at.stride),
        **axis_constants("P", at.before), BM=rows, BN=bn, K=weight.shape[0], BK=min(64, weight.shape[0]),
        ACC=accumulator(weight.dtype), OUT=triton_type(out.dtype), BORDER=border, ACROSS=border and across, **constants,
        **overlapped(), num_warps=warps,
    )  # fmt: skip


def conv_depthwise(
    x: Tensor, weight: Tensor, out: Tensor, epilogue: Epilogue = PLAIN, *, geometry: Geometry, rows: int = 64,
    bn: int = 32, warps: int = 4,
) -> None:  # fmt: skip
    """Convolution whose groups have one input channel each.

    Args:
        x: [N, D, H, W, C].
        weight: [taps, CO] from `weights.pack_depthwise`, of any floating or 8-bit type.
        out: [N, DO, HO, WO, CO], CO a multiple of C.
        epilogue: what is done to the result.
        geometry: of C groups.
        rows: voxels of a program.
        bn: channels of a program.
        warps: of a program.
    """
    from wetread.kernels.device.small import depthwise

    require_channels_last(x, out)
    n, do, ho, wo, co = out.shape
    c = x.shape[-1]
    require(geometry.groups == c and co % c == 0 and weight.shape[1] == co, "a group for each input channel")
    require((do, ho, wo) == geometry.out_size(x.shape[1:4]), "matching shapes")
    pointers, constants, (sums_n, sums_r) = common_arguments(epilogue, out)
    depthwise[(-(-co // bn) * -(-(do * ho * wo) // rows), n)](
        x, weight, out, *pointers, *x.shape[1:4], do, ho, wo, *x.stride()[:4], *out.stride()[:4], sums_n, sums_r, co,
        EACH=co // c, **axis_constants("K", geometry.kernel), **axis_constants("S", geometry.stride),
        **axis_constants("L", geometry.dilation), **axis_constants("P", geometry.before), BM=rows, BN=bn,
        OUT=triton_type(out.dtype), **constants, **overlapped(), num_warps=warps,
    )  # fmt: skip
