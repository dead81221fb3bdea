"""The loop: mirrors, ensembles, batches, contexts, failures."""

import numpy as np
import pytest
from scipy import ndimage

from wetread.errors import NotFiniteError, RecipeError
from wetread.inference import Runner, Sweep, run


@pytest.fixture
def grid(make_grid):
    return make_grid((13, 20, 18), (1, 1, 1), (0, 0, 0))


@pytest.fixture
def voxels(grid):
    return np.random.default_rng(0).normal(0, 300, grid.shape).astype(np.float32)


def ramped(x):
    """A network that is not symmetric: blurs forward along every axis."""
    for axis in (1, 2, 3):
        x = x + 0.5 * ndimage.shift(x, [1 if a == axis else 0 for a in range(4)], order=1)
    return x - 1


def read(recipe, grid, voxels, engines, **options):
    sweep = Sweep(recipe, grid, 1, "CT")
    sweep.add(0, voxels)
    with Runner(sweep, engines, **options) as runner:
        runner.run()
    return sweep.result()


@pytest.mark.parametrize("options", [{"contexts": 3}, {"batch": 4}, {"contexts": 2, "batch": 5}])
def test_contexts_and_batches_change_nothing(make_recipe, make_engine, grid, voxels, options):
    recipe = make_recipe()
    one = read(recipe, grid, voxels, make_engine(ramped))
    other = read(recipe, grid, voxels, make_engine(ramped), **options)
    assert np.array_equal(one.probability, other.probability) and one.mask.any()


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_mirrored_passes_are_averaged_before_activation(make_recipe, make_engine, grid, voxels, axes):
    tiling = {"kind": "lattice", "window": [8, 12, 12], "stride": [4, 6, 6]}
    mirrored = make_recipe(tiling={**tiling, "mirror_axes": axes})
    engine = make_engine(ramped)
    result = read(mirrored, grid, voxels, engine, batch=3)
    assert engine.calls == 2 ** len(axes) * result.windows_run

    def average(x):
        total = 0
        for number in range(2 ** len(axes)):
            flips = [1 + axis for n, axis in enumerate(axes) if number >> n & 1]
            total = total + np.flip(ramped(np.flip(x, flips)), flips)
        return total / 2 ** len(axes)

    expected = read(make_recipe(tiling=tiling), grid, voxels, make_engine(average))
    both = (result.mask > 0) & (expected.mask > 0)
    assert (result.mask != expected.mask).mean() < 1e-3 and both.mean() > 0.05
    difference = np.abs(result.probability.astype(float) - expected.probability)[both]
    assert difference.max() < 2e-3  # float16


def test_an_ensemble_averages_its_engines(make_recipe, make_engine, grid, voxels):
    recipe = make_recipe()
    folds = [make_engine(lambda x, k=k: (x - 0.2 * k) * (k + 1)) for k in range(3)]
    result = read(recipe, grid, voxels, folds, contexts=2)
    expected = read(
        recipe, grid, voxels, make_engine(lambda x: sum((x - 0.2 * k) * (k + 1) for k in range(3)) / 3)
    )
    both = (result.mask > 0) & (expected.mask > 0)
    assert (result.mask != expected.mask).mean() < 1e-3 and both.mean() > 0.05
    assert np.abs(result.probability.astype(float) - expected.probability)[both].max() < 2e-3
    again = read(recipe, grid, voxels, folds)
    assert np.array_equal(again.probability, result.probability)


def test_progress_counts_to_the_end(make_recipe, make_engine, grid, voxels):
    sweep = Sweep(make_recipe(), grid, 1, "CT")
    sweep.add(0, voxels)
    seen = []
    timings = run(sweep, make_engine(ramped), lambda done, total: seen.append((done, total)))
    assert seen == [(n + 1, sweep.window_total) for n in range(sweep.window_total)]
    assert min(timings.fill_s, timings.engine_s, timings.blend_s) > 0


def test_a_network_that_returns_nan_ends_the_run(make_recipe, make_engine, grid, voxels):
    sweep = Sweep(make_recipe(), grid, 1, "CT")
    sweep.add(0, voxels)
    count = []

    def breaks(x):
        count.append(1)
        return x * (np.nan if len(count) == 5 else 1)

    with pytest.raises(NotFiniteError), Runner(sweep, make_engine(breaks)) as runner:
        runner.run()
    assert not sweep.finished
    with pytest.raises(RecipeError, match="missing"):
        sweep.result()


def test_another_output_than_expected_is_refused(make_recipe, make_engine, grid, voxels):
    sweep = Sweep(make_recipe(), grid, 1, "CT")
    sweep.add(0, voxels)
    with pytest.raises(RecipeError, match="returns"):
        run(sweep, make_engine(lambda x: x, 1, 2))


def test_contexts_are_closed(make_recipe, make_engine, grid, voxels):
    engine = make_engine(ramped)
    made = []
    plain = engine.context
    engine.context = lambda *a: made.append(plain(*a)) or made[-1]
    sweep = Sweep(make_recipe(), grid, 1, "CT")
    sweep.add(0, voxels)
    with Runner(sweep, engine, contexts=2) as runner:
        runner.run()
        runner.run()
    assert len(made) == 2 and all(context.closed for context in made)
