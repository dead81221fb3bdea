import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import Delaunay
from scipy.spatial.distance import pdist

from wetread.geometry.measure import measure_components, slice_axis_of
from wetread.volume import Grid, SliceRef

FACES = np.concatenate([np.eye(3), -np.eye(3)]) / 2


def grid_of(shape, spacing=(1.0, 1.0, 1.0), rotation=None, slices=True):
    affine = np.eye(4)
    axes = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float)
    affine[:3, :3] = (np.eye(3) if rotation is None else rotation) @ axes * spacing
    affine[:3, 3] = (-20.0, 31.0, -7.0)
    refs = tuple(SliceRef(f"1.2.{i}") for i in range(shape[0])) if slices else ()
    return Grid(shape, affine, slices=refs)


def ellipsoid(shape, centre, radii_mm, spacing):
    index = np.moveaxis(np.indices(shape), 0, -1) - centre
    return ((index * spacing / radii_mm) ** 2).sum(-1) <= 1


def rotation(seed):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def brute(inside, grid):
    """Long axis, short axis (dense search over all chords of the hull's outline), diameter in space."""
    index = np.argwhere(inside)
    space = grid.world((index[:, None] + FACES).reshape(-1, 3))
    best = 0.0
    for place in np.unique(index[:, 0]):
        flat = (index[index[:, 0] == place][:, None] + FACES[[1, 2, 4, 5]]).reshape(-1, 3)
        best = max(best, pdist(grid.world(flat)).max())
    return best, pdist(space).max()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.7, 0.7), (1.0, 0.6, 0.9)])
def test_ellipsoid_against_formulae(spacing):
    spacing = np.array(spacing)
    shape = tuple(int(n) for n in np.ceil(60 / spacing))
    radii = np.array([14.0, 22.0, 10.0])
    centre = (np.array(shape) - 1) / 2 + (0.1, 0.2, 0.3)
    inside = ellipsoid(shape, centre, radii, spacing)
    grid = grid_of(shape, spacing, rotation(3))
    (item,) = measure_components(inside.astype(np.int32), grid)
    assert item.volume_ml == pytest.approx(4 / 3 * math.pi * radii.prod() / 1000, rel=0.01)
    np.testing.assert_allclose(item.centroid_lps_mm, grid.world(centre), atol=0.05)
    # Voxels are chosen by their centres: each end lies within one voxel of the surface.
    assert item.long_axis_mm == pytest.approx(44.0, abs=spacing[1:].max())
    assert item.short_axis_mm == pytest.approx(20.0, abs=spacing[1:].max())
    assert item.diameter_3d_mm == pytest.approx(44.0, abs=spacing.max())
    assert item.axes_slice == pytest.approx(centre[0], abs=2 / spacing[0] + 1)


@given(st.integers(0, 10_000), st.floats(0.02, 0.5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_diameters_equal_brute_force(seed, fill, turned):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 7, 3))
    inside = rng.random(shape) < fill
    inside[tuple(rng.integers(0, shape))] = True
    grid = grid_of(shape, tuple(rng.uniform(0.4, 3.0, 3)), rotation(seed) if turned else None)
    (item,) = measure_components(inside.astype(np.int32), grid)
    long_axis, space = brute(inside, grid)
    assert item.long_axis_mm == pytest.approx(long_axis, abs=1e-6)
    assert item.diameter_3d_mm == pytest.approx(space, abs=1e-6)
    a, b, c, d = (np.array(p) for p in item.axis_points_lps_mm)
    assert np.linalg.norm(a - b) == pytest.approx(item.long_axis_mm, abs=1e-6)
    assert np.linalg.norm(c - d) == pytest.approx(item.short_axis_mm, abs=1e-6)
    assert (a - b) @ (c - d) == pytest.approx(0, abs=1e-6)
    assert item.short_axis_mm <= item.long_axis_mm + 1e-6
    index = grid.index([a, b, c, d])
    np.testing.assert_allclose(index[:, 0], item.axes_slice, atol=1e-9)
    voxels = np.argwhere(inside)
    assert list(item.box) == list(zip(voxels.min(0).tolist(), voxels.max(0).tolist(), strict=True))
    assert item.voxels == len(voxels)
    np.testing.assert_allclose(item.centroid_lps_mm, grid.world(voxels.mean(0)), atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_short_axis_equals_dense_search_over_chords(seed):
    rng = np.random.default_rng(seed)
    blob = np.zeros((1, 24, 30), bool)
    for _ in range(3):
        centre, radii = rng.uniform((0, 8, 8), (0, 16, 22)), rng.uniform((1, 2, 2), (1, 7, 8))
        blob |= ellipsoid(blob.shape, centre, radii, (1, 1, 1))
    grid = grid_of(blob.shape, (1.0, 0.7, 0.7))
    (item,) = measure_components(blob.astype(np.int32), grid)
    a, b, _, _ = (np.array(p) for p in item.axis_points_lps_mm)
    along = (b - a) / item.long_axis_mm
    across = np.cross(along, grid.directions[:, 0])
    corners = grid.world((np.argwhere(blob)[:, None] + FACES[[1, 2, 4, 5]]).reshape(-1, 3))
    plane = np.stack([(corners - a) @ along, (corners - a) @ across], 1)
    triangles = Delaunay(np.unique(plane.round(9), axis=0))
    heights = np.arange(-16, 16, 0.02)
    longest = 0.0
    for t in np.unique(np.concatenate([np.linspace(0, item.long_axis_mm, 20), plane[:, 0].round(6)])):
        inside = triangles.find_simplex(np.stack([np.full_like(heights, t), heights], 1)) >= 0
        longest = max(longest, inside.sum() * 0.02)
    assert item.short_axis_mm == pytest.approx(longest, abs=0.05)


def test_rows_are_their_number_of_spacings_long():
    components = np.zeros((4, 5, 12), np.int32)
    components[1, 2, 3:10] = 1
    components[3, 4, 11] = 2
    seven, single = measure_components(components, grid_of((4, 5, 12), (3.0, 0.5, 0.8)))
    assert seven.long_axis_mm == pytest.approx(7 * 0.8)
    assert seven.short_axis_mm == pytest.approx(0.5)
    assert seven.diameter_3d_mm == pytest.approx(
        math.hypot(6 * 0.8, 3.0)
    )  # top of one end, bottom of the other
    assert seven.slice_range == (1, 1)
    assert single.long_axis_mm == pytest.approx(0.8)
    assert single.short_axis_mm == pytest.approx(0.5)
    assert single.diameter_3d_mm == pytest.approx(3.0)
    assert single.first_voxel == (3, 4, 11)


def test_statistics_and_gaps_in_the_numbers():
    rng = np.random.default_rng(0)
    components = np.zeros((5, 6, 7), np.int32)
    components[1:3, 2:4, 1:4] = 2
    components[4, 0, 0] = 5
    image = rng.normal(size=components.shape)
    probability = rng.random(components.shape).astype(np.float32)
    two, five = measure_components(
        components, grid_of(components.shape), intensities=image, probability=probability
    )
    assert (two.value, five.value) == (2, 5)
    inside = components == 2
    assert two.mean == pytest.approx(image[inside].mean())
    assert two.sd == pytest.approx(image[inside].std())
    assert two.max_probability == pytest.approx(probability[inside].max())
    assert two.mean_probability == pytest.approx(probability[inside].mean(dtype=float))
    assert five.sd == 0
    (bare,) = measure_components((components == 2).astype(np.int32), grid_of(components.shape))
    assert math.isnan(bare.mean) and math.isnan(bare.max_probability)
    assert measure_components(np.zeros((2, 2, 2), np.int32), grid_of((2, 2, 2))) == []


def test_slices_of_a_nifti_grid_are_axial():
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    grid = Grid((8, 9, 10), affine)
    assert slice_axis_of(grid) == 2
    components = np.zeros(grid.shape, np.int32)
    components[2:6, 3, 1:9] = 1
    (item,) = measure_components(components, grid)
    assert item.slice_range == (1, 8)
    assert item.long_axis_mm == pytest.approx(4.0)
    assert item.short_axis_mm == pytest.approx(1.0)
    same = measure_components(components.transpose(2, 1, 0), Grid((10, 9, 8), affine[:, [2, 1, 0, 3]]))
    assert same[0].long_axis_mm == pytest.approx(item.long_axis_mm)
    np.testing.assert_allclose(same[0].centroid_lps_mm, item.centroid_lps_mm)


def test_large_organ():
    shape = (120, 256, 256)
    organ = ellipsoid(shape, (60, 128, 128), (55, 110, 90), (1, 1, 1)).astype(np.int32)
    (item,) = measure_components(organ, grid_of(shape))
    assert item.diameter_3d_mm == pytest.approx(220, abs=1.5)
