"""A copy of a network in which every floating-point type is float64."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
_TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "stash_type", "softmax_precision", "precision"}


def to_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turns float32, float16 and bfloat16 into float64: weights, constants, casts, inputs and outputs.

    Quantised types stay as they are, so that what quantise nodes round away stays away; the arithmetic between
    them becomes float64. Values of float16 networks are no longer rounded to float16.
    """
    model = _copy(model)
    graph = model.graph
    for i, tensor in enumerate(graph.initializer):
        if tensor.data_type in _FLOATS:
            graph.initializer[i].CopyFrom(_double(tensor))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in _FLOATS:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del graph.value_info[:]
    for node in graph.node:
        _double_node(node)
    return model


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _double(tensor: onnx.TensorProto) -> onnx.TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)


def _double_node(node: onnx.NodeProto) -> None:
    """Rewrites attributes that hold floating-point tensors or name floating-point types."""
    for attribute in node.attribute:
        if attribute.HasField("t") and attribute.t.data_type in _FLOATS:
            attribute.t.CopyFrom(_double(attribute.t))
        elif attribute.name in _TYPE_ATTRIBUTES and attribute.i in _FLOATS and node.op_type != "Cast":
            if attribute.name != "stash_type":  # the evaluator takes no other; it follows its input in fact
                attribute.i = TensorProto.DOUBLE
        elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in _FLOATS:
            attribute.i = TensorProto.DOUBLE
        elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            value = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            tensor = numpy_helper.from_array(np.array(value, np.float64))
            attribute.CopyFrom(helper.make_attribute("value", tensor))
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))
