"""Inference of types and shapes, with what ONNX's own inference lacks."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx
from onnx import shape_inference

from wetread.errors import GraphError

_AS_INPUT = {"GroupNormalization"}
"""Operators that ONNX 1.23 defines by a function whose types it cannot infer; output like the first input."""

_LARGE = 1 << 14
"""Bytes of a weight from which its values are of no use to inference: it is no shape and no list of axes."""


def infer(model: onnx.ModelProto, strict: bool = True) -> onnx.ModelProto:
    """A copy of the model with the type and shape of every value that can be inferred.

    Raises:
        onnx.shape_inference.InferenceError: types or shapes do not agree (`strict` only).
    """
    stand_in = onnx.ModelProto()
    stand_in.CopyFrom(model)
    hidden: list[tuple[int, onnx.NodeProto]] = []
    for i, node in enumerate(model.graph.node):
        if node.op_type in _AS_INPUT:
            hidden.append((i, node))
            same = onnx.helper.make_node("Identity", node.input[:1], node.output[:1], name=node.name)
            stand_in.graph.node[i].CopyFrom(same)
    large = _hide_large(stand_in)
    found = shape_inference.infer_shapes(stand_in, check_type=strict, strict_mode=strict, data_prop=True)
    if large:
        del found.graph.initializer[:]
        found.graph.initializer.extend(model.graph.initializer)
        for i in reversed(range(len(found.graph.input))):
            if found.graph.input[i].name in large:
                del found.graph.input[i]
    for i, node in hidden:
        found.graph.node[i].CopyFrom(node)
    return found


def _hide_large(model: onnx.ModelProto) -> set[str]:
    """Turns large weights into inputs of their type, in place: inference would write and parse all their bytes."""
    graph = model.graph
    listed = {value.name for value in graph.input}
    large = {}
    for tensor in graph.initializer:
        if tensor.ByteSize() > _LARGE and tensor.name not in listed and tensor.name not in large:
            large[tensor.name] = onnx.helper.make_tensor_value_info(
                tensor.name, tensor.data_type, tensor.dims
            )
    for i in reversed(range(len(graph.initializer))):
        if graph.initializer[i].name in large:
            del graph.initializer[i]
    graph.input.extend(large.values())
    return set(large)


def infer_window(
    model: onnx.ModelProto, inputs: Collection[str], window: Sequence[int], where: str
) -> onnx.ModelProto:
    """A copy with all that can be inferred for one window (batch 1); what the model declares itself is dropped.

    Args:
        model: the network.
        inputs: names of its inputs.
        window: sizes of the spatial axes of each of them.
        where: the network's name in messages.

    Raises:
        GraphError: the network does not take this window; names the node.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        if value.name in inputs:
            dims = value.type.tensor_type.shape.dim
            for dim, size in zip((dims[0], *dims[2:]), (1, *window), strict=True):
                dim.dim_value = size
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
    try:
        return infer(fixed)
    except shape_inference.InferenceError as error:
        raise GraphError(
            f"the network does not take windows of {tuple(window)}: {str(error).strip()}", where=where
        ) from error
