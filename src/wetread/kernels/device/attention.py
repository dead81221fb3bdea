"""Attention of heads, whole or in shifted windows, with online softmax (Dao et al. 2022)."""

import triton
import triton.language as tl

from wetread.kernels.device.epilogue import after_previous

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def places(
    t, count, o0, o1, o2, D, H, W, PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, S1: tl.constexpr,
    S2: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """Where tokens lie along three axes, and whether there. (o0, o1, o2) is where the window begins, shift added.

    Whole attention has its tokens along the last axis alone.
    """
    if WINDOWED:
        d = o0 + t // (S1 * S2)
        h = o1 + (t // S2) % S1
        w = o2 + t % S2
        d = tl.where(d >= PD, d - PD, d)
        h = tl.where(h >= PH, h - PH, h)
        w = tl.where(w >= PW, w - PW, w)
        return d, h, w, (t < count) & (d < D) & (h < H) & (w < W)
    return t * 0, t * 0, t, t < count


@triton.jit
def spread(ptr, d, h, w, sd, sh, sw, f, sf):
    """Pointers to the features of tokens."""
    return ptr + (d.to(tl.int64) * sd + h * sh + w.to(tl.int64) * sw)[:, None] + (f * sf)[None, :]


@triton.jit
def attention(
    q_ptr, k_ptr, v_ptr, y_ptr, fill_ptr, bias_ptr, mask_ptr, regions_ptr, scale, apart, TQ, TK, HEADS, G1, G2,
    qw, kw, vw, yw, D, H, W, qn, qh, qd, qy, qx, kn, kh, kd, ky, kx, vn, vh, vd, vy, vx, yn, yh, yd, yy, yx,
    qf, kf, vf, yf, bias_h, bias_t, mask_w, mask_t, regions_w,
    PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, SH0: tl.constexpr, SH1: tl.constexpr, SH2: tl.constexpr,
    S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr, F: tl.constexpr, BF: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, WINDOWED: tl.constexpr, FILLED: tl.constexpr, BIASED: tl.constexpr, MASKED: tl.constexpr,
    REGIONS: tl.constexpr, PRECISION: tl.constexpr, OUT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of queries · heads, windows, batch); bias, mask in units of log 2, filled up to whole
    blocks, with −inf for keys that are not there.

    Scores are kept in base 2, so that exp2 is all that is left of the exponential.
    """
    after_previous(PDL)
    MB = tl.cdiv(TQ, BM)
    pid = tl.program_id(0)
    head = pid // MB
    window = tl.program_id(1)
    n = tl.program_id(2).to(tl.int64)
    rows = (pid % MB) * BM + tl.arange(0, BM)
    f = tl.arange(0, BF)
    f_ok = f < F
    o0 = 0
    o1 = 0
    o2 = 0
    if WINDOWED:
        o2 = (window % G2) * S2 + SH2
        o1 = ((window // G2) % G1) * S1 + SH1
        o0 = (window // (G2 * G1)) * S0 + SH0
    row_ok = rows < TQ
    qi, qj, ql, row_in = places(rows, TQ, o0, o1, o2, D, H, W, PD, PH, PW, S1, S2, WINDOWED)
    q_ptr += n * qn + window.to(tl.int64) * qw + head * qh
    k_ptr += n * kn + window.to(tl.int64) * kw + head * kh
    v_ptr += n * vn + window.to(tl.int64) * vw + head * vh
    y_ptr += n * yn + window.to(tl.int64) * yw + head * yh
    q_ok = row_in[:, None] & f_ok[None, :]
    q = tl.load(spread(q_ptr, qi, qj, ql, qd, qy, qx, f, qf), mask=q_ok, other=0.0)
    if REGIONS:
        row_region = tl.load(regions_ptr + window * regions_w + rows, mask=row_ok, other=-1)
    best = tl.full((BM,), -1.0e30, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BF), tl.float32)
    if FILLED:
        fill_k = tl.load(fill_ptr + (HEADS + head) * F + f, mask=f_ok, other=0.0)
        fill_v = tl.load(fill_ptr + (2 * HEADS + head) * F + f, mask=f_ok, other=0.0)
    for start in range(0, TK, BN):
        cols = start + tl.arange(0, BN)
        col_ok = cols < TK
        ki, kj, kl, inside = places(cols, TK, o0, o1, o2, D, H, W, PD, PH, PW, S1, S2, WINDOWED)
        ok = inside[:, None] & f_ok[None, :]
        k = tl.load(spread(k_ptr, ki, kj, kl, kd, ky, kx, f, kf), mask=ok, other=0.0)
        v = tl.load(spread(v_ptr, ki, kj, kl, vd, vy, vx, f, vf), mask=ok, other=0.0)
        if FILLED:
            k = tl.where(inside[:, None], k, fill_k[None, :].to(k.dtype))
            v = tl.where((inside | (cols >= TK))[:, None], v, fill_v[None, :].to(v.dtype))
        s = tl.dot(q, k.T, input_precision=PRECISION)
        s = s * (scale * _LOG2E)
        if BIASED:
            to = bias_ptr + head * bias_h + rows[:, None] * bias_t + cols[None, :]
            s += tl.load(to).to(tl.float32)
        if MASKED:
            to = mask_ptr + window.to(tl.int64) * mask_w + rows[:, None] * mask_t + cols[None, :]
            s += tl.load(to).to(tl.float32)
        if REGIONS:
            region = tl.load(regions_ptr + window * regions_w + cols, mask=col_ok, other=-1)
            s = tl.where(row_region[:, None] == region[None, :], s, s + apart * _LOG2E)
        if not (BIASED or MASKED):
            s = tl.where(col_ok[None, :], s, -float("inf"))
        top = tl.maximum(best, tl.max(s, 1))
        p = tl.exp2(s - top[:, None])
        shrink = tl.exp2(best - top)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        best = top
    y = acc / total[:, None]
    tl.store(spread(y_ptr, qi, qj, ql, yd, yy, yx, f, yf), y.to(OUT), mask=q_ok)
