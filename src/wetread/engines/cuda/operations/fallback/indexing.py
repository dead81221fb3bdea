"""Gathering, scattering, sorting."""

from __future__ import annotations

import torch

from wetread.engines.cuda.operations.fallback.registry import Call, Given, Tensor, along, operator

_LOWEST = -(1 << 63)


def _from_start(index: Tensor, size: int) -> Tensor:
    """Places counted from the end, made places from the start."""
    index = index.long()
    return torch.where(index < 0, index + size, index)


@operator("Gather", types="moves")
def gather(call: Call, x: Tensor, index: Tensor) -> Tensor:
    """Slices at places along an axis."""
    axis = int(call.get("axis", 0)) % x.ndim
    found = x.index_select(axis, _from_start(index, x.shape[axis]).reshape(-1))
    return found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@operator("GatherElements", types="moves")
def gather_elements(call: Call, x: Tensor, index: Tensor) -> Tensor:
    """Elements at places along an axis."""
    axis = int(call.get("axis", 0)) % x.ndim
    return x.gather(axis, _from_start(index, x.shape[axis]))


def _flat_places(index: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Places [.., k] over the first k axes as places in these axes flattened."""
    flat = torch.zeros(index.shape[:-1], dtype=torch.int64, device=index.device)
    for i in range(index.shape[-1]):
        flat = flat * shape[i] + _from_start(index[..., i], shape[i])
    return flat


@operator("GatherND", types="moves")
def gather_nd(call: Call, x: Tensor, index: Tensor) -> Tensor:
    """Slices at places over several axes, after the batch axes."""
    b, k = int(call.get("batch_dims", 0)), index.shape[-1]
    batch = x.shape[:b]
    flat = _flat_places(index, x.shape[b : b + k]).reshape(batch.numel(), -1)
    rest = x.shape[b + k :]
    source = x.reshape(batch.numel(), x.shape[b : b + k].numel(), rest.numel())
    found = source.gather(1, flat[:, :, None].expand(-1, -1, rest.numel()))
    return found.reshape(*index.shape[:-1], *rest)


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("ScatterElements", types="moves")
def scatter_elements(call: Call, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """X with elements at places along an axis set, or combined."""
    axis = int(call.get("axis", 0)) % x.ndim
    index = _from_start(index, x.shape[axis])
    how = call.get("reduction", "none")
    if how == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCTIONS[how])


@operator("ScatterND", types="moves")
def scatter_nd(call: Call, x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
    """X with slices at places over several axes set, or combined."""
    k = index.shape[-1]
    rest = x.shape[k:]
    flat = _flat_places(index, x.shape[:k]).reshape(-1)
    target = x.reshape(x.shape[:k].numel(), rest.numel())
    rows = updates.reshape(flat.numel(), rest.numel())
    at = flat[:, None].expand(rows.shape)
    how = call.get("reduction", "none")
    found = (
        target.scatter(0, at, rows) if how == "none" else target.scatter_reduce(0, at, rows, _REDUCTIONS[how])
    )
    return found.reshape(x.shape)


@operator("TensorScatter", types="moves")
def tensor_scatter(call: Call, cache: Tensor, update: Tensor, start: Given = None) -> Tensor:
    """A cache with each batch's slices written from a place on, round its end where the mode is circular."""
    axis = int(call.get("axis", -2)) % cache.ndim
    steps = torch.arange(update.shape[axis], device=cache.device)
    first = (
        torch.zeros(cache.shape[0], dtype=torch.int64, device=cache.device) if start is None else start.long()
    )
    at = first[:, None] + steps[None, :]
    if call.get("mode", "linear") == "circular":
        at = at.remainder(cache.shape[axis])
    shape = [1] * cache.ndim
    shape[0], shape[axis] = at.shape
    return cache.scatter(axis, at.reshape(shape).expand(update.shape), update)


@operator("OneHot", known=(1,), types="wide")
def one_hot(call: Call, index: Tensor, values: Tensor) -> Tensor:
    """One value at each place along a new axis, another elsewhere."""
    depth = int(call.known[1][0])
    axis = int(call.get("axis", -1)) % (index.ndim + 1)
    place = index.long().remainder(depth)
    inside = (index >= -depth) & (index < depth)
    hit = along(axis, torch.arange(depth, device=index.device), index.ndim + 1) == place.unsqueeze(axis)
    return torch.where(hit & inside.unsqueeze(axis), values[1], values[0])


@operator("TopK", known=(1,), types="own")
def top(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """The k largest or smallest along an axis and their places; of equal ones the first."""
    axis, k = int(call.get("axis", -1)), call.need(1)[0]
    value = x ^ _LOWEST if call.unsigned else x
    # a stable sort keeps equal ones in their order; topk promises none
    value, place = value.sort(dim=axis, descending=bool(call.get("largest", 1)), stable=True)
    value, place = value.narrow(axis, 0, k), place.narrow(axis, 0, k)
    return (value ^ _LOWEST if call.unsigned else value), place


@operator("MaxUnpool", known=(2,), types="moves")
def unpool(call: Call, x: Tensor, index: Tensor) -> Tensor:
    """Values put back to where MaxPool took them from; zeros elsewhere."""
    kernel = call.attributes["kernel_shape"]
    rank = len(kernel)
    strides, pads = call.get("strides") or [1] * rank, call.get("pads") or [0] * (2 * rank)
    inferred = [
        (n - 1) * s - pads[i] - pads[i + rank] + k
        for i, (n, s, k) in enumerate(zip(x.shape[2:], strides, kernel, strict=True))
    ]
    shape = (call.ints(2) or [*x.shape[:2], *inferred])[2:]
    n, c = x.shape[:2]
    size = 1
    for s in inferred:
        size *= s
    # places count over the whole tensor (n, c, *space) of the inferred size
    local = index.reshape(n, c, -1).long().remainder(size)
    if list(shape) != inferred:  # the same voxel in a larger volume
        moved, left, weight = torch.zeros_like(local), local, 1
        for small, large in zip(reversed(inferred), reversed(shape), strict=True):
            moved, left, weight = moved + left.remainder(small) * weight, left // small, weight * large
        local = moved
    flat = torch.zeros(n, c, int(torch.Size(shape).numel()), dtype=x.dtype, device=x.device)
    return flat.scatter(2, local, x.reshape(n, c, -1)).reshape(n, c, *shape)
