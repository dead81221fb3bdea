"""The case that a bench runs on: real windows, never zeros."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wetread.bench.phantom import make_phantom
from wetread.errors import SelectionError
from wetread.inference import Sweep, Window
from wetread.precision.windows import TRUTH_FILE
from wetread.reading.flow import load_inputs
from wetread.recipe import Recipe
from wetread.volume import Volume

PHANTOM_SEED = 2_000_000
"""Beyond the seeds that the embedded network was trained, tuned and evaluated on."""

_LEAST_SPREAD = 0.01
"""Least standard deviation of a window in each channel, as the network takes it."""


@dataclass(frozen=True, eq=False)
class BenchCase:
    """One case, loaded.

    Attributes:
        recipe: whose windows are cut.
        name: of the case, for the table.
        volumes: one for each of the recipe's channels.
        threads: for resampling.
    """

    recipe: Recipe
    name: str
    volumes: tuple[Volume, ...]
    threads: int | None = None

    def sweep(self, output_channels: int) -> Sweep:
        """The case with all its slices prepared, ready to hand out windows; a new one at each call."""
        reference = self.volumes[self.recipe.reference_channel]
        wanted = self.recipe.channels[self.recipe.reference_channel].select.modality or ""
        sweep = Sweep(
            self.recipe,
            [volume.grid for volume in self.volumes],
            output_channels=output_channels,
            modality=reference.modality or wanted.upper(),
            threads=self.threads,
        )
        for channel, volume in enumerate(self.volumes):
            sweep.add(0, volume.voxels, channel)
        return sweep

    def windows(self, count: int, seed: int = 0) -> NDArray[np.float32]:
        """Windows drawn from the case, in its order, float32 (n, channels, *window), n ≤ count.

        Windows of one value are passed over: norms divide by their spread, and what comes out is rounding.

        Raises:
            SelectionError: the recipe would run none of this case's windows, or all hold one value.
        """
        sweep = self.sweep(self.recipe.output_channels)
        ready = sweep.ready()
        if not ready or sweep.window_shape is None:
            raise SelectionError(
                f"the case has no window that {self.recipe.name} would run ({self.recipe.place.kind})",
                where=self.name,
                todo="name a case of that part of the body with --case",
                code="PLACE_ABSENT",
            )
        found: dict[int, NDArray[np.float32]] = {}
        for number in np.random.default_rng(seed).permutation(len(ready)).tolist():
            array = np.empty((len(self.recipe.channels), *sweep.window_shape), np.float32)
            sweep.fill(ready[number], array)
            if all(channel.std() > _LEAST_SPREAD for channel in array):
                found[number] = array
            if len(found) == count:
                break
        if not found:
            raise SelectionError(
                f"every window of the case that {self.recipe.name} would run holds one value",
                where=self.name,
                todo="name another case with --case",
                code="WINDOWS_EMPTY",
            )
        return np.stack([found[number] for number in sorted(found)])


def filled(sweep: Sweep) -> Iterator[tuple[Window, NDArray[np.float32]]]:
    """The sweep's windows one after the other, each with its input in an array that is used again."""
    windows = sweep.ready()
    assert sweep.window_shape is not None
    array = np.empty((len(sweep.recipe.channels), *sweep.window_shape), np.float32)
    for window in windows:
        sweep.fill(window, array)
        yield window, array


def open_case(recipe: Recipe, case: Path | None, threads: int | None = None) -> BenchCase:
    """The case at a path, or a chest phantom, which then feeds every channel whatever its modality.

    Raises:
        InputError: the case cannot be read, or no series of it suits the recipe.
    """
    if case is not None:
        loaded = load_inputs(case, recipe, threads=threads or 0, ignore=(TRUTH_FILE,)).loaded
        return BenchCase(recipe, case.name, tuple(item.volume for item in loaded), threads)
    volume = make_phantom(PHANTOM_SEED).volume()
    return BenchCase(recipe, f"chest phantom {PHANTOM_SEED}", (volume,) * len(recipe.channels), threads)
