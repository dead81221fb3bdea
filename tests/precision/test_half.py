"""Float16 graphs: cast where ranges allow, casts at borders only, what would overflow named."""

import numpy as np
import pytest

from tests.networks import Builder, unet
from tests.precision.nets import error, graph_of, onnxruntime, openvino, ranges_of, windows
from wetread.errors import GraphError
from wetread.graph import Graph, verify
from wetread.graph.draft import Draft
from wetread.graph.types import element_types
from wetread.precision import CalibrationWindow, observe, quantisable, quantise, to_half
from wetread.precision.ranges import Ranges


def casts(graph):
    return [node for node in graph.nodes if node.op_type == "Cast"]


def test_small_windows_fit_whole():
    """8³ voxels: even the norms' sums of squares fit; two casts, in and out."""
    graph = Graph(unet())
    lowered, report = to_half(graph, ranges_of(graph, (1, 8, 8, 8)))
    verify(lowered)
    assert lowered.precision == "float16"
    assert report.counts() == {"float16": len(graph.nodes)}
    assert report.notices == ()
    assert len(casts(lowered)) == 2
    assert [(e.name, e.dtype) for e in lowered.inputs + lowered.outputs] == [
        ("image", "float32"),
        ("logits", "float32"),
    ]


@pytest.mark.parametrize("run", [onnxruntime, openvino])
def test_agrees_with_float32(run):
    """Float16 has 11 bits: a rounding is at most 2⁻¹¹ = 5e-4 of a value; seven layers, errors add as squares."""
    graph = Graph(unet(features=(8, 16)))
    lowered, _ = to_half(graph, ranges_of(graph))
    array = windows(1)[0].array
    assert error(run(lowered, array), onnxruntime(graph, array)) < 2e-3


def test_norms_stay_in_float32_where_their_sums_overflow():
    """32³ voxels of unit variance: squares sum to 32,768 and more, beyond half of 65,504."""
    graph = Graph(unet())
    lowered, report = to_half(graph, ranges_of(graph, (1, 32, 32, 32)))
    verify(lowered)
    kept = [layer for layer in report.layers if layer.precision == "float32"]
    assert {layer.operator for layer in kept} == {"InstanceNormalization"}
    assert (
        0 < len(kept) < 4
    )  # those of full resolution; after a stride of 2 there are an eighth of the voxels
    assert all("squares" in layer.reason for layer in kept)
    (notice,) = report.notices
    assert notice.code == "HALF_NORMS"
    assert all(layer.name in notice.where for layer in kept)
    assert "mixed precision" in notice.text
    assert "quantisation-aware" in notice.text
    types = element_types(lowered)
    for node in lowered.nodes:
        if node.name in {layer.name for layer in kept}:
            assert {types[name] for name in (*node.input, *node.output)} == {"float32"}
        if node.op_type == "Cast":
            assert types[node.input[0]] != types[node.output[0]]
    assert len(casts(lowered)) <= 2 + 2 * len(kept)


def scaled(gain):
    """Two convolutions, the first of which multiplies by `gain`, the second takes it back."""
    b = Builder()
    first = b.constant(np.full((1, 1, 1, 1, 1), gain, np.float32), "first")
    second = b.constant(np.full((1, 1, 1, 1, 1), 1 / gain, np.float32), "second")
    x = b.add("Conv", ["image", first], kernel_shape=[1] * 3)
    x = b.add("Relu", [x])
    return graph_of(b, b.add("Conv", [x, second], kernel_shape=[1] * 3), 1, 1)


def test_values_beyond_float16_are_kept_and_named():
    graph = scaled(30_000.0)
    array = windows(1, (1, 8, 8, 8))[0].array
    lowered, report = to_half(graph, ranges_of(graph, (1, 8, 8, 8)))
    assert {layer.precision for layer in report.layers} == {"float32"}
    assert {notice.code for notice in report.notices} == {"HALF_RANGE"}
    assert {notice.where for notice in report.notices} == {"conv_0", "relu_1", "out"} or len(
        report.notices
    ) == 3
    assert error(onnxruntime(lowered, array), onnxruntime(graph, array)) < 1e-6


def test_what_would_happen_without_the_check():
    """The same network, were it cast on small ranges: infinite. The check has something to find.

    Runtimes on CPUs compute float16 in float32 and hide it, so the value is asked for itself.
    """
    graph = scaled(30_000.0)
    quiet = observe(graph, [CalibrationWindow("quiet", np.full((1, 8, 8, 8), 0.01, np.float32))], threads=1)
    lowered, report = to_half(graph, quiet)
    assert {layer.precision for layer in report.layers} == {"float16"}
    assert element_types(lowered)["conv_0"] == "float16"
    array = 4 + windows(1, (1, 8, 8, 8))[0].array
    value = graph.evaluate({"image": array[None]}, keep=["conv_0"])["conv_0"]
    with np.errstate(over="ignore"):
        assert np.isinf(value.astype(np.float16)).any()


def test_values_too_small_for_float16_are_kept():
    graph = scaled(1e-9)
    _, report = to_half(graph, ranges_of(graph, (1, 8, 8, 8)))
    assert report.of("conv_0").precision == "float32"
    assert "become 0" in report.of("conv_0").reason


def test_weights_that_overflow_are_named():
    graph = scaled(1e5)
    _, report = to_half(graph, ranges_of(graph, (1, 8, 8, 8)))
    assert "'first'" in report.of("conv_0").reason
    assert any("'first'" in notice.text for notice in report.notices)


@pytest.mark.parametrize(("operator", "size", "precision"), [
    ("ReduceMean", 8, "float16"), ("ReduceMean", 48, "float32"), ("GlobalAveragePool", 48, "float32"),
])  # fmt: skip
def test_sums_are_judged_by_their_bound(operator, size, precision):
    b = Builder()
    if operator == "ReduceMean":
        axes = b.constant(np.array([2, 3, 4], np.int64), "axes")
        x = b.add(operator, ["image", axes], keepdims=1)
    else:
        x = b.add(operator, ["image"])
    model = b.model({"image": (1, 2, None, None, None)}, {"out": (x, (1, 2, 1, 1, 1))})
    graph = Graph(model)
    _, report = to_half(graph, ranges_of(graph, (2, size, size, size)))
    assert report.layers[0].precision == precision


@pytest.mark.parametrize("operator", ["GroupNormalization", "LayerNormalization"])
def test_other_norms_are_judged_by_what_they_sum(operator):
    """A group is two channels, 2·16³ values of variance 25; a row of layer norm is 16 values: far from 65,504."""
    b = Builder()
    x = b.add("Mul", ["image", b.constant(np.array(3.0, np.float32), "five")])
    scale, bias = (
        b.constant(np.full(4 if "Group" in operator else 16, v, np.float32), str(v)) for v in (1, 0)
    )
    extra = {"num_groups": 2} if "Group" in operator else {"axis": -1}
    graph = graph_of(b, b.add(operator, [x, scale, bias], **extra), 4, 4, opset=21)
    _, report = to_half(graph, ranges_of(graph, (4, 16, 16, 16)))
    assert report.layers[1].precision == ("float32" if "Group" in operator else "float16")


def test_kept_on_request_and_unknown_names():
    graph = Graph(unet())
    ranges = ranges_of(graph, (1, 8, 8, 8))
    lowered, report = to_half(graph, ranges, kept=["conv_0", "conv_14"])
    verify(lowered)
    assert report.of("conv_0").reason == "asked for"
    assert lowered.weights["conv_0.weight"].dtype == np.float32
    assert report.counts()["float32"] == 2
    with pytest.raises(GraphError, match="'nothing'"):
        to_half(graph, ranges, kept=["nothing"])


def test_unobserved_is_kept():
    graph = Graph(unet())
    lowered, report = to_half(graph, Ranges({}))
    assert set(report.counts()) == {"float32"}
    assert "was not observed" in report.layers[0].reason
    assert lowered.precision == "float32"


def test_integers_shapes_and_scales_of_resize_are_left_alone():
    b = Builder()
    x = b.conv("image", (1, 4))
    size = b.add("Shape", [x])
    sizes = b.add("Mul", [size, b.constant(np.array([1, 1, 2, 2, 2], np.int64), "twice")])
    y = b.add("Resize", [x, "", "", sizes], mode="nearest")
    factors = b.constant(np.array([1, 1, 0.5, 0.5, 0.5], np.float32), "factors")
    z = b.add("Resize", [y, "", factors], mode="linear")
    graph = graph_of(b, b.conv(z, (4, 2)), 1, 2)
    lowered, report = to_half(graph, ranges_of(graph, (1, 8, 8, 8)))
    verify(lowered)
    assert report.of(z).precision == "float16"
    assert lowered.weights["factors"].dtype == np.float32
    array = windows(1, (1, 8, 8, 8))[0].array
    assert error(onnxruntime(lowered, array), onnxruntime(graph, array)) < 2e-3


def test_outputs_that_are_read_inside_keep_type_and_name():
    """An output in the middle of the network, read by a float16 and by a float32 node."""
    b = Builder()
    x = b.conv("image", (1, 2))
    y, z = b.conv(x, (2, 2)), b.add("Sigmoid", [x])
    shape = (1, 2, None, None, None)
    model = b.model(
        {"image": (1, 1, None, None, None)}, {"mid": (x, shape), "out": (y, shape), "act": (z, shape)}
    )
    graph = Graph(model)
    lowered, _ = to_half(graph, ranges_of(graph, (1, 8, 8, 8)), kept=[z])
    verify(lowered)
    assert [(e.name, e.dtype) for e in lowered.outputs] == [(n, "float32") for n in ("mid", "out", "act")]
    array = windows(1, (1, 8, 8, 8))[0].array
    assert error(onnxruntime(lowered, array), onnxruntime(graph, array)) < 1e-3


def test_int8_network_with_released_layers_in_float16():
    """What a rollback releases becomes float16; eight-bit layers and their scales stay."""
    graph = Graph(unet(features=(8, 16)))
    ranges = ranges_of(graph)
    released = quantisable(graph)[2:4]
    mixed, _ = quantise(graph, ranges, released=released)
    lowered, report = to_half(mixed, ranges)
    verify(lowered)
    assert lowered.precision == "int8"
    for name in released:
        assert report.of(name).precision == "float16"
    array = windows(1)[0].array
    assert error(onnxruntime(lowered, array), onnxruntime(mixed, array)) < 0.02


def test_drafts_refuse_what_is_no_graph():
    draft = Draft(Graph(unet()))
    draft.nodes[3].input[0] = "nowhere"
    with pytest.raises(GraphError, match="'nowhere'"):
        draft.graph()


@pytest.mark.parametrize("operator", ["Conv", "Add"])
def test_a_bias_may_become_zero(operator):
    """Decay takes biases before instance norms to 1e-9; adding one changes nothing that float16 could hold."""
    rng = np.random.default_rng(0)
    b = Builder()
    weight = b.constant(rng.normal(size=(4, 1, 3, 3, 3)).astype(np.float32), "weight")
    bias = b.constant(np.full((4,) if operator == "Conv" else (1, 4, 1, 1, 1), 1e-9, np.float32), "bias")
    if operator == "Conv":
        x = b.add("Conv", ["image", weight, bias], kernel_shape=[3] * 3, pads=[1] * 6)
    else:
        x = b.add("Add", [b.add("Conv", ["image", weight], kernel_shape=[3] * 3, pads=[1] * 6), bias])
    graph = graph_of(b, b.add("Relu", [x]), 1, 4)
    lowered, report = to_half(graph, ranges_of(graph, (1, 8, 8, 8)))
    assert {layer.precision for layer in report.layers} == {"float16"}
    array = windows(1, (1, 8, 8, 8))[0].array
    assert error(onnxruntime(lowered, array), onnxruntime(graph, array)) < 2e-3
