"""Two linear layers with an activation between them; what lies between is never stored."""

import triton
import triton.language as tl

from wetread.kernels.device.epilogue import after_previous, narrow
from wetread.kernels.device.matmul import act, offsets


@triton.jit
def mlp(
    a_ptr, w1_ptr, w2_ptr, y_ptr, residual_ptr, bias1_ptr, bias2_ptr, inverse, eps,
    M, N, P1, P2, R1, R2, R3, a0, a1, a2, a3, y0, y1, y2, y3, r0, r1, r2, r3,
    K: tl.constexpr, H: tl.constexpr, FLAT: tl.constexpr, RESIDUAL: tl.constexpr, NORM: tl.constexpr,
    BIAS1: tl.constexpr, BIAS2: tl.constexpr, NAME: tl.constexpr, A0: tl.constexpr, A1: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BH: tl.constexpr, BN: tl.constexpr, OUT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Weights [H, P1] and [N, P2], filled up with zeros; all of K and of N in one block; grid (blocks of rows).

    With NORM, w1 has gamma in it and bias1 has beta · w1 in it.
    """
    after_previous(PDL)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    ks = tl.arange(0, BK)
    cols = tl.arange(0, BN)
    row_ok = rows < M
    at = a_ptr + offsets(rows, R1, R2, R3, a0, a1, a2, a3, FLAT)
    a = tl.load(at[:, None] + ks[None, :], mask=row_ok[:, None] & (ks < K)[None, :], other=0.0)
    if NORM:
        x = a.to(tl.float32)
        mean = tl.sum(x, 1) / K
        about = tl.where((ks < K)[None, :], x - mean[:, None], 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(about * about, 1) / K + eps)
        a = (about * rstd[:, None]).to(a.dtype)
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, H, BH):
        hs = start + tl.arange(0, BH)
        w1 = tl.load(
            w1_ptr + hs[None, :] * P1 + ks[:, None], mask=(hs < H)[None, :] & (ks < P1)[:, None], other=0.0
        )
        h = tl.dot(a, w1)
        if BIAS1:
            h += tl.load(bias1_ptr + hs, mask=hs < H, other=0.0)[None, :]
        h = act(h, NAME, A0, A1)
        w2 = tl.load(
            w2_ptr + cols[None, :] * P2 + hs[:, None],
            mask=(cols < N)[None, :] & (hs < P2)[:, None],
            other=0.0,
        )
        acc = tl.dot(h.to(a.dtype), w2, acc)
    if BIAS2:
        acc += tl.load(bias2_ptr + cols, mask=cols < N, other=0.0)[None, :]
    ok = row_ok[:, None] & (cols < N)[None, :]
    if RESIDUAL:
        add = residual_ptr + offsets(rows, R1, R2, R3, r0, r1, r2, r3, FLAT)
        acc += tl.load(add[:, None] + cols[None, :], mask=ok, other=0.0).to(tl.float32)
    to = y_ptr + offsets(rows, R1, R2, R3, y0, y1, y2, y3, FLAT)
    tl.store(to[:, None] + cols[None, :], narrow(acc, inverse, OUT), mask=ok)
