"""Every operator that 3D networks need: float64 evaluation against ONNX Runtime's float32.

Tolerance: 2e-5 of the largest output, because ONNX Runtime sums up to 27 · 6 products in float32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.graph.single import model, run_ours, run_peer
from wetread.graph.operators import OPERATORS

RNG = np.random.default_rng(7)


def rand(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


X = rand(2, 4, 7, 6, 5)
I64 = np.int64


def ints(*values: int) -> np.ndarray:
    return np.array(values, I64)


CONV = [
    {},
    {"pads": [1, 1, 1, 1, 1, 1]},
    {"pads": [0, 1, 2, 2, 1, 0], "strides": [2, 1, 3]},
    {"dilations": [2, 1, 2], "pads": [2, 1, 2, 2, 1, 2]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 3, 2]},
    {"auto_pad": "VALID"},
]


@pytest.mark.parametrize("at", CONV)
@pytest.mark.parametrize("group", [1, 2, 4])
def test_conv(at: dict, group: int) -> None:
    inputs = [X, rand(8, 4 // group, 3, 3, 2), rand(8)]
    check(model("Conv", inputs, (1, 2), group=group, **at), inputs)


@pytest.mark.parametrize(
    "at",
    [
        {"strides": [2, 2, 2]},
        {"strides": [2, 2, 2], "pads": [1, 1, 1, 1, 1, 1], "output_padding": [1, 1, 1]},
        {"strides": [3, 1, 2], "dilations": [1, 2, 1], "pads": [0, 1, 0, 1, 0, 1]},
        {"strides": [2, 2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2, 2], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2, 2], "output_shape": [15, 13, 10]},
    ],
)
@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose(at: dict, group: int) -> None:
    inputs = [X, rand(4, 3, 3, 3, 2), rand(3 * group)]
    check(model("ConvTranspose", inputs, (1, 2), group=group, **at), inputs)


POOL = [
    {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]},
    {"kernel_shape": [3, 3, 3], "strides": [2, 2, 2], "pads": [1, 1, 1, 1, 1, 1]},
    {"kernel_shape": [3, 2, 3], "strides": [2, 3, 2], "pads": [1, 0, 1, 0, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [2, 2, 2], "strides": [3, 3, 3], "ceil_mode": 1},
    {"kernel_shape": [3, 3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2, 2]},
]


@pytest.mark.parametrize("at", [*POOL, {"kernel_shape": [2, 3, 2], "dilations": [2, 2, 3]}])
def test_max_pool(at: dict) -> None:
    check(model("MaxPool", [X], **at), [X])


@pytest.mark.parametrize("at", [*POOL, {"kernel_shape": [2, 3, 2], "dilations": [2, 2, 3]}])
@pytest.mark.parametrize("include", [0, 1])
def test_average_pool(at: dict, include: int) -> None:
    check(model("AveragePool", [X], opset=19, count_include_pad=include, **at), [X])


def resizes() -> list:
    cases = []
    for mode in ("nearest", "linear"):
        for coordinates in (
            "half_pixel",
            "align_corners",
            "asymmetric",
            "pytorch_half_pixel",
            "half_pixel_symmetric",
        ):
            cases.append({"mode": mode, "coordinate_transformation_mode": coordinates})
    for rounding in ("round_prefer_ceil", "floor", "ceil"):
        cases.append({"mode": "nearest", "nearest_mode": rounding})
    return cases


@pytest.mark.parametrize("at", resizes())
@pytest.mark.parametrize("scales", [(2, 2, 2), (1.5, 0.6, 2.5), (0.5, 0.5, 0.3)])
def test_resize_by_scales(at: dict, scales: tuple) -> None:
    x = X[:1, :2]
    inputs = [x, None, np.array([1, 1, *scales], np.float32)]
    check(model("Resize", inputs, (2,), **at), inputs)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric"])
def test_resize_by_sizes(mode: str, coordinates: str) -> None:
    x = X[:1, :2]
    inputs = [x, None, None, ints(1, 2, 14, 9, 3)]
    check(model("Resize", inputs, (3,), mode=mode, coordinate_transformation_mode=coordinates), inputs)


@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners"])
@pytest.mark.parametrize("exclude", [0, 1])
def test_resize_cubic(coordinates: str, exclude: int) -> None:
    """ONNX Runtime has cubic in two dimensions only."""
    inputs = [rand(1, 2, 7, 6), None, np.array([1, 1, 1.7, 2], np.float32)]
    at = {"mode": "cubic", "coordinate_transformation_mode": coordinates, "exclude_outside": exclude}
    check(model("Resize", inputs, (2,), **at), inputs)


def test_resize_with_crop() -> None:
    inputs = [
        rand(1, 2, 7, 6),
        np.array([0, 0, 0.2, -0.1, 1, 1, 0.9, 1.3], np.float32),
        None,
        ints(1, 2, 5, 8),
    ]
    at = {
        "mode": "linear",
        "coordinate_transformation_mode": "tf_crop_and_resize",
        "extrapolation_value": 9.0,
    }
    check(model("Resize", inputs, (1, 3), **at), inputs)


NORMS = {
    "batch": (
        "BatchNormalization",
        [X, rand(4), rand(4), rand(4), rand(4) ** 2 + 0.1],
        {"epsilon": 1e-3},
        18,
    ),
    "instance": ("InstanceNormalization", [X, rand(4), rand(4)], {"epsilon": 1e-5}, 18),
    "group": ("GroupNormalization", [X, rand(4), rand(4)], {"num_groups": 2, "epsilon": 1e-5}, 21),
    "group by group": ("GroupNormalization", [X, rand(2), rand(2)], {"num_groups": 2}, 18),
    "layer": ("LayerNormalization", [X, rand(5), rand(5)], {"axis": -1}, 18),
    "layer of many axes": ("LayerNormalization", [X, rand(7, 6, 5), rand(7, 6, 5)], {"axis": 2}, 18),
    "layer without bias": ("LayerNormalization", [X, rand(5)], {"axis": -1}, 18),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    op, inputs, at, opset = NORMS[name]
    check(model(op, inputs, range(1, len(inputs)), opset, **at), inputs)


UNARY = [
    ("Relu", {}), ("LeakyRelu", {"alpha": 0.1}), ("Elu", {"alpha": 0.7}), ("Selu", {}),
    ("Celu", {"alpha": 0.8}), ("Sigmoid", {}), ("Tanh", {}), ("Softplus", {}), ("Softsign", {}), ("Erf", {}),
    ("Exp", {}), ("Abs", {}), ("Neg", {}), ("Floor", {}), ("Ceil", {}), ("Round", {}), ("Sign", {}), ("Sin", {}),
    ("Cos", {}), ("HardSigmoid", {"alpha": 0.2, "beta": 0.5}), ("HardSwish", {}), ("Mish", {}), ("Identity", {}),
    ("Softmax", {"axis": 1}), ("Softmax", {"axis": -1}), ("LogSoftmax", {"axis": 1}), ("GlobalAveragePool", {}),
    ("GlobalMaxPool", {}), ("Flatten", {"axis": 2}), ("Transpose", {"perm": [0, 2, 3, 4, 1]}), ("Dropout", {}),
    ("ArgMax", {"axis": 1, "keepdims": 0}), ("Shape", {}), ("ReduceMean", {"keepdims": 0}), ("ReduceL2", {}),
    ("ReduceSumSquare", {}), ("LpNormalization", {"axis": 1, "p": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "at"), UNARY, ids=str)
def test_unary(op: str, at: dict) -> None:
    check(model(op, [X], opset=18, **at), [X])


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str) -> None:
    check(model("Gelu", [X], opset=20, approximate=approximate), [X])


def test_leaky_relu_without_a_leak() -> None:
    made = model("LeakyRelu", [X], alpha=0.0)
    np.testing.assert_array_equal(run_ours(made, [X]), np.maximum(X, 0))


def test_sigmoid_of_large_numbers_does_not_overflow() -> None:
    x = np.array([-1e4, -50, 0, 50, 1e4], np.float32)
    check(model("Sigmoid", [x]), [x])


POSITIVE = np.abs(X) + 0.1


@pytest.mark.parametrize("op", ["Sqrt", "Log", "Reciprocal"])
def test_of_positive(op: str) -> None:
    check(model(op, [POSITIVE]), [POSITIVE])


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum", "PRelu"])
def test_binary_broadcast(op: str) -> None:
    inputs = [X, rand(4, 1, 1, 1) + 3]
    check(model(op, inputs), inputs)


@pytest.mark.parametrize("op", ["Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"])
def test_comparison(op: str) -> None:
    inputs = [np.round(X), np.round(rand(4, 1, 1, 1))]
    check(model(op, inputs), inputs)


MASK = RNG.random(X.shape) < 0.5
Q = RNG.integers(0, 255, X.shape).astype(np.uint8)
OTHERS = {
    "pow": ("Pow", [POSITIVE, np.array(2.5, np.float32)], (1,), {}),
    "matmul": ("MatMul", [rand(2, 3, 4, 5), rand(2, 3, 5, 6)], (), {}),
    "gemm": ("Gemm", [rand(3, 4), rand(5, 4), rand(5)], (1, 2), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "einsum": ("Einsum", [rand(2, 3, 4), rand(2, 4, 5)], (), {"equation": "bij,bjk->bik"}),
    "concat": ("Concat", [X, rand(2, 3, 7, 6, 5)], (), {"axis": 1}),
    "pad": ("Pad", [X, ints(0, 0, 1, 2, 0, 0, 0, 2, 0, 1), np.array(3, np.float32)], (1, 2), {}),
    "pad edge": ("Pad", [X, ints(0, 0, 1, 2, 0, 0, 0, 2, 0, 1)], (1,), {"mode": "edge"}),
    "pad reflect": ("Pad", [X, ints(0, 0, 1, 2, 0, 0, 0, 2, 0, 1)], (1,), {"mode": "reflect"}),
    "reshape": ("Reshape", [X, ints(2, -1, 5)], (1,), {}),
    "slice": ("Slice", [X, ints(1, 5), ints(6, -9999), ints(2, 3), ints(2, -1)], (1, 2, 3, 4), {}),
    "squeeze": ("Squeeze", [rand(2, 1, 3), ints(1)], (1,), {}),
    "unsqueeze": ("Unsqueeze", [X, ints(0, 3)], (1,), {}),
    "gather": ("Gather", [X, ints(2, 0, -1)], (1,), {"axis": 1}),
    "expand": ("Expand", [rand(1, 4, 1, 6, 1), ints(2, 4, 7, 6, 5)], (1,), {}),
    "tile": ("Tile", [X, ints(1, 2, 1, 1, 2)], (1,), {}),
    "clip": ("Clip", [X, np.array(-0.5, np.float32), np.array(0.5, np.float32)], (1, 2), {}),
    "clip above": ("Clip", [X, None, np.array(0.5, np.float32)], (2,), {}),
    "where": ("Where", [MASK, X, rand(2, 4, 7, 6, 5)], (), {}),
    "cast": ("Cast", [Q], (), {"to": 1}),
    "cast to integers": ("Cast", [X * 5], (), {"to": 7}),
    "cumsum": ("CumSum", [X, np.array(2, I64)], (1,), {}),
    "range": ("Range", [np.array(1, I64), np.array(9, I64), np.array(3, I64)], (1, 2), {}),
    "constant of shape": ("ConstantOfShape", [ints(2, 3)], (), {}),
    "reduce sum": ("ReduceSum", [X, ints(2, 3, 4)], (1,), {"keepdims": 1}),
    "reduce mean": ("ReduceMean", [X, ints(2, 3, 4)], (1,), {"keepdims": 0}),
    "reduce max": ("ReduceMax", [X, ints(1)], (1,), {}),
    "reduce min": ("ReduceMin", [X, ints(-1)], (1,), {}),
    "reduce prod": ("ReduceProd", [X, ints(-1)], (1,), {}),
    "quantize": ("QuantizeLinear", [X, np.array(0.02, np.float32), np.array(120, np.uint8)], (1, 2), {}),
    "quantize by channel": (
        "QuantizeLinear", [X, np.array([0.01, 0.02, 0.03, 0.5], np.float32), np.zeros(4, np.int8)], (1, 2), {"axis": 1},
    ),
    "dequantize": ("DequantizeLinear", [Q, np.array(0.02, np.float32), np.array(120, np.uint8)], (1, 2), {}),
    "dequantize by channel": (
        "DequantizeLinear", [Q, np.array([0.1, 0.2, 0.3, 4], np.float32), np.array([0, 128, 7, 255], np.uint8)],
        (1, 2), {"axis": 1},
    ),
    "depth to space": ("DepthToSpace", [rand(1, 8, 3, 4)], (), {"blocksize": 2}),
    "scatter": ("ScatterND", [rand(4, 5), np.array([[1], [3]], I64), rand(2, 5)], (1,), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_others(name: str) -> None:
    op, inputs, fixed, at = OTHERS[name]
    check(model(op, inputs, fixed, **at), inputs)


NEWER = {
    "gelu": ("Gelu", [X], 20, {}),
    "gelu by tanh": ("Gelu", [X], 20, {"approximate": "tanh"}),
    "group norm": ("GroupNormalization", [X, rand(4), rand(4)], 21, {"num_groups": 2}),
    "attention": ("Attention", [rand(2, 3, 4, 8), rand(2, 3, 5, 8), rand(2, 3, 5, 8)], 23, {}),
    "masked attention": (
        "Attention", [rand(2, 3, 4, 8), rand(2, 3, 5, 8), rand(2, 3, 5, 8), rand(2, 3, 4, 5)], 23, {"scale": 0.3},
    ),
    "rms norm": ("RMSNormalization", [X, rand(5)], 23, {"axis": -1}),
    "swish": ("Swish", [X], 24, {"alpha": 0.5}),
    "queries and keys": (
        "Einsum", [rand(2, 3, 4, 5), rand(2, 3, 6, 5)], 13, {"equation": "blxd,blyd->blxy"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NEWER)
def test_what_passes_write_and_transformers_need(name: str) -> None:
    op, inputs, opset, at = NEWER[name]
    made = model(op, inputs, (), opset, **at)
    check(made, inputs)
    found = run_ours(made, inputs)
    assert (found != found.astype(np.float32)).any()


def test_split() -> None:
    inputs = [X, ints(1, 3)]
    check(_split(), inputs)


def _split():
    from onnx import helper, numpy_helper

    node = helper.make_node("Split", ["in0", "in1"], ["first", "out"], axis=1)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("in0", 1, X.shape)],
        [helper.make_tensor_value_info("out", 1, (2, 3, 7, 6, 5))], [numpy_helper.from_array(ints(1, 3), "in1")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_dequantize_keeps_32_bit_integers() -> None:
    """A bias of 2²⁴ + 1 is lost in float32; the reference must not lose it."""
    x = np.array([2**24 + 1, -(2**30) - 1], np.int32)
    found = run_ours(model("DequantizeLinear", [x, np.array(1.0, np.float32)], (1,)), [x])
    assert found.tolist() == [2**24 + 1, -(2**30) - 1]


@pytest.mark.parametrize("op", sorted(cls.__name__ for cls in OPERATORS))
def test_own_operators_are_listed_with_a_test(op: str) -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert f'"{op}"' in source


def check(made, inputs) -> None:
    ours, peer = run_ours(made, inputs), run_peer(made, inputs)
    assert ours.shape == peer.shape
    if peer.dtype.kind != "f":
        assert ours.dtype == peer.dtype
        np.testing.assert_array_equal(ours, peer)
        return
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, peer, rtol=0, atol=2e-5 * max(1e-3, np.abs(peer).max()))
    if made.graph.node[0].op_type in TRANSCENDENTAL:
        assert (ours != ours.astype(np.float32)).any(), (
            "every value fits float32: the operator computed in it"
        )


TRANSCENDENTAL = {
    "Conv", "ConvTranspose", "AveragePool", "BatchNormalization", "InstanceNormalization", "GroupNormalization",
    "LayerNormalization", "Sigmoid", "Tanh", "Erf", "Exp", "Softmax", "LogSoftmax", "Gelu", "Mish", "Softplus", "Sqrt",
    "MatMul", "Gemm", "Einsum", "Pow", "Elu", "Selu", "Celu", "ReduceMean", "ReduceSum", "GlobalAveragePool",
    "DequantizeLinear", "LeakyRelu", "PRelu", "Div", "Log", "HardSwish", "HardSigmoid", "ReduceL2",
}  # fmt: skip
