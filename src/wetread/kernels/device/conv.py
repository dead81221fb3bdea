"""Three-dimensional convolutions, channels last, as implicit matrix products.

Five families compute the same function and differ in how activations reach the tensor cores:

gather   pointers with masks: any kernel, stride, dilation and size, any number of channels
taps     one descriptor load for each tap: stride 1, any kernel, dilation and pads
strided  taps at stride 2 along H and W of even sizes: one of two neighbours along each is a coordinate of its own
planes   accumulators for TD planes; a loaded plane feeds its three depth taps
pairs    planes, and two neighbours along W as one row (K = 4·C, N = 2·CO)

Descriptors return zero outside the tensor, which is the padding; stores outside are dropped.
"""

import triton
import triton.language as tl

from wetread.kernels.device.epilogue import add_sums, after_previous, before_product, finish, narrow, put


@triton.jit
def signed(a, UNSIGNED: tl.constexpr):
    """Values 0..255 in the bits of int8 as value − 128; padding too, so that each output is off by 128·Σw."""
    return a ^ tl.full((1, 1), -128, tl.int8) if UNSIGNED else a


@triton.jit
def gather_steps(
    acc, x_ptr, w_ptr, base, d0, h0, w0, row_ok, lo, hi, D, H, W, xd, xh, xw, cols, cols_ok, CO,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, LD: tl.constexpr, LH: tl.constexpr, LW: tl.constexpr,
    BK: tl.constexpr, UNSIGNED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Adds the steps lo..hi (tap-major, then blocks of channels) of one input."""
    NK: tl.constexpr = (C + BK - 1) // BK
    k = tl.arange(0, BK)
    for it in range(lo, hi):
        tap = it // NK
        ks = (it % NK) * BK + k
        d = d0 + (tap // (KH * KW)) * LD
        h = h0 + ((tap // KW) % KH) * LH
        w = w0 + (tap % KW) * LW
        ok = row_ok & (d >= 0) & (d < D) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        at = base + d * xd + h * xh + w * xw
        if C % BK == 0:
            a = tl.load(x_ptr + at[:, None] + ks[None, :], mask=ok[:, None], other=0.0)
            b = tl.load(
                w_ptr + (tap * CO + cols)[None, :] * C + ks[:, None], mask=cols_ok[None, :], other=0.0
            )
        else:
            k_ok = ks < C
            a = tl.load(x_ptr + at[:, None] + ks[None, :], mask=ok[:, None] & k_ok[None, :], other=0.0)
            b = tl.load(
                w_ptr + (tap * CO + cols)[None, :] * C + ks[:, None],
                mask=cols_ok[None, :] & k_ok[:, None],
                other=0.0,
            )
        before_product(it, PDL)
        acc = tl.dot(signed(a, UNSIGNED), b, acc, out_dtype=acc.dtype)
    return acc


@triton.jit
def gather(
    x0_ptr, x1_ptr, w0_ptr, w1_ptr, y_ptr, scale_ptr, bias_ptr, res_ptr, sums_ptr, inverse, rn, rd, rh, rw,
    D, H, W, DO, HO, WO, x0n, x0d, x0h, x0w, x1n, x1d, x1h, x1w, yn, yd, yh, yw, part, sums_n, sums_r, CO,
    C0: tl.constexpr, C1: tl.constexpr, KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, LD: tl.constexpr, LH: tl.constexpr, LW: tl.constexpr,
    PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ACC: tl.constexpr, OUT: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr, RESIDUAL: tl.constexpr,
    ACT: tl.constexpr, SLOPE: tl.constexpr, STATS: tl.constexpr, REPLICAS: tl.constexpr, SPLITS: tl.constexpr,
    UNSIGNED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows of a tile are voxels in storage order; grid (blocks of CO · tiles, batch, splits of K).

    S, L and P with an axis are its stride, dilation and zeros before it.
    """
    after_previous(PDL)
    NB = tl.cdiv(CO, BN)
    pid = tl.program_id(0)
    n = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    rows = (pid // NB) * BM + tl.arange(0, BM)
    cols = (pid % NB) * BN + tl.arange(0, BN)
    cols_ok = cols < CO
    row_ok = rows < DO * HO * WO
    wo = rows % WO
    ho = (rows // WO) % HO
    do = rows // (WO * HO)
    taps: tl.constexpr = KD * KH * KW
    n0: tl.constexpr = taps * ((C0 + BK - 1) // BK)
    n1: tl.constexpr = taps * ((C1 + BK - 1) // BK)
    lo = split * (n0 + n1) // SPLITS
    hi = (split + 1) * (n0 + n1) // SPLITS
    d0 = do * SD - PD
    h0 = ho * SH - PH
    w0 = wo * SW - PW
    zero = tl.zeros((BM,), tl.int32)
    acc = tl.zeros((BM, BN), dtype=ACC)
    acc = gather_steps(
        acc, x0_ptr + n * x0n, w0_ptr, zero, d0, h0, w0, row_ok, lo, tl.minimum(hi, n0), D, H, W, x0d, x0h, x0w,
        cols, cols_ok, CO, C0, KH, KW, LD, LH, LW, BK, UNSIGNED, PDL,
    )  # fmt: skip
    if C1 > 0:
        tl.debug_barrier()
        acc = gather_steps(
            acc, x1_ptr + n * x1n, w1_ptr, zero, d0, h0, w0, row_ok, tl.maximum(lo - n0, 0), hi - n0, D, H, W,
            x1d, x1h, x1w, cols, cols_ok, CO, C1, KH, KW, LD, LH, LW, BK, UNSIGNED, PDL,
        )  # fmt: skip
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
        at = sums_ptr + (pid // NB) % REPLICAS * sums_r + n * sums_n
        add_sums((y,), (row_ok,), 1, at, cols, cols_ok)
    offset = do * yd + ho * yh + wo * yw
    to = y_ptr + split.to(tl.int64) * part + n * yn + offset[:, None] + cols[None, :]
    tl.store(to, narrow(y, inverse, OUT), mask=ok)


@triton.jit
def taps_steps(
    acc, x_desc, w_desc, n, d0, h0, w0, c0, lo, hi, C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    LD: tl.constexpr, LH: tl.constexpr, LW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    UNSIGNED: tl.constexpr,
):  # fmt: skip
    NK: tl.constexpr = (C + BK - 1) // BK
    for it in range(lo, hi):
        tap = it // NK
        kc = (it % NK) * BK
        d = d0 + tap // (KH * KW) * LD
        h = h0 + (tap // KW) % KH * LH
        w = w0 + tap % KW * LW
        a = x_desc.load([n, d, h, w, kc]).reshape(BM, BK)
        b = w_desc.load([tap, c0, kc]).reshape(BN, BK)
        acc = tl.dot(signed(a, UNSIGNED), b.T, acc, out_dtype=acc.dtype)
    return acc


@triton.jit
def taps(
    x0_desc, x1_desc, w0_desc, w1_desc, y_desc, scale_ptr, bias_ptr, res_ptr, sums_ptr, inverse, rn, rd, rh, rw,
    D, H, W, sums_n, sums_r, CO, part,
    C0: tl.constexpr, C1: tl.constexpr, TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, LD: tl.constexpr, LH: tl.constexpr, LW: tl.constexpr,
    PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, OUT: tl.constexpr, SCALED: tl.constexpr,
    BIASED: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, STATS: tl.constexpr,
    REPLICAS: tl.constexpr, SPLITS: tl.constexpr, UNSIGNED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Stride 1: one load a tap. D, H, W are of the output; with splits y is [SPLITS·N, D, H, W, CO] of float32.

    L and P with an axis are its dilation and the zeros before it.
    """
    after_previous(PDL)
    NB = tl.cdiv(CO, BN)
    pid = tl.program_id(0)
    n = tl.program_id(1)
    split = tl.program_id(2)
    c0 = (pid % NB) * BN
    tile = pid // NB
    nw = tl.cdiv(W, TW)
    nh = tl.cdiv(H, TH)
    w0 = (tile % nw) * TW
    h0 = ((tile // nw) % nh) * TH
    d0 = (tile // (nw * nh)) * TD
    BM: tl.constexpr = TD * TH * TW
    n0: tl.constexpr = KD * KH * KW * ((C0 + BK - 1) // BK)
    n1: tl.constexpr = KD * KH * KW * ((C1 + BK - 1) // BK)
    di = d0 - PD
    hi = h0 - PH
    wi = w0 - PW
    acc = tl.zeros((BM, BN), dtype=ACC)
    if SPLITS == 1:
        acc = taps_steps(
            acc, x0_desc, w0_desc, n, di, hi, wi, c0, 0, n0, C0, KH, KW, LD, LH, LW, BM, BN, BK, UNSIGNED
        )
        if C1 > 0:
            tl.debug_barrier()  # all warps leave one loop before the loads of the next go where it read
            acc = taps_steps(
                acc,
                x1_desc,
                w1_desc,
                n,
                di,
                hi,
                wi,
                c0,
                0,
                n1,
                C1,
                KH,
                KW,
                LD,
                LH,
                LW,
                BM,
                BN,
                BK,
                UNSIGNED,
            )
    else:
        first = split * (n0 + n1) // SPLITS
        end = (split + 1) * (n0 + n1) // SPLITS
        acc = taps_steps(
            acc, x0_desc, w0_desc, n, di, hi, wi, c0, first, tl.minimum(end, n0), C0, KH, KW, LD, LH, LW, BM, BN, BK,
            UNSIGNED,
        )  # fmt: skip
        if C1 > 0:
            tl.debug_barrier()  # all warps leave one loop before the loads of the next go where it read
            first = tl.maximum(first - n0, 0)
            acc = taps_steps(
                acc,
                x1_desc,
                w1_desc,
                n,
                di,
                hi,
                wi,
                c0,
                first,
                end - n0,
                C1,
                KH,
                KW,
                LD,
                LH,
                LW,
                BM,
                BN,
                BK,
                UNSIGNED,
            )
    cols = c0 + tl.arange(0, BN)
    cols_ok = cols < CO
    r = tl.arange(0, BM)
    d = d0 + r // (TH * TW)
    h = h0 + (r // TW) % TH
    w = w0 + r % TW
    ok = (d < D) & (h < H) & (w < W)
    res = res_ptr + n.to(tl.int64) * rn
    res_at = (d * rd + h * rh + w * rw)[:, None] + cols[None, :]
    y = finish(
        acc, scale_ptr, bias_ptr, res, res_at, ok[:, None] & cols_ok[None, :], cols, cols_ok, SCALED, BIASED,
        RESIDUAL, ACT, SLOPE,
    )  # fmt: skip
    if STATS:
        at = sums_ptr + tile % REPLICAS * sums_r + n.to(tl.int64) * sums_n
        add_sums((y,), (ok,), 1, at, cols, cols_ok)
    y_desc.store([split * part + n, d0, h0, w0, c0], narrow(y, inverse, OUT).reshape(1, TD, TH, TW, BN))


@triton.jit
def strided(
    x_desc, w_desc, y_desc, scale_ptr, bias_ptr, res_ptr, sums_ptr, inverse, rn, rd, rh, rw,
    DI, D, H, W, sums_n, sums_r, CO, part,
    C: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, SD: tl.constexpr,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, LD: tl.constexpr, LH: tl.constexpr, LW: tl.constexpr,
    PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, OUT: tl.constexpr, SCALED: tl.constexpr,
    BIASED: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, STATS: tl.constexpr,
    REPLICAS: tl.constexpr, SPLITS: tl.constexpr, UNSIGNED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Stride SD along D, 2 along H and W. x is [N·DI, H, 2, W, 2·C] for outputs of H, W; BK divides C.

    L and P with an axis are its dilation and the zeros before it; with splits y is as in taps.
    """
    after_previous(PDL)
    NB = tl.cdiv(CO, BN)
    pid = tl.program_id(0)
    n = tl.program_id(1)
    split = tl.program_id(2)
    c0 = (pid % NB) * BN
    tile = pid // NB
    nw = tl.cdiv(W, TW)
    nh = tl.cdiv(H, TH)
    w0 = (tile % nw) * TW
    h0 = ((tile // nw) % nh) * TH
    d0 = tile // (nw * nh)
    BM: tl.constexpr = TH * TW
    NK: tl.constexpr = C // BK
    steps: tl.constexpr = KD * KH * KW * NK
    acc = tl.zeros((BM, BN), dtype=ACC)
    for it in range(split * steps // SPLITS, (split + 1) * steps // SPLITS):
        tap = it // NK
        kc = (it % NK) * BK
        d = d0 * SD - PD + tap // (KH * KW) * LD
        h = (tap // KW) % KH * LH - PH
        w = tap % KW * LW - PW
        # a plane before or after the window's own reads zero, not the neighbouring window
        plane = tl.where((d >= 0) & (d < DI), n * DI + d, -1)
        a = x_desc.load([plane, h0 + (h >> 1), h & 1, w0 + (w >> 1), (w & 1) * C + kc]).reshape(BM, BK)
        b = w_desc.load([tap, c0, kc]).reshape(BN, BK)
        acc = tl.dot(signed(a, UNSIGNED), b.T, acc, out_dtype=acc.dtype)
    cols = c0 + tl.arange(0, BN)
    cols_ok = cols < CO
    r = tl.arange(0, BM)
    h = h0 + r // TW
    w = w0 + r % TW
    ok = (h < H) & (w < W)
    res = res_ptr + n.to(tl.int64) * rn
    res_at = (d0 * rd + h * rh + w * rw)[:, None] + cols[None, :]
    y = finish(
        acc, scale_ptr, bias_ptr, res, res_at, ok[:, None] & cols_ok[None, :], cols, cols_ok, SCALED, BIASED,
        RESIDUAL, ACT, SLOPE,
    )  # fmt: skip
    if STATS:
        at = sums_ptr + tile % REPLICAS * sums_r + n.to(tl.int64) * sums_n
        add_sums((y,), (ok,), 1, at, cols, cols_ok)
    y_desc.store([split * part + n, d0, h0, w0, c0], narrow(y, inverse, OUT).reshape(1, 1, TH, TW, BN))


@triton.jit
def planes_steps(accs, x_desc, w_desc, n, d0, h0, w0, c0, steps, NK: tl.constexpr, KW: tl.constexpr,
                 SHIFT: tl.constexpr, LD: tl.constexpr, LH: tl.constexpr, LW: tl.constexpr,
                 TD: tl.constexpr, M: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr,
                 UNSIGNED: tl.constexpr):  # fmt: skip
    """Adds all taps of one input: KW loads along W (3, or 1 where a row holds its neighbours)."""
    for it in range(steps):
        tap = it // NK
        kc = (it % NK) * BK
        kh = tap // KW
        kw = tap % KW
        ws = ()
        for kd in tl.static_range(3):
            ws = ws + (w_desc.load([kd * 3 * KW + tap, c0, kc]).reshape(BN, BK).T,)
        for p in tl.static_range(TD + 2):
            a = x_desc.load([n, d0 + (p - 1) * LD, h0 + (kh - 1) * LH, w0 + (kw - SHIFT) * LW, kc]).reshape(
                M, BK
            )
            a = signed(a, UNSIGNED)
            for kd in tl.static_range(3):
                if p - kd >= 0 and p - kd < TD:
                    accs = put(accs, p - kd, tl.dot(a, ws[kd], accs[p - kd], out_dtype=ACC))
    return accs


@triton.jit
def planes(
    x0_desc, x1_desc, w0_desc, w1_desc, y_desc, scale_ptr, bias_ptr, res_ptr, sums_ptr, inverse, rn, rd, rh, rw,
    D, H, W, sums_n, sums_r, CO,
    C0: tl.constexpr, C1: tl.constexpr, TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr, OUT: tl.constexpr, SCALED: tl.constexpr,
    BIASED: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, STATS: tl.constexpr,
    REPLICAS: tl.constexpr, PAIRS: tl.constexpr, LD: tl.constexpr, LH: tl.constexpr,
    LW: tl.constexpr, UNSIGNED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """3×3×3, stride 1, pads as dilation. With PAIRS a row is two neighbours along W: W counts pairs, CO is doubled.

    L with an axis is its dilation: a program's planes lie LD apart, so that each loaded one feeds three of them.
    """
    after_previous(PDL)
    NB = tl.cdiv(CO, BN)
    pid = tl.program_id(0)
    n = tl.program_id(1)
    c0 = (pid % NB) * BN
    tile = pid // NB
    nw = tl.cdiv(W, TW)
    nh = tl.cdiv(H, TH)
    w0 = (tile % nw) * TW
    h0 = ((tile // nw) % nh) * TH
    planes_at = tile // (nw * nh)
    d0 = planes_at // LD * (TD * LD) + planes_at % LD
    M: tl.constexpr = TH * TW
    KW: tl.constexpr = 1 if PAIRS else 3
    SHIFT: tl.constexpr = 0 if PAIRS else 1
    NK0: tl.constexpr = (C0 + BK - 1) // BK
    NK1: tl.constexpr = (C1 + BK - 1) // BK
    accs = ()
    for _ in tl.static_range(TD):
        accs = accs + (tl.zeros((M, BN), dtype=ACC),)
    accs = planes_steps(
        accs, x0_desc, w0_desc, n, d0, h0, w0, c0, 3 * KW * NK0, NK0, KW, SHIFT, LD, LH, LW, TD, M, BN, BK, ACC,
        UNSIGNED,
    )  # fmt: skip
    if C1 > 0:
        tl.debug_barrier()  # all warps leave one loop before the loads of the next go where it read
        accs = planes_steps(
            accs, x1_desc, w1_desc, n, d0, h0, w0, c0, 3 * KW * NK1, NK1, KW, SHIFT, LD, LH, LW, TD, M, BN, BK, ACC,
            UNSIGNED,
        )  # fmt: skip
    cols = c0 + tl.arange(0, BN)
    cols_ok = cols < CO
    channels = cols % (CO // 2) if PAIRS else cols
    r = tl.arange(0, M)
    inside = (h0 + r // TW < H) & (w0 + r % TW < W)
    at = sums_ptr + tile % REPLICAS * sums_r + n.to(tl.int64) * sums_n
    res = res_ptr + n.to(tl.int64) * rn
    if PAIRS:
        res_at = ((h0 + r // TW) * rh)[:, None] + (
            2 * (w0 + r % TW)[:, None] + cols[None, :] // (CO // 2)
        ) * rw
    else:
        res_at = ((h0 + r // TW) * rh + (w0 + r % TW) * rw)[:, None]
    res_at = res_at + channels[None, :]
    ys = ()
    oks = ()
    for o in tl.static_range(TD):
        ok = inside & (d0 + o * LD < D)
        y = finish(
            accs[o], scale_ptr, bias_ptr, res, res_at + (d0 + o * LD) * rd, ok[:, None] & cols_ok[None, :], channels,
            cols_ok, SCALED, BIASED, RESIDUAL, ACT, SLOPE,
        )  # fmt: skip
        ys = ys + (y,)
        oks = oks + (ok,)
    if STATS:
        add_sums(ys, oks, TD, at, channels, cols_ok)
    for o in tl.static_range(TD):
        y_desc.store([n, d0 + o * LD, h0, w0, c0], narrow(ys[o], inverse, OUT).reshape(1, 1, TH, TW, BN))
