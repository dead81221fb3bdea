"""Attention recognised as one node: softmax(scale · q kᵀ [+ bias] [+ mask]) v.

Whole attention (ViT, UNETR), windows with a relative position bias, and shifted windows with a mask as well
(SwinUNETR: Liu et al. 2021, Hatamizadeh et al. 2022). q, k and v are (batch, heads, tokens, features).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from wetread.graph.passes.base import Pass
from wetread.graph.passes.match import call, next_node, times
from wetread.graph.passes.network import Network, attribute, ints, producer, shape


@dataclass
class _Scores:
    """What stands before a softmax; `turn` are the axes of k that make it (batch, heads, tokens, features)."""

    q: ir.Value
    k: ir.Value
    turn: tuple[int, ...] = (0, 1, 2, 3)
    scale: float = 1.0
    bias: ir.Value | None = None
    mask: ir.Value | None = None
    shapes: list[ir.Value] = field(default_factory=list)


class AttentionPass(Pass):
    """Recognises attention from its softmax."""

    name = "attention"
    requires = "shapes inferred, constants are initialisers"
    ensures = "each attention of heads is a call of Attention, WindowAttention or ShiftedWindowAttention"

    def run(self, network: Network) -> None:
        """One site for each Softmax over tokens."""
        for node in network.nodes("Softmax"):
            rank = len(shape(node.outputs[0]) or ())
            if rank != 4 or int(attribute(node, "axis", -1)) not in (-1, 3):
                network.declined([node], f"a softmax over axis {attribute(node, 'axis', -1)} of {rank}")
                continue
            product = _product(node.outputs[0])
            scores = _scores(node.inputs[0])
            if product is None or scores is None:
                network.declined([node], "no product of queries and keys before it, or of values after it")
                continue
            self._replace(network, node, scores, product)

    def _replace(
        self, network: Network, node: ir.Node, scores: _Scores, product: tuple[ir.Node, ir.Value]
    ) -> None:
        last, v = product
        kind = np.dtype(np.float32) if v.dtype is None else np.dtype(v.dtype.numpy())
        k = scores.k
        if scores.turn != (0, 1, 2, 3):  # the exporter has made one of two transpositions
            k = network.insert(last, "Transpose", [k], {"perm": list(scores.turn)}).outputs[0]
            k.shape = ir.Shape([(shape(scores.k) or ())[i] for i in scores.turn])
            k.type = scores.k.type
        inputs: list[ir.Value | None] = [scores.q, k, v]
        inputs.append(network.weight(np.array(scores.scale, kind), f"{node.name}.scale"))
        name = "Attention"
        if scores.mask is not None:
            name = "ShiftedWindowAttention"
            inputs += [scores.bias, scores.mask, *scores.shapes]
        elif scores.bias is not None:
            name = "WindowAttention"
            inputs.append(scores.bias)
        made = call(network, last, name, inputs)
        if made is None:
            network.declined([node], f"{name} needs operator set 15, the network has {network.opset}")
            return
        made.name = str(node.name)
        network.applied([node, last], f"recognised as {name}")
        network.replace(last.outputs[0], made.outputs[0])


def _product(p: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    """The product of probabilities with values: (node, v)."""
    node = next_node(p, "MatMul", "Einsum")
    if (
        node is None
        or node.inputs[0] is not p
        or node.inputs[1] is None
        or len(shape(node.inputs[1]) or ()) != 4
    ):
        return None
    if node.op_type == "Einsum" and not _equation(node, "abxy,abyd->abxd"):
        return None
    return node, node.inputs[1]


def _equation(node: ir.Node, wanted: str) -> bool:
    """Whether an Einsum means the same with other letters."""
    text = str(attribute(node, "equation", "")).replace(" ", "")
    names: dict[str, str] = {}
    spelt = "".join(names.setdefault(c, chr(ord("A") + len(names))) if c.isalpha() else c for c in text)
    names = {}
    return spelt == "".join(
        names.setdefault(c, chr(ord("A") + len(names))) if c.isalpha() else c for c in wanted
    )


def _scores(value: ir.Value | None) -> _Scores | None:
    """Strips mask, bias and scale off the scores, down to the product of queries and keys."""
    mask, shapes = None, []
    merged = producer(value, "Reshape")
    if merged is not None:
        masked = producer(merged.inputs[0], "Add")
        opened = producer(masked.inputs[0], "Reshape") if masked is not None else None
        if masked is None or opened is None or opened.inputs[1] is None or merged.inputs[1] is None:
            return None
        if len(shape(masked.inputs[1]) or ()) != 5 or len(shape(opened.outputs[0]) or ()) != 5:
            return None
        mask, shapes, value = masked.inputs[1], [opened.inputs[1], merged.inputs[1]], opened.inputs[0]
        if ints(opened.inputs[1]) is None or ints(merged.inputs[1]) is None:
            return None
    bias = None
    added = producer(value, "Add")
    if added is not None:
        value, bias = added.inputs
        if _multiplied(value) is None:
            value, bias = bias, value
    elif mask is not None:
        return None  # a mask without a bias is a form of its own, not met so far
    found = _multiplied(value)
    if found is None:
        return None
    found.bias, found.mask, found.shapes = bias, mask, shapes
    return found


def _multiplied(value: ir.Value | None) -> _Scores | None:
    """Scale · q kᵀ, with the scale on the product, the queries or the keys."""
    outer = times(value)
    scale = 1.0 if outer is None else outer[1]
    node = producer(value if outer is None else outer[0], "MatMul", "Einsum")
    if node is None or node.inputs[0] is None or node.inputs[1] is None:
        return None
    q, k = node.inputs[0], node.inputs[1]
    turn = [0, 1, 2, 3]
    if node.op_type == "Einsum":
        if not _equation(node, "abxd,abyd->abxy"):
            return None
    else:
        scaled = times(k)
        if scaled is not None:
            k, scale = scaled[0], scale * scaled[1]
        turned = producer(k, "Transpose")
        turn = list(attribute(turned, "perm", None) or ()) if turned is not None else []
        if turned is None or len(turn) != 4 or turned.inputs[0] is None:
            return None
        turn[2:] = turn[:1:-1]
        k = turned.inputs[0]
    scaled_q, scaled_k = times(q), times(k)
    if scaled_q is not None:
        q, scale = scaled_q[0], scale * scaled_q[1]
    if scaled_k is not None:
        k, scale = scaled_k[0], scale * scaled_k[1]
    if len(shape(q) or ()) != 4 or len(shape(k) or ()) != 4:
        return None
    return _Scores(q, k, tuple(turn), scale)
