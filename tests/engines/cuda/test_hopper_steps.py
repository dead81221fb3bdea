"""Every Hopper kernel that a step is offered, beside the step's reference; offered here, run on a Hopper GPU."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.engines.cuda.one_step import OneStep, check_sums, error, sums_of  # noqa: E402
from tests.kernels.reference import DEVICE, rand  # noqa: E402
from wetread.engines.cuda.operations import Target, operation  # noqa: E402
from wetread.engines.cuda.program import TensorSpec  # noqa: E402

pytestmark = pytest.mark.peer

HOPPER = Target((9, 0), 232_448, 132)
OWN = {"march", "march2", "first", "point"}
NORM = {"eps": 1e-5, "groups": 32, "activation": {"name": "leaky", "slope": 0.01}, "inverse": 1.0}
on_hopper = DEVICE == "cuda" and torch.cuda.get_device_capability()[0] == 9


def cpu(*shape, **more):
    return rand(*shape, **more).cpu()


def steps():
    """Name, family, step."""
    x = cpu(2, 32, 18, 16, 32)
    normed = {"x": x, "sums": sums_of(x)}
    affine = {"gamma": cpu(32, dtype=torch.float32), "beta": cpu(32, dtype=torch.float32)}
    bias = {"bias": cpu(32, dtype=torch.float32)}
    size = tuple(x.shape[2:])
    w3, w1, w2 = cpu(32, 32, 3, 3, 3, scale=0.05), cpu(3, 32, 1, 1, 1), cpu(32, 32, 2, 2, 2, scale=0.1)
    cube, twice = {"pads": [1] * 6}, {"pads": [1] * 6, "stride": [2] * 3}
    out = {"y": ((2, 32, *size), "float16"), "sums": (2, 32)}
    doubled = {"y": ((2, 32, *(2 * s for s in size)), "float16")}
    classes = (2, 3, *size)
    planes = {"y": TensorSpec(classes, "float16", tuple(torch.empty(classes).stride()))}
    groups = {"norm": {**NORM, "groups": 8, "activation": {"name": "relu"}}}
    yield "cube", "march", OneStep("conv", {"x": x}, {"weight": w3, **bias}, out, cube)
    yield (
        "norm on load",
        "march",
        OneStep("conv", normed, {"weight": w3, **affine}, out, {**cube, "norm": NORM}),
    )
    yield "group norm and residual", "march", OneStep(
        "conv", {**normed, "residual": cpu(2, 32, *size, seed=4)}, {"weight": w3, **affine}, out, {**cube, **groups}
    )  # fmt: skip
    wide = cpu(2, 32, 64, 32, 32)
    yield "by two", "march2", OneStep("conv", {"x": wide}, {"weight": cpu(64, 32, 3, 3, 3, scale=0.05)},
                                      {"y": ((2, 64, 32, 16, 16), "float16"), "sums": (2, 64)}, twice)  # fmt: skip
    yield (
        "one channel",
        "first",
        OneStep("conv", {"x": cpu(2, 1, *size)}, {"weight": cpu(32, 1, 3, 3, 3), **bias}, out, cube),
    )
    yield "head", "point", OneStep("conv", normed, {"weight": w1, "bias": cpu(3, dtype=torch.float32), **affine},
                                   {"y": (classes, "float16")}, {"norm": NORM, "softmax": True}, planes)  # fmt: skip
    yield (
        "transposed",
        "point",
        OneStep(
            "upconv", normed, {"weight": w2, **bias, **affine}, doubled, {"stride": [2] * 3, "norm": NORM}
        ),
    )


@pytest.mark.parametrize("name", ["cube", "norm on load", "group norm and residual", "by two", "one channel", "head",
                                  "transposed"])  # fmt: skip
def test_offered_and_right(name):
    family, one = next((f, s) for n, f, s in steps() if n == name)
    mine = [k for k in one.kernels(HOPPER) if k["family"] in OWN]
    assert mine and mine[0]["family"] == family
    for kernel in mine:
        step = one.step.with_kernel(kernel)
        launch = operation(step.op).prepare(step, kernel, one.arrays(kernel))  # weights are packed here
        assert callable(launch)
        if on_hopper:
            got, expected = one.kernel(kernel), one.reference()
            assert error(got["y"], expected["y"]) < 1e-3
            if "sums" in got:
                check_sums(got["sums"], sums_of(expected["y"]))


def test_not_offered_where_it_does_not_apply():
    x = cpu(1, 32, 8, 8, 8)
    w, size = cpu(32, 32, 2, 2, 2), {"y": ((1, 32, 16, 16, 16), "float16")}
    gelu = OneStep(
        "upconv", {"x": x}, {"weight": w}, size, {"stride": [2] * 3, "activation": {"name": "gelu"}}
    )
    sigmoid = OneStep("conv", {"x": x}, {"weight": cpu(3, 32, 1, 1, 1)}, {"y": ((1, 3, 8, 8, 8), "float16")},
                      {"activation": {"name": "sigmoid"}})  # fmt: skip
    old = Target((8, 0), 166_912, 108)
    plain = OneStep("upconv", {"x": x}, {"weight": w}, size, {"stride": [2] * 3})
    assert (
        not {k["family"] for k in (*gelu.kernels(HOPPER), *sigmoid.kernels(HOPPER), *plain.kernels(old))}
        & OWN
    )
    assert plain.kernels(HOPPER)[0]["family"] == "point"
