"""Host side of point.cu (the head, and transposed convolutions 2×2×2): when it applies, its weights, its launches."""

from __future__ import annotations

import ctypes
from typing import TypeAlias

import torch

from wetread.errors import EngineError
from wetread.kernels.arguments import PLAIN, Epilogue, Norm
from wetread.kernels.hopper import driver, parts

Tensor: TypeAlias = torch.Tensor
THREADS, CHUNK = 256, 32


def _even(x: Tensor) -> bool:
    """Whether the voxels of [N, D, H, W, C] are evenly spaced."""
    return bool(x.stride(2) == x.shape[3] * x.stride(3) and x.stride(1) == x.shape[2] * x.stride(2))


def _lanes(rows: Tensor) -> Tensor:
    """[products of 8, 8, C] as lanes take them: [products, C / 32, 32 lanes, 8 channels]."""
    p, _, c = rows.shape
    # product, column, chunk, quad, channel; a lane is a column and a quad
    return rows.reshape(p, 8, c // CHUNK, 4, 8).transpose(1, 2).reshape(p, c // CHUNK, 32, 8).contiguous()


def applies_up(channels: int, co: int, dtype: torch.dtype) -> bool:
    """Whether a transposed convolution fits: 2×2×2, stride 2, no pads, groups 1, float16, on Hopper.

    Args:
        channels: 32, 64, 96 or 128; the input's voxels are evenly spaced.
        co: a multiple of 32, with at most 200 kB of weights.
        dtype: of input and weights: float16. The output may be float16 or of 8 bits, of any strides.
    """
    fits = channels in (32, 64, 96, 128) and co % 32 == 0 and 16 * channels * co <= 200_000
    return fits and dtype == torch.float16


def pack_up(weight: Tensor) -> Tensor:
    """Transposed convolution's [C, CO, 2, 2, 2] as lanes take it."""
    c, co = weight.shape[:2]
    rows = weight.flatten(2).permute(2, 1, 0).reshape(8, co // 32, 32, c)[:, :, parts.order(32)]
    return _lanes(rows.reshape(-1, 8, c).to(torch.float16))


def applies_head(channels: int, classes: int, dtype: torch.dtype) -> bool:
    """Whether a head fits: 1×1×1 to at most 32 classes, float16 (norm on load with a leaky ReLU or none), on Hopper.

    Args:
        channels: 32, 64, 96 or 128; the input's voxels are evenly spaced.
        classes: results lie in planes [N, K, D, H, W], each contiguous.
        dtype: of input and weights: float16. The output is float16 or float32.
    """
    return channels in (32, 64, 96, 128) and 1 <= classes <= 32 and dtype == torch.float16


def pack_head(weight: Tensor) -> Tensor:
    """[K, C, 1, 1, 1] as lanes take it."""
    k, c = weight.shape[:2]
    rows = torch.zeros(-(-k // 8) * 8, c, dtype=torch.float16, device=weight.device)
    rows[:k] = weight.reshape(k, c).to(torch.float16)
    return _lanes(rows.reshape(-1, 8, c))


def defines(channels: int, epilogue: Epilogue, norm: bool, out: torch.dtype, up: bool, classes: int = 0,
            softmax: bool = False) -> list[str]:  # fmt: skip
    """Constants of one layer."""
    kind = out if up else torch.float16
    return [
        "KIND=0", "S=32", f"UP={int(up)}", f"CHUNKS={channels // CHUNK}", f"NORM={int(norm)}", f"THREADS={THREADS}",
        f"TILES={-(-classes // 8)}", f"SOFTMAX={int(softmax)}", f"WIDE={int(out == torch.float32)}",
        *parts.epilogue_defines(epilogue, kind),
    ]  # fmt: skip


def _launch(
    x: Tensor, weight: Tensor, norm: Norm | None, constants: list[str], output: ctypes.Structure, classes: int
) -> None:
    if not _even(x):
        raise EngineError("family point was launched on an input whose voxels are not evenly spaced")
    n, d, h, w, c = x.shape
    items = weight.numel() // 8
    shared = items * 16 + c * 8 + 16
    function = parts.function(parts.text("point"), "point", tuple(constants), shared)
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count
    most = max(1, -(-(d * h * w) // THREADS))
    grid = min(most, max(1, processors * min(4, max(1, 200_000 // shared)) // n))
    i, q = ctypes.c_int, ctypes.c_int64
    driver.launch(function, (grid, n), THREADS, shared, [
        x, weight, i(d), i(h), i(w), q(x.stride(0)), q(x.stride(3)), i(items), i(classes), output,
        parts.source(norm, c, 1.0),
    ])  # fmt: skip


def upconv_point(
    x: Tensor, weight: Tensor, out: Tensor, epilogue: Epilogue = PLAIN, norm: Norm | None = None
) -> None:
    """Transposed convolution: x [N, D, H, W, C] (raw with `norm`), weights from `pack_up`, out [N, 2D, 2H, 2W, CO].

    Raises:
        EngineError: x's voxels are not evenly spaced.
    """
    constants = defines(x.shape[-1], epilogue, norm is not None, out.dtype, True)
    _launch(x, weight, norm, constants, parts.output(out, epilogue), 0)


def head_point(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    norm: Norm | None = None,
    softmax: bool = False,
) -> None:
    """1×1×1: x [N, D, H, W, C] (raw with `norm`), weights from `pack_head`, out [N, K, D, H, W] in contiguous planes.

    Raises:
        EngineError: x's voxels are not evenly spaced, or the planes of `out` are not contiguous.
    """
    if not out[0, 0].is_contiguous():
        raise EngineError("family point was launched on an output whose planes are not contiguous")
    classes = out.shape[1]
    epilogue = Epilogue(bias=bias)
    constants = defines(x.shape[-1], epilogue, norm is not None, out.dtype, False, classes, softmax)
    planes = out.permute(0, 2, 3, 1, 4)  # so that the stride of classes is the fourth
    _launch(x, weight, norm, constants, parts.output(planes, epilogue), classes)
