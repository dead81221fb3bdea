"""Products of matrices, in floating and in integer types."""

from __future__ import annotations

import torch

from wetread.engines.cuda.operations.fallback.registry import Call, Given, Tensor, operator


@operator("MatMul", types="own")
def matmul(_: Call, a: Tensor, b: Tensor) -> Tensor:
    """Product over the last axis of a."""
    if not a.is_floating_point():  # GPUs multiply no integer matrices in torch
        return torch.matmul(a.double(), b.double()).round()
    kind = torch.promote_types(a.dtype, b.dtype)
    return torch.matmul(a.to(kind), b.to(kind))


@operator("Gemm", types="own")
def gemm(call: Call, a: Tensor, b: Tensor, c: Given = None) -> Tensor:
    """Alpha · a · b + beta · c, either one transposed."""
    a = a.mT if call.get("transA", 0) else a
    b = b.mT if call.get("transB", 0) else b
    y = matmul(call, a, b) * float(call.get("alpha", 1.0))
    return y if c is None else y + c.to(y.dtype) * float(call.get("beta", 1.0))


@operator("Einsum", types="own")
def einsum(call: Call, *xs: Tensor) -> Tensor:
    """Sum of products over named axes."""
    kind = xs[0].dtype
    wide = [x if x.is_floating_point() else x.double() for x in xs]
    return torch.einsum(str(call.attributes["equation"]).replace(" ", ""), *wide).to(kind)


@operator("Det")
def determinant(_: Call, x: Tensor) -> Tensor:
    """Determinant of square matrices, by elimination with the largest pivot, which captures no host work."""
    a, size = x.clone(), x.shape[-1]
    found = torch.ones(x.shape[:-2], dtype=x.dtype, device=x.device)
    rows = torch.arange(size, device=x.device)
    for k in range(size):
        column = a[..., k].abs()
        place = torch.where(rows >= k, column, -torch.ones_like(column)).argmax(-1, keepdim=True)
        order = torch.where(rows == k, place, torch.where(rows == place, k, rows))
        a = a.gather(-2, order[..., None].expand(a.shape))
        found = found * a[..., k, k] * torch.where(place[..., 0] == k, 1.0, -1.0)
        pivot = a[..., k, k][..., None, None]
        factor = a[..., k : k + 1] / torch.where(pivot == 0, torch.ones_like(pivot), pivot)
        below = (rows > k)[:, None]
        a = torch.where(below, a - factor * a[..., k : k + 1, :], a)
    return found


@operator("MatMulInteger")
def matmul_integer(_: Call, a: Tensor, b: Tensor, a_zero: Given = None, b_zero: Given = None) -> Tensor:
    """Product of 8-bit integers, exact."""
    return _centred(a, a_zero, -1).matmul(_centred(b, b_zero, -2)).to(torch.int32)


def _centred(x: Tensor, zero: Given, axis: int) -> Tensor:
    """X less its zero point (one, or one a row of a or column of b), in float64, which holds the sums exactly."""
    x = x.double()
    if zero is None:
        return x
    return x - (zero.double().unsqueeze(axis) if zero.numel() > 1 and zero.ndim < x.ndim else zero.double())


@operator("QLinearMatMul")
def quantised_matmul(call: Call, *inputs: Tensor) -> Tensor:
    """Product of 8-bit matrices with scales and zero points, rounded to eight bits again."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = inputs
    y = _centred(a, a_zero, -1).matmul(_centred(b, b_zero, -2))
    a_scale = a_scale.unsqueeze(-1) if a_scale.numel() > 1 and a_scale.ndim < a.ndim else a_scale
    b_scale = b_scale.unsqueeze(-2) if b_scale.numel() > 1 and b_scale.ndim < b.ndim else b_scale
    y = (y * (a_scale.double() * b_scale.double() / y_scale.double())).round() + y_zero.double()
    limits = torch.iinfo(call.dtype())
    return y.clamp(limits.min, limits.max).to(call.dtype())
