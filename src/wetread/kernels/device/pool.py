"""Pooling, channels last: windows, and whole volumes in two steps that add in a fixed order."""

import triton
import triton.language as tl

from wetread.kernels.device.epilogue import after_previous, narrow


@triton.jit
def joined(acc, v, MAX: tl.constexpr):
    """The larger one, NaN if either is; or the sum."""
    if MAX:
        acc = tl.maximum(acc, v, propagate_nan=tl.PropagateNan.ALL)
    else:
        acc += v
    return acc


@triton.jit
def largest(v):
    """Largest of each column, NaN where there is one: a reduction by itself loses it."""
    known = v == v  # noqa: PLR0124 - false for NaN
    found = tl.max(tl.where(known, v, float("-inf")), 0)
    return tl.where(tl.min(known.to(tl.int32), 0) > 0, found, float("nan"))


@triton.jit
def pool(
    x_ptr, y_ptr, inverse, D, H, W, DO, HO, WO, xn, xd, xh, xw, yn, yd, yh, yw, C,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    LD: tl.constexpr, LH: tl.constexpr, LW: tl.constexpr, PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    ED: tl.constexpr, EH: tl.constexpr, EW: tl.constexpr, MAX: tl.constexpr, COUNT: tl.constexpr,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BC: tl.constexpr, OUT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Kernel K, strides S, dilations L, zeros before P and after E; COUNT: these zeros count in averages.

    A program has a box T of windows, which share voxels that stay in the multiprocessor's cache.
    """
    after_previous(PDL)
    BV: tl.constexpr = TD * TH * TW
    n = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0)
    rows = tl.arange(0, BV)
    cols = tl.program_id(2) * BC + tl.arange(0, BC)
    cols_ok = cols < C
    nw = tl.cdiv(WO, TW)
    nh = tl.cdiv(HO, TH)
    w = tile % nw * TW + rows % TW
    h = tile // nw % nh * TH + rows // TW % TH
    d = tile // (nw * nh) * TD + rows // (TW * TH)
    rows_ok = (d < DO) & (h < HO) & (w < WO)
    acc = tl.full((BV, BC), float("-inf") if MAX else 0.0, tl.float32)
    counted = tl.zeros((BV,), tl.float32)
    for tap in range(KD * KH * KW):
        di = d * SD - PD + tap // (KH * KW) * LD
        hi = h * SH - PH + tap // KW % KH * LH
        wi = w * SW - PW + tap % KW * LW
        ok = rows_ok & (di >= 0) & (di < D) & (hi >= 0) & (hi < H) & (wi >= 0) & (wi < W)
        at = di.to(tl.int64) * xd + hi.to(tl.int64) * xh + wi * xw
        mask = ok[:, None] & cols_ok[None, :]
        v = tl.load(x_ptr + n * xn + at[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        if MAX:
            v = tl.where(mask, v, float("-inf"))
        acc = joined(acc, v, MAX)
        if COUNT:
            counted += ((di < D + ED) & (hi < H + EH) & (wi < W + EW)).to(tl.float32)
        else:
            counted += ok.to(tl.float32)
    if not MAX:
        acc = acc / tl.maximum(counted, 1.0)[:, None]
    to = d.to(tl.int64) * yd + h.to(tl.int64) * yh + w * yw
    tl.store(y_ptr + n * yn + to[:, None] + cols[None, :], narrow(acc, inverse, OUT),
             mask=rows_ok[:, None] & cols_ok[None, :])  # fmt: skip


@triton.jit
def pool_parts(
    x_ptr, p_ptr, V, H, W, xn, xd, xh, xw, C, PARTS, STEPS,
    MAX: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A share of each volume: STEPS blocks of voxels to one row of p [N, PARTS, C]. Grid (parts, batch, channels)."""
    after_previous(PDL)
    part = tl.program_id(0)
    n = tl.program_id(1).to(tl.int64)
    cols = tl.program_id(2) * BC + tl.arange(0, BC)
    cols_ok = cols < C
    low: tl.constexpr = float("-inf") if MAX else 0.0
    acc = tl.full((BV, BC), low, tl.float32)
    for step in range(STEPS):
        rows = (part * STEPS + step) * BV + tl.arange(0, BV)
        mask = (rows < V)[:, None] & cols_ok[None, :]
        at = (rows // (W * H)).to(tl.int64) * xd + (rows // W % H).to(tl.int64) * xh + rows % W * xw
        v = tl.load(x_ptr + n * xn + at[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        acc = joined(acc, tl.where(mask, v, low), MAX)
    if MAX:
        found = largest(acc)
    else:
        found = tl.sum(acc, 0)
    tl.store(p_ptr + (n * PARTS + part) * C + cols, found, mask=cols_ok)


@triton.jit
def pool_whole(
    p_ptr, y_ptr, inverse, share, yn, C, PARTS: tl.constexpr, MAX: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
    OUT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The parts [N, PARTS, C] of each volume joined; sums times `share`. Grid (channels, batch)."""
    after_previous(PDL)
    n = tl.program_id(1).to(tl.int64)
    cols = tl.program_id(0) * BC + tl.arange(0, BC)
    cols_ok = cols < C
    parts = tl.arange(0, BP)
    mask = (parts < PARTS)[:, None] & cols_ok[None, :]
    low: tl.constexpr = float("-inf") if MAX else 0.0
    v = tl.load(p_ptr + (n * PARTS + parts)[:, None] * C + cols[None, :], mask=mask, other=low)
    if MAX:
        found = largest(v)
    else:
        found = tl.sum(v, 0) * share
    tl.store(y_ptr + n * yn + cols, narrow(found, inverse, OUT), mask=cols_ok)
