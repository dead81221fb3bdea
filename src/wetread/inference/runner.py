"""The loop that takes windows to engines and back.

Each engine has one or several contexts, each context two slots of buffers: while a batch runs from one
slot, the next is filled into the other. Mirrored passes (test-time augmentation) and the engines of an
ensemble are further passes over the same batch; their outputs are averaged before activation, as nnU-Net
does, always in the same order.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wetread.engines.base import Context, Engine, Ticket
from wetread.errors import RecipeError
from wetread.inference.sweep import Sweep
from wetread.inference.windows import Window

Progress = Callable[[int, int], None]
Float32 = NDArray[np.float32]


@dataclass
class RunTimings:
    """Seconds spent filling inputs, waiting for engines, and blending (with back-resampling)."""

    fill_s: float = 0.0
    engine_s: float = 0.0
    blend_s: float = 0.0


@dataclass
class _Batch:
    """Windows that run together, and what their passes gave so far."""

    windows: list[Window]
    outputs: dict[int, Float32] = field(default_factory=dict)


@dataclass
class _Slot:
    inputs: Float32
    outputs: Float32
    batch: _Batch | None = None
    number: int = 0
    flips: tuple[int, ...] = ()
    ticket: Ticket | None = None


@dataclass
class _Stream:
    """A context with its two slots; at most one of them runs."""

    context: Context
    slots: list[_Slot]
    running: _Slot | None = None


class Runner:
    """Takes a sweep's windows to one or several engines (an ensemble: outputs are averaged) and back.

    Args:
        sweep: the volume.
        engines: one engine, or the folds of an ensemble with equal inputs and outputs.
        contexts: contexts per engine that are kept busy.
        batch: windows per submission, by default the recipe's.

    Raises:
        RecipeError: an engine's output does not have the window's shape, or another number of channels
            than the sweep expects.
        EngineError, NotFiniteError: as the engines raise them.
    """

    def __init__(
        self, sweep: Sweep, engines: Engine | Sequence[Engine], contexts: int = 1, batch: int | None = None
    ) -> None:
        self.timings = RunTimings()
        self._sweep = sweep
        self._engines = list(engines) if isinstance(engines, Sequence) else [engines]
        self._contexts = max(1, contexts)
        self._batch = batch or sweep.recipe.tiling.batch
        axes = sweep.recipe.tiling.mirror_axes
        self._flips = [c for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]
        self._passes = len(self._engines) * len(self._flips)
        self._streams: list[list[_Stream]] = []

    def run(self, progress: Progress | None = None) -> None:
        """Runs all windows that are ready now; ``progress(windows done, windows in all)`` as they end."""
        windows = self._sweep.ready()
        if not windows:
            return
        if not self._streams:
            self._open()
        turns = [itertools.cycle(streams) for streams in self._streams]
        try:
            for start in range(0, len(windows), self._batch):
                self._run_batch(_Batch(windows[start : start + self._batch]), turns, progress)
            for number, streams in enumerate(self._streams):
                for stream in itertools.islice(turns[number], len(streams)):
                    self._collect(stream, progress)
        except BaseException:
            self._abandon()
            raise

    def _run_batch(
        self, batch: _Batch, turns: Sequence[Iterator[_Stream]], progress: Progress | None
    ) -> None:
        plain: Float32 | None = None
        for number in range(self._passes):
            engine, flip = divmod(number, len(self._flips))
            stream = next(turns[engine])
            slot = next(s for s in stream.slots if s is not stream.running)
            began = time.perf_counter()
            count = len(batch.windows)
            if plain is None:
                for window, part in zip(batch.windows, slot.inputs, strict=False):
                    self._sweep.fill(window, part)
                plain = slot.inputs[:count] if self._passes == 1 else slot.inputs[:count].copy()
            else:
                slot.inputs[:count] = np.flip(plain, _array_axes(self._flips[flip]))
            slot.batch, slot.number, slot.flips = batch, number, self._flips[flip]
            self.timings.fill_s += time.perf_counter() - began
            before = stream.running
            self._wait(stream)
            began = time.perf_counter()
            slot.ticket = stream.context.submit((slot.inputs[:count],), (slot.outputs[:count],))
            self.timings.engine_s += time.perf_counter() - began
            stream.running = slot
            if before is not None:
                self._absorb(before, progress)

    def _collect(self, stream: _Stream, progress: Progress | None) -> None:
        slot = stream.running
        if slot is not None:
            self._wait(stream)
            self._absorb(slot, progress)

    def _wait(self, stream: _Stream) -> None:
        slot = stream.running
        if slot is None or slot.ticket is None:
            return
        began = time.perf_counter()
        slot.ticket.wait()
        self.timings.engine_s += time.perf_counter() - began
        slot.ticket = None
        stream.running = None

    def _absorb(self, slot: _Slot, progress: Progress | None) -> None:
        began = time.perf_counter()
        batch = slot.batch
        assert batch is not None
        slot.batch = None
        outputs = slot.outputs[: len(batch.windows)]
        if self._passes > 1:
            flips = slot.flips if self._sweep.recipe.task != "classification" else ()
            batch.outputs[slot.number] = np.flip(outputs, _array_axes(flips)).copy()
            if len(batch.outputs) < self._passes:
                self.timings.blend_s += time.perf_counter() - began
                return
            outputs = batch.outputs[0]
            for number in range(1, self._passes):
                outputs += batch.outputs[number]
            outputs *= np.float32(1 / self._passes)
        for window, output in zip(batch.windows, outputs, strict=True):
            self._sweep.accept(window, output)
            if progress is not None:
                total = self._sweep.window_total or 0
                progress(self._sweep.windows_run + self._sweep.windows_skipped, total)
        self.timings.blend_s += time.perf_counter() - began

    def _open(self) -> None:
        shape = self._sweep.window_shape
        assert shape is not None
        channels = len(self._sweep.recipe.channels)
        for engine in self._engines:
            found = engine.output_shape(shape)
            if not self._sweep.takes(found):
                scored = self._sweep.recipe.task == "classification"
                expected = (self._sweep.output_channels, *(() if scored else shape))
                raise RecipeError(
                    f"the network returns {found} for windows of {shape}, expected {expected}",
                    where=self._sweep.recipe.name,
                    todo="give the recipe the task that the network was trained for",
                )
        for engine in self._engines:
            found = engine.output_shape(shape)
            streams: list[_Stream] = []
            self._streams.append(streams)
            for _ in range(self._contexts):
                context = engine.context(shape, self._batch)
                self._batch = min(self._batch, context.max_batch)
                slots = [
                    _Slot(
                        np.zeros((self._batch, channels, *shape), np.float32),
                        np.zeros((self._batch, *found), np.float32),
                    )
                    for _ in range(2)
                ]
                streams.append(_Stream(context, slots))

    def _abandon(self) -> None:
        """After an error: leaves no batch running, forgets their results."""
        for stream in itertools.chain.from_iterable(self._streams):
            if stream.running is not None and stream.running.ticket is not None:
                with contextlib.suppress(Exception):  # the first error is the one that is raised
                    stream.running.ticket.wait()
            stream.running = None

    def close(self) -> None:
        """Closes the contexts; the engines stay open."""
        self._abandon()
        for stream in itertools.chain.from_iterable(self._streams):
            stream.context.close()
        self._streams = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _array_axes(flips: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of (batch, channels, *spatial) for spatial axes."""
    return tuple(2 + axis for axis in flips)


def run(sweep: Sweep, engines: Engine | Sequence[Engine], progress: Progress | None = None) -> RunTimings:
    """Runs all windows that are ready now on one context per engine, and returns the timings."""
    with Runner(sweep, engines) as runner:
        runner.run(progress)
        return runner.timings
