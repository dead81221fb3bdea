"""Executes a recipe's preprocessing steps.

Under `lattice` tiling all steps are local: each channel is resampled on the lattice as its slices come.
Otherwise the steps run in their order once all slices of all channels are in; neighbouring intensity steps
and a resampling are fused plane by plane, with the same result.

Definitions, with the peers they agree with: `clip`, `scale` as MONAI's ScaleIntensityRange; `normalise` as
nnU-Net's CTNormalization (after its clip); `zscore` subtracts the mean and divides by the population
standard deviation (at least 1e-8, as nnU-Net's ZScoreNormalization), with ``nonzero`` over voxels that are
not zero, as MONAI's NormalizeIntensity(nonzero, channel_wise), with ``filled`` over the region in which any
channel is not zero, holes filled (scipy's binary_fill_holes), as nnU-Net's ZScoreNormalization with its mask,
which it takes before any channel is changed; `minmax` takes numpy's linear percentiles for
each channel (MONAI's ScaleIntensityRangePercentiles), a constant channel becomes 0; `crop` and `pad` as
MONAI's CropForeground and DivisiblePad (symmetric, the odd voxel at the end); `fit` as its
ResizeWithPadOrCrop; `resize` is a `resample` whose edges coincide (Resize without align_corners).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wetread.geometry import (
    Intensity,
    Method,
    Orientation,
    coarse_axis,
    cpu_count,
    fitted_grid,
    resample,
    shifted_grid,
)
from wetread.recipe import (
    Clip,
    Crop,
    Fit,
    MinMax,
    Normalise,
    Pad,
    Recipe,
    Resample,
    Resize,
    Scale,
    Step,
    ZScore,
)
from wetread.volume import Grid

Float32 = NDArray[np.float32]


def intensity(steps: Sequence[Step], channel: int | None = None) -> Intensity | None:
    """One function, in place on float32, for clip, scale and normalise steps; None for none.

    Args:
        steps: pointwise steps in their order.
        channel: leaves out steps for other channels; None takes all.
    """
    parts: list[tuple[str, np.float32, np.float32]] = []
    for step in steps:
        if channel is not None and not applies(step, channel):
            continue
        if isinstance(step, Clip):
            parts.append(("clip", np.float32(step.lower), np.float32(step.upper)))
        elif isinstance(step, Scale):
            factor = (step.to_upper - step.to_lower) / (step.upper - step.lower)
            parts.append(("affine", np.float32(factor), np.float32(step.to_lower - step.lower * factor)))
        elif isinstance(step, Normalise):
            parts.append(("affine", np.float32(1 / step.std), np.float32(-step.mean / step.std)))
    if not parts:
        return None

    def run(array: Float32) -> None:
        for kind, a, b in parts:
            if kind == "clip":
                np.clip(array, a, b, out=array)
            else:
                array *= a
                array += b

    return run


def applies(step: Step, channel: int) -> bool:
    """Whether a step changes the intensities of a channel."""
    chosen: tuple[int, ...] = getattr(step, "channels", ())
    return not chosen or channel in chosen


def is_pointwise(step: Step) -> bool:
    """True for steps that look at one voxel at a time."""
    return isinstance(step, Clip | Scale | Normalise)


def prepared_grid(recipe: Recipe, source: Grid) -> Grid | None:
    """Grid after all steps that follow the source's extent; None where it depends on voxels (crop)."""
    grid = Orientation.of_grid(source, recipe.orientation).grid(source)
    for step in recipe.steps:
        if isinstance(step, Crop):
            return None
        step = _resampling(step, grid)  # noqa: PLW2901
        if isinstance(step, Pad):
            grid = shifted_grid(grid, *_pad_limits(grid, step))
        elif isinstance(step, Fit):
            grid = shifted_grid(grid, *_fit_limits(grid, step))
        elif isinstance(step, Resample):
            grid = fitted_grid(grid, step.spacing_mm, step.alignment)
    return grid


def _resampling(step: Step, grid: Grid) -> Step:
    """The step itself; a resize as the resampling that it is on this grid."""
    if not isinstance(step, Resize):
        return step
    i, j, k = (old * n / m for old, n, m in zip(grid.spacing_mm, grid.shape, step.shape, strict=True))
    return Resample(spacing_mm=(i, j, k), interpolation=step.interpolation, antialias=step.antialias)


def prepare(
    recipe: Recipe, channels: Sequence[NDArray[np.generic]], source: Grid, threads: int | None = None
) -> tuple[Float32, Grid]:
    """Runs all steps on whole channels that share the source grid.

    Args:
        recipe: gives orientation and steps.
        channels: one array of ``source.shape`` for each channel, any real type; left as they are.
        source: their grid.
        threads: threads for resampling.

    Returns:
        float32 (channels, *shape) and its grid, whose affine leads back to the source.
    """
    orientation = Orientation.of_grid(source, recipe.orientation)
    arrays: list[NDArray[np.generic]] = [orientation.apply(channel) for channel in channels]
    grid = orientation.grid(source)
    pending: list[Step] = []
    steps = list(recipe.steps)
    while steps:
        step = _resampling(steps.pop(0), grid)
        if is_pointwise(step):
            pending.append(step)
            continue
        if isinstance(step, Resample):
            after: list[Step] = []
            while steps and is_pointwise(steps[0]):
                after.append(steps.pop(0))
            target = fitted_grid(grid, step.spacing_mm, step.alignment)
            method = resampling_method(step, grid)
            arrays = [
                resample(
                    array,
                    grid,
                    target,
                    method,
                    steps=(intensity(pending, channel), intensity(after, channel)),
                    threads=threads or cpu_count(),
                )
                for channel, array in enumerate(arrays)
            ]
            grid = target
            pending = []
            continue
        floats = _floats(arrays, pending)
        pending = []
        if isinstance(step, Crop | Pad | Fit):
            arrays, grid = _reshape(floats, grid, step)
        else:
            region = _region(floats) if isinstance(step, ZScore) and step.filled else None
            arrays = [
                _normalised(array, step, region) if applies(step, channel) else array
                for channel, array in enumerate(floats)
            ]
    return np.stack(_floats(arrays, pending)), grid


def _floats(arrays: Sequence[NDArray[np.generic]], steps: Sequence[Step]) -> list[Float32]:
    floats = []
    for channel, array in enumerate(arrays):
        run = intensity(steps, channel)
        copy = array.astype(np.float32, copy=run is not None)
        if run is not None:
            run(copy)
        floats.append(copy)
    return floats


def resampling_method(step: Resample, grid: Grid) -> Method:
    """How a step interpolates on a grid, which decides whether an axis is resampled by itself."""
    coarse = None
    if step.separate is not None:
        coarse = coarse_axis(grid.spacing_mm, step.spacing_mm, step.separate.anisotropy)
    along = "nearest" if step.separate is None else step.separate.interpolation
    return Method(step.interpolation, step.antialias, step.boundary, step.limit, coarse, along)


def _region(arrays: Sequence[Float32]) -> NDArray[np.bool_]:
    """Where any channel is not zero, holes filled."""
    inside = arrays[0] != 0
    for array in arrays[1:]:
        inside |= array != 0
    return np.asarray(ndimage.binary_fill_holes(inside), bool)


def _normalised(array: Float32, step: Step, region: NDArray[np.bool_] | None = None) -> Float32:
    if isinstance(step, ZScore):
        chosen = array != 0 if step.nonzero else np.ones((), bool)
        voxels = array[chosen] if step.nonzero else array
        if region is not None:
            chosen, voxels = region, array[region]
        if not voxels.size:
            return array
        mean = voxels.mean(dtype=np.float64)
        std = max(float(voxels.std(dtype=np.float64)), 1e-8)
        result = ((array - np.float32(mean)) * np.float32(1 / std)).astype(np.float32)
        if region is not None:
            return np.where(region, result, array)
        return np.where(chosen, result, np.float32(0)) if step.nonzero else result
    assert isinstance(step, MinMax)
    if step.lower_percentile == 0 and step.upper_percentile == 100:
        lower, upper = float(array.min()), float(array.max())
    else:
        both = np.percentile(array, [step.lower_percentile, step.upper_percentile])
        lower, upper = float(both[0]), float(both[1])
    if upper <= lower:
        return np.zeros_like(array)
    result = ((array - np.float32(lower)) / np.float32(upper - lower)).astype(np.float32)
    return np.clip(result, 0, 1, out=result) if step.clip else result


def _reshape(
    arrays: Sequence[Float32], grid: Grid, step: Crop | Pad | Fit
) -> tuple[list[NDArray[np.generic]], Grid]:
    if isinstance(step, Pad | Fit):
        lower, upper = _pad_limits(grid, step) if isinstance(step, Pad) else _fit_limits(grid, step)
        inside = tuple(slice(max(0, lo), up) for lo, up in zip(lower, upper, strict=True))
        widths = [(max(0, -lo), max(0, up - n)) for lo, up, n in zip(lower, upper, grid.shape, strict=True)]
        padded = [np.pad(array[inside], widths, constant_values=step.value) for array in arrays]
        return [*padded], shifted_grid(grid, lower, upper)
    above = np.zeros(grid.shape, bool)
    for array in arrays:
        above |= array != 0 if step.nonzero else array > step.threshold
    limits = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(above.any(axis=others))
        first, last = (int(found[0]), int(found[-1])) if len(found) else (0, grid.shape[axis] - 1)
        limits.append((max(0, first - step.margin), min(grid.shape[axis], last + 1 + step.margin)))
    (a, b), (c, d), (e, f) = limits
    return [array[a:b, c:d, e:f] for array in arrays], shifted_grid(grid, (a, c, e), (b, d, f))


def _pad_limits(grid: Grid, step: Pad) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    missing = [-n % m for n, m in zip(grid.shape, step.multiple, strict=True)]
    a, b, c = (-(extra // 2) for extra in missing)
    d, e, f = (n + extra + low for n, extra, low in zip(grid.shape, missing, (a, b, c), strict=True))
    return (a, b, c), (d, e, f)


def _fit_limits(grid: Grid, step: Fit) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """First and one-past-last index: a cut starts at n//2 − m//2, a pad puts the odd voxel at the end."""
    a, b, c = (
        n // 2 - m // 2 if n >= m else -((m - n) // 2) for n, m in zip(grid.shape, step.shape, strict=True)
    )
    i, j, k = step.shape
    return (a, b, c), (a + i, b + j, c + k)
