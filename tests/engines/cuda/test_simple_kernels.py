"""Kernels of pooling, resizing and pointwise chains against their references, under Triton's interpreter."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.engines.cuda.one_step import OneStep, check_sums, error, random_like  # noqa: E402
from wetread.engines.cuda.program import TensorSpec, channels_last  # noqa: E402

pytestmark = pytest.mark.peer
HALF = 1e-3  # one rounding of the result to float16, 2**-11


def maps(shape, dtype="float16", seed=0, scale=1.0):
    return random_like(TensorSpec(shape, dtype, channels_last(shape)), seed, scale)


def bordered(shape, dtype="float16"):
    """A map inside a storage with a voxel around it."""
    _, c, d, h, w = shape
    strides = ((d + 2) * (h + 2) * (w + 2) * c, 1, (h + 2) * (w + 2) * c, (w + 2) * c, c)
    return TensorSpec(shape, dtype, strides)


def compare(step, tolerance=HALF, sums=False):
    """Each kernel against the reference; 8-bit results may differ by one where a value lies between two numbers."""
    want = step.reference()
    kernels = step.kernels()
    families = {kernel["family"] for kernel in kernels}
    assert families
    # the interpreter takes seconds for what differs in the shape of tiles alone
    for kernel in [next(k for k in kernels if k["family"] == family) for family in sorted(families)]:
        got = step.kernel(kernel)
        if want["y"].is_floating_point() and want["y"].dtype != torch.float8_e4m3fn:
            assert error(got["y"], want["y"]) < tolerance, kernel
        else:
            assert (got["y"].double() - want["y"].double()).abs().max() <= 1, kernel
        if sums:
            check_sums(got["sums"], want["sums"])
    return want, kernels


WINDOWS = {
    "3 / 2": {"kernel": [3] * 3, "stride": [2] * 3, "dilation": [1] * 3, "pads": [1] * 6},
    "uneven": {"kernel": [2, 3, 1], "stride": [1, 2, 3], "dilation": [2, 1, 1], "pads": [1, 0, 0, 0, 2, 0]},
}
SIZES = {"3 / 2": (3, 4, 3), "uneven": (4, 4, 2)}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("mode", ["max", "average", "average counts"])
@pytest.mark.parametrize("channels", [24, 3])
def test_pool(window, mode, channels):
    x = maps((2, channels, 5, 7, 6))
    attributes = {**WINDOWS[window], "mode": mode.split()[0], "count_include_pad": mode.endswith("counts")}
    compare(OneStep("pool", {"x": x}, {}, {"y": ((2, channels, *SIZES[window]), "float16")}, attributes))


def test_pool_of_8_bits():
    x = maps((1, 16, 4, 4, 4), "int8")
    window = {"kernel": [2] * 3, "stride": [2] * 3, "dilation": [1] * 3, "pads": [0] * 6}
    for mode, inverse in (("max", 1.0), ("average", 0.7)):
        attributes = {**window, "mode": mode, "inverse": inverse}
        compare(OneStep("pool", {"x": x}, {}, {"y": ((1, 16, 2, 2, 2), "int8")}, attributes))


def test_pool_keeps_nan():
    """A value that is none must not vanish in a maximum."""
    x = maps((1, 16, 4, 4, 4))
    x[0, 3, 1, 1, 1] = torch.nan
    window = {"kernel": [2] * 3, "stride": [2] * 3, "dilation": [1] * 3, "pads": [0] * 6, "mode": "max"}
    step = OneStep("pool", {"x": x}, {}, {"y": ((1, 16, 2, 2, 2), "float16")}, window)
    assert step.kernel(step.kernels()[0])["y"].isnan().sum() == 1
    step = OneStep("pool", {"x": x}, {}, {"y": ((1, 16, 1, 1, 1), "float16")}, {"mode": "global_max"})
    assert step.kernel(step.kernels()[0])["y"].isnan().sum() == 1


@pytest.mark.parametrize("mode", ["global_average", "global_max"])
@pytest.mark.parametrize("size", [(5, 7, 6), (9, 16, 10)])
def test_global_pool(mode, size):
    x = maps((2, 20, *size)) + 3.0
    compare(OneStep("pool", {"x": x}, {}, {"y": ((2, 20, 1, 1, 1), "float16")}, {"mode": mode}))


RESIZES = {
    "linear": {"mode": "linear", "coordinates": "half_pixel"},
    "nearest": {"mode": "nearest", "coordinates": "asymmetric", "nearest_mode": "floor"},
    "corners": {"mode": "linear", "coordinates": "align_corners"},
    "cubic": {"mode": "cubic"},
}


@pytest.mark.parametrize("name", RESIZES)
@pytest.mark.parametrize("out", [(6, 8, 6), (4, 4, 5)])
@pytest.mark.parametrize("full", [False, True])
def test_resize(name, out, full):
    shape = (2, 24, 3, 4, 3)
    inputs = {"x": maps(shape)}
    outputs = {"y": ((2, 24, *out), "float16")}
    attributes = dict(RESIZES[name])
    if full:
        inputs["residual"] = maps((2, 24, *out), seed=3)
        outputs["sums"] = (2, 24)
        attributes["activation"] = {"name": "leaky", "slope": 0.1}
    step = OneStep("resize", inputs, {}, outputs, attributes, {"y": bordered((2, 24, *out))})
    _, kernels = compare(step, sums=full)
    doubled = out == (6, 8, 6) and name in ("linear", "nearest")
    assert any(k["family"] == "double" for k in kernels) == doubled


def test_resize_to_8_bits():
    x = maps((1, 16, 3, 4, 5))
    attributes = {**RESIZES["linear"], "inverse": 30.0, "activation": {"name": "silu"}}
    compare(OneStep("resize", {"x": x}, {}, {"y": ((1, 16, 6, 8, 10), "int8")}, attributes))


V = {"value": 0.75}
PROGRAMS = {
    "affine": [["mul", 0, 1], ["add", 3, 2]],
    "arithmetic": [["sub", 0, 2], ["abs", 3], ["add", 4, V], ["div", 0, 5], ["min", 6, 1], ["max", 7, V], ["neg", 8]],
    "powers": [["abs", 0], ["add", 3, V], *(["pow", 4, {"value": p}] for p in (2.0, 3.0, 0.5, -0.5, -1.0)),
               ["add", 5, 6], ["add", 10, 7], ["add", 11, 8], ["add", 12, 9]],
    "functions": [["exp", 0], ["add", 3, V], ["log", 4], ["sin", 5], ["cos", 6], ["sqrt", 7], ["reciprocal", 8]],
    "rounding": [["mul", 0, {"value": 7.0}], ["round", 3], ["floor", 1], ["ceil", 2], ["add", 4, 5], ["add", 6, 7]],
    "comparisons": [["less", 0, 2], ["greater_or_equal", 1, 2], ["add", 3, 4], ["equal", 5, {"value": 2.0}],
                    ["where", 6, 0, 2]],
    "activations": [["relu", 0], ["leaky", 2, {"slope": 0.2}], ["elu", 0, {"alpha": 0.5}], ["sigmoid", 5], ["tanh", 6],
                    ["silu", 0], ["mish", 8], ["gelu", 9, {"approximate": "none"}],
                    ["gelu", 0, {"approximate": "tanh"}], ["clip", 11, {"low": -0.1, "high": None}],
                    ["hard_sigmoid", 0, {"alpha": 0.3, "beta": 0.4}], ["hard_swish", 0], ["softplus", 0], ["erf", 0],
                    *(["add", 16 + i, k] for i, k in enumerate((3, 4, 7, 10, 12, 13, 14, 15)))],
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("layout", ["dense", "bordered"])
def test_pointwise(name, layout):
    shape = (2, 24, 3, 4, 5)
    inputs = {
        "0": maps(shape, scale=2.0),
        "1": maps((24, 1, 1, 1), "float32", 1),
        "2": maps((2, 1, 3, 4, 5), seed=2),
    }
    specs = {"y": bordered(shape)} if layout == "bordered" else {}
    specs["1"] = TensorSpec((24, 1, 1, 1), "float32", (1, 1, 1, 1))
    step = OneStep("pointwise", inputs, {}, {"y": (shape, "float16")}, {"program": PROGRAMS[name]}, specs)
    compare(step)


def test_pointwise_types():
    shape = (1, 16, 3, 4, 5)
    program = [["add", 0, 1], ["relu", 2]]
    inputs = {"0": maps(shape, "int8"), "1": maps(shape)}
    attributes = {"program": program, "inverse": 25.0, "scales": [0.05, 1.0]}
    compare(OneStep("pointwise", inputs, {}, {"y": (shape, "int8")}, attributes))
    compare(OneStep("pointwise", inputs, {}, {"y": (shape, "uint8")}, attributes))
    compare(
        OneStep("pointwise", inputs, {}, {"y": (shape, "float32")}, {**attributes, "inverse": 1.0}, None),
        1e-6,
    )
    tokens = {"0": random_like(TensorSpec((2, 7, 12), "float16", (84, 12, 1))), "1": torch.ones(12)}
    compare(OneStep("pointwise", tokens, {}, {"y": ((2, 7, 12), "float16")}, {"program": [["mul", 0, 1], ["gelu", 2]]},
                    {"1": TensorSpec((12,), "float32", (1,))}))  # fmt: skip


def test_what_kernels_do_not_take_is_left_to_the_library():
    shape = (1, 4, 2, 2, 2)
    general = OneStep("pointwise", {"0": maps(shape), "1": maps(shape, seed=1)}, {}, {"y": (shape, "float16")},
                      {"program": [["pow", 0, 1]]})  # fmt: skip
    assert general.kernels() == []
    rows = TensorSpec(shape, "float16", (32, 8, 4, 2, 1))
    step = OneStep(
        "pool",
        {"x": maps(shape)},
        {},
        {"y": ((1, 4, 1, 1, 1), "float16")},
        {"mode": "global_max"},
        {"x": rows},
    )
    assert step.kernels() == []
    assert error(step.library()["y"], step.reference()["y"]) == 0
