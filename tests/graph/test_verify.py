"""Each rule of the verifier fires on a planted fault, and names the node."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import networks
from wetread.errors import GraphError, UnsupportedOperatorError
from wetread.graph import Graph, verify


def test_sound_networks_pass() -> None:
    for model in (
        networks.unet(),
        networks.unet(norm=False, window=(16, 8, 8), batch=1),
        networks.threshold(),
    ):
        verify(Graph(model))


def node(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.op_type == op)


def weight(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def dangling(model: onnx.ModelProto) -> str:
    node(model, "Concat").input[1] = "nowhere"
    return r"Concat.*reads 'nowhere'|reads 'nowhere'.*Concat"


def out_of_order(model: onnx.ModelProto) -> str:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    return "which nothing before it writes"


def written_twice(model: onnx.ModelProto) -> str:
    nodes = [n for n in model.graph.node if n.op_type == "LeakyRelu"]
    nodes[1].output[0] = nodes[0].output[0]
    return "exists already"


def no_output(model: onnx.ModelProto) -> str:
    model.graph.output[0].name = "other"
    return "no node writes this output.*other"


def wrong_channels(model: onnx.ModelProto) -> str:
    name = node(model, "Conv").input[1]
    tensor = weight(model, name)
    tensor.CopyFrom(numpy_helper.from_array(np.zeros((8, 3, 3, 3, 3), np.float32), name))
    return "conv_0"


def wrong_norm(model: onnx.ModelProto) -> str:
    name = node(model, "InstanceNormalization").input[1]
    weight(model, name).CopyFrom(numpy_helper.from_array(np.ones(7, np.float32), name))
    return "instancenormalization_1"


def wrong_bias(model: onnx.ModelProto) -> str:
    name = node(model, "Conv").input[2]
    weight(model, name).CopyFrom(numpy_helper.from_array(np.ones(7, np.float32), name))
    return "conv_0"


def wrong_type(model: onnx.ModelProto) -> str:
    name = node(model, "Conv").input[1]
    tensor = weight(model, name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), name))
    return "conv_0"


def wrong_output_shape(model: onnx.ModelProto) -> str:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    return "7"


def unknown_attribute(model: onnx.ModelProto) -> str:
    node(model, "LeakyRelu").attribute.append(helper.make_attribute("slope", 0.1))
    return "leakyrelu_2.*|slope"


def unknown_operator(model: onnx.ModelProto) -> str:
    node(model, "LeakyRelu").op_type = "LeekyRelu"
    return "LeekyRelu"


def nan_weight(model: onnx.ModelProto) -> str:
    name = node(model, "Conv").input[1]
    array = numpy_helper.to_array(weight(model, name)).copy()
    array[0, 0, 1, 1, 1] = np.nan
    weight(model, name).CopyFrom(numpy_helper.from_array(array, name))
    return r"1 of \d+ weights are NaN or infinite.*conv_0\.weight"


def infinite_weight(model: onnx.ModelProto) -> str:
    name = node(model, "Conv").input[2]
    array = numpy_helper.to_array(weight(model, name)).copy()
    array[1] = np.inf
    weight(model, name).CopyFrom(numpy_helper.from_array(array, name))
    return r"conv_0\.bias"


def short_weight(model: onnx.ModelProto) -> str:
    name = node(model, "Conv").input[1]
    weight(model, name).raw_data = weight(model, name).raw_data[:-4]
    return r"conv_0\.weight"


def custom_domain(model: onnx.ModelProto) -> str:
    node(model, "LeakyRelu").domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return "com.microsoft"


def random_numbers(model: onnx.ModelProto) -> str:
    found = node(model, "LeakyRelu")
    found.op_type = "RandomNormalLike"
    del found.attribute[:]
    return "repeatable.*leakyrelu_2"


def old_opset(model: onnx.ModelProto) -> str:
    model.opset_import[0].version = 9
    return "operator set is 9"


def future_opset(model: onnx.ModelProto) -> str:
    model.opset_import[0].version = 999
    return "operator set is 999"


@pytest.mark.parametrize(
    "plant",
    [
        dangling, out_of_order, written_twice, no_output, wrong_channels, wrong_norm, wrong_bias, wrong_type,
        wrong_output_shape, unknown_attribute, unknown_operator, nan_weight, infinite_weight, short_weight,
        custom_domain, random_numbers, old_opset, future_opset,
    ],
)  # fmt: skip
def test_planted_fault(plant: Callable[[onnx.ModelProto], str]) -> None:
    model = networks.unet()
    expected = plant(model)
    with pytest.raises(GraphError, match=expected):
        verify(Graph(model))


def test_control_flow_is_refused() -> None:
    shape = (1, 1, 4, 4, 4)
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])], "b", [], [helper.make_tensor_value_info("z", 1, shape)]
    )
    nodes = [helper.make_node("If", ["c"], ["y"], name="choose", then_branch=branch, else_branch=branch)]
    model = helper.make_model(
        helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", 1, shape)], [helper.make_tensor_value_info("y", 1, shape)],
            [numpy_helper.from_array(np.array(True), "c")],
        ),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=10,
    )  # fmt: skip
    with pytest.raises(GraphError, match=r"control flow.*choose"):
        verify(Graph(model))


def test_training_mode_is_refused() -> None:
    b = networks.Builder()
    names = [b.constant(np.ones(1, np.float32), n) for n in ("s", "b", "m", "v")]
    x = b.add("BatchNormalization", ["image", *names], outputs=3, training_mode=1)
    model = b.model({"image": (1, 1, 4, 4, 4)}, {"out": (x, (1, 1, 4, 4, 4))})
    with pytest.raises(GraphError, match=r"training mode.*batchnormalization_0"):
        verify(Graph(model))


def test_operators_that_an_engine_does_not_know_are_all_named() -> None:
    with pytest.raises(
        UnsupportedOperatorError, match="tiny does not know the operators ConvTranspose, LeakyRelu"
    ):
        verify(Graph(networks.unet(norm=False)), known={"Conv", "Concat"}, engine="tiny")


def test_infinite_limits_are_allowed() -> None:
    b = networks.Builder()
    low = b.constant(np.array(-np.inf, np.float32), "low")
    x = b.add("Clip", ["image", low])
    verify(Graph(b.model({"image": (1, 1, 4, 4, 4)}, {"out": (x, (1, 1, 4, 4, 4))})))


def test_types_are_known_behind_group_normalisation() -> None:
    """ONNX's own inference stops there."""
    b = networks.Builder()
    s, o = b.constant(np.ones(4, np.float32), "s"), b.constant(np.zeros(4, np.float32), "o")
    x = b.add("Relu", [b.add("GroupNormalization", [b.conv("image", (1, 4)), s, o], num_groups=2)])
    model = b.model({"image": (None, 1, *networks.FREE)}, {"out": (x, (None, 4, *networks.FREE))}, opset=21)
    verify(Graph(model))
    assert Graph(model).output_shapes((4, 6, 8)) == {"out": (1, 4, 4, 6, 8)}
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
