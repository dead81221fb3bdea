"""How far a lowered network's output is from float32's, on a few windows: what layers are ranked by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.engines import make_engine
from wetread.graph import Graph
from wetread.precision import CalibrationWindow
from wetread.recipe import Recipe

Float32 = NDArray[np.float32]
LARGEST = 96
"""Longest edge in voxels of what a whole volume is cropped to."""


@dataclass(frozen=True, eq=False)
class Tuning:
    """Windows to measure on, with what each float32 network of an ensemble returns for them.

    Attributes:
        windows: float32 (channels, *window).
        outputs: for each network, one output before activation for each window.
        activation: the recipe's.
    """

    windows: tuple[Float32, ...]
    outputs: tuple[tuple[Float32, ...], ...]
    activation: str

    def error(self, graphs: Sequence[Graph], engine: str, threads: int = 0) -> float:
        """Mean divergence of lowered networks from float32, over networks and windows.

        Raises:
            EngineError: a network does not run, or returns NaN.
        """
        total = 0.0
        for graph, expected in zip(graphs, self.outputs, strict=True):
            found = run_windows(graph, self.windows, engine, threads)
            total += sum(divergence(p, q, self.activation) for p, q in zip(expected, found, strict=True))
        return total / (len(graphs) * len(self.windows))


def run_windows(graph: Graph, windows: Sequence[Float32], engine: str, threads: int = 0) -> list[Float32]:
    """A network's output, (channels, *window) or (classes,), for each window.

    Raises:
        EngineError: the network does not run, or returns NaN.
    """
    found: list[Float32] = []
    made = make_engine(graph, engine, threads=threads or None)
    try:
        for window in windows:
            a, b, c = window.shape[1:]
            output = np.empty((1, *made.output_shape((a, b, c))), made.outputs[0].dtype)
            with made.context((a, b, c)) as context:
                array = np.ascontiguousarray(window[None], made.inputs[0].dtype)
                context.submit((array,), (output,)).wait()
            found.append(output[0].astype(np.float32))
    finally:
        made.close()
    return found


def choose_windows(
    graphs: Sequence[Graph],
    drawn: Iterable[CalibrationWindow],
    recipe: Recipe,
    engine: str,
    *,
    count: int = 4,
    threads: int = 0,
) -> Tuning:
    """The windows with most of the labels in them, as the first float32 network sees it.

    Windows that show nothing say little about lesions. Whole volumes are cropped to at most 96 voxels an edge
    around what is marked, where the network's axes are free.

    Args:
        graphs: float32 networks of the ensemble.
        drawn: windows to choose from.
        recipe: labels and activation.
        engine: backend that the lowered networks will run on.
        count: how many are kept.
        threads: CPU threads.

    Raises:
        EngineError: a network does not run.
    """
    kept: list[tuple[float, int, Float32]] = []
    whole = read_whole(graphs[0], recipe)
    for number, window in enumerate(drawn):
        array = window.array
        chance = label_chance(run_windows(graphs[0], [array], engine, threads)[0], recipe)
        if whole and chance.ndim == 3:
            array = _crop(array, chance, recipe.tiling.multiple)
        kept.append((-float(chance.sum(dtype=np.float64)), number, array))
        kept = sorted(kept, key=lambda item: item[:2])[:count]
    windows = tuple(array for _, _, array in sorted(kept, key=lambda item: item[1]))
    outputs = tuple(tuple(run_windows(graph, windows, engine, threads)) for graph in graphs)
    return Tuning(windows, outputs, recipe.activation)


def read_whole(graph: Graph, recipe: Recipe) -> bool:
    """Whether volumes are read as one window of any shape, so that a part of one is a window as well."""
    free = all(size is None for size in graph.inputs[0].shape[2:])
    return recipe.tiling.kind == "whole" and recipe.fixed_shape is None and free


def label_chance(output: Float32, recipe: Recipe) -> Float32:
    """Probability of any label, shape of the window (or a number for a classification)."""
    channels = sorted({channel for label in recipe.labels for channel in label.channels})
    activated = np.exp(log_probability(output, recipe.activation)) if recipe.activation != "none" else output
    if recipe.activation == "sigmoid":
        return np.asarray(activated[channels].max(axis=0), np.float32)
    return np.asarray(activated[channels].sum(axis=0), np.float32)


def _crop(window: Float32, chance: Float32, multiple: tuple[int, int, int]) -> Float32:
    marked = np.argwhere(chance > 0.5)
    middle = marked.mean(0) if len(marked) else np.array(np.unravel_index(int(chance.argmax()), chance.shape))
    return crop_around(window, [float(x) for x in middle], multiple)


def crop_around(
    window: Float32, middle: Sequence[float], multiple: tuple[int, int, int], largest: int = LARGEST
) -> Float32:
    """At most `largest` voxels an edge around a voxel, each edge a multiple of what the network asks for."""
    cut: list[slice] = [slice(None)]
    for centre, size, step in zip(middle, window.shape[1:], multiple, strict=True):
        edge = min(size, max(step, largest // step * step))
        start = int(np.clip(round(float(centre)) - edge // 2, 0, size - edge))
        cut.append(slice(start, start + edge))
    return np.ascontiguousarray(window[tuple(cut)])


def log_probability(output: Float32, activation: str) -> NDArray[np.float64]:
    """Logarithm of the activated output, channels first; of a sigmoid, of each channel by itself."""
    x = output.astype(np.float64)
    if activation == "sigmoid":
        return np.asarray(-np.logaddexp(0.0, -x), np.float64)
    top = x.max(axis=0, keepdims=True)
    shifted: NDArray[np.float64] = x - top
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=0, keepdims=True)), np.float64)


def divergence(expected: Float32, found: Float32, activation: str) -> float:
    """Mean over voxels of the Kullback-Leibler divergence of `found` from `expected`; ≥ 0.

    Outputs that are no logits (activation ``none``) are compared by their mean squared difference in units of
    the expected output's mean square.
    """
    if activation == "none":
        p = expected.astype(np.float64)
        power = float(np.square(p).mean())
        return float(np.square(p - found).mean()) / power if power else float(np.square(found).mean())
    p, q = log_probability(expected, activation), log_probability(found, activation)
    value: Any = (np.exp(p) * (p - q)).sum(axis=0)
    if activation == "sigmoid":
        p, q = log_probability(-expected, activation), log_probability(-found, activation)
        value = value + (np.exp(p) * (p - q)).sum(axis=0)
    return float(np.mean(value))
