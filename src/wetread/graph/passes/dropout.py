"""Dropout and other nodes that only training needs.

Dropout(x) = x unless its third input, training_mode, is true (operator sets 12 and later; before 12 the
operator has no such input and inference is the only mode). Its second output, the mask, is then all true.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from wetread.graph.passes.base import Pass
from wetread.graph.passes.network import Network, constant


class DropoutPass(Pass):
    """Removes Dropout in inference, and outputs of BatchNormalization that only training reads."""

    name = "dropout"
    ensures = "no Dropout node that does nothing"

    def run(self, network: Network) -> None:
        """Readers of a dropout's output read its input."""
        for node in network.nodes("Dropout"):
            reason = self._hindrance(node)
            if reason:
                network.declined([node], reason)
                continue
            identity = network.insert(node, "Identity", [node.inputs[0]], name=f"{node.name}.identity")
            network.replace(node.outputs[0], identity.outputs[0])
            network.applied([node], "Dropout does nothing in inference")
        for node in network.nodes("BatchNormalization"):
            extra = [value for value in node.outputs[1:] if value.name or value.uses()]
            if extra and not any(v.uses() or v.is_graph_output() for v in extra):
                network.applied([node], "running statistics are outputs of training only")
                self._without_statistics(network, node)

    def _hindrance(self, node: ir.Node) -> str:
        """Why a dropout must stay; empty where it may go."""
        if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
            return "its mask is read"
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            training = constant(node.inputs[2], 1)
            ratio = constant(node.inputs[1], 1) if node.inputs[1] is not None else np.float32(0.5)
            if training is None:
                return "training_mode is computed"
            if bool(training.reshape(-1)[0]) and (ratio is None or float(np.ravel(ratio)[0]) != 0):
                return "training_mode is true: the network drops values at random"
        return ""

    @staticmethod
    def _without_statistics(network: Network, node: ir.Node) -> None:
        kept = {k: v.value for k, v in node.attributes.items() if k in ("epsilon", "momentum")}
        made = network.insert(node, "BatchNormalization", node.inputs, kept, name=f"{node.name}.inference")
        network.replace(node.outputs[0], made.outputs[0])
