"""Launchers of the norms (device/small.py)."""

from __future__ import annotations

from wetread.kernels.arguments import (
    Norm,
    Tensor,
    overlapped,
    require,
    require_channels_last,
    sums_arguments,
    triton_type,
)  # fmt: skip
from wetread.kernels.weights import is_padded


def norm_apply(
    x: Tensor, norm: Norm, out: Tensor, *, inverse: float = 1.0, rows: int = 0, loop: int = 1, warps: int = 4
) -> None:
    """Normalise, activate, quantise (out = value · inverse in 8 bits).

    An output with a voxel before and after each row (`weights.padded`) has these written with zeros.
    """
    import triton

    from wetread.kernels.device.small import norm_apply as kernel

    require_channels_last(x, out)
    n, d, h, w, c = x.shape
    require(x.shape == out.shape and x.stride(1) == h * x.stride(2), "rows of W evenly spaced")
    sums, sums_n, sums_r, replicas, stats = sums_arguments(norm.sums, x)
    require(stats, "norm sums")
    halo = 1 if is_padded(out) else 0
    bc = min(64, triton.next_power_of_2(c))
    bv = rows or 4096 // bc
    kernel[(-(-(d * h * (w + 2 * halo)) // (bv * loop)), n, -(-c // bc))](
        x, out, sums, norm.gamma, norm.beta, inverse, norm.eps, d * h * w, w, d * h, x.stride(0), x.stride(2),
        x.stride(3), out.stride(0), out.stride(2), out.stride(3), sums_n, sums_r, c, HALO=halo, BV=bv, BC=bc,
        OUT=triton_type(out.dtype), SLOPE=float(norm.slope), REPLICAS=replicas, LOOP=loop, **overlapped(),
        num_warps=warps,
    )  # fmt: skip


def norm_reduce(
    parts: Tensor, norm: Norm, out: Tensor, *, inverse: float = 1.0, bc: int = 8, warps: int = 8
) -> None:
    """Adds the parts [splits, N, D, H, W, C] of a split convolution, takes the statistics, normalises, activates.

    For volumes that a program holds in registers (up to 4096 voxels or so). `norm.sums` is not read.
    """
    import triton

    from wetread.kernels.device.small import norm_reduce as kernel

    require_channels_last(out)
    require(parts.ndim == 6 and parts.is_contiguous() and parts.shape[1:] == out.shape, "contiguous parts")
    splits, n, d, h, w, c = parts.shape
    require(out.stride(1) == h * out.stride(2), "rows of W evenly spaced")
    kernel[(-(-c // bc), n)](
        parts, out, norm.gamma, norm.beta, inverse, norm.eps, d * h * w, w, parts.stride(0), parts.stride(1),
        out.stride(0), out.stride(2), out.stride(3), c, SPLITS=splits, BV=triton.next_power_of_2(d * h * w), BC=bc,
        OUT=triton_type(out.dtype), SLOPE=float(norm.slope), **overlapped(), num_warps=warps,
    )  # fmt: skip
