"""Geometry: from the positions and orientations of all slices to one orthogonal grid, or a refusal.

Everything here works on headers alone. Array axes are ``[slice, row, column]``; the slice axis runs along
row direction × column direction (DICOM PS3.3 C.7.6.2.1.1), so that arrays are always right-handed in the
order column, row, slice, whatever the order in which slices were taken or stored.

What is accepted as it is, repaired, or refused:

* *Position along the normal.* Even to within 5 % of the spacing (at least 0.06 mm, the rounding of positions
  that are written with one decimal): accepted. Uneven: evened by linear interpolation when every gap is
  *safe*, that is, at most 1.9 times the median gap, and either covered by the thickness of its two slices
  (≤ 1.1 × half their sum) or at most 1.25 times the median gap. Else refused: tissue there was never imaged.
* *Position within the plane.* Within a tenth of a pixel of the common normal: accepted. Else each slice is
  shifted to where its header says it is (gantry tilt shifts all of them in proportion), as long as the field
  of view grows to at most twice its size in each direction.
* *Same position twice.* Dropped when pixels are equal (checked when voxels are read), else refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wetread.dicom import tags
from wetread.dicom.header import SliceHeader
from wetread.dicom.plane import plane_directions
from wetread.errors import GeometryError, Notice
from wetread.volume import Grid

FloatArray = NDArray[np.float64]

SAME_POSITION_MM = 0.01
EVEN_FRACTION = 0.05
EVEN_FLOOR_MM = 0.06
MISSING_FACTOR = 1.9
SAFE_FACTOR = 1.25
COVER_FACTOR = 1.1
PLANE_FRACTION = 0.1
GROWTH_LIMIT = 2.0
SPLIT_DEGREES = 5.0
PARALLEL_TOLERANCE = 2e-3


@dataclass(frozen=True, eq=False)
class Arrangement:
    """How the slices of a series make one grid.

    Attributes:
        grid: the volume's orthogonal grid.
        order: the slices by rising position along the normal, without duplicates.
        duplicates: pairs (index into ``order``, header that repeats it); pixels are to be compared.
        levels: position of each slice along the grid's first axis, in voxels of the grid; shape (n,).
        shifts: row and column of each slice's first pixel in the grid, in voxels, ≥ 0; shape (n, 2).
        notices: what was repaired.
    """

    grid: Grid
    order: tuple[SliceHeader, ...]
    duplicates: tuple[tuple[int, SliceHeader], ...]
    levels: FloatArray
    shifts: FloatArray
    notices: tuple[Notice, ...]

    @property
    def is_identity(self) -> bool:
        """True where the grid's slices are the source's, voxel for voxel."""
        return bool(self.grid.slices)


def arrange(slices: Sequence[SliceHeader]) -> Arrangement:
    """Finds the grid of one volume's slices, given in any order.

    Raises:
        GeometryError: fewer than two positions; missing or invalid elements; matrix, spacing, orientation or
            frame of reference that differ; missing slices and gaps; shifts beyond repair.
        PixelError: Rows or Columns are missing.
    """
    if not slices:
        raise GeometryError("the series holds no slices", code="NO_SLICES")
    directions = _common_plane(slices)
    _same_matrix(slices)
    normal = directions[0]
    positions = np.array([header.position for header in slices], dtype=np.float64)
    along = positions @ normal
    order = sorted(range(len(slices)), key=lambda k: (along[k], slices[k].instance_number))
    kept, duplicates = _without_duplicates(slices, order, positions, along)
    headers = tuple(slices[k] for k in kept)
    _unique(headers)
    if len(headers) < 2:
        raise GeometryError(
            "the series has one slice position, expected at least 2 for a volume",
            where=headers[0].where(),
            code="SINGLE_SLICE",
            todo="choose the series with all of its slices",
        )
    levels_mm = along[kept] - along[kept[0]]
    spacing, notices = _spacing(headers, levels_mm)
    offsets, in_plane = _in_plane(headers, positions[kept], directions)
    notices = [*_duplicate_notices(duplicates), *notices, *in_plane, *_thickness_notices(headers, spacing)]
    if not headers[0].frame_of_reference:
        notices.append(
            Notice(
                "FRAME_OF_REFERENCE_MISSING",
                f"{tags.named('FrameOfReferenceUID')} is missing; this series cannot be combined with others",
                headers[0].where("FrameOfReferenceUID"),
            )
        )
    return _assemble(
        headers, duplicates, directions, positions[kept[0]], (levels_mm, spacing, offsets), notices
    )


def _assemble(
    headers: tuple[SliceHeader, ...],
    duplicates: list[tuple[int, SliceHeader]],
    directions: FloatArray,
    first: FloatArray,
    placed: tuple[FloatArray, float, FloatArray | None],
    notices: list[Notice],
) -> Arrangement:
    """Builds grid, levels and shifts from what was measured; ``offsets`` None means none."""
    levels_mm, spacing, offsets = placed
    rows, columns = headers[0].shape
    row_mm, column_mm = headers[0].pixel_spacing
    count = round(levels_mm[-1] / spacing) + 1
    levels = levels_mm / spacing
    even = count == len(headers) and bool(
        np.abs(levels_mm - np.arange(count) * spacing).max() <= max(EVEN_FRACTION * spacing, EVEN_FLOOR_MM)
    )
    if even:
        levels = np.arange(count, dtype=np.float64)
    steps = directions * np.array([[spacing], [row_mm], [column_mm]])
    affine = np.eye(4)
    affine[:3, :3] = steps.T
    affine[:3, 3] = first
    shifts = np.zeros((len(headers), 2))
    if offsets is not None:
        shifts = offsets / (row_mm, column_mm)
        start = shifts.min(axis=0)
        shifts = shifts - start
        grown = np.array([rows, columns]) + np.ceil(shifts.max(axis=0) - 1e-6)
        if (grown > GROWTH_LIMIT * np.array([rows, columns])).any():
            raise GeometryError(
                f"the slices are shifted within their plane by up to {np.abs(offsets).max():.1f} mm,"
                f" expected less than the field of view",
                where=headers[-1].where("ImagePositionPatient"),
                code="SHIFT_TOO_LARGE",
                todo="check the positions; reconstruct the series without tilt",
            )
        affine[:3, 3] = first + start @ steps[1:]
        rows, columns = (int(n) for n in grown)
    refs = tuple(header.ref for header in headers) if even and offsets is None else ()
    grid = Grid((count, rows, columns), affine, headers[0].frame_of_reference, refs)
    return Arrangement(grid, headers, tuple(duplicates), levels, shifts, tuple(notices))


def _common_plane(slices: Sequence[SliceHeader]) -> FloatArray:
    """Directions of the first slice, after checking that all are parallel to within 0.1°."""
    seen: dict[tuple[float, ...], FloatArray] = {}
    reference = plane_directions(slices[0])
    for header in slices:
        key = header.orientation
        if key not in seen:
            seen[key] = plane_directions(header)
            off = float(np.abs(seen[key] - reference).max())
            if off > PARALLEL_TOLERANCE:
                raise GeometryError(
                    f"{tags.named('ImageOrientationPatient')} differs from the first slice's by {off:.4f}, expected "
                    f"at most {PARALLEL_TOLERANCE}",
                    where=header.where("ImageOrientationPatient"),
                    code="ORIENTATION_DIFFERS",
                    todo="reconstruct the series with parallel slices",
                )
    return reference


def _same_matrix(slices: Sequence[SliceHeader]) -> None:
    """Checks that Rows, Columns, Pixel Spacing and Frame of Reference are the same in all slices."""
    first = slices[0]
    for header in slices:
        if header.shape != first.shape:
            raise GeometryError(
                f"{tags.named('Rows')}, {tags.named('Columns')} are {header.shape}, other slices have "
                f"{first.shape}",
                where=header.where("Rows"),
                code="MATRIX_DIFFERS",
                todo="choose one reconstruction of the series",
            )
        spacing, expected = header.pixel_spacing, first.pixel_spacing
        if max(abs(a - b) / b for a, b in zip(spacing, expected, strict=True)) > 1e-4:
            raise GeometryError(
                f"{tags.named('PixelSpacing')} is {spacing}, other slices have {expected}",
                where=header.where("PixelSpacing"),
                code="SPACING_DIFFERS",
                todo="choose one reconstruction of the series",
            )
        if header.frame_of_reference != first.frame_of_reference:
            raise GeometryError(
                f"{tags.named('FrameOfReferenceUID')} is {header.frame_of_reference or 'missing'}, "
                f"other slices have {first.frame_of_reference or 'none'}",
                where=header.where("FrameOfReferenceUID"),
                code="FRAME_OF_REFERENCE_DIFFERS",
            )


def _without_duplicates(
    slices: Sequence[SliceHeader], order: list[int], positions: FloatArray, along: FloatArray
) -> tuple[list[int], list[tuple[int, SliceHeader]]]:
    """Drops slices at a position that is already taken; pixels are compared when they are read."""
    kept: list[int] = []
    duplicates: list[tuple[int, SliceHeader]] = []
    for k in order:
        if kept and along[k] - along[kept[-1]] < SAME_POSITION_MM:
            apart = float(np.linalg.norm(positions[k] - positions[kept[-1]]))
            if apart > SAME_POSITION_MM:
                raise GeometryError(
                    f"two slices lie in one plane, {apart:.2f} mm apart, expected one slice for each position",
                    where=f"{slices[k].where('ImagePositionPatient')}; {slices[kept[-1]].where()}",
                    code="POSITION_CONFLICT",
                    todo="choose one volume of the series",
                )
            duplicates.append((len(kept) - 1, slices[k]))
        else:
            kept.append(k)
    return kept, duplicates


def _unique(headers: tuple[SliceHeader, ...]) -> None:
    """Checks that no SOP Instance UID stands for two places."""
    seen: dict[tuple[str, int], SliceHeader] = {}
    for header in headers:
        key = (header.instance.sop_instance_uid, header.frame)
        if key in seen:
            raise GeometryError(
                f"{tags.named('SOPInstanceUID')} {key[0]} occurs at two positions",
                where=f"{header.where('SOPInstanceUID')}; {seen[key].where()}",
                code="SOP_INSTANCE_UID_REPEATED",
                todo="export the series again",
            )
        seen[key] = header


def _spacing(headers: tuple[SliceHeader, ...], levels_mm: FloatArray) -> tuple[float, list[Notice]]:
    """Spacing of the grid along the normal, in mm, and whether the slices had to be evened."""
    count = len(headers)
    mean = float(levels_mm[-1]) / (count - 1)
    off = float(np.abs(levels_mm - np.arange(count) * mean).max())
    if off <= max(EVEN_FRACTION * mean, EVEN_FLOOR_MM):
        notices = (
            []
            if off <= 0.01
            else [
                Notice(
                    "SPACING_ROUNDED",
                    f"slice positions deviate from an even spacing of {mean:.4f} mm by up to {off:.3f} mm; "
                    "taken as even",
                    headers[0].instance.series_instance_uid,
                )
            ]
        )
        return mean, notices
    gaps = np.diff(levels_mm)
    median = float(np.median(gaps))
    for k, gap in enumerate(gaps):
        _check_gap(headers[k], headers[k + 1], float(gap), median)
    fine = float(np.percentile(gaps[gaps >= 0.5 * median], 25))
    spacing = float(levels_mm[-1]) / round(float(levels_mm[-1]) / fine)
    return spacing, [
        Notice(
            "SPACING_UNEVEN",
            f"distances between slices run from {gaps.min():.3f} to {gaps.max():.3f} mm; interpolated "
            f"linearly to {spacing:.4f} mm",
            headers[0].instance.series_instance_uid,
        )
    ]


def _check_gap(below: SliceHeader, above: SliceHeader, gap: float, median: float) -> None:
    """Refuses a gap between neighbours over which interpolation would invent tissue."""
    where = f"{below.where('ImagePositionPatient')}; {above.where('ImagePositionPatient')}"
    if gap > MISSING_FACTOR * median:
        raise GeometryError(
            f"{gap:.3f} mm between two slices where {median:.3f} mm is usual: "
            f"{max(round(gap / median) - 1, 1)} missing",
            where=where,
            code="SLICE_MISSING",
            todo="send the missing slices",
        )
    covered = (
        below.thickness and above.thickness and gap <= COVER_FACTOR * (below.thickness + above.thickness) / 2
    )
    if not covered and gap > SAFE_FACTOR * median:
        raise GeometryError(
            f"{gap:.3f} mm between two slices where {median:.3f} mm is usual, more than their "
            "thickness covers",
            where=where,
            code="SLICE_GAP",
            todo="choose a series with even spacing",
        )


def _in_plane(
    headers: tuple[SliceHeader, ...], positions: FloatArray, directions: FloatArray
) -> tuple[FloatArray | None, list[Notice]]:
    """Shift of each slice within its plane in mm along (rows, columns), None where it is negligible."""
    relative = positions - positions[0]
    offsets = relative @ directions[1:].T
    largest = float(np.abs(offsets).max())
    pixel = min(headers[0].pixel_spacing)
    where = headers[0].instance.series_instance_uid
    if largest <= PLANE_FRACTION * pixel:
        return None, []
    along = relative @ directions[0]
    slope = (along @ offsets) / (along @ along)
    jitter = float(np.abs(offsets - np.outer(along, slope)).max())
    angle = float(np.degrees(np.arctan(np.linalg.norm(slope))))
    if jitter <= PLANE_FRACTION * pixel:
        return offsets, [
            Notice(
                "GANTRY_TILT",
                f"slices are stacked at {angle:.2f}° to their normal, with "
                f"{largest:.1f} mm of shift in all; straightened by linear interpolation",
                where,
            )
        ]
    return offsets, [
        Notice(
            "SLICES_SHIFTED",
            f"slices are shifted within their plane by up to {largest:.2f} mm; moved "
            "to their positions by linear interpolation",
            where,
        )
    ]


def _thickness_notices(headers: tuple[SliceHeader, ...], spacing: float) -> list[Notice]:
    """Tells of slices that overlap or leave gaps between them."""
    known = [header.thickness for header in headers if header.thickness]
    where = headers[0].instance.series_instance_uid
    if not known:
        return []
    thickness = float(np.median(known))
    if thickness > 1.05 * spacing:
        return [Notice("SLICES_OVERLAP", f"slices {thickness:g} mm thick lie every {spacing:.3f} mm", where)]
    if thickness < 0.95 * spacing:
        return [
            Notice(
                "SLICES_APART",
                f"slices {thickness:g} mm thick lie every {spacing:.3f} mm; what lies between "
                "them was not imaged",
                where,
            )
        ]
    return []


def _duplicate_notices(duplicates: list[tuple[int, SliceHeader]]) -> list[Notice]:
    """One notice for all duplicates."""
    if not duplicates:
        return []
    return [
        Notice(
            "DUPLICATE_SLICE",
            f"{len(duplicates)} slice{'s' if len(duplicates) > 1 else ''} at a position that "
            "another one holds, with the same pixels; left out",
            "; ".join(header.where() for _, header in duplicates[:5]),
        )
    ]
