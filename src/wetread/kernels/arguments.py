"""What the kernels' launchers take besides tensors, and what they share: types, checks, programmatic launches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from wetread.errors import EngineError

Tensor: TypeAlias = torch.Tensor
Family = Literal["gather", "taps", "planes", "pairs", "march"]


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
        slope: of the leaky ReLU after it (1 none, 0 ReLU).
        groups: of neighbouring channels that are normalised together (0: each by itself).
    """

    sums: Tensor
    gamma: Tensor
    beta: Tensor
    eps: float = 1e-5
    slope: float = 1.0
    groups: int = 0


@dataclass(frozen=True)
class Epilogue:
    """What a convolution does to its result before it is stored.

    Attributes:
        scale: [CO] float32 multiplied in first (8-bit weights and inputs).
        bias: [CO] float32.
        slope: of a leaky ReLU (1 none).
        sums: float64 [replicas, N, CO, 2] to which the norm's sums are added; zeroed by the caller.
        inverse: 1 / scale of an 8-bit output.
        residual: [N, DO, HO, WO, CO] float16, added after the bias, before activation and sums (Hopper's kernels).
    """

    scale: Tensor | None = None
    bias: Tensor | None = None
    slope: float = 1.0
    sums: Tensor | None = None
    inverse: float = 1.0
    residual: Tensor | None = None


PLAIN = Epilogue()
OVERLAP = True  # programmatic dependent launches; read at every launch


def triton_type(dtype: torch.dtype) -> Any:
    """Triton's name of an element type."""
    import triton.language as tl

    return {
        torch.float16: tl.float16,
        torch.bfloat16: tl.bfloat16,
        torch.float32: tl.float32,
        torch.int8: tl.int8,
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


def common_arguments(
    epilogue: Epilogue, like: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any], tuple[int, int]]:
    """Arguments that all families share: pointers, constants, strides of the sums."""
    sums, sums_n, sums_r, replicas, stats = sums_arguments(epilogue.sums, like)
    pointers = (
        like if epilogue.scale is None else epilogue.scale,
        like if epilogue.bias is None else epilogue.bias,
        sums,
        float(epilogue.inverse),
    )
    constants = {
        "SCALED": epilogue.scale is not None,
        "BIASED": epilogue.bias is not None,
        "SLOPE": float(epilogue.slope),
        "STATS": stats,
        "REPLICAS": replicas,
    }
    return pointers, constants, (sums_n, sums_r)
