"""A graph being changed: nodes and weights are added, taken and rewired, then it is a graph again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from wetread.errors import GraphError
from wetread.graph.graph import Graph

Node = Any
"""An `onnx.NodeProto`, for rooms that may not import onnx: name, op_type, input, output."""


class Draft:
    """A copy of a graph that may be changed; the graph itself stays as it is.

    Rooms above this one build quantised and half-precision networks with it, because only this one knows ONNX.

    Args:
        graph: the network; its nodes get names where they have none.

    Attributes:
        nodes: the nodes; order does not matter, `graph` sorts them.
        weights: initialisers by name; read them only.
    """

    def __init__(self, graph: Graph) -> None:
        self._where = graph.where
        self._model = onnx.ModelProto()
        self._model.CopyFrom(graph.model)
        self._names = {name for node in graph.nodes for name in (node.name, *node.output)}
        self._names |= {entry.name for entry in (*graph.inputs, *graph.outputs)} | set(graph.weights)
        self.nodes: list[Node] = [*self._model.graph.node]
        for node in self.nodes:
            if not node.name:
                node.name = self.fresh(f"{node.op_type}_{node.output[0]}")
        self.weights: dict[str, np.ndarray] = dict(graph.weights)
        self._tensors = {tensor.name: tensor for tensor in self._model.graph.initializer}

    def fresh(self, name: str) -> str:
        """A name that nothing else has, made from this one."""
        found, number = name, 1
        while found in self._names:
            number += 1
            found = f"{name}.{number}"
        self._names.add(found)
        return found

    def add_weight(self, name: str, array: np.ndarray) -> str:
        """Adds an initialiser of the array's own type (float8 as ml_dtypes has it); returns its name."""
        name = self.fresh(name)
        self.weights[name] = array
        self._tensors[name] = numpy_helper.from_array(np.array(array, order="C"), name)
        return name

    def set_weight(self, name: str, array: np.ndarray) -> None:
        """Puts other values, or another type, into an initialiser."""
        self.weights[name] = array
        self._tensors[name] = numpy_helper.from_array(np.array(array, order="C"), name)

    def add(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Adds a node with one output; returns the output's name, which is the node's too."""
        name = self.fresh(name)
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def cast(self, value: str, dtype: str, name: str) -> str:
        """Adds a cast to a numpy type; returns the name of what it gives."""
        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.add("Cast", [value], name, to=int(element))

    def rename_output(self, node: Node, number: int, name: str) -> None:
        """Gives an output of a node another name, without looking for who reads it."""
        node.output[number] = name
        self._names.add(name)

    def raise_opset(self, version: int) -> None:
        """Brings the operators to at least this version of the standard set.

        Nodes keep their names. Call it before anything is added.

        Raises:
            GraphError: ONNX's converter cannot.
        """
        from onnx import version_converter

        found = max(e.version for e in self._model.opset_import if e.domain in ("", "ai.onnx"))
        if found >= version:
            return
        names = {node.output[0]: node.name for node in self.nodes}
        try:
            self._model = version_converter.convert_version(self._assembled(), version)
        except (RuntimeError, ValueError) as error:
            raise GraphError(
                f"the network's operators cannot be brought from version {found} to {version}: {error}",
                where=self._where,
                todo=f"export the network with opset_version={version}",
            ) from error
        self.nodes = [*self._model.graph.node]
        for node in self.nodes:
            node.name = names.get(node.output[0]) or self.fresh(node.name or node.op_type)
        self._tensors = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self.weights = {name: numpy_helper.to_array(tensor) for name, tensor in self._tensors.items()}

    def graph(self) -> Graph:
        """The graph: nodes in an order in which values exist before they are read, unused weights left out.

        Raises:
            GraphError: a value is read that nothing writes, or the nodes form a circle.
        """
        return Graph(self._assembled(), self._where)

    def _assembled(self) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        graph = model.graph
        ordered = self._ordered()
        read = {name for node in ordered for name in node.input} | {value.name for value in graph.output}
        for field, items in (
            (graph.node, ordered),
            (graph.initializer, [t for name, t in self._tensors.items() if name in read]),
        ):
            del field[:]
            field.extend(items)
        kept = [value for value in graph.input if value.name in read or value.name not in self._tensors]
        del graph.input[:]
        graph.input.extend(kept)
        del graph.value_info[:]  # types may have changed; whoever needs them infers them
        return model

    def _ordered(self) -> list[Node]:
        """The nodes sorted; equal ones stay in their order."""
        known = {"", *self._tensors, *(value.name for value in self._model.graph.input)}
        left, ordered = list(self.nodes), []
        while left:
            waiting = []
            for node in left:
                if all(name in known for name in node.input):
                    ordered.append(node)
                    known.update(node.output)
                else:
                    waiting.append(node)
            if len(waiting) == len(left):
                missing = next(name for name in left[0].input if name not in known)
                raise GraphError(f"reads {missing!r}, which nothing writes", where=left[0].name)
            left = waiting
        return ordered


def attributes(node: Node) -> Mapping[str, Any]:
    """A node's attributes by name, as plain Python values (strings as bytes, tensors as onnx has them)."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
