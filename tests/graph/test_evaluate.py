"""Whole networks in float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests import networks
from tests.graph.single import run_peer
from wetread.errors import GraphError, UnsupportedOperatorError
from wetread.graph import Graph
from wetread.graph.evaluate import Evaluator

X = np.random.default_rng(0).standard_normal((2, 2, 16, 8, 12)).astype(np.float32)


def test_unet_agrees_with_onnx_runtime() -> None:
    model = networks.unet((2, 3), (4, 8, 8))
    for value in (model.graph.input[0],):
        value.name = "in0"
    model.graph.node[0].input[0] = "in0"
    ours = Graph(model).evaluate({"in0": X})["logits"]
    peer = run_peer(model, [X])
    assert ours.dtype == np.float64
    np.testing.assert_allclose(
        ours, peer, rtol=0, atol=2e-5 * np.abs(peer).max()
    )  # float32 through 11 layers


def test_inner_values_are_kept_on_request() -> None:
    graph = Graph(networks.unet((2, 3)))
    found = graph.evaluate({"image": X}, keep=["conv_0", "concat_10"])
    assert {"conv_0", "logits"} <= set(found)
    assert found["conv_0"].shape == (2, 8, 16, 8, 12)


def test_float16_weights_are_widened() -> None:
    b = networks.Builder(dtype=np.float16)
    x = b.conv("image", (2, 3))
    graph = Graph(b.model({"image": (None, 2, *networks.FREE)}, {"out": (x, (None, 3, *networks.FREE))}))
    out = graph.evaluate({"image": X.astype(np.float16)})["out"]
    assert out.dtype == np.float64
    assert (out != out.astype(np.float16)).any()


def test_constants_and_casts_become_float64() -> None:
    """1/3 in float32 differs from 1/3: the constant keeps its float32 value, what is computed does not."""
    b = networks.Builder()
    third = b.add("Constant", [], value_float=3.0)
    x = b.add("Cast", [b.add("Div", ["image", third])], to=1)
    graph = Graph(b.model({"image": (None, 2, *networks.FREE)}, {"out": (x, (None, 2, *networks.FREE))}))
    np.testing.assert_array_equal(graph.evaluate({"image": X})["out"], X.astype(np.float64) / 3)


def test_wrong_inputs_are_named() -> None:
    graph = Graph(networks.unet((2, 3)))
    with pytest.raises(GraphError, match=r"\['picture'\], expected \['image'\]"):
        graph.evaluate({"picture": X})
    with pytest.raises(GraphError, match="no value 'nothing'"):
        graph.evaluate({"image": X}, keep=["nothing"])


def test_a_failing_node_is_named() -> None:
    with pytest.raises(GraphError, match="Concat"):
        Graph(networks.unet((2, 3))).evaluate({"image": X[:, :, :15]})


def test_what_cannot_be_evaluated_is_named() -> None:
    b = networks.Builder()
    scales = b.constant(np.array([1, 1, 0.5, 0.5, 0.5], np.float32), "scales")
    x = b.add("Resize", ["image", "", scales], antialias=1, mode="linear")
    graph = Graph(b.model({"image": (None, 2, *networks.FREE)}, {"out": (x, (None, 2, *networks.FREE))}))
    with pytest.raises(GraphError, match="antialias"):
        graph.evaluate({"image": X})
    model = networks.threshold()
    model.graph.node[0].op_type = "Unheard"
    with pytest.raises(UnsupportedOperatorError, match="Unheard"):
        Evaluator(Graph(model))


@pytest.mark.peer
def test_convolutions_agree_with_torch_in_float64() -> None:
    """To 1e-13 of the largest output: the same sums in another order."""
    import torch
    from torch.nn import functional as f

    from tests.graph.single import model, run_ours

    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((2, 4, 9, 8, 7)), rng.standard_normal((6, 2, 3, 3, 3))
    ours = run_ours(
        model("Conv", [x, w], (1,), group=2, strides=[2, 1, 2], dilations=[1, 2, 1], pads=[1, 2, 1] * 2), [x]
    )
    peer = f.conv3d(
        torch.from_numpy(x), torch.from_numpy(w), None, (2, 1, 2), (1, 2, 1), (1, 2, 1), 2
    ).numpy()
    np.testing.assert_allclose(ours, peer, rtol=0, atol=1e-13 * np.abs(peer).max())
    w = rng.standard_normal((4, 3, 3, 3, 3))
    made = model(
        "ConvTranspose", [x, w], (1,), group=2, strides=[2] * 3, pads=[1] * 6, output_padding=[1] * 3
    )
    ours = run_ours(made, [x])
    peer = f.conv_transpose3d(torch.from_numpy(x), torch.from_numpy(w), None, 2, 1, 1, 2).numpy()
    np.testing.assert_allclose(ours, peer, rtol=0, atol=1e-13 * np.abs(peer).max())
    made = model("Resize", [x, None, np.array([1, 1, 2, 1.5, 2], np.float32)], (2,), mode="linear")
    peer = f.interpolate(torch.from_numpy(x), scale_factor=(2, 1.5, 2), mode="trilinear").numpy()
    np.testing.assert_allclose(run_ours(made, [x]), peer, rtol=0, atol=1e-13 * np.abs(peer).max())
