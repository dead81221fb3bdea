"""Resampling between grids: world coordinates are kept, values are interpolated.

Rules at the ends: a sample within half a source voxel of the outermost centres takes the value of the
nearest edge (coordinates are clamped); further out it takes ``fill``, or the edge value where fill is None.
Where both grids have the same directions up to order and sign of axes, the work is separable: each source
plane is turned into float32 and resampled in cache by banded products, then planes are combined along the
source's axis 0, several planes at once in threads. Otherwise each target sample is interpolated by itself.
Either way a target plane comes out of the same operations whether computed alone or with others, so that
slabs and whole volumes agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.errors import GeometryError
from wetread.geometry.axes import (
    Band,
    Boundary,
    Float32,
    Interpolation,
    antialias_sigma,
    axis_maps,
)
from wetread.geometry.oblique import resample_oblique
from wetread.geometry.parallel import Intensity, cpu_count, in_parallel
from wetread.volume import Grid


@dataclass(frozen=True)
class Method:
    """How values between voxels are made.

    Attributes:
        interpolation: ``linear``, ``cubic`` (interpolating B-spline) or ``nearest``.
        antialias: smooth axes whose spacing grows, by `antialias_sigma`.
        boundary: how a cubic spline goes on beyond the ends, see `AxisMap.matrix`.
        limit: results stay within the range of the source's values; with a coarse axis, of the slice's.
        coarse: axis of the source grid that is interpolated by ``along``, None for none.
        along: interpolation on the coarse axis.
    """

    interpolation: Interpolation = "linear"
    antialias: bool = False
    boundary: Boundary = "mirror"
    limit: bool = False
    coarse: int | None = None
    along: Interpolation = "nearest"


class Resampler:
    """A separable resampling, planned once and run slab by slab along the source's axis 0.

    Args:
        source: grid of the arrays that will be given.
        target: grid of the result; equal directions up to order and sign of axes.
        interpolation: how values between voxels are made; a `Method` for all that can be said of it. One that
            limits slices needs the coarse axis first.
        antialias: as `Method`'s, where only the interpolation is named.
        fill: value of samples more than half a source voxel outside; None for the edge's value.

    Raises:
        GeometryError: the directions differ.

    Attributes:
        order: for each source axis, the target axis that runs along it.
        maps: axis maps in the order of the source's axes.
        bands: in-plane weights along source axes 1 and 2, None where nothing changes.
        lower, weight: for each target plane along source axis 0, the lower of two source planes and the
            weight of the next.
        outside: target indices that take ``fill``, along each source axis.
    """

    def __init__(
        self,
        source: Grid,
        target: Grid,
        interpolation: Interpolation | Method = "linear",
        antialias: bool = False,
        fill: float | None = None,
    ) -> None:
        maps = axis_maps(source, target)
        if maps is None:
            raise GeometryError("source and target axes run in different directions", code="NOT_SEPARABLE")
        method = interpolation if isinstance(interpolation, Method) else Method(interpolation, antialias)
        self.order = tuple(sorted(range(3), key=lambda axis: maps[axis].source_axis))
        self.maps = tuple(maps[axis] for axis in self.order)
        self.fill = fill
        self.method = method
        kinds = [method.along if axis == method.coarse else method.interpolation for axis in range(3)]
        self.gathers = kinds[1:] == ["nearest", "nearest"]
        old, new = source.spacing_mm, target.spacing_mm
        sigmas = [
            antialias_sigma(old[m.source_axis], new[axis]) if method.antialias else 0.0
            for axis, m in zip(self.order, self.maps, strict=True)
        ]
        self.bands = [
            None if m.identity or self.gathers else Band(m.matrix(kind, sigma, method.boundary))
            for m, sigma, kind in zip(self.maps[1:], sigmas[1:], kinds[1:], strict=True)
        ]
        self._nearest = [m.nearest() for m in self.maps]
        along = self.maps[0]
        self._wide: NDArray[np.float64] | None = None
        if self.limits_all or kinds[0] == "cubic" or (kinds[0] == "linear" and sigmas[0] > 0):
            if self.limits_all or not along.identity:
                self._wide = along.matrix(kinds[0], sigmas[0], method.boundary)
            self.lower, self.weight = self._nearest[0], np.zeros(along.target_count, np.float32)
        else:
            self.lower, self.weight = self.taps(0)
        self.outside = [
            np.flatnonzero(m.outside) if fill is not None else np.zeros(0, int) for m in self.maps
        ]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the result in the source's axis order."""
        a, b, c = (m.target_count for m in self.maps)
        return a, b, c

    @property
    def limits_all(self) -> bool:
        """True where results stay within the range of the whole source: all of it is looked at first."""
        moved = any(not m.identity for m in self.maps)
        return self.method.limit and self.method.coarse is None and moved

    def taps(self, axis: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Lower source index and weight of the next along a source axis; nearest on a nearest axis."""
        here = self.method.along if axis == self.method.coarse else self.method.interpolation
        if here != "nearest":
            return self.maps[axis].taps()
        return self._nearest[axis], np.zeros(self.maps[axis].target_count, np.float32)

    @property
    def target_axis(self) -> int:
        """Which target axis runs along the source's axis 0."""
        return self.order[0]

    @property
    def streams(self) -> bool:
        """True where a target plane needs two source planes at most."""
        return self._wide is None

    def support(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """First and last source plane that each target plane along the source's axis 0 needs."""
        if self._wide is not None:
            count = self.maps[0].target_count
            return np.zeros(count, np.intp), np.full(count, self.maps[0].source_count - 1)
        return self.lower, self.lower + (self.weight > 0)

    def in_target_order(self, array: NDArray[Any]) -> NDArray[Any]:
        """View of an array in the source's axis order, in the target's order."""
        return array.transpose(*(self.order.index(axis) for axis in range(3)))

    def run(
        self,
        planes: Callable[[int], NDArray[Any]],
        wanted: Iterable[int],
        out: Float32,
        before: Intensity | None = None,
        after: Intensity | None = None,
        threads: int | None = None,
    ) -> None:
        """Computes target planes along the source's axis 0.

        Args:
            planes: gives source plane s, 2D, any real type; asked only for planes that are needed.
            wanted: target planes to compute.
            out: float32, `shape`; planes ``wanted`` are written.
            before, after: intensity steps before and after interpolation; fill values go through ``after``.
            threads: how many planes at a time, by default one for each core.
        """
        threads = threads or cpu_count()
        todo = sorted(wanted)
        if self._wide is not None:
            self._run_wide(planes, todo, out, (before, after), threads)
            return
        size = max(4, -(-len(todo) // (4 * threads)))
        chunks = [todo[start : start + size] for start in range(0, len(todo), size)]

        def work(chunk: list[int]) -> None:
            self._stream(planes, chunk, out, before, after)

        in_parallel(work, chunks, threads)

    def _stream(
        self,
        planes: Callable[[int], NDArray[Any]],
        wanted: list[int],
        out: Float32,
        before: Intensity | None,
        after: Intensity | None,
    ) -> None:
        flat = _Flat(self, before)
        spare = np.empty(self.shape[1:], np.float32)
        made: dict[int, Float32] = {}
        for target in wanted:
            lower, weight = int(self.lower[target]), self.weight[target]
            needed = (lower,) if weight == 0 else (lower, lower + 1)
            free = [made.pop(source) for source in list(made) if source not in needed]
            for source in needed:
                if source not in made:
                    buffer = free.pop() if free else np.empty(self.shape[1:], np.float32)
                    flat(planes(source), buffer)
                    made[source] = buffer
            plane = out[target]
            if weight == 0:
                plane[...] = made[lower]
            else:
                np.multiply(made[lower], np.float32(1) - weight, out=plane)
                np.multiply(made[lower + 1], weight, out=spare)
                plane += spare
            self._finish(target, plane, after)

    def _run_wide(
        self,
        planes: Callable[[int], NDArray[Any]],
        wanted: list[int],
        out: Float32,
        steps: tuple[Intensity | None, Intensity | None],
        threads: int,
    ) -> None:
        """Wide support along axis 0 (cubic, smoothing): all flat planes first, then products along it."""
        count, rows, columns = self.maps[0].source_count, *self.shape[1:]
        middle = np.empty((count, rows, columns), np.float32)
        assert self._wide is not None
        band = Band(self._wide)

        ends = np.empty((count, 2), np.float32)

        def flatten(chunk: range) -> None:
            flat = _Flat(self, steps[0])
            for source in chunk:
                ends[source] = flat(planes(source), middle[source])

        def combine(row: int) -> None:
            result = np.empty((self.shape[0], columns), np.float32)
            band.rows(middle[:, row], result)
            out[:, row] = result

        in_parallel(flatten, [range(s, min(s + 16, count)) for s in range(0, count, 16)], threads)
        if len(wanted) != self.shape[0]:
            raise GeometryError("a resampling of wide support runs for all planes at once")
        in_parallel(combine, range(rows), threads)
        if self.limits_all:
            np.clip(out, ends[:, 0].min(), ends[:, 1].max(), out=out)
        for target in wanted:
            self._finish(target, out[target], steps[1])

    def _finish(self, target: int, plane: Float32, after: Intensity | None) -> None:
        if self.fill is not None:
            if target in self.outside[0]:
                plane[...] = self.fill
            plane[self.outside[1]] = self.fill
            plane[:, self.outside[2]] = self.fill
        if after is not None:
            after(plane)


class _Flat:
    """Resamples single planes within the plane; owns buffers, so one for each thread."""

    def __init__(self, plan: Resampler, before: Intensity | None) -> None:
        rows, columns = plan.maps[1], plan.maps[2]
        self._plan = plan
        self._before = before
        self._raw = np.empty((rows.source_count, columns.source_count), np.float32)
        self._half = np.empty((rows.target_count, columns.source_count), np.float32)

    def __call__(self, plane: NDArray[Any], out: Float32) -> tuple[float, float]:
        """Writes the resampled plane; returns smallest and largest value before, where these are limits."""
        limit = self._plan.method.limit
        if self._plan.gathers:
            out[...] = plane[np.ix_(self._plan._nearest[1], self._plan._nearest[2])]
            if self._before is not None:
                self._before(out)
            return (float(out.min()), float(out.max())) if limit else (0.0, 0.0)
        rows, columns = self._plan.bands
        raw = out if rows is None and columns is None else self._raw
        np.copyto(raw, plane, casting="unsafe")
        if self._before is not None:
            self._before(raw)
        ends = (float(raw.min()), float(raw.max())) if limit else (0.0, 0.0)
        if rows is not None:
            half = out if columns is None else self._half
            rows.rows(raw, half)
            raw = half
        if columns is not None:
            columns.columns(raw, out)
        if limit and self._plan.method.coarse is not None:
            np.clip(out, *ends, out=out)
        return ends


def resample(
    array: NDArray[Any],
    source: Grid,
    target: Grid,
    interpolation: Interpolation | Method = "linear",
    *,
    antialias: bool = False,
    fill: float | None = None,
    steps: tuple[Intensity | None, Intensity | None] = (None, None),
    threads: int | None = None,
) -> Float32:
    """Resamples an array from one grid to another, keeping world coordinates.

    Args:
        array: ``source.shape``, any real type.
        source: where its voxels lie.
        target: where the result's voxels lie; may be oblique to the source.
        interpolation: ``linear`` (exact on linear ramps), ``cubic`` (interpolating B-spline of degree 3,
            mirror boundaries), ``nearest`` (halves up); or a `Method`, whose ``limit`` and ``coarse`` need
            grids of the same directions.
        antialias: Gaussian smoothing before, along axes whose spacing grows (`antialias_sigma`).
        fill: value more than half a source voxel outside; None for the value of the nearest edge.
        steps: intensity steps before and after interpolation, in place on float32.
        threads: threads to use, by default one for each core.

    Returns:
        float32, ``target.shape``; possibly a transposed view.

    Raises:
        GeometryError: array and source grid do not have the same shape.
    """
    if array.shape != source.shape:
        raise GeometryError(f"array has shape {array.shape}, its grid {source.shape}", code="VOLUME_SHAPE")
    method = interpolation if isinstance(interpolation, Method) else Method(interpolation, antialias)
    if axis_maps(source, target) is None:
        if method.limit or method.coarse is not None:
            raise GeometryError("one axis cannot be resampled by itself between oblique grids")
        oblique = (method.interpolation, method.antialias)
        return resample_oblique(array, source, target, *oblique, fill, steps, threads)
    order = sorted(range(3), key=lambda axis: (axis != method.coarse, -abs(array.strides[axis])))
    if order != [0, 1, 2]:
        array, source = array.transpose(order), _transposed(source, order)
    if method.coarse is not None:
        method = replace(method, coarse=0)
    plan = Resampler(source, target, method, fill=fill)
    out = np.empty(plan.shape, np.float32)
    plan.run(array.__getitem__, range(plan.shape[0]), out, steps[0], steps[1], threads)
    return plan.in_target_order(out)


def _transposed(grid: Grid, order: list[int]) -> Grid:
    affine = np.array(grid.affine)
    affine[:3, :3] = grid.affine[:3, order]
    shape = tuple(grid.shape[axis] for axis in order)
    return Grid((shape[0], shape[1], shape[2]), affine, grid.frame_of_reference)
