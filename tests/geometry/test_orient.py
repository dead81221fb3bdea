"""Orientation: views with the same voxels at the same places."""

import itertools

import numpy as np
import pytest

from wetread.errors import GeometryError
from wetread.geometry import Orientation, orient
from wetread.volume import Grid, SliceRef


def grid_of(shape, rng=None):
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = 2.5, 0.7, 0.9, 1
    affine[:3, 3] = (-100.5, 20.25, 33.0)
    return Grid(shape, affine, "1.2.3", tuple(SliceRef(f"1.{n}") for n in range(shape[0])))


CODES = ["".join(p) for choice in itertools.product("LR", "PA", "SI") for p in itertools.permutations(choice)]


@pytest.mark.parametrize("codes", CODES)
def test_each_voxel_keeps_its_place_and_no_copy_is_made(codes):
    grid = grid_of((4, 5, 6))
    array = np.arange(2 * 120).reshape(2, 4, 5, 6)
    turned, there = orient(array, grid, codes)
    assert there.axis_codes == codes
    assert there.shape == turned.shape[1:]
    assert np.shares_memory(turned, array)
    for index in itertools.product(*map(range, there.shape)):
        back = np.rint(grid.index(there.world(index))).astype(int)
        assert (turned[(slice(None), *index)] == array[(slice(None), *back)]).all()
    orientation = Orientation.between(grid.axis_codes, codes)
    assert np.array_equal(orientation.undo(turned), array)
    assert np.shares_memory(orientation.undo(turned), array)


def test_slices_follow_axis_zero():
    grid = grid_of((4, 5, 6))
    assert orient(np.zeros((4, 5, 6)), grid, "IPL")[1].slices == grid.slices[::-1]
    assert orient(np.zeros((4, 5, 6)), grid, "LPS")[1].slices == ()


@pytest.mark.parametrize("codes", ["LLS", "LP", "XYZ", "LPSS"])
def test_codes_that_name_no_orientation_are_refused(codes):
    with pytest.raises(GeometryError, match="axis codes"):
        Orientation.between("LPS", codes)
