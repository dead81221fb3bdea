"""Operators for the float64 evaluator that ONNX's reference runs too slowly in 3D, or not in float64.

Each is a few lines of numpy over the kernel's offsets. Their tests compare them with ONNX Runtime. Arrays are
(n, channels, *spatial). Definitions: the operators' pages of the ONNX standard.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from scipy import special

from wetread.graph.resize import resize

Ints = Sequence[int]


def same_pads(size: Ints, kernel: Ints, strides: Ints, dilations: Ints, upper: bool) -> list[int]:
    """Pads of auto_pad SAME: output is ceil(size / stride); the odd voxel goes to the end where `upper`."""
    begin, end = [], []
    for s, k, stride, d in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (-(-s // stride) - 1) * stride + (k - 1) * d + 1 - s)
        small, large = total // 2, total - total // 2
        begin.append(small if upper else large)
        end.append(large if upper else small)
    return begin + end


def resolve_pads(auto_pad: str, pads: Ints | None, size: Ints, window: tuple[Ints, Ints, Ints]) -> list[int]:
    """Explicit pads (begins, then ends) for auto_pad and pads; window is (kernel, strides, dilations)."""
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        return same_pads(size, *window, upper=auto_pad == "SAME_UPPER")
    if auto_pad == "VALID" or pads is None:
        return [0] * (2 * len(size))
    return list(pads)


def offsets(kernel: Ints, out: Ints, strides: Ints, dilations: Ints) -> Iterator[tuple[Any, Any]]:
    """For each offset in the kernel: the offset, and the index of the padded voxels that it meets."""
    for at in itertools.product(*(range(k) for k in kernel)):
        starts = [a * d for a, d in zip(at, dilations, strict=True)]
        met = (slice(b, b + (n - 1) * s + 1, s) for b, n, s in zip(starts, out, strides, strict=True))
        yield at, (..., *met)


def _widths(pads: Ints) -> list[tuple[int, int]]:
    half = len(pads) // 2
    return [(0, 0), (0, 0), *zip(pads[:half], pads[half:], strict=True)]


class Conv(OpRun):
    """Convolution: sum over kernel offsets of weights times shifted input, per group."""

    def _run(self, x: Any, w: Any, b: Any = None, **at: Any) -> tuple[np.ndarray]:
        kernel, rank = w.shape[2:], x.ndim - 2
        strides, dilations = at["strides"] or [1] * rank, at["dilations"] or [1] * rank
        pads = resolve_pads(at["auto_pad"], at["pads"], x.shape[2:], (kernel, strides, dilations))
        x = np.pad(x, _widths(pads))
        out = [
            (s - (k - 1) * d - 1) // t + 1
            for s, k, d, t in zip(x.shape[2:], kernel, dilations, strides, strict=True)
        ]
        groups = at["group"]
        y = np.zeros((groups, w.shape[0] // groups, x.shape[0], *out))
        xs = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
        ws = w.reshape(groups, -1, *w.shape[1:])
        for offset, where in offsets(kernel, out, strides, dilations):
            for g in range(groups):
                y[g] += np.tensordot(ws[(g, slice(None), slice(None), *offset)], xs[:, g][where], (1, 1))
        y = np.moveaxis(y.reshape(-1, *y.shape[2:]), 1, 0)
        return (y if b is None else y + b.reshape(-1, *[1] * rank),)


class ConvTranspose(OpRun):
    """Transposed convolution: each input voxel adds its weighted kernel to the output."""

    def _run(self, x: Any, w: Any, b: Any = None, **at: Any) -> tuple[np.ndarray]:
        kernel, rank, size = w.shape[2:], x.ndim - 2, x.shape[2:]
        strides, dilations = at["strides"] or [1] * rank, at["dilations"] or [1] * rank
        extra = at["output_padding"] or [0] * rank
        full = [
            (s - 1) * t + (k - 1) * d + 1 + e
            for s, k, d, t, e in zip(size, kernel, dilations, strides, extra, strict=True)
        ]
        pads = self._pads(at, size, strides, full)
        groups = at["group"]
        y = np.zeros((x.shape[0], groups, w.shape[1], *full))
        xs = x.reshape(x.shape[0], groups, -1, *size)
        ws = w.reshape(groups, -1, *w.shape[1:])
        for offset, where in offsets(kernel, size, strides, dilations):
            for g in range(groups):
                part = np.tensordot(ws[(g, slice(None), slice(None), *offset)], xs[:, g], (0, 1))
                y[:, g][where] += np.moveaxis(part, 1, 0)
        y = y.reshape(x.shape[0], -1, *full)
        kept: Any = (..., *(slice(p, f - q) for p, q, f in zip(pads[:rank], pads[rank:], full, strict=True)))
        y = y[kept]
        return (y if b is None else y + b.reshape(-1, *[1] * rank),)

    @staticmethod
    def _pads(at: dict[str, Any], size: Ints, strides: Ints, full: Ints) -> list[int]:
        shape = at["output_shape"]
        if shape is None and at["auto_pad"] in ("SAME_UPPER", "SAME_LOWER"):
            shape = [s * t for s, t in zip(size, strides, strict=True)]
        if shape is None:
            return list(at["pads"] or [0] * (2 * len(size)))
        totals = [f - s for f, s in zip(full, shape[-len(size) :], strict=True)]
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        return small + large if at["auto_pad"] == "SAME_UPPER" else large + small


def _pool(x: np.ndarray, at: dict[str, Any]) -> tuple[list[int], list[int], Any, Any, Any]:
    """Output size, pads (ends enlarged for ceil_mode), kernel, strides and dilations of a pooling operator."""
    kernel, rank, size = at["kernel_shape"], x.ndim - 2, x.shape[2:]
    strides, dilations = at["strides"] or [1] * rank, at.get("dilations") or [1] * rank
    pads = resolve_pads(at["auto_pad"], at["pads"], size, (kernel, strides, dilations))
    out = []
    for i in range(rank):
        span = size[i] + pads[i] + pads[i + rank] - (kernel[i] - 1) * dilations[i] - 1
        n = (-(-span // strides[i]) if at["ceil_mode"] else span // strides[i]) + 1
        if at["ceil_mode"] and (n - 1) * strides[i] >= size[i] + pads[i]:
            n -= 1  # a window that would start in the padding after the end is dropped
        out.append(n)
    return out, pads, kernel, strides, dilations


def _fit(x: np.ndarray, pads: Ints, need: Ints, value: float) -> np.ndarray:
    """Pads at the beginning by `pads`, at the end so that each axis has at least `need` voxels."""
    rank = x.ndim - 2
    ends = [max(pads[i + rank], need[i] - x.shape[i + 2] - pads[i]) for i in range(rank)]
    return np.pad(x, _widths([*pads[:rank], *ends]), constant_values=value)


def _need(out: Ints, kernel: Ints, strides: Ints, dilations: Ints) -> list[int]:
    return [(n - 1) * t + (k - 1) * d + 1 for n, k, t, d in zip(out, kernel, strides, dilations, strict=True)]


class MaxPool(OpRun):
    """Maximum over windows; padding never wins. The second output (indices) is not computed."""

    def _run(self, x: Any, **at: Any) -> tuple[np.ndarray]:
        if len(self.onnx_node.output) > 1:
            raise NotImplementedError("indices of MaxPool")
        out, pads, kernel, strides, dilations = _pool(x, at)
        x = _fit(x, pads, _need(out, kernel, strides, dilations), -np.inf)
        y = np.full((*x.shape[:2], *out), -np.inf)
        for _, where in offsets(kernel, out, strides, dilations):
            np.maximum(y, x[where], out=y)
        return (y,)


class AveragePool(OpRun):
    """Mean over windows; with count_include_pad explicit padding counts, what ceil_mode adds never does."""

    def _run(self, x: Any, **at: Any) -> tuple[np.ndarray]:
        out, pads, kernel, strides, dilations = _pool(x, at)
        rank = x.ndim - 2
        need = _need(out, kernel, strides, dilations)
        ones = np.ones((1, 1, *x.shape[2:]))
        if at["count_include_pad"]:
            ones = np.pad(ones, _widths(pads), constant_values=1.0)
            ones = _fit(ones, [0] * (2 * rank), need, 0.0)
        else:
            ones = _fit(ones, pads, need, 0.0)
        x = _fit(x, pads, need, 0.0)
        y, count = np.zeros((*x.shape[:2], *out)), np.zeros((1, 1, *out))
        for _, where in offsets(kernel, out, strides, dilations):
            y += x[where]
            count += ones[where]
        return (y / count,)


class GlobalMaxPool(OpRun):
    """Maximum over all spatial axes; ONNX's reference takes two of the three."""

    def _run(self, x: Any) -> tuple[np.ndarray]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class GroupNormalization(OpRun):
    """Normalises groups of channels; ONNX's own definition passes through float32.

    Scale and bias are per group in operator set 18, per channel from 21 on.
    """

    def _run(self, x: Any, scale: Any, bias: Any, **at: Any) -> tuple[np.ndarray]:
        groups = at["num_groups"]
        g = x.reshape(x.shape[0], groups, -1)
        mean, var = g.mean(axis=2, keepdims=True), g.var(axis=2, keepdims=True)
        y = ((g - mean) / np.sqrt(var + at["epsilon"])).reshape(x.shape)
        if scale.size != x.shape[1]:
            scale, bias = (np.repeat(v, x.shape[1] // groups) for v in (scale, bias))
        ones = [1] * (x.ndim - 2)
        return (y * scale.reshape(-1, *ones) + bias.reshape(-1, *ones),)


class Erf(OpRun):
    """Error function; ONNX's reference returns float32."""

    def _run(self, x: Any) -> tuple[np.ndarray]:
        return (special.erf(x),)


class Sigmoid(OpRun):
    """Logistic function; ONNX's reference overflows with a warning at large inputs."""

    def _run(self, x: Any) -> tuple[np.ndarray]:
        return (special.expit(x),)


class DequantizeLinear(OpRun):
    """(x − zero point) · scale; ONNX's reference subtracts in float32, which loses 32-bit biases."""

    def _run(self, x: Any, scale: Any, zero: Any = None, **at: Any) -> tuple[np.ndarray]:
        if at.get("block_size"):
            raise NotImplementedError("blocked DequantizeLinear")
        shape = [1] * x.ndim
        if scale.size > 1:
            shape[at["axis"]] = -1
        y = x.astype(np.float64)
        if zero is not None:
            y = y - zero.astype(np.float64).reshape(shape if zero.size > 1 else [1] * x.ndim)
        return (y * scale.astype(np.float64).reshape(shape),)


class Resize(OpRun):
    """Interpolation, axis by axis; see `wetread.graph.resize`."""

    def _run(
        self, x: Any, roi: Any = None, scales: Any = None, sizes: Any = None, **at: Any
    ) -> tuple[np.ndarray]:
        return (resize(x, roi, scales, sizes, at),)


OPERATORS = (
    AveragePool, Conv, ConvTranspose, DequantizeLinear, Erf, GlobalMaxPool, GroupNormalization, MaxPool, Resize,
    Sigmoid,
)  # fmt: skip
