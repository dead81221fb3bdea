"""Launches the kernel of linear layers, and packs its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from wetread.kernels.arguments import Tensor, accumulator, overlapped, require, triton_type

ACTIVATIONS = ("relu", "leaky", "gelu", "sigmoid", "tanh", "silu", "clip")
"""Activations of the kernel (see `operations.base.activate`)."""

_ALIGNED = 16
"""K is padded to multiples of this, so that rows of the weight are loaded as vectors."""


@dataclass(frozen=True)
class RowTile:
    """How a linear layer is cut into programs: rows, columns, K of a step, warps, depth of the pipeline."""

    bm: int
    bn: int
    bk: int
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class Product:
    """What a linear layer computes besides the product.

    Attributes:
        contract: how many last axes of the left side make up K.
        eps: of the LayerNorm over K before the product (its weight was packed for it); None without one.
        activation: see `operations.base.activate`; one of `ACTIVATIONS`.
        inverse: 1 / scale of an 8-bit output.
        tf32: float32 operands may be rounded to TF32.
    """

    contract: int = 1
    eps: float | None = None
    activation: Mapping[str, Any] | None = None
    inverse: float = 1.0
    tf32: bool = False


@dataclass(frozen=True)
class Linear:
    """A packed weight.

    Attributes:
        weight: [N, KP]; K padded with zeros, gamma multiplied in where a norm comes before.
        bias: [N] float32, with beta · weight; None where it is none.
        scale: [N] float32; None where it is none.
        total: [N] float32, sum of each row of `weight`; None without a norm.
        features: K.
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    total: Tensor | None
    features: int


def pack_linear(
    weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None, gamma: Tensor | None = None,
    beta: Tensor | None = None, *, folded: bool = False,
) -> Linear:  # fmt: skip
    """Packs a weight [K, N].

    Args:
        weight: [K, N].
        bias: [N].
        scale: [N].
        gamma: [K], multiplier of the norm before it.
        beta: [K], addend of the norm before it.
        folded: a norm comes before it.
    """
    k, n = weight.shape
    wide = weight.float()
    shift = None if bias is None else bias.float()
    if folded and beta is not None:
        moved = beta.float().reshape(-1) @ wide
        shift = moved if shift is None else shift + moved
    if folded and gamma is not None:
        wide = wide * gamma.float().reshape(-1, 1)
    packed = torch.zeros(n, -(-k // _ALIGNED) * _ALIGNED, dtype=weight.dtype, device=weight.device)
    packed[:, :k] = wide.T.to(weight.dtype)
    total = packed.float().sum(1) if folded else None
    return Linear(packed, shift, None if scale is None else scale.float().contiguous(), total, k)


def merged(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Axes that may be counted as one in all tensors, merged: sizes, and strides of each tensor."""
    sizes: list[int] = []
    found: list[list[int]] = [[] for _ in strides]
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        steps = [each[axis] for each in strides]
        if sizes and all(each[-1] == size * step for each, step in zip(found, steps, strict=True)):
            sizes[-1] *= size
            for each, step in zip(found, steps, strict=True):
                each[-1] = step
        else:
            sizes.append(size)
            for each, step in zip(found, steps, strict=True):
                each.append(step)
    require(len(sizes) <= 4, f"rows or K over at most four axes, found {tuple(shape)}")
    while len(sizes) < 4:
        sizes.insert(0, 1)
        for each in found:
            each.insert(0, 0)
    return sizes, found


def activation_of(activation: Mapping[str, Any] | None) -> tuple[str, float, float]:
    """Name and parameters as `device.matmul.act` takes them."""
    if activation is None:
        return "", 0.0, 0.0
    name = str(activation["name"])
    if name == "gelu" and activation.get("approximate") == "tanh":
        name = "gelu_tanh"
    low, high = activation.get("low"), activation.get("high")
    if name == "clip":
        return name, -math.inf if low is None else float(low), math.inf if high is None else float(high)
    return name, float(activation.get("slope", 0.0)), 0.0


def linear(
    a: Tensor, packed: Linear, y: Tensor, product: Product, tile: RowTile, residual: Tensor | None = None
) -> None:
    """A linear layer: y = act(norm?(a) · weight · scale + bias + residual).

    Args:
        a: (rows..., K axes...); at most four axes of each that do not merge.
        packed: from `pack_linear`, of the type of `a`.
        y: (rows..., N).
        product: what is computed.
        tile: sizes.
        residual: like y.

    Raises:
        EngineError: shapes or types that the kernel does not take.
    """
    from wetread.kernels.device.matmul import linear as kernel

    split = a.ndim - product.contract
    rows, k = a.shape[:split], a.shape[split:]
    require(math.prod(k) == packed.features, f"{packed.features} features, found {tuple(k)}")
    require(tuple(y.shape[:-1]) == tuple(rows), f"an output of rows {tuple(rows)}, found {tuple(y.shape)}")
    require(
        y.shape[-1] == packed.weight.shape[0] and a.dtype == packed.weight.dtype, "a weight of the same type"
    )
    require(residual is None or residual.shape == y.shape, "a residual like the output")
    require((product.eps is None) == (packed.total is None), "a weight packed for its norm")
    other = y if residual is None else residual
    sizes, (sa, sy, sr) = merged(rows, [a.stride()[:split], y.stride()[:-1], other.stride()[:-1]])
    inner, (sk,) = merged(k, [a.stride()[split:]])
    m, n = math.prod(rows), y.shape[-1]
    name, p0, p1 = activation_of(product.activation)

    def some(tensor: Tensor | None) -> Tensor:
        return y if tensor is None else tensor

    kernel[(-(-n // tile.bn) * -(-m // tile.bm),)](
        a, packed.weight, y, other, some(packed.scale), some(packed.bias), some(packed.total),
        float(product.inverse), float(product.eps or 0.0),
        m, n, packed.weight.shape[1], *sizes[1:], *sa, *sy, *sr, y.stride(-1), other.stride(-1), *sk,
        K=packed.features, K1=inner[1], K2=inner[2], K3=inner[3], FLAT=sizes[:3] == [1, 1, 1],
        DENSE=inner[:3] == [1, 1, 1] and sk[3] in (0, 1), SCALED=packed.scale is not None,
        BIASED=packed.bias is not None, RESIDUAL=residual is not None, NORM=product.eps is not None, NAME=name,
        P0=p0, P1=p1, BM=tile.bm, BN=tile.bn, BK=tile.bk, ACC=accumulator(a.dtype), OUT=triton_type(y.dtype),
        PRECISION="tf32" if product.tf32 else "ieee", **overlapped(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
