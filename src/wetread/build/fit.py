"""Whether a network and a recipe fit: channels, window, output, and one random window that is run."""

from __future__ import annotations

import numpy as np

from wetread.engines import make_engine, resolve
from wetread.errors import EngineError, EngineUnavailableError, RecipeError
from wetread.graph import Graph
from wetread.recipe import Recipe

_WHOLE = 32
"""Least size in voxels of the window that stands for whole volumes when a network is tried."""


def check_fit(graph: Graph, recipe: Recipe) -> None:
    """Compares a network's channels and window with the recipe's, and runs one random window.

    Raises:
        RecipeError: they do not fit; says which number was found and which expected.
        GraphError, UnsupportedOperatorError: the engine cannot run the network.
    """
    if (len(graph.inputs), len(graph.outputs)) != (1, 1):
        raise RecipeError(
            f"the network has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, recipes know one of each",
            where=graph.where,
            todo="concatenate inputs along the channel axis, and cut training's further outputs, when exporting",
        )
    shape = graph.inputs[0].shape
    if len(shape) != 5:
        raise RecipeError(
            f"the network's input has {len(shape)} axes, expected 5: batch, channels, three of space",
            where=f"{graph.where}: {graph.inputs[0].name}",
        )
    if shape[1] != len(recipe.channels):
        raise RecipeError(
            f"the recipe has {len(recipe.channels)} channels ({', '.join(c.name for c in recipe.channels)}), "
            f"the network takes {shape[1] if shape[1] is not None else 'a free number'}",
            where=f"{graph.where}: {graph.inputs[0].name}",
            todo="list one channel for each that the network was trained on, in that order",
        )
    window = trial_window(recipe)
    for found, fixed in zip(window, shape[2:], strict=True):
        varies = recipe.tiling.kind == "whole" and recipe.fixed_shape is None
        if fixed is not None and (fixed != found or varies):
            raise RecipeError(
                f"the network's window is fixed at {shape[2:]}, the recipe asks for "
                f"{'the whole volume' if varies else window}",
                where=graph.where,
                todo="use the network's window in the recipe (or a step `resize` or `fit` to it), or export with "
                "free spatial axes",
            )
    channels, *size = _try_window(graph, window)
    if channels < recipe.output_channels:
        raise RecipeError(
            f"the network returns {channels} channels, the recipe's labels read channel "
            f"{recipe.output_channels - 1} (counted from 0)",
            where=f"{graph.where}: {graph.outputs[0].name}",
            todo="correct the channels of the labels",
        )
    if recipe.task == "classification":
        _check_classes(graph, recipe, (channels, *size))
    elif tuple(size) != window:
        raise RecipeError(
            f"for a window of {window} the network returns {tuple(size)} voxels, expected as many as went in",
            where=f"{graph.where}: {graph.outputs[0].name}",
        )


def _check_classes(graph: Graph, recipe: Recipe, shape: tuple[int, ...]) -> None:
    """Checks that a classifier returns one score for each class of a window."""
    where = f"{graph.where}: {graph.outputs[0].name}"
    if shape[1:] not in ((), (1, 1, 1)):
        raise RecipeError(
            f"for a window the network returns {shape}, a classification needs (classes,) or (classes, 1, 1, 1)",
            where=where,
            todo="give the recipe the task segmentation, or export the network with its pooling and last layer",
        )
    if recipe.activation == "softmax" and shape[0] == 1:
        raise RecipeError(
            "the network returns one score, and the softmax of one score is always 1",
            where=where,
            todo="set activation to sigmoid",
        )


def trial_window(recipe: Recipe) -> tuple[int, int, int]:
    """The recipe's window; where volumes are read whole, one that stands for them."""
    if recipe.tiling.window is not None:
        return recipe.tiling.window
    shape = recipe.fixed_shape or (_WHOLE, _WHOLE, _WHOLE)
    i, j, k = (m * -(-n // m) for n, m in zip(shape, recipe.tiling.multiple, strict=True))
    return i, j, k


def _try_window(graph: Graph, window: tuple[int, int, int]) -> tuple[int, ...]:
    """(channels, *spatial) that the network returns for one random window in [0, 1]."""
    try:
        resolve("openvino")
    except EngineUnavailableError:
        found = graph.output_shapes(window)[graph.outputs[0].name][1:]
        if len(found) not in (1, 4) or None in found:
            raise RecipeError(
                f"the output's shape cannot be inferred for a window of {window}, found {found}",
                where=graph.where,
                todo="pip install openvino, so that a window can be run",
            ) from None
        return tuple(size or 0 for size in found)
    engine = make_engine(graph, "openvino")
    try:
        shape = engine.output_shape(window)
        rng = np.random.default_rng(0)
        image = rng.random((1, engine.inputs[0].shape[1] or 1, *window)).astype(engine.inputs[0].dtype)
        output = np.full((1, *shape), np.nan, engine.outputs[0].dtype)
        with engine.context(window) as context:
            context.submit((image,), (output,)).wait()
        return shape
    except EngineError as error:
        raise RecipeError(
            f"a random window of {window} does not run: {error.what}", where=graph.where, todo=error.todo
        ) from error
    finally:
        engine.close()
