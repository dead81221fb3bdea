"""Convolutions: the library and every own kernel against `reference`, under the interpreter at small sizes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.engines.cuda.one_step import INTERPRETER, OneStep, check_sums, error, sums_of  # noqa: E402
from tests.kernels.reference import DEVICE  # noqa: E402
from wetread.engines.cuda.operations import Target, operation  # noqa: E402
from wetread.engines.cuda.operations.site import kernel_activation  # noqa: E402
from wetread.engines.cuda.program import TensorSpec, channels_last, row_major  # noqa: E402

pytestmark = pytest.mark.peer

HALF = 2e-3
"""Relative L2: products of float16 operands, one rounding of the result, one more in the library's epilogues."""
SIZE = (3, 5, 6)
LEAKY = {"name": "leaky", "slope": 0.01}


def rand(*shape, dtype=torch.float16, scale=1.0, seed=0):
    g = torch.Generator().manual_seed(seed + sum(shape))
    x = torch.randn(*shape, generator=g) * scale
    if dtype == torch.int8:
        return (x * 40).round().clamp(-127, 127).to(dtype)
    if dtype == torch.uint8:
        return (x.abs() * 60).round().clamp(0, 255).to(dtype)
    return x.to(dtype)


def conv(x, weight, out="float16", *, sums=True, more=None, **attributes):
    """A conv step of x (and of what `more` has by role); sizes follow from the geometry."""
    more = more or {}
    kernel = weight.shape[2:]
    at = {"stride": [1] * 3, "dilation": [1] * 3, "pads": [k // 2 for k in kernel] * 2, "groups": 1,
          "activation": None, **attributes}  # fmt: skip
    pads = at["pads"]
    rank = len(kernel)
    size = [(n + pads[i] + pads[i + rank] - at["dilation"][i] * (kernel[i] - 1) - 1) // at["stride"][i] + 1
            for i, n in enumerate(x.shape[2:])]  # fmt: skip
    shape = (x.shape[0], weight.shape[0], *size)
    maps = {r: v for r, v in more.items() if r in ("x2", "residual", "sums")}
    rest = {r: v for r, v in more.items() if r not in maps}
    outputs = {"y": (shape, out), **({"sums": shape[:2]} if sums else {})}
    return OneStep("conv", {"x": x, **maps}, {"weight": weight, **rest}, outputs, at)


def check(one, limit=HALF, most=None, library=True):
    """The library and the first kernels give what the reference gives; returns the families."""
    wanted = one.reference()
    kernels = one.kernels()
    runs = [one.kernel(k) for k in kernels[:most]] + ([one.library()] if library else [])
    for got in runs:
        for role, value in got.items():
            if role == "sums":
                check_sums(value, wanted[role])
            elif not value.is_floating_point():
                assert (value.int() - wanted[role].int()).abs().max() <= 1
                assert error(value, wanted[role]) < 1e-2
            else:
                assert error(value, wanted[role]) < limit
    return {k["family"] for k in kernels}


def test_everything_around_a_convolution():
    """Bias, residual, activation and sums, through split K and whole products."""
    x = rand(2, 32, *SIZE)
    more = {"bias": rand(40, dtype=torch.float32), "residual": rand(2, 40, *SIZE)}
    one = conv(x, rand(40, 32, 3, 3, 3, scale=0.05), more=more, activation=LEAKY)
    assert {k["splits"] > 1 for k in one.kernels()} == {False, True} or len(one.kernels()) > 3
    assert check(one, most=4) == {"taps"}


@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "family"),
    [
        ((1, 3, 3), (1, 1, 1), (0, 1, 1, 0, 1, 1), "taps"),
        ((1, 3, 3), (1, 2, 2), (0, 1, 1, 0, 1, 1), "gather"),
        ((3, 3, 3), (2, 2, 2), (1, 1, 1, 1, 1, 1), "gather"),
        ((2, 2, 2), (2, 2, 2), (0, 0, 0, 0, 0, 0), "gather"),
        ((3, 2, 4), (1, 1, 1), (1, 0, 1, 1, 1, 2), "taps"),
        ((5, 1, 3), (1, 1, 2), (2, 0, 0, 2, 0, 1), "gather"),
    ],
)
def test_anisotropic(kernel, stride, pads, family):
    one = conv(
        rand(1, 16, *SIZE),
        rand(24, 16, *kernel, scale=0.1),
        stride=list(stride),
        pads=list(pads),
        activation=LEAKY,
    )
    assert check(one, most=2) == {family}


@pytest.mark.parametrize("dtype", [torch.float16, torch.uint8])
@pytest.mark.parametrize(
    ("kernel", "stride", "pads"),
    [
        ((3, 3, 3), 2, [1] * 6),
        ((1, 3, 3), 1, [0, 1, 1, 0, 1, 1]),
        ((2, 2, 2), 2, [0] * 6),
        ((3, 4, 2), 1, [2, 2, 0, 1, 1, 1]),
    ],
)
def test_strided(kernel, stride, pads, dtype):
    """Two windows: planes beyond one's own are zero, not the neighbour's."""
    eight = dtype == torch.uint8
    w = rand(48, 32, *kernel, dtype=torch.int8 if eight else dtype, scale=0.1)
    more = {"scale": torch.full((48,), 1e-4)} if eight else {"residual": None}
    one = conv(rand(2, 32, 4, 16, 18, dtype=dtype), w, more={k: v for k, v in more.items() if v is not None},
               stride=[stride, 2, 2], pads=pads, activation=LEAKY)  # fmt: skip
    kernels = one.kernels()
    assert {k["family"] for k in kernels} == {"strided", "gather"}
    wanted = one.reference()
    for each in (kernels[0], kernels[-5]):
        got = one.kernel(each)
        assert error(got["y"], wanted["y"]) < HALF
        check_sums(got["sums"], wanted["sums"])


@pytest.mark.parametrize("dilation", [2, 4])
def test_dilated(dilation):
    """MeshNet's layers."""
    one = conv(rand(1, 32, 5, 6, 9), rand(32, 32, 3, 3, 3, scale=0.05), dilation=[dilation] * 3,
               pads=[dilation] * 6, activation={"name": "relu"})  # fmt: skip
    assert check(one, most=2) == {"taps"}


@pytest.mark.parametrize("dilation", [[2, 2, 2], [4, 1, 3], [16, 16, 16]])
def test_dilated_planes(dilation):
    """A program's planes lie as far apart as its taps; 9 planes are no multiple of 2 · 4, and fewer than 16."""
    one = conv(rand(1, 16, 9, 8, 32), rand(16, 16, 3, 3, 3, scale=0.1), dilation=dilation, pads=dilation * 2)
    kernels = operation("conv").kernels(one.step, one.program, Target(interpreted=True, processors=1))
    wanted = one.reference()
    found = [k for k in kernels if k["family"] == "planes"]
    assert found
    for kernel in found[:2]:
        got = one.kernel(kernel)
        assert error(got["y"], wanted["y"]) < HALF
        check_sums(got["sums"], wanted["sums"])


def test_channels_that_descriptors_refuse():
    assert check(conv(rand(1, 26, *SIZE), rand(26, 26, 3, 3, 3, scale=0.05)), most=2) == {"gather"}


def test_point():
    """1×1×1: a matrix product over one row of voxels, with a residual."""
    one = conv(rand(2, 64, *SIZE), rand(96, 64, 1, 1, 1, scale=0.1), more={"residual": rand(2, 96, *SIZE)},
               activation={"name": "relu"})  # fmt: skip
    assert check(one, most=3) == {"taps"}
    assert one.kernels()[0]["shape"][:2] == [1, 1]


def test_strided_point():
    one = conv(rand(1, 32, *SIZE), rand(48, 32, 1, 1, 1, scale=0.1), stride=[2] * 3)
    assert check(one, most=1) == {"gather"}


def test_two_inputs():
    one = conv(
        rand(1, 48, *SIZE),
        rand(32, 64, 3, 3, 3, scale=0.05),
        more={"x2": rand(1, 16, *SIZE)},
        activation=LEAKY,
    )
    check(one, most=2)


@pytest.mark.parametrize("groups", [32, 8])
def test_norm_apart(groups):
    """Padding is zero after the norm, not before."""
    x = rand(2, 32, *SIZE) + 1
    norm = {"eps": 1e-5, "groups": groups, "activation": LEAKY, "inverse": 1.0}
    more = {"sums": sums_of(x), "gamma": rand(32, dtype=torch.float32), "beta": rand(32, dtype=torch.float32)}
    one = conv(x, rand(32, 32, 3, 3, 3, scale=0.05), more=more, norm=norm)
    assert all("apart" in k for k in one.kernels())
    check(one, most=2)


def test_norm_apart_into_eight_bits_and_pairs():
    """A volume large enough for planes and pairs; values between two integers may round either way."""
    x = rand(1, 16, 4, 16, 32)
    norm = {"eps": 1e-5, "groups": 16, "activation": {"name": "relu"}, "inverse": 30.0}
    scale = torch.full((16,), 1e-4)
    one = conv(
        x, rand(16, 16, 3, 3, 3, dtype=torch.int8), more={"sums": sums_of(x), "scale": scale}, norm=norm
    )
    one.kernels = lambda: operation("conv").kernels(
        one.step, one.program, Target(interpreted=True, processors=1)
    )
    families = {k["family"]: k for k in one.kernels()}
    assert set(families) == {"taps", "planes", "pairs"}
    wanted = one.reference()["y"]
    for kernel in families.values():
        assert error(one.kernel(kernel)["y"], wanted) < 5e-3


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize("out", ["float16", "int8", "uint8"])
def test_eight_bits(dtype, out):
    """Integer operands are exact: what is left is the rounding of the result."""
    more = {"scale": torch.rand(48, generator=torch.Generator().manual_seed(2)) * 1e-4 + 1e-5,
            "bias": rand(48, dtype=torch.float32)}  # fmt: skip
    activation = {"name": "relu"} if out == "uint8" else None
    one = conv(rand(1, 32, *SIZE, dtype=dtype), rand(48, 32, 3, 3, 3, dtype=torch.int8), out, more=more, sums=False,
               activation=activation, inverse=20.0 if out != "float16" else 1.0)  # fmt: skip
    assert check(one, 3e-4, most=2) == {"taps"}


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_eight_bits_of_odd_channels(dtype):
    more = {"scale": torch.full((24,), 1e-4)}
    one = conv(rand(1, 24, *SIZE, dtype=dtype), rand(24, 24, 2, 2, 2, dtype=torch.int8), more=more, stride=[2] * 3,
               pads=[0] * 6)  # fmt: skip
    assert check(one, 3e-4, most=1) == {"gather"}


def test_float8():
    """The interpreter rounds to E4M3 less well than a device does."""
    x, w = (rand(*s, scale=0.5).to(torch.float8_e4m3fn) for s in ((1, 32, *SIZE), (32, 32, 3, 3, 3)))
    more = {"scale": torch.full((32,), 0.1)}
    check(conv(x, w, more=more, sums=False), most=1)
    limit = 0.04 if DEVICE == "cuda" else 0.08
    check(conv(x, w, "float8_e4m3fn", more=more, sums=False, inverse=3.0), limit, most=1)


@pytest.mark.parametrize(("c", "kernel", "stride"), [(1, 3, 1), (4, 3, 2), (2, 7, 2)])
def test_few_channels(c, kernel, stride):
    x = rand(1, c, 8, 7, 6)
    one = conv(x, rand(32, c, kernel, kernel, kernel, scale=0.1), stride=[stride] * 3, activation=LEAKY)
    assert check(one, most=2) == {"few"}


def test_first_layer_in_a_border():
    x = rand(1, 1, *SIZE)
    one = conv(x, rand(32, 1, 3, 3, 3, scale=0.2), border=1)
    around = (1, 1, *(s + 2 for s in SIZE))
    strides = channels_last(around)
    one.program.tensors["around"] = TensorSpec(around, "float16", strides, zeroed=True)
    one.program.tensors["x"] = TensorSpec(tuple(x.shape), "float16", strides, "around", sum(strides[2:]))
    assert any(k["across"] for k in one.kernels()) and all(k["border"] for k in one.kernels())
    check(one)


def test_few_eight_bit_channels_and_float32():
    x, w = rand(1, 8, *SIZE, dtype=torch.uint8), rand(24, 8, 2, 2, 2, dtype=torch.int8)
    check(conv(x, w, more={"scale": torch.full((24,), 1e-4)}, pads=[0] * 6), most=1)
    # a float32 input goes straight into a float16 product
    assert check(conv(rand(1, 1, *SIZE, dtype=torch.float32), rand(16, 1, 3, 3, 3)), most=1) == {"few"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_depthwise(dtype):
    w = rand(64, 1, 3, 3, 3, dtype=dtype)
    more = {"scale": torch.full((64,), 1e-2)} if dtype == torch.int8 else {}
    one = conv(
        rand(1, 32, *SIZE, dtype=dtype),
        w,
        groups=32,
        stride=[1, 2, 1],
        more=more,
        activation={"name": "gelu"},
    )
    assert check(one, most=2) == {"depthwise"}


def test_groups_run_by_the_library():
    assert (
        check(conv(rand(1, 32, *SIZE), rand(32, 8, 3, 3, 3, scale=0.1), groups=4, activation=LEAKY)) == set()
    )


@pytest.mark.parametrize("layout", [row_major, channels_last])
@pytest.mark.parametrize("out", ["float16", "float32"])
def test_head(layout, out):
    """Norm on load, three classes, softmax, in either layout; 48 channels are no power of two."""
    x = rand(2, 48, *SIZE)
    norm = {"eps": 1e-5, "groups": 8, "activation": LEAKY, "inverse": 1.0}
    more = {"sums": sums_of(x), "gamma": rand(48, dtype=torch.float32), "bias": rand(3, dtype=torch.float32)}
    one = conv(x, rand(3, 48, 1, 1, 1, scale=0.2), out, sums=False, more=more, norm=norm, softmax=True)
    shape = (2, 3, *SIZE)
    one.program.tensors["y out"] = TensorSpec(shape, out, layout(shape))
    assert check(one) == {"head"}


def test_head_into_planes():
    """Families that store whole voxels are not offered where the classes lie apart."""
    one = conv(rand(1, 32, *SIZE), rand(2, 32, 1, 1, 1, scale=0.2), sums=False)
    shape = (1, 2, *SIZE)
    one.program.tensors["y out"] = TensorSpec(shape, "float16", row_major(shape))
    assert check(one) == {"head"}


def test_head_with_an_activation_and_eight_bits():
    more = {"scale": torch.full((2,), 1e-3), "bias": rand(2, dtype=torch.float32)}
    one = conv(rand(1, 32, *SIZE, dtype=torch.uint8), rand(2, 32, 1, 1, 1, dtype=torch.int8), sums=False, more=more,
               activation={"name": "sigmoid"})  # fmt: skip
    assert "head" in check(one, most=1)


@pytest.mark.parametrize(
    "activation",
    [{"name": "elu", "alpha": 0.7}, {"name": "sigmoid"}, {"name": "tanh"}, {"name": "silu"}, {"name": "mish"},
     {"name": "gelu"}, {"name": "gelu", "approximate": "tanh"}, {"name": "hard_swish"}, LEAKY, {"name": "relu"}],
    ids=str,
)  # fmt: skip
def test_activations(activation):
    one = conv(rand(1, 16, 2, 4, 4) * 3, rand(48, 16, 1, 1, 1, scale=0.5), activation=activation, sums=False)
    assert kernel_activation(activation) is not None
    assert check(one, most=1) == {"taps"}


@pytest.mark.parametrize(
    "activation",
    [{"name": "clip", "low": 0.0, "high": 1.0}, {"name": "hard_sigmoid", "alpha": 0.2, "beta": 0.5}],
)
def test_activations_of_the_library(activation):
    one = conv(rand(1, 16, 2, 4, 4) * 3, rand(16, 16, 1, 1, 1, scale=0.5), activation=activation)
    assert check(one) == set()


def test_sums_do_not_cancel():
    """Mean 100, SD 0.1: the variance is right to 1 % although the squares agree to six digits."""
    x = rand(1, 16, 6, 8, 8, scale=0.1)
    w = torch.zeros(16, 16, 1, 1, 1, dtype=torch.float16)
    w[range(16), range(16)] = 1.0
    one = conv(x, w, more={"bias": torch.full((16,), 100.0)})
    real = x.double().var((0, 2, 3, 4), unbiased=False)
    found = [one.reference(), *(one.kernel(k) for k in one.kernels()[:3])]
    for each in found:
        mean, square = (each["sums"].sum(0)[0] / x[0, 0].numel()).unbind(-1)
        assert torch.allclose((square - mean * mean).cpu(), real, rtol=1e-2)


def test_where_nothing_of_ours_runs():
    """On a T4 and on the CPU the library is all there is; float32 is the library's everywhere."""
    one = conv(rand(1, 16, *SIZE), rand(16, 16, 3, 3, 3))
    for target in (Target((7, 5), 65536, 40), Target()):
        assert operation("conv").kernels(one.step, one.program, target) == []
    wide = conv(
        rand(1, 16, *SIZE, dtype=torch.float32), rand(16, 16, 3, 3, 3, dtype=torch.float32), "float32"
    )
    assert wide.kernels(INTERPRETER) == []
    assert error(wide.library()["y"], wide.reference()["y"]) < 1e-5


def test_hopper_kernels_are_offered():
    hopper = Target((9, 0), 232_448, 132)
    x = torch.zeros(1, 32, 32, 32, 32, dtype=torch.float16)
    plain = conv(x, torch.zeros(32, 32, 3, 3, 3, dtype=torch.float16))
    assert plain.kernels(hopper)[0]["family"] == "march"
    halved = conv(
        torch.zeros(1, 32, 64, 64, 64, dtype=torch.float16),
        torch.zeros(64, 32, 3, 3, 3).half(),
        stride=[2] * 3,
    )
    assert halved.kernels(hopper)[0]["family"] == "march2"
    first = conv(torch.zeros(1, 1, 32, 32, 32).half(), torch.zeros(32, 1, 3, 3, 3).half())
    assert first.kernels(hopper)[0]["family"] == "first"
    gelu = conv(x, torch.zeros(32, 32, 3, 3, 3, dtype=torch.float16), activation={"name": "gelu"})
    assert {k["family"] for k in gelu.kernels(hopper)} == {"taps"}


@pytest.mark.parametrize("size", [(9, 10), (40,)])
def test_fewer_axes(size):
    """Images and signals are volumes of one voxel along the axes that they lack."""
    rank = len(size)
    x, w = rand(2, 16, *size), rand(32, 16, *([3] * rank), scale=0.1)
    one = conv(x, w, stride=[1] * rank, dilation=[1] * rank, pads=[1] * (2 * rank), activation=LEAKY)
    assert check(one, most=2) == {"taps"}
