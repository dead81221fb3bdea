"""The grid: shape and place of a volume, known before its voxels are.

One convention holds everywhere inside wetread: an array index ``(i, j, k)``, in the order of the array's
axes, maps to LPS millimetres (DICOM PS3.3 C.7.6.2.1.1: +x to the patient's left, +y to posterior, +z to
superior) by ``affine @ (i, j, k, 1)``. Other conventions (RAS in NIfTI) are converted at the edges only.
A DICOM series is stacked as ``[slice, row, column]``; an axial series from the feet up has axis codes SPL.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wetread.errors import GeometryError

FloatArray = NDArray[np.float64]
_POSITIVE = "LPS"
_NEGATIVE = "RAI"


@dataclass(frozen=True)
class SliceRef:
    """Where one source slice (or frame) lies along axis 0 of its grid.

    Attributes:
        sop_instance_uid: SOP Instance UID, empty where there is none (NIfTI).
        frame: 1-based frame number in a multi-frame instance, 0 for a single-frame one.
        sop_class_uid: SOP Class UID of the instance.
    """

    sop_instance_uid: str
    frame: int = 0
    sop_class_uid: str = ""


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape, affine and frame of reference of a volume.

    Args:
        shape: number of voxels along each array axis, all positive.
        affine: 4×4, array index to LPS millimetres; finite and invertible.
        frame_of_reference: DICOM Frame of Reference UID, or an empty string.
        slices: one entry per index along axis 0 where the grid is that of source slices, else empty.
        file_axes: for each array axis of a source volume, which axis of its file it is: ``i`` along which
            neighbours lie next to each other, then ``j``, then ``k``. DICOM's [slice, row, column] is ``kji``,
            arrays of NIfTI files are ``ijk``. Grids made from grids do not carry it on.

    Raises:
        GeometryError: a shape that is not positive, an affine that is not finite or is singular.
    """

    shape: tuple[int, int, int]
    affine: FloatArray
    frame_of_reference: str = ""
    slices: tuple[SliceRef, ...] = field(default=())
    file_axes: str = "kji"

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise GeometryError(f"grid shape is {shape}, expected three positive numbers", code="GRID_SHAPE")
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GeometryError(
                "the affine is not a finite 4×4 matrix",
                code="AFFINE_NOT_FINITE",
                todo="repair the orientation and position of the source",
            )
        if not np.array_equal(affine[3], (0.0, 0.0, 0.0, 1.0)):
            raise GeometryError(
                f"the affine's last row is {affine[3].tolist()}, expected 0 0 0 1", code="AFFINE_LAST_ROW"
            )
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if spacing.min() <= 1e-6 or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
            raise GeometryError(
                "the affine is singular: two of its axes coincide or a spacing is zero",
                code="AFFINE_SINGULAR",
                todo="repair the orientation and spacing of the source",
            )
        if self.slices and len(self.slices) != shape[0]:
            raise GeometryError(
                f"{len(self.slices)} slices for {shape[0]} positions along axis 0", code="GRID_SLICES"
            )
        if sorted(self.file_axes) != ["i", "j", "k"]:
            raise GeometryError(f"file_axes is {self.file_axes!r}, expected i, j and k once each")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each array axis, in mm."""
        a, b, c = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(a), float(b), float(c)

    @property
    def directions(self) -> FloatArray:
        """3×3 matrix whose columns are the unit directions of the array axes in LPS."""
        return np.asarray(self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def origin_mm(self) -> FloatArray:
        """LPS position of the centre of voxel (0, 0, 0), in mm."""
        return np.array(self.affine[:3, 3])

    @property
    def axis_codes(self) -> str:
        """Three letters: the patient direction nearest to which each array axis increases, e.g. ``SPL``."""
        return axis_codes(self.directions)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def is_orthogonal(self) -> bool:
        """True where the axes are perpendicular to within 0.06°."""
        d = self.directions
        return bool(np.abs(d.T @ d - np.eye(3)).max() < 1e-3)

    def world(self, index: ArrayLike) -> FloatArray:
        """LPS millimetres of array indices, shape (..., 3) in and out."""
        return np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def index(self, world_mm: ArrayLike) -> FloatArray:
        """Fractional array indices of LPS millimetres, shape (..., 3) in and out."""
        inverse = np.linalg.inv(self.affine[:3, :3])
        return (np.asarray(world_mm, dtype=np.float64) - self.affine[:3, 3]) @ inverse.T

    def same_place(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """True where both grids have the same shape and their corners agree to within the tolerance."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape])).reshape(3, -1).T
        return bool(np.abs(self.world(corners) - other.world(corners)).max() <= tolerance_mm)

    def to_json(self) -> dict[str, object]:
        """Shape, affine, spacing, axis codes and frame of reference as plain data."""
        return {
            "shape": list(self.shape),
            "affine_lps": [[float(x) for x in row] for row in self.affine],
            "spacing_mm": list(self.spacing_mm),
            "axis_codes": self.axis_codes,
            "frame_of_reference_uid": self.frame_of_reference,
        }


def axis_codes(directions: ArrayLike) -> str:
    """Axis codes of a 3×3 matrix of column directions in LPS; each axis gets a different letter pair."""
    d = np.asarray(directions, dtype=np.float64)
    codes = ["", "", ""]
    left = np.abs(d).copy()
    for _ in range(3):
        world, axis = (int(x) for x in np.unravel_index(int(np.argmax(left)), left.shape))
        codes[axis] = _POSITIVE[world] if d[world, axis] > 0 else _NEGATIVE[world]
        left[world, :] = -1.0
        left[:, axis] = -1.0
    return "".join(codes)
