"""Chains of elementwise instructions: the compiler reads the program, registers are values of the block."""

import triton
import triton.language as tl

from wetread.kernels.device.epilogue import activated, after_previous, narrow


@triton.jit
def offset_of(e, SIZES: tl.constexpr, STRIDES: tl.constexpr, OPERAND: tl.constexpr):
    """Where an element lies in an operand; axes from the outermost, the first one's size is not needed."""
    at = e * 0
    rest = e
    RANK: tl.constexpr = len(SIZES)
    for i in tl.static_range(RANK - 1):
        if STRIDES[OPERAND][RANK - 1 - i] != 0:
            at += rest % SIZES[RANK - 1 - i] * STRIDES[OPERAND][RANK - 1 - i]
        rest = rest // SIZES[RANK - 1 - i]
    return at + rest * STRIDES[OPERAND][0]


@triton.jit
def rounded(x):
    """The nearest integer, ties to even; numbers beyond 2**22 are taken for integers, which hides no half."""
    near = (x + 12582912.0) - 12582912.0
    return tl.where(tl.abs(x) < 4194304.0, near, x)


@triton.jit
def instruction(regs, CODE: tl.constexpr, AT: tl.constexpr):
    """One instruction on the float32 blocks of earlier registers; P and Q are its parameters."""
    NAME: tl.constexpr = CODE[6 * AT]
    P: tl.constexpr = CODE[6 * AT + 4]
    Q: tl.constexpr = CODE[6 * AT + 5]
    a = regs[CODE[6 * AT + 1]]
    b = regs[CODE[6 * AT + 2]]
    c = regs[CODE[6 * AT + 3]]
    every: tl.constexpr = tl.PropagateNan.ALL
    if NAME == "value":
        y = tl.full(a.shape, P, tl.float32)
    elif NAME == "add":
        y = a + b
    elif NAME == "sub":
        y = a - b
    elif NAME == "mul":
        y = a * b
    elif NAME == "div":
        y = a / b
    elif NAME == "min":
        y = tl.minimum(a, b, propagate_nan=every)
    elif NAME == "max":
        y = tl.maximum(a, b, propagate_nan=every)
    elif NAME == "neg":
        y = -a
    elif NAME == "abs":
        y = tl.abs(a)
    elif NAME == "exp":
        y = tl.exp(a)
    elif NAME == "log":
        y = tl.log(a)
    elif NAME == "sqrt":
        y = tl.sqrt(a)
    elif NAME == "reciprocal":
        y = 1.0 / a
    elif NAME == "erf":
        y = tl.erf(a)
    elif NAME == "floor":
        y = tl.floor(a)
    elif NAME == "ceil":
        y = tl.ceil(a)
    elif NAME == "round":
        y = rounded(a)
    elif NAME == "sin":
        y = tl.sin(a)
    elif NAME == "cos":
        y = tl.cos(a)
    elif NAME == "softplus":
        y = tl.maximum(a, 0.0, propagate_nan=every) + tl.log(1.0 + tl.exp(-tl.abs(a)))
    elif NAME == "greater":
        y = (a > b).to(tl.float32)
    elif NAME == "less":
        y = (a < b).to(tl.float32)
    elif NAME == "equal":
        y = (a == b).to(tl.float32)
    elif NAME == "greater_or_equal":
        y = (a >= b).to(tl.float32)
    elif NAME == "less_or_equal":
        y = (a <= b).to(tl.float32)
    elif NAME == "where":
        y = tl.where(a != 0.0, b, c)
    elif NAME == "relu":
        y = tl.maximum(a, 0.0, propagate_nan=every)
    elif NAME == "clip":
        y = tl.minimum(tl.maximum(a, P, propagate_nan=every), Q, propagate_nan=every)
    elif NAME == "hard_sigmoid":
        y = tl.minimum(tl.maximum(a * P + Q, 0.0, propagate_nan=every), 1.0, propagate_nan=every)
    else:
        y = activated(a, NAME, P)
    return y


@triton.jit
def pointwise(
    x0_ptr, x1_ptr, x2_ptr, x3_ptr, y_ptr, inverse, elements,
    CODE: tl.constexpr, INPUTS: tl.constexpr, SIZES: tl.constexpr, STRIDES: tl.constexpr,
    BLOCK: tl.constexpr, OUT: tl.constexpr, WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Y of up to four operands; STRIDES has those of y, then of each operand. Grid (blocks of elements)."""
    after_previous(PDL)
    pid = tl.program_id(0)
    if WIDE:  # more than 2**31 elements
        pid = pid.to(tl.int64)
    e = pid * BLOCK + tl.arange(0, BLOCK)
    ok = e < elements
    regs = ()
    for i in tl.static_range(INPUTS):
        if i == 0:
            ptr = x0_ptr
        elif i == 1:
            ptr = x1_ptr
        elif i == 2:
            ptr = x2_ptr
        else:
            ptr = x3_ptr
        x = tl.load(ptr + offset_of(e, SIZES, STRIDES, i + 1), mask=ok, other=0.0)
        regs = regs + (x.to(tl.float32),)
    for i in tl.static_range(len(CODE) // 6):
        regs = regs + (instruction(regs, CODE, i),)
    tl.store(
        y_ptr + offset_of(e, SIZES, STRIDES, 0),
        narrow(regs[INPUTS + len(CODE) // 6 - 1], inverse, OUT),
        mask=ok,
    )
