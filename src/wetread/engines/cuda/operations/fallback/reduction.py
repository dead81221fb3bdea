"""Sums, extremes and products over axes, running sums, and what normalises along axes."""

from __future__ import annotations

import torch

from wetread.engines.cuda.operations.fallback.registry import Call, Tensor, along, operator

F = torch.nn.functional
_LOWEST = -(1 << 63)


def _axes(call: Call, x: Tensor) -> tuple[tuple[int, ...], bool]:
    """The axes of a reduction and whether they stay with one element; no axes where it does nothing."""
    axes = call.ints(1, "axes")
    keep = bool(call.get("keepdims", 1))
    if not axes:
        return (() if call.get("noop_with_empty_axes", 0) else tuple(range(x.ndim))), keep
    return tuple(sorted(a % x.ndim for a in axes)), keep


def _summed(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep) if axes else x


@operator("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", known=(1,))
def reduce_sum(call: Call, x: Tensor) -> Tensor:
    """Sums over axes: plain, of squares, of sizes; then a root or a logarithm."""
    name = call.operator
    axes, keep = _axes(call, x)
    if name in ("ReduceSumSquare", "ReduceL2"):
        x = x * x
    elif name == "ReduceL1":
        x = x.abs()
    found = _summed(x, axes, keep)
    if name == "ReduceL2":
        return found.double().sqrt() if not found.is_floating_point() else found.sqrt()
    return found.log() if name == "ReduceLogSum" else found


@operator("ReduceLogSumExp", known=(1,))
def reduce_log_sum_exp(call: Call, x: Tensor) -> Tensor:
    """Logarithm of the sum of exponentials."""
    axes, keep = _axes(call, x)
    return torch.logsumexp(x, axes, keepdim=keep) if axes else x


@operator("ReduceMean", known=(1,))
def reduce_mean(call: Call, x: Tensor) -> Tensor:
    """Mean over axes."""
    axes, keep = _axes(call, x)
    if not axes:
        return x
    wide = x if x.is_floating_point() else x.double()
    return wide.mean(axes, keepdim=keep)


@operator("ReduceProd", known=(1,))
def reduce_product(call: Call, x: Tensor) -> Tensor:
    """Product over axes."""
    axes, keep = _axes(call, x)
    for axis in reversed(axes):
        x = x.prod(axis, keepdim=keep)
    return x


def _limits(dtype: torch.dtype) -> tuple[float, float]:
    """What loses against every number of a type, from below and from above."""
    if dtype == torch.bool:
        return 0, 1
    if dtype.is_floating_point:
        return -torch.inf, torch.inf
    return torch.iinfo(dtype).min, torch.iinfo(dtype).max


@operator("ReduceMax", "ReduceMin", known=(1,), types="own")
def reduce_extreme(call: Call, x: Tensor) -> Tensor:
    """Largest or smallest over axes; over none of the elements the lowest or highest of the type."""
    axes, keep = _axes(call, x)
    if not axes:
        return x
    largest = call.operator == "ReduceMax"
    if any(x.shape[a] == 0 for a in axes):
        shape = [1 if a in axes else n for a, n in enumerate(x.shape)]
        low, high = _limits(x.dtype)
        found = torch.full(shape, low if largest else high, dtype=x.dtype, device=x.device)
        return found if keep else found.squeeze(axes)
    value = x.to(torch.uint8) if x.dtype == torch.bool else x ^ _LOWEST if call.unsigned else x
    value = value.amax(axes, keepdim=keep) if largest else value.amin(axes, keepdim=keep)
    return value.to(torch.bool) if x.dtype == torch.bool else value ^ _LOWEST if call.unsigned else value


@operator("ArgMax", "ArgMin", types="own")
def arg_extreme(call: Call, x: Tensor) -> Tensor:
    """Place of the largest or smallest; the first of equal ones, or the last."""
    axis = int(call.get("axis", 0)) % x.ndim
    keep = bool(call.get("keepdims", 1))
    value = x ^ _LOWEST if call.unsigned else x
    best = value.amax(axis, keepdim=True) if call.operator == "ArgMax" else value.amin(axis, keepdim=True)
    places = along(axis, torch.arange(x.shape[axis], device=x.device), x.ndim)
    hit = value == best
    if call.get("select_last_index", 0):
        return torch.where(hit, places, -1).amax(axis, keepdim=keep)
    return torch.where(hit, places, x.shape[axis]).amin(axis, keepdim=keep).clamp(max=x.shape[axis] - 1)


def _flat(call: Call, x: Tensor) -> tuple[Tensor, int]:
    """Input and axis that an operator runs along: before operator set 13, all axes from one on as a single one."""
    if call.opset >= 13:
        return x, int(call.get("axis", -1)) % x.ndim
    first = int(call.get("axis", 1)) % x.ndim
    return x.flatten(first), first


@operator("Softmax", "LogSoftmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    """Exponentials over their sum along an axis, or the logarithm of it."""
    flat, axis = _flat(call, x)
    return (flat.softmax(axis) if call.operator == "Softmax" else flat.log_softmax(axis)).reshape(x.shape)


@operator("Hardmax", types="own")
def hardmax(call: Call, x: Tensor) -> Tensor:
    """One at the first largest along an axis, else zero."""
    flat, axis = _flat(call, x)
    place = arg_extreme(Call("ArgMax", {"axis": axis}, call.opset), flat)
    steps = along(axis, torch.arange(flat.shape[axis], device=x.device), flat.ndim)
    return (steps == place).to(x.dtype).reshape(x.shape)


@operator("CumSum", "CumProd", known=(1,))
def running(call: Call, x: Tensor) -> Tensor:
    """Running sum or product along an axis, from either end, with or without the element itself."""
    axis = call.need(1)[0] % x.ndim
    product = call.operator == "CumProd"
    if call.get("reverse", 0):
        x = x.flip(axis)
    if call.get("exclusive", 0):
        first = torch.full_like(x.narrow(axis, 0, 1), 1 if product else 0)
        x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    x = x.cumprod(axis) if product else x.cumsum(axis)
    return x.flip(axis) if call.get("reverse", 0) else x


@operator("LpNormalization")
def lp_normalised(call: Call, x: Tensor) -> Tensor:
    """Over its norm along an axis; zero where that is zero."""
    axis = int(call.get("axis", -1))
    norm = torch.linalg.vector_norm(x, int(call.get("p", 2)), axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


@operator("MeanVarianceNormalization")
def standardised(call: Call, x: Tensor) -> Tensor:
    """Mean 0 and variance 1 over axes."""
    axes = call.get("axes") or (0, 2, 3)
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


@operator("LRN")
def local_response(call: Call, x: Tensor) -> Tensor:
    """Over a power of the sum of squares of neighbouring channels."""
    size = int(call.attributes["size"])
    before = (size - 1) // 2
    squares = (
        F.pad((x * x).movedim(1, -1), (before, size - 1 - before)).unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    )
    scale = float(call.get("bias", 1.0)) + float(call.get("alpha", 1e-4)) / size * squares
    return x / scale ** float(call.get("beta", 0.75))
