"""What a network's inner tensors are for one window, and copies of it that give them out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from wetread.errors import GraphError
from wetread.graph.graph import Graph, numpy_name
from wetread.graph.shapes import infer, infer_window
from wetread.package import TensorEntry


def tensors(graph: Graph, window: Sequence[int]) -> dict[str, TensorEntry]:
    """Type and shape of every value that inference finds, for one window (batch 1).

    Args:
        graph: the network.
        window: sizes of the spatial axes of every input.

    Returns:
        By name; weights are left out, None stands for a size that inference does not tell.

    Raises:
        GraphError: the network does not take this window.
    """
    found = infer_window(graph.model, {e.name for e in graph.inputs}, window, graph.where)
    values = [*found.graph.input, *found.graph.value_info, *found.graph.output]
    return {
        value.name: _entry(value)
        for value in values
        if value.type.tensor_type.HasField("shape") and value.name not in graph.weights
    }


def _entry(value: onnx.ValueInfoProto) -> TensorEntry:
    kind = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    return TensorEntry(name=value.name, shape=shape, dtype=numpy_name(kind.elem_type))


def flat_outputs(graph: Graph, sizes: dict[str, int]) -> Graph:
    """A copy whose only outputs are these float32 tensors, each as (1, its size); other nodes are left out.

    Flattened, tensors that do not begin with a batch axis (windows of attention, for one) come out of an
    engine like any others. The outputs are named ``<tensor>/flat``, in the order of `sizes`.

    Raises:
        GraphError: there is no tensor of that name.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    made = {name for node in model.graph.node for name in node.output} | {e.name for e in graph.inputs}
    if unknown := sorted(set(sizes) - made):
        raise GraphError(f"there is no tensor {unknown[0]!r}", where=graph.where)
    needed = _needed(model, set(sizes))
    nodes = [node for node, kept in zip(model.graph.node, needed, strict=True) if kept]
    read = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in model.graph.initializer if tensor.name in read]
    outputs = []
    for name, size in sizes.items():
        flat = f"{name}/flat"
        weights.append(onnx.numpy_helper.from_array(np.array([1, size], np.int64), f"{flat}.shape"))
        nodes.append(helper.make_node("Reshape", [name, f"{flat}.shape"], [flat], name=flat))
        outputs.append(helper.make_tensor_value_info(flat, onnx.TensorProto.FLOAT, [1, size]))
    for field, items in (
        (model.graph.node, nodes),
        (model.graph.initializer, weights),
        (model.graph.output, outputs),
    ):
        del field[:]
        field.extend(items)
    del model.graph.value_info[:]
    return Graph(model, graph.where)


def _needed(model: onnx.ModelProto, names: set[str]) -> list[bool]:
    """For each node, whether one of the tensors depends on it."""
    wanted, kept = set(names), []
    for node in reversed(model.graph.node):
        kept.append(not wanted.isdisjoint(node.output))
        if kept[-1]:
            wanted.update(node.input)
    return kept[::-1]


def sizes_along(graph: Graph, axis: int) -> dict[str, int]:
    """Size of each value along an axis, where inference tells it for windows of any shape."""
    found = infer(_without_types(graph.model), strict=False)
    sizes = {}
    for value in (*found.graph.input, *found.graph.value_info, *found.graph.output):
        dims = value.type.tensor_type.shape.dim
        if -len(dims) <= axis < len(dims) and dims[axis].HasField("dim_value"):
            sizes[value.name] = int(dims[axis].dim_value)
    return sizes


def _without_types(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    return copy
