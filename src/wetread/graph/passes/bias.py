"""What follows a convolution channel by channel, into its weights.

Conv_{W,b}(x) · s + t = Conv_{sW, sb+t}(x), for numbers s and t of each output channel; the same for ConvTranspose.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from wetread.graph.passes.base import Pass
from wetread.graph.passes.match import per_channel, split_constant
from wetread.graph.passes.network import Network, attribute, constant, only_user, producer


class BiasPass(Pass):
    """Moves additions and multiplications by constants of each channel into the convolution before them."""

    name = "bias"
    requires = "constants are initialisers"
    ensures = "no per-channel constant is added to, or multiplied with, a convolution that it alone reads"

    def run(self, network: Network) -> None:
        """From the network's input on, so that chains fold one after another."""
        for node in network.nodes("Add", "Sub", "Mul", "Div"):
            found = split_constant(node)
            conv = producer(found[0], "Conv", "ConvTranspose") if found is not None else None
            if found is None or conv is None:
                continue
            if node.op_type in ("Sub", "Div") and node.inputs[0] is not found[0]:
                network.declined([conv, node], "the convolution is subtracted or divided by")
                continue
            self._fold(network, conv, node, found[1])

    def _fold(self, network: Network, conv: ir.Node, node: ir.Node, array: np.ndarray) -> None:
        weights = constant(conv.inputs[1])
        bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] is not None else None
        if weights is None or (len(conv.inputs) > 2 and conv.inputs[2] is not None and bias is None):
            network.declined([conv, node], "the convolution's weights are computed")
            return
        if not only_user(conv.outputs[0]):
            network.declined([conv, node], "the convolution's output is read elsewhere, too")
            return
        group = int(attribute(conv, "group", 1))
        transposed = conv.op_type == "ConvTranspose"
        channels = weights.shape[1] * group if transposed else weights.shape[0]
        numbers = per_channel(array, channels, weights.ndim)
        if numbers is None:
            network.declined([conv, node], f"a constant of shape {array.shape} is not one number a channel")
            return
        v = numbers.astype(np.float64)
        scale, shift = np.ones(channels), np.zeros(channels)
        if node.op_type in ("Add", "Sub"):
            shift = v if node.op_type == "Add" else -v
        else:
            scale = v if node.op_type == "Mul" else 1 / v
        made = scaled(network, conv, scale, shift)
        network.replace(node.outputs[0], made.outputs[0])
        network.applied([conv, node], f"{node.op_type} moved into {conv.op_type}")


def scaled(network: Network, conv: ir.Node, scale: np.ndarray, shift: np.ndarray) -> ir.Node:
    """A convolution whose output is that of `conv` times `scale` plus `shift`, per output channel, in float64."""
    weights = np.asarray(constant(conv.inputs[1]))
    old = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
    bias = np.zeros(len(scale)) if old is None else old.astype(np.float64)
    inputs = [conv.inputs[0], conv.inputs[1]]
    spatial = (1,) * (weights.ndim - 2)
    if (scale != 1).any():
        if conv.op_type == "ConvTranspose":
            group = int(attribute(conv, "group", 1))
            each = np.repeat(scale.reshape(group, 1, -1), weights.shape[0] // group, axis=1)
            factors = each.reshape(weights.shape[0], weights.shape[1], *spatial)
        else:
            factors = scale.reshape(-1, 1, *spatial)
        new = (weights.astype(np.float64) * factors).astype(weights.dtype)
        inputs[1] = network.weight(new, f"{conv.name}.weight")
    inputs.append(network.weight((bias * scale + shift).astype(weights.dtype), f"{conv.name}.bias"))
    attributes = {name: a.value for name, a in conv.attributes.items()}
    return network.insert(conv, conv.op_type, inputs, attributes, name=str(conv.name))
