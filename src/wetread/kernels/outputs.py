"""Launchers of the transposed convolution and of the head (device/small.py)."""

from __future__ import annotations

from wetread.kernels.arguments import (
    PLAIN,
    Epilogue,
    Norm,
    Tensor,
    Tile,
    accumulator,
    norm_arguments,
    overlapped,
    require,
    require_channels_last,
    triton_type,
)  # fmt: skip
from wetread.kernels.weights import is_padded


def upconv(
    x: Tensor, weight: Tensor, out: Tensor, epilogue: Epilogue = PLAIN, *, norm: Norm | None = None,
    in_inverse: float = 1.0, tile: Tile | None = None, taps: int = 4,
) -> None:  # fmt: skip
    """Transposed convolution whose stride is its kernel, 1 or 2 along D and H, 2 along W.

    Args:
        x: [N, D, H, W, C]; with `norm` raw, and normalised, activated and cast to the weight's type on load.
        weight: [taps, CO, C] from `weights.pack_up`.
        out: [N, KD·D, KH·H, 2W, CO], or such a slice of the channels of a larger tensor; voxels before and after
            each row are written with zeros where there are any (`weights.padded`).
        epilogue: scale, bias, activation, inverse.
        norm: of the input.
        in_inverse: 1 / scale of the 8-bit input that `norm` makes.
        tile: rows (product of shape), bn of 2·CO, bk (C or more: the input is loaded once).
        taps: of the (kd, kh), how many a program makes; a divisor of their number.
    """
    from wetread.kernels.device.small import upconv as kernel

    require_channels_last(x, out)
    n, d, h, w, c = x.shape
    co = out.shape[-1]
    kd, kh = out.shape[1] // d, out.shape[2] // h
    require(kd in (1, 2) and kh in (1, 2), "a kernel of 1 or 2 along D and H")
    require(
        out.shape == (n, kd * d, kh * h, 2 * w, co) and weight.shape == (2 * kd * kh, co, c),
        "matching shapes",
    )
    taps = min(taps, kd * kh)
    require(epilogue.sums is None and epilogue.residual is None, "no sums and no residual")
    t = tile or Tile("gather", (1, 1, 128), 64, 64, 4, 2)
    rows = t.shape[0] * t.shape[1] * t.shape[2]
    (sums, gamma, beta, eps, voxels), strides, constants = norm_arguments(norm, x)
    scale = x if epilogue.scale is None else epilogue.scale
    bias = x if epilogue.bias is None else epilogue.bias
    kernel[(-(-2 * co // t.bn) * (kd * kh // taps) * -(-(d * h * w) // rows), n)](
        x, weight, out, scale, bias, sums, gamma, beta, float(in_inverse), float(epilogue.inverse), eps, voxels,
        d, h, w, *x.stride()[:4], *out.stride()[:4], *strides, C=c, CO=co, BM=rows, BN=t.bn, BK=t.bk, KD=kd, KH=kh,
        TAPS=taps,
        IN=triton_type(weight.dtype), ACC=accumulator(weight.dtype), OUT=triton_type(out.dtype),
        SCALED=epilogue.scale is not None, BIASED=epilogue.bias is not None, ACT=epilogue.activation,
        SLOPE=float(epilogue.slope), HALO=is_padded(out), DENSE=out.stride(3) == co,
        **constants, **overlapped(), num_warps=t.warps,
        num_stages=t.stages,
    )  # fmt: skip


def head(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, *, norm: Norm | None = None, softmax: bool = False,
    patch: Tensor | None = None, rows: int = 128, loop: int = 1, epilogue: Epilogue = PLAIN, in_inverse: float = 1.0,
    warps: int = 4,
) -> None:  # fmt: skip
    """1×1×1 convolution to K classes, in planes: out [N, K, D, H, W], any strides.

    Args:
        x: [N, D, H, W, C], C at most 256; with `norm` raw.
        weight: [C, BK] from `weights.pack_head`; its type is that of the product.
        bias: [K] float32.
        out: logits or probabilities, any floating type; with `patch` a window's view into a volume, to which
            patch · value is added (one window a launch: N = 1, since windows overlap).
        norm: of the input.
        softmax: over the classes.
        patch: [D, H, W] weights, contiguous.
        rows: voxels of one step of a program.
        loop: steps of a program.
        epilogue: scale and activation (before any softmax).
        in_inverse: 1 / scale of the 8-bit input that `norm` makes.
        warps: of a program.
    """
    import triton

    from wetread.kernels.device.small import head as kernel

    require_channels_last(x)
    n, d, h, w, c = x.shape
    k = out.shape[1]
    require(c <= 256 and weight.shape[0] == c and out.shape == (n, k, d, h, w), "matching shapes")
    require(weight.shape[1] >= k and out.is_floating_point(), "weights of all classes, a floating output")
    require(
        patch is None or (n == 1 and patch.is_contiguous() and patch.shape == (d, h, w)),
        "a patch and one window",
    )
    (sums, gamma, beta, eps, voxels), strides, constants = norm_arguments(norm, x)
    scale = x if epilogue.scale is None else epilogue.scale
    kernel[(-(-(d * h * w) // (rows * loop)), n)](
        x, weight, scale, x if bias is None else bias, sums, gamma, beta, out, x if patch is None else patch,
        float(in_inverse), eps, voxels, d, h, w, *x.stride()[:4], out.stride(1), *out.stride()[2:], out.stride(0),
        *strides, C=c, BC=max(16, triton.next_power_of_2(c)), K=k, BM=rows, BK=weight.shape[1],
        IN=triton_type(weight.dtype), ACC=accumulator(weight.dtype), SCALED=epilogue.scale is not None,
        BIASED=bias is not None, ACT=epilogue.activation, SLOPE=float(epilogue.slope), SOFTMAX=softmax,
        ADD=patch is not None, LOOP=loop, **constants, **overlapped(), num_warps=warps,
    )  # fmt: skip
