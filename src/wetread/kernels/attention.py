"""Launches the kernel of attention, and packs what is added to scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from wetread.kernels.arguments import Tensor, overlapped, require, triton_type

_LOG2E = math.log2(math.e)
BLOCK = 128
"""Queries and keys of bias and mask are filled up to multiples of this, the largest block."""


@dataclass(frozen=True)
class AttentionTile:
    """How attention is cut into programs: queries, keys of a step, warps, depth of the pipeline."""

    bm: int
    bn: int
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True)
class Windows:
    """Shifted windows of a map, along D, H, W (see `operations.attention.Attention`)."""

    size: tuple[int, int, int]
    padded: tuple[int, int, int]
    shift: tuple[int, int, int]

    @property
    def grid(self) -> tuple[int, int, int]:
        """Windows along each axis."""
        d, h, w = (p // s for p, s in zip(self.padded, self.size, strict=True))
        return d, h, w


@dataclass(frozen=True)
class Masks:
    """What is added to scores, what stands where a map was padded, how products round.

    Attributes:
        bias: [1 or heads, QP, KP] from `pack_bias`.
        mask: [windows, QP, KP] from `pack_bias`.
        regions: [windows, T] from `pack_regions`.
        apart: added between tokens of different regions.
        fill: [3 · heads · F], float32.
        tf32: float32 operands may be rounded to TF32.
    """

    bias: Tensor | None = None
    mask: Tensor | None = None
    regions: Tensor | None = None
    apart: float = 0.0
    fill: Tensor | None = None
    tf32: bool = False


def pack_bias(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """(..., A, Tq, Tk) as [A, QP, KP] in units of log 2: whole blocks, −inf for keys that are not there."""
    flat = bias.reshape(-1, *bias.shape[-2:])
    q, k = (-(-size // BLOCK) * BLOCK for size in flat.shape[1:])
    packed = torch.zeros(flat.shape[0], q, k, dtype=dtype, device=bias.device)
    packed[..., flat.shape[2] :] = -math.inf
    packed[:, : flat.shape[1], : flat.shape[2]] = (flat.double() * _LOG2E).to(dtype)
    return packed


def pack_regions(regions: Tensor, dtype: torch.dtype) -> Tensor:
    """Regions [windows, T] as int32."""
    return regions.to(torch.int32).contiguous()


def attention(
    q: Tensor, k: Tensor, v: Tensor, y: Tensor, scale: float, tile: AttentionTile, masks: Masks | None = None,
    windows: Windows | None = None,
) -> None:  # fmt: skip
    """Attention: y = softmax(scale · q kᵀ + bias + mask) v.

    Args:
        q, k, v, y: (B, heads, T, F), or in windows (N, D, H, W, heads, F); any strides; float16, bfloat16 or
            float32.
        scale: of the scores.
        tile: sizes.
        masks: what is added to scores.
        windows: of a map.

    Raises:
        EngineError: shapes or types that the kernel does not take.
    """
    import triton

    from wetread.kernels.device.attention import attention as kernel

    masks = masks or Masks()
    require(len({t.dtype for t in (q, k, v)}) == 1, "q, k and v of one type")
    require(q.shape == y.shape and k.shape == v.shape, "an output like q, v like k")
    if windows is None:
        b, heads, tq, features = q.shape
        tk = k.shape[2]
        found = masks.mask if masks.mask is not None else masks.regions
        count = 1 if found is None else found.shape[0]
        require(b % count == 0, f"a multiple of {count} in the batch, found {b}")
        # batch b · count + w: number w of what is added
        strides = [(t.stride(0) * count, t.stride(1), 0, 0, t.stride(2)) for t in (q, k, v, y)]
        per_window = [t.stride(0) for t in (q, k, v, y)]
        size, padded, shift, grid, space = (1, 1, 1), (1, 1, 1), (0, 0, 0), (1, 1, 1), (1, 1, tq)
        batch = b // count
    else:
        batch, *space_, heads, features = q.shape
        require(k.shape == q.shape, "keys of the same map")
        size, padded, shift, grid = windows.size, windows.padded, windows.shift, windows.grid
        tq = tk = math.prod(size)
        count = math.prod(grid)
        space = (space_[0], space_[1], space_[2])
        require(
            all(s <= p and p % w == 0 for s, p, w in zip(space, padded, size, strict=True)), "whole windows"
        )
        require(all(0 <= s < p for s, p in zip(shift, padded, strict=True)), "a shift below the padded size")
        strides = [(t.stride(0), t.stride(4), t.stride(1), t.stride(2), t.stride(3)) for t in (q, k, v, y)]
        per_window = [0, 0, 0, 0]
    bias, mask, regions = masks.bias, masks.mask, masks.regions
    require(bias is None or bias.shape[0] in (1, heads), "a bias for one head or for each")
    require(tile.bm <= BLOCK and tile.bn <= BLOCK, f"blocks of at most {BLOCK}")

    def some(tensor: Tensor | None) -> Tensor:
        return q if tensor is None else tensor

    kernel[(-(-tq // tile.bm) * heads, count, batch)](
        q, k, v, y, some(masks.fill), some(bias), some(mask), some(regions), float(scale), float(masks.apart),
        tq, tk, heads, grid[1], grid[2], *per_window, *space, *(s for each in strides for s in each),
        *(t.stride(-1) for t in (q, k, v, y)),
        0 if bias is None or bias.shape[0] == 1 else bias.stride(0), 0 if bias is None else bias.stride(1),
        0 if mask is None else mask.stride(0), 0 if mask is None else mask.stride(1),
        0 if regions is None else regions.stride(0),
        PD=padded[0], PH=padded[1], PW=padded[2], SH0=shift[0], SH1=shift[1], SH2=shift[2],
        S0=size[0], S1=size[1], S2=size[2], F=features, BF=max(16, triton.next_power_of_2(features)), BM=tile.bm,
        BN=tile.bn, WINDOWED=windows is not None, FILLED=masks.fill is not None, BIASED=bias is not None,
        MASKED=mask is not None, REGIONS=regions is not None, PRECISION="tf32" if masks.tf32 else "ieee",
        OUT=triton_type(y.dtype), **overlapped(), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
