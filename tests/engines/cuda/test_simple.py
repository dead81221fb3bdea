"""Pooling, resizing and pointwise chains: lowered and compared with the float64 evaluator."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from tests.engines.cuda.lowering import kinds, lowered_step_by_step  # noqa: E402
from wetread.engines.cuda.lower import lower  # noqa: E402
from wetread.errors import UnsupportedOperatorError  # noqa: E402
from wetread.graph import Graph  # noqa: E402

pytestmark = pytest.mark.peer
SINGLE = 2e-6  # relative L2 of float32 results of a few operations; one rounding is 6e-8
HALF = 4e-3  # a few roundings to float16, 2**-11 each; an exponential multiplies that of its input


def network(nodes, channels=3, out="y", constants=None, opset=20):
    """A graph from x (n, channels, d, h, w) to `out`; nodes are (operator, inputs, outputs, attributes)."""
    made = [helper.make_node(op, ins, outs, name=outs[0], **at) for op, ins, outs, at in nodes]
    graph = helper.make_graph(
        made, "test", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, "d", "h", "w"])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    from onnx import shape_inference

    return Graph(shape_inference.infer_shapes(model))


WINDOW = (6, 8, 7)
POOLS = {
    "max": ("MaxPool", {"kernel_shape": [3, 3, 3], "strides": [2, 2, 2], "pads": [1] * 6}),
    "max ceil": ("MaxPool", {"kernel_shape": [3, 2, 2], "strides": [2, 2, 2], "ceil_mode": 1}),
    "max dilated": ("MaxPool", {"kernel_shape": [2, 2, 2], "dilations": [2, 3, 1]}),
    "max same": ("MaxPool", {"kernel_shape": [2, 3, 2], "strides": [2, 2, 2], "auto_pad": "SAME_UPPER"}),
    "average": ("AveragePool", {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}),
    "average pads": ("AveragePool", {"kernel_shape": [3, 3, 3], "strides": [1, 2, 2], "pads": [1] * 6}),
    "average counts": (
        "AveragePool",
        {"kernel_shape": [3] * 3, "strides": [2] * 3, "pads": [1, 0, 1, 0, 1, 1], "count_include_pad": 1,
         "ceil_mode": 1},
    ),
    "average dilated": ("AveragePool", {"kernel_shape": [2, 2, 2], "dilations": [2, 1, 2], "strides": [1, 2, 1]}),
    "global average": ("GlobalAveragePool", {}),
    "global max": ("GlobalMaxPool", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_pool(name, precision):
    operator, attributes = POOLS[name]
    graph = network([(operator, ["x"], ["y"], attributes)])
    program = lowered_step_by_step(graph, WINDOW, 2, precision, SINGLE if precision == "float32" else HALF)
    assert "pool" in kinds(program) and "torch" not in kinds(program)


@pytest.mark.parametrize("keep", [0, 1])
def test_reductions_over_space(keep):
    graph = network(
        [
            ("ReduceMean", ["x", "axes"], ["m"], {"keepdims": keep}),
            ("ReduceMax", ["x", "axes"], ["q"], {"keepdims": keep}),
            ("Add", ["m", "q"], ["y"], {}),
        ],
        constants={"axes": np.array([2, -2, -1])},
    )
    program = lowered_step_by_step(graph, WINDOW, 2, "float32", SINGLE)
    assert kinds(program).count("pool") == 2 and "torch" not in kinds(program)


RESIZES = {
    "nearest": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    "nearest half": {"mode": "nearest", "coordinate_transformation_mode": "half_pixel"},
    "linear": {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
    "linear corners": {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    "linear pytorch": {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
    "linear inside": {"mode": "linear", "exclude_outside": 1},
    "cubic": {"mode": "cubic", "cubic_coeff_a": -0.5},
}


@pytest.mark.parametrize("name", RESIZES)
@pytest.mark.parametrize("factors", [(2, 2, 2), (1.5, 1, 2), (0.5, 0.5, 3)], ids=str)
def test_resize(name, factors):
    scales = np.array([1, 1, *factors], np.float32)
    graph = network([("Resize", ["x", "", "s"], ["y"], RESIZES[name])], constants={"s": scales})
    program = lowered_step_by_step(graph, WINDOW, 2, "float32", SINGLE)
    assert "resize" in kinds(program) and "torch" not in kinds(program)


def test_resize_to_sizes():
    graph = network(
        [("Resize", ["x", "", "", "s"], ["y"], {"mode": "linear", "axes": [2, 3, 4]})],
        constants={"s": np.array([9, 5, 14], np.int64)},
    )
    program = lowered_step_by_step(graph, WINDOW, 2, "float32", SINGLE)
    assert "resize" in kinds(program) and "torch" not in kinds(program)


def test_upsampling_takes_residual_and_activation():
    graph = network(
        [
            ("MaxPool", ["x"], ["half"], {"kernel_shape": [2] * 3, "strides": [2] * 3}),
            ("Resize", ["half", "", "s"], ["up"], {"mode": "linear"}),
            ("Add", ["up", "x"], ["sum"], {}),
            ("Relu", ["sum"], ["y"], {}),
        ],
        constants={"s": np.array([1, 1, 2, 2, 2], np.float32)},
    )
    program = lowered_step_by_step(graph, (4, 6, 8), 2, "float32", SINGLE)
    (resize,) = (s for s in program.steps if s.op == "resize")
    assert "residual" in resize.inputs and resize.attributes["activation"]["name"] == "relu"


CHAINS = {
    "arithmetic": [
        ("Mul", ["x", "c"], ["a"], {}), ("Add", ["a", "one"], ["b"], {}), ("Sub", ["b", "x"], ["d"], {}),
        ("Exp", ["d"], ["e"], {}), ("Div", ["e", "one"], ["y"], {}),
    ],
    "activations": [
        ("LeakyRelu", ["x"], ["a"], {"alpha": 0.2}), ("Sigmoid", ["a"], ["b"], {}), ("Mul", ["a", "b"], ["d"], {}),
        ("Gelu", ["d"], ["e"], {"approximate": "tanh"}), ("Tanh", ["e"], ["y"], {}),
    ],
    "rare": [
        ("Elu", ["x"], ["a"], {"alpha": 0.7}), ("HardSigmoid", ["a"], ["b"], {"alpha": 0.3, "beta": 0.4}),
        ("HardSwish", ["b"], ["d"], {}), ("Mish", ["d"], ["e"], {}), ("Clip", ["e", "low", "one"], ["y"], {}),
    ],
    "bounds": [
        ("Clip", ["x"], ["a"], {}), ("Clip", ["a", "low"], ["b"], {}), ("Clip", ["b", "", "one"], ["d"], {}),
        ("Mul", ["d", "x"], ["y"], {}),
    ],
    "slopes": [
        ("PRelu", ["x", "c"], ["a"], {}), ("PRelu", ["a", "one"], ["b"], {}), ("Max", ["b", "c", "x"], ["y"], {}),
    ],
    "mean": [("Abs", ["x"], ["a"], {}), ("Sqrt", ["a"], ["b"], {}), ("Mean", ["x", "b", "a"], ["y"], {})],
    "power": [("Softplus", ["x"], ["a"], {}), ("Pow", ["a", "two"], ["b"], {}), ("Log", ["b"], ["d"], {}),
              ("Neg", ["d"], ["e"], {}), ("Min", ["e", "x"], ["y"], {})],
    "norm": [("BatchNormalization", ["x", "g", "g", "g", "v"], ["a"], {}), ("Erf", ["a"], ["y"], {})],
}  # fmt: skip
CONSTANTS = {
    "c": np.array([0.5, -1.5, 0.25], np.float32).reshape(3, 1, 1, 1), "one": np.array(1.25, np.float32),
    "low": np.array(-0.1, np.float32), "two": np.array(2.0, np.float32),
    "g": np.array([0.5, 1.5, -0.25], np.float32), "v": np.array([0.5, 1.0, 2.0], np.float32),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_chain(name, precision):
    used = {i for _, ins, _, _ in CHAINS[name] for i in ins}
    graph = network(CHAINS[name], constants={k: v for k, v in CONSTANTS.items() if k in used})
    program = lowered_step_by_step(graph, WINDOW, 2, precision, SINGLE if precision == "float32" else HALF)
    assert kinds(program).count("pointwise") == 1 and "torch" not in kinds(program)


def test_what_no_kernel_knows_is_a_torch_step():
    graph = network([("Pad", ["x", "p"], ["a"], {"mode": "reflect"}), ("CumSum", ["a", "axis"], ["y"], {})],
                    constants={"p": np.array([0, 0, 1, 2, 0, 0, 0, 0, 1, 3]), "axis": np.array(3)})  # fmt: skip
    program = lowered_step_by_step(graph, WINDOW, 2, "float32", SINGLE)
    assert kinds(program)[:2] == ["torch", "torch"]


MIXED = {
    "places": (
        [
            ("ArgMax", ["x"], ["i"], {"axis": 1, "keepdims": 1}), ("GatherElements", ["x", "i"], ["a"], {"axis": 1}),
            ("Cast", ["i"], ["f"], {"to": TensorProto.FLOAT}), ("Add", ["a", "f"], ["y"], {}),
        ],
        {},
    ),
    "conditions": (
        [
            ("Greater", ["x", "half"], ["c"], {}), ("Not", ["c"], ["n"], {}), ("Where", ["n", "x", "half"], ["a"], {}),
            ("Cast", ["c"], ["f"], {"to": TensorProto.FLOAT}), ("Mul", ["a", "f"], ["b"], {}),
            ("Add", ["b", "x"], ["y"], {}),
        ],
        {"half": np.array(0.5, np.float32)},
    ),
    "several outputs": (
        [
            ("TopK", ["x", "k"], ["v", "p"], {"axis": 4}), ("Cast", ["p"], ["f"], {"to": TensorProto.FLOAT}),
            ("Sub", ["v", "f"], ["a"], {}), ("ReduceL2", ["a", "axes"], ["y"], {"keepdims": 1}),
        ],
        {"k": np.array([3], np.int64), "axes": np.array([1], np.int64)},
    ),
    "shapes": (
        [
            ("Tile", ["x", "t"], ["a"], {}), ("Einsum", ["a", "m"], ["b"], {"equation": "ncdhw,ck->nkdhw"}),
            ("Reshape", ["b", "s"], ["flat"], {}), ("DepthToSpace", ["flat"], ["e"], {"blocksize": 2}),
            ("Unsqueeze", ["e", "one"], ["y"], {}),
        ],
        {"t": np.array([1, 1, 1, 1, 2]), "m": np.arange(12, dtype=np.float32).reshape(3, 4) / 6,
         "s": np.array([0, 4, 48, 14]), "one": np.array([2])},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_torch_steps_among_others(name, precision):
    """Integers, conditions and several outputs between steps of kernels; in half types places may differ by ties."""
    nodes, constants = MIXED[name]
    graph = network(nodes, constants=constants)
    program = lowered_step_by_step(graph, WINDOW, 2, precision, SINGLE if precision == "float32" else 0.05)
    assert "torch" in kinds(program)


def test_refused_by_name():
    graph = network([("NonZero", ["x"], ["i"], {}), ("Cast", ["i"], ["y"], {"to": TensorProto.FLOAT})])
    with pytest.raises(Exception, match="NonZero"):
        lower(graph, WINDOW, 1, "float32")
    graph = network([("Bernoulli", ["x"], ["y"], {})])
    with pytest.raises(UnsupportedOperatorError, match=r"Bernoulli.*docs/cuda-operators.md"):
        lower(graph, WINDOW, 1, "float32")
