"""Arithmetic on voxel fields that the phantom is made of: noise, blurs, ramps.

Every function takes the array module ``xp`` (numpy or cupy) and gives the same field on both up to float
rounding, because random numbers come from a numpy ``Generator`` on the host or from a hash of the voxel index.
Axis order is (z, y, x), z toward Superior, y toward Posterior, x toward Left; lengths are millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""A numpy or cupy array."""
Module: TypeAlias = Any
"""The module ``numpy`` or ``cupy``."""


@dataclass(frozen=True)
class Frame:
    """The voxel grid: ``shape`` in voxels, ``spacing_mm``, both (z, y, x); the middle of x and y is 0 mm, the
    lowest slice is at z = 0 mm.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    xp: Module = np

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Size of the grid, mm."""
        z, y, x = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return z, y, x

    @property
    def voxel_mm(self) -> float:
        """Edge of the cube with the voxel's volume, mm."""
        return float(np.prod(self.spacing_mm) ** (1 / 3))

    @property
    def origin_mm(self) -> tuple[float, float, float]:
        """Centre of voxel (0, 0, 0), mm."""
        _, y, x = ((n - 1) * s / 2 for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return 0.0, -y, -x

    def axes(self) -> tuple[Array, Array, Array]:
        """Coordinates in mm, broadcastable: z (n, 1, 1), y (1, n, 1), x (1, 1, n); float32."""
        out = []
        for axis in range(3):
            line = np.arange(self.shape[axis]) * self.spacing_mm[axis] + self.origin_mm[axis]
            form = [1, 1, 1]
            form[axis] = -1
            out.append(self.xp.asarray(line.astype(np.float32)).reshape(form))
        return out[0], out[1], out[2]

    def index(self, points_mm: Array) -> Array:
        """Nearest voxel indices (n, 3), clipped to the grid, of points (n, 3) in mm; on the host."""
        rel = (points_mm - np.asarray(self.origin_mm)) / np.asarray(self.spacing_mm)
        return np.clip(np.rint(rel).astype(np.int64), 0, np.asarray(self.shape) - 1)

    def look_up(self, field: Array, points_mm: Array) -> Array:
        """Values of a field at the voxels nearest to points (n, 3) in mm; on the host."""
        i = self.index(points_mm)
        flat = np.ravel_multi_index((i[:, 0], i[:, 1], i[:, 2]), self.shape)
        return to_host(field.reshape(-1)[self.xp.asarray(flat)])


def to_host(array: Array) -> Array:
    """The array as numpy."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


def ramp(distance_mm: Array, width_mm: float, xp: Module) -> Array:
    """Share of a voxel inside a surface: 0 to 1 across ``width_mm`` around distance 0 (positive is inside)."""
    return xp.clip(distance_mm * np.float32(1 / width_mm) + np.float32(0.5), 0, 1)


def smoothstep(low: float, high: float, value: Array, xp: Module) -> Array:
    """0 below ``low``, 1 above ``high``, a cubic between."""
    t = xp.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _spline_matrix(count: int, step_mm: float, scale_mm: float) -> tuple[Array, int]:
    """Uniform cubic B-spline weights (count, knots) for samples every ``step_mm`` and knots every ``scale_mm``."""
    at = np.arange(count) * step_mm / scale_mm
    cell = np.floor(at).astype(int)
    t = at - cell
    knots = int(cell[-1]) + 4
    weights = np.zeros((count, knots), np.float32)
    rows = np.arange(count)
    for k, w in enumerate(((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)):
        weights[rows, cell + k] = w / 6
    return weights, knots


def smooth_noise(rng: np.random.Generator, frame: Frame, scale_mm: float) -> Array:
    """Smooth random field, about unit variance, whose features are ``scale_mm`` wide; float32."""
    xp = frame.xp
    parts = [_spline_matrix(n, s, scale_mm) for n, s in zip(frame.shape, frame.spacing_mm, strict=True)]
    knots = rng.standard_normal([p[1] for p in parts], dtype=np.float32) * np.float32(2.9)
    wz, wy, wx = (xp.asarray(p[0]) for p in parts)
    field = xp.tensordot(wz, xp.asarray(knots), axes=(1, 0))
    field = xp.matmul(wy, field)
    return xp.matmul(field, wx.T)


def smooth_sheet(rng: np.random.Generator, frame: Frame, scale_mm: float, axes: tuple[int, int]) -> Array:
    """As `smooth_noise` over two axes only; shaped to broadcast over the third."""
    flat = [n if a in axes else 1 for a, n in enumerate(frame.shape)]
    spacing = frame.spacing_mm
    return smooth_noise(rng, Frame((flat[0], flat[1], flat[2]), spacing, frame.xp), scale_mm)


def white_noise(frame: Frame, key: int) -> Array:
    """Nearly Gaussian white noise, zero mean, unit variance, from a hash of voxel index and ``key``; float32.

    The sum of the four bytes of a 32-bit hash (the finaliser of MurmurHash3, A. Appleby, public domain).
    """
    xp = frame.xp
    h = xp.arange(int(np.prod(frame.shape)), dtype=xp.uint32)
    h ^= xp.uint32((key * 2654435761 + 374761393) & 0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, None)):
        h ^= h >> xp.uint32(shift)
        if factor is not None:
            h *= xp.uint32(factor)
    low, high = xp.uint32(0x00FF00FF), xp.uint32(8)
    pair = (h & low) + ((h >> high) & low)
    total = (pair & xp.uint32(0xFFFF)) + (pair >> xp.uint32(16))
    return ((total.astype(xp.float32) - np.float32(510)) * np.float32(1 / 147.8)).reshape(frame.shape)


def blur(field: Array, sigma_vox: tuple[float, float, float], xp: Module) -> Array:
    """Separable Gaussian blur, edges replicated; sigmas in voxels, (z, y, x), 0 leaves an axis alone."""
    for axis, sigma in enumerate(sigma_vox):
        if sigma < 0.15:
            continue
        half = max(1, int(np.ceil(2.6 * sigma)))
        taps = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
        taps = (taps / taps.sum()).astype(np.float32)
        pad = [(0, 0)] * 3
        pad[axis] = (half, half)
        wide = xp.pad(field, pad, mode="edge")
        size = field.shape[axis]
        out = field * taps[half]
        for k in range(half):
            for start in (k, 2 * half - k):
                view = [slice(None)] * 3
                view[axis] = slice(start, start + size)
                out += wide[tuple(view)] * taps[k]
        field = out
    return field
