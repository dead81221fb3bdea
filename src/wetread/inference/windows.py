"""Where the windows lie and how much each counts.

Windows form a product lattice: each is one start along every axis. So do the weights: along each axis the
one-dimensional weights of all windows that cover an index are divided by their sum, and a window's weight
at a voxel is the product over the axes. The weights of all windows that cover a voxel then sum to 1 (a
partition of unity), and blending needs no division at the end. A recipe that raises small weights to a floor
couples the axes; then weights are made of the products, block by block (`Importance`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wetread.geometry import lattice_index
from wetread.recipe import Recipe, Tiling
from wetread.volume import Grid


@dataclass(frozen=True)
class Window:
    """One window of a sweep.

    Attributes:
        ordinal: place in the canonical order (axis 0 slowest).
        index: which window along each axis.
        start: index of its first voxel on the prepared grid; may be negative, or reach past the end.
    """

    ordinal: int
    index: tuple[int, int, int]
    start: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class AxisWindows:
    """The windows along one axis.

    Attributes:
        starts: first index of each window on the prepared grid, rising.
        size: voxels of a window.
        count: voxels of the prepared grid.
        weights: (windows, size) float32; sums to 1 over the windows at every index of the grid, 0 outside.
        profile: (size,) float32, a window's weights before that.
    """

    starts: tuple[int, ...]
    size: int
    count: int
    weights: NDArray[np.float32]
    profile: NDArray[np.float32]

    def span(self, number: int) -> tuple[int, int]:
        """First and one-past-last index of the grid that a window covers."""
        start = self.starts[number]
        return max(0, start), min(self.count, start + self.size)


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """All windows of a prepared grid, and the least product of their profiles (0: none)."""

    axes: tuple[AxisWindows, AxisWindows, AxisWindows]
    floor: float = 0.0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of a window along each axis."""
        a, b, c = (axis.size for axis in self.axes)
        return a, b, c

    @property
    def rows(self) -> int:
        """Number of windows along axis 0."""
        return len(self.axes[0].starts)

    @property
    def per_row(self) -> int:
        """Number of windows with the same start along axis 0."""
        return len(self.axes[1].starts) * len(self.axes[2].starts)

    def __len__(self) -> int:
        return self.rows * self.per_row

    def __iter__(self) -> Iterator[Window]:
        numbers = (range(len(axis.starts)) for axis in self.axes)
        for ordinal, (a, b, c) in enumerate(itertools.product(*numbers)):
            start = (self.axes[0].starts[a], self.axes[1].starts[b], self.axes[2].starts[c])
            yield Window(ordinal, (a, b, c), start)


def plan_windows(recipe: Recipe, grid: Grid) -> WindowPlan:
    """Windows of a prepared grid, as the recipe's tiling says."""
    tiling = recipe.tiling
    if tiling.kind == "whole":
        sizes = tuple(-(-n // m) * m for n, m in zip(grid.shape, tiling.multiple, strict=True))
        starts: list[list[int]] = [[0], [0], [0]]
    else:
        assert tiling.window is not None and tiling.stride is not None
        sizes = tiling.window
        if tiling.kind == "lattice":
            first = np.round(lattice_index(grid)).astype(int)
            starts = [
                lattice_starts(int(f), n, w, s)
                for f, n, w, s in zip(first, grid.shape, sizes, map(int, tiling.stride), strict=True)
            ]
        else:
            axes = list(zip(grid.shape, sizes, tiling.stride, strict=True))
            if tiling.last == "even":
                starts = [even_starts(n, w, s) for n, w, s in axes]
            else:
                starts = [clamped_starts(n, w, int(s)) for n, w, s in axes]
    a, b, c = (
        AxisWindows(
            tuple(begin),
            size,
            count,
            axis_weights(begin, size, count, tiling),
            axis_profile(size, tiling).astype(np.float32),
        )
        for begin, size, count in zip(starts, sizes, grid.shape, strict=True)
    )
    return WindowPlan((a, b, c), 0.0 if tiling.kind == "whole" else tiling.floor)


def lattice_starts(first: int, count: int, window: int, stride: int) -> list[int]:
    """Starts relative to the grid of windows at whole multiples of the stride.

    A window that holds no index of the grid but those that a neighbour covers too is left out.

    Args:
        first: lattice coordinate of the grid's index 0.
        count: voxels of the grid.
        window: voxels of a window.
        stride: voxels between windows.
    """
    lowest = first // stride
    highest = max(lowest, -(-(first + count - window) // stride))
    return [number * stride - first for number in range(lowest, highest + 1)]


def even_starts(count: int, window: int, stride: float) -> list[int]:
    """nnU-Net's starts: as few steps of at most the stride as cover the axis, evenly spread and rounded.

    A grid smaller than the window is centred in it (the odd voxel goes to the end).
    """
    if count <= window:
        return [-((window - count) // 2)]
    steps = int(-(-(count - window) // stride))
    return [int(np.round((count - window) / steps * number)) for number in range(steps + 1)]


def clamped_starts(count: int, window: int, stride: int) -> list[int]:
    """MONAI's starts: multiples of the stride, the last window moved back inside.

    A grid smaller than the window is centred in it (the odd voxel goes to the end).
    """
    if count <= window:
        return [-((window - count) // 2)]
    steps = -(-(count - window) // stride)
    return [min(number * stride, count - window) for number in range(steps + 1)]


def axis_weights(starts: list[int], window: int, count: int, tiling: Tiling) -> NDArray[np.float32]:
    """Weights along one axis, (windows, window), normalised over the windows at each index of the grid."""
    shape = axis_profile(window, tiling)
    weights = np.zeros((len(starts), window))
    total = np.zeros(count)
    for number, start in enumerate(starts):
        lower, upper = max(0, start), min(count, start + window)
        weights[number, lower - start : upper - start] = shape[lower - start : upper - start]
        total[lower:upper] += weights[number, lower - start : upper - start]
    for number, start in enumerate(starts):
        lower, upper = max(0, start), min(count, start + window)
        weights[number, lower - start : upper - start] /= total[lower:upper]
    return weights.astype(np.float32)


def axis_profile(window: int, tiling: Tiling) -> NDArray[np.float64]:
    """A window's weights along one axis, (window,).

    ``gaussian``: exp(−(i − p)² / (2 (sigma·w)²)) with p = (w−1)/2, as in MONAI's importance map, or p = w//2
    with ``peak`` at a voxel, as in nnU-Net's; ``constant``: 1.
    """
    if tiling.kind == "whole" or tiling.blending != "gaussian":
        return np.ones(window)
    place = np.arange(window) - ((window - 1) / 2 if tiling.peak == "middle" else window // 2)
    exponent = -(place**2) / (2 * (tiling.sigma * window) ** 2)
    return np.asarray(np.exp(np.maximum(exponent, -80.0)))


class Importance:
    """Weights of windows whose profiles' product has a floor, for the planes of one block.

    The weight of a window at a voxel is max(product of the profiles, floor), divided by the sum of those of all
    windows that cover the voxel.

    Args:
        plan: the windows.
        first, last: planes ``first ≤ z < last``, which the same rows of windows cover.
        rows: first and last of these rows.
    """

    def __init__(self, plan: WindowPlan, first: int, last: int, rows: tuple[int, int]) -> None:
        self._plan = plan
        self._planes = (first, last)
        total = np.zeros((last - first, plan.axes[1].count, plan.axes[2].count), np.float32)
        for row in range(rows[0], rows[1] + 1):
            for b in range(len(plan.axes[1].starts)):
                for c in range(len(plan.axes[2].starts)):
                    box, weights = self._raised((row, b, c))
                    total[box] += weights
        self._total = total

    def of(self, index: tuple[int, int, int]) -> tuple[tuple[slice, slice, slice], NDArray[np.float32]]:
        """Where a window lies in the block (planes, rows, columns), and its weights there."""
        box, weights = self._raised(index)
        weights /= self._total[box]
        return box, weights

    def _raised(self, index: tuple[int, int, int]) -> tuple[tuple[slice, slice, slice], NDArray[np.float32]]:
        first, last = self._planes
        along, down, across = self._plan.axes
        begin = along.starts[index[0]]
        (y0, y1), (x0, x1) = down.span(index[1]), across.span(index[2])
        y, x = down.starts[index[1]], across.starts[index[2]]
        plane = down.profile[y0 - y : y1 - y, None] * across.profile[x0 - x : x1 - x]
        weights = along.profile[first - begin : last - begin, None, None] * plane
        np.maximum(weights, np.float32(self._plan.floor), out=weights)
        return (slice(0, last - first), slice(y0, y1), slice(x0, x1)), weights
