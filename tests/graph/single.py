"""One operator as a network, run by us in float64 and by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from wetread.graph import Graph
from wetread.graph.shapes import infer


def model(
    op: str,
    inputs: Sequence[np.ndarray | None],
    fixed: Sequence[int] = (),
    opset: int = 18,
    **attributes: object,
) -> onnx.ModelProto:
    """A network of one node. Inputs whose number is in `fixed` become weights; None leaves an optional one out."""
    names = ["" if a is None else f"in{i}" for i, a in enumerate(inputs)]
    infos, weights = [], []
    for i, (name, array) in enumerate(zip(names, inputs, strict=True)):
        if array is None:
            continue
        if i in fixed:
            weights.append(numpy_helper.from_array(array, name))
        else:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            infos.append(helper.make_tensor_value_info(name, kind, array.shape))
    while names and not names[-1]:
        names.pop()
    node = helper.make_node(op, names, ["out"], name="it", **attributes)
    graph = helper.make_graph([node], "one", infos, [onnx.ValueInfoProto(name="out")], weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return infer(made)


def run_ours(made: onnx.ModelProto, inputs: Sequence[np.ndarray | None]) -> np.ndarray:
    graph = Graph(made)
    names = {entry.name for entry in graph.inputs}
    feed = {f"in{i}": a for i, a in enumerate(inputs) if f"in{i}" in names and a is not None}
    return graph.evaluate(feed)["out"]


def run_peer(made: onnx.ModelProto, inputs: Sequence[np.ndarray | None]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, ["CPUExecutionProvider"])
    names = {i.name for i in session.get_inputs()}
    return session.run(None, {f"in{i}": a for i, a in enumerate(inputs) if f"in{i}" in names})[0]
