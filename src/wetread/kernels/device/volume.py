"""Kernels round a network that reads a whole volume: windows cut from it, outputs kept, stitched and read off."""

import triton
import triton.language as tl

from wetread.kernels.device.epilogue import put


# what differs from volume to volume would else compile a kernel for each of them
@triton.jit(do_not_specialize=["starts_ptr", "fill", "VD", "VH", "VW", "vc", "vd", "vh"])
def cut(
    v_ptr, x_ptr, starts_ptr, fill,
    VD, VH, VW, D, H, W, vc, vd, vh, vw, xn, xc, xd, xh, xw,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """x[n, c] = volume[c] from starts[n] on; `fill` where the window reaches past the volume."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c = tl.program_id(1)
    n = tl.program_id(2)
    w = at % W
    h = (at // W) % H
    d = at // (W * H)
    ok = d < D
    vz = tl.load(starts_ptr + n * 3) + d
    vy = tl.load(starts_ptr + n * 3 + 1) + h
    vx = tl.load(starts_ptr + n * 3 + 2) + w
    inside = ok & (vz >= 0) & (vz < VD) & (vy >= 0) & (vy < VH) & (vx >= 0) & (vx < VW)
    source = v_ptr + c.to(tl.int64) * vc + vz.to(tl.int64) * vd + vy * vh + vx * vw
    value = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    value = tl.where(inside, value, fill)
    to = x_ptr + n.to(tl.int64) * xn + c * xc + d.to(tl.int64) * xd + h * xh + w * xw
    tl.store(to, value.to(x_ptr.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["slots_ptr"])
def keep(
    y_ptr, r_ptr, slots_ptr, D, H, W, yn, yk, yd, yh, yw, rn, rk, rd, rh, rw,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """ring[slots[n], k] = y[n, k]; W is the axis along which lanes run."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.program_id(1)
    n = tl.program_id(2)
    w = at % W
    h = (at // W) % H
    d = at // (W * H)
    ok = d < D
    slot = tl.load(slots_ptr + n).to(tl.int64)
    value = tl.load(
        y_ptr + n.to(tl.int64) * yn + k * yk + d.to(tl.int64) * yd + h * yh + w * yw, mask=ok, other=0.0
    )
    to = r_ptr + slot * rn + k * rk + d.to(tl.int64) * rd + h * rh + w * rw
    tl.store(to, value.to(r_ptr.dtype.element_ty), mask=ok)


@triton.jit(
    do_not_specialize=[
        "first",
        "VH",
        "VW",
        "ND",
        "NH",
        "NW",
        "SLOTS",
        "ld",
        "lh",
        "vk",
        "vd",
        "vh",
        "firsts_d",
        "firsts_h",
        "firsts_w",
        "starts_d",
        "starts_h",
        "starts_w",
    ]
)
def stitch(
    r_ptr, wd_ptr, wh_ptr, ww_ptr, firsts_d, firsts_h, firsts_w, starts_d, starts_h, starts_w,
    labels_ptr, values_ptr, bad_ptr, first, VH, VW, ND, NH, NW, D, H, W, SLOTS, ld, lh, lw, vk, vd, vh, vw,
    rn, rk, rd, rh, rw,
    K: tl.constexpr, CD: tl.constexpr, CH: tl.constexpr, CW: tl.constexpr, LABELS: tl.constexpr,
    VALUES: tl.constexpr, ALIGN: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    """Rows of a plane of the volume from the outputs of all windows that cover them.

    Each voxel sums weight · output over its windows in their canonical order, so that the result is the same bit
    for bit whatever was computed together; then the largest channel (of equal ones the lowest) is its label.
    The weights of an axis are normalised over its windows; a window's weight is the product of its three. A program
    has one plane, BY rows and BX voxels of each; which windows touch those voxels along W is the same for all rows,
    so that a thread loads neighbouring voxels at once (ALIGN divides all starts, and BX).
    """
    z = first + tl.program_id(2)
    y = tl.program_id(1) * BY + tl.arange(0, BY)
    x0 = tl.program_id(0) * BX
    x = x0 + tl.arange(0, BX)
    y_ok, x_ok = y < VH, x < VW
    a0 = tl.load(firsts_d + z)
    b0 = tl.load(firsts_h + y, mask=y_ok, other=0)
    c0 = tl.load(firsts_w + x0)
    totals = (tl.zeros((BY, BX), tl.float32),) * K
    for i in tl.static_range(CD):
        a = a0 + i
        da = z - tl.load(starts_d + a, mask=a < ND, other=0)
        a_ok = (a < ND) & (da >= 0) & (da < D)
        wa = tl.load(wd_ptr + a * D + da, mask=a_ok, other=0.0)
        for j in tl.static_range(CH):
            b = b0 + j
            db = y - tl.load(starts_h + b, mask=y_ok & (b < NH), other=0)
            b_ok = y_ok & (b < NH) & (db >= 0) & (db < H) & a_ok
            wb = wa * tl.load(wh_ptr + b * H + db, mask=b_ok, other=0.0)
            for m in tl.static_range(CW):
                c = c0 + m
                start = tl.multiple_of(tl.load(starts_w + c, mask=c < NW, other=0), ALIGN)
                dc = x - start
                c_ok = x_ok & (c < NW) & (dc >= 0) & (dc < W)
                wc = tl.load(ww_ptr + c * W + dc, mask=c_ok, other=0.0)
                weight = wb[:, None] * wc[None, :]
                ok = b_ok[:, None] & c_ok[None, :]
                slot = (((a * NH + b) * NW + c) % SLOTS).to(tl.int64)
                at = r_ptr + (slot * rn + da.to(tl.int64) * rd + db * rh)[:, None] + (dc * rw)[None, :]
                for k in tl.static_range(K):
                    value = tl.load(at + k * rk, mask=ok, other=0.0).to(tl.float32)
                    totals = put(totals, k, totals[k] + weight * value)
    inside = y_ok[:, None] & x_ok[None, :]
    best = totals[0]
    label = tl.zeros((BY, BX), tl.int32)
    finite = tl.abs(best) < float("inf")
    for k in tl.static_range(1, K):
        more = totals[k] > best
        best = tl.where(more, totals[k], best)
        label = tl.where(more, k, label)
        finite = finite & (tl.abs(totals[k]) < float("inf"))
    if VALUES:
        for k in tl.static_range(K):
            to = (
                values_ptr + vk.to(tl.int64) * k + z.to(tl.int64) * vd + (y * vh)[:, None] + (x * vw)[None, :]
            )
            tl.store(to, totals[k].to(values_ptr.dtype.element_ty), mask=inside)
    if LABELS:
        to = labels_ptr + z.to(tl.int64) * ld + (y * lh)[:, None] + (x * lw)[None, :]
        tl.store(to, label.to(tl.uint8), mask=inside)
    # every program that finds one stores the same value
    flags = bad_ptr + tl.zeros((BY, BX), tl.int32)
    tl.store(flags, tl.full((BY, BX), 1, tl.int32), mask=inside & ~finite)
