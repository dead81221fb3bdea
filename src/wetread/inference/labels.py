"""From blended outputs to labels on the source grid, block by block.

Per source plane: outputs of the two prepared planes around it are activated, probabilities interpolated
linearly (along axis 0, then within the plane), and the label read off. Only the part of a plane that can
hold a label is computed: linear interpolation lies between its corners, so that where background wins (or
every label stays below its threshold) at all of a cell's corners, it does so inside the cell as well.

Rules: ``softmax`` with one label gives it where the sum over its channels reaches its threshold; with
several labels the channel with the largest probability wins (ties: the lowest). ``sigmoid`` gives each
label where the sum over its channels reaches its threshold, later labels over earlier ones. ``none`` takes
outputs as probabilities: as sigmoid where a label uses channel 0 or there is one label, else as softmax.

A recipe may restore logits instead: the outputs themselves are interpolated, and activated on the source
grid, as nnU-Net does. Logits interpolate linearly as well, so that what was said of corners holds for them;
a coarse axis may take the nearest plane.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from wetread.geometry import Method, Orientation, Resampler, coarse_axis, cpu_count, in_parallel
from wetread.inference.places import PlaceMap
from wetread.recipe import Recipe
from wetread.volume import Grid

Float32 = NDArray[np.float32]
Taps = tuple[NDArray[np.intp], Float32]
_STRIP = 200_000  # channels × columns × rows that are read off at once
_NONE = 10.0  # logit of background where nothing was computed; −10 for the others
_SLACK = 1e-3  # in logits or probability: what may become a label is found with room for rounding


class Decision:
    """How a recipe turns output channels into label probabilities and labels.

    Args:
        recipe: gives activation and labels.
        channels: channels of the network's output.
    """

    def __init__(self, recipe: Recipe, channels: int) -> None:
        self.labels = recipe.labels
        self.activation = recipe.activation
        self.logits = recipe.restore.of == "logits" and recipe.activation != "none"
        self.channels = channels
        several = len(recipe.labels) > 1
        uses_first = any(0 in label.channels for label in recipe.labels)
        self.argmax = several and (
            recipe.activation == "softmax" or (recipe.activation == "none" and not uses_first)
        )
        self.index_of = np.zeros(channels, np.uint8)
        for label in recipe.labels:
            self.index_of[list(label.channels)] = label.index
        self._background = 0 if self.index_of[0] == 0 else None

    def hot(self, outputs: Float32) -> NDArray[np.bool_]:
        """Where a label may be, on outputs (channels, rows, columns); never misses one."""
        if self.argmax:
            if self._background is None:
                return np.ones(outputs.shape[1:], bool)
            others = np.delete(np.arange(len(outputs)), self._background)
            return np.asarray(outputs[others].max(axis=0) >= outputs[self._background])
        if self.activation == "sigmoid" and all(len(label.channels) == 1 for label in self.labels):
            found = np.zeros(outputs.shape[1:], bool)
            for label in self.labels:
                found |= outputs[label.channels[0]] >= _logit(label.threshold) - _SLACK
            return found
        if self.activation == "softmax" and len(outputs) == 2 and len(self.labels[0].channels) == 1:
            channel = self.labels[0].channels[0]
            return np.asarray(
                outputs[channel] - outputs[1 - channel] >= _logit(self.labels[0].threshold) - _SLACK
            )
        values = self.values(outputs)
        found = np.zeros(outputs.shape[1:], bool)
        for value, label in zip(values, self.labels, strict=True):
            found |= value >= label.threshold - _SLACK
        return found

    @property
    def value_channels(self) -> int:
        """Channels of what is interpolated."""
        return self.channels if self.argmax or self.logits else len(self.labels)

    def values(self, outputs: Float32) -> Float32:
        """What is interpolated, channels first: the outputs (logits), or `probabilities`."""
        return np.array(outputs, np.float32) if self.logits else self.probabilities(outputs)

    def probabilities(self, outputs: Float32) -> Float32:
        """Probabilities of all channels (argmax) or of each label, channels first."""
        if self.activation == "softmax":
            active = np.exp(outputs - outputs.max(axis=0))
            active /= _sum(active, range(len(active)))
        elif self.activation == "sigmoid":
            active = np.reciprocal(1.0 + np.exp(-np.clip(outputs, -80, 80)))
        else:
            active = outputs
        if self.argmax:
            return np.array(active, np.float32)
        sums = [_sum(active, label.channels) for label in self.labels]
        return np.array(sums, np.float32)

    def clear(self, values: Float32, inside: NDArray[np.bool_]) -> None:
        """Sets values outside a place to background, in place."""
        if self.logits:
            values[:, ~inside] = -_NONE
            if self._background is not None:
                values[self._background, ~inside] = _NONE
            return
        values[:, ~inside] = 0.0
        if self.argmax and self._background is not None:
            values[self._background, ~inside] = 1.0

    def read(self, values: Float32) -> tuple[NDArray[np.uint8], Float32]:
        """Labels and their probabilities of interpolated values (n, rows, columns)."""
        if self.logits and self.argmax:
            mask, _ = self._largest(values)
            some = mask > 0
            probability = np.zeros(mask.shape, np.float32)
            # argmax of logits is that of softmax; only labels need their probability
            active = np.exp(values[:, some] - values[:, some].max(axis=0))
            active /= _sum(active, range(len(active)))
            for label in self.labels:
                here = mask == label.index
                probability[here] = _sum(active, label.channels)[here[some]]
            return mask, probability
        if self.logits:
            values = self.probabilities(values)
        if self.argmax:
            mask, probability = self._largest(values)
            for label in self.labels:
                if len(label.channels) > 1:
                    here = mask == label.index
                    probability[here] = _sum(values, label.channels)[here]
            return mask, probability
        probability = np.zeros(values.shape[1:], np.float32)
        mask = np.zeros(values.shape[1:], np.uint8)
        for value, label in zip(values, self.labels, strict=True):
            here = value >= label.threshold
            mask[here] = label.index
            probability[here] = value[here]
        return mask, probability

    def _largest(self, values: Float32) -> tuple[NDArray[np.uint8], Float32]:
        """Label of the largest channel (ties: the lowest), and its value where there is a label.

        Channel by channel, because numpy's argmax over the first axis takes five times as long.
        """
        best: Float32 = values[0].copy()
        mask = np.full(best.shape, self.index_of[0], np.uint8)
        for value, index in zip(values[1:], self.index_of[1:], strict=True):
            np.copyto(mask, index, where=value > best)
            np.maximum(best, value, out=best)
        best *= mask > 0
        return mask, best


def _sum(values: Float32, channels: Iterable[int]) -> Float32:
    """Sum over channels in their order, whatever the shape; numpy's own sum reorders for small planes."""
    first, *others = channels
    total: Float32 = values[first].copy()
    for channel in others:
        total += values[channel]
    return total


def _between(values: Float32, axis: int, taps: Taps, targets: slice, base: int) -> Float32:
    """Linear interpolation along an axis of which ``values`` holds indices from ``base`` on.

    Element by element, so that a result does not depend on how much is computed at once.
    """
    lower, weight = taps[0][targets] - base, taps[1][targets]
    if not weight.any() and np.array_equal(lower, np.arange(len(lower))):
        return values[(slice(None),) * axis + (slice(0, len(lower)),)]
    upper = np.minimum(lower + 1, values.shape[axis] - 1)
    shape = [1] * values.ndim
    shape[axis] = -1
    result = np.take(values, lower, axis=axis)
    result *= (np.float32(1) - weight).reshape(shape)
    other = np.take(values, upper, axis=axis)
    other *= weight.reshape(shape)
    result += other
    return result


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


Box = tuple[int, int, int, int]


LINEAR = Method("linear")


def restoring_method(recipe: Recipe, source: Grid) -> Method:
    """How a recipe's outputs go back to a source grid, in the order of axes of the prepared grid.

    Args:
        recipe: gives the rule for a coarse axis, and the spacing before.
        source: grid of the mask.
    """
    separate, step = recipe.restore.separate, recipe.resample
    interpolation = recipe.restore.interpolation
    if separate is None or step is None:
        return Method(interpolation)
    turned = Orientation.of_grid(source, recipe.orientation).grid(source)
    coarse = coarse_axis(step.spacing_mm, turned.spacing_mm, separate.anisotropy)
    return Method(interpolation, coarse=coarse, along=separate.interpolation)


class LabelWriter:
    """Puts finished blocks back on the source grid.

    Args:
        decision: how labels are read off.
        prepared: grid of the blocks.
        source: grid of the mask.
        place: voxels outside it become background; None for everywhere.
        threads: planes at a time, by default one for each usable core.
        method: how outputs are interpolated: linearly, but for a coarse axis; see `restoring_method`.

    Attributes:
        mask: uint8, source shape.
        probability: float16, source shape: probability of the voxel's label, 0 where there is none.
        kept_bytes: outputs kept for source planes that lie between two blocks.
    """

    def __init__(
        self,
        decision: Decision,
        prepared: Grid,
        source: Grid,
        place: PlaceMap | None,
        threads: int | None = None,
        method: Method = LINEAR,
    ) -> None:
        self._threads = threads or cpu_count()
        self.mask = np.zeros(source.shape, np.uint8)
        self.probability = np.zeros(source.shape, np.float16)
        self.kept_bytes = 0
        self._decision = decision
        self._place = place
        self._plan = Resampler(prepared, source, method, fill=0.0)
        self._lower, self._upper = self._plan.support()
        self._taps = [self._plan.taps(axis) for axis in range(3)]
        self._waiting = np.ones(len(self._lower), bool)
        self._waiting[self._plan.outside[0]] = False
        self._known = np.zeros(prepared.shape[0], bool)
        self._planes: dict[int, Float32] = {}
        self._boxes: dict[int, Box] = {}

    def take(self, first: int, last: int, outputs: Float32 | None) -> None:
        """Takes blended planes ``first ≤ z < last``, (channels, planes, rows, columns); None: no label."""
        self._known[first:last] = True
        if outputs is not None:
            for z in range(first, last):
                plane = outputs[:, z - first]
                hot = self._decision.hot(plane)
                if self._place is not None:
                    hot &= self._place.inside(z)
                box = _bounds(hot)
                self._planes[z] = plane
                if box is not None:
                    self._boxes[z] = box
        done = self._waiting & self._known[self._lower] & self._known[self._upper]
        in_parallel(self._write, np.flatnonzero(done).tolist(), self._threads)
        self._waiting &= ~done
        needed = set(self._lower[self._waiting]) | set(self._upper[self._waiting])
        self._planes = {
            z: plane if plane.base is None else plane.copy()
            for z, plane in self._planes.items()
            if z in needed
        }
        self._boxes = {z: box for z, box in self._boxes.items() if z in needed}
        self.kept_bytes = sum(plane.nbytes for plane in self._planes.values())

    def _write(self, target: int) -> None:
        lower, upper = int(self._lower[target]), int(self._upper[target])
        boxes = [self._boxes[z] for z in {lower, upper} if z in self._boxes]
        if not boxes:
            return
        hot = (
            slice(min(b[0] for b in boxes), max(b[1] for b in boxes)),
            slice(min(b[2] for b in boxes), max(b[3] for b in boxes)),
        )
        reached = []
        for along, part in zip(self._plan.maps[1:], hot, strict=True):
            place = np.clip(along.coordinates, 0, along.source_count - 1)
            index = np.flatnonzero((place > part.start - 1) & (place < part.stop))
            if not len(index):
                return
            reached.append(slice(int(index[0]), int(index[-1]) + 1))
        rows, columns = reached
        step = max(1, _STRIP // (len(self._decision.index_of) * (columns.stop - columns.start)))
        for first in range(rows.start, rows.stop, step):
            self._write_strip(target, (slice(first, min(first + step, rows.stop)), columns))

    def _write_strip(self, target: int, to: tuple[slice, slice]) -> None:
        """Some rows and columns of a source plane, few enough to stay in cache."""
        lower, upper = int(self._lower[target]), int(self._upper[target])
        box = []
        for axis, part in enumerate(to, 1):
            first = self._taps[axis][0][part]
            box.append(slice(int(first.min()), min(int(first.max()) + 2, self._plan.maps[axis].source_count)))
        values = self._values(lower, box[0], box[1])
        weight = self._plan.weight[target]
        if upper != lower:
            values *= np.float32(1) - weight
            values += weight * self._values(upper, box[0], box[1])
        for axis, part in enumerate(to, 1):
            values = _between(values, axis, self._taps[axis], part, box[axis - 1].start)
        mask, probability = self._decision.read(values)
        for axis, part in enumerate(to):
            outside = self._plan.outside[axis + 1]
            beyond = outside[(outside >= part.start) & (outside < part.stop)] - part.start
            np.moveaxis(mask, axis, 0)[beyond] = 0
            np.moveaxis(probability, axis, 0)[beyond] = 0
        order = self._plan.order
        self.mask.transpose(order)[target, to[0], to[1]] = mask
        self.probability.transpose(order)[target, to[0], to[1]] = probability

    def _values(self, z: int, rows: slice, columns: slice) -> Float32:
        plane = self._planes.get(z)
        if plane is None:
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            values = np.zeros((self._decision.value_channels, *shape), np.float32)
            self._decision.clear(values, np.zeros(shape, bool))
            return values
        values = self._decision.values(plane[:, rows, columns])
        if self._place is not None:
            self._decision.clear(values, self._place.inside(z)[rows, columns])
        return values


def _bounds(hot: NDArray[np.bool_]) -> Box | None:
    """First and one-past-last row and column that hold True; None where there is none."""
    rows = np.flatnonzero(hot.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(hot.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
