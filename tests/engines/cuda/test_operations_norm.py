"""Norms, their sums, convolutions with their norm, transposed convolutions: library and own kernels by `reference`."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.engines.cuda.one_step import OneStep, error, sums_of  # noqa: E402
from tests.engines.cuda.test_operations import HALF, LEAKY, SIZE, check, rand  # noqa: E402
from wetread.engines.cuda.operations.statistics import add_sums_narrow, moments  # noqa: E402
from wetread.engines.cuda.program import TensorSpec, channels_last  # noqa: E402

pytestmark = pytest.mark.peer
F = torch.nn.functional


def norm(x, groups, out="float16", attributes=None, **more):
    c = x.shape[1]
    at = {"eps": 1e-5, "groups": groups, "activation": LEAKY, "inverse": 1.0, **(attributes or {})}
    weights = {"gamma": rand(c, dtype=torch.float32) + 1, "beta": rand(c, dtype=torch.float32, seed=1)}
    weights |= {r: v for r, v in more.items() if r in ("residual_gamma", "residual_beta")}
    inputs = {"x": x, "sums": sums_of(x), **{r: v for r, v in more.items() if r not in weights}}
    return OneStep("norm", inputs, weights, {"y": (x.shape, out)}, at)


@pytest.mark.parametrize("groups", [1, 4, 6, 24])
def test_reference_of_a_norm(groups):
    """Against torch's group norm in float64; 24 groups of 24 channels are an instance norm."""
    x = rand(2, 24, *SIZE, dtype=torch.float64) * 3 + 5
    one = norm(x, groups, "float64")
    w = one.program.weights
    real = F.leaky_relu(F.group_norm(x, groups, w["gamma"].double(), w["beta"].double(), 1e-5), 0.01)
    assert error(one.reference()["y"], real) < 1e-9


@pytest.mark.parametrize("groups", [40, 10, 5, 8])
@pytest.mark.parametrize("out", ["float16", "int8", "uint8"])
def test_norm(groups, out):
    """Groups of 1, 4, 8 and 5 channels: the last is no power of two."""
    inverse = {"inverse": 30.0} if out != "float16" else {}
    assert check(norm(rand(2, 40, *SIZE) + 1, groups, out, inverse), most=2) == {"norm_apply"}


@pytest.mark.parametrize("normed", [False, True])
def test_norm_with_a_residual(normed):
    x, r = rand(2, 40, *SIZE), rand(2, 40, *SIZE, seed=7) * 2
    more = {"residual": r}
    if normed:
        more |= {"residual_sums": sums_of(r), "residual_gamma": rand(40, dtype=torch.float32, seed=3),
                 "residual_beta": rand(40, dtype=torch.float32, seed=4)}  # fmt: skip
    one = norm(x, 40, attributes={"activation": {"name": "gelu"}}, **more)
    check(one, most=2)
    w, second = one.program.weights, r.double()
    if normed:
        second = F.group_norm(second, 40, w["residual_gamma"].double(), w["residual_beta"].double())
    real = F.gelu(F.group_norm(x.double(), 40, w["gamma"].double(), w["beta"].double()) + second)
    assert error(one.reference()["y"], real) < HALF


def test_norm_without_affine_into_a_slice():
    """The output is a slice of the channels of a larger tensor: a concat that is never made."""
    x = rand(1, 16, *SIZE)
    one = OneStep("norm", {"x": x, "sums": sums_of(x)}, {}, {"y": (x.shape, "float16")},
                  {"eps": 1e-5, "groups": 16, "activation": None})  # fmt: skip
    wide = (1, 48, *SIZE)
    one.program.tensors["wide"] = TensorSpec(wide, "float16", channels_last(wide))
    one.program.tensors["y out"] = TensorSpec(tuple(x.shape), "float16", channels_last(wide), "wide", 16)
    check(one)


@pytest.mark.parametrize("shape", [(2, 40, *SIZE), (1, 16, 70)])
def test_stats(shape):
    assert check(OneStep("stats", {"x": rand(*shape)}, {}, {"sums": shape[:2]})) == {"norm_sums"}


def test_sums_do_not_cancel():
    """Mean 100, SD 0.1."""
    x = rand(1, 16, 8, 9, 10, dtype=torch.float32, scale=0.1) + 100
    one = OneStep("stats", {"x": x}, {}, {"sums": (1, 16)})
    real = x.double().var((2, 3, 4), unbiased=False)
    narrow = torch.zeros(8, 1, 16, 2, dtype=torch.float64)
    add_sums_narrow(narrow, x)
    for sums in (narrow, *(one.kernel(k)["sums"].cpu() for k in one.kernels())):
        assert torch.allclose(moments(sums, 720, 16)[1], real, rtol=1e-2)


def conv_norm(x, weight, out="float16", groups=0, weights=None, **attributes):
    co = weight.shape[0]
    at = {"stride": [1] * 3, "dilation": [1] * 3, "pads": [1] * 6, "groups": 1,
          "norm": {"eps": 1e-5, "groups": groups or co, "activation": LEAKY}, **attributes}  # fmt: skip
    size = [(n + 2 - 3) // at["stride"][0] + 1 for n in x.shape[2:]]
    given = {"weight": weight, "gamma": rand(co, dtype=torch.float32), **(weights or {})}
    return OneStep("conv_norm", {"x": x}, given, {"y": ((x.shape[0], co, *size), out)}, at)


def test_conv_norm():
    one = conv_norm(rand(2, 32, *SIZE), rand(48, 32, 3, 3, 3, scale=0.05))
    assert {k["splits"] > 1 for k in one.kernels()} == {False, True}
    check(one, most=4)
    # also into the type of the next layer
    check(conv_norm(rand(1, 32, *SIZE), rand(32, 32, 3, 3, 3), "int8", stride=[2] * 3, inverse=30.0), most=1)


@pytest.mark.parametrize("groups", [48, 12])
def test_conv_norm_of_unsigned_values(groups):
    """What an input of value − 128 adds to a channel goes away in an instance norm, and into a group norm's bias."""
    weights = {"scale": torch.full((48,), 1e-2), "bias": rand(48, dtype=torch.float32)}
    one = conv_norm(
        rand(1, 32, *SIZE, dtype=torch.uint8),
        rand(48, 32, 3, 3, 3, dtype=torch.int8),
        groups=groups,
        weights=weights,
    )
    check(one, most=2)


def test_conv_norm_far_from_zero():
    """A constant of 100 on values of SD 0.1."""
    w = torch.zeros(16, 16, 3, 3, 3, dtype=torch.float16)
    w[range(16), range(16), 1, 1, 1] = 1.0
    one = conv_norm(rand(1, 16, *SIZE, scale=0.1), w, weights={"bias": torch.full((16,), 100.0)})
    wanted = one.reference()["y"]
    for kernel in one.kernels()[:3]:
        assert error(one.kernel(kernel)["y"], wanted) < HALF


def upconv(x, weight, out="float16", more=None, **attributes):
    more = more or {}
    kernel = weight.shape[2:]
    at = {"stride": list(kernel), "dilation": [1] * 3, "pads": [0] * 6, "output_padding": [0] * 3, "groups": 1,
          "activation": None, "norm": None, **attributes}  # fmt: skip
    pads, extra, rank = at["pads"], at["output_padding"], len(kernel)
    size = [(n - 1) * at["stride"][i] - pads[i] - pads[i + rank] + at["dilation"][i] * (kernel[i] - 1) + 1 + extra[i]
            for i, n in enumerate(x.shape[2:])]  # fmt: skip
    sums = {r: v for r, v in more.items() if r == "sums"}
    weights = {"weight": weight, **{r: v for r, v in more.items() if r != "sums"}}
    shape = (x.shape[0], weight.shape[1] * at["groups"], *size)
    return OneStep("upconv", {"x": x, **sums}, weights, {"y": (shape, out)}, at)


@pytest.mark.parametrize("kernel", [(2, 2, 2), (1, 2, 2)])
@pytest.mark.parametrize("normed", [False, True])
def test_upconv(kernel, normed):
    x = rand(2, 32, *SIZE) + 1
    more = {"bias": rand(24, dtype=torch.float32)}
    on_load = {"eps": 1e-5, "groups": 8, "activation": LEAKY, "inverse": 1.0} if normed else None
    if normed:
        more |= {"sums": sums_of(x), "gamma": rand(32, dtype=torch.float32)}
    one = upconv(x, rand(32, 24, *kernel, scale=0.1), more=more, norm=on_load, activation={"name": "relu"})
    assert check(one, most=4) == {"upconv"}


def test_upconv_into_a_slice():
    one = upconv(rand(1, 32, *SIZE), rand(32, 16, 2, 2, 2, scale=0.1))
    shape = one.program.tensors["y out"].shape
    wide = (1, 48, *shape[2:])
    one.program.tensors["wide"] = TensorSpec(wide, "float16", channels_last(wide))
    one.program.tensors["y out"] = TensorSpec(shape, "float16", channels_last(wide), "wide", 32)
    check(one, most=2)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_upconv_of_eight_bits(dtype):
    more = {"scale": torch.full((16,), 1e-4)}
    x, w = rand(1, 144, 2, 3, 4, dtype=dtype), rand(144, 16, 2, 2, 2, dtype=torch.int8)
    check(upconv(x, w, more=more), 3e-4, most=1)
    check(upconv(x[:, :32], w[:32], "int8", more, inverse=9.0), most=1)


@pytest.mark.parametrize(
    "more",
    [
        {"stride": [2] * 3, "pads": [1] * 6, "output_padding": [1] * 3},
        {"stride": [1] * 3, "pads": [0, 1, 0, 1, 1, 0]},
        {"stride": [3, 1, 2], "dilation": [1, 2, 1]},
    ],
)
def test_other_transposed_convolutions(more):
    """Run by the library; a transposed convolution is the gradient of the convolution by its input, here in float64."""
    x, w = rand(1, 16, *SIZE), rand(16, 8, 3, 3, 3, scale=0.1)
    one = upconv(x, w, **more)
    assert check(one) == set()
    shape, pads = one.program.tensors["y out"].shape, one.step.attributes["pads"]
    wide = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    padded = F.pad(wide, [pads[2], pads[5], pads[1], pads[4], pads[0], pads[3]])
    y = F.conv3d(
        padded, w.double(), stride=tuple(more["stride"]), dilation=tuple(one.step.attributes["dilation"])
    )
    y.backward(x.double())
    assert error(one.reference()["y"], wide.grad) < HALF


def test_grouped_transposed_convolution():
    one = upconv(
        rand(1, 16, *SIZE), rand(16, 4, 2, 2, 2, scale=0.2), groups=4, more={"scale": torch.rand(16)}
    )
    assert check(one) == set()


def test_images():
    """Two axes: norm on load, transposed convolution, norm with its residual."""
    x = rand(1, 32, 6, 7)
    norm_on_load = {"eps": 1e-5, "groups": 32, "activation": LEAKY, "inverse": 1.0}
    one = upconv(x, rand(32, 16, 2, 2, scale=0.1), more={"sums": sums_of(x)}, norm=norm_on_load,
                 dilation=[1] * 2, pads=[0] * 4, output_padding=[0] * 2)  # fmt: skip
    assert check(one, most=1) == {"upconv"}
    assert check(norm(x, 8, residual=rand(1, 32, 6, 7, seed=2)), most=1) == {"norm_apply"}
