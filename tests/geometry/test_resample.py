"""Resampling: exact on ramps, equal to scipy's and SimpleITK's, world coordinates kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from wetread.errors import GeometryError
from wetread.geometry import (
    Resampler,
    antialias_sigma,
    axis_maps,
    fitted_grid,
    lattice_grid,
    orient,
    resample,
)
from wetread.geometry.axes import AxisMap
from wetread.volume import Grid


def axial(shape, spacing=(2.0, 0.7, 0.8), origin=(-20.3, 10.1, 5.7)):
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing
    affine[:, 3] = (*origin, 1)
    return Grid(shape, affine)


def turned(shape, spacing, origin, angle):
    c, s = np.cos(angle), np.sin(angle)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = origin
    return Grid(shape, affine)


def ramp(grid, slope=(0.5, -1.25, 2.0), base=7.0):
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    return grid.world(index) @ np.array(slope) + base


def inside(target, source, slack=0.0):
    index = np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), -1)
    place = source.index(target.world(index))
    return ((place >= -slack) & (place <= np.array(source.shape) - 1 + slack)).all(-1)


@given(
    st.tuples(*[st.integers(2, 24)] * 3),
    st.tuples(*[st.floats(0.4, 4)] * 3),
    st.tuples(*[st.floats(-90, 90)] * 3),
    st.tuples(*[st.floats(0.4, 4)] * 3),
    st.sampled_from(["SPL", "RAS", "LAI", "PIR"]),
)
@settings(max_examples=50, deadline=None)
def test_linear_is_exact_on_ramps_in_every_orientation(shape, old, origin, new, codes):
    source = axial(shape, old, origin)
    target = lattice_grid(source, codes, new)
    result = resample(ramp(source), source, target)
    assert result.shape == target.shape and result.dtype == np.float32
    within = inside(target, source)
    expected = ramp(target)
    scale = max(1.0, np.abs(ramp(source)).max())
    assert np.abs(result - expected)[within].max(initial=0) <= 1e-6 * scale * 3  # float32, three passes


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_weights_reproduce_a_line_in_float64(interpolation):
    along = AxisMap(0, 0.73, 4.2, 40, 40)
    matrix = along.matrix(interpolation)
    assert np.abs(matrix.sum(axis=1) - 1).max() < 1e-12
    # mirror boundaries bend a line near the ends; their trace decays as 0.268 a voxel
    middle = (along.coordinates > 0) & (along.coordinates < 39)
    if interpolation == "cubic":
        middle = (along.coordinates > 18) & (along.coordinates < 21)
    assert middle.any()
    tolerance = 1e-12 if interpolation == "linear" else 1e-8
    assert np.abs(matrix @ np.arange(40.0) - along.coordinates)[middle].max() < tolerance


def test_oblique_target_is_exact_on_ramps():
    source = axial((20, 30, 31))
    target = turned((12, 13, 9), (1.0, 0.9, 1.7), (-15, 15, 12), 0.4)
    assert axis_maps(source, target) is None
    result = resample(ramp(source), source, target)
    within = inside(target, source)
    assert within.sum() > 300
    assert np.abs(result - ramp(target))[within].max() < 1e-4  # float32 of values up to 100


@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("cubic", 3), ("nearest", 0)])
@pytest.mark.parametrize("oblique", [False, True])
def test_equal_to_scipy(interpolation, order, oblique):
    rng = np.random.default_rng(3)
    source = axial((9, 22, 17))
    array = rng.normal(size=source.shape)
    target = (
        turned((12, 13, 9), (1, 0.9, 1.7), (-15, 15, 7), 0.3)
        if oblique
        else lattice_grid(source, "LAS", (1.1, 0.9, 1.3))
    )
    index = np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), -1)
    place = source.index(target.world(index))
    place = np.clip(place, 0, np.array(source.shape) - 1)
    if order == 0:
        place = np.floor(place + 0.5 + 1e-6)
    mode = "mirror" if order == 3 else "nearest"
    expected = ndimage.map_coordinates(array, np.moveaxis(place, -1, 0), order=order, mode=mode)
    result = resample(array, source, target, interpolation)
    assert np.abs(result - expected).max() < 5e-6  # float32 sums of values up to 4


def test_cubic_interpolates_the_samples_themselves():
    source = axial((9, 12, 17))
    array = np.random.default_rng(4).normal(size=source.shape).astype(np.float32)
    target = fitted_grid(source, tuple(s / 2 for s in source.spacing_mm), "first")
    result = resample(array, source, target, "cubic")
    assert np.abs(result[::2, ::2, ::2] - array).max() < 5e-6


def test_edges_are_clamped_and_further_out_is_fill():
    source = Grid((3, 3, 3), np.eye(4))
    target = Grid((9, 3, 3), np.array([[0.5, 0, 0, -1.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    array = np.broadcast_to(np.array([1.0, 2.0, 4.0])[:, None, None], (3, 3, 3))
    filled = resample(array, source, target, fill=-9.0)[:, 1, 1]
    assert filled.tolist() == [-9, 1, 1, 1.5, 2, 3, 4, 4, -9]
    clamped = resample(array, source, target)[:, 1, 1]
    assert clamped.tolist() == [1, 1, 1, 1.5, 2, 3, 4, 4, 4]


def test_antialias_is_scipy_gaussian_then_linear():
    source = axial((8, 64, 48), (1, 0.5, 0.5))
    array = np.random.default_rng(5).normal(size=source.shape)
    target = fitted_grid(source, (3.0, 2.0, 0.5))
    sigmas = [antialias_sigma(o, n) for o, n in zip(source.spacing_mm, target.spacing_mm, strict=True)]
    assert sigmas == pytest.approx([(8 / 3 - 1) / 2, 1.5, 0.0])  # 8 planes of 1 mm become 3 of 8/3 mm
    smooth = ndimage.gaussian_filter(array, sigmas, mode="nearest")
    expected = resample(smooth, source, target)
    result = resample(array, source, target, antialias=True)
    assert np.abs(result - expected).max() < 5e-6


def test_steps_run_before_and_after():
    source = axial((5, 20, 20))
    target = lattice_grid(source, "SPL", (1, 1, 1))
    array = np.random.default_rng(6).integers(-1000, 1000, source.shape).astype(np.int16)

    def clip(x):
        np.clip(x, -600, 400, out=x)

    def scale(x):
        x *= np.float32(0.001)

    expected = resample(np.clip(array, -600, 400), source, target) * np.float32(0.001)
    result = resample(array, source, target, steps=(clip, scale))
    assert np.abs(result - expected).max() < 1e-6


def test_slabs_in_any_order_and_number_of_threads_agree_bit_for_bit():
    source = axial((23, 40, 50))
    target = lattice_grid(source, "SPL", (1.0, 1.0, 1.0))
    array = np.random.default_rng(7).integers(-1000, 1000, source.shape).astype(np.int16)
    whole = resample(array, source, target, threads=1)
    assert np.array_equal(resample(array, source, target, threads=3), whole)
    plan = Resampler(source, target)
    out = np.full(plan.shape, np.nan, np.float32)
    for plane in np.random.default_rng(8).permutation(plan.shape[0]):
        lower, upper = (x[plane] for x in plan.support())
        given = {s: array[s] for s in {int(lower), int(upper)}}
        plan.run(given.__getitem__, [int(plane)], out)
    assert np.array_equal(out, whole)


def test_views_and_orders_of_memory_give_the_same():
    source = axial((11, 20, 30))
    array = np.random.default_rng(9).normal(size=source.shape).astype(np.float32)
    view, grid = orient(array, source, "RAS")
    target = fitted_grid(grid, (1.0, 1.1, 1.2))
    assert (
        np.abs(resample(view, grid, target) - resample(np.ascontiguousarray(view), grid, target)).max() < 1e-6
    )


def test_a_wrong_shape_is_refused():
    source = axial((5, 6, 7))
    with pytest.raises(GeometryError, match="shape"):
        resample(np.zeros((5, 6, 8)), source, source)
    with pytest.raises(GeometryError, match="directions"):
        Resampler(source, turned((3, 3, 3), (1, 1, 1), (0, 0, 0), 0.3))


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_equal_to_simpleitk(interpolation):
    sitk = pytest.importorskip("SimpleITK")
    source = axial((14, 60, 50))
    array = np.random.default_rng(2).integers(-1000, 1000, source.shape).astype(np.int16)
    target = lattice_grid(source, "SPL", (1.0, 1.0, 1.0))
    image = sitk.GetImageFromArray(array.astype(np.float64))
    image.SetSpacing(source.spacing_mm[::-1])
    image.SetOrigin(source.origin_mm.tolist())
    job = sitk.ResampleImageFilter()
    job.SetInterpolator(sitk.sitkLinear if interpolation == "linear" else sitk.sitkBSpline)
    job.SetSize(target.shape[::-1])
    job.SetOutputSpacing((1.0, 1.0, 1.0))
    job.SetOutputOrigin(target.origin_mm.tolist())
    expected = sitk.GetArrayFromImage(job.Execute(image))
    within = inside(target, source)
    result = resample(array, source, target, interpolation)
    tolerance = (
        1e-3 if interpolation == "linear" else 2e-2
    )  # HU; ITK's spline coefficients stop at 1e-10 of range
    assert np.abs(result - expected)[within].max() < tolerance
