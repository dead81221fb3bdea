"""Group normalisation, and affine maps after instance normalisation.

GroupNorm(x) with G groups is InstanceNormalization of x reshaped to (n, G, rest), reshaped back, times γ plus β
of each channel (Wu and He 2018). With as many groups as channels it is instance normalisation itself. And
IN_{a,b}(x) · γ + β = IN_{aγ, bγ+β}(x).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from wetread.graph.passes.base import Pass
from wetread.graph.passes.match import call
from wetread.graph.passes.network import Network, attribute, constant, shape
from wetread.graph.passes.norm import channel_affine, group_core

_PER_CHANNEL = 21
"""Operator set from which GroupNormalization has γ and β of each channel."""


class GroupNormPass(Pass):
    """Recognises group normalisation, and takes per-channel γ and β into instance normalisation."""

    name = "group_norm"
    requires = "shapes inferred, constants are initialisers, scattered instance norms recognised"
    ensures = "group and instance normalisation with their weights are one node each"

    def run(self, network: Network) -> None:
        """Starts at each InstanceNormalization."""
        for node in network.nodes("InstanceNormalization"):
            scale, bias = constant(node.inputs[1]), constant(node.inputs[2])
            if scale is None or bias is None:
                network.declined([node], "scale or bias is computed")
                continue
            found = group_core(node)
            if found is None:
                self._affine(network, node, scale, bias)
            else:
                self._group(network, node, scale, bias, found)

    def _affine(self, network: Network, node: ir.Node, scale: np.ndarray, bias: np.ndarray) -> None:
        rank = len(shape(node.inputs[0]) or ())
        last, gamma, beta = channel_affine(node, scale.size, rank) if rank else (node, None, None)
        if last is node:
            return
        self._instance(network, node, node.inputs[0], _combine(scale, bias, gamma, beta), last)
        network.applied([node, last], "γ and β taken into InstanceNormalization")
        self._finish(network, last)

    def _group(
        self,
        network: Network,
        node: ir.Node,
        scale: np.ndarray,
        bias: np.ndarray,
        found: tuple[ir.Value, int, ir.Node],
    ) -> None:
        x, groups, back = found
        sizes = shape(x) or ()
        channels = int(sizes[1] or 0)
        if groups == 0 or channels % groups or scale.size != groups:
            network.declined([node], f"{channels} channels are not {groups} whole groups")
            return
        last, gamma, beta = channel_affine(back, channels, len(sizes))
        weights = _combine(
            np.repeat(scale, channels // groups), np.repeat(bias, channels // groups), gamma, beta
        )
        if groups == channels:
            self._instance(network, node, x, weights, last)
            network.applied([node, last], "one group a channel: InstanceNormalization")
        elif not self._call(network, node, x, groups, weights, last):
            network.declined(
                [node], f"GroupNormalization needs operator set 15, the network has {network.opset}"
            )
            return
        else:
            network.applied([node, last], f"recognised as GroupNormalization of {groups} groups")
        self._finish(network, last)

    def _instance(
        self,
        network: Network,
        node: ir.Node,
        x: ir.Value | None,
        weights: tuple[np.ndarray, np.ndarray],
        last: ir.Node,
    ) -> None:
        inputs = [
            x,
            network.weight(weights[0], f"{node.name}.scale"),
            network.weight(weights[1], f"{node.name}.bias"),
        ]
        epsilon = {"epsilon": attribute(node, "epsilon", 1e-5)}
        self._made = network.insert(last, "InstanceNormalization", inputs, epsilon, name=str(node.name))

    def _call(
        self,
        network: Network,
        node: ir.Node,
        x: ir.Value,
        groups: int,
        weights: tuple[np.ndarray, np.ndarray],
        last: ir.Node,
    ) -> bool:
        epsilon = {"epsilon": attribute(node, "epsilon", 1e-5)}
        gamma, beta = weights
        if network.opset >= _PER_CHANNEL:
            inputs = [
                x,
                network.weight(gamma, f"{node.name}.scale"),
                network.weight(beta, f"{node.name}.bias"),
            ]
            self._made = network.insert(
                last, "GroupNormalization", inputs, {**epsilon, "num_groups": groups}, name=str(node.name)
            )
            return True
        each = (gamma.size,) + (1,) * (len(shape(x) or ()) - 2)
        arrays = {
            "groups": np.array([0, groups, -1], np.int64),
            "unit": np.ones(groups, gamma.dtype),
            "zero": np.zeros(groups, gamma.dtype),
            "scale": gamma.reshape(each),
            "bias": beta.reshape(each),
        }
        inputs = [x, *(network.weight(array, f"{node.name}.{key}") for key, array in arrays.items())]
        made = call(network, last, "GroupNormalization", inputs, epsilon)
        if made is None:
            return False
        self._made = made
        return True

    def _finish(self, network: Network, last: ir.Node) -> None:
        network.replace(last.outputs[0], self._made.outputs[0])


def _combine(
    scale: np.ndarray, bias: np.ndarray, gamma: np.ndarray | None, beta: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """(aγ, bγ + β) in the type of a."""
    g = np.ones(scale.size) if gamma is None else gamma.astype(np.float64)
    b = np.zeros(scale.size) if beta is None else beta.astype(np.float64)
    return (scale * g).astype(scale.dtype), (bias * g + b).astype(scale.dtype)
