"""Projections that share an input, merged: x W₁, x W₂, x W₃ = split(x [W₁ W₂ W₃]).

Queries, keys and values of attention are such. One wide product reads x once and fills the processor better.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from wetread.graph.passes.base import Pass
from wetread.graph.passes.match import next_node, other
from wetread.graph.passes.network import Network, constant


class ProjectionsPass(Pass):
    """Merges MatMul nodes with constant matrices and the biases after them."""

    name = "projections"
    requires = "constants are initialisers"
    ensures = "no two matrix products with constant matrices read the same value"

    def run(self, network: Network) -> None:
        """Groups of products by the value that they read."""
        groups: dict[ir.Value, list[ir.Node]] = {}
        for node in network.nodes("MatMul"):
            weights = constant(node.inputs[1])
            if weights is not None and weights.ndim == 2 and node.inputs[0] is not None:
                groups.setdefault(node.inputs[0], []).append(node)
        for x, nodes in groups.items():
            if len(nodes) > 1:
                self._merge(network, x, nodes)

    def _merge(self, network: Network, x: ir.Value, nodes: list[ir.Node]) -> None:
        if network.opset < 13:
            network.declined(nodes, "Split takes sizes from operator set 13 on")
            return
        matrices = [np.asarray(constant(node.inputs[1])) for node in nodes]
        biases = [_bias(node, w.shape[1]) for node, w in zip(nodes, matrices, strict=True)]
        first, name = nodes[0], str(nodes[0].name)
        w = network.weight(np.concatenate(matrices, axis=1), f"{name}.merged")
        made = network.insert(first, "MatMul", [x, w], name=name)
        merged = made.outputs[0]
        with_bias = all(bias is not None for bias in biases)
        if with_bias:
            b = network.weight(
                np.concatenate([bias[1] for bias in biases if bias is not None]), f"{name}.bias"
            )
            merged = network.insert(first, "Add", [merged, b], name=f"{name}.add").outputs[0]
        sizes = network.weight(np.array([m.shape[1] for m in matrices], np.int64), f"{name}.sizes")
        split = network.insert(
            first, "Split", [merged, sizes], {"axis": -1}, outputs=len(nodes), name=f"{name}.split"
        )
        network.applied(nodes, f"{len(nodes)} products that share an input merged")
        for node, bias, part in zip(nodes, biases, split.outputs, strict=True):
            end = bias[0] if with_bias and bias is not None else node
            network.replace(end.outputs[0], part)


def _bias(node: ir.Node, width: int) -> tuple[ir.Node, np.ndarray] | None:
    """The addition of a constant vector that alone reads a product."""
    following = next_node(node.outputs[0], "Add")
    array = constant(other(following, node.outputs[0]), 1 << 16) if following is not None else None
    if following is None or array is None or array.shape != (width,):
        return None
    return following, array
