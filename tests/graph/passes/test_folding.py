"""Bias, affine maps before and after convolutions, padding, dropout, constants, common expressions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests import networks
from tests.graph.passes.test_batch_norm import norm
from tests.graph.passes.trial import apply
from wetread.graph import Graph
from wetread.graph.passes import optimise
from wetread.graph.passes.before import BeforePass
from wetread.graph.passes.bias import BiasPass
from wetread.graph.passes.common import CommonPass
from wetread.graph.passes.dropout import DropoutPass
from wetread.graph.passes.fold import FoldPass
from wetread.graph.passes.identity import IdentityPass
from wetread.graph.passes.pad import PadPass
from wetread.graph.passes.shapes import ShapesPass
from wetread.graph.passes.unused import UnusedPass


def close(b: networks.Builder, x: str, cin: int = 4, cout: int = 6, opset: int = 18) -> onnx.ModelProto:
    return b.model(
        {"image": (None, cin, *networks.FREE)}, {"out": (x, (None, cout, *networks.FREE))}, opset=opset
    )


def channels(b: networks.Builder, count: int, name: str) -> str:
    return b.constant(b.rng.uniform(0.5, 2, (count, 1, 1, 1)).astype(np.float32), name)


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_what_follows_a_convolution(kind: str) -> None:
    b = networks.Builder()
    x = b.conv("image", (4, 6)) if kind == "Conv" else b.up("image", (4, 6))
    for i, op in enumerate(("Add", "Mul", "Sub", "Div")):
        x = b.add(op, [x, channels(b, 6, f"c{i}")])
    graph, report = apply(close(b, x), [BiasPass()])
    assert graph.operators == {kind: 1}
    assert report["bias"].applied == 4


def test_what_is_no_bias_stays() -> None:
    b = networks.Builder()
    plane = b.constant(np.ones((1, 1, 1, 1, 8), np.float32), "plane")
    x = b.add("Add", [b.conv("image", (4, 6)), plane])
    one = b.constant(np.ones((6, 1, 1, 1), np.float32), "one")
    x = b.add("Sub", [one, b.conv(x, (6, 6))])
    graph, report = apply(close(b, x), [BiasPass()])
    assert graph.operators["Conv"] == 2
    assert [site.reason for site in report["bias"].sites] == [
        "a constant of shape (1, 1, 1, 1, 8) is not one number a channel",
        "the convolution is subtracted or divided by",
    ]


def test_affine_before_a_convolution_without_padding() -> None:
    b = networks.Builder()
    x = norm(b, "image", 4)
    x = b.add("Mul", [x, channels(b, 4, "m")])
    w = b.constant(b.rng.standard_normal((6, 2, 3, 3, 3)).astype(np.float32), "w")
    x = b.add("Conv", [x, w], kernel_shape=[3] * 3, group=2)
    graph, report = apply(close(b, x), [BeforePass()])
    assert graph.operators == {"Conv": 1}
    assert report["before"].applied == 2


def test_a_shift_before_padding_is_declined() -> None:
    b = networks.Builder()
    x = b.conv(norm(b, "image", 4), (4, 6))
    graph, report = apply(close(b, x), [BeforePass()])
    assert graph.operators == {"BatchNormalization": 1, "Conv": 1}
    assert report["before"].sites[0].reason == "a shift before zero padding is not constant at the border"
    b = networks.Builder()
    x = b.conv(b.add("Mul", ["image", channels(b, 4, "m")]), (4, 6))
    graph, report = apply(close(b, x), [BeforePass()])
    assert graph.operators == {"Conv": 1}  # a scale alone is exact under padding


def test_scale_before_a_transposed_convolution() -> None:
    b = networks.Builder()
    x = b.up(b.add("Mul", ["image", channels(b, 4, "m")]), (4, 6))
    graph, _ = apply(close(b, x), [BeforePass()])
    assert graph.operators == {"ConvTranspose": 1}


@pytest.mark.parametrize(("value", "applied"), [(0.0, True), (1.0, False)])
def test_padding(value: float, applied: bool) -> None:
    b = networks.Builder()
    pads = b.constant(np.array([0, 0, 1, 0, 2, 0, 0, 1, 1, 0], np.int64), "pads")
    x = b.conv(b.add("Pad", ["image", pads, b.constant(np.array(value, np.float32), "v")]), (4, 6))
    graph, report = apply(close(b, x), [ShapesPass(), PadPass()])
    assert ("Pad" not in graph.operators) == applied
    assert [site.applied for site in report["pad"].sites] == [applied]


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_dropout(opset: int) -> None:
    b = networks.Builder()
    if opset < 12:
        x = b.add("Dropout", [b.conv("image", (4, 6))], ratio=0.5)
    else:
        ratio, off = b.constant(np.array(0.5, np.float32), "ratio"), b.constant(np.array(False), "off")
        x = b.add("Dropout", [b.conv("image", (4, 6)), ratio])
        x = b.add("Dropout", [x, ratio, off])
    x = b.conv(x, (6, 6))
    graph, report = apply(close(b, x, opset=opset), [DropoutPass(), IdentityPass()], peer=opset > 11)
    assert graph.operators == {"Conv": 2}
    assert report["dropout"].applied == (1 if opset < 12 else 2)


def test_dropout_whose_mask_is_read_stays() -> None:
    b = networks.Builder()
    x = b.add("Dropout", [b.conv("image", (4, 6))], outputs=2)
    b.add("Cast", [x.replace(".0", ".1")], to=1)
    out = b.add("Add", [x, "cast_2"])
    _, report = apply(close(b, out), [DropoutPass()], peer=False)
    assert report["dropout"].sites[0].reason == "its mask is read"


def test_constants_fold_and_large_ones_do_not() -> None:
    b = networks.Builder()
    one = b.constant(np.ones(1, np.float32), "one")
    half = b.add("Div", [one, b.add("Add", [one, one])])
    x = b.add("Mul", ["image", half])
    big = b.constant(np.array([1, 1, 1, 512, 1024], np.int64), "big")
    huge = b.add("Expand", [half, big])
    x = b.add("Add", [x, b.add("ReduceMean", [huge, b.constant(np.arange(5), "axes")], keepdims=0)])
    graph, report = apply(close(b, x, 4, 4), [ShapesPass(), FoldPass()])
    assert {"Mul", "Expand"} < set(graph.operators)
    assert not {"Div"} & set(graph.operators)
    assert graph.weight_bytes < 1 << 20
    assert report["fold"].applied == 2


def test_equal_weights_and_nodes_are_merged() -> None:
    b = networks.Builder()
    a = b.conv("image", (4, 6))
    w = [b.constant(t, f"copy{i}") for i, t in enumerate(map(onnx.numpy_helper.to_array, b.weights[:2]))]
    c = b.add("Conv", ["image", *w], kernel_shape=[3] * 3, strides=[1] * 3, pads=[1] * 6, group=1)
    b.add("Relu", [c])
    model = close(b, b.add("Add", [a, c]))
    _, report = optimise(Graph(model), passes=[UnusedPass()])
    assert report["unused"].sites[0].reason == "Relu removed"
    graph, report = apply(model, [CommonPass()])
    assert graph.operators == {"Conv": 1, "Add": 1}
    assert len(graph.weights) == 2
    assert report["common"].worst_error == 0
