"""Small questions that several patterns ask of nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from wetread.graph.change import DOMAIN
from wetread.graph.passes import functions
from wetread.graph.passes.network import SMALL, Network, constant, producer, scalar, users


def split_constant(node: ir.Node | None) -> tuple[ir.Value, np.ndarray] | None:
    """For a binary node, (computed operand, constant operand); None where not exactly one is constant."""
    if node is None or len(node.inputs) != 2:
        return None
    a, b = node.inputs
    left, right = constant(a, SMALL), constant(b, SMALL)
    if (left is None) == (right is None) or a is None or b is None:
        return None
    return (b, left) if left is not None else (a, right if right is not None else np.zeros(0))


def times(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """For y = x · c or x / c with one number c: (x, factor)."""
    node = producer(value, "Mul", "Div")
    if node is None:
        return None
    if node.op_type == "Div":
        number = scalar(node.inputs[1])
        return None if not number or node.inputs[0] is None else (node.inputs[0], 1 / number)
    for x, c in (node.inputs, reversed(node.inputs)):
        number = scalar(c)
        if number is not None and x is not None:
            return x, number
    return None


def close(a: float, b: float) -> bool:
    """Whether two numbers are the same one rounded to float32."""
    return abs(a - b) <= 1e-6 * abs(b)


def per_channel(array: np.ndarray, channels: int, rank: int) -> np.ndarray | None:
    """A constant that broadcasts along axis 1 of (n, channels, ...) as one number a channel; else None."""
    if array.dtype.kind != "f" or array.ndim > rank:
        return None
    full = array.reshape((1,) * (rank - array.ndim) + array.shape)
    if array.size == 1:
        return np.full(channels, full.reshape(-1)[0], array.dtype)
    if full.shape != (1, channels) + (1,) * (rank - 2):
        return None
    return np.asarray(full.reshape(-1))


def next_node(value: ir.Value, *operators: str) -> ir.Node | None:
    """The only reader of a value, where it has one of these standard operators."""
    readers = users(value)
    if len(readers) != 1 or value.is_graph_output():
        return None
    node = readers[0]
    return node if node.domain == "" and node.op_type in operators else None


def other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The other operand of a binary node."""
    a, b = node.inputs
    return b if a is value else a


def call(
    network: Network,
    before: ir.Node,
    name: str,
    inputs: Sequence[ir.Value | None],
    attributes: dict[str, Any] | None = None,
    *,
    standard_from: int = 99,
) -> ir.Node | None:
    """A call of an operator: the standard one where the operator set has it, else our function.

    Returns:
        The node, inserted before another; None where the operator set is too old for either.
    """
    if network.opset >= standard_from:
        return network.insert(before, name, inputs, attributes, name=str(before.name))
    if not functions.provide(network.model, name):
        return None
    return network.insert(before, name, inputs, attributes, domain=DOMAIN, name=str(before.name))
