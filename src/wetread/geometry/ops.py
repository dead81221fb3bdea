"""What a device can do to volumes: the protocol, and the CPU's way.

Other devices (in `kernels`) implement the same protocol and inherit its contract tests; arrays are then the
device's own.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wetread.geometry.axes import Interpolation
from wetread.geometry.resample import resample
from wetread.volume import Grid

Array = Any
"""An array on the device: numpy's for the CPU."""


class Ops(Protocol):
    """Operations on volumes of one device; arrays in and out live there."""

    def resample(
        self,
        array: Array,
        source: Grid,
        target: Grid,
        interpolation: Interpolation = "linear",
        *,
        antialias: bool = False,
        fill: float | None = None,
    ) -> Array:
        """float32 samples on ``target``, as `wetread.geometry.resample`."""
        ...

    def intensity(
        self, array: Array, *, lower: float, upper: float, factor: float = 1.0, shift: float = 0.0
    ) -> None:
        """``factor · clip(array, lower, upper) + shift`` in place, float32."""
        ...

    def cut(self, volume: Array, start: tuple[int, int, int], out: Array, pad_value: float = 0.0) -> None:
        """Copies the window at ``start`` of (channels, *shape) into ``out`` (channels, *window), padded."""
        ...

    def blend(
        self, total: Array, output: Array, weights: tuple[Array, Array, Array], start: tuple[int, int, int]
    ) -> None:
        """Adds a window's output times the product of its axis weights; parts outside are left out."""
        ...

    def label(self, mask: Array, connectivity: int = 26) -> Array:
        """int32 components of a uint8 label mask, as `components.label_components`."""
        ...

    def measure(
        self, components: Array, grid: Grid, *, intensities: Array = None, probability: Array = None
    ) -> list[Any]:
        """Sizes and statistics of components, as `measure.measure_components`."""
        ...


class CpuOps:
    """`Ops` with numpy.

    Args:
        threads: for resampling; by default one for each usable core.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads

    def resample(
        self,
        array: NDArray[Any],
        source: Grid,
        target: Grid,
        interpolation: Interpolation = "linear",
        *,
        antialias: bool = False,
        fill: float | None = None,
    ) -> NDArray[np.float32]:
        """As `wetread.geometry.resample`."""
        return resample(
            array, source, target, interpolation, antialias=antialias, fill=fill, threads=self.threads
        )

    def intensity(
        self,
        array: NDArray[np.float32],
        *,
        lower: float,
        upper: float,
        factor: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        """``factor · clip(array, lower, upper) + shift`` in place."""
        np.clip(array, np.float32(lower), np.float32(upper), out=array)
        array *= np.float32(factor)
        array += np.float32(shift)

    def cut(
        self,
        volume: NDArray[np.float32],
        start: tuple[int, int, int],
        out: NDArray[np.float32],
        pad_value: float = 0.0,
    ) -> None:
        """Copies a window of (channels, *shape), which may reach outside, into ``out``."""
        inside, within = _overlap(volume.shape[1:], start, out.shape[1:])
        if any(part.stop - part.start < n for part, n in zip(within, out.shape[1:], strict=True)):
            out[...] = pad_value
        out[(slice(None), *within)] = volume[(slice(None), *inside)]

    def blend(
        self,
        total: NDArray[np.float32],
        output: NDArray[np.float32],
        weights: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
        start: tuple[int, int, int],
    ) -> None:
        """Adds (channels, *window) to (channels, *shape), plane by plane so that scratch stays in cache."""
        inside, within = _overlap(total.shape[1:], start, output.shape[1:])
        plane = weights[1][within[1], None] * weights[2][None, within[2]]
        scratch = np.empty_like(plane)
        for offset, z in enumerate(range(inside[0].start, inside[0].stop)):
            row = within[0].start + offset
            weight = plane * weights[0][row]
            for sums, values in zip(total, output, strict=True):
                np.multiply(values[row, within[1], within[2]], weight, out=scratch)
                sums[z, inside[1], inside[2]] += scratch

    def label(self, mask: NDArray[np.uint8], connectivity: int = 26) -> NDArray[np.int32]:
        """Connected components."""
        from wetread.geometry.components import label_components

        return label_components(mask, connectivity)

    def measure(
        self, components: NDArray[np.int32], grid: Grid, *, intensities: Any = None, probability: Any = None
    ) -> list[Any]:
        """Sizes and statistics."""
        from wetread.geometry.measure import measure_components

        return list(measure_components(components, grid, intensities=intensities, probability=probability))


def _overlap(
    shape: tuple[int, ...], start: tuple[int, int, int], window: tuple[int, ...]
) -> tuple[tuple[slice, slice, slice], tuple[slice, slice, slice]]:
    """The part of a window that lies inside a volume: in the volume's indices, and in the window's."""
    inside, within = [], []
    for n, first, size in zip(shape, start, window, strict=True):
        lower, upper = max(0, first), max(0, min(n, first + size))
        lower = min(lower, upper)
        inside.append(slice(lower, upper))
        within.append(slice(lower - first, upper - first))
    (a, b, c), (d, e, f) = inside, within
    return (a, b, c), (d, e, f)
