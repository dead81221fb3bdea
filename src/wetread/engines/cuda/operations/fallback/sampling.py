"""Resizing in all of ONNX's modes, sampling at given places, deformable convolution."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial

import torch

from wetread.engines.cuda.operations.base import Arrays
from wetread.engines.cuda.operations.fallback.network import window
from wetread.engines.cuda.operations.fallback.registry import Call, Given, Tensor, along, operator
from wetread.engines.cuda.operations.resize import Axis, device_table, interpolate, positions

F = torch.nn.functional


def resize_targets(
    size: Sequence[int],
    axes: Sequence[int],
    scales: Sequence[float] | None,
    sizes: Sequence[int] | None,
    policy: str,
) -> list[tuple[float, int]]:
    """Scale and length of each resized axis.

    Args:
        size: the input's shape.
        axes: that are resized.
        scales, sizes: one of them, for these axes.
        policy: keep_aspect_ratio_policy, which only sizes know.
    """
    if scales:
        return [(float(s), math.floor(size[a] * float(s))) for a, s in zip(axes, scales, strict=True)]
    lengths = [int(s) for s in sizes or ()]
    factors = [n / size[a] for a, n in zip(axes, lengths, strict=True)]
    if policy == "stretch":
        return list(zip(factors, lengths, strict=True))
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [(factor, math.floor(factor * size[a] + 0.5)) for a in axes]


def how_of(call: Call) -> dict[str, object]:
    """The attributes of `operations.resize.Resize` for a node."""
    return {
        "mode": call.get("mode", "nearest"),
        "coordinates": call.get("coordinate_transformation_mode", "half_pixel"),
        "nearest_mode": call.get("nearest_mode", "round_prefer_floor"),
        "cubic_a": float(call.get("cubic_coeff_a", -0.75)),
        "exclude_outside": bool(call.get("exclude_outside", 0)),
        "antialias": bool(call.get("antialias", 0)),
    }


@operator("Resize", known=(1, 2, 3))
def resized(call: Call, x: Tensor) -> Tensor:
    """Interpolated along each axis in turn."""
    axes = [int(a) % x.ndim for a in (call.get("axes") or range(x.ndim))]
    roi = [float(v) for v in call.known.get(1) or ()]
    policy = str(call.get("keep_aspect_ratio_policy", "stretch"))
    targets = resize_targets(x.shape, axes, call.known.get(2), call.known.get(3), policy)
    how, at = how_of(call), Arrays({}, {}, packs=call.packs)
    crops = how["coordinates"] == "tf_crop_and_resize"
    tables, outside = [], torch.zeros([1] * x.ndim, dtype=torch.bool, device=x.device)
    for i, (a, (scale, out)) in enumerate(zip(axes, targets, strict=True)):
        crop = (roi[i], roi[i + len(axes)]) if crops and roi else (0.0, 1.0)
        axis = Axis(x.shape[a], out, scale, crop)
        if axis.same:
            continue
        tables.append((a, *device_table(at, axis, how, x.device)))
        if crops:
            beyond = call.packs.get(("beyond", axis, str(x.device)), partial(_beyond, axis, x.device))
            outside = outside | along(a, beyond, x.ndim)
    y = interpolate(x, tables)
    return torch.where(outside, float(call.get("extrapolation_value", 0.0)), y) if crops else y


def _beyond(axis: Axis, device: torch.device) -> Tensor:
    at = positions(axis, "tf_crop_and_resize")
    return ((at < 0) | (at > axis.size - 1)).to(device)


@operator("AffineGrid", known=(1,))
def affine_grid(call: Call, theta: Tensor) -> Tensor:
    """Places that an affine map gives each voxel, x first, from -1 to 1."""
    size = call.need(1)
    axes = []
    for n in size[2:]:
        at = torch.arange(n, dtype=theta.dtype, device=theta.device)
        axes.append(at * 2 / max(n - 1, 1) - 1 if call.get("align_corners", 0) else (at * 2 + 1) / n - 1)
    grids = torch.meshgrid(*axes, indexing="ij")
    places = torch.stack([*reversed(grids), torch.ones_like(grids[0])], -1)
    found = places.reshape(1, -1, len(axes) + 1) @ theta.mT
    return found.reshape(size[0], *size[2:], len(axes))


def _reflected(at: Tensor, low: float, high: float) -> Tensor:
    """Places folded back between two bounds."""
    span = high - low
    if span <= 0:
        return torch.zeros_like(at)
    at = (at - low).abs().remainder(2 * span)
    return torch.where(at > span, 2 * span - at, at) + low


def _on_grid(at: Tensor, size: int, padding: str, corners: bool) -> Tensor:
    """Places inside the volume as the padding mode has it."""
    if padding == "border":
        return at.clamp(0, size - 1)
    if padding == "reflection":
        bounds = (0.0, size - 1.0) if corners else (-0.5, size - 0.5)
        return _reflected(at, *bounds).clamp(0, size - 1)
    return at


def _cubic(t: Tensor) -> list[Tensor]:
    """Weights of the four neighbours at distance t from the second (Keys, a = -0.75)."""
    a, found = -0.75, []
    for d in (t + 1, t, 1 - t, 2 - t):
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        found.append(torch.where(d <= 1, near, far))
    return found


def sampled(
    x: Tensor, places: Sequence[Tensor], mode: str, padding: str = "zeros", corners: bool = True
) -> Tensor:
    """Values of x (N, C, *space) at places (N, *out) along each spatial axis, in voxels: (N, C, *out)."""
    n, c, *space = x.shape
    flat = x.reshape(n, c, -1)
    terms: list[list[tuple[Tensor, Tensor]]] = []
    for at, size in zip(places, space, strict=True):
        if mode == "cubic":
            base = at.floor()
            neighbours = [(base + k - 1, w) for k, w in enumerate(_cubic(at - base))]
        else:
            inside = _on_grid(at, size, padding, corners)
            if mode == "nearest":
                neighbours = [(inside.round(), torch.ones_like(at))]
            else:
                base = inside.floor()
                neighbours = [(base, 1 - (inside - base)), (base + 1, inside - base)]
        terms.append(neighbours)
    total = torch.zeros(n, c, *places[0].shape[1:], dtype=x.dtype, device=x.device)
    for corner in itertools.product(*terms):
        weight = torch.ones_like(places[0])
        index = torch.zeros_like(places[0], dtype=torch.int64)
        for (place, w), size in zip(corner, space, strict=True):
            at = _on_grid(place, size, padding, corners) if mode == "cubic" else place
            weight = weight * w * ((at >= 0) & (at <= size - 1))
            index = index * size + at.clamp(0, size - 1).long()
        value = flat.gather(2, index.reshape(n, 1, -1).expand(-1, c, -1)).reshape(total.shape)
        total = total + value * weight.unsqueeze(1)
    return total


@operator("GridSample")
def grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    """Values at places given from -1 to 1, x first."""
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(
        call.get("mode", "linear"), call.get("mode", "linear")
    )
    corners, padding = bool(call.get("align_corners", 0)), str(call.get("padding_mode", "zeros"))
    if x.ndim == 4 or (x.ndim == 5 and mode != "cubic"):
        names = {"linear": "bilinear", "cubic": "bicubic", "nearest": "nearest"}
        return F.grid_sample(x, grid.to(x.dtype), names[str(mode)], padding, corners)
    places = []
    for i, size in enumerate(x.shape[2:]):
        at = grid[..., x.ndim - 3 - i].to(x.dtype)
        places.append((at + 1) / 2 * (size - 1) if corners else ((at + 1) * size - 1) / 2)
    return sampled(x, places, str(mode), padding, corners)


@operator("DeformConv")
def deformable(
    call: Call, x: Tensor, w: Tensor, offset: Tensor, bias: Given = None, mask: Given = None
) -> Tensor:
    """Convolution whose taps are moved by offsets and weighted by a mask."""
    kernel = list(w.shape[2:])
    rank, taps = len(kernel), math.prod(kernel)
    strides, dilations, pads = window(call.attributes, x.shape, kernel)
    groups, parts = int(call.get("group", 1)), int(call.get("offset_group", 1))
    n, out = x.shape[0], list(offset.shape[2:])
    offset = offset.reshape(n, parts, taps, rank, *out)
    columns = []
    for part, each in enumerate(x.chunk(parts, 1)):
        rows = []
        for number, at in enumerate(itertools.product(*(range(k) for k in kernel))):
            places = []
            for i in range(rank):
                base = (
                    torch.arange(out[i], device=x.device, dtype=x.dtype) * strides[i]
                    - pads[i]
                    + at[i] * dilations[i]
                )
                places.append(along(i + 1, base, rank + 1) + offset[:, part, number, i])
            value = sampled(each, places, "linear")
            if mask is not None:
                value = value * mask.reshape(n, parts, taps, *out)[:, part, number].unsqueeze(1)
            rows.append(value)
        columns.append(torch.stack(rows, 2))  # (N, C of the part, taps, *out)
    whole = torch.cat(columns, 1).reshape(n, groups, -1, math.prod(out))
    y = torch.einsum("gok,ngkv->ngov", w.reshape(groups, w.shape[0] // groups, -1), whole).reshape(
        n, -1, *out
    )
    return y if bias is None else y + along(1, bias, y.ndim)
