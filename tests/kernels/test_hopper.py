"""march.cu: its weights and cutting anywhere; its values on a Hopper GPU (WETREAD_TEST_DEVICE=cuda)."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from tests.kernels.reference import DEVICE, HALF, check_sums, conv, error, norm, poisoned, rand  # noqa: E402
from wetread.errors import EngineUnavailableError  # noqa: E402
from wetread.kernels import weights  # noqa: E402
from wetread.kernels.hopper import driver, march, parts  # noqa: E402
from wetread.kernels.launch import Epilogue, Norm, Tile, conv3d  # noqa: E402

pytestmark = pytest.mark.peer

on_hopper = pytest.mark.skipif(
    DEVICE != "cuda" or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
)
TILE = Tile("march", (1, 16, 16), 32, 32)


def test_weights_are_in_the_order_the_kernel_reads():
    w = rand(64, 96, 3, 3, 3).cpu()
    rows = march.pack(w, (32, 64)).reshape(2, 3, 9, 3, 32, 32)
    order = parts.order(32)
    for block, chunk, tap, place, o, c in ((0, 0, 0, 0, 0, 0), (1, 2, 5, 1, 7, 31), (1, 1, 8, 2, 31, 3)):
        value = w[block * 32 + order[o], chunk * 32 + c, 2 - place, tap // 3, tap % 3]
        assert rows[block, chunk, tap, place, o, c] == value


def test_where_it_applies():
    assert march.applies((32,), 32, torch.float16) and march.applies((32, 32), 32, torch.float16)
    # its weights alone would fill shared memory: they arrive with the planes
    assert march.layout((64, 64), torch.float16).stream and not march.layout((64, 64), torch.int8).stream
    assert march.applies((64, 64), 64, torch.float16) and not march.applies(
        (128,), 64, torch.float16, norm=True
    )
    assert not march.applies((24,), 32, torch.float16) and not march.applies((32,), 40, torch.float16)
    # SwinUNETR's 48 channels: blocks of 48 outputs, chunks of 16 inputs
    assert march.outputs_of(48) == 48 and march.outputs_of(96) == 32
    assert march.applies((48, 48), 48, torch.float16) and march.applies((48,), 48, torch.float16, norm=True)
    assert not march.applies((48,), 48, torch.int8) and march.applies((96,), 96, torch.int8)


@pytest.mark.parametrize(("columns", "depth"), [(32, 128), (64, 128), (1, 5), (500, 3)])
def test_segments_cover_the_depth(columns, depth):
    parts = march.segments(columns, depth, 132)
    assert 1 <= parts <= depth
    one = -(-columns // 132) * (depth + 2)
    assert -(-columns * parts // 132) * (-(-depth // parts) + 2) <= one


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize(
    ("channels", "normed", "outputs"),
    [
        ((32,), False, 32),
        ((32, 32), False, 32),
        ((64, 64), False, 32),
        ((32,), True, 32),
        ((64,), True, 32),
        ((96,), False, 48),
    ],
)
def test_compiles_without_spills(dtype, channels, normed, outputs, tmp_path):
    """Also where there is no GPU, if CUDA's run-time compiler is here."""
    try:
        driver._nvrtc()
    except EngineUnavailableError as absent:
        pytest.skip(str(absent))
    some = torch.zeros(1)
    epilogue = Epilogue(scale=None if dtype == torch.float16 else some, sums=some, residual=some)
    constants = march.defines(channels, dtype, epilogue, normed, outputs)
    cubin = driver.compile_source(march.source(dtype, outputs), "sm_90a", constants)
    assert cubin[:4] == b"\x7fELF"
    dump = shutil.which("cuobjdump")
    if dump:
        (tmp_path / "k.cubin").write_bytes(cubin)
        text = subprocess.run(
            [dump, "-res-usage", tmp_path / "k.cubin"], capture_output=True, text=True, check=True
        )
        stack = int(text.stdout.split("STACK:")[1].split()[0])
        assert stack <= (48 if (normed and dtype != torch.float16) or outputs == 48 else 0)


@on_hopper
@pytest.mark.parametrize("size", [(5, 16, 16), (7, 20, 37), (40, 48, 32), (1, 3, 2)])
@pytest.mark.parametrize(("channels", "co"), [((32,), 32), ((32, 32), 32), ((64,), 64), ((96, 64), 64)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8, torch.float8_e4m3fn], ids=str)
def test_values(dtype, channels, co, size):
    shape = (2, *size)
    x = [rand(*shape, c, dtype=torch.int8 if dtype == torch.int8 else torch.float16, seed=i).to(dtype)
         for i, c in enumerate(channels)]  # fmt: skip
    if size[0] == 40:  # rows with a voxel at both ends, as family pairs wants them
        views = [weights.padded(tuple(t.shape), dtype, DEVICE) for t in x]
        for v, t in zip(views, x, strict=True):
            v.copy_(t)
        x = views
    w = rand(co, sum(channels), 3, 3, 3, scale=0.04)
    scale, bias = None, None
    if dtype != torch.float16:
        q = weights.quantise(w.float(), 0.025, dtype)
        w, scale = q.weight, q.scale
        bias = rand(co, dtype=torch.float32)
    y = poisoned(*shape, co)
    sums = torch.zeros(4, 2, co, 2, dtype=torch.float64, device=DEVICE)
    conv3d(
        x, [march.pack(w, channels)], y, TILE, Epilogue(scale, bias, 0.01 if bias is not None else 1.0, sums)
    )
    r = conv(x, w.float())
    if scale is not None:
        r = r * scale.double() + bias.double()
        r = torch.where(r > 0, r, r * 0.01)
    assert error(y, r) < (2e-3 if dtype == torch.float8_e4m3fn else HALF)
    check_sums(sums, r, 5e-2 if dtype == torch.float8_e4m3fn else 2e-3)


@on_hopper
@pytest.mark.parametrize("size", [(5, 16, 16), (7, 20, 37), (34, 24, 16)])
@pytest.mark.parametrize(
    ("channels", "co", "outputs"), [((48,), 48, 48), ((48, 48), 48, 48), ((96,), 96, 32), ((16,), 96, 48)]
)
def test_residual_and_blocks_of_48(channels, co, outputs, size):
    """Chunks of 16 channels, weights that stay or arrive; the residual is in the sums."""
    shape = (2, *size)
    x = [rand(*shape, c, seed=i) for i, c in enumerate(channels)]
    w = rand(co, sum(channels), 3, 3, 3, scale=0.04)
    bias, given = rand(co, dtype=torch.float32), rand(*shape, co, seed=9)
    y = poisoned(*shape, co)
    sums = torch.zeros(4, 2, co, 2, dtype=torch.float64, device=DEVICE)
    conv3d(x, [march.pack(w, channels, outputs)], y, replace(TILE, bn=outputs),
           Epilogue(bias=bias, slope=0.1, sums=sums, residual=given))  # fmt: skip
    r = conv(x, w.float()) + bias.double() + given.double()
    r = torch.where(r > 0, r, r * 0.1)
    assert error(y, r) < HALF
    check_sums(sums, r)


@on_hopper
@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn], ids=str)
def test_eight_bits_out_and_unsigned_in(kind):
    """uint8 inputs times int8 weights are exact; the output is rounded once."""
    shape, eight = (1, 9, 20, 24), torch.float8_e4m3fn
    x = rand(*shape, 32, dtype=torch.int8).abs().to(torch.uint8)
    w = rand(32, 32, 3, 3, 3, dtype=torch.int8, scale=0.3)
    if kind == eight:
        x, w = rand(*shape, 32).to(eight), rand(32, 32, 3, 3, 3, scale=0.04).to(eight)
    scale = torch.full((32,), 1.0 if kind == eight else 3e-4, device=DEVICE)
    y = torch.full((*shape, 32), 77, device=DEVICE).to(kind)
    conv3d([x], [march.pack(w, (32,))], y, TILE, Epilogue(scale, slope=0.0, inverse=20.0))
    r = (conv([x], w.float()) * scale.double()).clamp_min(0) * 20.0
    if kind == eight:
        assert error(y.float(), r.clamp(max=448)) < 4e-2
    else:
        assert (y.double() - r.clamp(max=127 if kind == torch.int8 else 255)).abs().max() <= 0.51


@on_hopper
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
def test_group_norm_on_load(dtype):
    x = rand(2, 9, 20, 24, 32, scale=2.0) + 1.0
    v = x.double()
    sums = torch.stack([v.sum((1, 2, 3)), (v**2).sum((1, 2, 3))], -1)[None].contiguous()
    gamma, beta = rand(32, dtype=torch.float32).abs() + 0.5, rand(32, dtype=torch.float32, seed=3)
    given = torch.nn.functional.group_norm(v.permute(0, 4, 1, 2, 3), 8, gamma.double(), beta.double(), 1e-5)
    given = given.permute(0, 2, 3, 4, 1).relu()
    w, scale, inverse = rand(32, 32, 3, 3, 3, scale=0.04), None, 1.0
    if dtype == torch.int8:
        inverse = 25.0
        q = weights.quantise(w.float(), 1 / inverse, dtype)
        w, scale = q.weight, q.scale
        given = (given * inverse).round().clamp(-128, 127)
    r = conv([given], w.float()) * (1.0 if scale is None else scale.double())
    y = poisoned(2, 9, 20, 24, 32)
    conv3d([x], [march.pack(w, (32,))], y, TILE, Epilogue(scale), norm=Norm(sums, gamma, beta, 1e-5, 0.0, 8),
           in_inverse=inverse)  # fmt: skip
    assert error(y, r) < (HALF if dtype == torch.float16 else 5e-3)


@on_hopper
@pytest.mark.parametrize("size", [(5, 16, 16), (7, 20, 37), (40, 48, 32)])
@pytest.mark.parametrize(("c", "co"), [(32, 32), (64, 64)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8, torch.float8_e4m3fn], ids=str)
def test_norm_on_load(dtype, c, co, size):
    """Raw input, normalised in shared memory: the padding is zero after the norm, not before."""
    x = rand(2, *size, c, scale=2.0) + 1.0
    v = x.double()
    sums = torch.stack([v.sum((1, 2, 3)), (v**2).sum((1, 2, 3))], -1)
    sums = torch.stack([sums * 0.25, sums * 0.75]).contiguous()
    gamma, beta = rand(c, dtype=torch.float32).abs() + 0.5, rand(c, dtype=torch.float32, seed=3)
    given = norm(x, gamma, beta, slope=0.01)
    w, scale, inverse = rand(co, c, 3, 3, 3, scale=0.04), None, 1.0
    if dtype != torch.float16:
        inverse = 25.0 if dtype == torch.int8 else 60.0
        q = weights.quantise(w.float(), 1 / inverse, dtype)
        w, scale = q.weight, q.scale
        given = given * inverse
        given = given.round().clamp(-128, 127) if dtype == torch.int8 else given.clamp(-448, 448).to(dtype)
    r = conv([given], w.float()) * (1.0 if scale is None else scale.double())
    y = poisoned(2, *size, co)
    out_sums = torch.zeros(4, 2, co, 2, dtype=torch.float64, device=DEVICE)
    conv3d([x], [march.pack(w, (c,))], y, TILE, Epilogue(scale, sums=out_sums),
           norm=Norm(sums, gamma, beta, 1e-5, 0.01), in_inverse=inverse)  # fmt: skip
    # a value that lies between two 8-bit ones may round either way
    assert error(y, r) < {torch.float16: HALF, torch.int8: 5e-3, torch.float8_e4m3fn: 2e-2}[dtype]
    check_sums(out_sums, y.double())
