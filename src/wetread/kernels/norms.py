"""Launchers of norms, sums, and what ends a product whose K was split (device/norm.py)."""

from __future__ import annotations

from wetread.kernels.arguments import (
    PLAIN,
    Epilogue,
    Norm,
    Tensor,
    common_arguments,
    norm_arguments,
    overlapped,
    require,
    require_channels_last,
    sums_arguments,
    triton_type,
)  # fmt: skip
from wetread.kernels.weights import is_padded


def _even_rows(*tensors: Tensor) -> None:
    require_channels_last(*tensors)
    for t in tensors:
        require(t.shape[1] == 1 or t.stride(1) == t.shape[2] * t.stride(2), "rows of W evenly spaced")


def norm_apply(
    x: Tensor, norm: Norm, out: Tensor, *, residual: Tensor | None = None, residual_norm: Norm | None = None,
    inverse: float = 1.0, rows: int = 0, loop: int = 1, warps: int = 4,
) -> None:  # fmt: skip
    """Normalise, add a residual, activate, quantise (out = value · inverse in 8 bits).

    An output with a voxel before and after each row (`weights.padded`) has these written with zeros.

    Args:
        x, out: [N, D, H, W, C].
        norm: of x; its activation comes last.
        residual: of x's shape, added after the norm.
        residual_norm: of the residual, with the eps, groups and strides of `norm`; its activation is not applied.
        inverse: 1 / scale of an 8-bit output.
        rows: voxels of one step of a program (0: 4096 values).
        loop: steps of a program.
        warps: of a program.
    """
    import triton

    from wetread.kernels.device.norm import norm_apply as kernel

    _even_rows(x, out, *([] if residual is None else [residual]))
    n, d, h, w, c = x.shape
    require(x.shape == out.shape, "an output of the input's shape")
    (sums, gamma, beta, eps, voxels), (sums_n, sums_r), constants = norm_arguments(norm, x)
    (rsums, rgamma, rbeta, *_), strides, _ = norm_arguments(residual_norm, x)
    require(residual_norm is None or strides == (sums_n, sums_r), "sums of one layout")
    r = x if residual is None else residual
    require(r.shape == x.shape, "a residual of the input's shape")
    halo = 1 if is_padded(out) else 0
    bc = max(16, min(64, triton.next_power_of_2(c)))
    bv = rows or 4096 // bc
    kernel[(-(-(d * h * (w + 2 * halo)) // (bv * loop)), n, -(-c // bc))](
        x, r, out, sums, gamma, beta, rsums, rgamma, rbeta, inverse, eps, voxels, w, d * h, x.stride(0), x.stride(2),
        x.stride(3), r.stride(0), r.stride(2), r.stride(3), out.stride(0), out.stride(2), out.stride(3), sums_n,
        sums_r, c, HALO=halo, BV=bv, BC=bc, OUT=triton_type(out.dtype), ACT=constants["IN_ACT"],
        SLOPE=constants["IN_SLOPE"], RESIDUAL=residual is not None, RNORM=residual_norm is not None,
        GROUP=constants["GROUP"], REPLICAS=constants["REPLICAS"], LOOP=loop, **overlapped(), num_warps=warps,
    )  # fmt: skip


def _parts(parts: Tensor, out: Tensor) -> None:
    _even_rows(out)
    require(parts.ndim == 6 and parts.is_contiguous() and parts.shape[1:] == out.shape, "contiguous parts")


def norm_reduce(
    parts: Tensor, norm: Norm, out: Tensor, *, inverse: float = 1.0, bc: int = 8, warps: int = 8
) -> None:
    """Adds the parts [splits, N, D, H, W, C] of a split convolution, takes the statistics, normalises, activates.

    For volumes that a program holds in registers (up to 4096 voxels or so). `norm.sums` is not read. The channels of
    a group, a power of two, lie in one program: bc is a multiple of them.
    """
    import triton

    from wetread.kernels.device.norm import norm_reduce as kernel

    _parts(parts, out)
    splits, n, d, h, w, c = parts.shape
    group = c // (norm.groups or c)
    require(group & (group - 1) == 0 and bc % group == 0, f"groups of {group} channels in blocks of {bc}")
    kernel[(-(-c // bc), n)](
        parts, out, norm.gamma, norm.beta, inverse, norm.eps, d * h * w, w, parts.stride(0), parts.stride(1),
        out.stride(0), out.stride(2), out.stride(3), c, SPLITS=splits, BV=triton.next_power_of_2(d * h * w), BC=bc,
        OUT=triton_type(out.dtype), ACT=norm.activation, SLOPE=float(norm.slope), GROUP=group, **overlapped(),
        num_warps=warps,
    )  # fmt: skip


def reduce_parts(
    parts: Tensor, out: Tensor, epilogue: Epilogue = PLAIN, *, rows: int = 32, bc: int = 64, warps: int = 4
) -> None:
    """Adds the parts [splits, N, D, H, W, C] of a split convolution and applies its epilogue."""
    from wetread.kernels.device.norm import reduce as kernel

    _parts(parts, out)
    splits, n, d, h, w, c = parts.shape
    (scale, bias, r, sums, inverse, *_), constants, (sums_n, sums_r) = common_arguments(epilogue, out)
    _even_rows(r)
    kernel[(-(-(d * h * w) // rows), n, -(-c // bc))](
        parts, out, scale, bias, r, sums, inverse, r.stride(0), r.stride(2), r.stride(3), d * h * w, w,
        parts.stride(0), parts.stride(1), out.stride(0), out.stride(2), out.stride(3), sums_n, sums_r, c,
        SPLITS=splits, BV=rows, BC=bc, OUT=triton_type(out.dtype), **constants, **overlapped(), num_warps=warps,
    )  # fmt: skip


def norm_sums(x: Tensor, sums: Tensor, *, rows: int = 0, parts: int = 4, warps: int = 4) -> None:
    """Adds sum and sum of squares of x [N, D, H, W, C] to float64 sums [replicas, N, C, 2].

    Args:
        x: any floating type.
        sums: zeroed by the caller.
        rows: voxels of one tile of a program (0: 2048 values).
        parts: tiles of a program.
        warps: of a program.
    """
    import triton

    from wetread.kernels.device.norm import stats as kernel

    _even_rows(x)
    n, d, h, w, c = x.shape
    _, sums_n, sums_r, replicas, _ = sums_arguments(sums, x)
    bc = max(16, min(64, triton.next_power_of_2(c)))
    bv = rows or 2048 // bc
    kernel[(-(-(d * h * w) // (bv * parts)), n, -(-c // bc))](
        x, sums, d * h * w, w, x.stride(0), x.stride(2), x.stride(3), sums_n, sums_r, c, BV=bv, BC=bc, PARTS=parts,
        REPLICAS=replicas, **overlapped(), num_warps=warps,
    )  # fmt: skip
