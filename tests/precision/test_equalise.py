"""Equalised networks return the same numbers to the bit, and lose less when they are quantised."""

import numpy as np
import pytest

from tests.networks import Builder, unet
from tests.precision.nets import error, graph_of, onnxruntime, ranges_of, windows
from wetread.graph import Graph, verify
from wetread.graph.draft import Draft
from wetread.precision import quantise
from wetread.precision.equalise import equalise


def uneven(graph, seed=0):
    """The network with channels of very different ranges, as training leaves them."""
    draft = Draft(graph)
    rng = np.random.default_rng(seed)
    for node in draft.nodes:
        if node.op_type in ("InstanceNormalization", "Conv") and node.output[0] not in ("logits", "out"):
            factor = np.exp(rng.normal(0, 1.2, len(draft.weights[node.input[2]]))).astype(np.float32)
            for name in node.input[1:3]:
                weight = draft.weights[name]
                draft.set_weight(name, weight * factor.reshape(-1, *[1] * (weight.ndim - 1)))
    return draft.graph()


def meshnet(width=8, depth=4):
    b = Builder(3)
    x = "image"
    for number in range(depth):
        x = b.add("Relu", [b.conv(x, (1 if number == 0 else width, width))])
    return uneven(graph_of(b, b.conv(x, (width, 2), kernel=1), 1, 2))


@pytest.mark.parametrize("make", [meshnet, lambda: uneven(Graph(unet(features=(8, 16, 16))))])
def test_same_numbers_and_smaller_errors(make):
    graph = make()
    equalised, gains = equalise(graph, ranges_of(graph))
    verify(equalised)
    assert gains
    assert all(gain < 1 for gain in gains.values())
    assert [n.name for n in equalised.nodes] == [n.name for n in graph.nodes]
    array = windows(1)[0].array
    exact = onnxruntime(graph, array)
    np.testing.assert_array_equal(onnxruntime(equalised, array), exact)
    before = error(onnxruntime(quantise(graph, ranges_of(graph), calibrator="minmax")[0], array), exact)
    after = error(
        onnxruntime(quantise(equalised, ranges_of(equalised), calibrator="minmax")[0], array), exact
    )
    assert after < 0.95 * before


def test_prediction_is_about_right():
    """One tensor, one reader: predicted and measured power of the errors, after over before."""
    b = Builder(1)
    x = b.add("Relu", [b.conv("image", (1, 16))])
    graph = uneven(graph_of(b, b.conv(x, (16, 8)), 1, 8), 5)
    equalised, gains = equalise(graph, ranges_of(graph))
    array = windows(1)[0].array
    exact = onnxruntime(graph, array)
    first = graph.nodes[0].name

    def power(g):
        lowered, _ = quantise(g, ranges_of(g), calibrator="minmax", released=[first])
        return error(onnxruntime(lowered, array), exact) ** 2

    assert power(equalised) / power(graph) == pytest.approx(gains[x], rel=0.4)


def test_skip_connections_scale_all_their_readers():
    graph = uneven(Graph(unet(features=(8, 16))))
    equalised, gains = equalise(graph, ranges_of(graph))
    assert "leakyrelu_2" in gains  # read by the next convolution, and through the concatenation
    changed = {
        n.name
        for n, m in zip(graph.nodes, equalised.nodes, strict=True)
        if len(n.input) > 1 and list(n.input) != list(m.input)
    }
    assert {"conv_3", "conv_11"} <= changed


@pytest.mark.parametrize("seen_by", ["output", "sum", "sigmoid", "norm"])
def test_tensors_that_others_see_are_left_alone(seen_by):
    b = Builder(2)
    first = b.conv("image", (1, 8))
    x = b.add("Relu", [first])
    outputs = {"out": (b.conv(x, (8, 8)), (1, 8, None, None, None))}
    if seen_by == "output":
        outputs["seen"] = (x, (1, 8, None, None, None))
    elif seen_by == "norm":
        outputs["seen"] = (b.norm(first, 8), (1, 8, None, None, None))
    else:
        y = b.add("Add", [x, "image"]) if seen_by == "sum" else b.add("Sigmoid", [x])
        outputs["seen"] = (y, (1, 8, None, None, None))
    graph = uneven(Graph(b.model({"image": (1, 1, None, None, None)}, outputs)))
    equalised, gains = equalise(graph, ranges_of(graph))
    assert gains == {}
    assert equalised.weights.keys() == graph.weights.keys()


def test_shared_weights_are_parted():
    """One weight for two convolutions: scaling it for one reader leaves the other as it was."""
    b = Builder(4)
    x = b.add("Relu", [b.conv("image", (1, 8))])
    y = b.conv(x, (8, 8))
    shared = b.nodes[-1].input[1]
    z = b.add("Conv", [b.add("Sigmoid", [y]), shared], kernel_shape=[3] * 3, pads=[1] * 6)
    graph = uneven(graph_of(b, z, 1, 8))
    equalised, gains = equalise(graph, ranges_of(graph))
    assert x in gains
    array = windows(1)[0].array
    np.testing.assert_array_equal(onnxruntime(equalised, array), onnxruntime(graph, array))
