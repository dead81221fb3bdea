"""Networks as plain nodes for one window: shapes known, constants computed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.networks import FREE, Builder, unet
from wetread.errors import GraphError
from wetread.graph import Graph
from wetread.graph.passes import optimise
from wetread.graph.resolve import resolve


def resizing() -> Graph:
    """Doubles its input by sizes that it computes from its own shape."""
    b = Builder()
    shape = b.add("Shape", ["image"])
    factor = b.constant(np.array([1, 1, 2, 2, 2]), "factor")
    sizes = b.add("Mul", [shape, factor])
    x = b.add("Resize", ["image", "", "", sizes], mode="nearest")
    large = b.constant(np.ones((1, 1, 32, 32, 32), np.float32), "large")
    x = b.add("Add", [x, b.add("Mul", [large, large])])
    return Graph(b.model({"image": (None, 1, *FREE)}, {"logits": (x, (None, 1, *FREE))}))


def test_shapes_are_computed_and_what_hangs_on_no_input() -> None:
    found = resolve(resizing(), (16, 16, 16), 1)
    assert [node.operator for node in found.nodes] == ["Resize", "Add"]
    assert found.constants[found.nodes[0].inputs[3]].tolist() == [1, 1, 32, 32, 32]
    assert found.tensors["logits"].shape == (1, 1, 32, 32, 32)
    np.testing.assert_array_equal(found.constants[found.nodes[1].inputs[1]], np.ones((1, 1, 32, 32, 32)))


def test_every_value_has_a_shape_with_the_batch() -> None:
    found = resolve(Graph(unet()), (8, 8, 12), 3)
    assert {entry.shape[0] for entry in found.tensors.values()} == {3}
    assert found.tensors["logits"].shape == (3, 2, 8, 8, 12)
    assert set(found.constants) == set(Graph(unet()).weights)


def test_functions_stay_or_are_inlined() -> None:
    b = Builder()
    x = b.add("Mul", ["image", b.add("Sigmoid", ["image"])])
    graph, _ = optimise(Graph(b.model({"image": (1, 1, 4, 4, 4)}, {"logits": (x, (1, 1, 4, 4, 4))})))
    assert [n.operator for n in resolve(graph, (4, 4, 4), 1, ["Swish"]).nodes] == ["wetread.Swish"]
    assert [n.operator for n in resolve(graph, (4, 4, 4), 1).nodes] == ["Sigmoid", "Mul"]


def test_eight_bit_weights_stay_what_they_are() -> None:
    b = Builder()
    x = b.add("Conv", ["image", b.quantised_weight((4, 1, 3, 3, 3))], kernel_shape=[3] * 3, pads=[1] * 6)
    found = resolve(
        Graph(b.model({"image": (1, 1, 4, 4, 4)}, {"logits": (x, (1, 4, 4, 4, 4))})), (4, 4, 4), 1
    )
    assert [n.operator for n in found.nodes] == ["DequantizeLinear", "Conv"]


def test_shapes_that_hang_on_values_are_refused_by_name() -> None:
    b = Builder()
    x = b.add("NonZero", ["image"])
    x = b.add("Cast", [x], to=1)
    graph = Graph(b.model({"image": (1, 1, 4, 4, 4)}, {"logits": (x, (5, None))}))
    with pytest.raises(GraphError, match="is not known for this window") as caught:
        resolve(graph, (4, 4, 4), 1)
    assert "NonZero" in str(caught.value)


def test_a_window_that_the_network_does_not_take() -> None:
    b = Builder()
    weight = b.constant(np.ones((64, 2), np.float32), "weight")
    x = b.add("MatMul", [b.add("Flatten", ["image"]), weight])
    graph = Graph(b.model({"image": (None, 1, *FREE)}, {"logits": (x, (None, 2))}))
    assert resolve(graph, (4, 4, 4), 1).tensors["logits"].shape == (1, 2)
    with pytest.raises(GraphError, match="does not take windows"):
        resolve(graph, (4, 4, 5), 1)


def test_a_reshape_that_was_exported_for_one_window() -> None:
    b = Builder()
    shape = b.constant(np.array([1, 2, -1]), "shape")
    x = b.add("Reshape", [b.conv("image", (1, 4)), shape])
    graph = Graph(b.model({"image": (1, 1, 4, 4, 4)}, {"logits": (x, (1, 2, 128))}))
    assert resolve(graph, (4, 4, 4), 3).tensors["logits"].shape == (3, 2, 128)
    b = Builder()
    fixed = b.add("Reshape", ["image", b.constant(np.array([4, 16]), "shape")])
    weight = b.constant(np.ones((16, 2), np.float32), "weight")
    graph = Graph(b.model({"image": (1, 1, 4, 4, 4)}, {"logits": (b.add("MatMul", [fixed, weight]), (4, 2))}))
    with pytest.raises(GraphError):
        resolve(graph, (4, 4, 4), 3)
