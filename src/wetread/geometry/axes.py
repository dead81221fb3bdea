"""One axis at a time: where target samples lie on a source axis, and the weights that make them.

A resampling between grids of equal directions is a product of three one-dimensional linear maps. Each is
a banded matrix: linear interpolation has two entries a row, the interpolating cubic B-spline has its
evaluation times the inverse of its sampling matrix (entries decay as 0.268ⁿ), and a Gaussian against
aliasing widens either. `Band` applies such a matrix block by block as small dense products.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wetread.volume import Grid

Interpolation = Literal["linear", "cubic", "nearest"]
Boundary = Literal["mirror", "edge"]
Float32 = NDArray[np.float32]
_SNAP = 1e-9  # voxels: rounding of the affine, not a shift
_NEGLIGIBLE = 1e-9  # entries below this part of a row's largest are dropped
HALF = 0.5 + 1e-6  # nearest: halves go up, whatever the rounding of the affine
_REACH = 12  # voxels by which an edge is continued for a spline, as scipy.ndimage does; 0.268¹² is 1e-7
_BLOCK = 16
_PRODUCT = 250_000  # multiplications below which OpenBLAS keeps a product in the calling thread (262,144)


@dataclass(frozen=True)
class AxisMap:
    """Target index t lies at source index ``offset + scale·t`` on ``source_axis``.

    Attributes:
        source_axis: axis of the source array.
        scale: target spacing in source voxels, negative where the axes run against each other.
        offset: source index of target index 0.
        source_count, target_count: voxels along both.
    """

    source_axis: int
    scale: float
    offset: float
    source_count: int
    target_count: int

    @cached_property
    def coordinates(self) -> NDArray[np.float64]:
        """Source index of each target index, shape (target_count,)."""
        place = self.offset + self.scale * np.arange(self.target_count)
        near = np.round(place)
        return np.where(np.abs(place - near) < _SNAP * np.maximum(1, self.source_count), near, place)

    @property
    def identity(self) -> bool:
        """True where each target sample is the source sample of the same index."""
        return self.source_count == self.target_count and np.array_equal(
            self.coordinates, np.arange(self.target_count)
        )

    @property
    def outside(self) -> NDArray[np.bool_]:
        """Target samples further than half a source voxel outside the outermost source centres."""
        return (self.coordinates < -0.5 - 1e-6) | (self.coordinates > self.source_count - 0.5 + 1e-6)

    def taps(self) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """For linear interpolation: lower source index, and weight of the next one, each (target_count,).

        Coordinates outside the source are clamped to its first and last centre. The weight is 0 where a
        sample coincides, and the next index is then not read.
        """
        place = np.clip(self.coordinates, 0, self.source_count - 1)
        lower = np.floor(place).astype(np.intp)
        return lower, (place - lower).astype(np.float32)

    def nearest(self) -> NDArray[np.intp]:
        """Nearest source index (halves up), clamped, shape (target_count,)."""
        place = np.floor(self.coordinates + HALF)
        return np.clip(place, 0, self.source_count - 1).astype(np.intp)

    def matrix(
        self, interpolation: Interpolation, sigma: float = 0.0, boundary: Boundary = "mirror"
    ) -> NDArray[np.float64]:
        """Dense weights, shape (target_count, source_count); each row sums to 1.

        Args:
            interpolation: ``linear`` and ``nearest`` are clamped at the ends; ``cubic`` is the
                interpolating B-spline of degree 3 (Unser, Aldroubi, Eden 1993).
            sigma: standard deviation in source voxels of a Gaussian (cut at 4 sigma, ends clamped) that
                goes before, 0 for none.
            boundary: of the cubic spline: whole-sample ``mirror``, evaluated at clamped coordinates; or
                ``edge``, where the outermost values go on beyond the ends (scipy.ndimage.zoom in mode nearest,
                which is scikit-image's resize in mode edge), evaluated up to half a voxel outside.
        """
        count = self.source_count
        rows = np.arange(self.target_count)
        weights = np.zeros((self.target_count, count))
        place = np.clip(self.coordinates, 0, count - 1)
        lower = np.floor(place).astype(int)
        part = place - lower
        if interpolation == "nearest":
            weights[rows, self.nearest()] = 1.0
        elif interpolation == "linear" or count == 1:
            np.add.at(weights, (rows, lower), 1.0 - part)
            np.add.at(weights, (rows, np.minimum(lower + 1, count - 1)), part)
        elif boundary == "mirror":
            weights = _spline(place, count, "mirror")
        else:
            beyond = np.clip(self.coordinates, -0.5, count - 0.5) + _REACH
            wide = _spline(beyond, count + 2 * _REACH, "nearest")
            weights = wide[:, _REACH:-_REACH]
            weights[:, 0] += wide[:, :_REACH].sum(axis=1)
            weights[:, -1] += wide[:, -_REACH:].sum(axis=1)
        if sigma > 0:
            smooth = ndimage.gaussian_filter1d(np.eye(count), sigma, axis=0, mode="nearest", truncate=4.0)
            weights = weights @ smooth
        return weights


def _spline(place: NDArray[np.float64], count: int, mode: str) -> NDArray[np.float64]:
    """Interpolating cubic B-spline at places within 0 … count−1: evaluation times inverse sampling matrix."""
    rows = np.arange(len(place))
    weights = np.zeros((len(place), count))
    lower = np.floor(place).astype(int)
    part = place - lower
    spline = ((1 - part) ** 3, 4 - 6 * part**2 + 3 * part**3)
    last = (1 + 3 * part + 3 * part**2 - 3 * part**3, part**3)
    for tap, value in zip((-1, 0, 1, 2), (*spline, *last), strict=True):
        np.add.at(weights, (rows, _mirrored(lower + tap, count)), value / 6.0)
    return np.asarray(weights @ ndimage.spline_filter1d(np.eye(count), order=3, axis=0, mode=mode))


def _mirrored(index: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Whole-sample mirror: …2 1 0 1 2…; count must exceed 1."""
    period = 2 * (count - 1)
    folded = np.abs(index) % period
    return np.where(folded >= count, period - folded, folded)


class Band:
    """A banded matrix, applied along one axis as small dense products in float32.

    Products of one size always give the same numbers, whichever thread runs them. The blocks are small
    enough for a matrix product to stay in one thread, so that callers can run one plane per thread.

    Args:
        matrix: (target, source), float64.
    """

    def __init__(self, matrix: NDArray[np.float64]) -> None:
        self.target_count, self.source_count = matrix.shape
        large = np.abs(matrix) > _NEGLIGIBLE * np.abs(matrix).max(axis=1, keepdims=True)
        first = large.argmax(axis=1)
        last = self.source_count - large[:, ::-1].argmax(axis=1)
        self.blocks: list[tuple[slice, slice, Float32]] = []
        for start in range(0, self.target_count, _BLOCK):
            rows = slice(start, min(start + _BLOCK, self.target_count))
            columns = slice(int(first[rows].min()), int(last[rows].max()))
            self.blocks.append((rows, columns, np.ascontiguousarray(matrix[rows, columns], dtype=np.float32)))

    def rows(self, plane: Float32, out: Float32) -> None:
        """Along axis 0: plane (source, n) to out (target, n)."""
        for target, source, weights in self.blocks:
            step = max(1, _PRODUCT // weights.size)
            for start in range(0, plane.shape[1], step):
                part = slice(start, start + step)
                np.matmul(weights, plane[source, part], out=out[target, part])

    def columns(self, plane: Float32, out: Float32) -> None:
        """Along axis 1: plane (n, source) to out (n, target)."""
        for target, source, weights in self.blocks:
            step = max(1, _PRODUCT // weights.size)
            for start in range(0, plane.shape[0], step):
                part = slice(start, start + step)
                np.matmul(plane[part, source], weights.T, out=out[part, target])


def axis_maps(source: Grid, target: Grid, tolerance: float = 1e-3) -> tuple[AxisMap, AxisMap, AxisMap] | None:
    """How each target axis runs along one source axis, or None where directions differ.

    Args:
        source: grid that is sampled.
        target: grid of the samples.
        tolerance: largest shift, in source voxels, that may be neglected anywhere on the target grid.
    """
    into = np.linalg.solve(source.affine, target.affine)
    step, offset = into[:3, :3], into[:3, 3]
    axes = np.abs(step).argmax(axis=0)
    if sorted(axes) != [0, 1, 2]:
        return None
    across = step.copy()
    across[axes, np.arange(3)] = 0.0
    if (np.abs(across) * (np.array(target.shape) - 1)).sum(axis=1).max() > tolerance:
        return None
    a, b, c = (
        AxisMap(int(j), float(step[j, i]), float(offset[j]), source.shape[j], target.shape[i])
        for i, j in enumerate(axes)
    )
    return a, b, c


def antialias_sigma(old_mm: float, new_mm: float) -> float:
    """Standard deviation, in source voxels, of the Gaussian that goes before downsampling.

    ``max(0, (new/old − 1)/2)``, the rule of scikit-image's `transform.resize` (and of MONAI's `Resize`
    with anti_aliasing): 0 where the spacing does not grow.
    """
    return max(0.0, (new_mm / old_mm - 1.0) / 2.0)


def coarse_axis(
    before_mm: tuple[float, float, float], after_mm: tuple[float, float, float], anisotropy: float
) -> int | None:
    """The axis that is resampled by itself, by nnU-Net's rule (`determine_do_sep_z_and_axis`); None for none.

    The first of both spacings whose largest is more than ``anisotropy`` times its smallest decides; its coarse
    axis is the one of the largest, unless two axes share it.

    Args:
        before_mm, after_mm: spacing before and after resampling, in the same order of axes.
        anisotropy: ratio above which a spacing counts.
    """
    for spacing in (before_mm, after_mm):
        largest = max(spacing)
        if largest / min(spacing) > anisotropy:
            axes = [axis for axis in range(3) if np.isclose(spacing[axis], largest, rtol=1e-6, atol=0)]
            return axes[0] if len(axes) == 1 else None
    return None
