"""Proof from OpenVINO's own execution graph: what should compute in eight bits does, and computes right."""

import numpy as np
import pytest

from tests.networks import Builder, unet
from tests.precision.nets import error, graph_of, onnxruntime, openvino, ranges_of, windows
from wetread.engines.registry import make_engine
from wetread.graph import Graph
from wetread.graph.draft import Draft
from wetread.precision import observe, quantisable, quantise
from wetread.precision.windows import CalibrationWindow

PRODUCTS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")


def executed(graph, shape):
    """Precision by graph node of the steps that multiply, with their kernels."""
    engine = make_engine(graph, "openvino", threads=1)
    layers = [layer for layer in engine.layers(shape) if layer.type in PRODUCTS]
    engine.close()
    return {
        node: (layer.precision, layer.kernel) for layer in layers for node in (layer.nodes or (layer.name,))
    }


def assert_all_int8(graph, lowered, shape, released=()):
    found = executed(lowered, shape)
    named = [n.name for n in lowered.nodes if n.op_type in ("Conv", "ConvTranspose")]
    assert len(named) >= len(quantisable(graph))
    outputs = {n.name: n.output[0] for n in lowered.nodes}
    for name in named:
        precision, kernel = found.get(name) or found[outputs[name]]
        assert precision == ("float32" if name in released else "int8"), (
            f"{name} runs in {precision} by {kernel}"
        )


@pytest.mark.parametrize("calibrator", ["minmax", "entropy"])
def test_every_convolution_of_a_unet_runs_in_int8(calibrator):
    """InstanceNorm, LeakyReLU, transposed convolutions and concatenations, as in nnU-Net."""
    graph = Graph(unet(features=(16, 32, 32)))
    lowered, _ = quantise(graph, ranges_of(graph), calibrator=calibrator)
    assert_all_int8(graph, lowered, (16, 16, 16))
    array = windows(1)[0].array
    reference = onnxruntime(lowered, array)
    assert (
        error(openvino(lowered, array), reference) < 0.03
    )  # values at a half round apart, seven layers deep
    exact = onnxruntime(graph, array)
    assert error(openvino(lowered, array), exact) < 1.1 * error(reference, exact) + 1e-3


def test_released_layers_run_in_float32():
    graph = Graph(unet(features=(16, 32)))
    released = quantisable(graph)[1:2]
    lowered, _ = quantise(graph, ranges_of(graph), released=released)
    assert_all_int8(graph, lowered, (16, 16, 16), released)


def test_embedded_network_runs_in_int8_and_agrees():
    from wetread.package import Package

    package = Package.default()
    graph = Graph.load(package.model_path())
    rng = np.random.default_rng(0)
    shape = package.recipe.tiling.window
    array = np.clip(rng.normal(0.2, 0.3, (1, *shape)), 0, 1).astype(np.float32)
    ranges = observe(graph, [CalibrationWindow("noise", array)], threads=1)
    lowered, _ = quantise(graph, ranges)
    assert_all_int8(graph, lowered, shape)
    assert error(openvino(lowered, array), onnxruntime(lowered, array)) < 0.05


@pytest.mark.parametrize("act", ["Relu", "LeakyRelu", "Sigmoid", None])
@pytest.mark.parametrize("layer", ["conv", "stride", "up", "pool", "pad"])
@pytest.mark.parametrize("unsigned", [False, True])
def test_each_pattern_computes_right(act, layer, unsigned):
    """One layer deep, OpenVINO's integers are those of ONNX Runtime."""
    b = Builder()
    x = b.conv("image", (4, 16))
    x = b.add(act, [x]) if act else x
    if layer == "up":
        y = b.up(x, (16, 8))
    elif layer == "pool":
        y = b.conv(b.add("MaxPool", [x], kernel_shape=[3] * 3, strides=[2] * 3, pads=[1] * 6), (16, 8))
    elif layer == "pad":
        pads = b.constant(np.array([0, 0, 1, 1, 1, 0, 0, 0, 0, 0], np.int64), "pads")
        y = b.conv(b.add("Pad", [x, pads]), (16, 8))
    else:
        y = b.conv(x, (16, 8), stride=2 if layer == "stride" else 1)
    graph = graph_of(b, y, 4, 8)
    lowered, _ = quantise(graph, ranges_of(graph, (4, 16, 16, 16)), unsigned=unsigned)
    array = windows(1, (4, 16, 16, 16))[0].array
    assert error(openvino(lowered, array), onnxruntime(lowered, array)) < 0.004
    assert_all_int8(graph, lowered, (16, 16, 16))


@pytest.mark.parametrize("between", [None, "MaxPool", "Relu", "LeakyRelu", "InstanceNormalization"])
def test_concatenations_compute_right(between):
    b = Builder()
    x = b.add("Concat", [b.block("image", (4, 8)), b.add("Tanh", ["image"])], axis=1)
    if between == "MaxPool":
        x = b.add("MaxPool", [x], kernel_shape=[2] * 3, strides=[2] * 3)
    elif between == "InstanceNormalization":
        x = b.norm(x, 12)
    elif between:
        x = b.add(between, [x])
    graph = graph_of(b, b.conv(x, (12, 8)), 4, 8)
    assert (graph.nodes[-1].name in quantisable(graph)) == (between != "Relu")
    lowered, _ = quantise(graph, ranges_of(graph, (4, 16, 16, 16)))
    array = windows(1, (4, 16, 16, 16))[0].array
    assert error(openvino(lowered, array), onnxruntime(lowered, array)) < 0.01


def test_why_concatenations_are_taken_apart():
    """The fault itself: rounding before a concatenation, as one would. Tells when OpenVINO has mended it."""
    b = Builder()
    x = b.add("Concat", [b.conv("image", (4, 8)), b.conv("image", (4, 8))], axis=1)
    graph = graph_of(b, b.conv(x, (16, 8)), 4, 8)
    ranges = ranges_of(graph, (4, 16, 16, 16))
    site = graph.nodes[-1].name
    lowered, _ = quantise(graph, ranges, released=[site])
    draft = Draft(lowered)
    node = next(n for n in draft.nodes if n.name == site)
    join = next(n for n in draft.nodes if n.op_type == "Concat")
    step = draft.add_weight("step", np.array(max(ranges[n].absmax for n in join.input) / 127, np.float32))
    zero = draft.add_weight("zero", np.array(0, np.int8))
    for number, name in enumerate(list(join.input)):
        quantised = draft.add("QuantizeLinear", [name, step, zero], f"q{number}")
        join.input[number] = draft.add("DequantizeLinear", [quantised, step, zero], f"dq{number}")
    weight = draft.weights[node.input[1]]
    scale = (np.abs(weight).max((1, 2, 3, 4)) / 127).astype(np.float32)
    stored = np.round(weight / scale.reshape(-1, 1, 1, 1, 1)).astype(np.int8)
    inputs = [
        draft.add_weight("w", stored), draft.add_weight("s", scale), draft.add_weight("z", np.zeros(8, np.int8))
    ]  # fmt: skip
    node.input[1] = draft.add("DequantizeLinear", inputs, "wdq", axis=0)
    naive = draft.graph()
    array = windows(1, (4, 16, 16, 16))[0].array
    off = error(openvino(naive, array), onnxruntime(naive, array))
    ours = quantise(graph, ranges)[0]
    assert error(openvino(ours, array), onnxruntime(ours, array)) < 0.004
    if off < 0.004:
        pytest.skip("this OpenVINO computes eight-bit concatenations right: they need not be taken apart")
    assert off > 0.05
