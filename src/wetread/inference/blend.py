"""Sums window outputs, block by block along axis 0.

A block is a run of planes that the same rows of windows cover (a row: all windows of one start along axis
0). It absorbs its windows in canonical order and holds outputs that come early, so that the sums are the
same bit for bit in whatever order outputs come; once all its windows are accepted or skipped it is handed
on and its sum freed.

Memory: with outputs in canonical order, the open sums take at most ``window[0]`` planes, so
``4 · channels · window[0] · plane`` bytes, whatever the number of planes. Each output that comes before
its turn adds its own size at most.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wetread.geometry import CpuOps
from wetread.inference.windows import Importance, Window, WindowPlan

Float32 = NDArray[np.float32]
Sink = Callable[[int, int, Float32 | None], None]


@dataclass
class _Block:
    """Planes ``first ≤ z < last``, covered by window rows ``rows[0] … rows[1]``."""

    first: int
    last: int
    rows: tuple[int, int]
    windows: int
    next: int = 0
    total: Float32 | None = None
    importance: Importance | None = None
    held: dict[int, Float32 | None] = field(default_factory=dict)


class Blender:
    """Blends window outputs into blocks.

    Args:
        plan: where the windows lie and what they weigh.
        channels: channels of an output.
        sink: called once for each block as ``sink(first, last, sum)``, in the order in which blocks end;
            the sum is (channels, last − first, n1, n2) and the sink's to keep, None where every window of
            the block was skipped.
    """

    def __init__(self, plan: WindowPlan, channels: int, sink: Sink) -> None:
        self._plan = plan
        self._channels = channels
        self._sink = sink
        self._ops = CpuOps()
        self.open_bytes = 0
        self.peak_bytes = 0
        axis = plan.axes[0]
        spans = [axis.span(number) for number in range(len(axis.starts))]
        cuts = sorted({edge for span in spans for edge in span})
        self._blocks = []
        for first, last in itertools.pairwise(cuts):
            rows = [number for number, (a, b) in enumerate(spans) if a <= first and last <= b]
            self._blocks.append(_Block(first, last, (rows[0], rows[-1]), len(rows) * plan.per_row))

    @property
    def unfinished(self) -> int:
        """Number of blocks that still wait for windows."""
        return len(self._blocks)

    def skip(self, window: Window) -> None:
        """Counts a window as one that adds nothing."""
        self._take(window, None)

    def accept(self, window: Window, output: Float32) -> None:
        """Adds a window's output, (channels, *window shape); copied where it must wait for others."""
        self._take(window, output)

    def _take(self, window: Window, output: Float32 | None) -> None:
        row, _, _ = window.index
        in_row = window.ordinal - row * self._plan.per_row
        for block in [b for b in self._blocks if b.rows[0] <= row <= b.rows[1]]:
            number = (row - block.rows[0]) * self._plan.per_row + in_row
            part = None
            if output is not None:
                part = output[:, block.first - window.start[0] : block.last - window.start[0]]
            if number == block.next:
                self._absorb(block, number, part)
                block.next += 1
                while block.next in block.held:
                    early = block.held.pop(block.next)
                    self._absorb(block, block.next, early)
                    self._count(0 if early is None else -early.nbytes)
                    block.next += 1
            else:
                block.held[number] = None if part is None else part.copy()
                self._count(0 if part is None else part.nbytes)
            if block.next == block.windows:
                self._blocks.remove(block)
                self._sink(block.first, block.last, block.total)
                self._count(0 if block.total is None else -block.total.nbytes)

    def _count(self, change: int) -> None:
        self.open_bytes += change
        self.peak_bytes = max(self.peak_bytes, self.open_bytes)

    def _absorb(self, block: _Block, number: int, part: Float32 | None) -> None:
        if part is None:
            return
        axes = self._plan.axes
        if block.total is None:
            shape = (self._channels, block.last - block.first, axes[1].count, axes[2].count)
            block.total = np.zeros(shape, np.float32)
            self._count(block.total.nbytes)
        row, in_row = divmod(number, self._plan.per_row)
        row += block.rows[0]
        b, c = divmod(in_row, len(axes[2].starts))
        begin = axes[0].starts[row]
        if self._plan.floor:
            if block.importance is None:
                block.importance = Importance(self._plan, block.first, block.last, block.rows)
            (z, y, x), weight = block.importance.of((row, b, c))
            inner = (
                slice(y.start - axes[1].starts[b], y.stop - axes[1].starts[b]),
                slice(x.start - axes[2].starts[c], x.stop - axes[2].starts[c]),
            )
            for total, values in zip(block.total, part, strict=True):
                total[z, y, x] += values[:, *inner] * weight
            return
        along = axes[0].weights[row, block.first - begin : block.last - begin]
        weights = (along, axes[1].weights[b], axes[2].weights[c])
        self._ops.blend(block.total, part, weights, (0, axes[1].starts[b], axes[2].starts[c]))
