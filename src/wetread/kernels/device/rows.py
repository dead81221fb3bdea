"""LayerNorm and softmax: whole rows in registers."""

import triton
import triton.language as tl

from wetread.kernels.device.epilogue import after_previous, narrow
from wetread.kernels.device.matmul import offsets


@triton.jit
def layer_norm(
    x_ptr, residual_ptr, gamma_ptr, beta_ptr, y_ptr, added_ptr, inverse, eps,
    M, C, R1, R2, R3, x0, x1, x2, x3, y0, y1, y2, y3, r0, r1, r2, r3, z0, z1, z2, z3,
    RESIDUAL: tl.constexpr, ADDED: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr, FLAT: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, OUT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Rows of C contiguous features; grid (blocks of rows)."""
    after_previous(PDL)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.arange(0, BC)
    ok = (rows < M)[:, None] & (cols < C)[None, :]
    at = offsets(rows, R1, R2, R3, x0, x1, x2, x3, FLAT)
    x = tl.load(x_ptr + at[:, None] + cols[None, :], mask=ok, other=0.0).to(tl.float32)
    if RESIDUAL:
        at = offsets(rows, R1, R2, R3, r0, r1, r2, r3, FLAT)
        x += tl.load(residual_ptr + at[:, None] + cols[None, :], mask=ok, other=0.0).to(tl.float32)
    if ADDED:
        at = offsets(rows, R1, R2, R3, z0, z1, z2, z3, FLAT)
        tl.store(added_ptr + at[:, None] + cols[None, :], x.to(added_ptr.dtype.element_ty), mask=ok)
    mean = tl.sum(x, 1) / C
    about = tl.where(ok, x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(about * about, 1) / C + eps)
    y = about * rstd[:, None]
    if SCALED:
        y = y * tl.load(gamma_ptr + cols, mask=cols < C, other=0.0).to(tl.float32)[None, :]
    if BIASED:
        y = y + tl.load(beta_ptr + cols, mask=cols < C, other=0.0).to(tl.float32)[None, :]
    at = offsets(rows, R1, R2, R3, y0, y1, y2, y3, FLAT)
    tl.store(y_ptr + at[:, None] + cols[None, :], narrow(y, inverse, OUT), mask=ok)


@triton.jit
def softmax(
    x_ptr, y_ptr, M, C, R1, R2, R3, x0, x1, x2, x3, y0, y1, y2, y3, xc, yc,
    LOG: tl.constexpr, FLAT: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, OUT: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Rows of C features at any stride; grid (blocks of rows)."""
    after_previous(PDL)
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.arange(0, BC)
    ok = (rows < M)[:, None] & (cols < C)[None, :]
    at = offsets(rows, R1, R2, R3, x0, x1, x2, x3, FLAT)
    x = tl.load(x_ptr + at[:, None] + (cols * xc)[None, :], mask=ok, other=-float("inf")).to(tl.float32)
    x = tl.where((rows < M)[:, None], x, 0.0)
    x = x - tl.max(x, 1)[:, None]
    e = tl.exp(x)
    total = tl.sum(e, 1)
    y = x - tl.log(total)[:, None] if LOG else e / total[:, None]
    at = offsets(rows, R1, R2, R3, y0, y1, y2, y3, FLAT)
    tl.store(y_ptr + at[:, None] + (cols * yc)[None, :], y.to(OUT), mask=ok)
