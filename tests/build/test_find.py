"""Which importer takes a model, and what it says where none does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy import ndimage

from tests import networks
from wetread.build.importers import import_model
from wetread.errors import GraphError


def test_an_onnx_file_is_one_network_without_a_recipe(tmp_path: Path) -> None:
    path = networks.save(networks.unet(), tmp_path / "net.onnx")
    found = import_model(path)
    assert found.recipe is None
    assert found.sources == (path,)
    assert [(n.stage, n.fold) for n in found.networks] == [(0, 0)]
    assert found.networks[0].graph.operators["Conv"] > 0


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="no such file") as caught:
        import_model(tmp_path / "net.onnx")
    assert "net.onnx" in str(caught.value.where)


def test_an_unknown_format_is_refused_and_the_known_ones_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "weights.h5"
    path.write_bytes(b"\0" * 64)
    with pytest.raises(GraphError, match="no format") as caught:
        import_model(path)
    assert ".onnx" in str(caught.value.todo)


def test_biases_that_pytorch_writes_wrongly_are_removed(tmp_path: Path) -> None:
    """Unoptimised exports spell a missing bias of a 3D convolution as zeros of shape (channels, 2)."""
    weight = np.random.default_rng(0).normal(size=(4, 1, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Expand", ["zero", "shape"], ["bias"]),
        helper.make_node("Conv", ["image", "weight", "bias"], ["logits"], pads=[1] * 6),
    ]
    size: list[int | None] = [None, None, None, None]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [None, 1, *size[1:]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, 4, *size[1:]])],
        [
            numpy_helper.from_array(np.zeros((), np.float32), "zero"),
            numpy_helper.from_array(np.array([4, 2], np.int64), "shape"),
            numpy_helper.from_array(weight, "weight"),
        ],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    image = np.random.default_rng(1).normal(size=(1, 1, 5, 6, 7)).astype(np.float32)
    found = import_model(path).networks[0].graph.evaluate({"image": image})["logits"][0]
    expected = [
        ndimage.correlate(image[0, 0].astype(float), w[0].astype(float), mode="constant") for w in weight
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
