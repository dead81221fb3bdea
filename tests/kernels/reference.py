"""What the kernels must compute, in float64, and how far from it they may be."""

from __future__ import annotations

import os

import torch

DEVICE = os.environ.get("WETREAD_TEST_DEVICE", "cpu")
# float16 products and one rounding of the result; a float16 ulp is 2**-11
HALF = 1e-3


def rand(*shape, dtype=torch.float16, scale=1.0, seed=0):
    g = torch.Generator().manual_seed(seed + sum(shape))
    x = torch.randn(*shape, generator=g) * scale
    if dtype == torch.int8:
        x = (x * 40).round().clamp(-127, 127)
    return x.to(dtype).to(DEVICE)


def poisoned(*shape, dtype=torch.float16):
    if dtype == torch.int8:
        return torch.full(shape, -128, dtype=dtype, device=DEVICE)  # a value that no kernel writes
    return torch.full(shape, float("nan"), dtype=torch.float32, device=DEVICE).to(dtype)


def conv(x, w, stride=1, dilation=1):
    """x a list of [N, D, H, W, C], w [CO, sum of C, k, k, k]; float64, channels last."""
    wide = torch.cat([t.float() for t in x], -1).double().permute(0, 4, 1, 2, 3)
    y = torch.nn.functional.conv3d(
        wide, w.double(), stride=stride, dilation=dilation, padding=dilation * (w.shape[-1] - 1) // 2
    )
    return y.permute(0, 2, 3, 4, 1)


def norm(x, gamma, beta, eps=1e-5, slope=1.0):
    x = x.double()
    mean = x.mean((1, 2, 3), keepdim=True)
    var = ((x - mean) ** 2).mean((1, 2, 3), keepdim=True)
    y = (x - mean) / (var + eps).sqrt() * gamma.double() + beta.double()
    return torch.where(y > 0, y, y * slope)


def error(y, r):
    """Relative L2 error; NaN where any value is NaN."""
    return ((y.double() - r).norm() / r.norm()).item()


def check_sums(sums, y, rtol=2e-3):
    """Sums [R, N, C, 2] against the values y [N, D, H, W, C] (float64)."""
    total = sums.sum(0)
    v = y[0, ..., 0].numel()
    mean, square = total[..., 0] / v, total[..., 1] / v
    var = square - mean**2
    assert torch.allclose(mean, y.mean((1, 2, 3)), atol=1e-3 + rtol / 10, rtol=1e-3)
    assert torch.allclose(var, y.var((1, 2, 3), unbiased=False), rtol=rtol)
