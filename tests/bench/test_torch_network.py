"""ONNX operators in PyTorch against the float64 evaluator."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests import networks
from wetread.errors import UnsupportedOperatorError
from wetread.graph import Graph

pytestmark = pytest.mark.peer


def check(model: onnx.ModelProto, image: np.ndarray, atol: float = 1e-5) -> None:
    """Float32 in PyTorch against float64, relative to the largest output."""
    import torch

    from wetread.bench.peers.torch_network import TorchNetwork

    graph = Graph(model)
    with torch.inference_mode():
        found = TorchNetwork(graph).eval()(torch.from_numpy(image)).numpy()
    expected = graph.evaluate({graph.inputs[0].name: image})[graph.outputs[0].name]
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("make", [networks.unet, networks.classifier, lambda: networks.unet(norm=False)])
def test_networks(make):
    check(make(), np.random.default_rng(0).standard_normal((1, 1, 8, 8, 8)).astype(np.float32))


RNG = np.random.default_rng(1)
CONSTANTS = {
    "c4": RNG.random(4).astype(np.float32) + 0.5,
    "d4": RNG.standard_normal(4).astype(np.float32),
    "e4": RNG.random(4).astype(np.float32) + 0.5,
    "row": RNG.standard_normal(6).astype(np.float32),
    "channel": RNG.standard_normal((4, 1, 1, 1)).astype(np.float32),
    "two": np.array(2.0, np.float32),
    "low": np.array(-0.5, np.float32),
    "high": np.array(0.5, np.float32),
    "none": np.array([], np.float32),
    "half": np.array([1, 1, 2, 2, 2], np.float32),
    "size": np.array([1, 4, 5, 9, 7]),
    "twice": np.array([1, 4, 8, 16, 12]),
    "pads": np.array([0, 0, 1, 0, 2, 0, 0, 0, 1, 1]),
    "minus": np.array(-3.0, np.float32),
    "starts": np.array([1, 0]), "ends": np.array([2**40, -1]), "axes": np.array([2, 4]), "steps": np.array([2, 1]),
    "shape": np.array([0, 2, 2, -1]),
    "axis1": np.array([1]), "axes23": np.array([2, 3]),
    "parts": np.array([1, 3]), "index": np.array([2, 0, -1]),
    "square": RNG.standard_normal((6, 3)).astype(np.float32),
    "kernel": (RNG.standard_normal((4, 2, 3, 3, 3)) * 0.2).astype(np.float32),
    "up": (RNG.standard_normal((4, 3, 2, 2, 2)) * 0.3).astype(np.float32),
}  # fmt: skip
CASES = [
    ("Conv", ["x", "kernel", "d4"], {"group": 2, "pads": [1, 0, 2, 1, 1, 0], "strides": [1, 2, 1]}),
    ("Conv", ["x", "kernel"], {"group": 2, "pads": [2] * 6, "dilations": [2, 2, 2]}),
    ("ConvTranspose", ["x", "up"], {"strides": [2, 2, 2]}),
    ("MaxPool", ["x"], {"kernel_shape": [2, 3, 2], "strides": [2, 2, 2], "pads": [0, 1, 0, 0, 1, 1]}),
    ("AveragePool", ["x"], {"kernel_shape": [2, 2, 3], "strides": [2, 2, 1], "pads": [0, 0, 1, 0, 0, 1]}),
    ("GlobalAveragePool", ["x"], {}),
    ("BatchNormalization", ["x", "c4", "d4", "d4", "e4"], {"epsilon": 1e-3}),
    ("InstanceNormalization", ["x", "c4", "d4"], {}),
    ("LayerNormalization", ["x", "row", "row"], {"axis": -1}),
    ("LeakyRelu", ["x"], {"alpha": 0.2}),
    ("Elu", ["x"], {"alpha": 0.7}),
    ("Gelu", ["x"], {}),
    ("Gelu", ["x"], {"approximate": "tanh"}),
    ("PRelu", ["x", "channel"], {}),
    ("Softmax", ["x"], {"axis": 1}),
    ("Clip", ["x", "low", "high"], {}),
    ("Clip", ["x", "", "high"], {}),
    ("Mish", ["x"], {}),
    ("HardSwish", ["x"], {}),
    ("Erf", ["x"], {}),
    ("Softplus", ["x"], {}),
    ("Pow", ["x", "two"], {}),
    ("Mul", ["x", "channel"], {}),
    ("Div", ["x", "channel"], {}),
    ("Max", ["x", "low"], {}),
    ("MatMul", ["x", "square"], {}),
    ("Concat", ["x", "x"], {"axis": 1}),
    ("Pad", ["x", "pads", "minus"], {}),
    ("Pad", ["x", "pads"], {"mode": "edge"}),
    ("Slice", ["x", "starts", "ends", "axes", "steps"], {}),
    ("Transpose", ["x"], {"perm": [0, 2, 1, 4, 3]}),
    ("Reshape", ["x", "shape"], {}),
    ("Flatten", ["x"], {"axis": 2}),
    ("Unsqueeze", ["x", "axes23"], {}),
    ("Gather", ["x", "index"], {"axis": 1}),
    ("ReduceMean", ["x", "axes23"], {"keepdims": 0}),
    ("ReduceSum", ["x"], {}),
    ("Resize", ["x", "", "half"], {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
                                   "nearest_mode": "floor"}),
    ("Resize", ["x", "", "half"], {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}),
    ("Resize", ["x", "", "", "size"], {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    ("Resize", ["x", "", "", "size"], {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
                                       "nearest_mode": "floor"}),
    ("Resize", ["x", "", "", "twice"], {"mode": "nearest"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)]
)
def test_operators(operator, inputs, attributes):
    used = [
        numpy_helper.from_array(CONSTANTS[name], name) for name in dict.fromkeys(inputs) if name in CONSTANTS
    ]
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, ["y"], name="node", **attributes)],
        "one",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4, 4, 8, 6])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        used,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    check(model, RNG.standard_normal((1, 4, 4, 8, 6)).astype(np.float32))


@pytest.mark.parametrize("opset", [18, 21])
def test_group_norm(opset):
    count = 2 if opset == 18 else 4
    weights = [numpy_helper.from_array(RNG.random(count).astype(np.float32), name) for name in ("s", "b")]
    graph = helper.make_graph(
        [helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], name="node", num_groups=2)],
        "one",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4, 4, 8, 6])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4, 4, 8, 6])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    check(model, RNG.standard_normal((1, 4, 4, 8, 6)).astype(np.float32))


def test_what_is_not_known_is_named():
    from wetread.bench.peers.torch_network import TorchNetwork

    graph = helper.make_graph(
        [helper.make_node("Hardmax", ["x"], ["y"], name="odd")],
        "one",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, 2, 2, 2])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 1, 2, 2, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(UnsupportedOperatorError, match="Hardmax"):
        TorchNetwork(Graph(model))
