"""Convolutions, pooling and norms of any rank: what networks have besides the native three-dimensional ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from wetread.engines.cuda.operations.fallback.registry import Call, Given, Tensor, along, operator
from wetread.engines.cuda.operations.pool import average_pool, max_pool

F = torch.nn.functional
Ints = Sequence[int]


def window(
    attributes: Mapping[str, Any], shape: Ints, kernel: Ints
) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and explicit pads (begins, ends) of a convolution or pooling of a tensor of some shape."""
    rank = len(shape) - 2
    strides = [int(v) for v in attributes.get("strides") or [1] * rank]
    dilations = [int(v) for v in attributes.get("dilations") or [1] * rank]
    auto = attributes.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        begin, end = [], []
        for n, k, s, d in zip(shape[2:], kernel, strides, dilations, strict=True):
            both = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            small, large = both // 2, both - both // 2
            begin.append(small if auto == "SAME_UPPER" else large)
            end.append(large if auto == "SAME_UPPER" else small)
        return strides, dilations, begin + end
    pads = attributes.get("pads") if auto == "NOTSET" else None
    return strides, dilations, [int(v) for v in pads or [0] * (2 * rank)]


def padded(x: Tensor, pads: Ints) -> Tensor:
    """X with zeros around its spatial axes."""
    half = len(pads) // 2
    widths = [w for i in reversed(range(half)) for w in (pads[i], pads[i + half])]
    return F.pad(x, widths) if any(widths) else x


def convolve(call: Call, x: Tensor, w: Tensor, bias: Given) -> Tensor:
    """Convolution over 1 to 3 spatial axes."""
    strides, dilations, pads = window(call.attributes, x.shape, w.shape[2:])
    run = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}.get(x.ndim - 2)
    if run is None:
        raise call.refused(f"its input has {x.ndim - 2} spatial axes")
    half = len(pads) // 2
    groups = int(call.get("group", 1))
    if pads[:half] == pads[half:]:
        return run(x, w, bias, strides, pads[:half], dilations, groups)
    return run(padded(x, pads), w, bias, strides, 0, dilations, groups)


@operator("Conv", types="own")
def conv(call: Call, x: Tensor, w: Tensor, bias: Given = None) -> Tensor:
    """Convolution."""
    return convolve(call, x, w.to(x.dtype), None if bias is None else bias.to(x.dtype))


@operator("ConvTranspose", types="own")
def conv_transpose(call: Call, x: Tensor, w: Tensor, bias: Given = None) -> Tensor:
    """Transposed convolution."""
    rank = x.ndim - 2
    strides = [int(v) for v in call.get("strides") or [1] * rank]
    dilations = [int(v) for v in call.get("dilations") or [1] * rank]
    extra = [int(v) for v in call.get("output_padding") or [0] * rank]
    run = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}.get(rank)
    if run is None:
        raise call.refused(f"its input has {rank} spatial axes")
    w, bias = w.to(x.dtype), None if bias is None else bias.to(x.dtype)
    found = run(x, w, None, strides, 0, 0, int(call.get("group", 1)), dilations)
    full = [n + e for n, e in zip(found.shape[2:], extra, strict=True)]
    pads = _transposed_pads(call, x.shape[2:], strides, full)
    ends = [e - pads[i + rank] for i, e in enumerate(extra)]
    found = padded(found, [*(-p for p in pads[:rank]), *ends])
    return found if bias is None else found + along(1, bias, found.ndim)


def _transposed_pads(call: Call, size: Ints, strides: Ints, full: Ints) -> list[int]:
    rank, shape = len(size), call.get("output_shape")
    auto = call.get("auto_pad", "NOTSET")
    if shape is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        shape = [n * s for n, s in zip(size, strides, strict=True)]
    if shape is None:
        return [int(v) for v in call.get("pads") or [0] * (2 * rank)]
    both = [f - int(s) for f, s in zip(full, shape[-rank:], strict=True)]
    small, large = [b // 2 for b in both], [b - b // 2 for b in both]
    return small + large if auto == "SAME_UPPER" else large + small


@operator("ConvInteger", "QLinearConv", types="wide")
def conv_integer(call: Call, *inputs: Given) -> Tensor:
    """Convolution of 8-bit integers, exact; QLinearConv rounds the result to eight bits again."""
    if call.operator == "ConvInteger":
        x, w, x_zero, w_zero = (*inputs, None, None)[:4]
        scales: tuple[Tensor, ...] = ()
    else:
        x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = inputs[:8]
        scales = (x_scale, w_scale, y_scale)
    assert x is not None and w is not None
    # float64 holds every sum of such products exactly
    x, w = x.double(), w.double()
    if x_zero is not None:
        x = x - x_zero.double()
    if w_zero is not None:
        w = w - (along(0, w_zero.double(), w.ndim) if w_zero.numel() > 1 else w_zero.double().reshape(()))
    y = convolve(call, x, w, None)
    if not scales:
        return y.to(torch.int32)
    bias = inputs[8] if len(inputs) > 8 else None
    if bias is not None:
        y = y + along(1, bias.double(), y.ndim)
    factor = scales[0].double() * scales[1].double() / scales[2].double()
    y = (y * (along(1, factor, y.ndim) if factor.numel() > 1 else factor.reshape(()))).round()
    assert y_zero is not None
    limits = torch.iinfo(call.dtype())
    return (y + y_zero.double()).clamp(limits.min, limits.max).to(call.dtype())


@operator("CausalConvWithState", types="wide")
def causal(call: Call, x: Tensor, w: Tensor, bias: Given = None, past: Given = None) -> tuple[Tensor, Tensor]:
    """Depthwise convolution over what came before, and the end of it for the next call."""
    reach = w.shape[-1] - 1
    before = torch.zeros(*x.shape[:2], reach, dtype=x.dtype, device=x.device) if past is None else past
    whole = torch.cat([before, x], -1)
    y = F.conv1d(whole, w.to(x.dtype), None if bias is None else bias.to(x.dtype), groups=x.shape[1])
    if call.get("activation", "none") in ("silu", "swish"):
        y = F.silu(y)
    return y, whole.narrow(-1, whole.shape[-1] - reach, reach)


def pooled_sizes(x: Tensor, call: Call, kernel: Ints) -> tuple[list[int], list[int], list[int], list[int]]:
    """Output sizes, strides, dilations and pads of a pooling."""
    strides, dilations, pads = window(call.attributes, x.shape, kernel)
    rank, out = x.ndim - 2, []
    for i in range(rank):
        span = x.shape[i + 2] + pads[i] + pads[i + rank] - (kernel[i] - 1) * dilations[i] - 1
        n = (-(-span // strides[i]) if call.get("ceil_mode", 0) else span // strides[i]) + 1
        if call.get("ceil_mode", 0) and (n - 1) * strides[i] >= x.shape[i + 2] + pads[i]:
            n -= 1  # a window that would start in the padding after the end is dropped
        out.append(n)
    return out, strides, dilations, pads


@operator("MaxPool", types="own")
def max_pooled(call: Call, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Largest of each window, and the place that it has in the whole tensor."""
    kernel = [int(k) for k in call.attributes["kernel_shape"]]
    out, strides, dilations, pads = pooled_sizes(x, call, kernel)
    y = max_pool(x, out, kernel, strides, dilations, pads)
    return y, _places(call, x, y, kernel) if call.wants(1) else None


def _places(call: Call, x: Tensor, y: Tensor, kernel: Ints) -> Tensor:
    """Flat place of each window's first largest voxel."""
    out, strides, dilations, pads = pooled_sizes(x, call, kernel)
    space = list(x.shape[2:])
    found = torch.full(y.shape, -1, dtype=torch.int64, device=x.device)
    for at in itertools.product(*(range(k) for k in kernel)):
        place = torch.zeros([1] * len(space), dtype=torch.int64, device=x.device)
        inside = torch.ones([1] * len(space), dtype=torch.bool, device=x.device)
        for i, size in enumerate(space):
            p = torch.arange(out[i], device=x.device) * strides[i] - pads[i] + at[i] * dilations[i]
            p = along(i, p, len(space))
            inside = inside & (p >= 0) & (p < size)
            # column-major order counts places with the first spatial axis fastest
            weight = math.prod(space[:i]) if call.get("storage_order", 0) else math.prod(space[i + 1 :])
            place = place + p.clamp(0, size - 1) * weight
        order = [math.prod(space[i + 1 :]) for i in range(len(space))]
        flat = torch.zeros([1] * len(space), dtype=torch.int64, device=x.device)
        for i, size in enumerate(space):
            p = along(
                i,
                (torch.arange(out[i], device=x.device) * strides[i] - pads[i] + at[i] * dilations[i]),
                len(space),
            )
            flat = flat + p.clamp(0, size - 1) * order[i]
        value = x.flatten(2).index_select(2, flat.expand(out).reshape(-1)).reshape(y.shape)
        hit = (value == y) & inside & (found < 0)
        found = torch.where(hit, place.expand(out), found)
    volumes = torch.arange(x.shape[0] * x.shape[1], device=x.device) * math.prod(space)
    return found + volumes.reshape(*x.shape[:2], *[1] * len(space))


@operator("AveragePool")
def average_pooled(call: Call, x: Tensor) -> Tensor:
    """Mean of each window."""
    kernel = [int(k) for k in call.attributes["kernel_shape"]]
    out, strides, dilations, pads = pooled_sizes(x, call, kernel)
    return average_pool(x, out, kernel, strides, dilations, pads, bool(call.get("count_include_pad", 0)))


@operator("LpPool")
def lp_pooled(call: Call, x: Tensor) -> Tensor:
    """Norm of each window."""
    kernel = [int(k) for k in call.attributes["kernel_shape"]]
    out, strides, dilations, pads = pooled_sizes(x, call, kernel)
    p = int(call.get("p", 2))
    # with every voxel counted, outside zero, a mean is the sum over the kernel's size
    means = average_pool(padded(x.abs() ** p, pads), out, kernel, strides, dilations, [0] * len(pads), True)
    return (means * math.prod(kernel)) ** (1 / p)


@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pooled(call: Call, x: Tensor) -> Tensor:
    """Mean or largest of each channel."""
    space = tuple(range(2, x.ndim))
    if call.operator == "GlobalMaxPool":
        return x.amax(space, keepdim=True)
    return x.mean(space, keepdim=True)


@operator("BatchNormalization")
def batch_norm(
    call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> tuple[Tensor, ...]:
    """Normalised by running statistics, or in training mode by those of x."""
    eps, momentum = float(call.get("epsilon", 1e-5)), float(call.get("momentum", 0.9))
    running = (mean, var)
    if call.get("training_mode", 0):
        axes = (0, *range(2, x.ndim))
        own = (x.mean(axes), x.var(axes, unbiased=False))
        running = (mean * momentum + own[0] * (1 - momentum), var * momentum + own[1] * (1 - momentum))
        mean, var = own
    mean, var, scale, bias = (along(1, v.to(x.dtype), x.ndim) for v in (mean, var, scale, bias))
    return (x - mean) / (var + eps).sqrt() * scale + bias, *running


def _standard(x: Tensor, axes: Ints, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """X with mean 0 and variance 1 over axes; the mean; one over the standard deviation."""
    mean = x.mean(tuple(axes), keepdim=True)
    inverse = 1 / ((x - mean).square().mean(tuple(axes), keepdim=True) + eps).sqrt()
    return (x - mean) * inverse, mean, inverse


@operator("InstanceNormalization", "GroupNormalization")
def group_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalised over each channel, or group of channels."""
    c = x.shape[1]
    groups = int(call.get("num_groups", c)) if call.operator == "GroupNormalization" else c
    y = _standard(x.reshape(x.shape[0], groups, -1), [2], float(call.get("epsilon", 1e-5)))[0].reshape(
        x.shape
    )
    # operator set 18 has one scale a group, later ones one a channel
    scale, bias = (v.repeat_interleave(c // groups) if v.numel() != c else v for v in (scale, bias))
    return y * along(1, scale.to(x.dtype), x.ndim) + along(1, bias.to(x.dtype), x.ndim)


@operator("LayerNormalization")
def layer_norm(
    call: Call, x: Tensor, scale: Given = None, bias: Given = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised over the last axes; the mean and one over the standard deviation."""
    first = int(call.get("axis", -1)) % x.ndim
    y, mean, inverse = _standard(x, range(first, x.ndim), float(call.get("epsilon", 1e-5)))
    y = y if scale is None else y * scale.to(x.dtype)
    return y if bias is None else y + bias.to(x.dtype), mean, inverse


@operator("RMSNormalization")
def rms_norm(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """Over the root of the mean of squares of the last axes."""
    axes = tuple(range(int(call.get("axis", -1)) % x.ndim, x.ndim))
    return (
        x
        / (x.square().mean(axes, keepdim=True) + float(call.get("epsilon", 1e-5))).sqrt()
        * scale.to(x.dtype)
    )


@operator("Col2Im", known=(1, 2))
def columns_to_image(call: Call, x: Tensor) -> Tensor:
    """Columns of blocks added back into an image."""
    image, block = call.need(1), call.need(2)
    rank = len(image)
    strides = [int(v) for v in call.get("strides") or [1] * rank]
    dilations = [int(v) for v in call.get("dilations") or [1] * rank]
    pads = [int(v) for v in call.get("pads") or [0] * (2 * rank)]
    full = [n + pads[i] + pads[i + rank] for i, n in enumerate(image)]
    counts = [
        (f - d * (b - 1) - 1) // s + 1 for f, d, b, s in zip(full, dilations, block, strides, strict=True)
    ]
    parts = x.reshape(x.shape[0], -1, math.prod(block), *counts)
    y = torch.zeros(x.shape[0], parts.shape[1], *full, dtype=x.dtype, device=x.device)
    for number, at in enumerate(itertools.product(*(range(b) for b in block))):
        index = [
            slice(a * d, a * d + (n - 1) * s + 1, s)
            for a, d, n, s in zip(at, dilations, counts, strides, strict=True)
        ]
        y[(..., *index)] += parts[:, :, number]
    return y[(..., *(slice(pads[i], full[i] - pads[i + rank]) for i in range(rank)))]
