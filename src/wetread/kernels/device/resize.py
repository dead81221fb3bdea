"""Resizing, channels last: by tables of any factors, and doubling with its constant weights."""

import triton
import triton.language as tl

from wetread.kernels.device.epilogue import activated, add_sums, after_previous, narrow, put


@triton.jit
def by_table(
    x_ptr, y_ptr, r_ptr, sums_ptr, id_ptr, ih_ptr, iw_ptr, fd_ptr, fh_ptr, fw_ptr, inverse,
    DO, HO, WO, xn, xd, xh, xw, yn, yd, yh, yw, rn, rd, rh, rw, sums_n, sums_r, C,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr, OUT: tl.constexpr,
    RESIDUAL: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, STATS: tl.constexpr, REPLICAS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Rows are output voxels; i tells the input voxels and f the weights of each output voxel, [taps, out]."""
    after_previous(PDL)
    pid = tl.program_id(0)
    n = tl.program_id(1).to(tl.int64)
    rows = pid * BV + tl.arange(0, BV)
    cols = tl.program_id(2) * BC + tl.arange(0, BC)
    cols_ok = cols < C
    ok = rows < DO * HO * WO
    w = rows % WO
    h = (rows // WO) % HO
    d = rows // (WO * HO)
    mask = ok[:, None] & cols_ok[None, :]
    acc = tl.zeros((BV, BC), tl.float32)
    for i in tl.static_range(TD):
        di = tl.load(id_ptr + i * DO + d, mask=ok, other=0).to(tl.int64) * xd
        fd = tl.load(fd_ptr + i * DO + d, mask=ok, other=0.0)
        for j in tl.static_range(TH):
            dh = di + tl.load(ih_ptr + j * HO + h, mask=ok, other=0).to(tl.int64) * xh
            fh = fd * tl.load(fh_ptr + j * HO + h, mask=ok, other=0.0)
            for k in tl.static_range(TW):
                at = dh + tl.load(iw_ptr + k * WO + w, mask=ok, other=0) * xw
                f = fh * tl.load(fw_ptr + k * WO + w, mask=ok, other=0.0)
                v = tl.load(x_ptr + n * xn + at[:, None] + cols[None, :], mask=mask, other=0.0)
                acc += f[:, None] * v.to(tl.float32)
    if RESIDUAL:
        at = d.to(tl.int64) * rd + h.to(tl.int64) * rh + w * rw
        acc += tl.load(r_ptr + n * rn + at[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)
    acc = activated(acc, ACT, SLOPE)
    if STATS:
        add_sums((acc,), (ok,), 1, sums_ptr + pid % REPLICAS * sums_r + n * sums_n, cols, cols_ok)
    to = d.to(tl.int64) * yd + h.to(tl.int64) * yh + w * yw
    tl.store(y_ptr + n * yn + to[:, None] + cols[None, :], narrow(acc, inverse, OUT), mask=mask)


@triton.constexpr_function
def share(neighbour):
    """What the voxel itself (1) and a neighbour (0, 2) give to a voxel of twice the resolution, along one axis."""
    return 0.75 if neighbour == 1 else 0.25


@triton.jit
def double(
    x_ptr, y_ptr, r_ptr, sums_ptr, inverse,
    D, H, W, xn, xd, xh, xw, yn, yd, yh, yw, rn, rd, rh, rw, sums_n, sums_r, C,
    LINEAR: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr, OUT: tl.constexpr, RESIDUAL: tl.constexpr,
    ACT: tl.constexpr, SLOPE: tl.constexpr, STATS: tl.constexpr, REPLICAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows are input voxels, each of which becomes eight.

    Linear with half-pixel centres: along each axis the first of two voxels is 1/4 of the neighbour before and 3/4 of
    its own, the second 3/4 and 1/4 of the neighbour after; beyond the edge the edge is repeated.
    """
    after_previous(PDL)
    pid = tl.program_id(0)
    n = tl.program_id(1).to(tl.int64)
    rows = pid * BV + tl.arange(0, BV)
    cols = tl.program_id(2) * BC + tl.arange(0, BC)
    cols_ok = cols < C
    ok = rows < D * H * W
    w = rows % W
    h = (rows // W) % H
    d = rows // (W * H)
    mask = ok[:, None] & cols_ok[None, :]
    ys = ()
    if LINEAR:
        for _ in tl.static_range(8):
            ys = ys + (tl.zeros((BV, BC), tl.float32),)
        for i in tl.static_range(3):
            at_d = tl.minimum(tl.maximum(d + i - 1, 0), D - 1).to(tl.int64) * xd
            for j in tl.static_range(3):
                at_h = at_d + tl.minimum(tl.maximum(h + j - 1, 0), H - 1).to(tl.int64) * xh
                for k in tl.static_range(3):
                    at = at_h + tl.minimum(tl.maximum(w + k - 1, 0), W - 1) * xw
                    v = tl.load(x_ptr + n * xn + at[:, None] + cols[None, :], mask=mask, other=0.0).to(
                        tl.float32
                    )
                    for o in tl.static_range(8):
                        # a neighbour on the other side of an output voxel has no share in it
                        if i != 2 - 2 * (o // 4) and j != 2 - 2 * (o // 2 % 2) and k != 2 - 2 * (o % 2):
                            ys = put(ys, o, ys[o] + v * (share(i) * share(j) * share(k)))
    else:
        at = d.to(tl.int64) * xd + h.to(tl.int64) * xh + w * xw
        v = tl.load(x_ptr + n * xn + at[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        for _ in tl.static_range(8):
            ys = ys + (v,)
    oks = ()
    for o in tl.static_range(8):
        if RESIDUAL:
            at = (
                (2 * d + o // 4).to(tl.int64) * rd
                + (2 * h + o // 2 % 2).to(tl.int64) * rh
                + (2 * w + o % 2) * rw
            )
            r = tl.load(r_ptr + n * rn + at[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32)
            ys = put(ys, o, ys[o] + r)
        ys = put(ys, o, activated(ys[o], ACT, SLOPE))
        oks = oks + (ok,)
    if STATS:
        add_sums(ys, oks, 8, sums_ptr + pid % REPLICAS * sums_r + n * sums_n, cols, cols_ok)
    for o in tl.static_range(8):
        to = (
            (2 * d + o // 4).to(tl.int64) * yd + (2 * h + o // 2 % 2).to(tl.int64) * yh + (2 * w + o % 2) * yw
        )
        tl.store(y_ptr + n * yn + to[:, None] + cols[None, :], narrow(ys[o], inverse, OUT), mask=mask)
