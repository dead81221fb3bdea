"""Preprocessing: each step against its definition, order kept, the way back known."""

import itertools

import numpy as np
import pytest

from wetread.geometry import Orientation, fitted_grid, resample
from wetread.inference.prepare import prepare, prepared_grid


@pytest.fixture
def grid(make_grid):
    return make_grid((9, 14, 12), (3, 0.8, 0.9))


@pytest.fixture
def voxels(grid):
    return np.random.default_rng(0).integers(-1000, 1000, grid.shape).astype(np.int16)


def run(make_recipe, grid, voxels, steps, **changes):
    recipe = make_recipe(steps=steps, tiling={"kind": "whole"}, **changes)
    channels = voxels if isinstance(voxels, list) else [voxels]
    before = [channel.copy() for channel in channels]
    array, prepared = prepare(recipe, channels, grid)
    assert all(np.array_equal(a, b) for a, b in zip(before, channels, strict=True)), "source was changed"
    assert array.dtype == np.float32 and array.shape == (len(channels), *prepared.shape)
    known = prepared_grid(recipe, grid)
    assert known is None or known.same_place(prepared, 1e-9)
    return array, prepared


def test_pointwise_steps_in_their_order(make_recipe, grid, voxels):
    clip = {"step": "clip", "lower": -500, "upper": 300}
    scale = {"step": "scale", "lower": -500, "upper": 300, "to_lower": -1, "to_upper": 1}
    normalise = {"step": "normalise", "mean": 12.5, "std": 250}
    array, _ = run(make_recipe, grid, voxels, [clip, scale])
    assert np.abs(array[0] - (np.clip(voxels, -500, 300) + 500) / 400 + 1).max() < 1e-6
    array, _ = run(make_recipe, grid, voxels, [scale])
    assert array.min() < -1 and array.max() > 1  # scale does not clip
    array, _ = run(make_recipe, grid, voxels, [normalise, {"step": "clip", "lower": -1, "upper": 1}])
    assert np.abs(array[0] - np.clip((voxels - 12.5) / 250, -1, 1)).max() < 1e-6


@pytest.mark.parametrize("nonzero", [False, True])
def test_zscore(make_recipe, grid, voxels, nonzero):
    voxels = np.where(voxels < 0, 0, voxels)
    array, _ = run(make_recipe, grid, [voxels, voxels * 2 + 7], [{"step": "zscore", "nonzero": nonzero}])
    for result, source in zip(array, (voxels, voxels * 2 + 7), strict=True):
        chosen = source != 0 if nonzero else np.ones(source.shape, bool)
        values = source[chosen].astype(float)
        expected = np.where(chosen, (source - values.mean()) / values.std(), 0)
        assert np.abs(result - expected).max() < 1e-6


def test_zscore_of_a_constant_is_zero(make_recipe, grid):
    array, _ = run(make_recipe, grid, np.full(grid.shape, 5), [{"step": "zscore"}])
    assert not array.any()


def test_minmax_and_percentiles(make_recipe, grid, voxels):
    array, _ = run(make_recipe, grid, voxels, [{"step": "minmax"}])
    assert np.abs(array[0] - (voxels - voxels.min()) / (voxels.max() - float(voxels.min()))).max() < 1e-6
    step = {"step": "minmax", "lower_percentile": 5, "upper_percentile": 90, "clip": True}
    array, _ = run(make_recipe, grid, voxels, [step])
    low, high = np.percentile(voxels, [5, 90])
    assert np.abs(array[0] - np.clip((voxels - low) / (high - low), 0, 1)).max() < 1e-6
    array, _ = run(make_recipe, grid, np.full(grid.shape, 5), [{"step": "minmax"}])
    assert not array.any()


def test_crop_holds_what_any_channel_has_and_knows_the_way_back(make_recipe, grid):
    a, b = np.zeros(grid.shape), np.zeros(grid.shape)
    a[3:5, 4:7, 6:8] = 1
    b[4:6, 9:10, 2:3] = 2
    array, prepared = run(make_recipe, grid, [a, b], [{"step": "crop", "margin": 1}])
    assert np.array_equal(array[0], a[2:7, 3:11, 1:9])
    assert np.allclose(prepared.world((0, 0, 0)), grid.world((2, 3, 1)))
    array, prepared = run(make_recipe, grid, [a * 0, b * 0], [{"step": "crop"}])
    assert prepared.same_place(grid)


def test_pad_is_symmetric_with_the_odd_voxel_at_the_end(make_recipe, grid, voxels):
    array, prepared = run(make_recipe, grid, voxels, [{"step": "pad", "multiple": [4, 4, 5], "value": -3.5}])
    assert prepared.shape == (12, 16, 15)
    assert np.array_equal(array[0, 1:10, 1:15, 1:13], voxels)
    assert (array == -3.5).sum() == 12 * 16 * 15 - voxels.size
    assert np.allclose(prepared.world((1, 1, 1)), grid.world((0, 0, 0)))


@pytest.mark.parametrize("orientation", ["RAS", "SPL", "ILP"])
def test_orientation_comes_first_and_spacing_is_in_its_order(make_recipe, grid, voxels, orientation):
    steps = [{"step": "resample", "spacing_mm": [1.1, 2.2, 3.3]}]
    array, prepared = run(make_recipe, grid, voxels, steps, orientation=orientation)
    assert prepared.axis_codes == orientation
    turned = Orientation.between(grid.axis_codes, orientation)
    target = fitted_grid(turned.grid(grid), (1.1, 2.2, 3.3))
    assert prepared.same_place(target)
    assert np.abs(array[0] - resample(voxels, grid, target)).max() < 2e-3  # float32 of values up to 1000


def test_order_of_resampling_and_statistics_is_kept(make_recipe, grid, voxels):
    resampling = {"step": "resample", "spacing_mm": [2, 2, 2], "interpolation": "cubic"}
    clip = {"step": "clip", "lower": -100, "upper": 100}
    results = []
    for order in itertools.permutations([resampling, {"step": "zscore"}, clip]):
        array, prepared = run(make_recipe, grid, voxels, list(order))
        x = voxels.astype(float)
        at = grid
        for step in order:
            if step is resampling:
                x, at = resample(x, at, prepared, "cubic"), prepared
            elif step is clip:
                x = np.clip(x, -100, 100)
            else:
                x = (x - x.mean()) / x.std()
        assert np.abs(array[0] - x).max() < 2e-5 * max(1, np.abs(x).max())
        results.append(array.std())
    assert len({round(float(r), 6) for r in results}) > 2  # the order matters
