"""Convolutions and transposed convolutions of volumes, as steps with nothing fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wetread.engines.cuda.lower.lowering import Lowering, handles
from wetread.engines.cuda.program import Json, channels_last
from wetread.graph.plain import Operation


@handles("Conv")
def conv(low: Lowering, node: Operation) -> None:
    """A ``conv`` step; convolutions of other ranks, or with computed weights, fall back."""
    weight = low.constant(node.inputs[1])
    if weight is None or weight.ndim != 5 or not _constant_bias(low, node):
        low.fallback(node)
        return
    at = node.attributes
    stride, dilation = _three(at.get("strides"), 1), _three(at.get("dilations"), 1)
    size = low.shape(node.inputs[0])[2:]
    pads = _pads(at, size, (weight.shape[2:], stride, dilation))
    attributes: dict[str, Json] = {
        "stride": stride, "dilation": dilation, "pads": pads, "groups": int(at.get("group", 1)),
        "activation": None, "softmax": False, "inverse": 1.0, "norm": None,
    }  # fmt: skip
    attributes |= _rounding(low)
    y = low.output(node, strides=channels_last(low.shape(node.outputs[0])))
    low.step("conv", node, _inputs(low, node), {"y": y}, attributes)


@handles("ConvTranspose")
def upconv(low: Lowering, node: Operation) -> None:
    """An ``upconv`` step; falls back as `conv` does."""
    weight = low.constant(node.inputs[1])
    if weight is None or weight.ndim != 5 or not _constant_bias(low, node):
        low.fallback(node)
        return
    at = node.attributes
    stride, dilation = _three(at.get("strides"), 1), _three(at.get("dilations"), 1)
    extra = _three(at.get("output_padding"), 0)
    sizes = low.shape(node.inputs[0])[2:], low.shape(node.outputs[0])[2:]
    pads = _transposed_pads(at, sizes, (weight.shape[2:], stride, dilation), extra)
    attributes: dict[str, Json] = {
        "stride": stride, "dilation": dilation, "pads": pads, "output_padding": extra,
        "groups": int(at.get("group", 1)), "activation": None, "inverse": 1.0, "norm": None,
    }  # fmt: skip
    attributes |= _rounding(low)
    y = low.output(node, strides=channels_last(low.shape(node.outputs[0])))
    low.step("upconv", node, _inputs(low, node), {"y": y}, attributes)


def _rounding(low: Lowering) -> dict[str, Json]:
    """Whether library kernels may round float32 operands to TF32."""
    return {"tf32": True} if low.program.precision == "tf32" else {}


def _constant_bias(low: Lowering, node: Operation) -> bool:
    return len(node.inputs) < 3 or not node.inputs[2] or low.constant(node.inputs[2]) is not None


def _inputs(low: Lowering, node: Operation) -> dict[str, str]:
    """Roles of a convolution; a bias of zeros is none."""
    found = {"x": low.value(node.inputs[0]), "weight": low.layer_weight(node.inputs[1])}
    bias = low.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None and np.any(bias):
        found["bias"] = low.parameter(node.inputs[2])
    return found


def _three(values: Any, default: int) -> list[int]:
    return [int(v) for v in values] if values else [default] * 3


def _pads(at: dict[str, Any], size: Sequence[int], window: tuple[Any, Any, Any]) -> list[int]:
    """Begins, then ends."""
    auto = str(at.get("auto_pad", "NOTSET"))
    if auto == "VALID" or (auto == "NOTSET" and not at.get("pads")):
        return [0] * 6
    if auto == "NOTSET":
        return [int(p) for p in at["pads"]]
    kernel, stride, dilation = window
    begins, ends = [], []
    for s, k, t, d in zip(size, kernel, stride, dilation, strict=True):
        total = max(0, (-(-s // t) - 1) * t + (k - 1) * d + 1 - s)
        small, large = total // 2, total - total // 2
        begins.append(small if auto == "SAME_UPPER" else large)
        ends.append(large if auto == "SAME_UPPER" else small)
    return [int(p) for p in begins + ends]


def _transposed_pads(
    at: dict[str, Any],
    sizes: tuple[Sequence[int], Sequence[int]],
    window: tuple[Any, Any, Any],
    extra: Sequence[int],
) -> list[int]:
    """Pads that give the output its inferred size: those named, or what an output shape asks for."""
    auto = str(at.get("auto_pad", "NOTSET"))
    if auto == "NOTSET" and "output_shape" not in at:
        return [int(p) for p in at.get("pads") or [0] * 6]
    begins, ends = [], []
    for s, o, k, t, d, e in zip(*sizes, *window, extra, strict=True):
        total = (s - 1) * t + (k - 1) * d + 1 + e - o
        small, large = total // 2, total - total // 2
        begins.append(small if auto == "SAME_UPPER" else large)
        ends.append(large if auto == "SAME_UPPER" else small)
    return [int(p) for p in begins + ends]
