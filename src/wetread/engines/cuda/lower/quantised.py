"""Quantise and dequantise nodes, and weights that a graph keeps in eight bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.engines.cuda.lower.lowering import Lowering, Stored, handles
from wetread.graph.plain import Operation
from wetread.graph.resolve import Resolved

TYPES = ("int8", "uint8", "float8_e4m3fn")


_MOVES = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})


def unrounded_products(resolved: Resolved) -> Resolved:
    """Lets matrix products read what was rounded for them as it was before: they are computed in half precision.

    So attention and the linear layers around it are fused as they are in a network without roundings.
    """
    makers = {name: node for node in resolved.nodes for name in node.outputs}
    readers: dict[str, list[Operation]] = {}
    for node in resolved.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)

    def product(node: Operation, name: str) -> bool:
        """Whether a node that reads a value is a product, or moves it to products alone."""
        if node.operator in ("MatMul", "Gemm"):
            return node.inputs[1] != name
        after = readers.get(node.outputs[0], [])
        return node.operator in _MOVES and bool(after) and all(product(n, node.outputs[0]) for n in after)

    def source(node: Operation, name: str) -> str:
        """What a node reads instead of a value."""
        back = makers.get(name)
        rounded = (
            makers.get(back.inputs[0]) if back is not None and back.operator == "DequantizeLinear" else None
        )
        if rounded is None or rounded.operator != "QuantizeLinear" or not product(node, name):
            return name
        return rounded.inputs[0]

    nodes = [
        replace(node, inputs=tuple(source(node, name) for name in node.inputs)) for node in resolved.nodes
    ]
    for operator in ("DequantizeLinear", "QuantizeLinear"):
        read = {name for node in nodes for name in node.inputs} | set(resolved.outputs)
        nodes = [node for node in nodes if node.operator != operator or node.outputs[0] in read]
    return replace(resolved, nodes=tuple(nodes))


@handles("QuantizeLinear")
def quantise(low: Lowering, node: Operation) -> None:
    """One scale and zero point 0; others fall back."""
    scale = low.scalar(node.inputs[1])
    dtype = low.graph_dtype(node.outputs[0])
    if scale is None or scale <= 0 or dtype not in TYPES or not _no_zero_point(low, node):
        low.fallback(node)
        return
    y = low.output(node, dtype=dtype)
    low.step("quantise", node, {"x": low.value(node.inputs[0])}, {"y": y}, {"inverse": 1.0 / scale})


@handles("DequantizeLinear")
def dequantise(low: Lowering, node: Operation) -> None:
    """Of a constant a constant, whose eight bits are remembered; else one scale and zero point 0."""
    stored = low.constant(node.inputs[0])
    if stored is not None:
        _constant(low, node, stored)
        return
    scale = low.scalar(node.inputs[1])
    if scale is None or low.graph_dtype(node.inputs[0]) not in TYPES or not _no_zero_point(low, node):
        low.fallback(node)
        return
    low.step("dequantise", node, {"x": low.value(node.inputs[0])}, {"y": low.output(node)}, {"scale": scale})


def _no_zero_point(low: Lowering, node: Operation) -> bool:
    if len(node.inputs) < 3 or not node.inputs[2]:
        return True
    zero = low.constant(node.inputs[2])
    return zero is not None and not np.any(zero.astype(np.float32))


def _constant(low: Lowering, node: Operation, stored: NDArray[Any]) -> None:
    scale = low.constant(node.inputs[1])
    if scale is None or node.attributes.get("block_size"):
        low.fallback(node)
        return
    axis = int(node.attributes.get("axis", 1))
    shape = [1] * stored.ndim
    if scale.size > 1:
        shape[axis] = -1
    value = stored.astype(np.float64)
    zero = low.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if zero is not None:
        value = value - zero.astype(np.float64).reshape(shape if zero.size > 1 else [1] * stored.ndim)
    value = value * scale.astype(np.float64).reshape(shape if scale.size > 1 else [1] * stored.ndim)
    low.set_constant(node.outputs[0], value.astype(np.float32))
    if _no_zero_point(low, node) and stored.dtype.name in TYPES:
        low.stored[node.outputs[0]] = Stored(
            stored, scale.reshape(-1).astype(np.float32), axis if scale.size > 1 else -1
        )
