"""Launchers of the transposed convolution and of the head (device/small.py)."""

from __future__ import annotations

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
    sums_arguments,
    triton_type,
)  # fmt: skip
from wetread.kernels.weights import is_padded


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

    require_channels_last(x, out)
    n, d, h, w, c = x.shape
    co = out.shape[-1]
    require(out.shape == (n, 2 * d, 2 * h, 2 * w, co) and weight.shape == (8, co, c), "matching shapes")
    require(out.stride(3) == co, "an output whose neighbours along W lie one after the other")
    t = tile or Tile("gather", (1, 1, 128), 64, 64, 4, 2)
    rows = t.shape[0] * t.shape[1] * t.shape[2]
    pointers, constants, _ = common_arguments(epilogue, out)
    sums, sums_n, sums_r, replicas, _ = sums_arguments(None if norm is None else norm.sums, x)
    gamma, beta, eps, slope = (
        (x, x, 1.0, 1.0) if norm is None else (norm.gamma, norm.beta, norm.eps, norm.slope)
    )
    kernel[(-(-2 * co // t.bn) * (4 // taps) * -(-(d * h * w) // rows), n)](
        x, weight, out, pointers[0], pointers[1], sums, gamma, beta, float(in_inverse), pointers[3], eps,
        d * h * w, d, h, w, *x.stride()[:4], *out.stride()[:4], sums_n, sums_r, C=c, CO=co, BM=rows,
        BN=t.bn, BK=t.bk, TAPS=taps, IN=triton_type(weight.dtype), ACC=accumulator(weight.dtype),
        OUT=triton_type(out.dtype), NORM=norm is not None, IN_SLOPE=float(slope), SCALED=constants["SCALED"],
        BIASED=constants["BIASED"], HALO=is_padded(out), REPLICAS=replicas, **overlapped(), num_warps=t.warps,
        num_stages=t.stages,
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

    require_channels_last(x)
    n, d, h, w, c = x.shape
    k = bias.shape[0]
    require(c & (c - 1) == 0 and weight.shape[0] == c and out.shape == (n, k, d, h, w), "matching shapes")
    require(
        patch is None or (n == 1 and patch.is_contiguous() and patch.shape == (d, h, w)),
        "a patch and one window",
    )
    sums, sums_n, sums_r, replicas, _ = sums_arguments(None if norm is None else norm.sums, x)
    gamma, beta, eps, slope = (
        (x, x, 1.0, 1.0) if norm is None else (norm.gamma, norm.beta, norm.eps, norm.slope)
    )
    kernel[(-(-(d * h * w) // (rows * loop)), n)](
        x, weight, bias, sums, gamma, beta, out, x if patch is None else patch, eps, d * h * w, d, h, w,
        *x.stride()[:4], out.stride(1), *out.stride()[2:], out.stride(0), sums_n, sums_r, C=c, K=k, BM=rows,
        BK=weight.shape[1], IN=triton_type(weight.dtype), SLOPE=float(slope), NORM=norm is not None, SOFTMAX=softmax,
        ADD=patch is not None, REPLICAS=replicas, LOOP=loop, **overlapped(), num_warps=4,
    )  # fmt: skip
