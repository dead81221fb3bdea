"""Grids made from grids: lattice, fitted, cropped, padded."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wetread.geometry.orient import Orientation
from wetread.volume import Grid

Alignment = Literal["edges", "first"]
_FUZZ = 1e-6  # voxels: a sample this close to a lattice point lies on it


def lattice_index(grid: Grid) -> NDArray[np.float64]:
    """Lattice coordinates of a grid's voxel (0, 0, 0), in voxels along each of its axes, shape (3,).

    The coordinate of a world point p is ``(D⁻¹ p) / spacing`` with D the unit directions of the grid's
    axes; for perpendicular axes this is the distance from the frame of reference's origin along the axis.
    Two grids of equal directions and spacing share their sample positions where these differ by integers.
    """
    place = np.linalg.solve(grid.directions, grid.origin_mm) / np.array(grid.spacing_mm)
    return np.asarray(place, dtype=np.float64)


def lattice_grid(source: Grid, codes: str, spacing_mm: tuple[float, float, float]) -> Grid:
    """The smallest grid anchored at multiples of the spacing that covers all voxel centres of the source.

    Samples lie at whole multiples of ``spacing_mm`` in frame-of-reference coordinates along each axis
    direction, so that any subset of a scan's slices gives the same sample positions. First and last
    samples lie on or up to one spacing outside the outermost source centres.

    Args:
        source: the grid to cover.
        codes: axis codes of the result.
        spacing_mm: along each axis of the result.
    """
    turned = Orientation.between(source.axis_codes, codes).grid(source)
    first = lattice_index(turned) * np.array(turned.spacing_mm) / np.array(spacing_mm)
    extent = (np.array(turned.shape) - 1) * np.array(turned.spacing_mm) / np.array(spacing_mm)
    lower = np.floor(first + _FUZZ)
    upper = np.ceil(first + extent - _FUZZ)
    shape = np.maximum(upper - lower, 0).astype(int) + 1
    affine = np.eye(4)
    affine[:3, :3] = turned.directions * np.array(spacing_mm)
    affine[:3, 3] = affine[:3, :3] @ lower
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine, source.frame_of_reference)


def fitted_grid(source: Grid, spacing_mm: tuple[float, float, float], alignment: Alignment = "edges") -> Grid:
    """A grid of about the given spacing that follows the source's extent; same axes as the source.

    ``edges``: shape ``round(n·old/new)`` (halves to even), outer voxel *edges* coincide, so that the true
    spacing is ``old·n/shape``: nnU-Net's convention (its `compute_new_shape` with skimage's or torch's
    half-pixel resize). ``first``: the first voxel *centre* coincides, spacing is exactly as given and the
    shape ``round((n − 1)·old/new + 1)``: the convention of MONAI's `Spacing`.

    Args:
        source: grid to follow.
        spacing_mm: along each axis of the source.
        alignment: which points coincide.
    """
    old = np.array(source.spacing_mm)
    count = np.array(source.shape)
    new = np.array(spacing_mm)
    if alignment == "edges":
        shape = np.maximum(np.round(old / new * count), 1)
        new = old * count / shape
        first = (new / old - 1) / 2
    else:
        shape = np.maximum(np.round((count - 1) * old / new + 1), 1)
        first = np.zeros(3)
    affine = np.eye(4)
    affine[:3, :3] = source.directions * new
    affine[:3, 3] = source.world(first)
    same = int(shape[0]) == source.shape[0] and np.allclose(new[0], old[0], rtol=1e-9)
    return Grid(
        (int(shape[0]), int(shape[1]), int(shape[2])),
        affine,
        source.frame_of_reference,
        source.slices if same else (),
    )


def shifted_grid(grid: Grid, lower: tuple[int, int, int], upper: tuple[int, int, int]) -> Grid:
    """The grid of indices ``lower ≤ index < upper``, cropped or extended; world places are kept.

    Args:
        grid: grid to cut from.
        lower: first index along each axis, negative to extend.
        upper: one past the last index, beyond the shape to extend.

    Raises:
        GeometryError: an axis would be empty.
    """
    affine = np.array(grid.affine)
    affine[:3, 3] = grid.world(lower)
    inside = lower[0] >= 0 and upper[0] <= grid.shape[0]
    slices = grid.slices[lower[0] : upper[0]] if inside else ()
    shape = (upper[0] - lower[0], upper[1] - lower[1], upper[2] - lower[2])
    return Grid(shape, affine, grid.frame_of_reference, slices)


def corners_mm(grid: Grid) -> NDArray[np.float64]:
    """LPS millimetres of the centres of the eight corner voxels, shape (8, 3)."""
    axes = [(0, n - 1) for n in grid.shape]
    index = np.array(np.meshgrid(*axes, indexing="ij")).reshape(3, -1).T
    return grid.world(index)
