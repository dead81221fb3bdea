"""Inference of types and shapes, with what ONNX's own inference lacks."""

from __future__ import annotations

import onnx
from onnx import shape_inference

_AS_INPUT = {"GroupNormalization"}
"""Operators that ONNX 1.23 defines by a function whose types it cannot infer; output like the first input."""


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
    found = shape_inference.infer_shapes(stand_in, check_type=strict, strict_mode=strict, data_prop=True)
    for i, node in hidden:
        found.graph.node[i].CopyFrom(node)
    return found
