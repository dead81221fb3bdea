"""What the kernels' launchers take besides tensors, and what they share: types, checks, programmatic launches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from wetread.errors import EngineError

Tensor: TypeAlias = torch.Tensor
Three: TypeAlias = tuple[int, int, int]
Family = Literal["gather", "taps", "strided", "planes", "pairs", "march"]


@dataclass(frozen=True)
class Tile:
    """How a convolution is cut into programs.

    Attributes:
        family: which kernel (see device/conv.py; march is hopper/march.cu, which cuts by itself).
        shape: output voxels of a program along D, H, W; for pairs W counts pairs; for gather the product
            is the number of rows.
        bn: output channels of a program (for pairs: of 2·CO).
        bk: input channels of one step (for pairs: of 4·C).
        warps: warps of a program.
        stages: depth of the software pipeline.
        splits: programs that share one output's K, each writing a part.
    """

    family: Family
    shape: tuple[int, int, int]
    bn: int
    bk: int
    warps: int = 4
    stages: int = 3
    splits: int = 1


@dataclass(frozen=True)
class Norm:
    """An instance or group norm whose sums are ready: what its consumer needs to apply it.

    Attributes:
        sums: float64 [replicas, N, C, 2], sum and sum of squares.
        gamma: [C] float32.
        beta: [C] float32.
        eps: added to the variance.
        slope: of the leaky ReLU after it (1 none, 0 ReLU), or the parameter of another activation.
        groups: of neighbouring channels that are normalised together (0: each by itself).
        activation: its name, see `ACTIVATIONS`; march takes the leaky ReLU alone.
    """

    sums: Tensor
    gamma: Tensor
    beta: Tensor
    eps: float = 1e-5
    slope: float = 1.0
    groups: int = 0
    activation: str = "leaky"


@dataclass(frozen=True)
class Epilogue:
    """What a convolution does to its result before it is stored.

    Attributes:
        scale: [CO] float32 multiplied in first (8-bit weights and inputs).
        bias: [CO] float32.
        slope: of a leaky ReLU (1 none), or the parameter of another activation.
        sums: float64 [replicas, N, CO, 2] to which the norm's sums are added; zeroed by the caller.
        inverse: 1 / scale of an 8-bit output.
        residual: [N, DO, HO, WO, CO], added after the bias, before activation and sums (float16 for march).
        activation: its name, see `ACTIVATIONS`; march takes the leaky ReLU alone.
    """

    scale: Tensor | None = None
    bias: Tensor | None = None
    slope: float = 1.0
    sums: Tensor | None = None
    inverse: float = 1.0
    residual: Tensor | None = None
    activation: str = "leaky"


@dataclass(frozen=True)
class Geometry:
    """How the outputs of a convolution lie to its inputs, along D, H, W.

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
    def spread(self) -> bool:
        """Whether it is 3×3×3 of one group, stride 1, pads as dilation: what planes takes."""
        return self.same and self.kernel == (3, 3, 3) and self.groups == 1

    @property
    def cube(self) -> bool:
        """Whether it is `spread` by 1: what pairs and march take."""
        return self.spread and self.dilation == (1, 1, 1)

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


def same_geometry(kernel: Three, stride: int = 1, dilation: int = 1) -> Geometry:
    """The geometry of an odd kernel, padded by dilation · (kernel − 1) / 2."""
    a, b, c = (dilation * (k - 1) // 2 for k in kernel)
    return Geometry(kernel, (stride,) * 3, (dilation,) * 3, (a, b, c), (a, b, c))


ACTIVATIONS = ("leaky", "elu", "sigmoid", "tanh", "silu", "gelu", "gelu_tanh", "mish", "hard_swish")
"""Activations of the general kernels (device/epilogue.py: activated)."""

PLAIN = Epilogue()
CUBE = same_geometry((3, 3, 3))
OVERLAP = True  # programmatic dependent launches; read at every launch


def triton_type(dtype: torch.dtype) -> Any:
    """Triton's name of an element type."""
    import triton.language as tl

    return {
        torch.float16: tl.float16,
        torch.bfloat16: tl.bfloat16,
        torch.float32: tl.float32,
        torch.int8: tl.int8,
        torch.uint8: tl.uint8,
        torch.float8_e4m3fn: tl.float8e4nv,
    }[dtype]


def overlapped() -> dict[str, bool]:
    """Whether a launch may begin while the one before ends (Hopper and later); each waits before it reads."""
    on = OVERLAP and torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 9
    return {"PDL": True, "launch_pdl": True} if on else {"PDL": False}


def accumulator(dtype: torch.dtype) -> Any:
    """The type in which products of this one are added."""
    import triton.language as tl

    return tl.int32 if dtype == torch.int8 else tl.float32


def require(condition: bool, what: str) -> None:
    """Raises EngineError where a launcher's tensors are not what it takes."""
    if not condition:
        raise EngineError(f"a kernel was launched with tensors it does not take: {what}")


def require_channels_last(*tensors: Tensor) -> None:
    """Raises EngineError unless all are [N, D, H, W, C] with a C stride of 1."""
    for t in tensors:
        require(
            t.ndim == 5 and t.stride(-1) == 1, f"[N, D, H, W, C] with C contiguous, found {tuple(t.shape)}"
        )


def sums_arguments(sums: Tensor | None, like: Tensor) -> tuple[Tensor, int, int, int, bool]:
    """Pointer (any, where there is none), strides of N and of replicas, replicas, whether there are sums."""
    if sums is None:
        return like, 0, 0, 1, False
    require(
        sums.dtype == torch.float64 and sums.is_contiguous() and sums.ndim == 4,
        "sums are float64 [R, N, C, 2]",
    )
    return sums, sums.stride(1), sums.stride(0), sums.shape[0], True


def norm_arguments(norm: Norm | None, x: Tensor) -> tuple[tuple[Any, ...], tuple[int, int], dict[str, Any]]:
    """Arguments of a norm applied to x [.., C], or of none.

    Returns:
        Pointers (sums, gamma, beta), eps and values in a group; strides of the sums; constants without prefix.
    """
    if norm is None:
        none = {"NORM": False, "IN_ACT": "leaky", "IN_SLOPE": 1.0, "GROUP": 1, "REPLICAS": 1}
        return (x, x, x, 1.0, 1), (0, 0), none
    sums, sums_n, sums_r, replicas, _ = sums_arguments(norm.sums, x)
    c = x.shape[-1]
    require(norm.sums.shape[2] == c and c % (norm.groups or c) == 0, f"sums of {c} channels in whole groups")
    group = c // (norm.groups or c)
    voxels = x.shape[1] * x.shape[2] * x.shape[3] * group
    constants = {
        "NORM": True, "IN_ACT": norm.activation, "IN_SLOPE": float(norm.slope), "GROUP": group, "REPLICAS": replicas,
    }  # fmt: skip
    return (sums, norm.gamma, norm.beta, norm.eps, voxels), (sums_n, sums_r), constants


def common_arguments(
    epilogue: Epilogue, like: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any], tuple[int, int]]:
    """Arguments that all convolutions share.

    Returns:
        Pointers (scale, bias, residual, sums), inverse and strides of the residual; constants; strides of the sums.
    """
    sums, sums_n, sums_r, replicas, stats = sums_arguments(epilogue.sums, like)
    residual = like if epilogue.residual is None else epilogue.residual
    if epilogue.residual is not None:
        require_channels_last(residual)
        require(residual.shape == like.shape, f"a residual of the output's shape {tuple(like.shape)}")
    pointers = (
        like if epilogue.scale is None else epilogue.scale, like if epilogue.bias is None else epilogue.bias, residual,
        sums, float(epilogue.inverse), *residual.stride()[:4],
    )  # fmt: skip
    constants = {
        "SCALED": epilogue.scale is not None,
        "BIASED": epilogue.bias is not None,
        "RESIDUAL": epilogue.residual is not None,
        "ACT": epilogue.activation,
        "SLOPE": float(epilogue.slope),
        "STATS": stats,
        "REPLICAS": replicas,
    }
    return pointers, constants, (sums_n, sums_r)
