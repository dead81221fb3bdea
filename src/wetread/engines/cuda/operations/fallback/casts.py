"""Other types of the same values, and eight-bit values with their scales."""

from __future__ import annotations

import math

import torch

from wetread.engines.cuda.operations.fallback.registry import Call, Given, Tensor, along, operator

_FLOAT8 = {
    torch.float8_e4m3fn: 448.0, torch.float8_e4m3fnuz: 240.0, torch.float8_e5m2: 57344.0,
    torch.float8_e5m2fnuz: 57344.0,
}  # fmt: skip
"""Largest number of each 8-bit floating type."""


def to_float8(x: Tensor, dtype: torch.dtype, saturate: bool) -> Tensor:
    """Rounds to an 8-bit floating type; what lies beyond it becomes its largest number, or infinity or NaN."""
    wide, top = x.float(), _FLOAT8[dtype]
    if saturate:
        return wide.clamp(-top, top).to(dtype)
    rounded = wide.clamp(-top, top).to(dtype)
    # half a step beyond the largest number rounds back to it
    step = 2.0 ** (math.floor(math.log2(top)) - (3 if "e4m3" in str(dtype) else 2))
    if dtype == torch.float8_e5m2:
        beyond = torch.copysign(torch.full_like(wide, math.inf), wide)
    else:
        beyond = torch.full_like(wide, math.nan)
    limit = top + step / 2
    outside = (wide.abs() >= limit) | ((wide.abs() > top) & torch.isinf(wide))
    kept = torch.where(outside, beyond.to(dtype).view(torch.uint8), rounded.view(torch.uint8))
    return kept.view(dtype)


def to_exponents(x: Tensor, rounding: str, saturate: bool) -> Tensor:
    """Rounds to powers of two (E8M0): away from zero (up), towards it (down), or to the nearest, ties up."""
    bits = x.float().contiguous().view(torch.int32)
    exponent, mantissa = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    half = 0x400000
    up = {
        "up": mantissa > 0, "down": torch.zeros_like(mantissa, dtype=torch.bool),
        "nearest": (mantissa > half) | ((mantissa == half) & (exponent > 0)),
    }[rounding]  # fmt: skip
    up = up & (exponent < (0xFE if saturate else 0xFF))
    return (exponent + up).to(torch.uint8).view(torch.float8_e8m0fnu)


def converted(call: Call, x: Tensor, dtype: torch.dtype) -> Tensor:
    """X in another type, as Cast gives it."""
    if dtype == torch.bool:
        return x != 0
    if dtype in _FLOAT8:
        return to_float8(x, dtype, bool(call.get("saturate", 1)))
    if dtype == torch.float8_e8m0fnu:
        return to_exponents(x, str(call.get("round_mode", "up")), bool(call.get("saturate", 1)))
    if x.is_floating_point() and not dtype.is_floating_point:
        return x.to(torch.int64).to(dtype)  # towards zero
    return x.to(dtype)


@operator("Cast", "CastLike", types="moves", note="to and from types that torch has")
def cast(call: Call, x: Tensor, _: Given = None) -> Tensor:
    """X in the type of the output."""
    return converted(call, x, call.dtype())


@operator("BitCast", types="moves", note="between types that torch has")
def bit_cast(call: Call, x: Tensor) -> Tensor:
    """The same bits as another type."""
    return x.contiguous().view(call.dtype())


def spread(scale: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """Scales or zero points in a shape that broadcasts with x: one, one along an axis, or one for each block of it."""
    if scale.numel() == 1:
        return scale.reshape([1] * x.ndim)
    if block:
        return scale.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return along(axis, scale, x.ndim)


@operator("QuantizeLinear", types="wide")
def quantise(call: Call, x: Tensor, scale: Tensor, zero: Given = None) -> Tensor:
    """X over its scale, rounded half to even, plus the zero point, saturated."""
    axis, block = int(call.get("axis", 1)), int(call.get("block_size", 0))
    dtype = call.dtype()
    y = (
        x.float() / spread(scale.float(), x, axis, block)
        if x.dtype != torch.float64
        else x / spread(scale, x, axis, block)
    )
    if dtype in _FLOAT8:
        return to_float8(y, dtype, bool(call.get("saturate", 1)))
    y = y.round()
    if zero is not None:
        y = y + spread(zero.to(y.dtype), x, axis, block)
    limits = torch.iinfo(dtype)
    return y.clamp(limits.min, limits.max).to(torch.int32).to(dtype)


@operator("DequantizeLinear", types="wide")
def dequantise(call: Call, x: Tensor, scale: Tensor, zero: Given = None) -> Tensor:
    """X less the zero point, times the scale."""
    axis, block = int(call.get("axis", 1)), int(call.get("block_size", 0))
    y = x.double() if not x.is_floating_point() else x
    if zero is not None:
        y = y - spread(zero.to(y.dtype), x, axis, block)
    return y * spread(scale.to(y.dtype), x, axis, block)


@operator("DynamicQuantizeLinear")
def dynamic(_: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 of x, with the scale and zero point that its range asks for."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    zero = (-low / scale).round().clamp(0, 255)
    y = ((x / scale).round() + zero).clamp(0, 255)
    return y.to(torch.uint8), scale, zero.to(torch.uint8)
