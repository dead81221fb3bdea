"""The Resize operator in float64: one matrix (outputs × inputs) for each axis, from the ONNX standard's formulas."""

from __future__ import annotations

from typing import Any

import numpy as np


def resize(x: np.ndarray, roi: Any, scales: Any, sizes: Any, at: dict[str, Any]) -> np.ndarray:
    """Resizes an array.

    Args:
        x: any rank.
        roi: normalised starts, then ends, for ``tf_crop_and_resize``; else None.
        scales, sizes: one of them, for all axes or those of the attribute ``axes``.
        at: attributes of the node: mode (nearest, linear, cubic), coordinate_transformation_mode,
            nearest_mode, cubic_coeff_a, exclude_outside, extrapolation_value, axes, keep_aspect_ratio_policy.

    Raises:
        NotImplementedError: anti-aliasing, which no network in use here asks for.
    """
    if at.get("antialias"):
        raise NotImplementedError("Resize with antialias")
    axes = [axis % x.ndim for axis in (at.get("axes") or range(x.ndim))]
    factors, lengths = _targets(x, axes, scales, sizes, at.get("keep_aspect_ratio_policy") or "stretch")
    outside = np.zeros((), bool)
    for i, axis in enumerate(axes):
        crop = (0.0, 1.0)
        if roi is not None and np.size(roi):
            crop = float(roi[i]), float(roi[i + len(axes)])
        if lengths[i] == x.shape[axis] and factors[i] == 1 and crop == (0.0, 1.0):
            continue
        at_input = positions(
            lengths[i], x.shape[axis], factors[i], at["coordinate_transformation_mode"], crop
        )
        matrix = weights(at_input, x.shape[axis], at)
        x = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
        if at["coordinate_transformation_mode"] == "tf_crop_and_resize":
            beyond = (at_input < 0) | (at_input > matrix.shape[1] - 1)
            outside = outside | beyond.reshape([-1 if k == axis else 1 for k in range(x.ndim)])
    return np.where(outside, at.get("extrapolation_value", 0.0), x) if outside.any() else x


def _targets(
    x: np.ndarray, axes: list[int], scales: Any, sizes: Any, policy: str
) -> tuple[list[float], list[int]]:
    """Scale factor and output length of each axis."""
    if scales is not None and np.size(scales):
        factors = [float(scale) for scale in scales]
        return factors, [int(np.floor(x.shape[a] * f)) for a, f in zip(axes, factors, strict=True)]
    lengths = [int(size) for size in sizes]
    factors = [n / x.shape[a] for a, n in zip(axes, lengths, strict=True)]
    if policy != "stretch":
        factor = min(factors) if policy == "not_larger" else max(factors)
        factors = [factor] * len(axes)
        lengths = [int(np.floor(factor * x.shape[a] + 0.5)) for a in axes]
    return factors, lengths


def positions(out: int, size: int, factor: float, mode: str, crop: tuple[float, float]) -> np.ndarray:
    """Where each output voxel lies on the input axis, in voxels (coordinate_transformation_mode)."""
    i = np.arange(out, dtype=np.float64)
    if mode == "asymmetric":
        return i / factor
    if mode == "align_corners":
        return i * (size - 1) / (out - 1) if out > 1 else np.zeros(1)
    if mode == "tf_crop_and_resize":
        begin, end = crop
        if out > 1:
            return begin * (size - 1) + i * (end - begin) * (size - 1) / (out - 1)
        return np.array([0.5 * (begin + end) * (size - 1)])
    if mode == "pytorch_half_pixel" and out == 1:
        return np.zeros(1)
    found = (i + 0.5) / factor - 0.5
    if mode == "half_pixel_symmetric":
        found += size / 2 * (1 - out / (factor * size))
    return found


def weights(at_input: np.ndarray, size: int, at: dict[str, Any]) -> np.ndarray:
    """Matrix (outputs, inputs) of interpolation weights; beyond the edge the edge voxel is repeated."""
    matrix = np.zeros((len(at_input), size))
    rows = np.arange(len(at_input))
    if at["mode"] == "nearest":
        matrix[rows, np.clip(_nearest(at_input, at["nearest_mode"]), 0, size - 1)] = 1.0
        return matrix
    base = np.floor(at_input).astype(int)
    t = at_input - base
    if at["mode"] == "linear":
        terms = {0: 1 - t, 1: t}
    else:
        a = at["cubic_coeff_a"]
        terms = {k: _cubic(np.abs(t - k), a) for k in (-1, 0, 1, 2)}
    for k, value in terms.items():
        inside = (base + k >= 0) & (base + k < size)
        used = np.where(inside, value, 0.0) if at["exclude_outside"] else value
        np.add.at(matrix, (rows, np.clip(base + k, 0, size - 1)), used)
    if at["exclude_outside"]:
        matrix /= matrix.sum(axis=1, keepdims=True)
    return matrix


def _nearest(at_input: np.ndarray, mode: str) -> np.ndarray:
    at_input = np.round(at_input, 5)  # scales are stored in float32: 1.5 / 0.6 − 0.5 is meant to be 2.0
    if mode == "floor":
        found = np.floor(at_input)
    elif mode == "ceil":
        found = np.ceil(at_input)
    elif mode == "round_prefer_ceil":
        found = np.floor(at_input + 0.5)
    else:
        found = np.ceil(at_input - 0.5)
    nearest: np.ndarray = found.astype(int)
    return nearest


def _cubic(d: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (IEEE ASSP 29, 1981) at distance d."""
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
