"""The kernels round the convolutions: first layer, transposed convolution, head; depthwise convolutions."""

import triton
import triton.language as tl

from wetread.kernels.device.epilogue import (
    activated,
    add_sums,
    after_previous,
    before_product,
    finish,
    narrow,
    read_norm,
)


@triton.jit
def few_input(
    x_ptr, do, ho, wo, row_ok, k, D, H, W, xd, xh, xw, C: tl.constexpr, KD: tl.constexpr, KH: tl.constexpr,
    KW: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PD: tl.constexpr, PH: tl.constexpr,
    PW: tl.constexpr, BORDER: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    """The rows' values for some of K (tap-major, then channels): [rows, k], or [k, rows] with ACROSS."""
    tap = k // C
    if BORDER:
        # rows of K past the last tap have weight zero; they read the first tap
        tap = tl.where(k < KD * KH * KW * C, tap, 0)
        row = (do * SD - PD) * xd + (ho * SH - PH) * xh + (wo * SW - PW) * xw
        step = (tap // (KH * KW)) * xd + ((tap // KW) % KH) * xh + (tap % KW) * xw + k % C
        at = x_ptr + tl.where(row_ok, row, 0)
        if ACROSS:  # rows last: neighbouring lanes read neighbouring voxels
            return tl.load(at[None, :] + step[:, None])
        else:  # noqa: RET505 - the branch not taken must not be compiled
            return tl.load(at[:, None] + step[None, :])
    else:
        d = (do * SD - PD)[:, None] + (tap // (KH * KW))[None, :]
        h = (ho * SH - PH)[:, None] + ((tap // KW) % KH)[None, :]
        w = (wo * SW - PW)[:, None] + (tap % KW)[None, :]
        ok = row_ok[:, None] & (k < KD * KH * KW * C)[None, :]
        ok = ok & (d >= 0) & (d < D) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        return tl.load(x_ptr + d * xd + h * xh + w * xw + (k % C)[None, :], mask=ok, other=0.0)


@triton.jit
def few(
    x_ptr, w_ptr, y_ptr, scale_ptr, bias_ptr, res_ptr, sums_ptr, inverse, rn, rd, rh, rw,
    D, H, W, DO, HO, WO, xn, xd, xh, xw, yn, yd, yh, yw, sums_n, sums_r, CO,
    C: tl.constexpr, KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr,
    SW: tl.constexpr, PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    K: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, OUT: tl.constexpr, SCALED: tl.constexpr,
    BIASED: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, STATS: tl.constexpr,
    REPLICAS: tl.constexpr, BORDER: tl.constexpr, ACROSS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Convolution of few channels: taps and channels together are K, BK of it a step (first layer).

    S and P with an axis are its stride and the zeros before it. With BORDER, x lies in a volume with at least as
    many zero voxels on every side, and nothing is masked but the rows.
    """
    after_previous(PDL)
    NB = tl.cdiv(CO, BN)
    pid = tl.program_id(0)
    n = tl.program_id(1).to(tl.int64)
    rows = (pid // NB) * BM + tl.arange(0, BM)
    cols = (pid % NB) * BN + tl.arange(0, BN)
    cols_ok = cols < CO
    row_ok = rows < DO * HO * WO
    wo = rows % WO
    ho = (rows // WO) % HO
    do = rows // (WO * HO)
    acc = tl.zeros((BM, BN), dtype=ACC)
    for k0 in tl.static_range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        a = few_input(
            x_ptr + n * xn, do, ho, wo, row_ok, k, D, H, W, xd, xh, xw, C, KD, KH, KW, SD, SH, SW, PD, PH, PW, BORDER,
            ACROSS,
        )  # fmt: skip
        # weights [K, CO], rows past the last tap are zero
        if ACROSS:
            b = tl.load(w_ptr + k[None, :] * CO + cols[:, None], mask=cols_ok[:, None], other=0.0)
            acc += tl.dot(b, a.to(b.dtype), out_dtype=ACC).T
        else:
            b = tl.load(w_ptr + k[:, None] * CO + cols[None, :], mask=cols_ok[None, :], other=0.0)
            acc = tl.dot(a.to(b.dtype), b, acc, out_dtype=ACC)
    ok = row_ok[:, None] & cols_ok[None, :]
    res_at = (do * rd + ho * rh + wo * rw)[:, None] + cols[None, :]
    y = finish(
        acc,
        scale_ptr,
        bias_ptr,
        res_ptr + n * rn,
        res_at,
        ok,
        cols,
        cols_ok,
        SCALED,
        BIASED,
        RESIDUAL,
        ACT,
        SLOPE,
    )
    if STATS:
        add_sums((y,), (row_ok,), 1, sums_ptr + (pid // NB) % REPLICAS * sums_r + n * sums_n, cols, cols_ok)
    to = y_ptr + n * yn + (do * yd + ho * yh + wo * yw)[:, None] + cols[None, :]
    tl.store(to, narrow(y, inverse, OUT), mask=ok)


@triton.jit
def depthwise(
    x_ptr, w_ptr, y_ptr, scale_ptr, bias_ptr, res_ptr, sums_ptr, inverse, rn, rd, rh, rw,
    D, H, W, DO, HO, WO, xn, xd, xh, xw, yn, yd, yh, yw, sums_n, sums_r, CO,
    EACH: tl.constexpr, KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr,
    SW: tl.constexpr, LD: tl.constexpr, LH: tl.constexpr, LW: tl.constexpr, PD: tl.constexpr, PH: tl.constexpr,
    PW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, OUT: tl.constexpr, SCALED: tl.constexpr,
    BIASED: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, STATS: tl.constexpr,
    REPLICAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One input channel to each EACH outputs; weights [taps, CO]. No tensor cores: it is bound by memory."""
    after_previous(PDL)
    NB = tl.cdiv(CO, BN)
    pid = tl.program_id(0)
    n = tl.program_id(1).to(tl.int64)
    rows = (pid // NB) * BM + tl.arange(0, BM)
    cols = (pid % NB) * BN + tl.arange(0, BN)
    cols_ok = cols < CO
    row_ok = rows < DO * HO * WO
    wo = rows % WO
    ho = (rows // WO) % HO
    do = rows // (WO * HO)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for tap in range(KD * KH * KW):
        d = do * SD - PD + (tap // (KH * KW)) * LD
        h = ho * SH - PH + ((tap // KW) % KH) * LH
        w = wo * SW - PW + (tap % KW) * LW
        ok = row_ok & (d >= 0) & (d < D) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        at = x_ptr + n * xn + (d * xd + h * xh + w * xw)[:, None] + (cols // EACH)[None, :]
        a = tl.load(at, mask=ok[:, None] & cols_ok[None, :], other=0.0)
        b = tl.load(w_ptr + tap * CO + cols, mask=cols_ok, other=0.0)
        acc += a.to(tl.float32) * b.to(tl.float32)[None, :]
    ok = row_ok[:, None] & cols_ok[None, :]
    res_at = (do * rd + ho * rh + wo * rw)[:, None] + cols[None, :]
    y = finish(
        acc,
        scale_ptr,
        bias_ptr,
        res_ptr + n * rn,
        res_at,
        ok,
        cols,
        cols_ok,
        SCALED,
        BIASED,
        RESIDUAL,
        ACT,
        SLOPE,
    )
    if STATS:
        add_sums((y,), (row_ok,), 1, sums_ptr + (pid // NB) % REPLICAS * sums_r + n * sums_n, cols, cols_ok)
    to = y_ptr + n * yn + (do * yd + ho * yh + wo * yw)[:, None] + cols[None, :]
    tl.store(to, narrow(y, inverse, OUT), mask=ok)


@triton.jit
def up_input(
    at, ks, k_ok, row_ok, m, s, in_inverse, IN: tl.constexpr, NORM: tl.constexpr, IN_ACT: tl.constexpr,
    IN_SLOPE: tl.constexpr,
):  # fmt: skip
    """A tile of the input, normalised and activated where asked, or cast: 8 bits are exact in float16."""
    a = tl.load(at[:, None] + ks[None, :], mask=row_ok[:, None] & k_ok[None, :], other=0.0)
    if NORM:
        z = activated(a.to(tl.float32) * m[None, :] + s[None, :], IN_ACT, IN_SLOPE)
        a = narrow(z, in_inverse, IN)
    return a.to(IN)


@triton.jit
def upconv(
    x_ptr, w_ptr, y_ptr, scale_ptr, bias_ptr, sums_ptr, gamma_ptr, beta_ptr, in_inverse, inverse, eps, voxels,
    D, H, W, xn, xd, xh, xw, yn, yd, yh, yw, sums_n, sums_r,
    C: tl.constexpr, CO: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, KD: tl.constexpr,
    KH: tl.constexpr, TAPS: tl.constexpr, IN: tl.constexpr, ACC: tl.constexpr, OUT: tl.constexpr,
    NORM: tl.constexpr, IN_ACT: tl.constexpr, IN_SLOPE: tl.constexpr, GROUP: tl.constexpr, SCALED: tl.constexpr,
    BIASED: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, HALO: tl.constexpr, DENSE: tl.constexpr,
    REPLICAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Transposed convolution KD×KH×2 with that stride: a product [voxels, C] × [C, taps·CO], stored scattered.

    A program makes TAPS of the KD·KH (kd, kh) of its voxels, each with both kw; where C ≤ BK it loads them
    once. With NORM the input is normalised, activated and cast to IN as it is loaded. DENSE: neighbours along W lie
    one after the other in y, which is no slice of a larger tensor's channels.
    """
    after_previous(PDL)
    NB: tl.constexpr = (2 * CO + BN - 1) // BN
    GROUPS: tl.constexpr = KD * KH // TAPS
    pid = tl.program_id(0)
    n = tl.program_id(1).to(tl.int64)
    rows = (pid // (NB * GROUPS)) * BM + tl.arange(0, BM)
    cols = (pid // GROUPS % NB) * BN + tl.arange(0, BN)
    cols_ok = cols < 2 * CO
    channels = cols % CO
    row_ok = rows < D * H * W
    w = rows % W
    h = (rows // W) % H
    d = rows // (W * H)
    at = x_ptr + n * xn + d * xd + h * xh + w * xw
    base = y_ptr + n * yn + KD * d * yd + KH * h * yh + 2 * w * yw
    place = cols
    if not DENSE:
        place = cols // CO * yw + channels
    ok = row_ok[:, None] & cols_ok[None, :]
    ks = tl.arange(0, BK)
    if C <= BK:
        k_ok = ks < C
        m, s = in_inverse, in_inverse
        if NORM:
            m, s = read_norm(
                sums_ptr + n * sums_n, gamma_ptr, beta_ptr, ks, k_ok, sums_r, voxels, eps, BK, REPLICAS, GROUP
            )
        a = up_input(at, ks, k_ok, row_ok, m, s, in_inverse, IN, NORM, IN_ACT, IN_SLOPE)
    for t in range(TAPS):
        tap = pid % GROUPS * TAPS + t
        wt = w_ptr + (tap * 2 * CO + cols)[None, :] * C
        if C <= BK:
            b = tl.load(wt + ks[:, None], mask=cols_ok[None, :] & (ks < C)[:, None], other=0.0)
            before_product(t, PDL)
            acc = tl.dot(a, b, out_dtype=ACC)
        else:
            acc = tl.zeros((BM, BN), dtype=ACC)
            for k0 in range(0, C, BK):
                kk = k0 + ks
                k_ok = kk < C
                m, s = in_inverse, in_inverse
                if NORM:
                    m, s = read_norm(
                        sums_ptr + n * sums_n, gamma_ptr, beta_ptr, kk, k_ok, sums_r, voxels, eps, BK, REPLICAS,
                        GROUP,
                    )  # fmt: skip
                a = up_input(at, kk, k_ok, row_ok, m, s, in_inverse, IN, NORM, IN_ACT, IN_SLOPE)
                b = tl.load(wt + kk[:, None], mask=cols_ok[None, :] & k_ok[:, None], other=0.0)
                before_product(k0, PDL)
                acc = tl.dot(a, b, acc, out_dtype=ACC)
        y = finish(
            acc, scale_ptr, bias_ptr, bias_ptr, channels[None, :], ok, channels, cols_ok, SCALED, BIASED, False, ACT,
            SLOPE,
        )  # fmt: skip
        # the outputs 2w and 2w + 1 may lie one after the other: 2·CO values in a row
        to = base[:, None] + ((tap // KH) * yd + (tap % KH) * yh) + place[None, :]
        tl.store(to, narrow(y, inverse, OUT), mask=ok)
        if HALO:
            # the zero voxels at both ends of W belong to whoever wrote their neighbours
            left = cols < CO
            edge = tl.where(left[None, :], (w == 0)[:, None], (w == W - 1)[:, None])
            zero = tl.zeros((BM, BN), dtype=OUT)
            tl.store(to + tl.where(left, -CO, CO)[None, :], zero, mask=ok & edge)


@triton.jit
def head(
    x_ptr, w_ptr, scale_ptr, bias_ptr, sums_ptr, gamma_ptr, beta_ptr, y_ptr, patch_ptr, in_inverse, eps, voxels,
    D, H, W, xn, xd, xh, xw, yk, yd, yh, yw, yn, sums_n, sums_r,
    C: tl.constexpr, BC: tl.constexpr, K: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, IN: tl.constexpr,
    ACC: tl.constexpr, NORM: tl.constexpr, IN_ACT: tl.constexpr, IN_SLOPE: tl.constexpr, GROUP: tl.constexpr,
    SCALED: tl.constexpr, BIASED: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, SOFTMAX: tl.constexpr,
    ADD: tl.constexpr, REPLICAS: tl.constexpr, LOOP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Normalise, activate, 1×1×1 convolution to K classes; activation or softmax; adding into a volume."""
    after_previous(PDL)
    n = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, BC)
    c_ok = c < C
    k = tl.arange(0, BK)
    k_ok = k < K
    m, s = in_inverse, in_inverse
    if NORM:
        m, s = read_norm(
            sums_ptr + n * sums_n, gamma_ptr, beta_ptr, c, c_ok, sums_r, voxels, eps, BC, REPLICAS, GROUP
        )
    # weights [C, BK], columns past the last class are zero
    b = tl.load(w_ptr + c[:, None] * BK + k[None, :], mask=c_ok[:, None], other=0.0)
    for i in range(LOOP):
        rows = (tl.program_id(0) * LOOP + i) * BM + tl.arange(0, BM)
        row_ok = rows < D * H * W
        w = rows % W
        h = (rows // W) % H
        d = rows // (W * H)
        at = x_ptr + n * xn + d * xd + h * xh + w * xw
        a = up_input(at, c, c_ok, row_ok, m, s, in_inverse, IN, NORM, IN_ACT, IN_SLOPE)
        ok = row_ok[:, None] & k_ok[None, :]
        before_product(i, PDL)
        acc = tl.dot(a, b, out_dtype=ACC)
        y = finish(
            acc, scale_ptr, bias_ptr, bias_ptr, k[None, :], ok, k, k_ok, SCALED, BIASED, False, ACT, SLOPE
        )
        if SOFTMAX:
            y = tl.where(k_ok[None, :], y, float("-inf"))
            e = tl.exp(y - tl.max(y, 1)[:, None])
            y = e / tl.sum(e, 1)[:, None]
        to = y_ptr + n * yn + (d * yd + h * yh + w * yw)[:, None] + (k * yk)[None, :]
        if ADD:
            weight = tl.load(patch_ptr + rows, mask=row_ok, other=0.0).to(tl.float32)
            y = tl.load(to, mask=ok, other=0.0).to(tl.float32) + y * weight[:, None]
        tl.store(to, y.to(y_ptr.dtype.element_ty), mask=ok)
