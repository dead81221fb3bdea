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
def before_product(step, PDL: tl.constexpr):
    """Makes operands that arrived by pointers visible to Hopper's tensor cores, which read by another proxy.

    Triton 3.6 pipelines such loads as cp.async and leaves the fence out before wgmma (loads by descriptors need none).
    """
    if PDL:
        tl.inline_asm_elementwise(
            "fence.proxy.async.shared::cta; mov.b32 $0, $1;",
            "=r,r",
            [step],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def put(items, at: tl.constexpr, value):
    """The tuple with one item replaced (Triton's tuples are values)."""
    return items[:at] + (value,) + items[at + 1 :]


@triton.jit
def sigmoid(z):
    """1 / (1 + exp(-z)) without overflow; a NaN stays one."""
    return 1.0 / (1.0 + tl.exp(-tl.where(z < -80.0, -80.0, z)))


@triton.jit
def activated(y, ACT: tl.constexpr, SLOPE: tl.constexpr):
    """An activation by name; SLOPE is its parameter: the leaky ReLU's slope (1 is none), ELU's alpha."""
    if ACT == "leaky":
        if SLOPE != 1.0:
            y = tl.where(y > 0, y, y * SLOPE)
    elif ACT == "elu":
        y = tl.where(y > 0, y, SLOPE * (tl.exp(tl.where(y > 0, 0.0, y)) - 1.0))
    elif ACT == "sigmoid":
        y = sigmoid(y)
    elif ACT == "tanh":
        y = 2.0 * sigmoid(2.0 * y) - 1.0
    elif ACT == "silu":
        y = y * sigmoid(y)
    elif ACT == "gelu":
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    elif ACT == "gelu_tanh":
        y = y * sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
    elif ACT == "mish":
        # tanh(log(1 + e)) = (e² + 2e) / (e² + 2e + 2)
        e = tl.exp(tl.where(y > 20.0, 20.0, y))
        y = y * (e * e + 2.0 * e) / (e * e + 2.0 * e + 2.0)
    elif ACT == "hard_swish":
        y = y * tl.minimum(tl.maximum(y + 3.0, 0.0), 6.0) / 6.0
    else:
        tl.static_assert(False, "an activation that kernels do not know")
    return y


@triton.jit
def finish(
    acc, scale_ptr, bias_ptr, res_ptr, res_at, res_ok, cols, cols_ok, SCALED: tl.constexpr, BIASED: tl.constexpr,
    RESIDUAL: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """Float32 value of an accumulator: per-channel scale, bias, residual (at res_ptr + res_at), activation."""
    y = acc.to(tl.float32)
    if SCALED:
        y = y * tl.load(scale_ptr + cols, mask=cols_ok, other=0.0)[None, :]
    if BIASED:
        y = y + tl.load(bias_ptr + cols, mask=cols_ok, other=0.0)[None, :]
    if RESIDUAL:
        y = y + tl.load(res_ptr + res_at, mask=res_ok, other=0.0).to(tl.float32)
    return activated(y, ACT, SLOPE)


@triton.jit
def narrow(y, inverse, OUT: tl.constexpr):
    """Gives y in the type OUT; 8-bit types hold y * inverse, rounded half to even (integers) and saturated."""
    if OUT == tl.int8 or OUT == tl.uint8:  # noqa: PLR1714 - compared by the compiler
        z = y * inverse
        if OUT == tl.int8:
            z = tl.minimum(tl.maximum(z, -128.0), 127.0)
        else:
            z = tl.minimum(tl.maximum(z, 0.0), 255.0)
        # adding 1.5 * 2**23 leaves the nearest integer, ties to even, in the low bits of the mantissa
        bits = (z + 12582912.0).to(tl.int32, bitcast=True)
        return (bits - 0x4B400000).to(OUT)
    elif OUT == tl.float8e4nv:  # noqa: RET505 - the branches not taken must not be compiled
        return tl.minimum(tl.maximum(y * inverse, -448.0), 448.0).to(OUT)
    else:
        return y.to(OUT)


@triton.jit
def add_sums(ys, oks, PARTS: tl.constexpr, sums_ptr, cols, cols_ok):
    """Adds sum and sum of squares of the valid rows of tiles, for each channel, to float64 sums [C, 2].

    Values and squares are added about the tiles' own mean in float32 and moved to the origin in float64, which
    has digits to spare: with mean 100 and SD 0.1 over 2 million voxels nothing cancels.
    """
    added = tl.where(oks[0][:, None], ys[0], 0.0)
    valid = oks[0].to(tl.float32)
    for o in tl.static_range(1, PARTS):
        added += tl.where(oks[o][:, None], ys[o], 0.0)
        valid += oks[o].to(tl.float32)
    n = tl.sum(valid, 0)
    centre = tl.sum(added, 0) / tl.maximum(n, 1.0)
    about = tl.where(oks[0][:, None], ys[0] - centre[None, :], 0.0)
    left = about
    squared = about * about
    for o in tl.static_range(1, PARTS):
        about = tl.where(oks[o][:, None], ys[o] - centre[None, :], 0.0)
        left += about
        squared += about * about
    # the centre is rounded, so that what is left about it is not quite zero
    l64 = tl.sum(left, 0).to(tl.float64)
    c64 = centre.to(tl.float64)
    t64 = n.to(tl.float64) * c64 + l64
    q64 = tl.sum(squared, 0).to(tl.float64) + c64 * (t64 + l64)
    tl.atomic_add(sums_ptr + cols * 2, t64, mask=cols_ok, sem="relaxed")
    tl.atomic_add(sums_ptr + cols * 2 + 1, q64, mask=cols_ok, sem="relaxed")


@triton.jit
def over_group(values, BC: tl.constexpr, GROUP: tl.constexpr):
    """Sum over each group of neighbouring channels, given back to all of them; GROUP a power of two, ≤ BC."""
    each = tl.sum(values.reshape(BC // GROUP, GROUP), 1)
    return tl.broadcast_to(each[:, None], (BC // GROUP, GROUP)).reshape(BC)


@triton.jit
def read_norm(
    sums_ptr, gamma_ptr, beta_ptr, cols, cols_ok, stride, voxels, eps, BC: tl.constexpr, REPLICAS: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Multiplier and addend of a normalisation from its float64 sums [REPLICAS, .., C, 2].

    The replicas are loaded as one tile and reduced, so that each thread loads a few of the numbers and not all
    of those of its columns. Groups of GROUP channels share their statistics; `voxels` counts those of a group. The
    BC columns begin at a multiple of GROUP.
    """
    at = sums_ptr + tl.arange(0, REPLICAS)[:, None] * stride
    ok = cols_ok[None, :] & (tl.arange(0, REPLICAS)[:, None] >= 0)
    share = tl.full((1,), 1.0, tl.float64) / voxels
    if GROUP & (GROUP - 1) == 0 and GROUP <= BC:
        at += (cols * 2)[None, :]
        mean = tl.sum(tl.load(at, mask=ok, other=0.0), 0)
        square = tl.sum(tl.load(at + 1, mask=ok, other=0.0), 0)
        if GROUP > 1:
            mean = over_group(mean, BC, GROUP)
            square = over_group(square, BC, GROUP)
    else:
        at += (cols // GROUP * GROUP * 2)[None, :]
        mean = tl.zeros((BC,), tl.float64)
        square = tl.zeros((BC,), tl.float64)
        for g in range(GROUP):
            mean += tl.sum(tl.load(at + 2 * g, mask=ok, other=0.0), 0)
            square += tl.sum(tl.load(at + 2 * g + 1, mask=ok, other=0.0), 0)
    mean = mean * share
    square = square * share
    variance = (square - mean * mean).to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.maximum(variance, 0.0) + eps)
    a = rstd * tl.load(gamma_ptr + cols, mask=cols_ok, other=0.0)
    b = tl.load(beta_ptr + cols, mask=cols_ok, other=0.0) - mean.to(tl.float32) * a
    return a, b
