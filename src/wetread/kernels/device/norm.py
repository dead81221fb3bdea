"""Norms from their sums, sums of tensors, and what ends a product whose K was split."""

import triton
import triton.language as tl

from wetread.kernels.device.epilogue import (
    activated,
    add_sums,
    after_previous,
    finish,
    narrow,
    over_group,
    read_norm,
)


@triton.jit
def norm_apply(
    x_ptr, res_ptr, y_ptr, sums_ptr, gamma_ptr, beta_ptr, rsums_ptr, rgamma_ptr, rbeta_ptr, inverse, eps, voxels,
    W, ROWS, xn, xr, xw, rn, rr, rw, yn, yr, yw, sums_n, sums_r, C,
    HALO: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr, OUT: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr,
    RESIDUAL: tl.constexpr, RNORM: tl.constexpr, GROUP: tl.constexpr, REPLICAS: tl.constexpr, LOOP: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Normalise, add a residual or its norm, activate, quantise.

    Rows are all W of one d, h; y's may have a zero voxel at both ends. Both norms have the same eps and groups, and
    sums of the same strides.
    """
    after_previous(PDL)
    n = tl.program_id(1).to(tl.int64)
    cols = tl.program_id(2) * BC + tl.arange(0, BC)
    cols_ok = cols < C
    a, b = read_norm(
        sums_ptr + n * sums_n, gamma_ptr, beta_ptr, cols, cols_ok, sums_r, voxels, eps, BC, REPLICAS, GROUP
    )
    if RNORM:
        ra, rb = read_norm(
            rsums_ptr + n * sums_n,
            rgamma_ptr,
            rbeta_ptr,
            cols,
            cols_ok,
            sums_r,
            voxels,
            eps,
            BC,
            REPLICAS,
            GROUP,
        )
    WP = W + 2 * HALO
    for i in range(LOOP):
        v = (tl.program_id(0) * LOOP + i) * BV + tl.arange(0, BV)
        row = v // WP
        w = v % WP - HALO
        ok = row < ROWS
        inside = ok & (w >= 0) & (w < W)
        mask = inside[:, None] & cols_ok[None, :]
        x_at = x_ptr + n * xn + (row.to(tl.int64) * xr + w * xw)[:, None] + cols[None, :]
        x = tl.load(x_at, mask=mask, other=0.0).to(tl.float32)
        y = x * a[None, :] + b[None, :]
        if RESIDUAL:
            r_at = res_ptr + n * rn + (row.to(tl.int64) * rr + w * rw)[:, None] + cols[None, :]
            r = tl.load(r_at, mask=mask, other=0.0).to(tl.float32)
            if RNORM:
                r = r * ra[None, :] + rb[None, :]
            y = y + r
        y = activated(y, ACT, SLOPE)
        if HALO > 0:
            y = tl.where(inside[:, None], y, 0.0)
        to = y_ptr + n * yn + (row.to(tl.int64) * yr + w * yw)[:, None] + cols[None, :]
        tl.store(to, narrow(y, inverse, OUT), mask=ok[:, None] & cols_ok[None, :])


@triton.jit
def parts_sum(at, part, ok, SPLITS: tl.constexpr):
    """The sum of SPLITS tiles, `part` apart."""
    x = tl.load(at, mask=ok, other=0.0).to(tl.float32)
    for s in tl.static_range(1, SPLITS):
        x += tl.load(at + s * part, mask=ok, other=0.0).to(tl.float32)
    return x


@triton.jit
def norm_reduce(
    p_ptr, y_ptr, gamma_ptr, beta_ptr, inverse, eps, V, W, part, pn, yn, yr, yw, C,
    SPLITS: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr, OUT: tl.constexpr, ACT: tl.constexpr,
    SLOPE: tl.constexpr, GROUP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Adds the parts of a split product [SPLITS, N, V, C], then normalises: a whole small volume at once.

    Groups of GROUP channels, a power of two that divides BC, share their statistics.
    """
    after_previous(PDL)
    n = tl.program_id(1).to(tl.int64)
    cols = tl.program_id(0) * BC + tl.arange(0, BC)
    v = tl.arange(0, BV)
    v_ok = v < V
    ok = v_ok[:, None] & (cols < C)[None, :]
    x = parts_sum(p_ptr + n * pn + v[:, None] * C + cols[None, :], part, ok, SPLITS)
    mean = tl.sum(x, 0) / V
    if GROUP > 1:
        mean = over_group(mean, BC, GROUP) / GROUP
    about = tl.where(v_ok[:, None], x - mean[None, :], 0.0)
    variance = tl.sum(about * about, 0) / V
    if GROUP > 1:
        variance = over_group(variance, BC, GROUP) / GROUP
    rstd = 1.0 / tl.sqrt(variance + eps)
    a = rstd * tl.load(gamma_ptr + cols, mask=cols < C, other=0.0)
    b = tl.load(beta_ptr + cols, mask=cols < C, other=0.0)
    y = activated(about * a[None, :] + b[None, :], ACT, SLOPE)
    to = y_ptr + n * yn + ((v // W) * yr + (v % W) * yw)[:, None] + cols[None, :]
    tl.store(to, narrow(y, inverse, OUT), mask=ok)


@triton.jit
def reduce(
    p_ptr, y_ptr, scale_ptr, bias_ptr, res_ptr, sums_ptr, inverse, rn, rr, rw, V, W, part, pn, yn, yr, yw, sums_n,
    sums_r, C, SPLITS: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr, OUT: tl.constexpr, SCALED: tl.constexpr,
    BIASED: tl.constexpr, RESIDUAL: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, STATS: tl.constexpr,
    REPLICAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Adds the parts of a split product [SPLITS, N, V, C] and does what the product's epilogue would have done."""
    after_previous(PDL)
    n = tl.program_id(1).to(tl.int64)
    v = tl.program_id(0) * BV + tl.arange(0, BV)
    cols = tl.program_id(2) * BC + tl.arange(0, BC)
    cols_ok = cols < C
    v_ok = v < V
    ok = v_ok[:, None] & cols_ok[None, :]
    x = parts_sum(p_ptr + n * pn + v[:, None] * C + cols[None, :], part, ok, SPLITS)
    res_at = ((v // W) * rr + (v % W) * rw)[:, None] + cols[None, :]
    y = finish(
        x,
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
        add_sums(
            (y,), (v_ok,), 1, sums_ptr + tl.program_id(0) % REPLICAS * sums_r + n * sums_n, cols, cols_ok
        )
    to = y_ptr + n * yn + ((v // W) * yr + (v % W) * yw)[:, None] + cols[None, :]
    tl.store(to, narrow(y, inverse, OUT), mask=ok)


@triton.jit
def stats(
    x_ptr, sums_ptr, V, W, xn, xr, xw, sums_n, sums_r, C,
    BV: tl.constexpr, BC: tl.constexpr, PARTS: tl.constexpr, REPLICAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Adds sum and sum of squares of PARTS · BV voxels to the sums of their channels."""
    after_previous(PDL)
    n = tl.program_id(1).to(tl.int64)
    cols = tl.program_id(2) * BC + tl.arange(0, BC)
    cols_ok = cols < C
    tiles = ()
    oks = ()
    for i in tl.static_range(PARTS):
        v = (tl.program_id(0) * PARTS + i) * BV + tl.arange(0, BV)
        ok = v < V
        at = x_ptr + n * xn + ((v // W).to(tl.int64) * xr + (v % W) * xw)[:, None] + cols[None, :]
        tiles = tiles + (tl.load(at, mask=ok[:, None] & cols_ok[None, :], other=0.0).to(tl.float32),)
        oks = oks + (ok,)
    at = sums_ptr + tl.program_id(0) % REPLICAS * sums_r + n * sums_n
    add_sums(tiles, oks, PARTS, at, cols, cols_ok)
