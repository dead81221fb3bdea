"""Slices of a volume as a radiologist hangs them, and where things lie on them.

Radiological display (DICOM PS3.3 C.7.6.2, and every viewer): on axial and coronal pictures the patient's right
is on the left of the picture; axial pictures have anterior on top, the others the head; sagittal pictures have
anterior on the left. Oblique volumes are shown along their own axes, named by the nearest direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wetread.volume import Grid

_OPPOSITE = {"L": "R", "R": "L", "P": "A", "A": "P", "S": "I", "I": "S"}
_LAYOUT = {"axial": ("S", "P", "L"), "coronal": ("P", "I", "L"), "sagittal": ("L", "I", "P")}


@dataclass(frozen=True)
class Plane:
    """How one of the three planes is cut from an array.

    Attributes:
        name: axial, coronal or sagittal.
        axes: array axes of the plane's normal, of the picture's rows downwards and its columns to the right.
        flips: whether rows and columns run against their array axis.
        letters: patient direction at the picture's left, right, top and bottom edge.
        spacing_mm: between rows and between columns.
        shape: rows and columns.
    """

    name: str
    axes: tuple[int, int, int]
    flips: tuple[bool, bool]
    letters: tuple[str, str, str, str]
    spacing_mm: tuple[float, float]
    shape: tuple[int, int]

    @property
    def extent_mm(self) -> tuple[float, float]:
        """Height and width of the whole slice in mm."""
        return self.shape[0] * self.spacing_mm[0], self.shape[1] * self.spacing_mm[1]

    def cut(self, array: NDArray[Any], index: int) -> NDArray[Any]:
        """The slice at an index along the normal, [row, column] as displayed; a view."""
        normal, rows, columns = self.axes
        plane: NDArray[Any] = np.moveaxis(array, (normal, rows, columns), (0, 1, 2))[index]
        return plane[:: -1 if self.flips[0] else 1, :: -1 if self.flips[1] else 1]

    def place(self, index: NDArray[np.float64]) -> tuple[float, float]:
        """Row and column, as displayed, of a fractional array index (three numbers)."""
        row, column = float(index[self.axes[1]]), float(index[self.axes[2]])
        return (
            self.shape[0] - 1 - row if self.flips[0] else row,
            self.shape[1] - 1 - column if self.flips[1] else column,
        )


def planes_of(grid: Grid) -> tuple[Plane, Plane, Plane]:
    """Axial, coronal and sagittal plane of a grid."""
    axial, coronal, sagittal = (_plane(grid, name, *letters) for name, letters in _LAYOUT.items())
    return axial, coronal, sagittal


def _plane(grid: Grid, name: str, normal: str, down: str, right: str) -> Plane:
    codes = grid.axis_codes
    axes = tuple(codes.index(x if x in codes else _OPPOSITE[x]) for x in (normal, down, right))
    return Plane(
        name,
        (axes[0], axes[1], axes[2]),
        (down not in codes, right not in codes),
        (_OPPOSITE[right], right, _OPPOSITE[down], down),
        (grid.spacing_mm[axes[1]], grid.spacing_mm[axes[2]]),
        (grid.shape[axes[1]], grid.shape[axes[2]]),
    )
