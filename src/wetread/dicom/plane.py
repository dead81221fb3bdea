"""Planes: where one slice lies, from its own header alone (DICOM PS3.3 C.7.6.2.1.1)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from wetread.dicom import tags
from wetread.dicom.header import SliceHeader
from wetread.errors import GeometryError

FloatArray = NDArray[np.float64]


def plane_directions(header: SliceHeader) -> FloatArray:
    """Rows: unit normal, direction of rising row index, direction of rising column index; shape (3, 3), LPS.

    Raises:
        GeometryError: Image Orientation is missing or its two directions are not perpendicular unit vectors.
    """
    directions = _directions(header.orientation)
    if directions is None:
        shown = "\\".join(f"{x:g}" for x in header.orientation)
        raise GeometryError(
            f"{tags.named('ImageOrientationPatient')} is {shown}, expected two perpendicular unit vectors",
            where=header.where("ImageOrientationPatient"),
            code="ORIENTATION_INVALID",
            todo="repair the element or export the series again",
        )
    return directions


@lru_cache(maxsize=256)
def _directions(orientation: tuple[float, ...]) -> FloatArray | None:
    """Orthonormal directions of an orientation; None where it is more than 1 % off from being so."""
    values = np.array(orientation, dtype=np.float64).reshape(2, 3)
    lengths = np.linalg.norm(values, axis=1)
    if np.abs(lengths - 1).max() > 1e-2 or abs(values[0] @ values[1]) > 1e-2:
        return None
    along_columns = values[0] / lengths[0]
    along_rows = values[1] - (values[1] @ along_columns) * along_columns
    along_rows /= np.linalg.norm(along_rows)
    found = np.stack([np.cross(along_columns, along_rows), along_rows, along_columns])
    found.setflags(write=False)
    return found


def slice_affine(header: SliceHeader) -> NDArray[np.float64]:
    """Affine of one slice, index (0, row, column) to LPS mm (PS3.3 equation C.7.6.2.1-1)."""
    rows, columns = header.pixel_spacing
    affine = np.eye(4)
    affine[:3, :3] = (plane_directions(header) * np.array([[1.0], [rows], [columns]])).T
    affine[:3, 3] = header.position
    return affine
