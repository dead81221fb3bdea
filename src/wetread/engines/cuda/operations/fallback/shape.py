"""Operators that move elements: shapes, joins, cuts, pads, orders of axes."""

from __future__ import annotations

import itertools
import math

import torch

from wetread.engines.cuda.operations.fallback.registry import Call, Tensor, operator

F = torch.nn.functional


@operator("Reshape", known=(1,), types="moves")
def reshape(call: Call, x: Tensor) -> Tensor:
    """Another shape; 0 keeps the size of x there, unless allowzero."""
    shape = call.need(1)
    if not call.get("allowzero", 0):
        shape = [x.shape[i] if n == 0 else n for i, n in enumerate(shape)]
    if 0 in shape and -1 in shape:
        shape = [0 if n == -1 else n for n in shape]
    return x.reshape(shape)


@operator("Flatten", types="moves")
def flatten(call: Call, x: Tensor) -> Tensor:
    """Two axes: those before `axis`, and the rest."""
    axis = int(call.get("axis", 1))
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Squeeze", known=(1,), types="moves")
def squeeze(call: Call, x: Tensor) -> Tensor:
    """Without axes of one element."""
    axes = call.ints(1, "axes")
    return x.squeeze() if axes is None else x.squeeze(axes)


@operator("Unsqueeze", known=(1,), types="moves")
def unsqueeze(call: Call, x: Tensor) -> Tensor:
    """With further axes of one element."""
    axes = call.need(1, "axes")
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose", types="moves")
def transpose(call: Call, x: Tensor) -> Tensor:
    """Axes in another order, by default reversed."""
    return x.permute(call.get("perm") or tuple(reversed(range(x.ndim))))


@operator("Expand", known=(1,), types="moves")
def expand(call: Call, x: Tensor) -> Tensor:
    """Repeated along axes of one element."""
    return x.expand(torch.broadcast_shapes(x.shape, call.need(1)))


@operator("Tile", known=(1,), types="moves")
def tile(call: Call, x: Tensor) -> Tensor:
    """Repeated along each axis."""
    return x.repeat(call.need(1))


@operator("Concat", types="moves")
def concat(call: Call, *xs: Tensor) -> Tensor:
    """Joined along an axis."""
    return torch.cat(xs, int(call.attributes["axis"]))


@operator("Split", known=(1,), types="moves")
def split(call: Call, x: Tensor) -> tuple[Tensor, ...]:
    """Cut along an axis, into given sizes or into equal ones of which the last may be smaller."""
    axis = int(call.get("axis", 0))
    sizes = call.ints(1, "split")
    if sizes is None:
        parts = int(call.get("num_outputs", len(call.outputs)))
        each = -(-x.shape[axis] // parts)
        sizes = [max(0, min(each, x.shape[axis] - i * each)) for i in range(parts)]
    return tuple(x.split(sizes, axis))


@operator("Slice", known=(1, 2, 3, 4), types="moves")
def cut(call: Call, x: Tensor) -> Tensor:
    """From start to end by steps, along some axes; steps may be negative."""
    starts, ends = call.need(1), call.need(2)
    axes = call.ints(3) or list(range(len(starts)))
    steps = call.ints(4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        first, last, by = slice(start, end, step).indices(size)
        if by > 0:
            index: list[slice] = [slice(None)] * x.ndim
            index[axis] = slice(first, max(first, last), by)
            x = x[tuple(index)]
        else:
            count = max(0, -((last - first) // -by) if last < first else 0)
            count = len(range(first, last, by))
            at = first + by * torch.arange(count, device=x.device)
            x = x.index_select(axis, at)
    return x


@operator("Pad", known=(1, 2, 3), types="wide")
def pad(call: Call, x: Tensor) -> Tensor:
    """More elements at the ends of axes: constant, reflect, edge or wrap; negative pads cut."""
    pads = call.need(1, "pads")
    axes = [a % x.ndim for a in (call.ints(3) or range(x.ndim))]
    half = len(axes)
    mode = call.get("mode", "constant")
    value = call.known[2][0] if 2 in call.known else call.get("value", 0)
    if mode == "constant":
        widths = [0] * (2 * x.ndim)
        for i, axis in enumerate(axes):
            place = 2 * (x.ndim - 1 - axis)
            widths[place : place + 2] = [pads[i], pads[i + half]]
        return F.pad(x, widths, value=value)
    for i, axis in enumerate(axes):
        at = torch.arange(-pads[i], x.shape[axis] + pads[i + half], device=x.device)
        size = x.shape[axis]
        if mode == "edge":
            at = at.clamp(0, size - 1)
        elif mode == "wrap":
            at = at.remainder(size)
        else:  # reflect
            period = max(2 * (size - 1), 1)
            at = at.remainder(period)
            at = torch.minimum(at, period - at) if size > 1 else torch.zeros_like(at)
        x = x.index_select(axis, at)
    return x


@operator("CenterCropPad", known=(1,), types="moves")
def centre(call: Call, x: Tensor) -> Tensor:
    """Cropped or padded with zeros about the centre."""
    axes = [int(a) % x.ndim for a in (call.get("axes") or range(x.ndim))]
    for axis, size in zip(axes, call.need(1), strict=True):
        more = size - x.shape[axis]
        if more < 0:
            x = x.narrow(axis, -more // 2, size)
        elif more > 0:
            widths = [0] * (2 * x.ndim)
            place = 2 * (x.ndim - 1 - axis)
            widths[place : place + 2] = [more // 2, more - more // 2]
            x = F.pad(x, widths)
    return x


@operator("DepthToSpace", types="moves")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Channels become blocks of voxels: DCR takes blocks from the slower channels, CRD from the faster."""
    n, c, *space = x.shape
    b, rank = int(call.attributes["blocksize"]), len(x.shape) - 2
    blocks = [b] * rank
    left = c // b**rank
    if call.get("mode", "DCR") == "DCR":
        x = x.reshape(n, *blocks, left, *space)
        order = [rank + 1]
        pairs = [(rank + 2 + i, 1 + i) for i in range(rank)]
    else:
        x = x.reshape(n, left, *blocks, *space)
        order = [1]
        pairs = [(rank + 2 + i, 2 + i) for i in range(rank)]
    return x.permute(0, *order, *itertools.chain.from_iterable(pairs)).reshape(
        n, left, *(s * b for s in space)
    )


@operator("SpaceToDepth", types="moves")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """Blocks of voxels become channels, the slower ones (DCR) or the faster (CRD)."""
    n, c, *space = x.shape
    b, rank = int(call.attributes["blocksize"]), len(x.shape) - 2
    x = x.reshape(n, c, *itertools.chain.from_iterable((s // b, b) for s in space))
    inner, outer = [3 + 2 * i for i in range(rank)], [2 + 2 * i for i in range(rank)]
    first = [*inner, 1] if call.get("mode", "DCR") == "DCR" else [1, *inner]
    return x.permute(0, *first, *outer).reshape(n, c * b**rank, *(s // b for s in space))


@operator("Shape", types="moves", note="folded where the engine is built, since shapes are fixed")
def shape_of(call: Call, x: Tensor) -> Tensor:
    """Sizes of axes."""
    sizes = list(x.shape)[slice(call.get("start", 0), call.attributes.get("end"))]
    found = torch.empty(len(sizes), dtype=torch.int64, device=x.device)
    for i, size in enumerate(sizes):
        found[i].fill_(size)
    return found


@operator("Size", types="moves", note="folded where the engine is built, since shapes are fixed")
def size_of(_: Call, x: Tensor) -> Tensor:
    """Number of elements."""
    return torch.full((), x.numel(), dtype=torch.int64, device=x.device)


@operator("ConstantOfShape", known=(0,), types="moves", note="folded where the engine is built")
def constant(call: Call) -> Tensor:
    """One value everywhere."""
    value = call.attributes.get("value")
    number = 0 if value is None else value["value"][0]
    return torch.full(call.need(0), number, dtype=call.dtype(), device=call.device)


@operator("Range", known=(0, 1, 2), types="moves", note="folded where the engine is built")
def arange(call: Call) -> Tensor:
    """From start by steps to before the end."""
    start, end, step = (call.known[i][0] for i in range(3))
    count = max(0, math.ceil((end - start) / step))
    wide = torch.float64 if call.dtype().is_floating_point else torch.int64
    return start + step * torch.arange(count, dtype=wide, device=call.device)


@operator("EyeLike", types="moves")
def eye(call: Call, x: Tensor) -> Tensor:
    """Ones on a diagonal."""
    rows, columns = (torch.arange(n, device=x.device) for n in x.shape)
    return (columns[None, :] - rows[:, None] == int(call.get("k", 0))).to(torch.uint8)


@operator("Trilu", known=(1,), types="moves")
def triangle(call: Call, x: Tensor) -> Tensor:
    """Upper or lower triangle, the rest zero."""
    k = (call.ints(1) or [0])[0]
    rows, columns = (torch.arange(n, device=x.device) for n in x.shape[-2:])
    above = columns[None, :] - rows[:, None]
    return torch.where(above >= k if call.get("upper", 1) else above <= k, x, torch.zeros_like(x))


@operator("ReverseSequence", types="moves")
def reverse(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    """The beginning of each sequence reversed."""
    batch, time = int(call.get("batch_axis", 1)), int(call.get("time_axis", 0))
    moved = x.movedim((batch, time), (0, 1))
    at = torch.arange(moved.shape[1], device=x.device)[None, :]
    lengths = lengths.long()[:, None]
    at = torch.where(at < lengths, lengths - 1 - at, at)
    at = at.reshape(*at.shape, *[1] * (moved.ndim - 2)).expand(moved.shape)
    return moved.gather(1, at).movedim((0, 1), (batch, time))
