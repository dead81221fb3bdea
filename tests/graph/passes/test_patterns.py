"""Operators that exports write out in parts, recognised as one: activations, norms, attention, windows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests import networks
from tests.graph.passes.trial import apply
from wetread.graph.passes.activation import ActivationPass
from wetread.graph.passes.attention import AttentionPass
from wetread.graph.passes.group_norm import GroupNormPass
from wetread.graph.passes.norm import NormPass
from wetread.graph.passes.projections import ProjectionsPass
from wetread.graph.passes.shapes import ShapesPass
from wetread.graph.passes.windows import WindowsPass

SHAPE = (1, 4, 6, 5, 7)


def number(b: networks.Builder, value: float) -> str:
    return b.constant(np.array(value, np.float32), f"c{len(b.weights)}")


def close(b: networks.Builder, x: str, shape: tuple[int, ...] = SHAPE, opset: int = 18) -> onnx.ModelProto:
    return b.model({"x": shape}, {"y": (x, shape)}, opset=opset)


def gelu(b: networks.Builder, order: int) -> str:
    if order == 1:
        e = b.add("Erf", [b.add("Mul", ["x", number(b, 0.5**0.5)])])
        return b.add("Mul", [b.add("Mul", ["x", number(b, 0.5)]), b.add("Add", [number(b, 1), e])])
    e = b.add("Erf", [b.add("Div", ["x", number(b, 2**0.5)])])
    a = b.add("Add", [e, number(b, 1)])
    if order == 0:
        return b.add("Mul", [b.add("Mul", ["x", a]), number(b, 0.5)])
    return b.add("Mul", [b.add("Mul", [number(b, 0.5), a]), "x"])


def gelu_tanh(b: networks.Builder, order: int) -> str:
    cube = b.add("Pow", ["x", number(b, 3)]) if order else b.add("Mul", ["x", b.add("Mul", ["x", "x"])])
    s = b.add("Add", ["x", b.add("Mul", [number(b, 0.044715), cube])])
    t = b.add("Tanh", [b.add("Mul", [s, number(b, (2 / np.pi) ** 0.5)])])
    return b.add("Mul", [b.add("Mul", ["x", number(b, 0.5)]), b.add("Add", [t, number(b, 1)])])


def leaky(b: networks.Builder, order: int) -> str:
    scaled = b.add("Mul", [number(b, 0.1), "x"])
    if order == 0:
        return b.add("Max", ["x", scaled])
    if order == 1:
        return b.add("Where", [b.add("Greater", ["x", number(b, 0)]), "x", scaled])
    return b.add("PRelu", ["x", b.constant(np.full((4, 1, 1, 1), 0.1, np.float32), "slopes")])


@pytest.mark.parametrize("opset", [17, 18, 20])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_gelu(order: int, opset: int) -> None:
    b = networks.Builder()
    graph, report = apply(close(b, gelu(b, order), opset=opset), [ActivationPass()])
    assert graph.operators == {"Gelu": 1}
    assert graph.nodes[0].domain == ("" if opset >= 20 else "wetread")
    assert report["activation"].sites[0].reason == "recognised as Gelu"


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("order", [0, 1])
def test_gelu_by_tanh(order: int, opset: int) -> None:
    b = networks.Builder()
    graph, _ = apply(close(b, gelu_tanh(b, order), opset=opset), [ActivationPass()])
    assert graph.operators == {"Gelu" if opset >= 20 else "GeluTanh": 1}


@pytest.mark.parametrize("order", [0, 1, 2])
def test_leaky_relu(order: int) -> None:
    b = networks.Builder()
    graph, _ = apply(close(b, leaky(b, order)), [ShapesPass(), ActivationPass()])
    assert graph.operators == {"LeakyRelu": 1}


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_mish_and_swish(opset: int) -> None:
    b = networks.Builder()
    x = b.add("Mul", ["x", b.add("Tanh", [b.add("Softplus", ["x"])])])
    x = b.add("Mul", [b.add("Sigmoid", [x]), x])
    graph, report = apply(close(b, x, opset=opset), [ActivationPass()])
    applied = [site.applied for site in report["activation"].sites]
    if opset < 15:
        assert applied == [False, False]
        return
    assert graph.operators == {"Mish": 1, "Swish": 1}


def test_what_looks_like_an_activation_and_is_none() -> None:
    b = networks.Builder()
    wrong = b.add("Erf", [b.add("Div", ["x", number(b, 1.5)])])
    x = b.add("Mul", [b.add("Mul", ["x", b.add("Add", [wrong, number(b, 1)])]), number(b, 0.5)])
    x = b.add("Max", [x, b.add("Mul", [x, number(b, 1.5)])])  # a slope above one: max is no LeakyReLU
    x = b.add("Mul", ["x", b.add("Sigmoid", [x])])
    _, report = apply(close(b, x), [ActivationPass()])
    assert not report["activation"].applied


def moments(b: networks.Builder, x: str, axes: list[int], form: int) -> str:
    d = b.add("Sub", [x, b.add("ReduceMean", [x], axes=axes)])
    square = b.add("Mul", [d, d]) if form else b.add("Pow", [d, number(b, 2)])
    v = b.add("Add", [b.add("ReduceMean", [square], axes=axes), number(b, 1e-5)])
    if form == 2:
        return b.add("Mul", [d, b.add("Reciprocal", [b.add("Sqrt", [v])])])
    return b.add("Div", [d, b.add("Sqrt", [v])])


@pytest.mark.parametrize("form", [0, 1, 2])
def test_layer_norm(form: int) -> None:
    b = networks.Builder()
    gamma, beta = (b.constant(b.rng.standard_normal(7).astype(np.float32), n) for n in ("g", "b"))
    x = b.add("Add", [b.add("Mul", [moments(b, "x", [-1], form), gamma]), beta])
    graph, _ = apply(close(b, x, opset=17), [ShapesPass(), NormPass()])
    assert graph.operators == {"LayerNormalization": 1}


@pytest.mark.parametrize("form", [0, 1, 2])
def test_instance_norm(form: int) -> None:
    b = networks.Builder()
    gamma, beta = (b.constant(b.rng.standard_normal((4, 1, 1, 1)).astype(np.float32), n) for n in ("g", "b"))
    x = b.add("Add", [b.add("Mul", [moments(b, "x", [2, 3, 4], form), gamma]), beta])
    graph, report = apply(close(b, x, opset=17), [ShapesPass(), NormPass(), GroupNormPass()])
    assert graph.operators == {"InstanceNormalization": 1}
    assert report["group_norm"].applied == 1


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("groups", [2, 4])
def test_group_norm(groups: int, opset: int) -> None:
    b = networks.Builder()
    shape = b.constant(np.array([0, groups, -1], np.int64), "grouped")
    back = b.constant(np.array(SHAPE, np.int64), "back")
    unit, zero = (b.constant(f(groups, np.float32), f.__name__) for f in (np.ones, np.zeros))
    gamma, beta = (b.constant(b.rng.standard_normal((4, 1, 1, 1)).astype(np.float32), n) for n in ("g", "b"))
    x = b.add("InstanceNormalization", [b.add("Reshape", ["x", shape]), unit, zero], epsilon=1e-4)
    x = b.add("Add", [b.add("Mul", [b.add("Reshape", [x, back]), gamma]), beta])
    graph, _ = apply(close(b, x, opset=opset), [ShapesPass(), GroupNormPass()])
    assert graph.operators == {"InstanceNormalization" if groups == 4 else "GroupNormalization": 1}


def test_projections_are_merged() -> None:
    b = networks.Builder()
    parts = []
    for i, width in enumerate((4, 4, 8)):
        w = b.constant(b.rng.standard_normal((7, width)).astype(np.float32), f"w{i}")
        v = b.constant(b.rng.standard_normal(width).astype(np.float32), f"v{i}")
        parts.append(b.add("Add", [v, b.add("MatMul", ["x", w])]))
    x = b.add("Concat", parts, axis=-1)
    model = b.model({"x": (1, 6, 7)}, {"y": (x, (1, 6, 16))})
    graph, report = apply(model, [ProjectionsPass()])
    assert graph.operators == {"MatMul": 1, "Add": 1, "Split": 1, "Concat": 1}
    assert report["projections"].sites[0].reason == "3 products that share an input merged"


def attention(b: networks.Builder, form: int) -> str:
    """Queries, keys and values from one input of shape (windows·n, heads, tokens, features)."""
    k = b.add("Mul", ["x", number(b, 1.5)])
    q = b.add("Mul", [b.add("Relu", ["x"]), number(b, 0.35)])
    if form == 0:
        s = b.add("Mul", [b.add("Einsum", ["x", k], equation="blxd,blyd->blxy"), number(b, 0.35)])
    else:
        perm = [0, 1, 3, 2]
        if form == 4:  # tokens before heads, as a projection leaves them: two transpositions in one
            k, perm = (
                b.add("Reshape", [k, b.constant(np.array([6, 5, 2, 4], np.int64), "tokens")]),
                [0, 2, 3, 1],
            )
        s = b.add("MatMul", [q, b.add("Transpose", [k], perm=perm)])
    if 2 <= form <= 3:
        s = b.add("Add", [s, b.constant(b.rng.standard_normal((1, 2, 5, 5)).astype(np.float32), "bias")])
    if form == 3:
        mask = b.constant((-100 * (b.rng.random((1, 3, 1, 5, 5)) > 0.7)).astype(np.float32), "mask")
        split = b.constant(np.array([2, 3, 2, 5, 5], np.int64), "split")
        merged = b.constant(np.array([-1, 2, 5, 5], np.int64), "merged")
        s = b.add("Reshape", [b.add("Add", [b.add("Reshape", [s, split]), mask]), merged])
    p, v = b.add("Softmax", [s], axis=-1), b.add("Neg", ["x"])
    return b.add("MatMul", [p, v]) if form else b.add("Einsum", [p, v], equation="bhxy,bhyd->bhxd")


@pytest.mark.parametrize(
    ("form", "name"),
    [
        (0, "Attention"),
        (1, "Attention"),
        (2, "WindowAttention"),
        (3, "ShiftedWindowAttention"),
        (4, "Attention"),
    ],
)
def test_attention(form: int, name: str) -> None:
    b = networks.Builder()
    graph, report = apply(
        close(b, attention(b, form), (6, 2, 5, 4), opset=17), [ShapesPass(), AttentionPass()]
    )
    assert graph.operators[name] == 1
    assert "Softmax" not in graph.operators
    assert report["attention"].sites[0].reason == f"recognised as {name}"
    assert graph.inlined().operators["Softmax"] == 1


def test_a_softmax_of_classes_is_declined() -> None:
    b = networks.Builder()
    _, report = apply(close(b, b.add("Softmax", ["x"], axis=1)), [ShapesPass(), AttentionPass()])
    assert report["attention"].sites[0].reason == "a softmax over axis 1 of 5"


@pytest.mark.parametrize("ends", [{}, {1: 4, 2: 6, 3: 3}])
def test_shifted_windows(ends: dict[int, int]) -> None:
    """Roll by −1 along three axes, windows of 2 × 3 × 1, and back."""
    b = networks.Builder()
    shape = (1, 4, 6, 3, 5)

    def ints(*values: int) -> str:
        return b.constant(np.array(values, np.int64), f"i{len(b.weights)}")

    def roll(x: str, begin: int) -> str:
        for axis in (1, 2, 3):
            a = b.add("Slice", [x, ints(begin), ints(ends.get(axis, 2**63 - 1)), ints(axis), ints(1)])
            x = b.add("Concat", [a, b.add("Slice", [x, ints(0), ints(begin), ints(axis)])], axis=axis)
        return x

    split = ints(1, 2, 2, 2, 3, 3, 1, 5)
    x = b.add("Transpose", [b.add("Reshape", [roll("x", 1), split])], perm=[0, 1, 3, 5, 2, 4, 6, 7])
    x = b.add("Mul", [b.add("Reshape", [x, ints(-1, 6, 5)]), number(b, 2)])
    x = b.add("Reshape", [b.add("Reshape", [x, ints(-1, 2, 3, 1, 5)]), ints(1, 2, 2, 3, 2, 3, 1, 5)])
    x = b.add("Reshape", [b.add("Transpose", [x], perm=[0, 1, 4, 2, 5, 3, 6, 7]), ints(*shape)])
    graph, report = apply(close(b, roll(x, -1), shape, opset=17), [ShapesPass(), WindowsPass()])
    assert graph.operators == {"Roll": 6, "WindowPartition": 1, "WindowReverse": 1, "Mul": 1}
    assert report["windows"].applied == 8
