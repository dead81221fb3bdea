"""The kernels round the convolutions: first layer, norms, transposed convolution, head."""

import triton
import triton.language as tl

from wetread.kernels.device.epilogue import add_sums, after_previous, finish, narrow, read_norm


@triton.jit
def few(
    x_ptr, w_ptr, y_ptr, scale_ptr, bias_ptr, sums_ptr, inverse,
    D, H, W, DO, HO, WO, xn, xd, xh, xw, yn, yd, yh, yw, sums_n, sums_r, CO,
    C: tl.constexpr, KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, S: tl.constexpr, PAD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, OUT: tl.constexpr, BIASED: tl.constexpr,
    SLOPE: tl.constexpr, STATS: tl.constexpr, REPLICAS: tl.constexpr, BORDER: tl.constexpr,
    ACROSS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Convolution of few channels: all taps and channels at once as one K of BK (first layer).

    With BORDER, x lies in a volume with PAD zero voxels on every side, and nothing is masked but the rows.
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
    k = tl.arange(0, BK)
    tap = k // C
    if BORDER:
        # rows of K past the last tap have weight zero; they read the first tap
        tap = tl.where(k < KD * KH * KW * C, tap, 0)
        row = (do * S - PAD) * xd + (ho * S - PAD) * xh + (wo * S - PAD) * xw
        step = (tap // (KH * KW)) * xd + ((tap // KW) % KH) * xh + (tap % KW) * xw + k % C
        at = x_ptr + n * xn + tl.where(row_ok, row, 0)
        if ACROSS:  # rows last: neighbouring lanes read neighbouring voxels
            a = tl.load(at[None, :] + step[:, None])
        else:
            a = tl.load(at[:, None] + step[None, :])
    else:
        d = (do * S - PAD)[:, None] + (tap // (KH * KW))[None, :]
        h = (ho * S - PAD)[:, None] + ((tap // KW) % KH)[None, :]
        w = (wo * S - PAD)[:, None] + (tap % KW)[None, :]
        ok = row_ok[:, None] & (k < KD * KH * KW * C)[None, :]
        ok = ok & (d >= 0) & (d < D) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        a = tl.load(x_ptr + n * xn + d * xd + h * xh + w * xw + (k % C)[None, :], mask=ok, other=0.0)
    # weights [BK, CO], rows past the last tap are zero
    if ACROSS:
        b = tl.load(w_ptr + k[None, :] * CO + cols[:, None], mask=cols_ok[:, None], other=0.0)
        acc = tl.dot(b, a.to(b.dtype)).T
    else:
        b = tl.load(w_ptr + k[:, None] * CO + cols[None, :], mask=cols_ok[None, :], other=0.0)
        acc = tl.dot(a.to(b.dtype), b)
    y = finish(acc, scale_ptr, bias_ptr, cols, cols_ok, False, BIASED, SLOPE)
    if STATS:
        add_sums((y,), (row_ok,), 1, sums_ptr + (pid // NB) % REPLICAS * sums_r + n * sums_n, cols, cols_ok)
    to = y_ptr + n * yn + (do * yd + ho * yh + wo * yw)[:, None] + cols[None, :]
    tl.store(to, narrow(y, inverse, OUT), mask=row_ok[:, None] & cols_ok[None, :])


@triton.jit
def norm_apply(
    x_ptr, y_ptr, sums_ptr, gamma_ptr, beta_ptr, inverse, eps, voxels,
    W, ROWS, xn, xr, xw, yn, yr, yw, sums_n, sums_r, C,
    HALO: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr, OUT: tl.constexpr, SLOPE: tl.constexpr,
    REPLICAS: tl.constexpr, LOOP: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Normalise, leaky ReLU, quantise. y's rows (all W of one d, h) may have a zero voxel at both ends."""
    after_previous(PDL)
    n = tl.program_id(1).to(tl.int64)
    cols = tl.program_id(2) * BC + tl.arange(0, BC)
    cols_ok = cols < C
    a, b = read_norm(sums_ptr + n * sums_n, gamma_ptr, beta_ptr, cols, cols_ok, sums_r, voxels, eps, REPLICAS)
    WP = W + 2 * HALO
    for i in range(LOOP):
        v = (tl.program_id(0) * LOOP + i) * BV + tl.arange(0, BV)
        row = v // WP
        w = v % WP - HALO
        ok = row < ROWS
        inside = ok & (w >= 0) & (w < W)
        x = tl.load(
            x_ptr + n * xn + (row.to(tl.int64) * xr + w * xw)[:, None] + cols[None, :],
            mask=inside[:, None] & cols_ok[None, :],
            other=0.0,
        ).to(tl.float32)
        y = x * a[None, :] + b[None, :]
        if SLOPE != 1.0:
            y = tl.where(y > 0, y, y * SLOPE)
        if HALO > 0:
            y = tl.where(inside[:, None], y, 0.0)
        to = y_ptr + n * yn + (row.to(tl.int64) * yr + w * yw)[:, None] + cols[None, :]
        tl.store(to, narrow(y, inverse, OUT), mask=ok[:, None] & cols_ok[None, :])


@triton.jit
def norm_reduce(
    p_ptr, y_ptr, gamma_ptr, beta_ptr, inverse, eps, V, W, part, pn, yn, yr, yw, C,
    SPLITS: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr, OUT: tl.constexpr, SLOPE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Adds the parts of a split product [SPLITS, N, V, C], then normalises: a whole small volume at once."""
    after_previous(PDL)
    n = tl.program_id(1).to(tl.int64)
    cols = tl.program_id(0) * BC + tl.arange(0, BC)
    v = tl.arange(0, BV)
    v_ok = v < V
    ok = v_ok[:, None] & (cols < C)[None, :]
    at = p_ptr + n * pn + v[:, None] * C + cols[None, :]
    x = tl.load(at, mask=ok, other=0.0).to(tl.float32)
    for s in tl.static_range(1, SPLITS):
        x += tl.load(at + s * part, mask=ok, other=0.0).to(tl.float32)
    mean = tl.sum(x, 0) / V
    about = tl.where(v_ok[:, None], x - mean[None, :], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(about * about, 0) / V + eps)
    a = rstd * tl.load(gamma_ptr + cols, mask=cols < C, other=0.0)
    b = tl.load(beta_ptr + cols, mask=cols < C, other=0.0)
    y = about * a[None, :] + b[None, :]
    if SLOPE != 1.0:
        y = tl.where(y > 0, y, y * SLOPE)
    to = y_ptr + n * yn + ((v // W) * yr + (v % W) * yw)[:, None] + cols[None, :]
    tl.store(to, narrow(y, inverse, OUT), mask=ok)


@triton.jit
def up_input(
    at, ks, k_ok, row_ok, m, s, in_inverse, IN: tl.constexpr, NORM: tl.constexpr, IN_SLOPE: tl.constexpr
):
    """A tile of the input, normalised and activated where asked."""
    a = tl.load(at[:, None] + ks[None, :], mask=row_ok[:, None] & k_ok[None, :], other=0.0)
    if NORM:
        z = a.to(tl.float32) * m[None, :] + s[None, :]
        if IN_SLOPE != 1.0:
            z = tl.where(z > 0, z, z * IN_SLOPE)
        a = narrow(z, in_inverse, IN)
    return a


@triton.jit
def upconv(
    x_ptr, w_ptr, y_ptr, scale_ptr, bias_ptr, sums_ptr, gamma_ptr, beta_ptr, in_inverse, inverse, eps, voxels,
    D, H, W, xn, xd, xh, xw, yn, yd, yh, yw, sums_n, sums_r,
    C: tl.constexpr, CO: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, TAPS: tl.constexpr,
    IN: tl.constexpr, ACC: tl.constexpr, OUT: tl.constexpr, NORM: tl.constexpr, IN_SLOPE: tl.constexpr,
    SCALED: tl.constexpr, BIASED: tl.constexpr, HALO: tl.constexpr, REPLICAS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Transposed convolution 2×2×2, stride 2: a product [voxels, C] × [C, 8·CO], stored scattered.

    A program makes TAPS of the four (kd, kh) of its voxels, each with both kw; where C ≤ BK it loads them
    once. With NORM the input is normalised, activated and cast to IN as it is loaded.
    """
    after_previous(PDL)
    NB: tl.constexpr = (2 * CO + BN - 1) // BN
    GROUPS: tl.constexpr = 4 // TAPS
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
    base = y_ptr + n * yn + 2 * (d * yd + h * yh + w * yw)
    ok = row_ok[:, None] & cols_ok[None, :]
    ks = tl.arange(0, BK)
    if C <= BK:
        k_ok = ks < C
        m, s = in_inverse, in_inverse
        if NORM:
            m, s = read_norm(
                sums_ptr + n * sums_n, gamma_ptr, beta_ptr, ks, k_ok, sums_r, voxels, eps, REPLICAS
            )
        a = up_input(at, ks, k_ok, row_ok, m, s, in_inverse, IN, NORM, IN_SLOPE)
    for t in range(TAPS):
        tap = pid % GROUPS * TAPS + t
        wt = w_ptr + (tap * 2 * CO + cols)[None, :] * C
        if C <= BK:
            b = tl.load(wt + ks[:, None], mask=cols_ok[None, :] & (ks < C)[:, None], other=0.0)
            acc = tl.dot(a, b, out_dtype=ACC)
        else:
            acc = tl.zeros((BM, BN), dtype=ACC)
            for k0 in range(0, C, BK):
                kk = k0 + ks
                k_ok = kk < C
                m, s = in_inverse, in_inverse
                if NORM:
                    m, s = read_norm(
                        sums_ptr + n * sums_n, gamma_ptr, beta_ptr, kk, k_ok, sums_r, voxels, eps, REPLICAS
                    )
                a = up_input(at, kk, k_ok, row_ok, m, s, in_inverse, IN, NORM, IN_SLOPE)
                b = tl.load(wt + kk[:, None], mask=cols_ok[None, :] & k_ok[:, None], other=0.0)
                acc = tl.dot(a, b, acc, out_dtype=ACC)
        y = finish(acc, scale_ptr, bias_ptr, channels, cols_ok, SCALED, BIASED, 1.0)
        # the outputs 2w and 2w + 1 lie one after the other: 2·CO values in a row
        to = base[:, None] + ((tap // 2) * yd + (tap % 2) * yh) + cols[None, :]
        tl.store(to, narrow(y, inverse, OUT), mask=ok)
        if HALO:
            # the zero voxels at both ends of W belong to whoever wrote their neighbours
            left = cols < CO
            edge = tl.where(left[None, :], (w == 0)[:, None], (w == W - 1)[:, None])
            zero = narrow(y * 0.0, inverse, OUT)
            tl.store(to + tl.where(left, -CO, CO)[None, :], zero, mask=ok & edge)


@triton.jit
def head(
    x_ptr, w_ptr, bias_ptr, sums_ptr, gamma_ptr, beta_ptr, y_ptr, patch_ptr, eps, voxels,
    D, H, W, xn, xd, xh, xw, yk, yd, yh, yw, yn, sums_n, sums_r,
    C: tl.constexpr, K: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, IN: tl.constexpr, SLOPE: tl.constexpr,
    NORM: tl.constexpr, SOFTMAX: tl.constexpr, ADD: tl.constexpr, REPLICAS: tl.constexpr, LOOP: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Normalise, activate, 1×1×1 convolution to K classes; softmax; weighting and adding into a volume."""
    after_previous(PDL)
    n = tl.program_id(1).to(tl.int64)
    c = tl.arange(0, C)
    k = tl.arange(0, BK)
    k_ok = k < K
    if NORM:
        m, s = read_norm(sums_ptr + n * sums_n, gamma_ptr, beta_ptr, c, c < C, sums_r, voxels, eps, REPLICAS)
    # weights [C, BK], columns past the last class are zero
    b = tl.load(w_ptr + c[:, None] * BK + k[None, :])
    bias = tl.load(bias_ptr + k, mask=k_ok, other=0.0)[None, :]
    for i in range(LOOP):
        rows = (tl.program_id(0) * LOOP + i) * BM + tl.arange(0, BM)
        row_ok = rows < D * H * W
        w = rows % W
        h = (rows // W) % H
        d = rows // (W * H)
        at = x_ptr + n * xn + d * xd + h * xh + w * xw
        a = tl.load(at[:, None] + c[None, :], mask=row_ok[:, None], other=0.0)
        if NORM:
            z = a.to(tl.float32) * m[None, :] + s[None, :]
            if SLOPE != 1.0:
                z = tl.where(z > 0, z, z * SLOPE)
            a = z.to(IN)
        y = tl.dot(a, b) + bias
        if SOFTMAX:
            y = tl.where(k_ok[None, :], y, float("-inf"))
            e = tl.exp(y - tl.max(y, 1)[:, None])
            y = e / tl.sum(e, 1)[:, None]
        to = y_ptr + n * yn + (d * yd + h * yh + w * yw)[:, None] + (k * yk)[None, :]
        ok = row_ok[:, None] & k_ok[None, :]
        if ADD:
            weight = tl.load(patch_ptr + rows, mask=row_ok, other=0.0).to(tl.float32)
            y = tl.load(to, mask=ok, other=0.0).to(tl.float32) + y * weight[:, None]
        tl.store(to, y.to(y_ptr.dtype.element_ty), mask=ok)
