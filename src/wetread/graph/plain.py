"""A network's nodes as plain data, for rooms that know no ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
from onnx import helper, numpy_helper

from wetread.graph.graph import Graph


@dataclass(frozen=True, eq=False)
class Operation:
    """One node.

    Attributes:
        operator: its type, in the standard domain.
        name: for messages.
        inputs, outputs: names of values; an optional input that is not given is empty.
        attributes: Python values; strings as text, tensors as arrays.
    """

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


def operations(graph: Graph) -> list[Operation]:
    """The nodes in their order, functions inlined."""
    return [operation_of(node) for node in graph.inlined().nodes]


def operation_of(node: onnx.NodeProto) -> Operation:
    """One node as plain data."""
    return Operation(
        node.op_type,
        node.name,
        tuple(node.input),
        tuple(node.output),
        {item.name: _value(helper.get_attribute_value(item)) for item in node.attribute},
    )


def _value(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return value.decode() if isinstance(value, bytes) else value
