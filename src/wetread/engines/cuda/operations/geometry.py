"""Kernel, stride, dilation, pads and groups of a convolution, for one to three spatial axes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from wetread.engines.cuda.operations.base import Tensor
from wetread.engines.cuda.program import Shape, Step

Three = tuple[int, int, int]


@dataclass(frozen=True)
class Geometry:
    """How the outputs of a convolution lie to its inputs, along D, H, W (missing axes have one voxel).

    Attributes:
        kernel, stride, dilation: along each axis.
        before, after: zero voxels at both ends.
        groups: of channels.
    """

    kernel: Three
    stride: Three = (1, 1, 1)
    dilation: Three = (1, 1, 1)
    before: Three = (0, 0, 0)
    after: Three = (0, 0, 0)
    groups: int = 1

    @classmethod
    def of(cls, step: Step, weight: Shape) -> Geometry:
        """The geometry of a step whose weight has this shape ([CO, C, *kernel] or [C, CO, *kernel])."""
        a = step.attributes
        rank = len(weight) - 2
        pads = a.get("pads", [0] * (2 * rank))
        half = len(pads) // 2
        return cls(
            _three(weight[2:], 1), _three(a.get("stride", ()), 1), _three(a.get("dilation", ()), 1),
            _three(pads[:half], 0), _three(pads[half:], 0), int(a.get("groups", 1)),
        )  # fmt: skip

    @property
    def symmetric(self) -> bool:
        """Whether both ends of every axis have as many zeros."""
        return self.before == self.after

    @property
    def same(self) -> bool:
        """Whether the output has the input's size, each output voxel above the middle of its kernel."""
        middle = tuple(d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel, strict=True))
        odd = all(k % 2 for k in self.kernel)
        return odd and self.symmetric and self.before == middle and self.stride == (1, 1, 1)

    @property
    def cube(self) -> bool:
        """Whether it is 3×3×3, stride 1, pad 1: what planes, pairs and march take."""
        return self.same and self.kernel == (3, 3, 3) and self.dilation == (1, 1, 1)

    @property
    def point(self) -> bool:
        """Whether it is 1×1×1 on every voxel."""
        return self.kernel == (1, 1, 1) and self.same

    def out_size(self, size: Sequence[int]) -> Three:
        """D, H, W of the output of a convolution of this size."""
        d, h, w = (
            (n + b + a - r * (k - 1) - 1) // s + 1
            for n, b, a, r, k, s in zip(
                size, self.before, self.after, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return d, h, w


def _three(values: Sequence[int], fill: int) -> Three:
    filled = [fill] * (3 - len(values)) + [int(v) for v in values]
    return filled[0], filled[1], filled[2]


def lifted(x: Tensor) -> Tensor:
    """(N, C, *space) as (N, C, D, H, W), missing axes first."""
    while x.ndim < 5:
        x = x.unsqueeze(2)
    return x


def last(x: Tensor) -> Tensor:
    """(N, C, *space) as the kernels name it: a view [N, D, H, W, C]."""
    return lifted(x).permute(0, 2, 3, 4, 1)


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
