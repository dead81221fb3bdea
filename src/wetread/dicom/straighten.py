"""Straightening: moving slices to where their headers say they are, and labels back onto the slices.

Forward: each voxel of the grid is interpolated linearly between the two slices around it, and each slice
linearly within its plane; exact for values that change linearly in space. Back: each pixel of a source slice
takes the label of the nearest voxel.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from wetread.dicom.geometry import Arrangement
from wetread.errors import GeometryError

_NEGLIGIBLE = 1e-3


Label = TypeVar("Label", bound=np.integer[Any])


def straighten(voxels: NDArray[Any], arrangement: Arrangement, fill: float) -> NDArray[np.float32]:
    """Voxels on the arrangement's grid.

    Args:
        voxels: source slices in the arrangement's order, shape (slices, rows, columns).
        arrangement: where they lie.
        fill: value where no slice reaches.

    Returns:
        Shape ``arrangement.grid.shape``, float32.
    """
    out = np.full(arrangement.grid.shape, fill, np.float32)
    levels = arrangement.levels
    for index in range(out.shape[0]):
        above = int(np.clip(np.searchsorted(levels, index), 1, len(levels) - 1))
        below = above - 1
        weight = float(np.clip((index - levels[below]) / (levels[above] - levels[below]), 0.0, 1.0))
        if weight < _NEGLIGIBLE or weight > 1 - _NEGLIGIBLE:
            only = below if weight < 0.5 else above
            rows, columns, values = _shifted(voxels[only], arrangement.shifts[only])
            out[index, rows, columns] = values
            continue
        _blend(
            out[index],
            _shifted(voxels[below], arrangement.shifts[below]),
            _shifted(voxels[above], arrangement.shifts[above]),
            weight,
        )
    return out


_Placed = tuple[slice, slice, NDArray[np.float32]]


def _blend(out: NDArray[np.float32], low: _Placed, high: _Placed, weight: float) -> None:
    """Writes ``(1 - weight) low + weight high`` where both reach, and the one that reaches elsewhere."""
    for rows, columns, values in (low, high):
        out[rows, columns] = values
    rows = slice(max(low[0].start, high[0].start), min(low[0].stop, high[0].stop))
    columns = slice(max(low[1].start, high[1].start), min(low[1].stop, high[1].stop))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    parts = [
        part[2][
            rows.start - part[0].start : rows.stop - part[0].start,
            columns.start - part[1].start : columns.stop - part[1].start,
        ]
        for part in (low, high)
    ]
    out[rows, columns] = parts[0] + np.float32(weight) * (parts[1] - parts[0])


def _shifted(plane: NDArray[Any], shift: NDArray[np.float64]) -> _Placed:
    """A slice moved by a fractional number of voxels: where it lands, and its values there."""
    values: NDArray[np.float32] = plane.astype(np.float32)
    places = []
    for axis in (0, 1):
        start = int(np.floor(shift[axis] + _NEGLIGIBLE))
        part = float(shift[axis]) - start
        if part > _NEGLIGIBLE:
            # out[i] lies at source index i - part; the edges, less than a voxel outside, repeat the border
            padded = np.concatenate([values.take([0], axis), values, values.take([-1], axis)], axis)
            head, tail = [slice(None)] * 2, [slice(None)] * 2
            head[axis], tail[axis] = slice(None, -1), slice(1, None)
            values = padded[tuple(tail)] + np.float32(part) * (padded[tuple(head)] - padded[tuple(tail)])
        places.append(slice(start, start + values.shape[axis]))
    return places[0], places[1], values


def to_source(labels: NDArray[Label], arrangement: Arrangement) -> NDArray[Label]:
    """Labels on the source slices, in the arrangement's order.

    Args:
        labels: shape of the arrangement's grid.
        arrangement: how the grid was made.

    Returns:
        Shape (slices, rows, columns), nearest voxel; the same array where grid and slices coincide.

    Raises:
        GeometryError: the labels do not have the grid's shape.
    """
    if labels.shape != arrangement.grid.shape:
        raise GeometryError(
            f"labels have shape {labels.shape}, the grid has {arrangement.grid.shape}", code="VOLUME_SHAPE"
        )
    if arrangement.is_identity:
        return labels
    rows, columns = arrangement.order[0].shape
    out = np.zeros((len(arrangement.order), rows, columns), labels.dtype)
    for k, (level, shift) in enumerate(zip(arrangement.levels, arrangement.shifts, strict=True)):
        index = int(np.clip(round(float(level)), 0, labels.shape[0] - 1))
        row, column = int(np.floor(shift[0] + 0.5)), int(np.floor(shift[1] + 0.5))
        part = labels[index, row : row + rows, column : column + columns]
        out[k, : part.shape[0], : part.shape[1]] = part
    return out
