"""Normalisations that exports write out in parts, folded back to one node.

With m = mean(x) and v = mean((x − m)²) over some axes, y = (x − m) / sqrt(v + ε) · γ + β is

- LayerNormalization where the axes are the last ones and γ, β have their shape (Ba et al. 2016);
- InstanceNormalization where they are the spatial axes and γ, β are one number a channel (Ulyanov et al. 2016).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from wetread.graph.passes.base import Pass
from wetread.graph.passes.match import next_node, per_channel, split_constant
from wetread.graph.passes.network import Network, attribute, ints, producer, scalar, shape, users


@dataclass
class _Core:
    """The parts of (x − mean) / sqrt(var + ε)."""

    x: ir.Value
    axes: tuple[int, ...]
    rank: int
    epsilon: float
    last: ir.Node


class NormPass(Pass):
    """Recognises layer and instance normalisation written with ReduceMean."""

    name = "norm"
    requires = "shapes inferred, constants are initialisers"
    ensures = "a mean, a variance and a division over spatial or last axes are one node"

    def run(self, network: Network) -> None:
        """Starts at the mean."""
        for node in network.nodes("ReduceMean"):
            core = _core(node)
            if core is None:
                continue
            if core.axes == tuple(range(core.rank - len(core.axes), core.rank)) and self._layer(
                network, core
            ):
                continue
            if core.axes == tuple(range(2, core.rank)) and self._instance(network, core):
                continue
            network.declined(
                [node, core.last], f"axes {core.axes} of {core.rank}, or affine weights of another shape"
            )

    def _layer(self, network: Network, core: _Core) -> bool:
        """Needs γ of the normalised shape: without one, instance normalisation of (n, c, l) looks the same."""
        sizes = (shape(core.x) or ())[-len(core.axes) :]
        last, gamma = _operand(core.last, "Mul")
        wanted = tuple(s for s in sizes if s is not None)
        if gamma is None or len(wanted) != len(sizes) or gamma.shape != wanted or network.opset < 17:
            return False
        end, beta = _operand(last, "Add")
        if beta is not None and beta.shape != wanted:
            end, beta = last, None
        inputs = [core.x, network.weight(gamma, f"{core.last.name}.scale")]
        inputs.append(
            network.weight(beta if beta is not None else np.zeros_like(gamma), f"{core.last.name}.bias")
        )
        made = network.insert(
            end,
            "LayerNormalization",
            inputs,
            {"axis": -len(core.axes), "epsilon": core.epsilon},
            name=str(core.last.name),
        )
        network.applied([core.last, end], "recognised as LayerNormalization")
        network.replace(end.outputs[0], made.outputs[0])
        return True

    def _instance(self, network: Network, core: _Core) -> bool:
        sizes = shape(core.x)
        channels = sizes[1] if sizes is not None and len(sizes) > 2 else None
        if channels is None:
            return False
        kind = np.dtype(np.float32) if core.x.dtype is None else np.dtype(core.x.dtype.numpy())
        scale = network.weight(np.ones(channels, kind), f"{core.last.name}.scale")
        bias = network.weight(np.zeros(channels, kind), f"{core.last.name}.bias")
        made = network.insert(
            core.last,
            "InstanceNormalization",
            [core.x, scale, bias],
            {"epsilon": core.epsilon},
            name=str(core.last.name),
        )
        network.applied([core.last], "recognised as InstanceNormalization")
        network.replace(core.last.outputs[0], made.outputs[0])
        return True


def _operand(node: ir.Node, operator: str) -> tuple[ir.Node, np.ndarray | None]:
    """The node that reads `node` alone, with its constant; (node, None) where there is none."""
    following = next_node(node.outputs[0], operator)
    found = split_constant(following)
    return (node, None) if following is None or found is None else (following, found[1])


def _axes(node: ir.Node, rank: int) -> tuple[int, ...] | None:
    """Axes of a reduction that keeps them; they are an input from operator set 18 on."""
    if not int(attribute(node, "keepdims", 1)):
        return None
    given = attribute(node, "axes", None)
    if given is None and len(node.inputs) > 1:
        given = ints(node.inputs[1])
    return None if given is None else tuple(sorted(int(a) % rank for a in given))


def _core(mean: ir.Node) -> _Core | None:
    """Follows mean → difference → square → variance → root → quotient."""
    x = mean.inputs[0]
    rank = len(shape(x) or ())
    axes = _axes(mean, rank) if rank else None
    for difference in users(mean.outputs[0]):
        if x is None or axes is None or difference.op_type != "Sub" or difference.inputs[0] is not x:
            continue
        d = difference.outputs[0]
        for square in users(d):
            if not _squares(square, d):
                continue
            variance = next_node(square.outputs[0], "ReduceMean")
            plus = next_node(variance.outputs[0], "Add") if variance is not None else None
            epsilon = split_constant(plus)
            root = next_node(plus.outputs[0], "Sqrt", "Pow") if plus is not None else None
            if variance is None or _axes(variance, rank) != axes or epsilon is None or root is None:
                continue
            last = _quotient(root, d)
            if last is not None and epsilon[1].size == 1:
                return _Core(x, axes, rank, float(epsilon[1].reshape(-1)[0]), last)
    return None


def _squares(node: ir.Node, d: ir.Value) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is d and node.inputs[1] is d
    return node.op_type == "Pow" and node.inputs[0] is d and scalar(node.inputs[1]) == 2


def _quotient(root: ir.Node, d: ir.Value) -> ir.Node | None:
    """D / sqrt(v), or d · (1 / sqrt(v)), or d · v^(−1/2)."""
    inverse = root.op_type == "Pow" and scalar(root.inputs[1]) == -0.5
    if root.op_type == "Pow" and not inverse and scalar(root.inputs[1]) != 0.5:
        return None
    value = root.outputs[0]
    if not inverse:
        divide = next_node(value, "Div", "Reciprocal")
        if divide is None:
            return None
        if divide.op_type == "Div" and divide.inputs[0] is d and divide.inputs[1] is value:
            return divide
        if divide.op_type == "Div" and scalar(divide.inputs[0]) != 1:
            return None
        value = divide.outputs[0]
    product = next_node(value, "Mul")
    return product if product is not None and d in product.inputs else None


def group_core(node: ir.Node) -> tuple[ir.Value, int, ir.Node] | None:
    """For an InstanceNormalization between two reshapes: (x, groups, the reshape back)."""
    into = producer(node.inputs[0], "Reshape")
    back = next_node(node.outputs[0], "Reshape")
    if into is None or back is None or into.inputs[0] is None:
        return None
    x, grouped = into.inputs[0], shape(node.inputs[0])
    before, after = shape(x), shape(back.outputs[0])
    if grouped is None or before is None or len(before) < 3 or len(grouped) < 3 or grouped[1] is None:
        return None
    restored = producer(back.inputs[1], "Shape")
    same = after == before and before.count(None) <= 1
    if not same and (restored is None or restored.inputs[0] is not x):
        return None
    batch = grouped[0] == before[0] or (ints(into.inputs[1]) or [1])[0] == 0
    return (x, int(grouped[1]), back) if batch and before[1] is not None else None


def channel_affine(
    node: ir.Node, channels: int, rank: int
) -> tuple[ir.Node, np.ndarray | None, np.ndarray | None]:
    """Multiplication and addition of one number a channel after a node: (last node, γ, β)."""
    last, gamma = _operand(node, "Mul")
    scale = per_channel(gamma, channels, rank) if gamma is not None else None
    if scale is None:
        last = node
    end, beta = _operand(last, "Add")
    bias = per_channel(beta, channels, rank) if beta is not None else None
    return (last, scale, None) if bias is None else (end, scale, bias)
