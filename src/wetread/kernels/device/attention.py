"""Attention of heads, whole or in shifted windows, with online softmax (Dao et al. 2022)."""

import triton
import triton.language as tl

from wetread.kernels.device.epilogue import after_previous

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def token_offsets(
    t, o0, o1, o2, D, H, W, sd, sh, sw,
    PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr,
    WINDOWED: tl.constexpr,
):  # fmt: skip
    """Where tokens lie, and whether in the map. (o0, o1, o2) is where the window begins, the shift added.

    Whole attention has its tokens along w alone.
    """
    if WINDOWED:
        d = o0 + t // (S1 * S2)
        h = o1 + (t // S2) % S1
        w = o2 + t % S2
        d = tl.where(d >= PD, d - PD, d)
        h = tl.where(h >= PH, h - PH, h)
        w = tl.where(w >= PW, w - PW, w)
        return d.to(tl.int64) * sd + h * sh + w * sw, (d < D) & (h < H) & (w < W)
    return t.to(tl.int64) * sw, t < W


@triton.jit
def attention(
    q_ptr, k_ptr, v_ptr, y_ptr, fill_ptr, bias_ptr, mask_ptr, regions_ptr, scale, apart, TQ, TK, HEADS, G1, G2,
    qw, kw, vw, yw, D, H, W, qn, qh, qd, qy, qx, kn, kh, kd, ky, kx, vn, vh, vd, vy, vx, yn, yh, yd, yy, yx,
    qf, kf, vf, yf, bias_h, bias_t, mask_w, mask_t, regions_w,
    PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, SH0: tl.constexpr, SH1: tl.constexpr, SH2: tl.constexpr,
    S0: tl.constexpr, S1: tl.constexpr, S2: tl.constexpr, F: tl.constexpr, BF: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, WINDOWED: tl.constexpr, FILLED: tl.constexpr, BIASED: tl.constexpr, MASKED: tl.constexpr,
    REGIONS: tl.constexpr, IEEE: tl.constexpr, OUT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of queries · heads, windows, batch); bias, mask in units of log 2, rows padded to blocks of keys.

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
    at, inside = token_offsets(
        rows, o0, o1, o2, D, H, TQ if not WINDOWED else W, qd, qy, qx, PD, PH, PW, S1, S2, WINDOWED
    )
    row_ok = rows < TQ
    q = tl.load(
        q_ptr + n * qn + window.to(tl.int64) * qw + head * qh + at[:, None] + (f * qf)[None, :],
        mask=(row_ok & inside)[:, None] & f_ok[None, :], other=0.0,
    )  # fmt: skip
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
        at, inside = token_offsets(
            cols, o0, o1, o2, D, H, TK if not WINDOWED else W, kd, ky, kx, PD, PH, PW, S1, S2, WINDOWED
        )
        inside = inside & col_ok
        k = tl.load(
            k_ptr + n * kn + window.to(tl.int64) * kw + head * kh + at[:, None] + (f * kf)[None, :],
            mask=inside[:, None] & f_ok[None, :], other=0.0,
        )  # fmt: skip
        at, _ = token_offsets(
            cols, o0, o1, o2, D, H, TK if not WINDOWED else W, vd, vy, vx, PD, PH, PW, S1, S2, WINDOWED
        )
        v = tl.load(
            v_ptr + n * vn + window.to(tl.int64) * vw + head * vh + at[:, None] + (f * vf)[None, :],
            mask=inside[:, None] & f_ok[None, :], other=0.0,
        )  # fmt: skip
        if FILLED:
            k = tl.where(inside[:, None], k, fill_k[None, :].to(k.dtype))
            v = tl.where((inside | (cols >= TK))[:, None], v, fill_v[None, :].to(v.dtype))
        if IEEE:
            s = tl.dot(q, k.T, input_precision="ieee")
        else:
            s = tl.dot(q, k.T)
        s = s * (scale * _LOG2E)
        if BIASED:
            to = bias_ptr + head * bias_h + rows[:, None] * bias_t + cols[None, :]
            s += tl.load(to, mask=row_ok[:, None], other=0.0).to(tl.float32)
        if MASKED:
            to = mask_ptr + window.to(tl.int64) * mask_w + rows[:, None] * mask_t + cols[None, :]
            s += tl.load(to, mask=row_ok[:, None], other=0.0).to(tl.float32)
        if REGIONS:
            region = tl.load(regions_ptr + window * regions_w + cols, mask=col_ok, other=-1)
            s += tl.where(row_region[:, None] == region[None, :], 0.0, apart * _LOG2E)
        s = tl.where(col_ok[None, :], s, -float("inf"))
        top = tl.maximum(best, tl.max(s, 1))
        p = tl.exp2(s - top[:, None])
        shrink = tl.exp2(best - top)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None]
        if IEEE:
            acc = tl.dot(p, v, acc, input_precision="ieee")
        else:
            acc = tl.dot(p.to(v.dtype), v, acc)
        best = top
    y = acc / total[:, None]
    at, inside = token_offsets(
        rows, o0, o1, o2, D, H, TQ if not WINDOWED else W, yd, yy, yx, PD, PH, PW, S1, S2, WINDOWED
    )
    tl.store(
        y_ptr + n * yn + window.to(tl.int64) * yw + head * yh + at[:, None] + (f * yf)[None, :], y.to(OUT),
        mask=(row_ok & inside)[:, None] & f_ok[None, :],
    )  # fmt: skip
