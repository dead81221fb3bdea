"""Sizes and statistics of connected components, in millimetres and millilitres.

One convention holds for all diameters, *edge to edge*: a voxel reaches from its centre to the centres of its
faces, so that a row of n voxels is n spacings long. These face centres are the vertices of the mask's mesh at
level 0.5 (marching cubes, or marching squares in a plane), so the diameter in space is the "maximum 3D
diameter" of the Image Biomarker Standardisation Initiative (L0JK, reference manual section 3.1.11). Since the
farthest points of a set lie on its convex hull, only hulls are compared.

The long axis is the largest such distance within one slice, over all slices; the short axis is the longest
chord of that slice's convex hull perpendicular to it (as in RECIST 1.1, Eisenhauer et al. 2009, and WHO).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.spatial import ConvexHull

from wetread.geometry.components import Box, bounding_box
from wetread.volume import Grid

FloatArray = NDArray[np.float64]
Point = tuple[float, float, float]
_FACES_2D = np.array([(0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)])
_FACES_3D = np.array([(0.5, 0, 0), (-0.5, 0, 0), (0, 0.5, 0), (0, -0.5, 0), (0, 0, 0.5), (0, 0, -0.5)])


class Cropped(Protocol):
    """Anything that gives an array for a box: an array itself, or a lazily resampled one."""

    def __getitem__(self, box: Box, /) -> NDArray[Any]:
        """Values inside the box, in the order of the grid's axes."""
        ...


@dataclass(frozen=True)
class Measurement:
    """One component; fields as in `wetread.findings.Finding`.

    Attributes:
        value: the component's number.
        first_voxel: index of one of its voxels, the first in the array's order.
        box: first and last index along each axis of the grid, inclusive.
        axis_points_lps_mm: end points of the long axis, then of the short axis.
        axes_slice: index of the slice in which the axes were measured.
        slice_range: first and last index along the slice axis, inclusive.
        mean, sd, max_probability, mean_probability: NaN where the array was not given; sd is that of the
            population (division by n).
    """

    value: int
    first_voxel: tuple[int, int, int]
    voxels: int
    volume_ml: float
    centroid_lps_mm: Point
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    slice_range: tuple[int, int]
    axes_slice: int
    long_axis_mm: float
    short_axis_mm: float
    diameter_3d_mm: float
    axis_points_lps_mm: tuple[Point, Point, Point, Point]
    mean: float
    sd: float
    max_probability: float
    mean_probability: float


def slice_axis_of(grid: Grid) -> int:
    """Axis that counts slices: 0 where the grid is that of source slices, else the one nearest to S/I."""
    if grid.slices:
        return 0
    return next(axis for axis, code in enumerate(grid.axis_codes) if code in "SI")


def measure_components(
    components: NDArray[np.int32],
    grid: Grid,
    *,
    intensities: Cropped | None = None,
    probability: Cropped | None = None,
    slice_axis: int | None = None,
) -> list[Measurement]:
    """Measures every component inside its own bounding box.

    Args:
        components: shape ``grid.shape``; 0 outside, numbers from 1 inside; gaps in the numbers are allowed.
        grid: where the voxels lie.
        intensities: values of the image (HU for CT), or None.
        probability: of the network, 0 to 1, or None.
        slice_axis: axis that counts slices; by default `slice_axis_of`.

    Returns:
        One measurement for each number that occurs, in increasing order.
    """
    whole = bounding_box(components)
    if whole is None:
        return []
    axis = slice_axis_of(grid) if slice_axis is None else slice_axis
    start = [part.start for part in whole]
    measurements = []
    for value, found in enumerate(find_objects(components[whole]), start=1):
        if found is None:
            continue
        box: Box = (
            slice(found[0].start + start[0], found[0].stop + start[0]),
            slice(found[1].start + start[1], found[1].stop + start[1]),
            slice(found[2].start + start[2], found[2].stop + start[2]),
        )
        inside = components[box] == value
        measurements.append(_measure_one(value, inside, box, grid, axis, (intensities, probability)))
    return measurements


def _measure_one(
    value: int,
    inside: NDArray[np.bool_],
    box: Box,
    grid: Grid,
    axis: int,
    images: tuple[Cropped | None, Cropped | None],
) -> Measurement:
    indices = np.argwhere(inside)
    start = np.array([part.start for part in box])
    mean, sd, _ = _statistics(images[0], box, inside)
    mean_probability, _, max_probability = _statistics(images[1], box, inside)
    order = [axis, *(a for a in range(3) if a != axis)]
    outlines = _slice_outlines(np.moveaxis(inside, axis, 0))
    place, long_ends, short_ends = _axes([hull for hull, _ in outlines], grid.affine[:3, order[1:]])
    ends = np.zeros((4, 3))
    ends[:, order[0]] = place
    ends[:, order[1:]] = np.concatenate([long_ends, short_ends])
    a, b, c, d = grid.world(ends + start)
    first = indices[0] + start
    return Measurement(
        value=value,
        first_voxel=(int(first[0]), int(first[1]), int(first[2])),
        voxels=len(indices),
        volume_ml=len(indices) * grid.voxel_ml,
        centroid_lps_mm=_point(grid.world(indices.mean(axis=0) + start)),
        box=(_extent(box[0]), _extent(box[1]), _extent(box[2])),
        slice_range=_extent(box[axis]),
        axes_slice=place + int(start[axis]),
        long_axis_mm=float(np.linalg.norm(b - a)),
        short_axis_mm=float(np.linalg.norm(d - c)),
        diameter_3d_mm=_diameter_3d([centres for _, centres in outlines], grid.affine[:3, order]),
        axis_points_lps_mm=(_point(a), _point(b), _point(c), _point(d)),
        mean=mean,
        sd=sd,
        max_probability=max_probability,
        mean_probability=mean_probability,
    )


def _statistics(image: Cropped | None, box: Box, inside: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Mean, standard deviation of the population, and maximum inside; NaN without an image."""
    if image is None:
        return float("nan"), float("nan"), float("nan")
    values = image[box][inside].astype(np.float64)
    return float(values.mean()), float(values.std()), float(values.max())


def _slice_outlines(stack: NDArray[np.bool_]) -> list[tuple[FloatArray, FloatArray]]:
    """For each slice the corners of the hull of its face centres, in order, and the voxels they belong to.

    Only the ends of each row can lie on the hull. Both arrays are empty where a slice has no voxel.
    """
    hit: NDArray[np.bool_] = np.any(stack, axis=2)
    first = stack.argmax(axis=2)
    last = stack.shape[2] - 1 - stack[:, :, ::-1].argmax(axis=2)
    outlines = []
    for filled, left, right in zip(hit, first, last, strict=True):
        rows = np.flatnonzero(filled)
        ends = [np.stack([rows, columns[rows]], axis=1) for columns in (left, right)]
        centres = np.concatenate(ends).astype(np.float64)
        points = (centres[:, None] + _FACES_2D).reshape(-1, 2)
        if not len(points):
            outlines.append((points, points))
            continue
        corners = ConvexHull(points).vertices
        outlines.append((points[corners], centres[np.unique(corners // len(_FACES_2D))]))
    return outlines


def _axes(hulls: Sequence[FloatArray], plane_mm: FloatArray) -> tuple[int, FloatArray, FloatArray]:
    """Slice, end points of its long axis and of its short axis (indices within the plane, 2×2 each).

    Among slices of equal long axis, the one with the longer short axis is taken; then the first.

    Args:
        hulls: corners of each slice's convex hull, in order around it, in indices.
        plane_mm: 3×2, millimetres along the plane's two axes.
    """
    reach = [_bound(hull, plane_mm) for hull in hulls]
    best = (-1.0, -1.0, 0)
    ends = np.zeros((2, 2)), np.zeros((2, 2))
    for place in sorted(range(len(hulls)), key=lambda p: -reach[p]):
        if reach[place] < best[0] - 1e-6:
            break
        hull = hulls[place]
        i, j, length = _farthest(hull @ plane_mm.T)
        chord, width = _perpendicular_chord(hull, plane_mm, i, j)
        rank = (round(length, 6), round(width, 6), -place)
        if rank > best:
            best, ends = rank, (hull[[i, j]], chord)
    return -best[2], *ends


def _bound(hull: FloatArray, plane_mm: FloatArray) -> float:
    """Diagonal of the hull's bounding box in mm: no distance within it is larger where axes are square."""
    if not len(hull):
        return -1.0
    a, b = np.ptp(hull, axis=0)[:, None] * plane_mm.T
    return float(max(np.linalg.norm(a + b), np.linalg.norm(a - b)))


def _farthest(points_mm: FloatArray) -> tuple[int, int, float]:
    """The two points farthest apart and their distance; the first such pair in order."""
    best = (0, 0, -1.0)
    step = max(1, 4_000_000 // max(1, len(points_mm)))
    squares = (points_mm**2).sum(axis=1)
    for start in range(0, len(points_mm), step):
        block = points_mm[start : start + step]
        distance = squares[start : start + step, None] + squares[None] - 2.0 * block @ points_mm.T
        i, j = divmod(int(np.argmax(np.round(distance, 9))), len(points_mm))
        exact = float(np.linalg.norm(points_mm[start + i] - points_mm[j]))
        if exact > best[2] + 1e-9:
            best = (start + i, j, exact)
    return best


def _perpendicular_chord(hull: FloatArray, plane_mm: FloatArray, i: int, j: int) -> tuple[FloatArray, float]:
    """Longest chord of a convex polygon perpendicular to its diagonal i-j: ends (indices) and length in mm.

    The chord's length is concave and piecewise linear along the diagonal with breaks at the corners, so its
    maximum lies at a corner.
    """
    metric = plane_mm.T @ plane_mm
    corners = hull - hull[i]
    along = (hull[j] - hull[i]) / np.sqrt((hull[j] - hull[i]) @ metric @ (hull[j] - hull[i]))
    across = np.array([-(metric @ along)[1], (metric @ along)[0]])
    across = across / np.sqrt(across @ metric @ across)
    t, s = corners @ metric @ along, corners @ metric @ across
    n = len(hull)
    one, other = np.arange(i, i + (j - i) % n + 1) % n, np.arange(j, j + (i - j) % n + 1)[::-1] % n
    s_one, s_other = (np.interp(t, t[chain], s[chain]) for chain in (one, other))
    at = int(np.argmax(np.round(np.abs(s_one - s_other), 9)))
    ends = hull[i] + t[at] * along + np.outer((s_one[at], s_other[at]), across)
    return ends, float(abs(s_one[at] - s_other[at]))


def _diameter_3d(centres: Sequence[FloatArray], axes_mm: FloatArray) -> float:
    """Largest distance between face centres of the voxels, in mm.

    Args:
        centres: for each slice the voxels on the corners of its hull; the others cannot lie on the hull.
        axes_mm: 3×3, millimetres along the slice axis and the plane's two axes.
    """
    stacked = [np.insert(flat, 0, float(place), axis=1) for place, flat in enumerate(centres) if len(flat)]
    points = (np.concatenate(stacked)[:, None] + _FACES_3D).reshape(-1, 3)
    return _farthest(points[ConvexHull(points).vertices] @ axes_mm.T)[2]


def _extent(part: slice) -> tuple[int, int]:
    return part.start, part.stop - 1


def _point(world_mm: FloatArray) -> Point:
    x, y, z = (float(c) for c in world_mm)
    return x, y, z
