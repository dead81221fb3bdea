"""Kernel, stride, dilation, pads and groups of a convolution, for one to three spatial axes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from wetread.engines.cuda.operations.base import Tensor
from wetread.engines.cuda.program import Shape, Step
from wetread.kernels.arguments import Geometry, Three


def geometry_of(step: Step, weight: Shape) -> Geometry:
    """The geometry of a step whose weight has this shape ([CO, C, *kernel] or [C, CO, *kernel])."""
    a = step.attributes
    pads = a.get("pads", [0] * (2 * (len(weight) - 2)))
    half = len(pads) // 2
    return Geometry(
        _three(weight[2:], 1), _three(a.get("stride", ()), 1), _three(a.get("dilation", ()), 1),
        _three(pads[:half], 0), _three(pads[half:], 0), int(a.get("groups", 1)),
    )  # fmt: skip


def _three(values: Sequence[int], fill: int) -> Three:
    filled = [fill] * (3 - len(values)) + [int(v) for v in values]
    return filled[0], filled[1], filled[2]


def lifted(x: Tensor) -> Tensor:
    """(N, C, *space) as (N, C, D, H, W), missing axes first."""
    while x.ndim < 5:
        x = x.unsqueeze(2)
    return x


def last(x: Tensor) -> Tensor:
    """(N, C, *space) as the kernels name it: a view [N, D, H, W, C] with a C stride of 1."""
    y = lifted(x).permute(0, 2, 3, 4, 1)
    return y if x.shape[1] != 1 else torch.as_strided(y, y.shape, (*y.stride()[:4], 1), y.storage_offset())


def library_type(x: Tensor) -> torch.dtype:
    """In which type the library convolves: the tensor's own; float32 on processors, which are slow in halves."""
    return torch.float32 if x.device.type == "cpu" and x.itemsize == 2 else x.dtype


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, at: Geometry) -> Tensor:
    """The library's convolution of (N, C, D, H, W)."""
    padding: Any = at.before
    if not at.symmetric:
        sides = [n for pair in zip(reversed(at.before), reversed(at.after), strict=True) for n in pair]
        x, padding = torch.nn.functional.pad(x, sides), 0
    return torch.nn.functional.conv3d(x, weight, bias, at.stride, padding, at.dilation, at.groups)


def convolve_transposed(x: Tensor, weight: Tensor, bias: Tensor | None, at: Geometry, more: Three) -> Tensor:
    """The library's transposed convolution of (N, C, D, H, W); `more` is ONNX's output_padding."""
    f = torch.nn.functional.conv_transpose3d
    if at.symmetric:
        return f(x, weight, bias, at.stride, at.before, more, at.groups, at.dilation)
    y = f(x, weight, bias, at.stride, 0, more, at.groups, at.dilation)
    for axis, (b, a) in enumerate(zip(at.before, at.after, strict=True), 2):
        y = y.narrow(axis, b, y.shape[axis] - b - a)
    return y


@contextlib.contextmanager
def rounding(tf32: bool) -> Iterator[None]:
    """Whether float32 products of the library may round their operands to TF32 inside."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before
