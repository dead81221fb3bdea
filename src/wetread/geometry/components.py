"""Connected components of label masks."""

from __future__ import annotations

from typing import Any, Literal

import cc3d
import numpy as np
from numpy.typing import NDArray

from wetread.errors import RecipeError

_CONNECTIVITY: dict[int, Literal[6, 18, 26]] = {6: 6, 18: 18, 26: 26}
Box = tuple[slice, slice, slice]


def label_components(mask: NDArray[np.uint8], connectivity: int = 26) -> NDArray[np.int32]:
    """Numbers the connected components of a label mask, value by value.

    Two voxels belong together where they have the same value, are not zero, and touch by a face (6), by a
    face or an edge (18), or also by a corner (26).

    Args:
        mask: label values, three axes.
        connectivity: 6, 18 or 26.

    Returns:
        int32 of the mask's shape: 0 where the mask is 0, else 1 to the number of components, numbered in the
        order in which the array (last axis fastest) first meets them.

    Raises:
        RecipeError: any other connectivity.
    """
    if connectivity not in _CONNECTIVITY:
        raise RecipeError(f"connectivity is {connectivity}, expected 6, 18 or 26", code="CONNECTIVITY")
    components = np.zeros(mask.shape, np.int32)
    box = bounding_box(mask)
    if box is None:
        return components
    crop = np.ascontiguousarray(mask[box])
    found = cc3d.connected_components(crop, connectivity=_CONNECTIVITY[connectivity], out_dtype=np.uint32)
    components[box] = _in_order_of_appearance(found)
    return components


def bounding_box(array: NDArray[Any]) -> Box | None:
    """Smallest box that holds all voxels that are not zero, as slices; None where there are none.

    Reads the whole array once along its first axis, and then only what lies inside.
    """
    box: list[slice] = []
    rest = array
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        hit = np.flatnonzero(rest.any(axis=others))
        if hit.size == 0:
            return None
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
        rest = rest[tuple(slice(None) if a != axis else box[axis] for a in range(3))]
    return box[0], box[1], box[2]


def _in_order_of_appearance(found: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.int32]:
    """Renumbers so that numbers do not depend on the library's scan order."""
    inside = np.flatnonzero(found)
    values = found.ravel()[inside]
    first = np.full(int(values.max()) + 1, found.size, np.int64)
    first[values[::-1]] = inside[::-1]
    table = np.zeros(len(first), np.int32)
    table[np.argsort(first, kind="stable")] = np.arange(1, len(first) + 1)
    result = np.zeros(found.shape, np.int32)
    result.ravel()[inside] = table[values]
    return result
