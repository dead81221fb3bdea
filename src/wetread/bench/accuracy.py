"""How well the rows agree: outputs, and what is read off them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
class Yardstick:
    """What the float32 row that others are compared with makes of the case.

    Attributes:
        outputs: of the timed windows before activation, float32 (n, channels, *window), in a file: a network may
            have a hundred channels.
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


def make_yardstick(
    worker: Worker, case: BenchCase, windows: int, file: Path, *, whole_case: bool
) -> Yardstick:
    """Runs the timed windows once more for their outputs, and the case where that is asked for.

    Args:
        worker: the row.
        case: what is read.
        windows: number of timed windows.
        file: for the outputs.
        whole_case: labels are those of the whole case, not of the timed windows.

    Raises:
        RowFailedError: the row fails.
    """
    shape = (windows, *worker.ready["output_shape"])
    outputs = np.lib.format.open_memmap(file, "w+", dtype=np.float32, shape=shape)
    for number in range(windows):
        outputs[number] = worker.output(number)
    if whole_case:
        return Yardstick(outputs, _read_case(worker, case))
    return Yardstick(outputs, np.concatenate([read_windows(case.recipe, one[None]) for one in outputs]))


def measure_accuracy(worker: Worker, case: BenchCase, against: Yardstick, *, whole_case: bool) -> Accuracy:
    """Runs the same with another row and compares.

    Raises:
        RowFailedError: the row fails.
    """
    differences: list[float] = []
    labels: list[NDArray[np.uint8]] = []
    for number, other in enumerate(against.outputs):
        one = worker.output(number)
        spread = float(np.std(other, dtype=np.float64)) or 1.0
        square = np.mean(np.square(one - other, dtype=np.float64))
        differences.append(float(np.sqrt(square)) / spread)
        if not whole_case:
            labels.append(read_windows(case.recipe, np.array(one[None])))
    found = _read_case(worker, case) if whole_case else np.concatenate(labels)
    overlap = None if case.recipe.task == "classification" else mean_dice(case.recipe, found, against.labels)
    return Accuracy(overlap, agreement(found, against.labels), float(np.median(differences)))


def _read_case(worker: Worker, case: BenchCase) -> NDArray[np.uint8]:
    """The mask of the whole case, all its windows run by one row."""
    sweep = case.sweep(worker.ready["output_shape"][0])
    for window, image in filled(sweep):
        sweep.accept(window, np.ascontiguousarray(worker.output(image)))
    mask = sweep.result().mask
    assert mask is not None
    return mask


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


def mean_dice(recipe: Recipe, found: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float | None:
    """Mean Dice over the recipe's labels that either mask has; None where neither has any."""
    scores = []
    for label in recipe.labels:
        a, b = found == label.index, reference == label.index
        if a.any() or b.any():
            scores.append(dice(a, b))
    return float(np.mean(scores)) if scores else None
