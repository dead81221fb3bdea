"""A linear layer: rows of a map times a weight, LayerNorm before it, bias, activation and residual after it."""

import triton
import triton.language as tl

from wetread.kernels.device.epilogue import after_previous, narrow


@triton.jit
def sigmoid(y):
    """1 / (1 + exp(−y)), without overflow."""
    return 1.0 / (1.0 + tl.exp(tl.minimum(-y, 80.0)))


@triton.jit
def gelu(y):
    """GELU, y · Φ(y), within 7e-7: Φ(−a) = exp2 of a polynomial in a, fitted up to 5.5 (Φ is 2e-8 there).

    A third of the instructions of the library's erf, which bound layers of few features.
    """
    a = tl.minimum(tl.abs(y), 5.5)
    p = -1.9212345705454936e-06 * a + 6.328849849523976e-05
    p = p * a - 0.00094342086231336
    p = p * a + 0.008556271903216839
    p = p * a - 0.05405228212475777
    p = p * a - 0.4583817720413208
    p = p * a - 1.1512783765792847
    tail = tl.exp2(p * a - 0.9999938607215881)
    return y * tl.where(y > 0, 1.0 - tail, tail)


@triton.jit
def act(y, NAME: tl.constexpr, P0: tl.constexpr, P1: tl.constexpr):
    """An activation by name, in float32; P0 and P1 are its parameters."""
    if NAME == "relu":
        y = tl.maximum(y, 0.0)
    elif NAME == "leaky":
        y = tl.where(y > 0, y, y * P0)
    elif NAME == "gelu":
        y = gelu(y)
    elif NAME == "gelu_tanh":
        inner = 0.7978845608028654 * (y + 0.044715 * y * y * y)
        y = y * sigmoid(2.0 * inner)
    elif NAME == "sigmoid":
        y = sigmoid(y)
    elif NAME == "tanh":
        y = 2.0 * sigmoid(2.0 * y) - 1.0
    elif NAME == "silu":
        y = y * sigmoid(y)
    elif NAME == "clip":
        y = tl.minimum(tl.maximum(y, P0), P1)
    return y


@triton.jit
def offsets(rows, R1, R2, R3, s0, s1, s2, s3, FLAT: tl.constexpr):
    """Where rows begin, counted over four axes of sizes (any, R1, R2, R3); int64."""
    if FLAT:
        return rows.to(tl.int64) * s3
    i3 = rows % R3
    i2 = (rows // R3) % R2
    i1 = (rows // (R3 * R2)) % R1
    i0 = rows // (R3 * R2 * R1)
    return i0.to(tl.int64) * s0 + i1.to(tl.int64) * s1 + i2.to(tl.int64) * s2 + i3.to(tl.int64) * s3


@triton.jit
def linear(
    a_ptr, w_ptr, y_ptr, residual_ptr, scale_ptr, bias_ptr, total_ptr, inverse, eps,
    M, N, KP, R1, R2, R3, a0, a1, a2, a3, y0, y1, y2, y3, r0, r1, r2, r3, yn, rn, k0, k1, k2, k3,
    K: tl.constexpr, K1: tl.constexpr, K2: tl.constexpr, K3: tl.constexpr, FLAT: tl.constexpr, DENSE: tl.constexpr,
    SCALED: tl.constexpr, BIASED: tl.constexpr, RESIDUAL: tl.constexpr, NORM: tl.constexpr, NAME: tl.constexpr,
    P0: tl.constexpr, P1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ACC: tl.constexpr, OUT: tl.constexpr, PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Weight [N, KP], zeros from K on; grid (blocks of N · blocks of rows).

    K counts over four axes of sizes (any, K1, K2, K3) with strides k0..k3; one axis of stride 1 where DENSE.
    With NORM the weight has gamma in it, `bias` has beta · weight in it, and `total` is the sum of each weight
    row: Σ (a − mean) · rstd · w = rstd · (Σ a · w − mean · Σ w), so rows are read once. Sums are taken about the
    row's first element, so that the variance does not cancel.
    """
    after_previous(PDL)
    NB = tl.cdiv(N, BN)
    pid = tl.program_id(0)
    rows = (pid // NB) * BM + tl.arange(0, BM)
    cols = (pid % NB) * BN + tl.arange(0, BN)
    row_ok = rows < M
    cols_ok = cols < N
    at = a_ptr + offsets(rows, R1, R2, R3, a0, a1, a2, a3, FLAT)
    k = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), dtype=ACC)
    if NORM:
        first = tl.load(at, mask=row_ok, other=0.0).to(tl.float32)
        total = tl.zeros((BM,), tl.float32)
        square = tl.zeros((BM,), tl.float32)
    for start in range(0, K, BK):
        ks = start + k
        if DENSE:
            step = ks
        else:
            step = (ks // (K3 * K2 * K1)) * k0 + ((ks // (K3 * K2)) % K1) * k1
            step += ((ks // K3) % K2) * k2 + (ks % K3) * k3
        if K % BK == 0:
            a = tl.load(at[:, None] + step[None, :], mask=row_ok[:, None], other=0.0)
        else:
            a = tl.load(at[:, None] + step[None, :], mask=row_ok[:, None] & (ks < K)[None, :], other=0.0)
        w = tl.load(
            w_ptr + cols[None, :].to(tl.int64) * KP + ks[:, None],
            mask=cols_ok[None, :] & (ks < KP)[:, None],
            other=0.0,
        )
        if NORM:
            about = a.to(tl.float32) - first[:, None]
            if K % BK != 0:
                about = tl.where((ks < K)[None, :], about, 0.0)
            total += tl.sum(about, 1)
            square += tl.sum(about * about, 1)
        acc = tl.dot(a, w, acc, input_precision=PRECISION, out_dtype=ACC)
    y = acc.to(tl.float32)
    if NORM:
        mean = total / K
        rstd = 1.0 / tl.sqrt(tl.maximum(square / K - mean * mean, 0.0) + eps)
        sums = tl.load(total_ptr + cols, mask=cols_ok, other=0.0)
        y = (y - (mean + first)[:, None] * sums[None, :]) * rstd[:, None]
    if SCALED:
        y = y * tl.load(scale_ptr + cols, mask=cols_ok, other=0.0)[None, :]
    if BIASED:
        y = y + tl.load(bias_ptr + cols, mask=cols_ok, other=0.0)[None, :]
    ok = row_ok[:, None] & cols_ok[None, :]
    if RESIDUAL:
        add = residual_ptr + offsets(rows, R1, R2, R3, r0, r1, r2, r3, FLAT)
        y = y + tl.load(add[:, None] + (cols * rn)[None, :], mask=ok, other=0.0).to(tl.float32)
    y = act(y, NAME, P0, P1)
    to = y_ptr + offsets(rows, R1, R2, R3, y0, y1, y2, y3, FLAT)
    tl.store(to[:, None] + (cols * yn)[None, :], narrow(y, inverse, OUT), mask=ok)
