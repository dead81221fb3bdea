"""Shifted windows: cyclic shifts, and images cut into windows and put together again (Liu et al. 2021).

roll(x, −s) along an axis is x[s:] followed by x[:s]. A partition into windows is a reshape that gives each
spatial axis a factor of its own, a transposition that brings these factors together, and a reshape that
makes one axis of them; the reverse goes the other way.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from wetread.graph.passes.base import Pass
from wetread.graph.passes.match import call, next_node
from wetread.graph.passes.network import Network, attribute, ints, only_user, producer, shape

_END = 2**31 - 1
_APART = [0, 1, 3, 5, 2, 4, 6, 7]
_TOGETHER = [0, 1, 4, 2, 5, 3, 6, 7]


class WindowsPass(Pass):
    """Recognises Roll, WindowPartition and WindowReverse."""

    name = "windows"
    requires = "shapes inferred, constants are initialisers"
    ensures = "cyclic shifts and window partitions of images (n, i, j, k, channels) are calls of functions"

    def run(self, network: Network) -> None:
        """Rolls from their Concat, partitions from their Transpose."""
        for node in network.nodes("Concat"):
            found = _roll(node)
            if found is not None:
                self._call(network, [node], node, "Roll", found[:2], {"axis": found[2], "axes": [found[2]]})
        for node in network.nodes("Transpose"):
            perm = attribute(node, "perm", None)
            name = {tuple(_APART): "WindowPartition", tuple(_TOGETHER): "WindowReverse"}.get(
                tuple(perm or ())
            )
            if name is None:
                continue
            into = producer(node.inputs[0], "Reshape")
            back = next_node(node.outputs[0], "Reshape")
            if into is None or back is None or not only_user(into.outputs[0]):
                network.declined([node], "no reshape before or after it")
                continue
            x = into.inputs[0]
            start = producer(x, "Reshape")
            nodes = [into, node, back]
            if (
                start is not None
                and x is not None
                and only_user(x)
                and 0 not in (ints(into.inputs[1]) or [0])
            ):
                x, nodes = start.inputs[0], [start, *nodes]  # two reshapes in a row are one
            self._call(network, nodes, back, name, [x, into.inputs[1], back.inputs[1]], None)

    def _call(
        self,
        network: Network,
        nodes: list[ir.Node],
        last: ir.Node,
        name: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, int | list[int]] | None,
    ) -> None:
        made = call(network, last, name, inputs, attributes)
        if made is None:
            network.declined(nodes, f"{name} needs operator set 15, the network has {network.opset}")
            return
        network.applied(nodes, f"recognised as {name}")
        network.replace(last.outputs[0], made.outputs[0])


def _roll(node: ir.Node) -> tuple[ir.Value, ir.Value, int] | None:
    """(x, where the first part begins, axis) of Concat(x[b:], x[:b])."""
    if len(node.inputs) != 2:
        return None
    parts = [_part(value) for value in node.inputs]
    if parts[0] is None or parts[1] is None:
        return None
    (x, begin, end, axis), (y, first, stop, other) = parts[0], parts[1]
    rank = len(shape(x) or ())
    along = int(attribute(node, "axis", 0))
    if x is not y or not rank or not axis % rank == other % rank == along % rank:
        return None
    values = [ints(v) for v in (begin, end, first, stop)]
    if any(v is None or len(v) != 1 for v in values):
        return None
    (b,), (e,), (f,), (s,) = (v for v in values if v is not None)
    whole = e >= _END or e == (shape(x) or ())[axis % rank]
    return (x, begin, axis % rank) if b == s and f == 0 and whole and b != 0 else None


def _part(value: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value, int] | None:
    """(x, begin, end, axis) of a slice along one axis without steps."""
    node = producer(value, "Slice")
    if node is None or len(node.inputs) < 4 or any(v is None for v in node.inputs[:4]):
        return None
    axes = ints(node.inputs[3])
    steps = ints(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else [1]
    x, begin, end = node.inputs[0], node.inputs[1], node.inputs[2]
    if axes is None or len(axes) != 1 or steps != [1] or x is None or begin is None or end is None:
        return None
    return x, begin, end, axes[0]
