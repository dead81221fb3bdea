"""Quantised graphs: what is stored, where the nodes stand, and what they compute, layer by layer."""

import numpy as np
import pytest

from tests.networks import Builder, unet
from tests.precision.nets import error, graph_of, onnxruntime, ranges_of, windows
from wetread.errors import GraphError
from wetread.graph import Graph, verify
from wetread.graph.draft import Draft, attributes
from wetread.precision import quantisable, quantise, quantised_tensors
from wetread.precision.placement import place
from wetread.precision.quantise import weight_scales
from wetread.precision.ranges import Ranges, TensorRange

SHAPE = (4, 8, 8, 8)


def one_layer(kind, groups=1):
    """A network of one quantisable layer, 4 channels in and 6 out, and the layer's name."""
    b = Builder(seed=groups)
    if kind == "Conv":
        return graph_of(b, b.conv("image", (4, 8 if groups > 1 else 6), groups=groups), 4, None)
    if kind == "ConvTranspose":
        shape = (4, 6 // groups if groups > 1 else 6, 2, 2, 2)
        weight = b.constant(b.rng.standard_normal(shape).astype(np.float32), "weight")
        out = b.add("ConvTranspose", ["image", weight], kernel_shape=[2] * 3, strides=[2] * 3, group=groups)
        return graph_of(b, out, 4, 6)
    table = b.add("Reshape", ["image", b.constant(np.array([-1, 4], np.int64), "rows")])
    if kind == "MatMul":
        y = b.add("MatMul", [table, b.constant(b.rng.standard_normal((4, 6)).astype(np.float32), "weight")])
    else:
        turned = kind == "Gemm transposed"
        weight = b.rng.standard_normal((6, 4) if turned else (4, 6)).astype(np.float32)
        bias = b.constant(b.rng.standard_normal(6).astype(np.float32), "bias")
        y = b.add("Gemm", [table, b.constant(weight, "weight"), bias], transB=int(turned))
    out = b.add("Reshape", [y, b.constant(np.array([1, 6, 8, 8, 8], np.int64), "back")])
    return graph_of(b, out, 4, 6)


LAYERS = [
    ("Conv", 1),
    ("Conv", 2),
    ("ConvTranspose", 1),
    ("ConvTranspose", 2),
    ("MatMul", 1),
    ("Gemm", 1),
    ("Gemm transposed", 1),
]


@pytest.mark.parametrize(("kind", "groups"), LAYERS)
def test_one_layer_is_rounded_and_nothing_else(kind, groups):
    """The float64 evaluator on the quantised graph, against rounding done here by hand."""
    graph = one_layer(kind, groups)
    ranges = ranges_of(graph, SHAPE)
    lowered, report = quantise(graph, ranges, calibrator="minmax")
    verify(lowered)
    assert lowered.precision == "int8"
    (site,) = place(graph).sites
    (tensor,) = quantised_tensors(graph)
    scale = np.float32(ranges[tensor].absmax / 127)
    assert report.scales == {tensor: pytest.approx(float(scale), rel=1e-6)}
    weight = graph.weights[site.weight]
    axes = tuple(a for a in range(weight.ndim) if a != site.axes[0])
    step = (np.abs(weight).max(axes, keepdims=True) / 127).astype(np.float32).astype(np.float64)
    by_hand = Draft(graph)
    by_hand.set_weight(site.weight, (np.round(weight / step) * step).astype(np.float32))
    array = windows(1, SHAPE)[0].array
    rounded = np.clip(np.round(array / scale), -127, 127) * np.float64(scale)
    expected = by_hand.graph().evaluate({"image": rounded[None]})["out"]
    found = lowered.evaluate({"image": array[None]})["out"]
    assert error(found, expected) < 1e-5  # the rounded weight went through float32 once
    exact = graph.evaluate({"image": array[None]})["out"]
    assert 1e-4 < error(found, exact) < 0.02


@pytest.mark.parametrize(("kind", "groups"), LAYERS)
@pytest.mark.parametrize("form", ["int8", "float8"])
def test_onnxruntime_agrees_with_the_float64_evaluator(kind, groups, form):
    graph = one_layer(kind, groups)
    lowered, _ = quantise(graph, ranges_of(graph, SHAPE), kind=form)
    array = windows(1, SHAPE)[0].array
    found = onnxruntime(lowered, array)
    if form == "int8":
        assert error(found, lowered.evaluate({"image": array[None]})["out"]) < 1e-4
    assert error(found, graph.evaluate({"image": array[None]})["out"]) < (0.02 if form == "int8" else 0.05)


def test_weights_are_stored_in_eight_bits():
    graph = Graph(unet(features=(8, 16)))
    ranges = ranges_of(graph)
    for form, dtype in (("int8", "int8"), ("float8", "float8_e4m3fn")):
        lowered, _ = quantise(graph, ranges, kind=form)
        assert lowered.precision == form
        stored = [w for name, w in lowered.weights.items() if name.endswith("/stored")]
        assert {w.dtype.name for w in stored} == {dtype}
        for node in quantisable(graph):
            assert f"{node}.weight" not in lowered.weights
        again = Graph.from_bytes(lowered.to_bytes())
        assert again.to_bytes() == lowered.to_bytes()


def test_biases_norms_and_interface_stay_float32():
    graph = Graph(unet())
    lowered, report = quantise(graph, ranges_of(graph))
    assert lowered.weights["conv_0.bias"].dtype == np.float32
    assert [(e.name, e.dtype) for e in lowered.inputs + lowered.outputs] == [
        ("image", "float32"),
        ("logits", "float32"),
    ]
    assert {layer.precision for layer in report.layers if layer.operator == "InstanceNormalization"} == {
        "float32"
    }
    assert {n.name for n in graph.nodes} <= {n.name for n in lowered.nodes}
    assert len(report.layers) == len(graph.nodes)


def test_each_tensor_is_rounded_once_for_all_readers():
    graph = Graph(unet(features=(4, 8, 16)))
    lowered, _ = quantise(graph, ranges_of(graph))
    rounded = [node.input[0] for node in lowered.nodes if node.op_type == "QuantizeLinear"]
    assert sorted(rounded) == sorted(quantised_tensors(graph))
    assert len(set(rounded)) == len(rounded)
    for node in lowered.nodes:
        if node.op_type in ("Conv", "ConvTranspose"):
            makers = {name: n.op_type for n in lowered.nodes for name in n.output}
            assert [makers[name] for name in node.input[:2]] == ["DequantizeLinear"] * 2
            assert "Concat" not in makers.get(node.input[0], "")


def test_concatenation_is_read_in_parts_that_sum_to_the_whole():
    """W · [a, b, c] = Wa · a + Wb · b + Wc · c, with the bias once; nested concatenations are flattened."""
    b = Builder()
    parts = [b.conv("image", (1, width)) for width in (2, 3, 4)]
    inner = b.add("Concat", parts[:2], axis=1)
    joined = b.add("Concat", [inner, parts[2]], axis=-4)
    graph = graph_of(b, b.conv(joined, (9, 5)), 1, 5)
    ranges = ranges_of(graph)
    site = place(graph).sites[-1]
    assert (site.parts, site.sizes) == (tuple(parts), (2, 3, 4))
    lowered, report = quantise(graph, ranges, calibrator="minmax")
    verify(lowered)
    assert "Concat" not in {node.op_type for node in Draft(lowered).nodes if node.name in site.node_names}
    assert report.of(site.name).reason == "quantised in 3 parts"
    biased = [n for n in lowered.nodes if n.name in site.node_names and len(n.input) > 2]
    assert [n.name for n in biased] == [site.name]
    array = windows(1)[0].array
    exact = graph.evaluate({"image": array[None]})["out"]
    assert error(lowered.evaluate({"image": array[None]})["out"], exact) < 0.02


@pytest.mark.parametrize("why", ["groups", "axis", "many"])
def test_concatenations_that_cannot_be_taken_apart_stay_float32(why):
    b = Builder()
    count = 6 if why == "many" else 2
    parts = [b.conv("image", (1, 4)) for _ in range(count)]
    joined = b.add("Concat", parts, axis=2 if why == "axis" else 1)
    into = 4 if why == "axis" else 4 * count
    graph = graph_of(b, b.conv(joined, (into, 8), groups=2 if why == "groups" else 1), 1, 8)
    name = graph.nodes[-1].name
    assert name not in quantisable(graph)
    _, report = quantise(graph, ranges_of(graph))
    assert report.of(name).precision == "float32"
    assert "concatenation" in report.of(name).reason


def test_pools_move_eight_bit_values():
    b = Builder()
    pooled = b.add("MaxPool", [b.conv("image", (1, 4))], kernel_shape=[2] * 3, strides=[2] * 3)
    graph = graph_of(b, b.conv(pooled, (4, 4)), 1, 4)
    assert quantised_tensors(graph) == ("image", "conv_0")
    lowered, report = quantise(graph, ranges_of(graph))
    assert report.of(pooled).reason == "moves eight-bit values"
    array = windows(1)[0].array
    assert error(onnxruntime(lowered, array), graph.evaluate({"image": array[None]})["out"]) < 0.03


def test_residual_sum_reads_the_unrounded_tensor():
    b = Builder()
    x = b.block("image", (1, 4))
    y = b.add("Add", [b.conv(x, (4, 4)), x])
    graph = graph_of(b, b.conv(y, (4, 2)), 1, 2)
    lowered, _ = quantise(graph, ranges_of(graph))
    total = next(n for n in lowered.nodes if n.name == y)
    assert total.input[1] == x


def test_released_layers_stay_as_they_are():
    graph = Graph(unet())
    ranges = ranges_of(graph)
    names = quantisable(graph)
    lowered, report = quantise(graph, ranges, released=names)
    assert lowered.precision == "float32"
    assert {layer.precision for layer in report.layers} == {"float32"}
    array = windows(1)[0].array
    np.testing.assert_allclose(onnxruntime(lowered, array), onnxruntime(graph, array), rtol=1e-5, atol=1e-5)
    lowered, report = quantise(graph, ranges, released=names[2:3])
    assert [layer.name for layer in report.layers if layer.reason == "released"] == [names[2]]
    assert lowered.weights[f"{names[2]}.weight"].dtype == np.float32
    with pytest.raises(GraphError, match="'nothing'"):
        quantise(graph, ranges, released=["nothing"])


def test_each_layer_alone_and_all_together():
    """Errors add up: each layer alone costs little; the sum of squares about explains the whole."""
    graph = Graph(unet(features=(8, 16)))
    ranges = ranges_of(graph)
    names = quantisable(graph)
    array = windows(1)[0].array
    exact = onnxruntime(graph, array)

    def cost(released):
        return error(
            onnxruntime(quantise(graph, ranges, calibrator="minmax", released=released)[0], array), exact
        )

    alone = [cost([n for n in names if n != name]) for name in names]
    assert max(alone) < 0.03
    together = cost([])
    assert together == pytest.approx(np.sqrt(np.sum(np.square(alone))), rel=0.3)


def test_zero_channels_and_zero_tensors():
    b = Builder()
    weight = b.rng.standard_normal((3, 1, 1, 1, 1)).astype(np.float32)
    weight[1] = 0
    y = b.add("Conv", ["image", b.constant(weight, "weight")], kernel_shape=[1] * 3)
    graph = graph_of(b, y, 1, 3)
    np.testing.assert_allclose(
        weight_scales(weight, 0), [abs(weight[0, 0, 0, 0, 0]) / 127, 1, abs(weight[2, 0, 0, 0, 0]) / 127]
    )
    empty = TensorRange()
    empty.update(np.zeros((1, 1, 4, 4, 4), np.float32))
    lowered, report = quantise(graph, Ranges({"image": empty}, 1))
    assert [notice.code for notice in report.notices] == ["RANGE_EMPTY"]
    verify(lowered)


def test_faults_are_named():
    graph = Graph(unet())
    with pytest.raises(GraphError, match="'image' was not observed"):
        quantise(graph, Ranges({}))
    draft = Draft(graph)
    bad = draft.weights["conv_3.weight"].copy()
    bad[0, 0, 0, 0, 0] = np.nan
    draft.set_weight("conv_3.weight", bad)
    with pytest.raises(GraphError, match=r"conv_3\.weight") as caught:
        quantise(draft.graph(), ranges_of(graph))
    assert caught.value.where == "conv_3"


def test_older_operator_sets_are_raised_for_float8():
    b = Builder()
    graph = graph_of(b, b.conv("image", (1, 2)), 1, 2, opset=17)
    lowered, _ = quantise(graph, ranges_of(graph), kind="float8")
    assert lowered.opset >= 19
    assert quantise(graph, ranges_of(graph))[0].opset == 17


def test_same_inputs_same_bytes():
    graph = Graph(unet())
    first, second = (quantise(graph, ranges_of(graph))[0].to_bytes() for _ in range(2))
    assert first == second


def test_attributes_of_parts_are_the_sites_own():
    b = Builder()
    x = b.add("Concat", [b.conv("image", (1, 2)), "image"], axis=1)
    graph = graph_of(b, b.conv(x, (3, 4), stride=2), 1, 4)
    lowered, _ = quantise(graph, ranges_of(graph))
    first, second = (
        n for n in lowered.nodes if n.op_type == "Conv" and n.name.startswith(graph.nodes[-1].name)
    )
    assert attributes(first) == attributes(second)


def test_unsigned_where_nothing_is_negative():
    """After a ReLU 256 levels instead of 128: half the error. What is signed, or read by an up-convolution, stays."""
    b = Builder()
    x = b.add("Relu", [b.conv("image", (1, 8))])
    y = b.add("Relu", [b.conv(x, (8, 8))])
    graph = graph_of(b, b.conv(b.up(y, (8, 8)), (8, 2)), 1, 2)
    ranges = ranges_of(graph)
    lowered, report = quantise(graph, ranges, calibrator="minmax", unsigned=True)
    verify(lowered)
    zeros = {
        n.input[0]: lowered.weights[n.input[2]].dtype.name
        for n in lowered.nodes
        if n.op_type == "QuantizeLinear"
    }
    assert zeros.pop(x) == "uint8"
    assert set(zeros.values()) == {"int8"}
    assert report.scales[x] == pytest.approx(ranges[x].absmax / 255, rel=1e-6)
    assert lowered.precision == "int8"
    array = windows(1)[0].array
    exact = graph.evaluate({"image": array[None]}, keep=[x])
    rounded = {name: g.evaluate({"image": array[None]}, keep=[f"{x}/rounded"])[f"{x}/rounded"] for name, g in (
        ("int8", quantise(graph, ranges, calibrator="minmax", released=["conv_0"])[0]),
        ("uint8", quantise(graph, ranges, calibrator="minmax", released=["conv_0"], unsigned=True)[0]),
    )}  # fmt: skip
    assert error(rounded["uint8"], exact[x]) == pytest.approx(error(rounded["int8"], exact[x]) / 2, rel=0.1)
    with_float8, _ = quantise(graph, ranges, kind="float8", unsigned=True)
    assert with_float8.precision == "float8"
