"""The loop that takes windows to engines and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from wetread.engines.base import Engine
from wetread.inference.sweep import Sweep

Progress = Callable[[int, int], None]


@dataclass
class RunTimings:
    """Seconds spent filling inputs, waiting for engines, and blending (with back-resampling)."""

    fill_s: float = 0.0
    engine_s: float = 0.0
    blend_s: float = 0.0


class Runner:
    """Takes a sweep's windows to one or several engines (an ensemble: outputs are averaged) and back.

    Args:
        sweep: the volume.
        engines: one engine, or the folds of an ensemble with equal inputs and outputs.
        contexts: contexts per engine that are kept busy.
        batch: windows per submission, by default the recipe's.

    Raises:
        RecipeError: an engine's output does not have the window's shape, or too few channels.
        EngineError, NotFiniteError: as the engines raise them.
    """

    timings: RunTimings

    def __init__(
        self, sweep: Sweep, engines: Engine | Sequence[Engine], contexts: int = 1, batch: int | None = None
    ) -> None:
        raise NotImplementedError

    def run(self, progress: Progress | None = None) -> None:
        """Runs all windows that are ready now; ``progress(windows done, windows in all)`` after each."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes the contexts; the engines stay open."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def run(sweep: Sweep, engines: Engine | Sequence[Engine], progress: Progress | None = None) -> RunTimings:
    """Runs all windows that are ready now on one context per engine, and returns the timings."""
    with Runner(sweep, engines) as runner:
        runner.run(progress)
        return runner.timings
