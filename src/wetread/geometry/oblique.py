"""Resampling between grids whose axes run in different directions: each target sample by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wetread.geometry.axes import HALF, Float32, Interpolation, antialias_sigma
from wetread.geometry.parallel import Intensity, cpu_count, in_parallel
from wetread.volume import Grid


def resample_oblique(
    array: NDArray[Any],
    source: Grid,
    target: Grid,
    interpolation: Interpolation,
    antialias: bool,
    fill: float | None,
    steps: tuple[Intensity | None, Intensity | None],
    threads: int | None,
) -> Float32:
    """Any two grids: each target sample by itself, a few target planes at a time."""
    voxels = array.astype(np.float32)
    if steps[0] is not None:
        steps[0](voxels)
    into = np.linalg.solve(source.affine, target.affine)
    if antialias:
        reach = np.abs(into[:3, :3]).max(axis=1)
        sigmas = [antialias_sigma(1.0, float(step)) for step in reach]
        voxels = ndimage.gaussian_filter(voxels, sigmas, mode="nearest", truncate=4.0)
    order = {"nearest": 0, "linear": 1, "cubic": 3}[interpolation]
    if order == 3:
        voxels = ndimage.spline_filter(voxels, order=3, output=np.float64, mode="mirror")
    out = np.empty(target.shape, np.float32)
    limits = np.array(source.shape) - 1

    def work(chunk: range) -> None:
        index = (np.arange(chunk.start, chunk.stop)[:, None, None], *np.ogrid[: out.shape[1], : out.shape[2]])
        place = np.empty((3, len(chunk), *out.shape[1:]))
        outside = np.zeros(place.shape[1:], bool)
        for axis in range(3):
            a, b, c, shift = into[axis]
            place[axis] = a * index[0] + b * index[1] + (c * index[2] + shift)
            outside |= (place[axis] < -0.5) | (place[axis] > limits[axis] + 0.5)
            np.clip(place[axis], 0, limits[axis], out=place[axis])
        if order == 0:
            place = np.floor(place + HALF)
        mode = "mirror" if order == 3 else "nearest"
        slab = out[chunk.start : chunk.stop]
        ndimage.map_coordinates(voxels, place, slab, order=order, mode=mode, prefilter=False)
        if fill is not None:
            slab[outside] = fill
        if steps[1] is not None:
            steps[1](slab)

    size = max(1, 500_000 // (out.shape[1] * out.shape[2]))
    starts = range(0, out.shape[0], size)
    in_parallel(work, [range(s, min(s + size, out.shape[0])) for s in starts], threads or cpu_count())
    return out
