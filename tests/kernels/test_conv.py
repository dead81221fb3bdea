"""Convolutions of every family against float64: two inputs, odd sizes, 8 bits, sums, split K."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.kernels.reference import DEVICE, HALF, check_sums, conv, error, poisoned, rand  # noqa: E402
from wetread.errors import EngineError  # noqa: E402
from wetread.kernels import weights  # noqa: E402
from wetread.kernels.launch import Epilogue, Tile, conv3d  # noqa: E402

pytestmark = pytest.mark.peer

TILES = [
    Tile("gather", (1, 1, 64), 32, 32, 4, 2),
    Tile("taps", (2, 4, 8), 32, 32, 4, 2),
    Tile("planes", (2, 4, 16), 32, 32, 4, 2),
    Tile("planes", (4, 8, 8), 16, 32, 4, 2),
    Tile("pairs", (2, 8, 8), 64, 64, 4, 2),
    Tile("pairs", (1, 8, 8), 32, 32, 4, 2),
]


def inputs(shape, channels, dtype, pairs):
    out = []
    for i, c in enumerate(channels):
        x = rand(*shape, c, dtype=dtype, seed=i)
        if pairs:
            y = weights.padded(tuple(x.shape), dtype, DEVICE)
            y.copy_(x)
            x = y
        out.append(x)
    return out


def packed(w, channels, tile):
    pack = weights.pack_pairs if tile.family == "pairs" else weights.pack_rows
    return [pack(part.contiguous()) for part in w.split(list(channels), 1)]


@pytest.mark.parametrize("tile", TILES, ids=lambda t: f"{t.family}{t.shape}")
@pytest.mark.parametrize("channels", [(32,), (32, 64)])
def test_float16(tile, channels):
    shape = (2, 5, 6, 10)  # no tile divides these
    x = inputs(shape, channels, torch.float16, tile.family == "pairs")
    w = rand(48, sum(channels), 3, 3, 3, scale=0.04)
    bias, scale = rand(48, dtype=torch.float32), rand(48, dtype=torch.float32).abs() + 0.5
    y = poisoned(*shape, 48)
    sums = torch.zeros(2, 2, 48, 2, dtype=torch.float64, device=DEVICE)
    conv3d(x, packed(w, channels, tile), y, tile, Epilogue(scale, bias, 0.01, sums))
    r = conv(x, w) * scale.double() + bias.double()
    r = torch.where(r > 0, r, r * 0.01)
    assert error(y, r) < HALF
    check_sums(sums, r)


@pytest.mark.parametrize("tile", TILES, ids=lambda t: f"{t.family}{t.shape}")
def test_int8(tile):
    """Integer products are exact: only the last rounding is left, to float16 or to int8."""
    shape = (1, 4, 8, 16)
    x = inputs(shape, (32,), torch.int8, tile.family == "pairs")
    real = rand(32, 32, 3, 3, 3, scale=0.04)
    q = weights.quantise(real.float(), 0.025, torch.int8)
    r = conv(x, q.weight.float()) * q.scale.double()
    y = poisoned(*shape, 32)
    conv3d(x, packed(q.weight, (32,), tile), y, tile, Epilogue(q.scale))
    assert error(y, r) < 3e-4
    z = poisoned(*shape, 32, dtype=torch.int8)
    conv3d(x, packed(q.weight, (32,), tile), z, tile, Epilogue(q.scale, inverse=30.0))
    exact = (r * 30.0).clamp(-127, 127)
    assert (z.double() - exact).abs().max() <= 0.5 + 1e-3
    # and the quantised layer is near the real one: 1 % of its values (gpu.md)
    full = conv([x[0].float() * 0.025], real)
    assert error(y, full) < 0.02


@pytest.mark.parametrize("tile", TILES[:5:2], ids=lambda t: t.family)
def test_float8(tile):
    shape = (1, 4, 8, 16)
    x = [t.to(torch.float8_e4m3fn) for t in inputs(shape, (32,), torch.float16, False)]
    if tile.family == "pairs":
        p = weights.padded((*shape, 32), torch.float8_e4m3fn, DEVICE)
        p.copy_(x[0])
        x = [p]
    w = rand(32, 32, 3, 3, 3, scale=0.04).to(torch.float8_e4m3fn)
    y = poisoned(*shape, 32)
    conv3d(x, packed(w, (32,), tile), y, tile)
    assert error(y, conv(x, w.float())) < 2e-3  # float8 products accumulate in fewer bits on Hopper


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "c", "co"),
    [
        (3, 2, 1, 32, 64),
        (1, 1, 1, 32, 16),
        (3, 1, 2, 16, 16),
        (3, 2, 1, 7, 5),
        (5, 1, 1, 16, 16),
        (1, 2, 1, 16, 32),
    ],
)
def test_gather_any_kernel(kernel, stride, dilation, c, co):
    x = rand(2, 7, 6, 9, c)
    w = rand(co, c, kernel, kernel, kernel, scale=0.1)
    r = conv([x], w, stride, dilation)
    y = poisoned(*r.shape)
    sums = torch.zeros(1, 2, co, 2, dtype=torch.float64, device=DEVICE)
    tile = Tile("gather", (1, 1, 64), 16, 16, 4, 2)
    conv3d([x], [weights.pack_rows(w)], y, tile, Epilogue(sums=sums), kernel=(kernel,) * 3, stride=stride,
           dilation=dilation)  # fmt: skip
    assert error(y, r) < HALF
    check_sums(sums, r)


@pytest.mark.parametrize("family", ["gather", "taps"])
@pytest.mark.parametrize("channels", [(32,), (32, 48)])
def test_split_k(family, channels):
    shape = (2, 3, 4, 5)
    x = inputs(shape, channels, torch.float16, False)
    w = rand(32, sum(channels), 3, 3, 3, scale=0.04)
    tile = Tile(family, (2, 4, 8) if family == "taps" else (1, 1, 64), 32, 16, 4, 2, splits=5)
    parts = poisoned(5, *shape, 32, dtype=torch.float32)
    conv3d(x, packed(w, channels, tile), parts, tile)
    assert error(parts.sum(0), conv(x, w)) < 1e-5


def test_sums_do_not_cancel():
    """Mean 100, SD 0.1: the variance must be right to 1 % although the squares agree to six digits."""
    x = rand(1, 8, 16, 16, 16, scale=0.1)
    w = torch.zeros(16, 16, 1, 1, 1, dtype=torch.float16, device=DEVICE)
    w[range(16), range(16)] = 1.0
    bias = torch.full((16,), 100.0, device=DEVICE)
    sums = torch.zeros(4, 1, 16, 2, dtype=torch.float64, device=DEVICE)
    y = poisoned(1, 8, 16, 16, 16, dtype=torch.float32)
    tile = Tile("gather", (1, 1, 128), 16, 16, 4, 2)
    conv3d([x], [weights.pack_rows(w)], y, tile, Epilogue(bias=bias, sums=sums), kernel=(1, 1, 1))
    total = sums.sum(0)[0] / x[0, ..., 0].numel()
    var = total[:, 1] - total[:, 0] ** 2
    real = y.double().var((0, 1, 2, 3), unbiased=False)
    assert torch.allclose(var, real, rtol=1e-2)


def test_refusals():
    x, w = rand(1, 4, 4, 4, 16), rand(16, 16, 3, 3, 3)
    y = poisoned(1, 4, 4, 4, 16)
    with pytest.raises(EngineError, match="zero voxel at both ends"):
        conv3d([x], [weights.pack_pairs(w)], y, Tile("pairs", (1, 4, 2), 32, 32))
    with pytest.raises(EngineError, match="stride 1"):
        conv3d(
            [x], [weights.pack_rows(w)], poisoned(1, 2, 2, 2, 16), Tile("taps", (1, 2, 2), 16, 16), stride=2
        )
    with pytest.raises(EngineError, match="C contiguous"):
        conv3d([x.transpose(3, 4)], [weights.pack_rows(w)], y, Tile("gather", (1, 1, 64), 16, 16))
