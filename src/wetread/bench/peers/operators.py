"""ONNX operators in PyTorch, one function for each; arrays are (n, channels, *spatial).

Each takes the input values (None where an optional one is not given) and the attributes, and returns a tensor
or a tuple of them. Definitions: the operators' pages of the ONNX standard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as nn

Tensor = Any
Values = Sequence[Tensor]
Attributes = Mapping[str, Any]
Function = Callable[[Values, Attributes], Any]


class UnknownFormError(ValueError):
    """An operator is used in a form that is not translated."""


def ints(value: Tensor) -> list[int]:
    """A small integer tensor as Python numbers."""
    return [int(item) for item in value.reshape(-1).tolist()]


def _optional(x: Values, index: int) -> Tensor:
    return x[index] if len(x) > index else None


def _padded(x: Tensor, a: Attributes, value: float = 0.0) -> tuple[Tensor, list[int]]:
    """The input and the symmetric pads left for the operator; asymmetric ones are applied here."""
    if a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnknownFormError("auto_pad")
    rank = x.ndim - 2
    pads = a.get("pads", [0] * (2 * rank)) if a.get("auto_pad") != "VALID" else [0] * (2 * rank)
    begin, end = list(pads[:rank]), list(pads[rank:])
    if begin == end:
        return x, begin
    flat = [n for pair in reversed(list(zip(begin, end, strict=True))) for n in pair]
    return nn.pad(x, flat, value=value), [0] * rank


def _conv(x: Values, a: Attributes) -> Tensor:
    image, pads = _padded(x[0], a)
    run = (nn.conv1d, nn.conv2d, nn.conv3d)[image.ndim - 3]
    return run(
        image, x[1], _optional(x, 2), a.get("strides", 1), pads, a.get("dilations", 1), a.get("group", 1)
    )


def _conv_transpose(x: Values, a: Attributes) -> Tensor:
    rank = x[0].ndim - 2
    pads = a.get("pads", [0] * (2 * rank))
    if list(pads[:rank]) != list(pads[rank:]) or "output_shape" in a:
        raise UnknownFormError("asymmetric pads or output_shape")
    run = (nn.conv_transpose1d, nn.conv_transpose2d, nn.conv_transpose3d)[rank - 1]
    strides, extra = a.get("strides", 1), a.get("output_padding", 0)
    return run(
        x[0], x[1], _optional(x, 2), strides, pads[:rank], extra, a.get("group", 1), a.get("dilations", 1)
    )


def _pool(kind: str) -> Function:
    def run(x: Values, a: Attributes) -> Tensor:
        kernel, strides = a["kernel_shape"], a.get("strides", [1] * len(a["kernel_shape"]))
        rank, ceil = len(kernel) - 1, bool(a.get("ceil_mode", 0))
        if kind == "max":
            image, pads = _padded(x[0], a, -float("inf"))
            pool = (nn.max_pool1d, nn.max_pool2d, nn.max_pool3d)[rank]
            return pool(image, kernel, strides, pads, a.get("dilations", 1), ceil)
        image, pads = _padded(x[0], a)
        if any(pads) and image is not x[0]:
            raise UnknownFormError("asymmetric pads")
        mean = (nn.avg_pool1d, nn.avg_pool2d, nn.avg_pool3d)[rank]
        return mean(image, kernel, strides, pads, ceil, bool(a.get("count_include_pad", 0)))

    return run


def _group_norm(x: Values, a: Attributes) -> Tensor:
    groups, channels = a["num_groups"], x[0].shape[1]
    scale, bias = x[1], x[2]
    if scale.shape[0] != channels:  # opset 18: one for each group
        scale, bias = (v.repeat_interleave(channels // groups) for v in (scale, bias))
    return nn.group_norm(x[0], groups, scale, bias, a.get("epsilon", 1e-5))


def _layer_norm(x: Values, a: Attributes) -> Tensor:
    axis = a.get("axis", -1) % x[0].ndim
    return nn.layer_norm(x[0], x[0].shape[axis:], x[1], _optional(x, 2), a.get("epsilon", 1e-5))


def _prelu(x: Values, a: Attributes) -> Tensor:
    return torch.where(x[0] < 0, x[0] * x[1], x[0])


def _resize(x: Values, a: Attributes) -> Tensor:
    mode, how = a.get("mode", "nearest"), a.get("coordinate_transformation_mode", "half_pixel")
    sizes, scales = _optional(x, 3), _optional(x, 2)
    if sizes is not None and sizes.numel():
        size = ints(sizes)[2:]
    else:
        size = [int(n * float(s)) for n, s in zip(x[0].shape[2:], scales.tolist()[2:], strict=True)]
    if mode == "nearest":
        exact = how == "half_pixel" and a.get("nearest_mode", "round_prefer_floor") == "round_prefer_floor"
        whole = all(n % m == 0 for n, m in zip(size, x[0].shape[2:], strict=True))
        if not whole and not (how == "asymmetric" and a.get("nearest_mode") == "floor"):
            raise UnknownFormError(f"nearest with {how}")
        return nn.interpolate(x[0], size, mode="nearest-exact" if exact else "nearest")
    if mode != "linear" or how not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise UnknownFormError(f"{mode} with {how}")
    name = ("linear", "bilinear", "trilinear")[x[0].ndim - 3]
    return nn.interpolate(x[0], size, mode=name, align_corners=how == "align_corners")


def _gemm(x: Values, a: Attributes) -> Tensor:
    left = x[0].T if a.get("transA") else x[0]
    right = x[1].T if a.get("transB") else x[1]
    result = left @ right
    result = result * a["alpha"] if a.get("alpha", 1.0) != 1.0 else result
    extra = _optional(x, 2)
    return result if extra is None else result + a.get("beta", 1.0) * extra


def _reshape(x: Values, a: Attributes) -> Tensor:
    sizes = ints(x[1])
    if not a.get("allowzero"):
        sizes = [x[0].shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    return x[0].reshape(sizes)


def _axes(x: Values, a: Attributes, index: int = 1) -> list[int] | None:
    given = _optional(x, index)
    return ints(given) if given is not None else a.get("axes")


def _squeeze(x: Values, a: Attributes) -> Tensor:
    axes = _axes(x, a)
    return x[0].squeeze() if axes is None else x[0].squeeze(tuple(axes))


def _unsqueeze(x: Values, a: Attributes) -> Tensor:
    axes, rank = _axes(x, a) or [], x[0].ndim
    result = x[0]
    for axis in sorted(n % (rank + len(axes)) for n in axes):
        result = result.unsqueeze(axis)
    return result


def _flatten(x: Values, a: Attributes) -> Tensor:
    axis = a.get("axis", 1)
    rows = 1
    for size in x[0].shape[:axis]:
        rows *= size
    return x[0].reshape(rows, -1)


def _slice(x: Values, a: Attributes) -> Tensor:
    starts, ends = ints(x[1]), ints(x[2])
    axes = _axes(x, a, 3) or list(range(len(starts)))
    steps = ints(x[4]) if len(x) > 4 and x[4] is not None else [1] * len(starts)
    index = [slice(None)] * x[0].ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise UnknownFormError("a slice that runs backwards")
        index[axis] = slice(start, min(end, 2**62), step)
    return x[0][tuple(index)]


def _split(x: Values, a: Attributes) -> Any:
    axis, given = a.get("axis", 0), _optional(x, 1)
    if given is None:
        return torch.chunk(x[0], a["num_outputs"], axis)
    return torch.split(x[0], ints(given), axis)


def _pad(x: Values, a: Attributes) -> Tensor:
    if len(x) > 3 and x[3] is not None:
        raise UnknownFormError("pads of named axes")
    pads, rank = ints(x[1]), x[0].ndim
    flat = [n for axis in reversed(range(rank)) for n in (pads[axis], pads[axis + rank])]
    mode = {"constant": "constant", "edge": "replicate", "reflect": "reflect"}[a.get("mode", "constant")]
    if mode != "constant":
        return nn.pad(x[0], flat[: 2 * (rank - 2)], mode=mode)
    return nn.pad(x[0], flat, value=float(x[2]) if len(x) > 2 and x[2] is not None else 0.0)


def _gather(x: Values, a: Attributes) -> Tensor:
    axis = a.get("axis", 0) % x[0].ndim
    taken = x[0].index_select(axis, x[1].reshape(-1) % x[0].shape[axis])
    return taken.reshape(*x[0].shape[:axis], *x[1].shape, *x[0].shape[axis + 1 :])


def _reduce(run: Callable[..., Tensor]) -> Function:
    def reduced(x: Values, a: Attributes) -> Tensor:
        axes = _axes(x, a)
        return run(x[0], list(range(x[0].ndim)) if axes is None else axes, bool(a.get("keepdims", 1)))

    return reduced


def _clip(x: Values, a: Attributes) -> Tensor:
    return torch.clamp(x[0], _optional(x, 1), _optional(x, 2))


def _softmax(x: Values, a: Attributes) -> Tensor:
    return torch.softmax(x[0], a.get("axis", -1))


_UNARY = {
    "Relu": nn.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Exp": torch.exp, "Log": torch.log,
    "Sqrt": torch.sqrt, "Erf": torch.erf, "Neg": torch.neg, "Abs": torch.abs, "Softplus": nn.softplus,
    "Mish": nn.mish, "Reciprocal": torch.reciprocal, "HardSwish": nn.hardswish, "Identity": lambda x: x,
    "Dropout": lambda x: x, "Floor": torch.floor, "Shape": lambda x: torch.tensor(x.shape),
}  # fmt: skip
_BINARY = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Pow": torch.pow, "MatMul": torch.matmul,
    "Div": lambda p, q: p / q if p.is_floating_point() else torch.div(p, q, rounding_mode="trunc"),
    "Max": torch.maximum, "Min": torch.minimum,
    "Expand": lambda p, q: p.expand(torch.broadcast_shapes(p.shape, ints(q))),
}  # fmt: skip


def _unary(run: Callable[[Tensor], Tensor]) -> Function:
    return lambda x, a: run(x[0])


def _binary(run: Callable[[Tensor, Tensor], Tensor]) -> Function:
    def both(x: Values, a: Attributes) -> Tensor:
        if len(x) != 2:
            raise UnknownFormError(f"{len(x)} inputs")
        return run(x[0], x[1])

    return both


def _cast(x: Values, a: Attributes) -> Tensor:
    if a["to"] not in _TYPES:
        raise UnknownFormError(f"element type {a['to']}")
    return x[0].to(_TYPES[a["to"]])


_TYPES = {
    1: torch.float32,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
}
"""ONNX's numbers of element types (TensorProto.DataType)."""

FUNCTIONS: dict[str, Function] = {
    **{name: _unary(run) for name, run in _UNARY.items()},
    **{name: _binary(run) for name, run in _BINARY.items()},
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _pool("max"),
    "AveragePool": _pool("average"),
    "GlobalAveragePool": lambda x, a: x[0].mean(list(range(2, x[0].ndim)), keepdim=True),
    "BatchNormalization": lambda x, a: nn.batch_norm(
        x[0], x[3], x[4], x[1], x[2], eps=a.get("epsilon", 1e-5)
    ),
    "InstanceNormalization": lambda x, a: nn.instance_norm(
        x[0], weight=x[1], bias=x[2], eps=a.get("epsilon", 1e-5)
    ),
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda x, a: nn.leaky_relu(x[0], a.get("alpha", 0.01)),
    "Elu": lambda x, a: nn.elu(x[0], a.get("alpha", 1.0)),
    "Gelu": lambda x, a: nn.gelu(x[0], approximate=a.get("approximate", "none")),
    "PRelu": _prelu,
    "Softmax": _softmax,
    "Clip": _clip,
    "Cast": _cast,
    "Concat": lambda x, a: torch.cat(list(x), a["axis"]),
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Gather": _gather,
    "Transpose": lambda x, a: x[0].permute(a.get("perm", list(reversed(range(x[0].ndim))))),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Resize": _resize,
    "Gemm": _gemm,
    "Where": lambda x, a: torch.where(x[0].bool(), x[1], x[2]),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
}
