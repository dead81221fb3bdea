"""What free window shapes cost: the same windows through a network for one shape and for a range of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass

import numpy as np

from wetread.engines import Context, Engine, make_engine
from wetread.errors import EngineError
from wetread.graph import Graph
from wetread.package import ShapeProfile

_WARM = 2


@dataclass(frozen=True)
class DynamicCost:
    """Latency of one window of the profile's usual shape, by an engine for it alone and one for the range.

    Attributes:
        fixed_ms, dynamic_ms: medians in milliseconds.
        fixed_spread_ms, dynamic_spread_ms: halves of the ranges between the quartiles; a difference within
            them is none.
        fixed_prepare_s, dynamic_prepare_s: seconds until the first window could run.
        windows: how many were timed each way, in turn.
        largest_difference: between the two engines' outputs, relative to the largest output.
    """

    fixed_ms: float
    dynamic_ms: float
    fixed_spread_ms: float
    dynamic_spread_ms: float
    fixed_prepare_s: float
    dynamic_prepare_s: float
    windows: int
    largest_difference: float

    def as_dict(self) -> dict[str, float | int]:
        """Plain data for reports."""
        return asdict(self)


def dynamic_cost(
    graph: Graph,
    profile: ShapeProfile,
    *,
    backend: str = "auto",
    threads: int | None = None,
    windows: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> DynamicCost:
    """Measures one window of the usual shape both ways, in turn and in one run.

    Args:
        graph: a network with free spatial axes.
        profile: its window shapes.
        backend: engine; ``auto`` as for reading.
        threads: processors to use; None takes all.
        windows: how many are timed each way.
        clock: seconds.

    Raises:
        EngineError: the network does not take the profile, or the two ways give different numbers.
        GraphError: the network cannot be fixed to the usual shape.
    """
    started = clock()
    fixed = make_engine(graph.fixed(profile.opt), backend, threads=threads)
    with closing(fixed), fixed.context(profile.opt) as alone:
        between = clock()
        dynamic = make_engine(graph, backend, threads=threads, shapes=profile)
        with closing(dynamic), dynamic.context(profile.opt) as ranged:
            ready = clock()
            ways = ((fixed, alone), (dynamic, ranged))
            times, outputs = _run(ways, profile, windows, clock)
    return DynamicCost(
        fixed_ms=statistics.median(times[0]),
        dynamic_ms=statistics.median(times[1]),
        fixed_spread_ms=_spread(times[0]),
        dynamic_spread_ms=_spread(times[1]),
        fixed_prepare_s=between - started,
        dynamic_prepare_s=ready - between,
        windows=windows,
        largest_difference=_difference(outputs[0], outputs[1], graph),
    )


def _run(
    ways: tuple[tuple[Engine, Context], tuple[Engine, Context]],
    profile: ShapeProfile,
    windows: int,
    clock: Callable[[], float],
) -> tuple[list[list[float]], list[np.ndarray]]:
    """Milliseconds of each window each way, and the outputs of the last; who goes first alternates."""
    rng = np.random.default_rng(0)
    arrays: list[tuple[np.ndarray, np.ndarray]] = []
    for engine, _ in ways:
        info = engine.inputs[0]
        shape = (1, info.shape[1] or 1, *profile.opt)
        made = rng.standard_normal(shape) if not arrays else arrays[0][0]
        output = np.zeros((1, *engine.output_shape(profile.opt)), engine.outputs[0].dtype)
        arrays.append((made.astype(info.dtype), output))
    times: list[list[float]] = [[], []]
    for i in range(windows + _WARM):
        for k in (0, 1) if i % 2 else (1, 0):
            start = clock()
            ways[k][1].submit((arrays[k][0],), (arrays[k][1],)).wait()
            if i >= _WARM:
                times[k].append(1000 * (clock() - start))
    return times, [output for _, output in arrays]


def _spread(times: list[float]) -> float:
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4)
    return (high - low) / 2


def _difference(fixed: np.ndarray, dynamic: np.ndarray, graph: Graph) -> float:
    """Largest difference relative to the largest output.

    Raises:
        EngineError: more than a percent, which rounding of int8 steps does not reach in a mean.
    """
    scale = float(np.abs(fixed.astype(np.float64)).max()) or 1.0
    apart = np.abs(fixed.astype(np.float64) - dynamic.astype(np.float64)) / scale
    if float(apart.mean()) > 0.01:
        raise EngineError(
            f"engines for one window shape and for a range differ by {float(apart.mean()):.3g} of the "
            "largest output",
            where=graph.where,
            todo="leave --shapes out, and report this",
        )
    return float(apart.max())
