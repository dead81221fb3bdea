"""From the outputs of windows to the scores of a classification.

Each window's class scores are activated, then averaged over the windows (or the largest is taken, as the
recipe says); a label's score is the sum over its channels. Windows are summed in their canonical order, so
that the result is the same bit for bit in whatever order outputs come.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wetread.inference.windows import Window
from wetread.recipe import Recipe

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class ScorePool:
    """Collects the outputs of one volume's windows; speaks as a `Blender` does.

    Args:
        recipe: of a classification.

    Attributes:
        peak_bytes: memory of the scores kept.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._kept: dict[int, Float64] = {}
        self.peak_bytes = 0

    def skip(self, window: Window) -> None:
        """A window outside the place has no score."""

    def accept(self, window: Window, output: Float32) -> None:
        """Takes a window's output before activation, (classes,) or (classes, 1, 1, 1)."""
        values = activated(output.reshape(-1).astype(np.float64), self._recipe.activation)
        self._kept[window.ordinal] = values
        self.peak_bytes += values.nbytes

    def pooled(self) -> Float64 | None:
        """Activated scores of the network's classes over all windows, shape (classes,); None without any."""
        if not self._kept:
            return None
        all_ = np.stack([self._kept[ordinal] for ordinal in sorted(self._kept)])
        pooled: Float64 = all_.max(axis=0) if self._recipe.tiling.pooling == "max" else all_.mean(axis=0)
        return pooled


def activated(logits: Float64, activation: str) -> Float64:
    """Softmax or sigmoid of class scores, shape (classes,); ``none`` takes them as probabilities."""
    if activation == "softmax":
        powers: Float64 = np.exp(logits - logits.max())
        powers /= powers.sum()
        return powers
    if activation == "sigmoid":
        return np.asarray(np.reciprocal(1.0 + np.exp(-np.clip(logits, -700, 700))))
    return logits


def label_scores(recipe: Recipe, pooled: Float64) -> tuple[dict[str, float], tuple[str, ...]]:
    """Each label's score by its name, and the labels that the volume is decided to have.

    Under softmax with several labels the most probable class wins, where a channel that no label reads is a
    class of its own (ties: the label listed first). With one label, or under sigmoid, a label counts where it
    reaches its threshold; ``none`` is as sigmoid where there is one label, else as softmax.

    Args:
        recipe: of a classification.
        pooled: activated scores of the network's classes.

    Returns:
        Scores in the order of the labels; names in the order of falling score.
    """
    scores = {label.name: float(sum(pooled[c] for c in label.channels)) for label in recipe.labels}
    order = sorted(scores, key=lambda name: -scores[name])
    if recipe.activation == "sigmoid" or len(recipe.labels) == 1:
        limits = {label.name: label.threshold for label in recipe.labels}
        return scores, tuple(name for name in order if scores[name] >= limits[name])
    read = {channel for label in recipe.labels for channel in label.channels}
    others = [float(score) for channel, score in enumerate(pooled) if channel not in read]
    wins = scores[order[0]] >= max(others, default=-np.inf)
    return scores, tuple(order[:1]) if wins else ()
