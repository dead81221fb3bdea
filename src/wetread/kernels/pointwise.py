"""Launcher of pointwise chains (device/pointwise.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from wetread.kernels.arguments import Tensor, overlapped, require, triton_type

MOST_INPUTS = 4
MOST_AXES = 5
"""Operands and axes, after axes that lie together are joined, that the kernel takes."""

Code = tuple[str | int | float, ...]
"""Name, a, b, c, p, q of each instruction in turn."""


def collapsed(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Axes in the order of the first operand's memory, joined where all operands allow it.

    Args:
        shape: of all operands, broadcast.
        strides: of each operand; 0 along axes that it repeats.

    Returns:
        Sizes, and strides of each operand, from the outermost axis.
    """
    order = sorted(
        (i for i in range(len(shape)) if shape[i] != 1), key=lambda i: (-strides[0][i], -strides[-1][i])
    )
    sizes: list[int] = []
    found: list[list[int]] = [[] for _ in strides]
    for i in order:
        joins = bool(sizes) and all(f[-1] == s[i] * shape[i] for f, s in zip(found, strides, strict=True))
        if joins:
            sizes[-1] *= shape[i]
        else:
            sizes.append(shape[i])
        for f, s in zip(found, strides, strict=True):
            if joins:
                f[-1] = s[i]
            else:
                f.append(s[i])
    return (sizes, found) if sizes else ([1], [[1] for _ in strides])


def applies(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> bool:
    """Whether the kernel takes an output of this shape and operands of these strides (the output's first)."""
    return len(strides) - 1 <= MOST_INPUTS and len(collapsed(shape, strides)[0]) <= MOST_AXES


def pointwise(
    inputs: Sequence[Tensor], out: Tensor, code: Code, *, inverse: float = 1.0, block: int = 2048, warps: int = 4
) -> None:  # fmt: skip
    """Runs a chain of instructions in float32.

    Args:
        inputs: one to four tensors expanded to out's shape.
        out: any strides.
        code: instructions: operands are numbers of registers, of which the inputs are the first; the last one is
            the result.
        inverse: an 8-bit out holds the result times it.
        block: elements of a program, a power of two.
        warps: of a program.
    """
    from wetread.kernels.device.pointwise import pointwise as kernel

    require(0 < len(inputs) <= MOST_INPUTS, "one to four inputs")
    require(all(x.shape == out.shape for x in inputs), f"inputs of the output's shape {tuple(out.shape)}")
    sizes, strides = collapsed(out.shape, [t.stride() for t in (out, *inputs)])
    require(len(sizes) <= MOST_AXES, f"at most {MOST_AXES} axes that cannot be joined, found {len(sizes)}")
    elements = math.prod(out.shape)
    reach = max(sum((n - 1) * s for n, s in zip(sizes, each, strict=True)) for each in strides)
    pointers = (*inputs, *[inputs[0]] * (MOST_INPUTS - len(inputs)))
    kernel[(-(-elements // block),)](
        *pointers, out, inverse, elements, CODE=code, INPUTS=len(inputs), SIZES=tuple(sizes),
        STRIDES=tuple(map(tuple, strides)), BLOCK=block, OUT=triton_type(out.dtype),
        WIDE=max(elements + block, reach) >= 2**31, **overlapped(), num_warps=warps,
    )  # fmt: skip
