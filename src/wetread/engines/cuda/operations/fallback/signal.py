"""Fourier transforms and their windows, as reconstruction networks of MR have them."""

from __future__ import annotations

import math

import torch

from wetread.engines.cuda.operations.fallback.registry import Call, Given, Tensor, operator

_WINDOWS = {
    "HannWindow": (0.5, -0.5, 0.0), "HammingWindow": (25 / 46, -21 / 46, 0.0), "BlackmanWindow": (0.42, -0.5, 0.08),
}  # fmt: skip
"""Constant, first and second cosine of each window."""


@operator(
    "HannWindow", "HammingWindow", "BlackmanWindow", known=(0,), note="folded where the engine is built"
)
def taper(call: Call) -> Tensor:
    """A window of some length, periodic or symmetric."""
    size = call.need(0)[0]
    steps = size if call.get("periodic", 1) else size - 1
    at = torch.arange(size, dtype=torch.float64, device=call.device) * (2 * math.pi / steps)
    a, b, c = _WINDOWS[call.operator]
    return a + b * torch.cos(at) + c * torch.cos(2 * at)


_NOISE = "it expects numpy's own rounding, 1.9e-7 where the exact value is 0, at a tolerance of 1e-7"


@operator("DFT", known=(1, 2), named={"test_dft_inverse": _NOISE, "test_dft_inverse_opset19": _NOISE})
def dft(call: Call, x: Tensor, _: Given = None) -> Tensor:
    """Discrete Fourier transform along an axis; the last axis holds real and imaginary parts."""
    axis = (call.ints(2) or [int(call.get("axis", -2 if call.opset >= 20 else 1))])[0]
    axis = axis % x.ndim
    inverse, one_sided = bool(call.get("inverse", 0)), bool(call.get("onesided", 0))
    whole = 2 * (x.shape[axis] - 1) if inverse and one_sided else x.shape[axis]
    size = (call.ints(1) or [whole])[0]
    x = x.double()
    z = torch.complex(x[..., 0], x[..., 1] if x.shape[-1] == 2 else torch.zeros_like(x[..., 0]))
    if inverse and one_sided:
        return torch.fft.irfft(z, size, axis).unsqueeze(-1)
    z = torch.fft.ifft(z, size, axis) if inverse else torch.fft.fft(z, size, axis)
    if one_sided:
        z = z.narrow(axis, 0, size // 2 + 1)
    return torch.view_as_real(z)
