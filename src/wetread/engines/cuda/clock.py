"""How a launch is timed; tests bring a clock of their own."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Times a launch."""

    def time_us(self, launch: Callable[[], None], limit_us: float = float("inf")) -> float:
        """Microseconds of one launch; may stop early, with an estimate, where it is surely above the limit."""
        ...


@contextmanager
def capturing(graph: Any, pool: tuple[int, int] | None = None) -> Iterator[None]:
    """Captures what a block launches on torch's current stream; other threads' launches do not spoil it.

    Args:
        graph: a `torch.cuda.CUDAGraph`.
        pool: of memory, for what library kernels take; None gives the graph one of its own.
    """
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        yield
    except BaseException:
        with suppress(RuntimeError):  # what could not be captured is what is raised
            graph.capture_end()
        raise
    graph.capture_end()


@dataclass(frozen=True)
class GraphClock:
    """Times replays of a CUDA graph of several launches: without the time that Python takes.

    Attributes:
        rounds: replays, of which the median is taken.
        replay_us: a replay holds as many launches as fit into this time, within `fewest` and `most`.
    """

    rounds: int = 7
    replay_us: float = 400.0
    fewest: int = 3
    most: int = 30

    def time_us(self, launch: Callable[[], None], limit_us: float = float("inf")) -> float:
        """Median of the rounds; after one replay where that took more than twice the limit."""
        graph = self._captured(launch, self.fewest)
        self._replay_us(graph, self.fewest)
        first = self._replay_us(graph, self.fewest)
        if first > 2 * limit_us:
            return first
        count = int(min(max(self.replay_us / max(first, 0.1), self.fewest), self.most))
        if count > self.fewest:
            graph = self._captured(launch, count)
            self._replay_us(graph, count)
        return float(statistics.median(self._replay_us(graph, count) for _ in range(self.rounds)))

    @staticmethod
    def _captured(launch: Callable[[], None], count: int) -> Any:
        # torch.cuda.graph would collect garbage and empty the allocator each time, which takes longer than all else
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream), capturing(graph):
            for _ in range(count):
                launch()
        return graph

    @staticmethod
    def _replay_us(graph: Any, count: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3 / count
