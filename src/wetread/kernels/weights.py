"""Weights as the kernels read them, and their quantisation to 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

Tensor: TypeAlias = torch.Tensor


@dataclass(frozen=True)
class Quantised:
    """Weights in 8 bits and the factor of each output channel that gives real values back.

    Attributes:
        weight: [CO, C, ...], int8 or float8_e4m3fn.
        scale: [CO] float32; real weight = weight · scale (the input's own scale is already in it).
    """

    weight: Tensor
    scale: Tensor


def quantise(weight: Tensor, input_scale: Tensor | float, kind: torch.dtype) -> Quantised:
    """Quantises per output channel.

    Args:
        weight: [CO, C, kd, kh, kw] in any floating type.
        input_scale: what one unit of the 8-bit input is worth; one number, or [C] where the channels come
            from tensors with scales of their own (a concat that is never made).
        kind: torch.int8 or torch.float8_e4m3fn.
    """
    w = weight.float()
    factor = torch.as_tensor(input_scale, dtype=torch.float32, device=w.device)
    if factor.ndim == 1:
        factor = factor.reshape(1, -1, *([1] * (w.ndim - 2)))
    w = w * factor
    top = 127.0 if kind == torch.int8 else 448.0
    scale = w.flatten(1).abs().amax(1).clamp_min(1e-30) / top
    scaled = w / scale.reshape(-1, *([1] * (w.ndim - 1)))
    whole = scaled.round().clamp(-127, 127) if kind == torch.int8 else scaled.clamp(-448, 448)
    return Quantised(whole.to(kind), scale)


def pack_rows(weight: Tensor) -> Tensor:
    """[CO, C, kd, kh, kw] as [taps, CO, C] (families gather, taps, planes)."""
    co, c = weight.shape[:2]
    return weight.flatten(2).permute(2, 0, 1).reshape(-1, co, c).contiguous()


def pack_pairs(weight: Tensor) -> Tensor:
    """[CO, C, 3, 3, 3] as [9, 2·CO, 4·C]: output j of a pair uses inputs j, j+1, j+2 of four (family pairs)."""
    co, c = weight.shape[:2]
    out = torch.zeros(3, 3, 2, co, 4, c, device=weight.device, dtype=weight.dtype)
    for j in range(2):
        for kw in range(3):
            out[:, :, j, :, j + kw, :] = weight[:, :, :, :, kw].permute(2, 3, 0, 1)
    return out.reshape(9, 2 * co, 4 * c).contiguous()


def pack_few(weight: Tensor) -> Tensor:
    """[CO, C, kd, kh, kw] as [K, CO], K = taps · C (tap-major), padded with zeros.

    K becomes a power of two ≥ 16, or beyond 64 a multiple of 64: what a program takes at a time.
    """
    co = weight.shape[0]
    rows = weight.flatten(2).permute(2, 1, 0).reshape(-1, co)
    k = (
        max(16, 1 << (rows.shape[0] - 1).bit_length())
        if rows.shape[0] <= 64
        else -(-rows.shape[0] // 64) * 64
    )
    out = torch.zeros(k, co, device=weight.device, dtype=weight.dtype)
    out[: rows.shape[0]] = rows
    return out


def unsigned_bias(weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    """[CO] float32: the bias of a convolution [CO, C, ...] that takes its uint8 input as value − 128."""
    lacking = 128.0 * weight.double().flatten(1).sum(1)
    if scale is not None:
        lacking = lacking * scale.double()
    return (lacking if bias is None else lacking + bias.double()).float()


def pack_depthwise(weight: Tensor) -> Tensor:
    """[CO, 1, kd, kh, kw] as [taps, CO]."""
    return weight.flatten(2)[:, 0].t().contiguous()


def pack_up(weight: Tensor) -> Tensor:
    """Transposed convolution's [C, CO, kd, kh, 2] as [taps, CO, C]."""
    return weight.flatten(2).permute(2, 1, 0).contiguous()


def pack_head(weight: Tensor) -> Tensor:
    """[K, C, 1, 1, 1] as [C, BK], BK = K padded with zeros to a power of two ≥ 16."""
    k, c = weight.shape[:2]
    out = torch.zeros(c, max(16, 1 << (k - 1).bit_length()), device=weight.device, dtype=weight.dtype)
    out[:, :k] = weight.reshape(k, c).t()
    return out


def padded(shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: Any = "cuda") -> Tensor:
    """A view [N, D, H, W, C] into zeros whose W has one voxel more at both ends (what family pairs reads)."""
    n, d, h, w, c = shape
    return torch.zeros(n, d, h, w + 2, c, dtype=dtype, device=device)[:, :, :, 1:-1, :]


def is_padded(x: Tensor) -> bool:
    """Whether a voxel lies before and after each row of W in x's storage."""
    c = x.shape[-1]
    return bool(x.stride(3) == c and x.stride(2) == (x.shape[3] + 2) * c and x.storage_offset() >= c)
