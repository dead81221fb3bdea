"""One volume on its way through windows to labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.errors import GeometryError, Notice, RecipeError
from wetread.geometry import CpuOps, cpu_count
from wetread.inference.blend import Blender
from wetread.inference.intake import Intake, LatticeIntake, Span, WholeIntake
from wetread.inference.labels import Decision, LabelWriter, restoring_method
from wetread.inference.places import PlaceMap
from wetread.inference.scores import ScorePool
from wetread.inference.windows import Window, WindowPlan, plan_windows
from wetread.recipe import Recipe
from wetread.volume import Grid


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a sweep gives.

    Attributes:
        mask: uint8 label values, shape of ``grid``; None for a classification.
        probability: float16 on the same grid: the probability of the voxel's label, 0 where ``mask`` is 0; None
            for a classification.
        grid: the source grid of the reference channel.
        prepared: the grid on which the network ran.
        windows_run, windows_skipped: counts.
        peak_blend_bytes: most memory that open sums, held outputs and kept planes took at once.
        notices: what was assumed.
        complete: False for a provisional result.
        scores: of a classification, the activated score of each of the network's classes; None where no window
            ran, and for other tasks.
    """

    mask: NDArray[np.uint8] | None
    probability: NDArray[np.float16] | None
    grid: Grid
    prepared: Grid
    windows_run: int
    windows_skipped: int
    peak_blend_bytes: int
    notices: tuple[Notice, ...] = ()
    complete: bool = True
    scores: NDArray[np.float64] | None = None


class Sweep:
    """One volume on its way through windows to labels; used by one thread at a time.

    Args:
        recipe: how the network is used.
        grids: source grid of each of the recipe's channels, or one grid for all.
        output_channels: channels of the network's output.
        modality: DICOM modality of the reference channel; the place ``body`` or ``lungs`` needs ``CT``.
        threads: threads for resampling, by default the number of usable cores.

    Raises:
        RecipeError: the network returns too few channels for the labels; grids do not fit the channels.
        GeometryError: the grids lie in different frames of reference.

    Attributes:
        window_shape: spatial shape of a window's input, None while unknown (a recipe that crops).
        window_total: number of windows, None while unknown.
        windows_run: windows accepted so far.
        windows_skipped: windows skipped so far.
    """

    def __init__(
        self,
        recipe: Recipe,
        grids: Grid | Sequence[Grid],
        output_channels: int,
        modality: str = "",
        threads: int | None = None,
    ) -> None:
        grids = [grids] * len(recipe.channels) if isinstance(grids, Grid) else list(grids)
        _check(recipe, grids, output_channels)
        self._recipe = recipe
        self._ops = CpuOps(threads)
        self._threads = threads or cpu_count()
        self._source = grids[recipe.reference_channel]
        self._output_channels = output_channels
        self._notices: list[Notice] = []
        self._placed = recipe.place.kind != "all"
        if self._placed and modality != "CT":
            text = f"the place {recipe.place.kind!r} needs CT, found {modality or 'no modality'}: all is read"
            self._notices.append(Notice("PLACE_IGNORED", text))
            self._placed = False
        outside = -1000.0 if modality == "CT" else 0.0
        make = LatticeIntake if recipe.tiling.kind == "lattice" else WholeIntake
        self._intake: Intake = make(recipe, grids, outside, self._threads)
        self._plan: WindowPlan | None = None
        self._place: PlaceMap | None = None
        self._writer: LabelWriter | None = None
        self._sink: Blender | ScorePool
        self._early: list[tuple[int, NDArray[Any]]] = []
        self._waiting: list[Window] = []
        self._out: dict[int, Window] = {}
        self.windows_run = 0
        self.windows_skipped = 0
        self._peak_bytes = 0
        self._plan_ahead()

    @property
    def window_shape(self) -> tuple[int, int, int] | None:
        """Spatial shape of a window's input."""
        if self._plan is not None:
            return self._plan.shape
        return self._recipe.tiling.window

    @property
    def window_total(self) -> int | None:
        """Number of windows, those that will be skipped included."""
        return None if self._plan is None else len(self._plan)

    @property
    def recipe(self) -> Recipe:
        """The recipe that the sweep follows."""
        return self._recipe

    @property
    def output_channels(self) -> int:
        """Channels that `accept` expects."""
        return self._output_channels

    def add(self, first: int, voxels: NDArray[Any], channel: int = 0) -> None:
        """Takes slices of a channel, in any order, each once; prepares what they complete.

        Args:
            first: index of the first of them along axis 0 of the channel's source grid.
            voxels: (k, rows, columns), any real type, HU for CT. The sweep keeps references until the
                slices are prepared; leave them unchanged.
            channel: number of the recipe's channel.

        Raises:
            RecipeError: no such channel, a wrong shape, a slice outside the grid or given twice.
        """
        if not 0 <= channel < len(self._intake.channels):
            raise RecipeError(f"channel {channel} of {len(self._intake.channels)}")
        self._intake.channels[channel].add(first, voxels)
        if self._placed and channel == self._recipe.reference_channel:
            self._early.append((first, voxels))
        self._intake.advance()
        self._plan_ahead()
        if self._place is not None:
            for start, planes in self._early:
                for offset, plane in enumerate(planes):
                    self._place.add(start + offset, plane)
            self._early.clear()

    def _plan_ahead(self) -> None:
        grid = self._intake.grid
        if grid is None or self._plan is not None:
            return
        self._plan = plan_windows(self._recipe, grid)
        self._waiting = list(self._plan)
        if self._placed:
            self._place = PlaceMap(self._recipe, self._source, grid, self._plan)
        if self._recipe.task == "classification":
            self._sink = ScorePool(self._recipe)
            return
        decision = Decision(self._recipe, self._output_channels)
        method = restoring_method(self._recipe, self._source)
        self._writer = LabelWriter(decision, grid, self._source, self._place, self._threads, method)
        self._sink = Blender(self._plan, self._output_channels, self._writer.take)

    def ready(self) -> list[Window]:
        """Windows that can run now and were not handed out yet, in canonical order.

        Windows outside the place are skipped here and never appear.
        """
        if self._plan is None or self._intake.array is None:
            return []
        ready, still = [], []
        for window in self._waiting:
            decided = self._place is None or self._place.decided(window)
            if not decided or not self._intake.prepared(self._box(window)):
                still.append(window)
            elif self._place is not None and not self._place.near(window):
                self.windows_skipped += 1
                self._sink.skip(window)
            else:
                ready.append(window)
                self._out[window.ordinal] = window
        self._waiting = still
        return ready

    def fill(self, window: Window, out: NDArray[np.float32]) -> None:
        """Writes the window's input, padded with the recipe's value outside the prepared grid.

        Args:
            window: one that `ready` handed out.
            out: float32 (channels, *window_shape), written in whole.
        """
        assert self._plan is not None and self._intake.array is not None
        self._ops.cut(self._intake.array, window.start, out, self._recipe.tiling.pad_value)

    def accept(self, window: Window, output: NDArray[np.float32]) -> None:
        """Takes a window's output before activation, each window once, in any order.

        Args:
            window: one that `ready` handed out.
            output: (output_channels, *window_shape), or the scores (output_channels,) of a classification (1s
                may follow); may be reused by the caller afterwards.

        Raises:
            RecipeError: a wrong shape, or a window that is not being waited for.
        """
        if self._plan is None or not self.takes(output.shape):
            raise RecipeError(f"an output of shape {output.shape} for windows of {self.window_shape}")
        if self._out.pop(window.ordinal, None) is None:
            raise RecipeError(f"window {window.index} is not waited for")
        self.windows_run += 1
        self._sink.accept(window, output)
        kept = 0 if self._writer is None else self._writer.kept_bytes
        self._peak_bytes = max(self._peak_bytes, self._sink.peak_bytes + kept)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether a network that returns this for a window, batch axis aside, does what the recipe's task needs."""
        if self._recipe.task == "classification":
            return shape in ((self._output_channels,), (self._output_channels, 1, 1, 1))
        return self.window_shape is not None and shape == (self._output_channels, *self.window_shape)

    @property
    def finished(self) -> bool:
        """True once all slices are in and every window is accepted or skipped."""
        return self._plan is not None and not self._waiting and not self._out

    def result(self, provisional: bool = False) -> Outcome:
        """The labels on the source grid.

        Args:
            provisional: also before the end, with the labels of the blocks that are finished; the arrays
                are then copies.

        Raises:
            RecipeError: windows are missing and no provisional result was asked for.
        """
        if not (self.finished or provisional):
            missing = len(self._waiting) + len(self._out)
            raise RecipeError(f"{missing} windows are missing", todo="add all slices and run all windows")
        grid = self._intake.grid
        if grid is None or self._plan is None:
            raise RecipeError("nothing is known yet: the recipe crops, and slices are missing")
        notices = list(self._notices)
        if self.finished and self._place is not None and self.windows_run == 0:
            kind = self._recipe.place.kind
            notices.append(Notice("PLACE_EMPTY", f"no {kind} found in the image: the network did not run"))
        mask, probability = None, None
        if self._writer is not None:
            mask, probability = self._writer.mask, self._writer.probability
            if not self.finished:
                mask, probability = mask.copy(), probability.copy()
        return Outcome(
            mask,
            probability,
            self._source,
            grid,
            self.windows_run,
            self.windows_skipped,
            self._peak_bytes,
            tuple(notices),
            self.finished,
            self._sink.pooled() if isinstance(self._sink, ScorePool) else None,
        )

    def _box(self, window: Window) -> tuple[Span, Span, Span]:
        assert self._plan is not None
        a, b, c = (axis.span(n) for axis, n in zip(self._plan.axes, window.index, strict=True))
        return a, b, c


def _check(recipe: Recipe, grids: Sequence[Grid], output_channels: int) -> None:
    if len(grids) != len(recipe.channels):
        raise RecipeError(f"{len(grids)} grids for the recipe's {len(recipe.channels)} channels")
    if output_channels < recipe.output_channels:
        raise RecipeError(
            f"the network returns {output_channels} channels, the labels need {recipe.output_channels}",
            where=recipe.name,
        )
    places = {grid.frame_of_reference for grid in grids if grid.frame_of_reference}
    if len(places) > 1:
        raise GeometryError(
            f"the channels lie in {len(places)} frames of reference: {', '.join(sorted(places))}",
            code="FRAME_OF_REFERENCE",
            todo="register the series first",
        )
