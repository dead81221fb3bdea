"""Grids made from grids."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wetread.geometry import corners_mm, fitted_grid, lattice_grid, lattice_index, shifted_grid
from wetread.volume import Grid, SliceRef


def oblique(shape, spacing, origin, angles=(0.1, -0.2, 0.3)):
    a, b, c = angles
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = (rx @ ry @ rz)[:, [2, 1, 0]] * spacing
    affine[:3, 3] = origin
    return Grid(shape, affine)


spacings = st.tuples(*[st.floats(0.3, 6.0)] * 3)
origins = st.tuples(*[st.floats(-500, 500)] * 3)
shapes = st.tuples(*[st.integers(1, 40)] * 3)


@given(shapes, spacings, origins, spacings, st.sampled_from(["SPL", "RAS", "LAI", "PIR"]))
@settings(max_examples=60, deadline=None)
def test_lattice_covers_the_source_by_less_than_one_voxel_and_lies_on_multiples(s, sp, o, new, codes):
    source = oblique(s, sp, o)
    target = lattice_grid(source, codes, new)
    assert target.axis_codes == codes
    assert np.allclose(target.spacing_mm, new, rtol=1e-9)
    first = lattice_index(target)
    assert np.abs(first - np.round(first)).max() < 1e-6  # voxels: rounding of positions up to 500 mm
    index = target.index(corners_mm(source))
    low, high = index.min(axis=0), index.max(axis=0)
    assert (low > -1e-5).all() and (low < 1 + 1e-5).all()
    last = np.array(target.shape) - 1
    assert (high < last + 1e-5).all() and (high > last - 1 - 1e-5).all()


@given(st.integers(2, 30), st.data())
@settings(max_examples=40, deadline=None)
def test_lattice_of_a_subset_of_slices_is_a_subset_of_the_lattice(n, data):
    first = data.draw(st.integers(0, n - 1))
    last = data.draw(st.integers(first + 1, n))
    source = oblique((n, 20, 30), (1.3, 0.7, 0.7), (-31.7, 12.9, 441.3))
    part = shifted_grid(source, (first, 0, 0), (last, 20, 30))
    whole = lattice_grid(source, "SPL", (1, 1, 1))
    some = lattice_grid(part, "SPL", (1, 1, 1))
    offset = whole.index(some.origin_mm)
    assert np.abs(offset - np.round(offset)).max() < 1e-6
    assert some.shape[1:] == whole.shape[1:]


def test_fitted_edges_keeps_the_outer_edges_as_nnunet():
    source = oblique((20, 100, 90), (5.0, 0.7, 0.8), (3, 4, 5))
    target = fitted_grid(source, (1.5, 1.0, 1.0))
    assert target.shape == (67, 70, 72)  # round(20·5/1.5), round(70), round(72)
    for corner in ((-0.5, -0.5, -0.5), tuple(n - 0.5 for n in target.shape)):
        expected = (-0.5, -0.5, -0.5) if corner[0] < 0 else tuple(n - 0.5 for n in source.shape)
        assert np.allclose(target.world(corner), source.world(expected), atol=1e-9)


def test_fitted_first_keeps_the_first_centre_as_monai():
    source = oblique((20, 100, 90), (5.0, 0.7, 0.8), (3, 4, 5))
    target = fitted_grid(source, (1.5, 1.0, 1.0), "first")
    assert np.allclose(target.spacing_mm, (1.5, 1, 1))
    assert np.allclose(target.origin_mm, source.origin_mm)
    assert target.shape == (64, 70, 72)  # round(19·5/1.5 + 1), round(99·0.7 + 1), round(89·0.8 + 1)


def test_shifted_keeps_world_and_slices():
    source = Grid((3, 4, 5), np.diag([2, 2, 2, 1.0]), "", tuple(SliceRef(str(n)) for n in range(3)))
    cut = shifted_grid(source, (1, -2, 0), (3, 6, 5))
    assert cut.shape == (2, 8, 5)
    assert [s.sop_instance_uid for s in cut.slices] == ["1", "2"]
    assert np.allclose(cut.world((0, 2, 0)), source.world((1, 0, 0)))
    assert shifted_grid(source, (-1, 0, 0), (3, 4, 5)).slices == ()
    with pytest.raises(Exception, match="shape"):
        shifted_grid(source, (2, 0, 0), (2, 4, 5))
