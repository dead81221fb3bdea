"""Constants folded: what depends on no input of the network is computed once, here.

onnxscript's folding also follows shapes: Shape of a value with known sizes is a constant, and Reshape,
Expand, Slice and the like of known sizes that do nothing are removed. Nothing is folded that would make the
network larger by more than `LIMIT` elements: a mask of windows × tokens × tokens is cheaper to compute again
than to store.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from wetread.graph.passes.base import Pass
from wetread.graph.passes.library import quiet
from wetread.graph.passes.network import Network, ints

LIMIT = 1 << 18
"""Elements that a folded constant may have (1 MiB in float32), unless it replaces as many."""
_INPUT_LIMIT = 1 << 26


class FoldPass(Pass):
    """Folds constants and propagates shapes."""

    name = "fold"
    requires = "shapes inferred"
    ensures = "no node of the standard operators has only constant inputs, but those that would grow"

    def run(self, network: Network) -> None:
        """Runs onnxscript's own folding; a site is each node that is gone or became another."""
        from onnxscript.optimizer import fold_constants

        before = list(network.graph)
        names = {node: [str(value.name) for value in node.outputs] for node in before}
        with quiet():
            fold_constants(
                network.model,
                onnx_shape_inference=True,
                input_size_limit=_INPUT_LIMIT,
                output_size_limit=LIMIT,
                should_fold=_foldable,
            )
        left = set(network.graph)
        for node in before:
            if node not in left:
                folded = all(name in network.graph.initializers for name in names[node])
                what = "computed" if folded else "replaced by what its shapes make of it"
                network.applied([node], f"{node.op_type} {what}")


def _foldable(node: ir.Node) -> bool | None:
    """Quantised weights stay as they are stored; small fills are folded; the rest is for the library to decide."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return False
    if node.op_type == "ConstantOfShape":
        sizes = ints(node.inputs[0])
        return sizes is not None and math.prod(sizes) <= LIMIT
    return None
