"""Takes slices in any order and prepares what can be prepared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.errors import RecipeError
from wetread.geometry import Intensity, Resampler, axis_maps, lattice_grid, resample
from wetread.inference.prepare import intensity, prepare, prepared_grid
from wetread.recipe import Recipe, Resample
from wetread.volume import Grid

Float32 = NDArray[np.float32]
Span = tuple[int, int]


class Slices:
    """The slices of one channel that are in; references, not copies.

    Args:
        grid: source grid of the channel.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.have = np.zeros(grid.shape[0], bool)
        self.planes: dict[int, NDArray[Any]] = {}
        self._whole: NDArray[Any] | None = None

    def add(self, first: int, voxels: NDArray[Any]) -> None:
        """Takes slices; each once, all inside the grid.

        Raises:
            RecipeError: a wrong shape, a slice outside the grid or given twice.
        """
        last = first + len(voxels)
        if voxels.ndim != 3 or voxels.shape[1:] != self.grid.shape[1:]:
            raise RecipeError(f"slices of shape {voxels.shape[1:]} for a grid of {self.grid.shape}")
        if first < 0 or last > self.grid.shape[0] or self.have[first:last].any():
            raise RecipeError(f"slices {first} to {last - 1} are outside the grid or were given before")
        self.have[first:last] = True
        if len(voxels) == self.grid.shape[0]:
            self._whole = voxels
        for offset, plane in enumerate(voxels):
            self.planes[first + offset] = plane

    def array(self) -> NDArray[Any]:
        """All slices as one array; a view where they came as one."""
        if self._whole is not None:
            return self._whole
        return np.stack([self.planes[index] for index in range(self.grid.shape[0])])

    def forget(self, unneeded: NDArray[np.intp]) -> None:
        """Drops references to slices."""
        for index in unneeded:
            self.planes.pop(int(index), None)
        if not self.planes:
            self._whole = None


class Intake:
    """What a sweep asks of its intake.

    Attributes:
        grid: the prepared grid, None while unknown.
        array: float32 (channels, *grid.shape), None while unknown.
    """

    grid: Grid | None
    array: Float32 | None
    channels: list[Slices]

    def advance(self) -> None:
        """Prepares what the slices that are in allow."""
        raise NotImplementedError

    def prepared(self, box: tuple[Span, Span, Span]) -> bool:
        """Whether all voxels of a box of the prepared grid are there."""
        raise NotImplementedError

    @property
    def complete(self) -> bool:
        """Whether all slices of all channels are in."""
        return all(bool(channel.have.all()) for channel in self.channels)


class LatticeIntake(Intake):
    """Resamples each channel on the lattice, slab by slab as slices come.

    A channel whose directions differ from the reference channel's is resampled once it is whole.

    Args:
        recipe: with lattice tiling.
        grids: of the channels.
        outside: intensity where a channel other than the reference has no voxels.
        threads: for resampling.
    """

    def __init__(self, recipe: Recipe, grids: Sequence[Grid], outside: float, threads: int) -> None:
        step = recipe.resample
        assert step is not None
        number = recipe.steps.index(step)
        self._step: Resample = step
        self._before: Intensity | None = intensity(recipe.steps[:number])
        self._after: Intensity | None = intensity(recipe.steps[number + 1 :])
        self._threads = threads
        self.channels = [Slices(grid) for grid in grids]
        target = lattice_grid(grids[recipe.reference_channel], recipe.orientation, step.spacing_mm)
        self.grid = target
        edge = np.full((1, 1), outside, np.float32)
        if self._before is not None:
            self._before(edge)
        self._fills = [
            None if channel == recipe.reference_channel else float(edge[0, 0])
            for channel in range(len(grids))
        ]
        self._plans = [
            None
            if axis_maps(grid, target) is None
            else Resampler(grid, target, step.interpolation, step.antialias, fill)
            for grid, fill in zip(grids, self._fills, strict=True)
        ]
        first = self._plans[recipe.reference_channel]
        assert first is not None
        # one memory order for all channels: that of the reference channel's slices
        self._store = np.empty((len(grids), *first.shape), np.float32)
        self.array = np.moveaxis(self._store, 0, -1).transpose(
            *(first.order.index(axis) for axis in range(3)), 3
        )
        self.array = np.moveaxis(self.array, -1, 0)
        self._axes = [0 if plan is None else plan.target_axis for plan in self._plans]
        self._done = [np.zeros(target.shape[axis], bool) for axis in self._axes]

    def advance(self) -> None:
        """Resamples the planes whose source slices are all in."""
        assert self.grid is not None and self.array is not None
        for number, (slices, plan, done) in enumerate(
            zip(self.channels, self._plans, self._done, strict=True)
        ):
            if plan is None:
                if slices.have.all() and not done.all():
                    self.array[number] = resample(
                        slices.array(),
                        slices.grid,
                        self.grid,
                        self._step.interpolation,
                        antialias=self._step.antialias,
                        fill=self._fills[number],
                        steps=(self._before, self._after),
                        threads=self._threads,
                    )
                    done[:] = True
                    slices.forget(np.arange(len(slices.have)))
                continue
            lower, upper = plan.support()
            in_reach = slices.have[lower] & slices.have[upper] & ~done
            if not plan.streams and not slices.have.all():
                continue
            wanted = np.flatnonzero(in_reach)
            if not len(wanted):
                continue
            out = self.array[number].transpose(plan.order)
            planes = slices.planes.__getitem__
            plan.run(planes, wanted.tolist(), out, self._before, self._after, self._threads)
            done[wanted] = True
            needed = np.zeros(len(slices.have), bool)
            needed[lower[~done]] = True
            needed[upper[~done]] = True
            slices.forget(np.flatnonzero(slices.have & ~needed))

    def prepared(self, box: tuple[Span, Span, Span]) -> bool:
        """Whether every channel's planes of the box are resampled."""
        return all(
            bool(done[slice(*box[axis])].all()) for axis, done in zip(self._axes, self._done, strict=True)
        )


class WholeIntake(Intake):
    """Prepares once all slices of all channels are in.

    Args:
        recipe: with tiling ``fitted`` or ``whole``.
        grids: of the channels.
        outside: intensity where a channel other than the reference has no voxels.
        threads: for resampling.
    """

    def __init__(self, recipe: Recipe, grids: Sequence[Grid], outside: float, threads: int) -> None:
        self._recipe = recipe
        self._outside = outside
        self._threads = threads
        self.channels = [Slices(grid) for grid in grids]
        self.grid = prepared_grid(recipe, grids[recipe.reference_channel])
        self.array = None

    def advance(self) -> None:
        """Runs the steps when the last slice is in."""
        if self.array is not None or not self.complete:
            return
        reference = self.channels[self._recipe.reference_channel].grid
        arrays = []
        for slices in self.channels:
            array = slices.array()
            if not slices.grid.same_place(reference):
                array = resample(array, slices.grid, reference, fill=self._outside, threads=self._threads)
            arrays.append(array)
        self.array, self.grid = prepare(self._recipe, arrays, reference, self._threads)
        for slices in self.channels:
            slices.forget(np.arange(len(slices.have)))

    def prepared(self, box: tuple[Span, Span, Span]) -> bool:
        """Whether the volume is prepared."""
        return self.array is not None
