"""march2.cu (stride 2) and first.cu (one channel): weights anywhere, values on a Hopper GPU."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.kernels.reference import DEVICE, HALF, check_sums, conv, error, norm, poisoned, rand  # noqa: E402
from wetread.errors import EngineUnavailableError  # noqa: E402
from wetread.kernels import weights  # noqa: E402
from wetread.kernels.arguments import Epilogue, Norm  # noqa: E402
from wetread.kernels.hopper import driver, first, march2, parts, point  # noqa: E402

pytestmark = pytest.mark.peer

on_hopper = pytest.mark.skipif(
    DEVICE != "cuda" or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
)
SIZES = [(10, 16, 32), (7, 20, 37), (33, 34, 18), (2, 3, 2)]


def test_march2_weights_are_in_the_order_the_kernel_reads():
    w = rand(128, 64, 3, 3, 3).cpu()
    rows = march2.pack(w, 64).reshape(2, 2, 9, 3, 64, 32)
    order = parts.order(64)
    for block, chunk, tap, place, o, c in ((0, 0, 0, 0, 0, 0), (1, 1, 5, 1, 7, 31), (1, 0, 8, 2, 31, 3)):
        kd = (2, 0, 1)[place]
        value = w[block * 64 + order[o], chunk * 32 + c, kd, tap // 3, tap % 3]
        assert rows[block, chunk, tap, place, o, c] == value


@pytest.mark.parametrize("outputs", [32, 48, 64])
def test_threads_have_neighbouring_channels(outputs):
    order = parts.order(outputs)
    assert sorted(order) == list(range(outputs))
    for quad in range(4):
        mine = [order[t * 8 + quad * 2 + e] for t in range(outputs // 8) for e in range(2)]
        runs = [mine[i : i + 8] for i in range(0, len(mine), 8)]
        assert all(run == list(range(run[0], run[0] + len(run))) for run in runs)


def test_where_they_apply():
    half, eight = torch.float16, torch.int8
    assert march2.applies(32, 64, half, 64) and march2.applies(64, 128, eight, 64)
    assert not march2.applies(64, 128, half, 64) and march2.applies(64, 128, half, 32)
    assert not march2.applies(24, 64, half, 64) and not march2.applies(32, 48, half, 64)
    assert first.applies(1, 32, half) and first.applies(1, 48, torch.float32)
    assert not first.applies(2, 32, half) and not first.applies(1, 24, half)


def test_first_product_from_its_operand_registers():
    """The lanes' registers, put together as the instruction does, give the convolution."""
    w = rand(48, 1, 3, 3, 3).cpu().float()
    b = first.pack(w).float().reshape(1, 12, 5, 8, 4, 2)
    k = b.permute(0, 1, 3, 2, 4, 5).reshape(2, 48, 40)[..., :36].reshape(2, 48, 9, 4)
    x = rand(3, 3, 4).cpu().float()
    y = torch.einsum("jcrs,rs->cj", k, x.reshape(9, 4))[torch.tensor(parts.order(48)).argsort()]
    r = torch.nn.functional.conv3d(x[None, None], w.half().float())[0, :, 0, 0]
    assert torch.allclose(y, r, atol=1e-4)


@pytest.mark.parametrize(
    "kernel", ["march2 half", "march2 int8", "first 32", "first 48", "point up", "point head"]
)
def test_compile(kernel):
    """Also where there is no GPU, if CUDA's run-time compiler is here."""
    try:
        driver._nvrtc()
    except EngineUnavailableError as absent:
        pytest.skip(str(absent))
    some = torch.zeros(1)
    name, kind = kernel.split()
    if name == "march2":
        dtype = torch.float16 if kind == "half" else torch.int8
        epilogue = Epilogue(scale=some, bias=some, sums=some, residual=some)
        text, constants = march2.source(dtype, 64), march2.defines(32, dtype, epilogue, 64)
    elif name == "point":
        text = parts.text("point")
        constants = point.defines(
            64, Epilogue(bias=some), True, torch.float16, kind == "up", classes=14, softmax=True
        )
    else:
        text, constants = parts.text("first"), first.defines(int(kind), torch.float32, Epilogue(sums=some))
    assert driver.compile_source(text, "sm_90a", constants)[:4] == b"\x7fELF"


@on_hopper
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("dtype", "c", "co", "outputs"),
    [
        (torch.float16, 32, 64, 64),
        (torch.float16, 64, 32, 32),
        (torch.float16, 48, 128, 64),
        (torch.int8, 32, 64, 64),
        (torch.int8, 64, 128, 64),
        (torch.float8_e4m3fn, 32, 128, 64),
    ],
    ids=str,
)
def test_stride_2(dtype, c, co, outputs, size):
    shape = (2, *size)
    x = rand(*shape, c, dtype=torch.int8 if dtype == torch.int8 else torch.float16).to(dtype)
    if size[0] == 33:  # a slice of channels between others
        wide = torch.zeros(*shape, 3 * c, device=DEVICE).to(dtype)
        wide[..., c : 2 * c] = x
        x = wide[..., c : 2 * c]
    w, scale = rand(co, c, 3, 3, 3, scale=0.04), None
    if dtype != torch.float16:
        q = weights.quantise(w.float(), 0.025, dtype)
        w, scale = q.weight, q.scale
    bias = rand(co, dtype=torch.float32)
    r = conv([x], w.float(), stride=2) * (1.0 if scale is None else scale.double()) + bias.double()
    given = rand(*r.shape, seed=4)
    r = r + given.double()
    r = torch.where(r > 0, r, r * 0.01)
    y = poisoned(*r.shape)
    sums = torch.zeros(4, 2, co, 2, dtype=torch.float64, device=DEVICE)
    epilogue = Epilogue(scale, bias, 0.01, sums, residual=given)
    march2.conv3d_march2(x, march2.pack(w, outputs), y, epilogue, outputs)
    assert error(y, r) < (2e-3 if dtype == torch.float8_e4m3fn else HALF)
    check_sums(sums, r, 5e-2 if dtype == torch.float8_e4m3fn else 2e-3)


@on_hopper
@pytest.mark.parametrize("size", [(9, 10, 33), (8, 16, 64), (1, 2, 3), (20, 9, 31)])
@pytest.mark.parametrize("co", [32, 48, 64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_first_layer(co, size, dtype):
    x = rand(2, *(s + 2 for s in size), 1).to(dtype)[
        :, 1:-1, 1:-1, 1:-1
    ]  # beside other values: no border is read
    w, bias = rand(co, 1, 3, 3, 3, scale=0.2), rand(co, dtype=torch.float32)
    y = poisoned(2, *size, co)
    sums = torch.zeros(4, 2, co, 2, dtype=torch.float64, device=DEVICE)
    first.conv3d_first(x, first.pack(w), y, Epilogue(bias=bias, slope=0.01, sums=sums))
    r = conv([x.half()], w) + bias.double()
    r = torch.where(r > 0, r, r * 0.01)
    assert error(y, r) < HALF
    check_sums(sums, r)


def raw_input(size, c):
    x = rand(2, *size, c, scale=2.0) + 1.0
    v = x.double()
    sums = torch.stack([v.sum((1, 2, 3)), (v**2).sum((1, 2, 3))], -1)
    gamma, beta = rand(c, dtype=torch.float32).abs() + 0.5, rand(c, dtype=torch.float32, seed=3)
    given = Norm(torch.stack([sums * 0.25, sums * 0.75]).contiguous(), gamma, beta, 1e-5, 0.01)
    return x, given, norm(x, gamma, beta, slope=0.01)


@on_hopper
@pytest.mark.parametrize("size", [(3, 5, 7), (8, 16, 16)])
@pytest.mark.parametrize(("c", "co"), [(32, 32), (64, 32), (128, 64), (96, 96)])
@pytest.mark.parametrize("out", [torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("normed", [False, True])
def test_transposed(normed, out, c, co, size):
    x, given, value = raw_input(size, c)
    w, bias = rand(c, co, 2, 2, 2, scale=0.1), rand(co, dtype=torch.float32)
    value = value if normed else x.double()
    r = torch.nn.functional.conv_transpose3d(value.permute(0, 4, 1, 2, 3), w.double(), bias.double(), 2)
    r = r.permute(0, 2, 3, 4, 1)
    wide = poisoned(2, *(2 * s for s in size), co + 32, dtype=out)  # a slice of a wider tensor
    y = wide[..., :co]
    point.upconv_point(x, point.pack_up(w), y, Epilogue(bias=bias, inverse=20.0), given if normed else None)
    if out == torch.float16:
        assert error(y, r) < HALF
    else:
        assert (y.double() - (r * 20).clamp(-128, 127)).abs().max() <= 0.5 + (0.1 if normed else 1e-2)


@on_hopper
@pytest.mark.parametrize("size", [(3, 5, 7), (8, 16, 16)])
@pytest.mark.parametrize(("c", "classes"), [(32, 3), (64, 14), (32, 32)])
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("out", [torch.float16, torch.float32], ids=str)
def test_head(out, softmax, c, classes, size):
    x, given, value = raw_input(size, c)
    w, bias = rand(classes, c, 1, 1, 1, scale=0.3), rand(classes, dtype=torch.float32)
    for n in (given, None):
        r = torch.nn.functional.conv3d(
            (value if n else x.double()).permute(0, 4, 1, 2, 3), w.double(), bias.double()
        )
        r = r.softmax(1) if softmax else r
        y = poisoned(2, classes, *size, dtype=out)
        point.head_point(x, point.pack_head(w), bias, y, n, softmax)
        assert error(y, r) < HALF
