"""march2.cu (stride 2) and first.cu (one channel): weights anywhere, values on a Hopper GPU."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.kernels.reference import DEVICE, HALF, check_sums, conv, error, poisoned, rand  # noqa: E402
from wetread.errors import EngineUnavailableError  # noqa: E402
from wetread.kernels import weights  # noqa: E402
from wetread.kernels.arguments import Epilogue  # noqa: E402
from wetread.kernels.hopper import driver, first, march2, parts  # noqa: E402

pytestmark = pytest.mark.peer

on_hopper = pytest.mark.skipif(
    DEVICE != "cuda" or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
)
SIZES = [(10, 16, 32), (7, 20, 37), (33, 34, 18), (2, 3, 2)]


def test_march2_weights_are_in_the_order_the_kernel_reads():
    w = rand(128, 64, 3, 3, 3).cpu()
    rows = march2.pack(w, 64).reshape(2, 2, 9, 3, 64, 32)
    for block, chunk, tap, place, o, c in ((0, 0, 0, 0, 0, 0), (1, 1, 5, 1, 7, 31), (1, 0, 8, 2, 31, 3)):
        kd = (2, 0, 1)[place]
        assert (
            rows[block, chunk, tap, place, o, c] == w[block * 64 + o, chunk * 32 + c, kd, tap // 3, tap % 3]
        )


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
    y = torch.einsum("jcrs,rs->cj", k, x.reshape(9, 4))
    r = torch.nn.functional.conv3d(x[None, None], w.half().float())[0, :, 0, 0]
    assert torch.allclose(y, r, atol=1e-4)


@pytest.mark.parametrize("kernel", ["march2 half", "march2 int8", "first 32", "first 48"])
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
