"""BatchNorm, or an affine map of each channel, into the convolution after it.

Conv_{W,b}(s·x + t) = Conv_{Ws, b + Σ W t}(x), where W s scales input channels and Σ runs over input channels and
taps. With zero padding the border voxels miss some taps of t, so that it is exact only without padding, or where
t = 0; ConvTranspose overlaps its taps differently at the border and is exact only where t = 0.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from wetread.graph.passes.base import Pass
from wetread.graph.passes.match import per_channel, split_constant
from wetread.graph.passes.network import Network, attribute, constant, only_user, producer


class BeforePass(Pass):
    """Folds BatchNormalization, Mul and Add before a convolution into its weights, where that is exact."""

    name = "before"
    requires = "BatchNorm folded into what comes before it"
    ensures = "a per-channel affine map that stays before a convolution would not be exact inside it"

    def run(self, network: Network) -> None:
        """From the back, so that Mul then Add fold one after the other."""
        for conv in reversed(list(network.nodes("Conv", "ConvTranspose"))):
            current: ir.Node | None = conv
            while current is not None:
                current = self._fold(network, current)

    def _fold(self, network: Network, conv: ir.Node) -> ir.Node | None:
        node = producer(conv.inputs[0], "BatchNormalization", "Mul", "Add", "Sub", "Div")
        weights = constant(conv.inputs[1])
        if node is None or weights is None:
            return None
        group = int(attribute(conv, "group", 1))
        channels = weights.shape[0] if conv.op_type == "ConvTranspose" else weights.shape[1] * group
        found = affine(node, channels, weights.ndim)
        if found is None:
            return None
        x, scale, shift = found
        if reason := self._hindrance(conv, node, shift):
            network.declined([node, conv], reason)
            return None
        made = _absorb(network, conv, x, scale, shift)
        network.replace(conv.outputs[0], made.outputs[0])
        network.applied([node, conv], f"{node.op_type} moved into the {conv.op_type} after it")
        return made

    def _hindrance(self, conv: ir.Node, node: ir.Node, shift: np.ndarray) -> str:
        if not only_user(node.outputs[0]):
            return f"the {node.op_type}'s output is read elsewhere, too"
        if len(conv.inputs) > 2 and conv.inputs[2] is not None and constant(conv.inputs[2]) is None:
            return "the convolution's bias is computed"
        if shift.any() and conv.op_type == "ConvTranspose":
            return "a shift before a transposed convolution is not constant at the border"
        padded = any(attribute(conv, "pads", [0])) or attribute(conv, "auto_pad", "NOTSET").startswith("SAME")
        if shift.any() and padded:
            return "a shift before zero padding is not constant at the border"
        return ""


def affine(node: ir.Node, channels: int, rank: int) -> tuple[ir.Value, np.ndarray, np.ndarray] | None:
    """(x, scale, shift) of y = scale · x + shift per channel, in float64."""
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type == "BatchNormalization":
        arrays = [constant(value) for value in node.inputs[1:5]]
        if any(a is None or a.size != channels for a in arrays) or node.inputs[0] is None:
            return None
        gamma, beta, mean, variance = (np.asarray(a, np.float64) for a in arrays)
        scale = gamma / np.sqrt(variance + float(attribute(node, "epsilon", 1e-5)))
        return node.inputs[0], scale, beta - mean * scale
    found = split_constant(node)
    if found is None or (node.op_type in ("Sub", "Div") and node.inputs[0] is not found[0]):
        return None
    numbers = per_channel(found[1], channels, rank)
    if numbers is None:
        return None
    v = numbers.astype(np.float64)
    if node.op_type == "Div":
        return found[0], 1 / v, zero
    if node.op_type == "Mul":
        return found[0], v, zero
    return found[0], one, v if node.op_type == "Add" else -v


def _absorb(network: Network, conv: ir.Node, x: ir.Value, scale: np.ndarray, shift: np.ndarray) -> ir.Node:
    stored = np.asarray(constant(conv.inputs[1]))
    weights, spatial = stored.astype(np.float64), (1,) * (stored.ndim - 2)
    group = int(attribute(conv, "group", 1))
    if conv.op_type == "ConvTranspose":
        new = weights * scale.reshape(-1, 1, *spatial)
        extra = np.zeros(stored.shape[1] * group)
    else:
        each = np.repeat(scale.reshape(group, 1, -1), stored.shape[0] // group, axis=1)
        moved = np.repeat(shift.reshape(group, 1, -1), stored.shape[0] // group, axis=1)
        shape = (stored.shape[0], stored.shape[1], *spatial)
        new = weights * each.reshape(shape)
        extra = (weights * moved.reshape(shape)).reshape(stored.shape[0], -1).sum(axis=1)
    old = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
    bias = extra if old is None else old + extra
    inputs = [x, network.weight(new.astype(stored.dtype), f"{conv.name}.weight")]
    if old is not None or extra.any():
        inputs.append(network.weight(bias.astype(stored.dtype), f"{conv.name}.bias"))
    attributes = {name: a.value for name, a in conv.attributes.items()}
    return network.insert(conv, conv.op_type, inputs, attributes, name=str(conv.name))
