"""Launches the kernel of two linear layers in one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from wetread.kernels.arguments import Tensor, overlapped, require, triton_type
from wetread.kernels.matmul import Linear, Product, activation_of, merged

WIDEST = 128
"""Features in and out that the kernel holds in one block."""


@dataclass(frozen=True)
class MlpTile:
    """How it is cut into programs: rows, hidden features of a step, warps, depth of the pipeline."""

    bm: int
    bh: int
    warps: int = 4
    stages: int = 2


def mlp(
    a: Tensor, layers: tuple[Linear, Linear], y: Tensor, product: Product, tile: MlpTile,
    residual: Tensor | None = None,
) -> None:  # fmt: skip
    """Computes y = act(norm?(a) · w1 + bias1) · w2 + bias2 + residual.

    Args:
        a: (rows..., K), K contiguous, of a half type.
        layers: from `pack_linear`, the first one for the norm where there is one.
        y: (rows..., N), N contiguous.
        product: eps of the norm, activation between the layers, inverse of the output.
        tile: sizes.
        residual: like y.

    Raises:
        EngineError: shapes or types that the kernel does not take.
    """
    import triton

    from wetread.kernels.device.mlp import mlp as kernel

    first, second = layers
    other = y if residual is None else residual
    k, hidden, n = first.features, second.features, second.weight.shape[0]
    require(
        a.shape[-1] == k and y.shape[-1] == n and first.weight.shape[0] == hidden,
        "layers that follow each other",
    )
    require(max(k, n) <= WIDEST, f"at most {WIDEST} features in and out")
    require(a.shape[:-1] == y.shape[:-1] and other.shape == y.shape, "outputs and residual of the same rows")
    require(all(t.stride(-1) == 1 for t in (a, y, other)), "contiguous features")
    require(a.dtype == first.weight.dtype == second.weight.dtype, "weights of the same type")
    sizes, strides = merged(a.shape[:-1], [t.stride()[:-1] for t in (a, y, other)])
    m = math.prod(a.shape[:-1])
    name, p0, p1 = activation_of(product.activation)
    kernel[(-(-m // tile.bm),)](
        a, first.weight, second.weight, y, other, y if first.bias is None else first.bias,
        y if second.bias is None else second.bias, float(product.inverse), float(product.eps or 0.0),
        m, n, first.weight.shape[1], second.weight.shape[1], *sizes[1:], *(s for each in strides for s in each),
        K=k, H=hidden, FLAT=sizes[:3] == [1, 1, 1], RESIDUAL=residual is not None, NORM=product.eps is not None,
        BIAS1=first.bias is not None, BIAS2=second.bias is not None, NAME=name, A0=p0, A1=p1, BM=tile.bm,
        BK=max(16, triton.next_power_of_2(k)), BH=tile.bh, BN=max(16, triton.next_power_of_2(n)),
        OUT=triton_type(y.dtype), **overlapped(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
