"""Element types: what each value is, and which of a node's tensors may be float16."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import defs

from wetread.graph.draft import Node
from wetread.graph.graph import Graph, numpy_name
from wetread.graph.shapes import infer

_HALF = "tensor(float16)"


def element_types(graph: Graph) -> dict[str, str]:
    """Numpy name of the element type of each value and weight that inference tells."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.value_info[:]
    found = infer(model, strict=False).graph
    types = {
        value.name: numpy_name(value.type.tensor_type.elem_type)
        for value in (*found.input, *found.value_info, *found.output)
        if value.type.tensor_type.elem_type
    }
    return types | {name: array.dtype.name for name, array in graph.weights.items()}


@dataclass(frozen=True)
class HalfPlaces:
    """Which float tensors of a node may be float16: numbers of inputs and outputs."""

    inputs: frozenset[int]
    outputs: frozenset[int]


def half_places(node: Node, opset: int) -> HalfPlaces | None:
    """Where the standard lets a node take and give float16; None where it computes nothing in a type of its own.

    An output follows the inputs that share its type variable. A node whose output type hangs on an attribute
    (Cast, ConstantOfShape) or that is no standard operator gives None, and so do quantise nodes.
    """
    if node.domain not in ("", "ai.onnx") or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return None
    try:
        schema = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        return None
    takes = {c.type_param_str: _HALF in c.allowed_type_strs for c in schema.type_constraints}

    def variable(formals: list[defs.OpSchema.FormalParameter], number: int) -> str:
        return str(formals[min(number, len(formals) - 1)].type_str)

    into, out = list(schema.inputs), list(schema.outputs)
    inputs = frozenset(n for n in range(len(node.input)) if takes.get(variable(into, n), False))
    variables = {variable(into, n) for n in inputs}
    outputs = frozenset(n for n in range(len(node.output)) if variable(out, n) in variables)
    return HalfPlaces(inputs, outputs) if inputs and outputs else None
