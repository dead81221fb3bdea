"""The network as passes work on it: an `onnx_ir` model with the questions that every pass asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from wetread.graph.passes.report import Site

SMALL = 1 << 16
"""Elements up to which a pass looks into a constant whose values decide whether it applies."""


class Network:
    """A model under change, and the sites that the running pass reported.

    Passes replace values: the new value takes the name, type and users of the old one, and nodes that nothing
    reads any more are removed after the pass. So a pass need not ask who else reads an inner value of its
    match, unless computing it twice would cost.

    Args:
        model: changed in place.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.sites: list[Site] = []

    @property
    def graph(self) -> ir.Graph:
        """The main graph."""
        return self.model.graph

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return int(self.graph.opset_imports.get("", 0))

    def nodes(self, *operators: str) -> Iterator[ir.Node]:
        """Nodes of the standard domain with one of these operators, in their order, safe against changes."""
        for node in list(self.graph):
            if node.domain == "" and (not operators or node.op_type in operators) and node.graph is not None:
                yield node

    def applied(self, nodes: Sequence[ir.Node], reason: str) -> None:
        """Reports a site that was rewritten."""
        self.sites.append(Site(tuple(str(node.name) for node in nodes), True, reason))

    def declined(self, nodes: Sequence[ir.Node], reason: str) -> None:
        """Reports a site that was left as it is."""
        self.sites.append(Site(tuple(str(node.name) for node in nodes), False, reason))

    def weight(self, array: np.ndarray, name: str) -> ir.Value:
        """A new initialiser; the name gets a number where it is taken."""
        taken, unique, i = self.graph.initializers, name, 1
        while unique in taken:
            unique, i = f"{name}.{i}", i + 1
        tensor = ir.Tensor(np.asarray(array, order="C"), name=unique)
        value = ir.Value(
            name=unique, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def insert(
        self,
        before: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        domain: str = "",
        outputs: int = 1,
        name: str = "",
    ) -> ir.Node:
        """A new node in front of another; unnamed values get names when the pass ends."""
        node = ir.node(op, list(inputs), attributes or None, domain=domain, num_outputs=outputs, name=name)
        self.graph.insert_before(before, node)
        return node

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Lets every reader of `old` read `new`, which takes its name, type and shape.

        Nodes that nothing reads any more are removed at once.
        """
        node = old.producer()
        if node is None:
            raise ValueError(f"{old.name!r} is no node's output")
        ir.convenience.replace_nodes_and_values(self.graph, node, [], [], [old], [new])
        old.name = f"{old.name}_before"
        self.prune(node)

    def prune(self, node: ir.Node) -> None:
        """Removes a node that nothing reads, and what only it read."""
        waiting = [node]
        while waiting:
            dead = waiting.pop()
            if dead.graph is None or any(v.uses() or v.is_graph_output() for v in dead.outputs):
                continue
            waiting.extend(n for v in dead.inputs if v is not None and (n := v.producer()) is not None)
            self.graph.remove(dead, safe=True)


def constant(value: ir.Value | None, limit: int | None = None) -> np.ndarray | None:
    """The array of an initialiser or of a Constant node; None where the value is computed, or above `limit`."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or (limit is not None and tensor.size > limit):
        return None
    array: np.ndarray = tensor.numpy()
    return array


def scalar(value: ir.Value | None) -> float | None:
    """The number of a constant of one element; None for anything else."""
    array = constant(value, 1)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def ints(value: ir.Value | None) -> list[int] | None:
    """The numbers of a small constant of integers."""
    array = constant(value, SMALL)
    if array is None or array.dtype.kind not in "iu":
        return None
    return [int(v) for v in array.reshape(-1)]


def producer(value: ir.Value | None, *operators: str) -> ir.Node | None:
    """The node that writes a value, where it has one of these standard operators."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain == "" and node.op_type in operators else None


def users(value: ir.Value) -> list[ir.Node]:
    """Nodes that read a value, each once."""
    return list(dict.fromkeys(use.node for use in value.uses()))


def only_user(value: ir.Value) -> bool:
    """Whether one node alone reads the value, and it is no output of the network."""
    return len(users(value)) == 1 and not value.is_graph_output()


def shape(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """Shape with None for free sizes; None where not even the number of axes is known."""
    if value is None or value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def static(value: ir.Value | None) -> tuple[int, ...] | None:
    """Shape where every size is known."""
    found = shape(value)
    return None if found is None or None in found else tuple(size for size in found if size is not None)


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Value of an attribute; strings as str, lists as lists."""
    found = node.attributes.get(name)
    if found is None:
        return default
    value = found.value
    return list(value) if isinstance(value, tuple | list) else value
