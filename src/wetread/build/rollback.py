"""Layer rollback: the smallest set of layers that must stay in floating point for the gate to pass.

Layers are ranked by what each costs in accuracy, measured on calibration windows, which is cheap. Only then is
the gate asked, which is expensive: by bisection over the ranked list, and once more for each released layer that
may have been released for nothing. The gate's cases decide and rank nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from wetread.errors import GraphError

Score = TypeVar("Score")
Mode = Literal["quantised", "released"]
INT8_COST = 0.4
"""Time of an INT8 layer in units of the same layer in float32 (2.5 times faster is what the project asks for)."""


@dataclass(frozen=True)
class Sensitivity:
    """What one layer costs.

    Attributes:
        layer: its node's name.
        error: the larger, the more is lost by quantising it; in the measure of whoever measured.
    """

    layer: str
    error: float


@dataclass(frozen=True)
class Release(Generic[Score]):
    """Outcome of a search.

    Attributes:
        released: layers that stay in floating point.
        score: of that set.
        passed: whether it passes; where not, everything that may be released was.
        tries: every set that was tried, by its size, with whether it passed, in order.
    """

    released: frozenset[str]
    score: Score
    passed: bool
    tries: tuple[tuple[int, bool], ...]


def cheaper_mode(layers: int, quantised_share: float = 1.0, int8_cost: float = INT8_COST) -> Mode:
    """Which of the two measurements costs less for a number of layers.

    Both run the network once for each layer on the same windows. With one layer *quantised* at a time nearly
    all runs in float32; with one *released* at a time nearly all runs in INT8. So where INT8 kernels are faster
    on the backend, releasing is cheaper by almost that factor; where they are not (or for one layer, where
    both are the same two runs), quantising is taken, because it sees a layer's own error and nothing else.

    Args:
        layers: how many layers can be released.
        quantised_share: share of the arithmetic that is quantised when nothing is released.
        int8_cost: time of a layer in INT8 in units of float32, 1 where there is no gain.
    """
    if layers < 2:
        return "quantised"
    one = quantised_share / layers
    quantised = layers * (1 - one * (1 - int8_cost))
    released = layers * (1 - (quantised_share - one) * (1 - int8_cost))
    return "released" if released < quantised else "quantised"


def measure_sensitivity(
    layers: Sequence[str], error: Callable[[frozenset[str]], float], mode: Mode
) -> tuple[Sensitivity, ...]:
    """Ranks layers by what quantising each costs, the most harmful first.

    Args:
        layers: all that can be quantised, in the order of the graph.
        error: of the network's output, against float32, with the given layers released.
        mode: ``quantised`` measures the error with this layer alone quantised; ``released`` how much the error
            of the fully quantised network shrinks when this layer alone is released.

    Raises:
        GraphError: an error is not a number; names the layer.
    """
    everything = frozenset(layers)
    base = error(frozenset()) if mode == "released" else 0.0
    found: list[Sensitivity] = []
    for layer in layers:
        value = error(everything - {layer}) if mode == "quantised" else base - error(frozenset({layer}))
        if math.isnan(value):
            raise GraphError(
                "the error of the network's output is not a number with this layer "
                f"{'quantised' if mode == 'quantised' else 'released'}",
                where=layer,
            )
        found.append(Sensitivity(layer, float(value)))
    order = {layer: place for place, layer in enumerate(layers)}
    return tuple(sorted(found, key=lambda s: (-s.error, order[s.layer])))


def smallest_release(
    layers: Sequence[str],
    try_: Callable[[frozenset[str]], Score],
    passes: Callable[[Score], bool],
    *,
    shrink_tries: int = 8,
    kept: Collection[str] = (),
) -> Release[Score]:
    """Searches the smallest set of released layers that passes.

    First nothing is released, then the most harmful 1, 2, 4, … layers until a set passes, then the least number
    between the last two by bisection (assuming that releasing more never harms). At last single layers are
    taken back into INT8, the least harmful first, as long as the set still passes.

    Args:
        layers: ranked, the most harmful first.
        try_: judges a set of released layers; expensive.
        passes: whether a judgement is good enough.
        shrink_tries: how many single layers are taken back on trial at most.
        kept: layers that are released from the start and stay so.

    Returns:
        The set and its judgement; with `passed` false where even releasing all layers does not pass.
    """
    seen: dict[frozenset[str], Score] = {}
    tries: list[tuple[int, bool]] = []
    base = frozenset(kept)
    ranked = [layer for layer in layers if layer not in base]

    def judge(released: frozenset[str]) -> bool:
        if released not in seen:
            seen[released] = try_(released)
            tries.append((len(released), passes(seen[released])))
        return passes(seen[released])

    def prefix(count: int) -> frozenset[str]:
        return base | frozenset(ranked[:count])

    low, high = -1, 0  # prefixes of `low` fail, those of `high` pass once the loop has ended
    while not judge(prefix(high)):
        if high == len(ranked):
            return Release(prefix(high), seen[prefix(high)], False, tuple(tries))
        low, high = high, min(len(ranked), max(1, 2 * high))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if judge(prefix(middle)) else (middle, high)
    released = prefix(high)
    candidates = ranked[: max(0, high - 1)]  # without the last one the set is known to fail
    for layer in candidates[::-1][:shrink_tries]:
        if judge(released - {layer}):
            released = released - {layer}
    return Release(released, seen[released], True, tuple(tries))


def ranking_json(ranking: Sequence[Sensitivity], mode: str) -> Mapping[str, object]:
    """The ranking as plain data; errors with three digits, so that rounding of sums does not show."""
    return {
        "measured": f"one layer {mode} at a time",
        "layers": [{"name": s.layer, "error": float(f"{s.error:.3g}")} for s in ranking],
    }
