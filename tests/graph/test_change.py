"""Graphs made from graphs: further outputs, fewer outputs, fixed shapes, functions inlined."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests import networks
from wetread.errors import GraphError
from wetread.graph import Graph, verify

X = np.random.default_rng(0).standard_normal((1, 1, 8, 8, 8)).astype(np.float32)


def test_further_outputs_are_what_evaluation_keeps() -> None:
    graph = Graph(networks.unet())
    more = graph.with_outputs(["conv_0", "logits", "concat_10"])
    verify(more)
    assert [entry.name for entry in more.outputs] == ["logits", "conv_0", "concat_10"]
    assert more.outputs[1].shape[1] == 8
    found, kept = more.evaluate({"image": X}), graph.evaluate({"image": X}, ["conv_0", "concat_10"])
    for name, array in kept.items():
        np.testing.assert_array_equal(found[name], array)
    assert len(graph.outputs) == 1
    with pytest.raises(GraphError, match="'nothing'"):
        graph.with_outputs(["nothing"])


def test_cut_leaves_what_the_output_needs() -> None:
    graph = Graph(networks.unet()).with_outputs(["conv_0"])
    assert len(graph.cut(["logits"]).nodes) == len(graph.nodes)
    short = graph.cut(["conv_0"])
    verify(short)
    assert [node.name for node in short.nodes] == ["conv_0"]
    assert set(short.weights) == {"conv_0.weight", "conv_0.bias"}
    inner = Graph(networks.unet()).cut(["leakyrelu_2"])
    assert [node.op_type for node in inner.nodes] == ["Conv", "InstanceNormalization", "LeakyRelu"]
    with pytest.raises(GraphError):
        graph.cut([])


def test_fixed_shapes_reach_the_outputs() -> None:
    graph = Graph(networks.unet((1, 3)))
    made = graph.fixed((16, 8, 24), batch=2)
    assert made.inputs[0].shape == (2, 1, 16, 8, 24)
    assert made.outputs[0].shape == (2, 3, 16, 8, 24)
    assert graph.fixed((16, 8, 24)).inputs[0].shape == (None, 1, 16, 8, 24)
    with pytest.raises(GraphError, match=r"\(15, 8, 24\)"):
        graph.fixed((15, 8, 24))
    with pytest.raises(GraphError, match="5 axes, expected 4"):
        graph.fixed((16, 8))


def with_functions() -> onnx.ModelProto:
    """y = Twice(Own(x)): one function of another domain, one of ours that calls the former."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1), helper.make_opsetid("wetread", 1)]
    twice = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], opsets[:1]
    )
    own = helper.make_function(
        "wetread", "Own", ["a"], ["b"], [helper.make_node("Twice", ["a"], ["b"], domain="local")], opsets[:2]
    )
    shape = ["n", 1, "i", "j", "k"]
    graph = helper.make_graph(
        [
            helper.make_node("Own", ["x"], ["m"], domain="wetread", name="own"),
            helper.make_node("Twice", ["m"], ["y"], domain="local"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=opsets, functions=[twice, own], ir_version=10)


def test_own_functions_stay_and_can_be_inlined() -> None:
    graph = Graph(with_functions())
    verify(graph)
    assert graph.operators == {"Own": 1, "Add": 1}
    assert graph.inlined().operators == {"Add": 2}
    assert not graph.inlined().model.functions
    np.testing.assert_array_equal(graph.evaluate({"x": X})["y"], 4.0 * X)
    again = Graph.from_ir(graph.ir())
    assert again.operators == graph.operators
    assert graph.with_outputs(["m"]).outputs[1].name == "m"
    assert not graph.cut(["y"]).cut(["x"]).model.functions
