"""Launches the kernels of LayerNorm and softmax."""

from __future__ import annotations

import math

from wetread.kernels.arguments import Tensor, overlapped, require, triton_type
from wetread.kernels.matmul import merged


def _dense(tensor: Tensor, axes: int) -> bool:
    """Whether the last axes are contiguous."""
    expected = 1
    for size, stride in zip(reversed(tensor.shape[-axes:]), reversed(tensor.stride()[-axes:]), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def layer_norm(
    x: Tensor, y: Tensor, gamma: Tensor | None, beta: Tensor | None, *, residual: Tensor | None = None,
    added: Tensor | None = None, axes: int = 1, eps: float = 1e-5, inverse: float = 1.0, rows: int = 4,
    warps: int = 4,
) -> None:  # fmt: skip
    """LayerNorm: y = norm(x + residual) · gamma + beta; added = x + residual.

    Args:
        x, y, residual, added: of one shape, the last `axes` contiguous.
        gamma, beta: of the normalised axes, contiguous.
        axes: how many last axes are normalised together.
        eps: added to the variance.
        inverse: 1 / scale of an 8-bit output.
        rows: of a program.
        warps: of a program.

    Raises:
        EngineError: shapes that the kernel does not take.
    """
    import triton

    from wetread.kernels.device.rows import layer_norm as kernel

    given = [t for t in (x, y, residual, added) if t is not None]
    require(
        all(t.shape == x.shape and _dense(t, axes) for t in given),
        "tensors of one shape, features contiguous",
    )
    require(all(t is None or t.is_contiguous() for t in (gamma, beta)), "contiguous gamma and beta")
    split = x.ndim - axes
    m, c = math.prod(x.shape[:split]), math.prod(x.shape[split:])
    others = [y if t is None else t for t in (residual, added)]
    sizes, strides = merged(x.shape[:split], [t.stride()[:split] for t in (x, y, *others)])
    kernel[(-(-m // rows),)](
        x, others[0], y if gamma is None else gamma, y if beta is None else beta, y, others[1], float(inverse),
        float(eps), m, c, *sizes[1:], *(s for each in strides for s in each),
        RESIDUAL=residual is not None, ADDED=added is not None, SCALED=gamma is not None, BIASED=beta is not None,
        FLAT=sizes[:3] == [1, 1, 1], BM=rows, BC=triton.next_power_of_2(c), OUT=triton_type(y.dtype), **overlapped(),
        num_warps=warps,
    )  # fmt: skip


def softmax(x: Tensor, y: Tensor, axis: int, *, log: bool = False, rows: int = 4, warps: int = 4) -> None:
    """Softmax along one axis, or its logarithm; any strides.

    Raises:
        EngineError: shapes that the kernel does not take.
    """
    import triton

    from wetread.kernels.device.rows import softmax as kernel

    require(x.shape == y.shape, "an output like the input")
    x, y = x.movedim(axis, -1), y.movedim(axis, -1)
    sizes, strides = merged(x.shape[:-1], [x.stride()[:-1], y.stride()[:-1]])
    m, c = math.prod(x.shape[:-1]), x.shape[-1]
    kernel[(-(-m // rows),)](
        x, y, m, c, *sizes[1:], *(s for each in strides for s in each), x.stride(-1), y.stride(-1),
        LOG=log, FLAT=sizes[:3] == [1, 1, 1], BM=rows, BC=triton.next_power_of_2(c), OUT=triton_type(y.dtype),
        **overlapped(), num_warps=warps,
    )  # fmt: skip
