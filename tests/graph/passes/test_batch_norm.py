"""BatchNorm into the layer before it, and the planted fault: the wrong sign is caught and named."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests import networks
from tests.graph.passes.trial import apply
from wetread.errors import GraphError
from wetread.graph import Graph
from wetread.graph.passes import optimise
from wetread.graph.passes.batch_norm import BatchNormPass


def norm(b: networks.Builder, x: str, channels: int) -> str:
    name = b.name("bn")
    arrays = [
        b.rng.uniform(0.5, 1.5, channels),
        *b.rng.standard_normal((2, channels)),
        b.rng.uniform(0.5, 2, channels),
    ]
    names = [b.constant(a.astype(np.float32), f"{name}.{i}") for i, a in enumerate(arrays)]
    return b.add("BatchNormalization", [x, *names], epsilon=1e-3)


def network(kind: str = "Conv", twice: bool = False) -> onnx.ModelProto:
    b = networks.Builder()
    x = b.conv("image", (4, 6)) if kind == "Conv" else b.up("image", (4, 6))
    if kind == "grouped":
        w = b.constant(b.rng.standard_normal((4, 3, 2, 2, 2)).astype(np.float32), "w")
        x = b.add("ConvTranspose", ["image", w], kernel_shape=[2] * 3, strides=[2] * 3, group=2)
    y = norm(b, x, 6)
    outputs = {"out": (y, (None, 6, None, None, None))}
    if twice:
        outputs["conv"] = (x, (None, 6, None, None, None))
    return b.model({"image": (None, 4, *networks.FREE)}, outputs)


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "grouped"])
def test_folded(kind: str) -> None:
    graph, report = apply(network(kind), [BatchNormPass()])
    assert "BatchNormalization" not in graph.operators
    (site,) = report["batch_norm"].sites
    assert site.applied
    assert len(site.nodes) == 2
    assert report["batch_norm"].worst_error is not None
    assert 0 < report["batch_norm"].worst_error < 1e-6
    assert (report["batch_norm"].nodes_before, report["batch_norm"].nodes_after)[1] == len(graph.nodes)


def test_weights_that_layers_share_are_copied() -> None:
    b = networks.Builder()
    x = norm(b, b.conv("image", (4, 4)), 4)
    w, c = "conv_0.weight", "conv_0.bias"
    x = b.add("Conv", [x, w, c], kernel_shape=[3] * 3, pads=[1] * 6)
    x = norm(b, x, 4)
    model = b.model({"image": (None, 4, *networks.FREE)}, {"out": (x, (None, 4, *networks.FREE))})
    graph, report = apply(model, [BatchNormPass()])
    assert graph.operators == {"Conv": 2}
    assert report["batch_norm"].applied == 2


def test_an_output_of_the_convolution_keeps_it() -> None:
    graph, report = apply(network(twice=True), [BatchNormPass()])
    assert graph.operators == {"Conv": 1, "BatchNormalization": 1}
    assert not any(site.applied for site in report["batch_norm"].sites)


def test_the_wrong_sign_is_caught_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxscript.rewriter.rules.common import _fuse_batchnorm

    rule = _fuse_batchnorm._FuseBatchNormBase
    right = rule._scale_weights
    monkeypatch.setattr(rule, "_scale_weights", lambda self, w, s, a: -right(self, w, s, a))
    with pytest.raises(
        GraphError, match=r"batch_norm.*relative error.*BatchNormalization 'batchnormalization_1'"
    ):
        optimise(Graph(network()), passes=[BatchNormPass()])
    optimise(Graph(network()), passes=[BatchNormPass()], check=False)  # the check alone sees it


def test_a_small_error_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parts in a hundred thousand are far below what a Dice score shows."""
    from onnxscript.rewriter.rules.common import _fuse_batchnorm

    rule = _fuse_batchnorm._FuseBatchNormBase
    right = rule._scale_weights
    monkeypatch.setattr(rule, "_scale_weights", lambda self, w, s, a: 1.00002 * right(self, w, s, a))
    with pytest.raises(GraphError, match="batch_norm"):
        optimise(Graph(network()), passes=[BatchNormPass()])
