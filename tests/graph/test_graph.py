"""Graphs read from files: whole, damaged, and reaching out of their folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests import networks
from wetread.errors import GraphError
from wetread.graph import Graph, verify


def test_interface_of_a_network() -> None:
    graph = Graph(networks.unet((2, 3), (4, 8), window=(None, 16, 8)))
    assert [(e.name, e.shape, e.dtype) for e in graph.inputs] == [
        ("image", (None, 2, None, 16, 8), "float32")
    ]
    assert [(e.name, e.shape) for e in graph.outputs] == [("logits", (None, 3, None, 16, 8))]
    assert graph.opset == networks.OPSET
    assert graph.operators["Conv"] == 5
    assert graph.precision == "float32"
    assert graph.weight_bytes == sum(w.nbytes for w in graph.weights.values()) > 0


def test_round_trip_is_byte_for_byte(tmp_path: Path) -> None:
    graph = Graph(networks.unet())
    again = Graph.load(graph.save(tmp_path / "a.onnx"))
    assert again.to_bytes() == graph.to_bytes() == Graph.from_bytes(graph.to_bytes()).to_bytes()


def test_round_trip_through_onnx_ir_keeps_the_numbers() -> None:
    graph = Graph(networks.unet())
    again = Graph.from_ir(graph.ir())
    verify(again)
    x = {"image": np.random.default_rng(0).standard_normal((1, 1, 8, 8, 8))}
    np.testing.assert_array_equal(again.evaluate(x)["logits"], graph.evaluate(x)["logits"])


def test_stripped_removes_what_exporters_leave_behind() -> None:
    model = networks.unet()
    model.doc_string = "trained in /home/someone"
    model.graph.node[0].doc_string = "File /home/someone/net.py, line 3"
    model.graph.node[0].metadata_props.add(key="stack_trace", value="/home/someone/net.py")
    content = Graph(model).stripped().to_bytes()
    assert b"someone" not in content
    assert content == Graph(networks.unet()).to_bytes()


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, 60000])
def test_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = networks.save(networks.unet(), tmp_path / "net.onnx")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(GraphError, match=r"net\.onnx"):
        verify(Graph.load(path))


@pytest.mark.parametrize(
    "content", [b"", b"hello, this is text\n" * 20, b"\x00" * 500, b"PK\x03\x04" + b"x" * 90]
)
def test_not_onnx_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(GraphError, match=r"net\.onnx"):
        Graph.load(path)


@given(st.integers(0, 60000), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_one_wrong_byte_gives_a_graph_or_a_graph_error(at: int, change: int) -> None:
    content = bytearray(_UNET)
    content[at] ^= change
    with suppress(GraphError):
        verify(Graph.from_bytes(bytes(content)))


_UNET = networks.unet().SerializeToString(deterministic=True)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"none\.onnx"):
        Graph.load(tmp_path / "none.onnx")


def external(tmp_path: Path) -> Path:
    path = tmp_path / "inner" / "net.onnx"
    path.parent.mkdir()
    onnx.save(networks.unet(), path, save_as_external_data=True, location="net.weights", size_threshold=0)
    return path


def relocate(path: Path, location: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


def test_external_weights_are_taken_in(tmp_path: Path) -> None:
    graph = Graph.load(external(tmp_path))
    verify(graph)
    for name, array in Graph(networks.unet()).weights.items():
        np.testing.assert_array_equal(graph.weights[name], array)
    assert b"net.weights" not in graph.to_bytes()


@pytest.mark.parametrize("location", ["../secret.weights", "/etc/passwd", "sub/../../secret.weights", ""])
def test_external_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    path = external(tmp_path)
    (tmp_path / "secret.weights").write_bytes((path.parent / "net.weights").read_bytes())
    relocate(path, location)
    with pytest.raises(GraphError, match="outside the network's folder"):
        Graph.load(path)


def test_external_weights_behind_a_link_are_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    weights = path.parent / "net.weights"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GraphError, match="outside the network's folder"):
        Graph.load(path)


def test_short_external_weights_are_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    weights = path.parent / "net.weights"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(GraphError, match="ends at byte"):
        Graph.load(path)


def test_missing_external_weights_are_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    (path.parent / "net.weights").unlink()
    with pytest.raises(GraphError, match=r"net\.weights"):
        Graph.load(path)


def test_bytes_with_external_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="another file"):
        Graph.from_bytes(external(tmp_path).read_bytes())


def test_functions_are_inlined() -> None:
    function = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 18)],
    )
    shape = ["n", 1, "i", "j", "k"]
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Twice", ["x"], ["y"], domain="local")], "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        ),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("local", 1)],
        functions=[function], ir_version=10,
    )  # fmt: skip
    graph = Graph(model)
    verify(graph)
    assert graph.operators == {"Add": 1}


@pytest.mark.parametrize(
    ("kind", "name"), [(np.float16, "float16"), (np.float32, "float32"), (np.float64, "float64")]
)
def test_precision_is_that_of_the_weights(kind: type, name: str) -> None:
    b = networks.Builder(dtype=kind)
    x = b.conv("image", (1, 2))
    graph = Graph(b.model({"image": (None, 1, *networks.FREE)}, {"out": (x, (None, 2, *networks.FREE))}))
    assert graph.precision == name


@pytest.mark.parametrize(("zero", "name"), [(np.int8, "int8"), (np.uint8, "int8")])
def test_precision_of_quantise_nodes(zero: type, name: str) -> None:
    graph = Graph(quantised(zero))
    verify(graph)
    assert graph.precision == name


def quantised(zero: type = np.int8) -> onnx.ModelProto:
    """A convolution over an input that passes through quantise and dequantise nodes."""
    b = networks.Builder()
    scale, point = b.constant(np.array(0.05, np.float32), "scale"), b.constant(np.array(0, zero), "zero")
    q = b.add("QuantizeLinear", ["image", scale, point])
    x = b.conv(b.add("DequantizeLinear", [q, scale, point]), (1, 2))
    return b.model({"image": (None, 1, *networks.FREE)}, {"out": (x, (None, 2, *networks.FREE))})


def test_quantised_rounding_stays_in_float64() -> None:
    x = np.random.default_rng(0).standard_normal((1, 1, 6, 6, 6)).astype(np.float32)
    graph = Graph(quantised())
    rounded = np.clip(np.rint(x.astype(np.float64) / np.float64(np.float32(0.05))), -128, 127)
    inner = graph.evaluate({"image": x}, keep=["dequantizelinear_1"])["dequantizelinear_1"]
    np.testing.assert_allclose(inner, rounded * np.float64(np.float32(0.05)), rtol=1e-15)


def test_output_shapes_by_inference() -> None:
    graph = Graph(networks.unet((1, 3), (4, 8)))
    assert graph.output_shapes((16, 8, 24)) == {"logits": (1, 3, 16, 8, 24)}
    with pytest.raises(GraphError, match=r"\(15, 8, 24\)"):
        graph.output_shapes((15, 8, 24))


def test_initialisers_listed_as_inputs_are_no_inputs() -> None:
    model = networks.threshold()
    model.graph.input.append(helper.make_tensor_value_info("bias", TensorProto.FLOAT, [2]))
    assert [entry.name for entry in Graph(model).inputs] == ["image"]


def test_inputs_without_a_shape_are_refused() -> None:
    model = networks.threshold()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(GraphError, match="image"):
        Graph(model)


def test_weights_read_as_numpy() -> None:
    graph = Graph(networks.threshold(cut=0.25, gain=8))
    np.testing.assert_array_equal(graph.weights["bias"], [0, -2])
    assert numpy_helper.to_array(graph.model.graph.initializer[0]).ravel().tolist() == [0, 8]
