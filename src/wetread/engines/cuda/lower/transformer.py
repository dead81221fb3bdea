"""Handlers of linear layers, LayerNorm, softmax and attention.

Patch embeddings (convolutions whose stride is their kernel) are linear layers on views. Attention in windows of a map
is lowered as a whole, see `windows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.engines.cuda.lower import convolutions
from wetread.engines.cuda.lower.linear import (
    Left,
    Tail,
    left_of,
    linear,
    rounded,
    rounding_of,
    sole_reader,
    tail_of,
)
from wetread.engines.cuda.lower.lowering import Lowering, handles
from wetread.engines.cuda.program import channels_last, row_major
from wetread.graph.plain import Operation


@dataclass(frozen=True)
class Core:
    """What a call of attention adds to its scores.

    Attributes:
        scale: of the scores.
        bias: (1 or B, 1 or heads, Tq, Tk).
        regions: (windows, T), see `operations.attention`.
        mask: (windows, Tq, Tk), where it is no matter of regions.
        apart: added between regions.
    """

    scale: float
    bias: NDArray[Any] | None = None
    regions: NDArray[Any] | None = None
    mask: NDArray[Any] | None = None
    apart: float = 0.0

    @classmethod
    def of(cls, low: Lowering, node: Operation) -> Core | None:
        """From a call; None where scale, bias or mask are computed."""
        scale = low.scalar(node.inputs[3])
        bias = low.constant(node.inputs[4]) if len(node.inputs) > 4 else None
        mask = low.constant(node.inputs[5]) if len(node.inputs) > 5 else None
        given = node.inputs[4:6]
        if scale is None or any(low.constant(name) is None for name in given):
            return None
        if mask is None:
            return cls(scale, bias)
        mask = mask.reshape(-1, *mask.shape[-2:])
        found = regions_of(mask)
        if found is None:
            return cls(scale, bias, mask=mask)
        return cls(scale, bias, regions=found[0], apart=found[1])

    def weights(self, low: Lowering, name: str, dtype: str) -> dict[str, str]:
        """Adds bias, regions and mask as weights; their names by role."""
        found = {}
        if self.bias is not None:
            bias = self.bias.reshape((1,) * (4 - self.bias.ndim) + self.bias.shape)
            found["bias"] = low.weight(f"{name}/bias", bias, dtype)
        if self.regions is not None:
            found["regions"] = low.weight(f"{name}/regions", self.regions)
        if self.mask is not None:
            found["mask"] = low.weight(f"{name}/mask", self.mask, dtype)
        return found


def regions_of(mask: NDArray[Any]) -> tuple[NDArray[np.int32], float] | None:
    """Regions (windows, T) of a mask that is 0 inside and one value between them; that value.

    Args:
        mask: (windows, T, T).
    """
    if mask.shape[1] != mask.shape[2]:
        return None
    open_ = mask == 0
    first = open_.argmax(-1).astype(np.int32)  # the first token of its region
    if not np.array_equal(open_, first[:, :, None] == first[:, None, :]):
        return None
    apart = float(mask.min())
    if not np.array_equal(mask, np.where(open_, 0, mask.dtype.type(apart))):
        return None
    return first, apart


@handles("MatMul")
def matmul(low: Lowering, node: Operation) -> None:
    """A linear layer where the right side is a constant matrix; else a product of tensors."""
    a, b = node.inputs
    weight = low.constant(b)
    rank = len(low.shape(a))
    if weight is not None and low.constant(a) is None and _is_matrix(weight) and rank >= max(2, weight.ndim):
        tail = tail_of(low, node.outputs[0])
        y = _declare(low, node, tail)
        linear(low, node, left_of(low, a), weight.reshape(weight.shape[-2:]), tail, y)
        return
    if min(len(low.shape(a)), len(low.shape(b))) < 2:
        low.fallback(node)
        return
    low.step("matmul", node, {"a": low.value(a), "b": low.value(b)}, {"y": low.output(node)},
             {"contract": 1, **rounded(low)})  # fmt: skip


def _is_matrix(array: NDArray[Any]) -> bool:
    return array.ndim >= 2 and array.size == array.shape[-1] * array.shape[-2]


def _declare(low: Lowering, node: Operation, tail: Tail) -> str:
    """The row-major tensor of what the last node of a tail gives."""
    last = tail.nodes[-1] if tail.nodes else node
    return low.output(last, dtype=tail.dtype, strides=row_major(low.shape(last.outputs[0])))


@handles("Gemm")
def gemm(low: Lowering, node: Operation) -> None:
    """A linear layer: alpha · A' · B' + beta · C, with constants B and C."""
    weight = low.constant(node.inputs[1])
    bias = low.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    extra = len(node.inputs) > 2 and bool(node.inputs[2]) and bias is None
    get = node.attributes.get
    if weight is None or extra or get("transA", 0) or low.constant(node.inputs[0]) is not None:
        low.fallback(node)
        return
    weight = (weight.T if get("transB", 0) else weight) * np.asarray(get("alpha", 1.0), weight.dtype)
    width = weight.shape[1]
    if bias is not None and bias.size not in (1, width):
        low.fallback(node)
        return
    tail = tail_of(low, node.outputs[0], bias=bias is None)
    if bias is not None:
        tail.bias = np.broadcast_to(bias.reshape(-1) * np.asarray(get("beta", 1.0), bias.dtype), (width,))
    y = _declare(low, node, tail)
    left = left_of(low, node.inputs[0])
    linear(low, node, left, weight, tail, y)


@handles("LayerNormalization")
def layer_norm(low: Lowering, node: Operation) -> None:
    """LayerNorm over the last axes; outputs of mean and deviation are left to torch."""
    if any(node.outputs[1:]) or any(low.constant(name) is None for name in node.inputs[1:] if name):
        low.fallback(node)
        return
    rank = len(low.shape(node.inputs[0]))
    axes = rank - int(node.attributes.get("axis", -1)) % rank
    inputs = {"x": low.value(node.inputs[0])}
    for role, name in zip(("gamma", "beta"), node.inputs[1:], strict=False):
        if name:
            inputs[role] = low.weight(f"{node.name}/{role}", np.asarray(low.constant(name)), "float32")
    after = sole_reader(low, node.outputs[0])
    scale = None if after is None else rounding_of(low, after)
    attributes = {"axes": axes, "eps": float(node.attributes.get("epsilon", 1e-5))}
    if after is None or scale is None:
        low.step("layer_norm", node, inputs, {"y": low.output(node)}, {**attributes, "inverse": 1.0})
        return
    y = low.output(
        after,
        dtype=low.graph_dtype(after.outputs[0]),
        strides=low.like(inputs["x"], low.shape(after.outputs[0])),
    )
    low.step(
        "layer_norm",
        node,
        inputs,
        {"y": y},
        {**attributes, "inverse": 1.0 / scale},
        nodes=(node.name, after.name),
    )
    low.done(after)


@handles("wetread.Attention", "wetread.WindowAttention", "wetread.ShiftedWindowAttention")
def attention(low: Lowering, node: Operation) -> None:
    """Attention of heads that are there already; the result has tokens before heads in memory."""
    core = Core.of(low, node)
    if core is None:
        low.fallback(node)
        return
    q = low.value(node.inputs[0])
    _, heads, tokens, features = low.spec(q).shape
    y = low.output(node, strides=(tokens * heads * features, features, heads * features, 1))
    inputs = {"q": q, "k": low.value(node.inputs[1]), "v": low.value(node.inputs[2])}
    inputs |= core.weights(low, node.name, low.spec(q).dtype)
    low.step("attention", node, inputs, {"y": y},
             {"scale": core.scale, "windows": None, "apart": core.apart, **rounded(low)})  # fmt: skip


@handles("Softmax", "LogSoftmax")
def softmax(low: Lowering, node: Operation) -> None:
    """Softmax along an axis; before operator set 13 along all axes from one on, which is left to torch."""
    rank = len(low.shape(node.inputs[0]))
    axis = int(node.attributes.get("axis", -1 if low.opset >= 13 else 1)) % rank
    if low.opset < 13 and axis != rank - 1:
        low.fallback(node)
        return
    attributes = {"axis": axis, "log": node.operator == "LogSoftmax"}
    low.step("softmax", node, {"x": low.value(node.inputs[0])}, {"y": low.output(node)}, attributes)


@handles("Conv")
def patch_embedding(low: Lowering, node: Operation) -> None:
    """A convolution whose stride is its kernel, as a linear layer on patches; others go on to their handler."""
    if not _is_embedding(low, node):
        convolutions.conv(low, node)
        return
    weight = np.asarray(low.constant(node.inputs[1]))
    bias = np.asarray(low.constant(node.inputs[2])) if len(node.inputs) > 2 and node.inputs[2] else None
    x = low.value(node.inputs[0])
    spec, kernel = low.spec(x), weight.shape[2:]
    n, c = spec.shape[:2]
    y = low.output(node, strides=channels_last(low.shape(node.outputs[0])))
    out = low.spec(y)
    strides = (spec.strides[0], *(s * k for s, k in zip(spec.strides[2:], kernel, strict=True)))
    patches = low.view(
        x,
        f"{node.name}/patches",
        (n, *out.shape[2:], *kernel, c),
        (*strides, *spec.strides[2:], spec.strides[1]),
    )
    rows = low.view(
        y,
        f"{node.name}/rows",
        (n, *out.shape[2:], out.shape[1]),
        (out.strides[0], *out.strides[2:], out.strides[1]),
    )
    matrix = np.moveaxis(weight, (0, 1), (-1, -2)).reshape(-1, weight.shape[0])
    linear(low, node, Left(patches, 1 + len(kernel)), matrix, Tail(node.outputs[0], bias=bias), rows)


def _is_embedding(low: Lowering, node: Operation) -> bool:
    """Whether a convolution has a stride like its kernel, and nothing after it that convolutions fuse better."""
    weight = low.constant(node.inputs[1])
    biases = [low.constant(name) for name in node.inputs[2:] if name]
    if weight is None or weight.ndim != 5 or any(b is None for b in biases):
        return False
    kernel, get = list(weight.shape[2:]), node.attributes.get
    if list(get("strides", [1, 1, 1])) != kernel or kernel == [1, 1, 1] or int(get("group", 1)) != 1:
        return False
    if any(get("pads", ())) or any(d != 1 for d in get("dilations", ())):
        return False
    if get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or low.constant(node.inputs[0]) is not None:
        return False
    norms = (
        "InstanceNormalization",
        "GroupNormalization",
        "wetread.GroupNormalization",
        "BatchNormalization",
        "Relu",
        "LeakyRelu",
        "PRelu",
    )
    readers = low.readers(node.outputs[0])
    held = low.spec(low.value(node.inputs[0])).dtype in ("float16", "bfloat16", "float32")
    quantised = node.inputs[1] in low.stored or any(r.operator == "QuantizeLinear" for r in readers)
    return held and not quantised and not any(r.operator in norms for r in readers)
