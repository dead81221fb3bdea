"""One volume on its way through windows to labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.errors import Notice
from wetread.inference.windows import Window
from wetread.recipe import Recipe
from wetread.volume import Grid


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a sweep gives.

    Attributes:
        mask: uint8 label values, shape of ``grid``.
        probability: float16 on the same grid: the probability of the voxel's label, 0 where ``mask`` is 0.
        grid: the source grid of the reference channel.
        prepared: the grid on which the network ran.
        windows_run, windows_skipped: counts.
        peak_blend_bytes: most memory that open sums and held outputs took at once.
        notices: what was assumed.
        complete: False for a provisional result.
    """

    mask: NDArray[np.uint8]
    probability: NDArray[np.float16]
    grid: Grid
    prepared: Grid
    windows_run: int
    windows_skipped: int
    peak_blend_bytes: int
    notices: tuple[Notice, ...] = ()
    complete: bool = True


class Sweep:
    """One volume on its way through windows to labels.

    Args:
        recipe: how the network is used.
        grids: source grid of each of the recipe's channels, or one grid for all.
        output_channels: channels of the network's output.
        modality: DICOM modality; the place ``body`` or ``lungs`` needs ``CT``.
        threads: threads for resampling, by default the number of usable cores.

    Raises:
        RecipeError: the network returns too few channels for the labels; grids do not fit the channels.
        GeometryError: the grids lie in different frames of reference.
    """

    def __init__(
        self,
        recipe: Recipe,
        grids: Grid | Sequence[Grid],
        output_channels: int,
        modality: str = "",
        threads: int | None = None,
    ) -> None:
        raise NotImplementedError

    window_shape: tuple[int, int, int] | None
    window_total: int | None
    windows_run: int
    windows_skipped: int

    def add(self, first: int, voxels: NDArray[Any], channel: int = 0) -> None:
        """Takes slices ``first …`` of a channel, shape (k, rows, columns), in any order, each once."""
        raise NotImplementedError

    def ready(self) -> list[Window]:
        """Windows that can run now and were not handed out yet, in canonical order."""
        raise NotImplementedError

    def fill(self, window: Window, out: NDArray[np.float32]) -> None:
        """Writes the window's input into ``out``, shape (channels, *window_shape)."""
        raise NotImplementedError

    def accept(self, window: Window, output: NDArray[np.float32]) -> None:
        """Takes the window's output, shape (output_channels, *window_shape), before activation."""
        raise NotImplementedError

    @property
    def finished(self) -> bool:
        """True once all slices are in and every window is accepted or skipped."""
        raise NotImplementedError

    def result(self, provisional: bool = False) -> Outcome:
        """The labels on the source grid; before the end only where ``provisional`` is asked for."""
        raise NotImplementedError
