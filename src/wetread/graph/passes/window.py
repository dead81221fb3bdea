"""The window that rewrites are checked on: small, but one that the network takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import shape_inference

from wetread.errors import GraphError
from wetread.graph.evaluate import Evaluator
from wetread.graph.graph import Graph
from wetread.graph.passes.skeleton import Types, types

_SIZES = (16, 32, 64, 96, 128)
"""Sizes that are tried on all axes, and doubled on the first."""


@dataclass
class Trial:
    """What rewrites are checked with.

    Attributes:
        graph: the network before any pass.
        window: spatial shape; None where the inputs have no spatial axes.
        inputs: random numbers.
        outputs: what the network made of them in float64.
        shapes: of all its values.
    """

    graph: Graph
    window: Sequence[int] | None
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]

    def types(self, small: Graph) -> Types:
        """Types and shapes of a skeleton's values at this window: inferred, or else as they were seen."""
        found = types(small, [entry.name for entry in self.graph.inputs], self.window)
        for name, shape in self.shapes.items():
            if name in found and found[name][1] is None:
                found[name] = found[name][0], shape
        return found


def inputs_for(graph: Graph, window: Sequence[int] | None) -> dict[str, np.ndarray]:
    """Random inputs, standard normal; the batch is 1, or what the network asks for.

    Raises:
        GraphError: sizes other than spatial ones are free.
    """
    rng = np.random.default_rng(0)
    found = {}
    for entry in graph.inputs:
        shape = list(entry.shape)
        if window is not None:
            shape[2:] = window
        if shape and shape[0] is None:
            shape[0] = 1
        if None in shape:
            raise GraphError(
                f"shape {entry.shape} has free axes, so no rewrite can be checked",
                where=f"{graph.where}: {entry.name}",
                todo="say for which window, or fix the shape",
            )
        found[entry.name] = rng.standard_normal([size or 0 for size in shape])
    return found


def choose(graph: Graph, small: Graph, window: Sequence[int] | None) -> Trial:
    """The smallest window that the network takes.

    A network whose window is fixed keeps it where the network asks for the sizes of its inner images: folding
    makes constants of them.

    Args:
        graph: the network.
        small: its skeleton.
        window: the one it will be used with; None where the graph says, or any will do.

    Raises:
        GraphError: no window is found that the network takes.
    """
    last: GraphError | None = None
    for candidate in _candidates(graph, window):
        whole = candidate is None or tuple(candidate) == _full(graph, window)
        if not whole and candidate is not None and not _plausible(graph, small, candidate):
            continue
        try:
            inputs = inputs_for(graph, candidate)
            with np.errstate(all="ignore"):
                shapes: dict[str, tuple[int, ...]] = {}
                outputs = Evaluator(graph).run(inputs, watch=_noting(shapes))
        except GraphError as error:
            last = error
            continue
        return Trial(graph, candidate, inputs, outputs, shapes)
    raise last or GraphError(
        "no window was found that this network takes", where=graph.where, todo="name one that it was made for"
    )


def _noting(shapes: dict[str, tuple[int, ...]]) -> Callable[[str, np.ndarray], None]:
    def note(name: str, array: np.ndarray) -> None:
        shapes[name] = np.shape(array)

    return note


def _full(graph: Graph, window: Sequence[int] | None) -> tuple[int | None, ...]:
    """Sizes that the network declares; those of `window` where it leaves them free."""
    declared = graph.inputs[0].shape[2:]
    if window is None or len(window) != len(declared):
        return declared
    return tuple(size or given for size, given in zip(declared, window, strict=True))


def _candidates(graph: Graph, window: Sequence[int] | None) -> Iterator[Sequence[int] | None]:
    """From small to the whole window; nothing smaller is tried where the network's last axes mean features."""
    ranks = {len(entry.shape) for entry in graph.inputs}
    if len(ranks) != 1 or ranks.pop() < 3:
        yield None
        return
    full = _full(graph, window)
    for size in _SIZES:
        for first in (size, 2 * size):
            smaller = [size if s is None else min(s, size) for s in full]
            smaller[0] = first if full[0] is None else min(full[0], first)
            if tuple(smaller) != full:
                yield tuple(smaller)
    if None not in full:
        yield tuple(s for s in full if s is not None)


def _plausible(graph: Graph, small: Graph, window: Sequence[int]) -> bool:
    """Whether shapes agree for this window, no norm is left with a single voxel, and no size is asked for."""
    names = [entry.name for entry in graph.inputs]
    declared = types(small, names, None)
    try:
        found = types(small, names, window)
    except (shape_inference.InferenceError, ValueError):
        return False
    asked = [node.input[0] for node in graph.nodes if node.op_type in ("Shape", "Size")]
    if any(declared.get(name) != found.get(name) and declared.get(name, (0, None))[1] for name in asked):
        return False
    for node in graph.nodes:
        if node.op_type == "InstanceNormalization":
            shape = found.get(node.input[0], (0, None))[1]
            if shape is not None and int(np.prod(shape[2:])) < 2:
                return False
    return True
