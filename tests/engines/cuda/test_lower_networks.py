"""Blocks of the networks that the engine is made for: which steps they become, and that these compute the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import wetread
from tests.engines.cuda.lowering import inputs_of, kinds, lowered_step_by_step
from tests.networks import Builder, classifier, unet
from wetread.engines.cuda.lower import lower
from wetread.engines.cuda.program import Program
from wetread.graph import Graph
from wetread.precision import observe, quantise
from wetread.precision.windows import CalibrationWindow

pytestmark = pytest.mark.peer

LARGE = (16, 16, 20)
"""More than `fuse_norms.ON_LOAD` voxels, so that norms are applied on load, as they are in whole windows."""
HALF = 6e-3
"""Activations of 11 bits through some ten layers."""


def close(
    b: Builder, x: str, channels: tuple[int, int], window: tuple[int, int, int], opset: int = 18
) -> Graph:
    shape = (None, channels[1], *window)
    return Graph(b.model({"image": (None, channels[0], *window)}, {"logits": (x, shape)}, opset))


def named(program: Program, role: str) -> list[str]:
    """Operations of the steps that have an input of this role."""
    return [step.op for step in program.steps if role in step.inputs]


def test_a_unet_is_as_wired_by_hand() -> None:
    graph = Graph(unet(features=(32, 64)))
    program = lowered_step_by_step(graph, LARGE, 1, "float16", HALF)
    # the first layer; the skip's norm, which two layers read; the small level in steps of its own
    assert kinds(program) == ["conv", "norm", "conv_norm", "conv_norm", "upconv", "conv", "conv"]
    head = program.steps[-1]
    assert head.attributes["norm"] is not None
    assert program.spec(program.outputs[0]).strides[1] == np.prod(LARGE)
    merge = program.steps[-2]
    assert "x2" in merge.inputs and "sums" in merge.outputs
    first = program.steps[0]
    assert first.attributes["border"] == 1 and program.tensors[program.base("image")].zeroed
    assert "bias" not in first.inputs  # the norm takes it away


def test_norms_go_into_the_convolution_that_reads_them() -> None:
    b = Builder()
    x = b.block(b.block("image", (1, 32)), (32, 32))
    x = b.block(b.up(x, (32, 16)), (16, 32))
    graph = close(b, b.conv(x, (32, 2), kernel=1), (1, 2), LARGE)
    graph = Graph(graph.model)
    program = lower(graph, LARGE, 1, "float16")
    assert kinds(program) == ["conv", "conv", "upconv", "conv", "conv"]
    assert named(program, "sums") == ["conv", "upconv", "conv"]


def test_the_embedded_network() -> None:
    """Every ReLU and residual of the package's network is part of a convolution; all concats are written in place."""
    graph = Graph.load(Path(wetread.__file__).parent / "packages" / "lung-nodule" / "1.0.0" / "model.onnx")
    window = tuple(int(size or 0) for size in graph.inputs[0].shape[2:])
    program = lower(graph, window, 1, "float16")
    assert Counter(kinds(program)) == {"conv": 20, "upconv": 4}
    assert named(program, "residual") == ["conv"] * 4


def test_steps_of_a_whole_window() -> None:
    """nnU-Net's widths at 128³: no norm is a step of its own but those of skips and of 128 channels or more."""
    program = lower(Graph(unet(features=(32, 64, 128, 256, 320, 320))), (128, 128, 128), 1, "float16")
    found = Counter(kinds(program))
    assert (
        found["conv_norm"] == 5
        and found["upconv"] == 5
        and set(found) == {"conv", "conv_norm", "norm", "upconv"}
    )
    loads = [
        step.op
        for step in program.steps
        if step.op != "conv_norm" and step.attributes.get("norm") is not None
    ]
    assert loads.count("upconv") == 2 and loads.count("conv") == 2  # a second layer, the head


def group_norm(b: Builder, x: str, channels: int, groups: int) -> str:
    scale = b.constant((1 + 0.1 * b.rng.standard_normal(channels)).astype(b.dtype), f"{x}.scale")
    bias = b.constant((0.1 * b.rng.standard_normal(channels)).astype(b.dtype), f"{x}.bias")
    return b.add("GroupNormalization", [x, scale, bias], num_groups=groups, epsilon=1e-5)


def resized(b: Builder, x: str, mode: str) -> str:
    scales = b.constant(np.array([1, 1, 2, 2, 2], np.float32), f"{x}.scales")
    return b.add("Resize", [x, "", scales], mode=mode, coordinate_transformation_mode="half_pixel")


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_segresnet(mode: str) -> None:
    b = Builder()

    def block(x: str, c: int) -> str:
        y = b.conv(b.add("Relu", [group_norm(b, x, c, 8)]), (c, c))
        return b.add("Add", [b.conv(b.add("Relu", [group_norm(b, y, c, 8)]), (c, c)), x])

    skip = block(b.conv("image", (1, 16)), 16)
    x = block(b.conv(skip, (16, 32), stride=2), 32)
    x = block(b.add("Add", [resized(b, b.conv(x, (32, 16), kernel=1), mode), skip]), 16)
    x = b.conv(b.add("Relu", [group_norm(b, x, 16, 8)]), (16, 2), kernel=1)
    program = lowered_step_by_step(close(b, x, (1, 2), LARGE, 21), LARGE, 1, "float16", HALF)
    found = Counter(kinds(program))
    assert found == {"conv": 10, "resize": 1, "norm": found["norm"]}
    assert named(program, "residual").count("conv") == 3
    assert "residual" in program.steps[kinds(program).index("resize")].inputs


def test_the_residual_block_of_swinunetr() -> None:
    b = Builder()

    def block(x: str, channels: tuple[int, int]) -> str:
        y = b.add("LeakyRelu", [b.norm(b.conv(x, channels), channels[1])], alpha=0.01)
        y = b.norm(b.conv(y, (channels[1], channels[1])), channels[1])
        beside = x if channels[0] == channels[1] else b.norm(b.conv(x, channels, kernel=1), channels[1])
        return b.add("LeakyRelu", [b.add("Add", [y, beside])], alpha=0.01)

    skip = block("image", (1, 48))
    x = b.up(block(b.conv(skip, (48, 96), stride=2), (96, 96)), (96, 48))
    x = block(b.add("Concat", [x, skip], axis=1), (96, 48))
    graph = close(b, b.conv(x, (48, 2), kernel=1), (1, 2), LARGE)
    program = lowered_step_by_step(graph, LARGE, 1, "float16", HALF)
    assert set(kinds(program)) == {"conv", "conv_norm", "norm", "upconv"}
    both = [step for step in program.steps if "residual_sums" in step.inputs]
    assert [step.op for step in both] == ["norm", "norm"]
    assert named(program, "x2") == ["conv", "conv"]
    assert kinds(program).count("norm") == 3


def test_a_bottleneck() -> None:
    """ResNet-50: convolutions with ReLU, residuals, pools; the projection is a second input of the last layer."""
    b = Builder()

    def block(x: str, c: int, wide: int, stride: int = 1) -> str:
        y = b.add("Relu", [b.conv(x, (c, 16), kernel=1)])
        y = b.conv(b.add("Relu", [b.conv(y, (16, 16), stride=stride)]), (16, wide), kernel=1)
        beside = b.conv(x, (c, wide), kernel=1, stride=stride) if c != wide else x
        return b.add("Relu", [b.add("Add", [y, beside])])

    x = b.add("Relu", [b.conv("image", (1, 16), kernel=7, stride=2)])
    x = b.add("MaxPool", [x], kernel_shape=[3] * 3, strides=[2] * 3, pads=[1] * 6)
    x = block(block(block(x, 16, 32), 32, 32), 32, 64, stride=2)
    x = b.add("GlobalAveragePool", [x])
    graph = Graph(b.model({"image": (None, 1, 16, 16, 16)}, {"logits": (x, (None, 64, 1, 1, 1))}))
    program = lowered_step_by_step(graph, (16, 16, 16), 2, "float16", HALF)
    assert Counter(kinds(program)) == {"conv": 11, "pool": 2}


def test_meshnet_is_filled_up_to_32_channels() -> None:
    b = Builder()
    x, c = "image", 1
    for dilation in (1, 2, 4):
        w = b.constant((0.1 * b.rng.standard_normal((26, c, 3, 3, 3))).astype(np.float32), f"w{dilation}")
        y = b.add("Conv", [x, w], kernel_shape=[3] * 3, pads=[dilation] * 6, dilations=[dilation] * 3)
        x, c = b.add("Relu", [y]), 26
    graph = close(b, b.conv(x, (26, 2), kernel=1), (1, 2), (12, 12, 12))
    program = lowered_step_by_step(graph, (12, 12, 12), 1, "float16", HALF)
    assert kinds(program) == ["conv"] * 4
    assert [program.spec(step.outputs["y"]).shape[1] for step in program.steps] == [32, 32, 32, 2]
    assert kinds(lower(graph, (12, 12, 12), 1, "float32")) == ["conv"] * 4


@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_a_quantised_unet(kind: str) -> None:
    graph = Graph(unet(features=(32, 64)))
    window = LARGE
    image = inputs_of(graph, window, 1)["image"][0].astype(np.float32)
    ranges = observe(graph, [CalibrationWindow("case", image)])
    quantised, _ = quantise(graph, ranges, kind=kind, calibrator="minmax")
    # one extra rounding of a concat's weights to their common scale; first layer and head stay unrounded
    program = lowered_step_by_step(quantised, window, 1, kind, 8e-2)
    assert kinds(program) == ["conv", "norm", "conv_norm", "conv_norm", "upconv", "conv", "conv"]
    eight = "int8" if kind == "int8" else "float8_e4m3fn"
    types = [program.spec(step.inputs["weight"]).dtype for step in program.steps if "weight" in step.inputs]
    assert types == ["float16", eight, eight, eight, eight, "float16"]


def test_quantised_products_of_matrices_stay_in_half_precision() -> None:
    graph, window = Graph(classifier()), (8, 8, 8)
    image = inputs_of(graph, window, 1)["image"][0].astype(np.float32)
    quantised, _ = quantise(graph, observe(graph, [CalibrationWindow("case", image)]), calibrator="minmax")
    program = lowered_step_by_step(quantised, window, 1, "int8", 5e-2)
    product = next(step for step in program.steps if step.op == "matmul")
    assert {program.spec(name).dtype for name in product.inputs.values()} <= {"float16", "float32"}


def test_statistics_that_no_convolution_takes() -> None:
    b = Builder()
    graph = close(b, b.norm(b.add("Add", [b.norm("image", 3), "image"]), 3), (3, 3), (4, 6, 8))
    program = lowered_step_by_step(graph, (4, 6, 8), 2, "float32", 1e-5)
    assert kinds(program).count("stats") == 2


def test_what_others_read_stays() -> None:
    """A value that is an output as well, or that two layers read, is written; so nothing is fused across it."""
    b = Builder()
    y = b.conv("image", (1, 16))
    z = b.add("Relu", [y])
    w = b.conv(z, (16, 16))
    x = b.add("Add", [w, z])
    model = b.model(
        {"image": (None, 1, 4, 4, 4)},
        {"a": (y, (None, 16, 4, 4, 4)), "b": (w, (None, 16, 4, 4, 4)), "c": (x, (None, 16, 4, 4, 4))},
    )
    program = lowered_step_by_step(Graph(model), (4, 4, 4), 1, "float32", 1e-5)
    assert set(program.outputs) == {"a", "b", "c"}
