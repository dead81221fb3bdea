"""The network without its weights: small enough to verify and to infer shapes of after every pass."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from wetread.graph.graph import Graph
from wetread.graph.shapes import infer

LARGE = 1024
"""Elements from which a weight is left out; smaller ones may be shapes, axes and the like."""

Types = dict[str, tuple[int, tuple[int, ...] | None]]
"""By value: ONNX element type, and shape where every size is known."""


def skeleton(model: ir.Model, where: str) -> Graph:
    """A copy in which large weights are inputs of the same type and shape.

    The copy passes `wetread.graph.verify` exactly where the model does, but for the finiteness of its large
    weights, and takes milliseconds where the model takes seconds.
    """
    small = model.clone()
    graph = small.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.size <= LARGE or value.is_graph_output():
            continue
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        del graph.initializers[name]
        value.const_value = None
        if value not in graph.inputs:
            graph.inputs.append(value)
    return Graph.from_ir(small, where)


def types(small: Graph, inputs: Sequence[str], window: Sequence[int] | None) -> Types:
    """Type and shape of every value for one window.

    Args:
        small: a skeleton.
        inputs: names of the network's own inputs.
        window: spatial sizes of them; None takes the sizes that they declare. A free batch is 1.
    """
    model = onnx.ModelProto()
    model.CopyFrom(small.model)
    for value in model.graph.input:
        if value.name in inputs and window is not None:
            dims = value.type.tensor_type.shape.dim
            if not dims[0].HasField("dim_value"):
                dims[0].dim_value = 1
            for dim, size in zip(dims[2:], window, strict=True):
                dim.dim_value = size
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    found = infer(model)
    return {
        value.name: _type(value)
        for value in (*found.graph.input, *found.graph.value_info, *found.graph.output)
    }


def _type(value: onnx.ValueInfoProto) -> tuple[int, tuple[int, ...] | None]:
    kind = value.type.tensor_type
    if not kind.HasField("shape") or not all(dim.HasField("dim_value") for dim in kind.shape.dim):
        return kind.elem_type, None
    return kind.elem_type, tuple(dim.dim_value for dim in kind.shape.dim)
