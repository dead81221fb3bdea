"""Activations that exports write out in parts, recognised as one operator.

GELU(x) = x · (1 + erf(x / √2)) / 2, or with tanh(√(2/π) (x + 0.044715 x³)) in place of erf (Hendrycks and
Gimpel 2016); SiLU(x) = x · σ(x); Mish(x) = x · tanh(log(1 + eˣ)); LeakyReLU(x) = max(x, a x) for 0 < a < 1, or
x where x > 0 and a x elsewhere; PReLU with one slope for all channels is LeakyReLU.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from wetread.graph.passes.base import Pass
from wetread.graph.passes.match import call, close, next_node, other, times
from wetread.graph.passes.network import Network, constant, only_user, producer, scalar, shape

_STANDARD = {"Gelu": 20, "Mish": 18, "Swish": 24}


class ActivationPass(Pass):
    """Recognises GELU, SiLU, Mish and LeakyReLU."""

    name = "activation"
    requires = "constants are initialisers"
    ensures = "these activations are one node each, standard where the operator set has them"

    def run(self, network: Network) -> None:
        """Each kind by the node that gives it away."""
        for node in network.nodes("Erf", "Tanh", "Sigmoid"):
            self._product(network, node)
        for node in network.nodes("Max", "Where", "PRelu"):
            found = _leaky(node)
            if found is not None:
                made = network.insert(node, "LeakyRelu", [found[0]], {"alpha": found[1]}, name=str(node.name))
                network.replace(node.outputs[0], made.outputs[0])
                network.applied([node], f"{node.op_type} is LeakyRelu with slope {found[1]:.6g}")

    def _product(self, network: Network, node: ir.Node) -> None:
        """Gelu, Mish and Swish: a product of x with a squashed x."""
        found = _gelu(node) or _mish(node) or _swish(node)
        if found is None:
            return
        x, last, name = found
        standard = "Gelu" if name == "GeluTanh" else name
        since = _STANDARD[standard]
        approximate = {"approximate": "tanh"} if name == "GeluTanh" and network.opset >= since else None
        made = call(
            network,
            last,
            standard if network.opset >= since else name,
            [x],
            approximate,
            standard_from=since,
        )
        if made is None:
            network.declined([node, last], f"{name} needs operator set 15, the network has {network.opset}")
            return
        network.replace(last.outputs[0], made.outputs[0])
        network.applied([node, last], f"recognised as {name}")


def _gelu(node: ir.Node) -> tuple[ir.Value, ir.Node, str] | None:
    if node.op_type == "Erf":
        inner = times(node.inputs[0])
        if inner is None or not close(inner[1], 1 / math.sqrt(2)):
            return None
        x, name = inner[0], "Gelu"
    elif node.op_type == "Tanh":
        found = _tanh_argument(node.inputs[0])
        if found is None:
            return None
        x, name = found, "GeluTanh"
    else:
        return None
    plus = next_node(node.outputs[0], "Add")
    one = None if plus is None else other(plus, node.outputs[0])
    if plus is None or scalar(one) != 1:
        return None
    last = _times_half_x(plus, x)
    return None if last is None else (x, last, name)


def _tanh_argument(value: ir.Value | None) -> ir.Value | None:
    """X of √(2/π) (x + 0.044715 x³)."""
    outer = times(value)
    if outer is None or not close(outer[1], math.sqrt(2 / math.pi)):
        return None
    total = producer(outer[0], "Add")
    if total is None:
        return None
    for x, term in (total.inputs, reversed(total.inputs)):
        cubic = times(term)
        if x is not None and cubic is not None and close(cubic[1], 0.044715) and _is_cube(cubic[0], x):
            return x
    return None


def _is_cube(value: ir.Value, x: ir.Value) -> bool:
    node = producer(value, "Pow", "Mul")
    if node is None:
        return False
    if node.op_type == "Pow":
        return node.inputs[0] is x and scalar(node.inputs[1]) == 3
    square = other(node, x) if x in node.inputs else None
    inner = producer(square, "Mul", "Pow")
    if inner is None:
        return False
    return inner.inputs[0] is x and (inner.inputs[1] is x or scalar(inner.inputs[1]) == 2)


def _times_half_x(node: ir.Node, x: ir.Value) -> ir.Node | None:
    """The node after which a value has been multiplied by x and by one half, in whatever order."""
    waiting_x, waiting_half = True, True
    while waiting_x or waiting_half:
        following = next_node(node.outputs[0], "Mul", "Div")
        if following is None:
            return None
        factor = other(following, node.outputs[0])
        number = scalar(factor)
        if following.op_type == "Div":
            number = None if following.inputs[0] is not node.outputs[0] or not number else 1 / number
        inner = times(factor)
        if waiting_half and number == 0.5:
            waiting_half = False
        elif following.op_type == "Mul" and waiting_x and factor is x:
            waiting_x = False
        elif waiting_x and waiting_half and inner is not None and inner[0] is x and inner[1] == 0.5:
            waiting_x = waiting_half = False
        else:
            return None
        node = following
    return node


def _mish(node: ir.Node) -> tuple[ir.Value, ir.Node, str] | None:
    plus = producer(node.inputs[0], "Softplus") if node.op_type == "Tanh" else None
    last = next_node(node.outputs[0], "Mul") if plus is not None else None
    if plus is None or last is None or other(last, node.outputs[0]) is not plus.inputs[0]:
        return None
    x = plus.inputs[0]
    return None if x is None else (x, last, "Mish")


def _swish(node: ir.Node) -> tuple[ir.Value, ir.Node, str] | None:
    last = next_node(node.outputs[0], "Mul") if node.op_type == "Sigmoid" else None
    x = node.inputs[0]
    if last is None or x is None or other(last, node.outputs[0]) is not x:
        return None
    return x, last, "Swish"


def _leaky(node: ir.Node) -> tuple[ir.Value, float] | None:
    """(x, slope) of a node that is LeakyReLU."""
    if node.op_type == "PRelu":
        slopes = constant(node.inputs[1], 1 << 16)
        rank = len(shape(node.inputs[0]) or ())
        if slopes is None or not rank or slopes.ndim > rank or not slopes.size or np.ptp(slopes) != 0:
            return None
        return (node.inputs[0], float(slopes.reshape(-1)[0])) if node.inputs[0] is not None else None
    if node.op_type == "Max" and len(node.inputs) == 2:
        for x, scaled in (node.inputs, reversed(node.inputs)):
            found = times(scaled)
            if x is not None and found is not None and found[0] is x and 0 < found[1] < 1:
                return x, found[1]
    if node.op_type == "Where":
        test, x, scaled = node.inputs
        compare, found = producer(test, "Greater", "GreaterOrEqual"), times(scaled)
        if compare is None or found is None or x is None or not only_user(scaled):  # type: ignore[arg-type]
            return None
        if compare.inputs[0] is x and scalar(compare.inputs[1]) == 0 and found[0] is x:
            return x, found[1]
    return None
