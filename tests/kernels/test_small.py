"""First layer, norms, transposed convolution and head against float64."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.kernels.reference import DEVICE, HALF, check_sums, conv, error, norm, poisoned, rand  # noqa: E402
from wetread.kernels import weights  # noqa: E402
from wetread.kernels.launch import Epilogue, Norm, Tile, conv_few, head, norm_apply, norm_reduce, upconv  # noqa: E402

pytestmark = pytest.mark.peer


def sums_of(x, replicas=2):
    """The sums of x as a convolution leaves them, spread over replicas."""
    v = x.double()
    s = torch.stack([v.sum((1, 2, 3)), (v**2).sum((1, 2, 3))], -1)
    share = torch.rand(replicas, *s.shape, dtype=torch.float64, device=DEVICE)
    return (s * share / share.sum(0)).contiguous()


def a_norm(x, slope=0.01):
    c = x.shape[-1]
    gamma, beta = rand(c, dtype=torch.float32).abs() + 0.5, rand(c, dtype=torch.float32, seed=3)
    return Norm(sums_of(x), gamma, beta, 1e-5, slope)


@pytest.mark.parametrize(("c", "co", "stride"), [(1, 32, 1), (2, 16, 1), (4, 40, 1), (1, 16, 2)])
def test_first_layer(c, co, stride):
    x = rand(2, 5, 6, 7, c)
    w = rand(co, c, 3, 3, 3, scale=0.2)
    bias = rand(co, dtype=torch.float32)
    r = conv([x], w, stride) + bias.double()
    y = poisoned(*r.shape)
    sums = torch.zeros(2, 2, co, 2, dtype=torch.float64, device=DEVICE)
    conv_few(x, weights.pack_few(w), y, Epilogue(bias=bias, sums=sums), rows=64, bn=16, stride=stride)
    assert error(y, r) < HALF
    check_sums(sums, r)


@pytest.mark.parametrize("across", [False, True])
def test_first_layer_in_a_border(across):
    inner = rand(2, 4, 5, 6, 1)
    x = torch.zeros(2, 6, 7, 8, 1, dtype=torch.float16, device=DEVICE)[:, 1:-1, 1:-1, 1:-1]
    x.copy_(inner)
    w = rand(32, 1, 3, 3, 3, scale=0.2)
    y = poisoned(2, 4, 5, 6, 32)
    conv_few(x, weights.pack_few(w), y, rows=64, border=True, across=across)
    assert error(y, conv([inner], w)) < HALF


@pytest.mark.parametrize("out", [torch.float16, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("halo", [False, True])
def test_norm_apply(out, halo):
    x = rand(2, 3, 4, 6, 40, scale=2.0)
    n = a_norm(x)
    r = norm(x, n.gamma, n.beta, slope=0.01)
    store = poisoned(2, 3, 4, 8 if halo else 6, 40, dtype=out)
    y = store[:, :, :, 1:-1] if halo else store
    inverse = 1.0 if out == torch.float16 else 25.0 if out == torch.int8 else 20.0
    norm_apply(x, n, y, inverse=inverse, rows=16, loop=2)
    if out == torch.int8:
        assert (y.double() - (r * inverse).clamp(-127, 127)).abs().max() <= 0.5 + 1e-3
    else:
        assert error(y.float() / inverse, r) < (
            HALF if out == torch.float16 else 0.04 if DEVICE == "cuda" else 0.08
        )
    if halo:
        assert (store[:, :, :, 0].float() == 0).all() and (store[:, :, :, -1].float() == 0).all()


def test_norm_apply_far_from_zero():
    """Sums of mean 100, SD 0.1, in float32 values: the normalised result keeps three digits."""
    x = (rand(1, 4, 8, 8, 16, dtype=torch.float32, scale=0.1) + 100.0).float()
    n = a_norm(x, slope=1.0)
    y = poisoned(1, 4, 8, 8, 16)
    norm_apply(x, n, y)
    assert error(y, norm(x, n.gamma, n.beta)) < 2e-3


@pytest.mark.parametrize("halo", [False, True])
def test_norm_reduce(halo):
    parts = rand(3, 2, 3, 4, 5, 24, dtype=torch.float32) + 20.0
    n = a_norm(parts.sum(0))
    n = Norm(torch.full_like(n.sums, float("nan")), n.gamma, n.beta, n.eps, n.slope)
    store = (
        torch.zeros(2, 3, 4, 7, 24, dtype=torch.float16, device=DEVICE) if halo else poisoned(2, 3, 4, 5, 24)
    )
    y = store[:, :, :, 1:-1] if halo else store
    norm_reduce(parts, n, y)
    assert error(y, norm(parts.double().sum(0), n.gamma, n.beta, slope=0.01)) < HALF


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("halo", [False, True])
@pytest.mark.parametrize("kind", [torch.float16, torch.int8])
@pytest.mark.parametrize(("bk", "taps"), [(64, 4), (32, 2)])
def test_upconv(normed, halo, kind, bk, taps):
    c, co = 48, 16
    x = rand(2, 3, 4, 5, c, dtype=torch.float16 if normed else kind)
    w = rand(c, co, 2, 2, 2, scale=0.1)
    bias = rand(co, dtype=torch.float32)
    n = a_norm(x) if normed else None
    given = norm(x, n.gamma, n.beta, slope=0.01) if n else x.double()
    in_inverse, scale, packed = 1.0, None, weights.pack_up(w)
    if kind == torch.int8:
        in_inverse = 25.0 if normed else 1.0
        q = weights.quantise(w.transpose(0, 1), 1.0 / in_inverse, torch.int8)
        packed, scale = weights.pack_up(q.weight.transpose(0, 1)), q.scale
    r = torch.nn.functional.conv_transpose3d(
        given.permute(0, 4, 1, 2, 3), w.double(), bias.double(), stride=2
    )
    r = r.permute(0, 2, 3, 4, 1)
    store = poisoned(2, 6, 8, 12 if halo else 10, co)
    y = store[:, :, :, 1:-1] if halo else store
    tile = Tile("gather", (1, 1, 32), 16, bk, 4, 2)
    upconv(x, packed, y, Epilogue(scale, bias), norm=n, in_inverse=in_inverse, tile=tile, taps=taps)
    assert error(y, r) < (2e-3 if kind == torch.float16 else 0.03)
    if halo:
        assert (store[:, :, :, 0] == 0).all() and (store[:, :, :, -1] == 0).all()


@pytest.mark.parametrize("softmax", [False, True])
def test_head(softmax):
    x = rand(2, 3, 4, 5, 32)
    n = a_norm(x)
    w, bias = rand(3, 32, 1, 1, 1, scale=0.2), rand(3, dtype=torch.float32)
    y = poisoned(2, 3, 3, 4, 5, dtype=torch.float32)
    head(x, weights.pack_head(w), bias, y, norm=n, softmax=softmax, rows=32, loop=3)
    r = conv([norm(x, n.gamma, n.beta, slope=0.01)], w) + bias.double()
    r = (r.softmax(-1) if softmax else r).permute(0, 4, 1, 2, 3)
    assert error(y, r) < 2e-3


def test_head_adds_into_a_volume():
    x = rand(1, 3, 4, 5, 32)
    w, bias = rand(3, 32, 1, 1, 1, scale=0.2), rand(3, dtype=torch.float32)
    volume = rand(3, 6, 7, 8, dtype=torch.float32)
    before, patch = volume.clone().double(), rand(3, 4, 5, dtype=torch.float32).abs()
    head(x, weights.pack_head(w), bias, volume[None, :, 2:5, 1:5, 3:8], patch=patch, rows=32)
    r = (conv([x], w) + bias.double()).permute(0, 4, 1, 2, 3)[0]
    before[:, 2:5, 1:5, 3:8] += r * patch.double()
    assert error(volume, before) < HALF
