"""How well the rows agree: outputs, and what is read off them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wetread.bench.drive import Worker
from wetread.bench.inputs import BenchCase, filled
from wetread.build.metrics import agreement, dice
from wetread.inference.labels import Decision
from wetread.inference.scores import ScorePool, label_scores
from wetread.inference.windows import Window
from wetread.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Answer:
    """What one row makes of the case.

    Attributes:
        outputs: of the timed windows before activation, float32 (n, channels, *window).
        labels: uint8 label values: of the case's mask, or of the windows one after the other; of a
            classification, the position of the decided label in each window (0 for none).
    """

    outputs: NDArray[np.float32]
    labels: NDArray[np.uint8]


@dataclass(frozen=True)
class Accuracy:
    """One row against the float32 one.

    Attributes:
        dice: mean over the labels that either marks; None where neither marks any, and for classifiers.
        agreement: share of voxels (of a classification: windows) with the same label.
        output_difference: root mean square difference of a window's outputs, as a share of the standard deviation
            of the reference's; the median over the windows.
    """

    dice: float | None
    agreement: float
    output_difference: float


def answer(worker: Worker, case: BenchCase, windows: int, *, whole_case: bool) -> Answer:
    """Runs the timed windows once more for their outputs, and the case where that is asked for."""
    outputs = np.stack([np.array(worker.output(number)) for number in range(windows)])
    if not whole_case or case.recipe.task == "classification":
        return Answer(outputs, read_windows(case.recipe, outputs))
    sweep = case.sweep(outputs.shape[1])
    for window, image in filled(sweep):
        sweep.accept(window, np.ascontiguousarray(worker.output(image)))
    mask = sweep.result().mask
    assert mask is not None
    return Answer(outputs, mask)


def read_windows(recipe: Recipe, outputs: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Labels of windows, each for itself, by the recipe's rules.

    Args:
        recipe: activation and labels.
        outputs: (n, channels, *window), or (n, classes) and (n, classes, 1, 1, 1) of a classification.

    Returns:
        uint8 (n, *window), or (n,).
    """
    if recipe.task == "classification":
        names = [label.name for label in recipe.labels]
        found = []
        for output in outputs:
            pool = ScorePool(recipe)
            pool.accept(Window(0, (0, 0, 0), (0, 0, 0)), output)
            pooled = pool.pooled()
            assert pooled is not None
            classes = label_scores(recipe, pooled)[1]
            found.append(1 + names.index(classes[0]) if classes else 0)
        return np.array(found, np.uint8)
    decision = Decision(recipe, outputs.shape[1])
    masks = np.empty((len(outputs), *outputs.shape[2:]), np.uint8)
    for output, mask in zip(outputs, masks, strict=True):
        flat = output.reshape(len(output), -1, output.shape[-1])
        mask[...] = decision.read(decision.values(flat))[0].reshape(mask.shape)
    return masks


def compare(recipe: Recipe, found: Answer, reference: Answer) -> Accuracy:
    """One row's answer against the reference's."""
    differences = []
    for one, other in zip(found.outputs, reference.outputs, strict=True):
        spread = float(np.std(other, dtype=np.float64)) or 1.0
        differences.append(float(np.sqrt(np.mean((one.astype(np.float64) - other) ** 2))) / spread)
    scores = []
    if recipe.task != "classification":
        for label in recipe.labels:
            a, b = found.labels == label.index, reference.labels == label.index
            if a.any() or b.any():
                scores.append(dice(a, b))
    return Accuracy(
        float(np.mean(scores)) if scores else None,
        agreement(found.labels, reference.labels),
        float(np.median(differences)),
    )
