"""What follows a product of tiles: scale, bias, activation, norm statistics, quantisation."""

import triton
import triton.language as tl


@triton.jit
def after_previous(PDL: tl.constexpr):
    """Waits for the launch before; the launch after may take its place already (programmatic dependent launch)."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def put(items, at: tl.constexpr, value):
    """The tuple with one item replaced (Triton's tuples are values)."""
    return items[:at] + (value,) + items[at + 1 :]


@triton.jit
def finish(
    acc, scale_ptr, bias_ptr, cols, cols_ok, SCALED: tl.constexpr, BIASED: tl.constexpr, SLOPE: tl.constexpr
):
    """Float32 value of an accumulator: per-channel scale, bias, leaky ReLU (SLOPE 1 is none)."""
    y = acc.to(tl.float32)
    if SCALED:
        y = y * tl.load(scale_ptr + cols, mask=cols_ok, other=0.0)[None, :]
    if BIASED:
        y = y + tl.load(bias_ptr + cols, mask=cols_ok, other=0.0)[None, :]
    if SLOPE != 1.0:
        y = tl.where(y > 0, y, y * SLOPE)
    return y


@triton.jit
def narrow(y, inverse, OUT: tl.constexpr):
    """Gives y in the type OUT; 8-bit types hold y * inverse, rounded half to even (int8) and saturated."""
    if OUT == tl.int8:
        z = y * inverse
        z = tl.minimum(tl.maximum(z, -127.0), 127.0)
        # adding 1.5 * 2**23 leaves the nearest integer, ties to even, in the low bits of the mantissa
        bits = (z + 12582912.0).to(tl.int32, bitcast=True)
        return (bits - 0x4B400000).to(tl.int8)
    elif OUT == tl.float8e4nv:  # noqa: RET505 - the branches not taken must not be compiled
        return tl.minimum(tl.maximum(y * inverse, -448.0), 448.0).to(OUT)
    else:
        return y.to(OUT)


@triton.jit
def add_sums(ys, oks, PARTS: tl.constexpr, sums_ptr, cols, cols_ok):
    """Adds sum and sum of squares of the valid rows of tiles, for each channel, to float64 sums [C, 2].

    The squares are taken about the tiles' own mean in float32 and moved to the origin in float64, which
    has digits to spare: with mean 100 and SD 0.1 over 2 million voxels nothing cancels.
    """
    added = tl.where(oks[0][:, None], ys[0], 0.0)
    valid = oks[0].to(tl.float32)
    for o in tl.static_range(1, PARTS):
        added += tl.where(oks[o][:, None], ys[o], 0.0)
        valid += oks[o].to(tl.float32)
    n = tl.maximum(tl.sum(valid, 0), 1.0)
    total = tl.sum(added, 0)
    mean = (total / n)[None, :]
    about = tl.where(oks[0][:, None], ys[0] - mean, 0.0)
    squared = about * about
    for o in tl.static_range(1, PARTS):
        about = tl.where(oks[o][:, None], ys[o] - mean, 0.0)
        squared += about * about
    squares = tl.sum(squared, 0)
    t64 = total.to(tl.float64)
    q64 = squares.to(tl.float64) + t64 * (total / n).to(tl.float64)
    tl.atomic_add(sums_ptr + cols * 2, t64, mask=cols_ok, sem="relaxed")
    tl.atomic_add(sums_ptr + cols * 2 + 1, q64, mask=cols_ok, sem="relaxed")


@triton.jit
def read_norm(sums_ptr, gamma_ptr, beta_ptr, cols, cols_ok, stride, voxels, eps, REPLICAS: tl.constexpr):
    """Multiplier and addend of a normalisation from its float64 sums [REPLICAS, .., C, 2].

    The replicas are loaded as one tile and reduced, so that each thread loads a few of the numbers and not all
    of those of its columns.
    """
    at = sums_ptr + tl.arange(0, REPLICAS)[:, None] * stride + (cols * 2)[None, :]
    ok = cols_ok[None, :] & (tl.arange(0, REPLICAS)[:, None] >= 0)
    share = tl.full((1,), 1.0, tl.float64) / voxels
    mean = tl.sum(tl.load(at, mask=ok, other=0.0), 0) * share
    square = tl.sum(tl.load(at + 1, mask=ok, other=0.0), 0) * share
    variance = (square - mean * mean).to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.maximum(variance, 0.0) + eps)
    a = rstd * tl.load(gamma_ptr + cols, mask=cols_ok, other=0.0)
    b = tl.load(beta_ptr + cols, mask=cols_ok, other=0.0) - mean.to(tl.float32) * a
    return a, b
